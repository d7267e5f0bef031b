import com.fasterxml.jackson.databind.ObjectMapper;
import java.lang.management.ManagementFactory;
import java.net.StandardProtocolFamily;
import java.net.UnixDomainSocketAddress;
import java.nio.channels.Channels;
import java.nio.channels.ServerSocketChannel;
import java.nio.channels.SocketChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.util.*;
import java.util.concurrent.*;
import java.util.stream.Collectors;
import javax.management.Attribute;
import javax.management.ObjectName;
import org.apache.cassandra.auth.*;
import org.apache.cassandra.config.DatabaseDescriptor;
import org.apache.cassandra.cql3.QueryProcessor;
import org.apache.cassandra.db.ConsistencyLevel;
import org.apache.cassandra.gms.*;
import org.apache.cassandra.schema.Schema;
import org.apache.cassandra.service.*;

/** Cassandra with a door for the verbs: a socket that only this member's user can open. A line of JSON in, a line of JSON out. */
public class Backlot {
    static final ObjectMapper JSON = new ObjectMapper();
    static final Path DATA = Path.of("/data/cassandra");
    static final Map<String, Future<?>> jobs = new ConcurrentHashMap<>();
    static final ExecutorService threads = Executors.newCachedThreadPool(run -> {
        Thread thread = new Thread(run, "backlot");
        thread.setDaemon(true);
        return thread;
    });

    public static void main(String[] args) throws Exception {
        Path socket = Path.of("/run/db/backlot");
        Files.deleteIfExists(socket);
        ServerSocketChannel server = ServerSocketChannel.open(StandardProtocolFamily.UNIX).bind(UnixDomainSocketAddress.of(socket));
        threads.submit(() -> {
            while (true) {
                SocketChannel client = server.accept();
                threads.submit(() -> serve(client));
            }
        });
        Executors.newSingleThreadScheduledExecutor(run -> { Thread t = new Thread(run); t.setDaemon(true); return t; })
            .scheduleWithFixedDelay(Backlot::clean, 20, 20, TimeUnit.SECONDS);
        CassandraDaemon.main(args);
    }

    static void serve(SocketChannel client) {
        try (client; Scanner in = new Scanner(Channels.newInputStream(client), "UTF-8")) {
            Object answer;
            try {
                String[] words = JSON.readValue(in.nextLine(), String[].class);
                answer = started() ? answer(words) : words[0].equals("state") ? Map.of("mode", "STARTING") : polled(words[0], "STARTING");
            } catch (Throwable error) {
                answer = Map.of("refused", String.valueOf(error.getMessage() == null ? error : error.getMessage()));
            }
            Channels.newOutputStream(client).write(JSON.writeValueAsBytes(answer));
        } catch (Exception gone) { }
    }

    /** Before that, a look at the service from here would start it in the wrong order. */
    static boolean started() throws Exception {
        return ManagementFactory.getPlatformMBeanServer().isRegistered(new ObjectName("org.apache.cassandra.db:type=StorageService"));
    }

    static Object answer(String[] words) throws Exception {
        StorageService service = StorageService.instance;
        switch (words[0]) {
            case "role": case "health": return polled(words[0], service.getOperationMode());
            case "state": return state();
            case "cql":
                var rows = QueryProcessor.process(words[1], ConsistencyLevel.valueOf(words[2]));
                return rows == null ? List.of() : rows.stream().map(row -> row.getString("[json]")).collect(Collectors.toList());
            case "accounts": return accounts(read(words[1]), read(words[2]));
            case "open": service.startNativeTransport(); return true;
            case "get": case "set":
                var beans = ManagementFactory.getPlatformMBeanServer();
                ObjectName bean = new ObjectName("org.apache.cassandra.db:type=" + words[1]);
                if (words[0].equals("set")) {
                    String type = Arrays.stream(beans.getMBeanInfo(bean).getAttributes()).filter(a -> a.getName().equals(words[2])).findAny().get().getType();
                    beans.setAttribute(bean, new Attribute(words[2], type.equals("int") ? (Object) Integer.valueOf(words[3]) : Long.valueOf(words[3])));
                }
                return beans.getAttribute(bean, words[2]);
            case "decommission": return job("decommission", () -> { service.decommission(false); return null; });
            case "remove": return job("remove " + words[1], () -> { service.removeNode(words[1]); return null; });
            case "resume": return job("resume", () -> { service.resumeBootstrap(); return null; });
            case "repair": return job("repair " + words[1], () -> repair(words[1]));
            default: throw new IllegalArgumentException("no such call: " + words[0]);
        }
    }

