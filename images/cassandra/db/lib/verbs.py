#!/usr/bin/python3 -IB
"""The verbs that are not polled; the request says which. The server is asked over its socket (build/Backlot.java).

Invariant: done is what the ring says now. The image's own keyspaces have as many copies as there are members, three at most, and one more
only when the last one was repaired: every majority of the copies holds every write that a majority has acknowledged.
"""
import json
import os
import re
import socket
import sys
import time

OWN = ("app", "system_auth", "system_distributed", "system_traces")
LIVE = {  # key: attribute of the server, default, unit in its file
    "compaction_throughput": ("StorageService CompactionThroughputMbPerSec", 64, "MiB/s"),
    "stream_throughput_outbound": ("StorageService StreamThroughputMebibytesPerSec", 24, "MiB/s"),
    "concurrent_compactors": ("StorageService ConcurrentCompactors", 2, ""),
    "read_request_timeout": ("StorageService ReadRpcTimeout", 5000, "ms"),
    "range_request_timeout": ("StorageService RangeRpcTimeout", 10000, "ms"),
    "write_request_timeout": ("StorageService WriteRpcTimeout", 2000, "ms"),
    "tombstone_failure_threshold": ("StorageService TombstoneFailureThreshold", 100000, ""),
    "max_hint_window": ("StorageProxy MaxHintWindow", 10800000, "ms"),
}
with open(os.environ["DB_REQUEST"], encoding="utf-8") as request_file:
    request = json.load(request_file)
cluster, config, params = request["cluster"], request.get("config") or {}, request.get("params") or {}
members = {m["id"]: m for m in request["members"]}
me = members[request["self"]]
peers = [m["name"] for m in members.values() if m["id"] != me["id"] and m["state"] in ("joined", "leaving")]
SECRETS = os.environ.get("DB_SECRETS", "")
BEGUN = int(params.get("handle") or time.time() * 1000)  # when this work began (ms): the caller hands it back in each call


class Refused(Exception):
    """What the server answers to what it does not do."""


def finish(code, output=None, **result):
    with open(os.environ["DB_RESULT"] + ".new", "w", encoding="utf-8") as file:
        json.dump({**result, **({} if output is None else {"output": output})}, file)
    os.rename(os.environ["DB_RESULT"] + ".new", os.environ["DB_RESULT"])
    sys.exit(code)


def fail(code, name, message):
    finish(code, error={"code": name, "message": message}, **({"retry": {"afterSeconds": 5, "need": "settle"}} if code == 11 else {}))


def pending(note, fraction=0.5):
    finish(10, progress={"fraction": fraction, "note": note}, handle=str(BEGUN))


def blockers(*found):
    return [dict(zip(("object", "reason", "hint"), blocker)) for blocker in found]


def unsafe(*found):
    finish(22, blockers=blockers(*found), error={"code": "Unsafe", "message": "; ".join(": ".join(blocker) for blocker in found)})


def ask(*words):
    with socket.socket(socket.AF_UNIX) as door:
        door.settimeout(request["deadlineSeconds"] * 0.8)
        try:
            door.connect("/run/db/backlot")
            door.sendall(json.dumps(words).encode() + b"\n")
            answer = json.loads(door.makefile().read())
        except (OSError, ValueError):
            fail(13, "NoAnswer", "the server does not run, or does not answer")
    if isinstance(answer, dict) and "refused" in answer:
        raise Refused(answer["refused"])
    return answer


def state(normal=True):
    now = ask("state")
    if now["mode"] == "STARTING" or normal and (now["mode"] != "NORMAL" or now["moving"]):
        fail(11, "NotNow", f"mode {now['mode'].lower()}, and {now.get('moving', 0)} parts of the ring move")
    return now


def known():
    """Host ids of the ring as another member tells; None when none answers."""
    if not peers:
        return None
    from cassandra.auth import PlainTextAuthProvider
    from cassandra.cluster import Cluster
    try:
        with open(f"{SECRETS}/app/current", encoding="utf-8") as file:
            login = PlainTextAuthProvider("app", file.read().strip())
        with Cluster(peers, auth_provider=login, protocol_version=4, connect_timeout=4, schema_metadata_enabled=False) as client:
            client.connect()
            return {str(host.host_id) for host in client.metadata.all_hosts()}
    except Exception:  # the driver has many, and all mean the same here
        return None


