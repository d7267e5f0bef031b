#!/usr/bin/python3 -IBS
"""The verbs that are not polled; the request says which. The server itself is asked over its socket (build/Backlot.java).

Invariant: done is what the ring says now. The keyspaces that are the image's own have as many copies as there are members, three at most,
and one more only when the last one was repaired: a majority of the copies always holds every write that a majority has acknowledged.
"""
import json
import os
import re
import socket
import sys
import time
import uuid

sys.path.insert(0, "/db/lib")
from cql import LOCAL_ONE, Client, Refused  # noqa: E402

OWN = ("app", "system_auth", "system_distributed", "system_traces")
# Key: kind of bean, attribute, default, unit in the file.
LIVE = {
    "compaction_throughput": ("StorageService", "CompactionThroughputMbPerSec", 64, "MiB/s"),
    "stream_throughput_outbound": ("StorageService", "StreamThroughputMebibytesPerSec", 24, "MiB/s"),
    "concurrent_compactors": ("StorageService", "ConcurrentCompactors", 2, ""),
    "read_request_timeout": ("StorageService", "ReadRpcTimeout", 5000, "ms"),
    "range_request_timeout": ("StorageService", "RangeRpcTimeout", 10000, "ms"),
    "write_request_timeout": ("StorageService", "WriteRpcTimeout", 2000, "ms"),
    "tombstone_failure_threshold": ("StorageService", "TombstoneFailureThreshold", 100000, ""),
    "max_hint_window": ("StorageProxy", "MaxHintWindow", 10800000, "ms"),
}
with open(os.environ["DB_REQUEST"], encoding="utf-8") as request_file:
    request = json.load(request_file)
cluster, config, params = request["cluster"], request.get("config") or {}, request.get("params") or {}
members = {m["id"]: m for m in request["members"]}
me = members[request["self"]]
peers = [m for m in members.values() if m["id"] != me["id"] and m["state"] in ("joined", "leaving")]
SECRETS = os.environ.get("DB_SECRETS", "")
# When this work began (ms): the caller hands it back in each call.
BEGUN = int(params.get("handle") or time.time() * 1000)


def finish(code, output=None, **result):
    with open(os.environ["DB_RESULT"] + ".new", "w", encoding="utf-8") as file:
        json.dump({**result, **({} if output is None else {"output": output})}, file)
    os.rename(os.environ["DB_RESULT"] + ".new", os.environ["DB_RESULT"])
    sys.exit(code)


def done(changed, output=None, **more):
    finish(0, output, changed=changed, **more)


def fail(code, name, message):
    finish(code, error={"code": name, "message": message})


def pending(note, fraction=0.5, **more):
    finish(10, progress={"fraction": fraction, "note": note}, **more)


def later(message):
    finish(11, error={"code": "NotNow", "message": message}, retry={"afterSeconds": 5, "need": "settle"})


def unsafe(*blockers):
    finish(22, blockers=[dict(zip(("object", "reason", "hint"), blocker)) for blocker in blockers],
           error={"code": "Unsafe", "message": "; ".join(": ".join(blocker) for blocker in blockers)})


def ask(*words):
    """The server's own answer."""
    with socket.socket(socket.AF_UNIX) as door:
        door.settimeout(request["deadlineSeconds"] * 0.8)
        try:
            door.connect("/run/db/backlot")
            door.sendall(json.dumps(words).encode() + b"\n")
            answer = json.loads(door.makefile().read())
        except (OSError, ValueError):
            finish(13, error={"code": "NoAnswer", "message": "the server does not run, or does not answer"})
    if isinstance(answer, dict) and "refused" in answer:
        raise Refused(answer["refused"])
    return answer


def state():
    """The server's view of the ring, once it is part of it."""
    now = ask("state")
    if now["mode"] == "STARTING":
        pending("the server starts", 0.1)
    return now


def known():
    """Host ids of the ring as other members tell; None when none answers."""
    ids, answered = set(), False
    for member in peers:
        try:
            with open(f"{SECRETS}/app/current", encoding="utf-8") as file:
                client = Client([member["name"]], "app", file.read().strip(), 4)
            rows = [row for table in ("local", "peers_v2") for row in client.query(f"SELECT host_id FROM system.{table}", consistency=LOCAL_ONE)]
            ids, answered = ids | {str(uuid.UUID(bytes=row[0])) for row in rows if row[0]}, True
        except (OSError, Refused):
            pass
    return ids if answered else None


def number(key, default):
    """A setting in the unit of the file: bytes, milliseconds, or as it is."""
    amount, unit = re.fullmatch(r"([\d.]+)\s*([a-zA-Z]*)", str(config.get(key, default))).groups()
    times = {"": 1, "ms": 1, "s": 1000, "min": 60000, "h": 3600000, "d": 86400000}
    return int(float(amount) * (times[unit] if unit in times else 1024 ** " kmgt".find(unit[:1].lower())))