    /** Starts work that may take long, unless it is under way. One call is told how the last one ended, and can look before the next. */
    static Object job(String name, Callable<Object> work) {
        Future<?> job = jobs.computeIfAbsent(name, start -> threads.submit(work));
        if (!job.isDone()) return "is under way";
        jobs.remove(name);
        try {
            job.get();
            return "has ended";
        } catch (Exception failed) {
            return "failed: " + failed.getCause();
        }
    }

    static Object repair(String keyspace) throws Exception {
        int number = StorageService.instance.repairAsync(keyspace, Map.of("incremental", "false", "parallelism", "parallel"));
        while (number > 0) {
            List<String> status = StorageService.instance.getParentRepairStatus(number);
            if (status == null || status.get(0).equals("COMPLETED")) break;
            if (status.get(0).equals("FAILED")) throw new IllegalStateException(String.join(" ", status));
            Thread.sleep(500);
        }
        return null;
    }

    static Map<String, Object> state() {
        StorageService service = StorageService.instance;
        var ring = service.getTokenMetadata();
        List<Object> members = new ArrayList<>();
        for (var endpoint : ring.getAllMembers())
            members.add(Map.of("engineId", ring.getHostId(endpoint).toString(), "address", endpoint.getHostAddress(false), "up", FailureDetector.instance.isAlive(endpoint),
                "schema", String.valueOf(Gossiper.instance.getSchemaVersion(endpoint))));
        Map<String, Object> keyspaces = new TreeMap<>();
        for (var keyspace : Schema.instance.distributedKeyspaces())
            keyspaces.put(keyspace.name, Map.of("replication", keyspace.params.replication.asMap(), "tables", keyspace.tables.size(),
                "sets", ring.getAllMembers().isEmpty() ? Set.of() : new HashSet<>(service.getRangeToEndpointMap(keyspace.name).values())));
        return Map.of("mode", service.getOperationMode(), "open", service.isNativeTransportRunning(), "id", String.valueOf(service.getLocalHostId()),
            "failed", service.isBootstrapFailed(), "members", members, "keyspaces", keyspaces,
            "moving", ring.getBootstrapTokens().size() + ring.getLeavingEndpoints().size() + ring.getSizeOfMovingEndpoints());
    }

    /** The verbs that are polled, answered whole. */
    static Object polled(String verb, String mode) {
        boolean normal = mode.equals("NORMAL"), serves = normal && StorageService.instance.isNativeTransportRunning();
        if (verb.equals("role")) return Map.of("output", Map.of("role", normal ? "peer" : mode.equals("STARTING") ? "unknown" : "observer", "writable", serves));
        String process = mode.equals("STARTING") ? "starting" : "up", cluster = "unknown", message = "mode " + mode.toLowerCase();
        List<String> reasons = new ArrayList<>(serves ? List.of() : List.of(normal ? "ClientPortClosed" : mode.substring(0, 1) + mode.substring(1).toLowerCase().replace("_", "")));
        if (normal) {
            var ring = StorageService.instance.getTokenMetadata();
            var members = ring.getAllMembers();
            var up = members.stream().filter(FailureDetector.instance::isAlive).collect(Collectors.toList());
            long schemas = up.stream().map(Gossiper.instance::getSchemaVersion).distinct().count();
            boolean few = up.size() < members.size() / 2 + 1;
            if (up.size() < members.size()) reasons.add("MembersMissing");
            if (schemas > 1) reasons.add("SchemasDiffer");
            cluster = few ? "noQuorum" : up.size() < members.size() || schemas > 1 ? "degraded" : "ok";
            message = up.size() + " of " + members.size() + " members are up, " + schemas + " version(s) of the schema";
        }
        return Map.of("output", Map.of("process", process, "ready", serves, "cluster", cluster, "reasons", reasons, "message", message));
    }