def number(key, default):
    """A setting as the server's file has it: bytes, milliseconds, or as it is."""
    amount, unit = re.fullmatch(r"([\d.]+)\s*([a-zA-Z]*)", str(config.get(key, default))).groups()
    times = {"": 1, "ms": 1, "s": 1000, "min": 60000, "h": 3600000, "d": 86400000}
    return int(float(amount) * (times[unit] if unit in times else 1024 ** " kmgt".find(unit[:1].lower())))


def render():
    memory = ((request.get("resources") or {}).get("memoryBytes") or 1 << 30) >> 20
    # What is not heap: classes, code, threads and caches below 400 Mi, the agent and the verbs.
    heap = number("heap", min(16384, max(0, memory - 432) // 2) << 20) >> 20
    if heap < 128 or heap > memory - 432:
        fail(20, "MemoryTooSmall", f"of {memory}Mi of memory 432Mi are not for the heap, which needs 128Mi at least; it would have {heap}Mi")
    founding, comes, small = cluster.get("founding"), me["state"] in ("new", "joining"), heap < 1024
    # Names may not resolve yet, above all the own one. A member that is not joined must not be its own seed: it would make a second ring.
    address, zone = me.get("address") or me["name"], me.get("zone") or "rack1"
    joined = [m for m in members.values() if m["state"] == "joined"]
    seeds = [m["name"] for m in joined if m is not me][:3] + ([address] if founding or not comes else [])
    sync = {"periodic": {"commitlog_sync_period": "10s"}, "group": {"commitlog_sync_group_window": "15ms"}, "batch": {}}
    cache = f"{min(512, max(24, heap // 8))}MiB"
    settings = {
        "cluster_name": cluster["engineName"], "partitioner": "org.apache.cassandra.dht.Murmur3Partitioner",
        "seed_provider": [{"class_name": "org.apache.cassandra.locator.SimpleSeedProvider", "parameters": [{"seeds": ",".join(seeds)}]}],
        # With two racks the server refuses to place tokens for three copies.
        **({"allocate_tokens_for_local_replication_factor": 3} if len({m.get("zone") for m in joined}) != 2 else {}),
        "endpoint_snitch": "GossipingPropertyFileSnitch", "listen_address": address, "rpc_address": "0.0.0.0", "broadcast_rpc_address": address,
        "authenticator": "PasswordAuthenticator", "authorizer": "CassandraAuthorizer", "role_manager": "CassandraRoleManager",
        "start_native_transport": not founding,  # until `found` took the default login away, nobody is let in
        "server_encryption_options": {
            "internode_encryption": "all", "optional": False, "require_client_auth": True, "keystore": "/run/db/peer.pem", "truststore": "/run/db/peer.crt",
            "ssl_context_factory": {"class_name": "org.apache.cassandra.security.PEMBasedSslContextFactory"}},
        "commitlog_sync": config.get("commitlog_sync", "periodic"), **sync[config.get("commitlog_sync", "periodic")],
        "commitlog_segment_size": "16MiB" if small else "32MiB", "disk_failure_policy": "die", "commit_failure_policy": "die", "auto_snapshot": False,
        "memtable_allocation_type": "offheap_buffers", "memtable_heap_space": cache, "memtable_offheap_space": cache, "file_cache_size": cache,
        "networking_cache_size": cache, **{key: number(key, 8 if small else 32) for key in ("concurrent_reads", "concurrent_writes")},
        **{key: number(key, default) for key, default in (("num_tokens", 16), ("default_keyspace_rf", 3))},
        **{key: f"{number(key, default)}{unit}" if unit else number(key, default) for key, (_, default, unit) in LIVE.items()},
    }
    finish(0, {
        "argv": ["/db/lib/start", "found" if founding else "join" if comes else "member", cluster["uid"], me["id"], f"-Xms{heap}m", f"-Xmx{heap}m",
                 *(["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:ReservedCodeCacheSize=64m"] if small else ["-XX:+UseG1GC"]),
                 f"-XX:MaxDirectMemorySize={max(128, heap // 2)}m", f"-DlogLevel={config.get('logLevel', 'INFO')}",
                 *([] if peers else ["-Dcassandra.skip_wait_for_gossip_to_settle=0"]),
                 *(["-Dcassandra.superuser_setup_delay_ms=500", "-Dcassandra.ring_delay_ms=1000"] if founding else [])],
        "env": {"MALLOC_ARENA_MAX": "2"},
        "files": [{"path": "/run/db/cassandra.yaml", "content": json.dumps(settings, indent=1)},
                  {"path": "/run/db/rack", "content": zone}, {"path": "/run/db/peer", "content": "${secret:peer}", "mode": "0600"}],
    }, changed=False)


def prepare():
    def say(name, message=""):
        finish(0, {"state": name, "message": message}, changed=False)

    there = {name: os.path.exists(f"/data/cassandra/{name}") for name in ("stamp", "host", "data/system")}
    stamp, host = (open(f"/data/cassandra/{name}", encoding="utf-8").read().strip() if there[name] else "" for name in ("stamp", "host"))
    if stamp and stamp != f"{cluster['uid']} {me['id']}":
        say("foreign", f"the volume is that of {stamp}")
    if there["data/system"] != bool(host) and (host or not stamp):
        say("unreadable", "the volume holds data without a member's stamp, or a stamp without the data")
    if me["state"] in ("left", "dead"):
        say("retired", "the member was removed")
    ids = known() if cluster.get("founded") else None
    if host and ids is not None and host not in ids:
        say("retired", f"the ring removed the host {host}")
    if not stamp and me.get("engineId") in (ids or ()):
        unsafe((me["id"], f"the volume is empty, but the ring still holds its host {me['engineId']}", "forget it first"))
    say("existing" if stamp else "fresh")


def copies(now, keyspace):
    return sum(int(value) for key, value in now["keyspaces"][keyspace]["replication"].items() if key != "class")


def repair(now, keyspace, since):
    """Ends the call until a whole repair that began after this moment (ms) has ended well."""
    if copies(now, keyspace) < 2 or len(now["members"]) < 2 or not now["keyspaces"][keyspace]["tables"]:
        return
    rows = ask("cql", "SELECT JSON finished_at, exception_message FROM system_distributed.parent_repair_history "
               f"WHERE keyspace_name = '{keyspace}' AND started_at >= {since} ALLOW FILTERING")
    if not any(row["finished_at"] and not row["exception_message"] for row in map(json.loads, rows)):
        pending(f"repair of {keyspace} {ask('repair', keyspace)}", 0.4)


def settle(now, size):
    """Brings the own keyspaces to the copies of a ring of this size, one step and one repair at a time. True when something was changed."""
    changed = False
    for keyspace in OWN:
        count, wanted = copies(now, keyspace), min(3, size)
        if count > wanted and size < len(now["members"]):  # what only the leaving member may have goes to all first
            repair(now, keyspace, BEGUN)
        if count != wanted or "NetworkTopology" not in now["keyspaces"][keyspace]["replication"]["class"]:
            ask("cql", f"ALTER KEYSPACE {keyspace} WITH replication = {{'class': 'NetworkTopologyStrategy', 'dc1': {min(count + 1, wanted)}}}")
            changed = True
            if wanted > 1:
                pending(f"{keyspace} has {min(count + 1, wanted)} copies now", 0.3)
        elif size == len(now["members"]):
            row = ask("cql", f"SELECT JSON writetime(durable_writes) AS at FROM system_schema.keyspaces WHERE keyspace_name = '{keyspace}'")
            repair(now, keyspace, json.loads(row[0])["at"] // 1000)
    return changed


def found():
    if not cluster.get("founding"):
        fail(20, "NotFounding", "this call does not permit to create a cluster")
    with open("/data/cassandra/stamp", encoding="utf-8") as file:
        if file.read().split()[0] != cluster["uid"]:
            fail(23, "OtherCluster", "the volume belongs to another cluster")
    now = state()
    changed = "app" not in now["keyspaces"]
    ask("cql", "CREATE KEYSPACE IF NOT EXISTS app WITH replication = {'class': 'NetworkTopologyStrategy', 'dc1': 1}")
    changed |= settle(ask("state"), len(now["members"])) | ask("accounts", f"{SECRETS}/admin/current", f"{SECRETS}/app/current")
    if not now["open"]:
        changed |= ask("open")
    finish(0, {"engineId": now["id"]}, changed=changed)


def join():
    now = state(normal=False)
    if now["failed"]:
        pending(f"the data did not come whole; fetching the rest {ask('resume')}", 0.2)
    if now["mode"] != "NORMAL" or not now["open"]:
        pending(f"mode {now['mode'].lower()}", 0.2)
    if peers and now["id"] not in (known() or ()):
        pending("no other member lists it yet", 0.3)
    finish(0, {"engineId": now["id"]}, changed=settle(now, len(now["members"])))


def rebalance():
    now = state()
    finish(0, changed=settle(now, len(now["members"])))


def leave():
    now = state(normal=False)
    if now["mode"] in ("DECOMMISSIONED", "LEAVING"):
        if now["mode"] == "LEAVING" or now["id"] in (known() or (now["id"],)):
            pending(f"mode {now['mode'].lower()}", 0.8)
        finish(0, changed=False)
    left = len(now["members"]) - 1
    if left < 1:
        unsafe((me["id"], "it is the last member", "delete the Database instead"))
    if down := [m for m in now["members"] if not m["up"]]:
        unsafe(*((m["address"], "this member is down", "bring it back, or have it forgotten, first") for m in down))
    if wide := [name for name in now["keyspaces"] if name not in OWN and copies(now, name) > left]:
        unsafe(*((f"keyspace {name}", f"it wants {copies(now, name)} copies, and {left} members would remain",
                  "lower its replication factor with ALTER KEYSPACE, or keep the member") for name in wide))
    settle(now, left)
    pending(f"decommission {ask('decommission')}", 0.6)


def forget():
    now, subject = state(normal=False), members[request["subject"]]
    dead = next((m for m in now["members"] if m["engineId"] == subject.get("engineId")), None)
    if not dead:
        finish(0, changed=False)
    if dead["up"]:
        fail(11, "NotNow", f"{subject['id']} still answers; stop it first")
    down = sum(not m["up"] for m in now["members"])
    if lost := [name for name, it in now["keyspaces"].items() if it["tables"] and name != "system_traces" and copies(now, name) <= down]:
        unsafe(*((f"keyspace {name}", f"it has {copies(now, name)} copies, and {down} members are down", "bring them back, or drop it") for name in lost))
    pending(f"removal {ask('remove', dead['engineId'])}")


def ids_of(now):
    return {**{m["engineId"]: m["id"] for m in members.values() if m.get("engineId")}, now["id"]: me["id"]}


def membership():
    now = ask("state")
    if now["mode"] != "NORMAL":
        fail(11, "NotNow", f"mode {now['mode'].lower()}")
    ids = ids_of(now)
    finish(0, {"members": [{**({"id": ids[m["engineId"]]} if m["engineId"] in ids else {}), "engineId": m["engineId"], "vote": False, "up": m["up"]}
                           for m in now["members"]]}, changed=False)


def can_disrupt():
    now = state()
    ids, away = ids_of(now), {m["address"] for m in now["members"] if not m["up"]}
    address = {ids.get(m["engineId"]): m["address"] for m in now["members"] if m["up"]}
    allowed, refused = [], []
    for name in params.get("members") or [me["id"]]:
        at = address.get(name)  # who is down or not in the ring is not missed
        shared = at and [ks for ks, it in now["keyspaces"].items() if it["tables"] and any(at in s and away & set(s) for s in it["sets"])]
        if shared or at and len(address) == 1:
            reason = f"keyspace {shared[0]}: another copy of its data is away" if shared else "it is the only member that serves"
            refused.append((name, reason, "wait until every member is up"))
        else:
            allowed.append(name)
            away |= {at}
    finish(0, {"allowed": allowed}, changed=False, blockers=[] if allowed else blockers(*refused))


def reconfigure():
    changed = any([ask("set", *attribute.split(), str(number(key, default))) for key, (attribute, default, _) in LIVE.items()])
    applied = request.get("appliedConfig") or {}
    waits = sorted(key for key in config.keys() | applied.keys() if key not in LIVE and config.get(key) != applied.get(key))
    finish(0, {"values": {key: config[key] for key in LIVE if key in config}, "pendingRestart": waits}, changed=changed)


try:
    globals()[request["verb"].replace("-", "_")]()
except Refused as error:
    pending(f"the server refuses: {error}", 0.1)
