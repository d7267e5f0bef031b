import com.fasterxml.jackson.databind.ObjectMapper;
import java.lang.management.ManagementFactory;
import java.net.*;
import java.nio.channels.*;
import java.nio.file.*;
import java.util.*;
import java.util.concurrent.*;
import java.util.stream.Collectors;
import javax.management.*;
import org.apache.cassandra.auth.*;
import org.apache.cassandra.auth.IRoleManager.Option;
import org.apache.cassandra.config.DatabaseDescriptor;
import org.apache.cassandra.cql3.QueryProcessor;
import org.apache.cassandra.db.ConsistencyLevel;
import org.apache.cassandra.gms.*;
import org.apache.cassandra.schema.Schema;
import org.apache.cassandra.service.*;

/** Cassandra with a door for the verbs: a socket that only the member's own user can open. A line of JSON in, a line of JSON out. */
public class Backlot {
    static final ObjectMapper JSON = new ObjectMapper();
    static final MBeanServer BEANS = ManagementFactory.getPlatformMBeanServer();
    static final Path DATA = Path.of("/data/cassandra");
    static final Map<String, Future<?>> jobs = new ConcurrentHashMap<>();
    static final ScheduledExecutorService threads = Executors.newScheduledThreadPool(8, run -> {
        Thread thread = new Thread(run, "backlot");
        thread.setDaemon(true);
        return thread;
    });

    public static void main(String[] args) throws Exception {
        Path socket = Path.of("/run/db/backlot");
        Files.deleteIfExists(socket);
        ServerSocketChannel server = ServerSocketChannel.open(StandardProtocolFamily.UNIX).bind(UnixDomainSocketAddress.of(socket));
        threads.submit(() -> { while (true) { SocketChannel client = server.accept(); threads.submit(() -> serve(client)); } });
        threads.scheduleWithFixedDelay(Backlot::clean, 20, 20, TimeUnit.SECONDS);
        CassandraDaemon.main(args);
    }

    static void serve(SocketChannel client) {
        try (client; Scanner in = new Scanner(Channels.newInputStream(client))) {
            Object answer;
            try {
                answer = answer(JSON.readValue(in.nextLine(), String[].class));
            } catch (Throwable error) {
                answer = Map.of("refused", String.valueOf(error));
            }
            Channels.newOutputStream(client).write(JSON.writeValueAsBytes(answer));
        } catch (Exception gone) { }
    }

    /** STARTING until the service has registered itself: an earlier look at it from here would start it in the wrong order. */
    static String mode() throws Exception {
        return BEANS.isRegistered(new ObjectName("org.apache.cassandra.db:type=StorageService")) ? StorageService.instance.getOperationMode() : "STARTING";
    }

    static Object answer(String[] words) throws Exception {
        switch (words[0]) {
            case "role": case "health": return polled(words[0], mode());
            case "state": return mode().equals("STARTING") ? Map.of("mode", "STARTING") : state();
            case "cql":
                var rows = QueryProcessor.process(words[1], ConsistencyLevel.ONE);
                return rows == null ? List.of() : rows.stream().map(row -> row.getString("[json]")).collect(Collectors.toList());
            case "accounts": return accounts(read(Path.of(words[1])), read(Path.of(words[2])));
            case "open": StorageService.instance.startNativeTransport(); return true;
            case "set":  // answers whether that changed something
                ObjectName bean = new ObjectName("org.apache.cassandra.db:type=" + words[1]);
                Number old = (Number) BEANS.getAttribute(bean, words[2]), wanted = old instanceof Integer ? (Number) Integer.valueOf(words[3]) : Long.valueOf(words[3]);
                BEANS.setAttribute(bean, new Attribute(words[2], wanted));
                if (!BEANS.getAttribute(bean, words[2]).equals(wanted)) throw new IllegalStateException(words[2] + " was not taken");
                return !old.equals(wanted);
            case "decommission": return job(words, () -> { StorageService.instance.decommission(false); return null; });
            case "remove": return job(words, () -> { StorageService.instance.removeNode(words[1]); return null; });
            case "resume": return job(words, () -> StorageService.instance.resumeBootstrap());
            case "repair": return job(words, () -> repair(words[1]));
            default: throw new IllegalArgumentException(words[0]);
        }
    }

    /** Starts work that may take long, unless it is under way. One call is told how the last one ended, and can look before the next. */
    static String job(String[] name, Callable<Object> work) throws Exception {
        Future<?> job = jobs.computeIfAbsent(String.join(" ", name), start -> threads.submit(work));
        if (!job.isDone()) return "is under way";
        jobs.remove(String.join(" ", name));
        try {
            job.get();
            return "has ended";
        } catch (ExecutionException failed) {
            return "failed: " + failed.getCause();
        }
    }

    static Object repair(String keyspace) throws Exception {
        int number = StorageService.instance.repairAsync(keyspace, Map.of("incremental", "false", "parallelism", "parallel"));
        for (List<String> status; number > 0; Thread.sleep(300)) {
            status = StorageService.instance.getParentRepairStatus(number);
            if (status == null || status.get(0).equals("COMPLETED")) break;
            if (status.get(0).equals("FAILED")) throw new IllegalStateException(String.join(" ", status));
        }
        return null;
    }