def render():
    memory = (request.get("resources") or {}).get("memoryBytes") or 1 << 30
    if memory < 704 << 20:
        fail(20, "MemoryTooSmall", f"{memory >> 20}Mi of memory do not suffice; give at least 704Mi")
    # What is not heap: classes, code, threads and the caches below 400 Mi, the agent and the verbs the rest.
    heap = number("heap", min(16 << 30, (memory - (432 << 20)) // 2)) >> 20
    if heap > (memory >> 20) - 432:
        fail(20, "InvalidSetting", f"heap: {heap}Mi leave less than 432Mi of the member's {memory >> 20}Mi")
    founding, comes = cluster.get("founding"), me["state"] in ("new", "joining")
    # Names may not resolve yet, above all the own one. A member that is not joined must not be its own seed: it would make a second ring.
    address = me.get("address") or me["name"]
    seeds = [m["name"] for m in peers if m["state"] == "joined"][:3] + ([address] if founding or not comes else [])
    racks = {m.get("zone") or "rack1" for m in members.values() if m["state"] == "joined"}
    small = heap < 1024
    pem = {"ssl_context_factory": {"class_name": "org.apache.cassandra.security.PEMBasedSslContextFactory"}, "keystore": "/run/db/peer.pem",
           "truststore": "/run/db/peer.crt"}
    settings = {
        "cluster_name": cluster["engineName"], "num_tokens": number("num_tokens", 16), "partitioner": "org.apache.cassandra.dht.Murmur3Partitioner",
        "seed_provider": [{"class_name": "org.apache.cassandra.locator.SimpleSeedProvider", "parameters": [{"seeds": ",".join(seeds)}]}],
        # With two racks the engine refuses to place tokens for three copies.
        **({"allocate_tokens_for_local_replication_factor": 3} if len(racks) != 2 else {}),
        "endpoint_snitch": "GossipingPropertyFileSnitch", "listen_address": address, "rpc_address": "0.0.0.0", "broadcast_rpc_address": address,
        "authenticator": "PasswordAuthenticator", "authorizer": "CassandraAuthorizer", "role_manager": "CassandraRoleManager",
        # Until `found` took the default login away, nobody is let in.
        "start_native_transport": not founding,
        "server_encryption_options": {"internode_encryption": "all", "optional": False, "require_client_auth": True, **pem},
        "commitlog_sync": config.get("commitlog_sync", "periodic"), "commitlog_segment_size": "16MiB" if small else "32MiB",
        **{"periodic": {"commitlog_sync_period": "10000ms"}, "group": {"commitlog_sync_group_window": "15ms"}}.get(config.get("commitlog_sync", "periodic"), {}),
        "disk_failure_policy": "die", "commit_failure_policy": "die", "auto_snapshot": False, "memtable_allocation_type": "offheap_buffers",
        "memtable_heap_space": f"{max(24, heap // 8)}MiB", "memtable_offheap_space": f"{max(24, heap // 8)}MiB", "file_cache_size": f"{min(512, max(24, heap // 8))}MiB",
        "networking_cache_size": f"{min(128, max(24, heap // 8))}MiB", "key_cache_size": f"{number('key_cache_size', min(100, max(4, heap // 20)) << 20) >> 20}MiB",
        "concurrent_reads": number("concurrent_reads", 8 if small else 32), "concurrent_writes": number("concurrent_writes", 8 if small else 32),
        "default_keyspace_rf": number("default_keyspace_rf", 3), "materialized_views_enabled": config.get("materialized_views_enabled") == "true",
        **{key: f"{number(key, default)}{unit}" if unit else number(key, default) for key, (_, _, default, unit) in LIVE.items()},
    }
    lone = ["-Dcassandra.skip_wait_for_gossip_to_settle=0"] if founding or len(peers) == 0 else []
    done(False, {
        "argv": ["/db/lib/start", "found" if founding else "join" if comes else "member", cluster["uid"], me["id"], f"-Xms{heap}m", f"-Xmx{heap}m",
                 *(["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:ReservedCodeCacheSize=64m"] if small else ["-XX:+UseG1GC", "-XX:MaxGCPauseMillis=300"]),
                 f"-XX:MaxDirectMemorySize={max(128, heap // 2)}m", f"-DlogLevel={config.get('logLevel', 'INFO')}", *lone,
                 *(["-Dcassandra.superuser_setup_delay_ms=500", "-Dcassandra.ring_delay_ms=1000"] if founding else [])],
        "env": {"MALLOC_ARENA_MAX": "2"},
        "files": [{"path": "/run/db/cassandra.yaml", "content": json.dumps(settings, indent=1)},
                  {"path": "/run/db/rack", "content": me.get("zone") or "rack1"}, {"path": "/run/db/peer", "content": "${secret:peer}", "mode": "0600"}],
    })


def prepare():
    def say(name, message=""):
        done(False, {"state": name, "message": message})

    def read(name):
        try:
            with open(f"/data/cassandra/{name}", encoding="utf-8") as file:
                return file.read().strip()
        except FileNotFoundError:
            return ""
    stamp, host = read("stamp"), read("host")
    if stamp and stamp != f"{cluster['uid']} {me['id']}":
        say("foreign", f"the volume is that of {stamp}")
    if not stamp and os.path.exists("/data/cassandra/data"):
        say("unreadable", "the volume holds data without a member's stamp")
    if host and not os.path.exists("/data/cassandra/data/system"):
        say("unreadable", "the volume was a member's, but its data is gone")
    if me["state"] in ("left", "dead"):
        say("retired", "the member was removed")
    ids = known() if cluster.get("founded") else None
    if stamp:
        gone = host and ids is not None and host not in ids
        say("retired" if gone else "existing", f"the ring removed the host {host}" if gone else "")
    if ids and me.get("engineId") in ids:
        unsafe((me["id"], f"the volume is empty, but the ring still holds its host {me['engineId']}", "forget it first"))
    say("fresh")


def copies(now, keyspace):
    return sum(int(value) for key, value in now["keyspaces"][keyspace]["replication"].items() if key != "class")


def repaired(now, keyspace, since):
    """Whether a whole repair of the keyspace began after this moment (ms) and ended well; else one is started."""
    if copies(now, keyspace) < 2 or len(now["members"]) < 2 or not now["keyspaces"][keyspace]["tables"]:
        return True
    rows = ask("cql", "SELECT JSON finished_at, exception_message FROM system_distributed.parent_repair_history "
               f"WHERE keyspace_name = '{keyspace}' AND started_at >= {since} ALLOW FILTERING", "ONE")
    if any(row["finished_at"] and not row["exception_message"] for row in map(json.loads, rows)):
        return True
    note = ask("repair", keyspace)
    pending(f"repair of {keyspace}: {note}", 0.5, handle=str(BEGUN))


def settle(now, target):
    """Brings the own keyspaces to min(3, target) copies, one step and one repair at a time. True when something was changed."""
    changed = False
    for keyspace in OWN:
        count, wanted = copies(now, keyspace), min(3, target)
        plain = "NetworkTopologyStrategy" not in now["keyspaces"][keyspace]["replication"]["class"]
        if count > wanted and target < len(now["members"]):  # what only the leaving member may have goes to all first
            repaired(now, keyspace, BEGUN)
        if count != wanted or plain:
            count = min(count + 1, wanted)
            ask("cql", f"ALTER KEYSPACE {keyspace} WITH replication = {{'class': 'NetworkTopologyStrategy', 'dc1': {count}}}", "ONE")
            changed = True
            if count < wanted or count > 1:
                pending(f"{keyspace} has {count} copies now", 0.3, handle=str(BEGUN))
        row = ask("cql", f"SELECT JSON writetime(durable_writes) AS at FROM system_schema.keyspaces WHERE keyspace_name = '{keyspace}'", "ONE")
        if target >= len(now["members"]):
            repaired(now, keyspace, (json.loads(row[0])["at"] or 0) // 1000)
    return changed


def found():
    if not cluster.get("founding"):
        fail(20, "NotFounding", "this call does not permit to create a cluster")
    with open("/data/cassandra/stamp", encoding="utf-8") as file:
        if file.read().split()[0] != cluster["uid"]:
            fail(23, "OtherCluster", "the volume belongs to another cluster")
    now = state()
    if now["mode"] != "NORMAL":
        pending(f"mode {now['mode']}")
    changed = "app" not in now["keyspaces"] or not now["open"]
    ask("cql", "CREATE KEYSPACE IF NOT EXISTS app WITH replication = {'class': 'NetworkTopologyStrategy', 'dc1': 1}", "ONE")
    now = state()
    changed |= settle(now, len(now["members"]))
    changed |= ask("accounts", f"{SECRETS}/admin/current", f"{SECRETS}/app/current")
    if not now["open"]:
        ask("open")
    if not state()["open"]:
        pending("the client port is not open yet", 0.9)
    done(changed, {"engineId": now["id"]})


def join():
    now = state()
    if now["failed"]:
        pending(f"the data did not come whole: {ask('resume')}", 0.2)
    if now["mode"] != "NORMAL" or not now["open"]:
        pending(f"mode {now['mode'].lower()}")
    ids = known()
    if peers and (ids is None or now["id"] not in ids):
        pending("no other member lists it yet", 0.8)
    changed = settle(now, len(now["members"]))
    done(changed, {"engineId": now["id"]})


def rebalance():
    now = state()
    if now["mode"] != "NORMAL" or now["moving"]:
        later("members come or go")
    done(settle(now, len(now["members"])))


def missing(now, without):
    return [m for m in now["members"] if not m["up"] and m["engineId"] != without]


def leave():
    now = state()
    if now["mode"] in ("DECOMMISSIONED", "LEAVING"):
        ids = known()
        if now["mode"] == "LEAVING" or ids is None or now["id"] in ids:
            pending(f"mode {now['mode'].lower()}", 0.8)
        done(False)
    left = len(now["members"]) - 1
    if left < 1:
        unsafe((me["id"], "it is the last member", "delete the Database instead"))
    if down := missing(now, now["id"]):
        unsafe(*((m["address"], "this member is down", "bring it back, or have it forgotten, first") for m in down))
    if big := [ks for ks in now["keyspaces"] if ks not in OWN and copies(now, ks) > left]:
        unsafe(*((f"keyspace {ks}", f"it wants {copies(now, ks)} copies, and {left} members would remain",
                  "lower its replication factor by ALTER KEYSPACE, or keep the member") for ks in big))
    settle(now, left)
    pending(f"decommission {ask('decommission')}", 0.6, handle=str(BEGUN))


def forget():
    now, subject = state(), members[request["subject"]]
    dead = next((m for m in now["members"] if m["engineId"] == subject.get("engineId")), None)
    if not dead:
        done(False)
    if dead["up"]:
        later(f"{subject['id']} still answers; stop it first")
    down = 1 + len(missing(now, dead["engineId"]))
    if lost := [ks for ks in now["keyspaces"] if now["keyspaces"][ks]["tables"] and ks != "system_traces" and copies(now, ks) <= down]:
        unsafe(*((f"keyspace {ks}", f"it has {copies(now, ks)} copies, and {down} members are down", "bring them back, or drop the keyspace")
                 for ks in lost))
    pending(f"removal {ask('remove', dead['engineId'])}")


def membership():
    now = state()
    if now["mode"] != "NORMAL":
        later(f"this member is in mode {now['mode'].lower()}")
    ring = [{**({"id": name} if (name := ids_of(now).get(m["engineId"])) else {}), "engineId": m["engineId"], "vote": False, "up": m["up"]} for m in now["members"]]
    done(False, {"members": sorted(ring, key=lambda m: m["engineId"])})


def ids_of(now):
    return {**{m["engineId"]: m["id"] for m in members.values() if m.get("engineId")}, now["id"]: me["id"]}


def can_disrupt():
    now = state()
    if now["mode"] != "NORMAL":
        later(f"this member is in mode {now['mode'].lower()}")
    names, away = ids_of(now), {m["address"] for m in now["members"] if not m["up"]}
    address = {names.get(m["engineId"]): m["address"] for m in now["members"] if m["up"]}
    allowed, refused, only = [], [], len(address) < 2
    for name in params.get("members") or [me["id"]]:
        if name not in address:  # who is down or not in the ring is not missed
            allowed.append(name)
            continue
        if only or now["moving"]:
            refused.append((name, "it is the only member that serves" if only else "a member comes or goes", "wait, or add members"))
        elif shared := [ks for ks, it in now["keyspaces"].items() if it["tables"] and any(address[name] in s and away & set(s) for s in it["sets"])]:
            refused.append((name, f"keyspace {shared[0]}: another copy of its data is away", "wait until every member is up"))
        else:
            allowed.append(name)
            away.add(address[name])
    done(False, {"allowed": allowed}, blockers=[] if allowed else [dict(zip(("object", "reason", "hint"), r)) for r in refused])


def reconfigure():
    changed, values = False, {}
    state()
    for key, (bean, attribute, default, _) in LIVE.items():
        wanted = number(key, default)
        if ask("get", bean, attribute) != wanted:
            changed = True
            if ask("set", bean, attribute, str(wanted)) != wanted:
                fail(31, "NotTaken", f"{key}: the server did not take {wanted}")
        if key in config:
            values[key] = config[key]
    applied = request.get("appliedConfig") or {}
    done(changed, {"values": values, "pendingRestart": sorted(k for k in config.keys() | applied.keys() if k not in LIVE and config.get(k) != applied.get(k))})


try:
    globals()[request["verb"].replace("-", "_")]()
except Refused as error:
    pending(f"the server refuses: {error}", 0.1)