    static String read(String file) throws Exception {
        return Files.readString(Path.of(file)).strip();
    }

    /** The roles admin and app with these passwords, and no login for the engine's default role. True when something was changed. */
    static boolean accounts(String admin, String app) throws Exception {
        boolean changed = role("admin", admin, true) | role("app", app, false);
        IRoleManager roles = DatabaseDescriptor.getRoleManager();
        RoleResource standard = RoleResource.role("cassandra");
        if (roles.canLogin(standard) || roles.isSuper(standard)) {
            roles.alterRole(AuthenticatedUser.SYSTEM_USER, standard, options(Map.of(IRoleManager.Option.LOGIN, false, IRoleManager.Option.SUPERUSER, false)));
            changed = true;
        }
        IAuthorizer rights = DatabaseDescriptor.getAuthorizer();
        IResource keyspace = DataResource.keyspace("app");
        rights.grant(AuthenticatedUser.SYSTEM_USER, keyspace.applicablePermissions(), keyspace, RoleResource.role("app"));
        rights.grant(AuthenticatedUser.SYSTEM_USER, Set.of(Permission.CREATE), DataResource.root(), RoleResource.role("app"));
        return changed;
    }

    static boolean role(String name, String password, boolean isSuper) {
        try {
            DatabaseDescriptor.getAuthenticator().legacyAuthenticate(Map.of("username", name, "password", password));
            return false;
        } catch (org.apache.cassandra.exceptions.AuthenticationException missing) {
            DatabaseDescriptor.getRoleManager().createRole(AuthenticatedUser.SYSTEM_USER, RoleResource.role(name), options(Map.of(
                IRoleManager.Option.PASSWORD, password, IRoleManager.Option.LOGIN, true, IRoleManager.Option.SUPERUSER, isSuper)));
            return true;
        }
    }

    static RoleOptions options(Map<IRoleManager.Option, Object> values) {
        RoleOptions options = new RoleOptions();
        values.forEach(options::setOption);
        return options;
    }

    /** Notes the host id beside the data; after members came, drops what is theirs now. Invariant: only a finished cleanup is noted. */
    static void clean() {
        try {
            if (!started() || !StorageService.instance.getOperationMode().equals("NORMAL")) return;
            StorageService service = StorageService.instance;
            note("host", service.getLocalHostId());
            var ring = service.getTokenMetadata();
            Set<String> ids = new TreeSet<>(service.getHostIdToEndpoint().keySet());
            boolean grown = Files.exists(DATA.resolve("cleaned")) && !Set.of(read(DATA + "/cleaned").split(" ")).containsAll(ids);
            if (ring.getBootstrapTokens().size() + ring.getLeavingEndpoints().size() > 0) return;
            // The own keyspaces get their copies first (verbs.py); until then their data may be needed where it is.
            String copies = Schema.instance.getKeyspaceMetadata("app").params.replication.asMap().get("dc1");
            if (grown && Integer.parseInt(copies) < Math.min(3, ids.size())) return;
            if (grown) for (var keyspace : Schema.instance.distributedKeyspaces()) service.forceKeyspaceCleanup(1, keyspace.name);
            note("cleaned", String.join(" ", ids));
        } catch (Exception later) {
            System.out.println("cleanup is tried again: " + later);
        }
    }

    static void note(String name, String text) throws Exception {
        if (Files.exists(DATA.resolve(name)) && read(DATA + "/" + name).equals(text)) return;
        Files.writeString(DATA.resolve(name + ".new"), text);
        Files.move(DATA.resolve(name + ".new"), DATA.resolve(name), StandardCopyOption.ATOMIC_MOVE);
    }
}