    static Map<String, Object> state() {
        StorageService service = StorageService.instance;
        var ring = service.getTokenMetadata();
        var members = ring.getAllMembers().stream().map(at -> Map.of("engineId", ring.getHostId(at).toString(), "address", at.getHostAddress(false),
            "up", FailureDetector.instance.isAlive(at))).collect(Collectors.toList());
        Map<String, Object> keyspaces = new TreeMap<>();
        for (var keyspace : Schema.instance.distributedKeyspaces())
            keyspaces.put(keyspace.name, Map.of("replication", keyspace.params.replication.asMap(), "tables", keyspace.tables.size(),
                "sets", members.isEmpty() ? Set.of() : new HashSet<>(service.getRangeToEndpointMap(keyspace.name).values())));
        return Map.of("mode", service.getOperationMode(), "open", service.isNativeTransportRunning(), "id", String.valueOf(service.getLocalHostId()),
            "failed", service.isBootstrapFailed(), "members", members, "keyspaces", keyspaces,
            "moving", ring.getBootstrapTokens().size() + ring.getLeavingEndpoints().size() + ring.getSizeOfMovingEndpoints());
    }

    /** The verbs that are polled, answered whole. */
    static Object polled(String verb, String mode) {
        boolean normal = mode.equals("NORMAL"), serves = normal && StorageService.instance.isNativeTransportRunning(), starts = mode.equals("STARTING");
        if (verb.equals("role")) return Map.of("output", Map.of("role", normal ? "peer" : starts ? "unknown" : "observer", "writable", serves));
        String cluster = "unknown", message = "mode " + mode.toLowerCase();
        List<String> reasons = new ArrayList<>(serves ? List.of() : List.of(normal ? "ClientPortClosed" : "NotServing"));
        if (normal) {
            var members = StorageService.instance.getTokenMetadata().getAllMembers();
            var up = members.stream().filter(FailureDetector.instance::isAlive).collect(Collectors.toList());
            long schemas = up.stream().map(Gossiper.instance::getSchemaVersion).distinct().count();
            if (up.size() < members.size()) reasons.add("MembersMissing");
            if (schemas > 1) reasons.add("SchemasDiffer");
            cluster = up.size() < members.size() / 2 + 1 ? "noQuorum" : up.size() < members.size() || schemas > 1 ? "degraded" : "ok";
            message = up.size() + " of " + members.size() + " members are up, versions of the schema: " + schemas;
        }
        return Map.of("output", Map.of("process", starts ? "starting" : "up", "ready", serves, "cluster", cluster, "reasons", reasons, "message", message));
    }

    /** The roles admin and app with these passwords, and no login for the engine's default role. True when something was changed. */
    static boolean accounts(String admin, String app) throws Exception {
        IRoleManager roles = DatabaseDescriptor.getRoleManager();
        boolean changed = role("admin", admin, true) | role("app", app, false) | roles.canLogin(RoleResource.role("cassandra"));
        roles.alterRole(AuthenticatedUser.SYSTEM_USER, RoleResource.role("cassandra"), options(Map.of(Option.LOGIN, false, Option.SUPERUSER, false)));
        IResource keyspace = DataResource.keyspace("app");
        DatabaseDescriptor.getAuthorizer().grant(AuthenticatedUser.SYSTEM_USER, keyspace.applicablePermissions(), keyspace, RoleResource.role("app"));
        // Who creates a keyspace has all rights on it.
        DatabaseDescriptor.getAuthorizer().grant(AuthenticatedUser.SYSTEM_USER, Set.of(Permission.CREATE), DataResource.root(), RoleResource.role("app"));
        return changed;
    }

    static boolean role(String name, String password, boolean isSuper) {
        try {
            DatabaseDescriptor.getAuthenticator().legacyAuthenticate(Map.of("username", name, "password", password));
            return false;
        } catch (org.apache.cassandra.exceptions.AuthenticationException missing) {
            DatabaseDescriptor.getRoleManager().createRole(AuthenticatedUser.SYSTEM_USER, RoleResource.role(name),
                options(Map.of(Option.PASSWORD, password, Option.LOGIN, true, Option.SUPERUSER, isSuper)));
            return true;
        }
    }

    static RoleOptions options(Map<Option, Object> values) {
        RoleOptions options = new RoleOptions();
        values.forEach(options::setOption);
        return options;
    }

    /** Notes the host id beside the data; after members came, drops what is theirs now. Invariant: only a finished cleanup is noted. */
    static void clean() {
        try {
            if (!mode().equals("NORMAL")) return;
            StorageService service = StorageService.instance;
            note("host", service.getLocalHostId());
            var ring = service.getTokenMetadata();
            Set<String> ids = new TreeSet<>(service.getHostIdToEndpoint().keySet());
            boolean grown = Files.exists(DATA.resolve("cleaned")) && !Set.of(read(DATA.resolve("cleaned")).split(" ")).containsAll(ids);
            // The own keyspaces get their copies first (verbs.py); until then their data may be needed where it is.
            String copies = Schema.instance.getKeyspaceMetadata("app").params.replication.asMap().get("dc1");
            if (ring.getBootstrapTokens().size() + ring.getLeavingEndpoints().size() > 0 || grown && Integer.parseInt(copies) < Math.min(3, ids.size())) return;
            if (grown) for (var keyspace : Schema.instance.distributedKeyspaces()) service.forceKeyspaceCleanup(1, keyspace.name);
            note("cleaned", String.join(" ", ids));
        } catch (Exception later) {
            System.out.println("cleanup is tried again: " + later);
        }
    }

    static void note(String name, String text) throws Exception {
        if (Files.exists(DATA.resolve(name)) && read(DATA.resolve(name)).equals(text)) return;
        Files.writeString(DATA.resolve(name + ".new"), text);
        Files.move(DATA.resolve(name + ".new"), DATA.resolve(name), StandardCopyOption.ATOMIC_MOVE);
    }

    static String read(Path file) throws Exception {
        return Files.readString(file).strip();
    }
}
