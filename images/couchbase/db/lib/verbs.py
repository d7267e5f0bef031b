"""All verbs; the argument says which.

Invariant: what is done is decided by the node list as an active member that sees a majority tells it, read anew at each call. A node that
failed over is taken back or removed by name before anything else moves: a rebalance would silently eject it.
"""
import os
import sys
import time
from _json import encode_basestring_ascii

from client import Lost, Refused, call, secret

env = os.environ
DEADLINE = time.monotonic() + int(env.get("DB_DEADLINE_SECONDS") or 10) - 3
CLUSTER, SELF, BUCKET = env["DB_ENGINE_NAME"], env["DB_SELF_NAME"], "app"
# Settings of the whole cluster: where each is read and written, its name there, the server's default.
SETTINGS = {"rebalanceMovesPerNode": ("/settings/rebalance", "rebalanceMovesPerNode", 4),
            "queryCompletedThreshold": ("/settings/querySettings", "queryCompletedThreshold", 1000),
            "autoFailoverTimeout": ("/settings/autoFailover", "timeout", 30)}


def dump(value):
    """As JSON; the library's loading would be a fifth of a poll."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{dump(key)}:{dump(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(dump, value)) + "]"
    if isinstance(value, str):
        return encode_basestring_ascii(value)
    return {True: "true", False: "false", None: "null"}[value] if value is None or isinstance(value, bool) else str(value)


def finish(code, output=None, **result):
    with open(env["DB_RESULT"], "w", encoding="utf-8") as file:
        file.write(dump({**result, **({} if output is None else {"output": output})}))
    sys.exit(code)


def fail(code, name, message):
    finish(code, error={"code": name, "message": message})


def later(message):
    finish(11, retry={"afterSeconds": 3}, error={"code": "NotNow", "message": message})


def pending(fraction, note, **more):
    finish(10, retry={"afterSeconds": 2}, progress={"fraction": fraction, "note": note}, **more)


def unsafe(name, reason, hint):
    finish(22, blockers=[{"object": name, "reason": reason, "hint": hint}],
           error={"code": "Unsafe", "message": f"{name}: {reason}; {hint}"})


def members():
    keys = ("id", "number", "name", "address", "component", "shard", "ordinal", "state", "vote", "engineId")
    with open(env["DB_MEMBERS"], encoding="utf-8") as file:
        rows = [dict(zip(keys, line.rstrip("\n").split("\t"))) for line in file if line.strip()]
    return [row for row in rows if row["state"] not in ("left", "dead")]


def settings():
    with open(env["DB_CONFIG"], encoding="utf-8") as file:
        return {key: int(value) for key, value in (line.rstrip("\n").split("=", 1) for line in file if "=" in line)}


def quotas(memory, given):
    """Data, index and bucket quota in MiB; about a third of the memory stays for the server's own processes and the page cache."""
    size = memory >> 20
    data = given.get("memoryQuota") or max(256, size * 2 // 5)
    index = given.get("indexMemoryQuota") or max(256, size // 10)
    return data, index, given.get("bucketRamQuota") or max(100, data // 2)


class Pool:
    """The cluster as the member `host` sees it."""

    def __init__(self, host="127.0.0.1", timeout=5):
        self.host, self.data = host, call("GET", "/pools/default", host=host, timeout=timeout)
        self.nodes = self.data["nodes"]
        for node in self.nodes:
            node["name"] = node["hostname"].rsplit(":", 1)[0]
            node["up"] = node["status"] == "healthy"
            node["active"] = node["clusterMembership"] == "active"
        self.up = sum(node["up"] for node in self.nodes)
        self.quorum = self.up > len(self.nodes) // 2
        self.moving = self.data.get("rebalanceStatus", "none") != "none"
        self.even = not self.moving and self.data.get("balanced", True)
        self.ours = self.data.get("clusterName") == CLUSTER
        self.me = next((node for node in self.nodes if node.get("thisNode")), {})

    def node(self, name):
        return next((node for node in self.nodes if node["name"] == name), None)

    def post(self, path, form, timeout=20):
        return call("POST", path, form, host=self.host, timeout=timeout)

    def buckets(self):
        return call("GET", "/pools/default/buckets", host=self.host)


def local():
    """This member's server: None is a server of no cluster and without a password, else its Pool (without a name: claimed only)."""
    try:
        answer = call("GET", "/pools")
    except Refused as error:
        if error.status != 401:
            raise
        fail(23, "OtherCluster", "this cluster's password does not open the server: its data is of another cluster")
    if not answer.get("pools"):
        return None
    pool = Pool()
    if pool.data.get("clusterName") not in ("", None, CLUSTER):
        fail(23, "OtherCluster", f"the data is of the cluster {pool.data['clusterName']}, not of {CLUSTER}")
    return pool


def claim():
    """A server of no cluster lets anyone in who asks first: so it gets the cluster's user at once."""
    call("POST", "/settings/web", {"username": "backlot", "password": secret("system"), "port": "SAME"}, timeout=20)


def views(*without):
    """The cluster as each active member that sees a majority tells it, but `without`."""
    for row in members():
        if row["name"] in without or row["state"] == "new":
            continue
        try:
            pool = Pool("127.0.0.1" if row["name"] == SELF else row["name"], 3)
        except (Lost, Refused):
            continue
        if pool.ours and pool.me.get("active") and pool.quorum:
            yield pool


def inside(*without):
    return next(views(*without), None) or later("no other active member sees a majority")


def alone(pool, name):
    """Buckets of which the node has a last copy, as far as nodes that are up hold them."""
    up = {node["name"] for node in pool.nodes if node["up"] and node["active"]} - {name}
    lost = []
    for bucket in pool.buckets():
        layout = bucket.get("vBucketServerMap", {})
        hosts = [server.rsplit(":", 1)[0] for server in layout.get("serverList", [])]
        if any(not any(i >= 0 and hosts[i] in up for i in chain) for chain in layout.get("vBucketMap", [])):
            lost.append(bucket["name"])
    return lost


def copies(pool, size, now):
    """The binding's bucket: as many replicas as were asked for and `size` data nodes can hold. Whether it was changed.

    The server refuses a replica of a durable bucket as long as it lies on one node only, `now` being 1.
    """
    bucket = next((bucket for bucket in pool.buckets() if bucket["name"] == BUCKET), None)
    wanted = min(settings().get("replicas", 2), size - 1)
    if not bucket or bucket["replicaNumber"] == wanted or (now < 2 and wanted):
        return False
    pool.post(f"/pools/default/buckets/{BUCKET}", {"replicaNumber": wanted})
    return True


def progress(pool):
    for task in call("GET", "/pools/default/tasks", host=pool.host):
        if task.get("type") == "rebalance" and task.get("status") == "running":
            pending(round(min(max(task.get("progress", 0) / 100, 0.05), 0.95), 2), "data moves between the members",
                    handle=task.get("rebalanceId", ""))
    later("the server changes its layout")


def spread(pool, eject=None, wait=True):
    """Until all nodes but `eject` are active and the data lies evenly: starts or watches a rebalance, and answers 10."""
    if pool.moving:
        progress(pool)
    stay = [node for node in pool.nodes if node["name"] != eject]
    if away := [node["name"] for node in pool.nodes if not node["up"]]:
        later(f"{', '.join(away)} does not answer; start it, or let it be forgotten")
    for node in stay:
        if node["clusterMembership"] == "inactiveFailed" and node.get("recoveryType", "none") == "none":
            pool.post("/controller/setRecoveryType", {"otpNode": node["otpNode"], "recoveryType": "delta"})
    active = sum(node["active"] for node in pool.nodes)
    changed = copies(pool, len(stay), active)
    if pool.even and not changed and len(stay) == len(pool.nodes) == active:
        return
    gone = [node["otpNode"] for node in pool.nodes if node not in stay]
    try:
        pool.post("/controller/rebalance", {"knownNodes": ",".join(node["otpNode"] for node in pool.nodes), "ejectedNodes": ",".join(gone)})
    except Refused as error:
        if "deltaRecoveryNotPossible" in error.text:
            for node in stay:
                if node.get("recoveryType") == "delta" or node["clusterMembership"] == "inactiveFailed":
                    pool.post("/controller/setRecoveryType", {"otpNode": node["otpNode"], "recoveryType": "full"})
        elif error.status not in (503, 504) and "mismatch" not in error.text:
            raise
        later(f"the rebalance did not start: {error}")
    if wait:
        pending(0.05, "the rebalance was started")


def settle(pool):
    """Settings of the whole cluster as wanted; answers what was read back, and whether something was changed."""
    given, changed, values = settings(), False, {}
    data, index, ram = quotas(int(env.get("DB_MEMORY_BYTES") or 0), given)
    if pool.data["memoryQuota"] != data or pool.data.get("indexMemoryQuota") != index:
        pool.post("/pools/default", {"memoryQuota": data, "indexMemoryQuota": index})
        changed = True
    for path in dict.fromkeys(path for path, _, _ in SETTINGS.values()):
        wanted = {name: given.get(key, default) for key, (where, name, default) in SETTINGS.items() if where == path}
        if path == "/settings/autoFailover":
            wanted = {"enabled": True, **wanted, "failoverPreserveDurabilityMajority": True}
        have = call("GET", path, host=pool.host)
        if any(have.get(name) != value for name, value in wanted.items()):
            pool.post(path, {name: dump(value) for name, value in wanted.items()})
            have, changed = call("GET", path, host=pool.host), True
        values.update({key: str(have.get(name)) for key, (where, name, _) in SETTINGS.items() if where == path})
    bucket = next((bucket for bucket in pool.buckets() if bucket["name"] == BUCKET), None)
    if bucket and bucket["quota"]["rawRAM"] != ram << 20:
        pool.post(f"/pools/default/buckets/{BUCKET}", {"ramQuota": ram})
        changed = True
    values.update(memoryQuota=str(data), indexMemoryQuota=str(index), bucketRamQuota=str(ram))
    return values, changed


def render():
    memory, given = int(env.get("DB_MEMORY_BYTES") or 0), settings()
    data, index, ram = quotas(memory, given)
    if memory and data + index > (memory >> 20) * 7 // 10:
        fail(20, "InvalidConfig", f"quotas of {data} and {index} MiB leave too little of {memory >> 20} MiB for the server itself")
    if ram > data:
        fail(20, "InvalidConfig", f"bucketRamQuota of {ram} MiB is more than the data quota of {data} MiB")
    finish(0, {"argv": ["/db/lib/start"], "env": {"DB_NODE_NAME": SELF}, "files": []})


def prepare():
    there = os.path.exists("/opt/couchbase/var/lib/couchbase/config/config.dat")
    finish(0, {"state": "existing" if there else "fresh"})


def found():
    changed, pool = False, local()
    if pool is None:
        data, index, _ = quotas(int(env.get("DB_MEMORY_BYTES") or 0), settings())
        call("POST", "/clusterInit", {"hostname": SELF, "clusterName": CLUSTER, "services": "kv,n1ql,index", "memoryQuota": data,
             "indexMemoryQuota": index, "indexerStorageMode": "plasma", "sendStats": "false", "username": "backlot",
             "password": secret("system"), "port": "SAME"}, timeout=40)
        changed = True
        while (pool := local()) is None or not pool.me.get("up"):
            if time.monotonic() > DEADLINE:
                pending(0.5, "the server takes over its name")
            time.sleep(0.5)
    elif not pool.ours:
        fail(23, "OtherCluster", "the server has a password, but was not founded by this image; empty the volume")
    if not pool.quorum:
        later("the member sees no majority")
    if not any(bucket["name"] == BUCKET for bucket in pool.buckets()):
        _, _, ram = quotas(int(env.get("DB_MEMORY_BYTES") or 0), settings())
        pool.post("/pools/default/buckets", {"name": BUCKET, "bucketType": "couchbase", "storageBackend": "couchstore", "ramQuota": ram,
                  "replicaNumber": 0, "durabilityMinLevel": "persistToMajority", "flushEnabled": 0})
        changed = True
    try:
        call("GET", "/whoami", login=("app", secret("app")))
    except Refused as error:
        if error.status != 401:
            raise
        call("PUT", "/settings/rbac/users/local/app", {"password": secret("app"), "roles": f"bucket_full_access[{BUCKET}]"})
        changed = True
    changed = settle(pool)[1] or changed
    while not all(node["status"] == "healthy" for bucket in pool.buckets() for node in bucket["nodes"]):
        if time.monotonic() > DEADLINE:
            pending(0.9, "the bucket warms up")
        time.sleep(0.5)
    finish(0, {"engineId": pool.me["nodeUUID"]}, changed=changed)


def post_start():
    pool = local()
    if pool is None:
        if env["DB_FOUNDED"] == "true":  # else `found` follows, with clusterInit, which a claimed server refuses
            claim()
        finish(0, changed=env["DB_FOUNDED"] == "true")
    # Others know better: what this server had stored may be from before it was failed over.
    other = next(views(SELF), None) if pool.ours else None
    mine = other.node(SELF) if other else None
    if not mine or mine["clusterMembership"] != "inactiveFailed" or (other.moving and mine.get("recoveryType", "none") != "none"):
        finish(0, changed=False)
    if other.moving:
        later("it was failed over, and is taken back after the rebalance that runs")
    spread(other, wait=False)
    finish(0, changed=True)  # the start ends here; `health` tells when the member serves again


def join():
    own = local()
    others = any(row["name"] != SELF and row["state"] != "new" for row in members())
    pool = inside(SELF) if others else inside()  # its own word on its membership counts only when there is no other
    if own is None:
        claim()
    mine, empty = pool.node(SELF), own is None or not own.data.get("clusterName")
    if mine and empty and not mine["up"]:
        # The name of a volume that is lost: it has to go before the name can be added again.
        remove(pool, mine)
        pending(0.1, "the lost data's membership was ended")
    if mine and mine["active"] and mine["up"] and not empty and not pool.moving:
        finish(0, {"engineId": mine["nodeUUID"]}, changed=False)
    if not mine and not pool.moving:
        if not empty:
            later("the server still believes to be in the cluster that has removed it")
        try:
            # Its own TLS port; the user is the one that it was claimed with.
            pool.post("/controller/addNode", {"hostname": f"https://{SELF}:18091", "user": "backlot", "password": secret("system"),
                      "services": "kv,n1ql,index"}, timeout=60)
        except Refused as error:
            later(f"the cluster did not take the member: {error}")
        pending(0.2, "added; it holds no data before a rebalance")
    spread(pool)
    later("the member is not active yet")


def remove(pool, node):
    """Ends the membership of a node that is away; refused when data would go with it."""
    if pool.moving:
        progress(pool)
    if node["active"]:
        rest = [other for other in pool.nodes if other is not node]
        if not sum(other["up"] for other in rest) > len(rest) // 2:
            unsafe(node["name"], "the members that stay have no majority", "bring them back first")
        if lost := alone(pool, node["name"]):
            unsafe(lost[0], f"{node['name']} has its last copy of some data", "bring the member back, or restore the bucket")
        try:
            pool.post("/controller/failOver", {"otpNode": node["otpNode"]}, timeout=50)
        except Refused as error:
            if error.status in (503, 504, 409):
                later(str(error))
            raise
    pool.post("/controller/ejectNode", {"otpNode": node["otpNode"]})


def leave():
    name = env.get("DB_SUBJECT_NAME") or SELF
    if all(row["name"] == name for row in members()):
        unsafe(name, "it is the last member", "delete the database instead")
    pool = inside(name)
    node = pool.node(name)
    if not node:
        if name == SELF:
            if (own := local()) is None:
                claim()  # it is open to anyone again
            elif own.data.get("clusterName"):
                pending(0.95, "the server forgets its data")
        finish(0, changed=False)
    stay = len(pool.nodes) - 1
    for bucket in pool.buckets():
        if bucket["name"] != BUCKET and bucket.get("replicaNumber", 0) >= stay > 0:
            unsafe(bucket["name"], f"its {bucket['replicaNumber']} replicas need more than {stay} members", "lower its replicas first")
    spread(pool, name)
    pending(0.9, "the member is being removed")


def forget():
    name, uuid = env["DB_SUBJECT_NAME"], env.get("DB_SUBJECT_ENGINE_ID")
    own = local()
    if own and own.ours and not own.quorum:
        unsafe(name, f"{own.up} of {len(own.nodes)} members are seen, which is no majority", "bring members back first")
    pool = inside(name)
    node = pool.node(name)
    if not node or (uuid and node.get("nodeUUID", uuid) != uuid and node["up"]):
        finish(0, changed=False)
    if node["up"]:
        spread(pool, name)
    else:
        remove(pool, node)
    pending(0.9, "the member is being removed")


def rebalance():
    pool = inside()
    spread(pool)
    # The server counts the failovers that it did by itself, and does no more than some.
    if call("GET", "/settings/autoFailover", host=pool.host).get("count"):
        pool.post("/settings/autoFailover/resetCount", {})
    finish(0, changed=settle(pool)[1])


def membership():
    pool = inside()
    ids = {row["name"]: row["id"] for row in members()}
    rows = [{**({"id": ids[node["name"]]} if node["name"] in ids else {}), "engineId": node["nodeUUID"], "vote": node["active"], "up": node["up"]}
            for node in pool.nodes]
    finish(0, {"version": ",".join(sorted(f"{node['nodeUUID'][:8]}:{node['clusterMembership']}" for node in pool.nodes)), "members": rows})


def can_disrupt():
    pool, ids = inside(), {row["id"]: row["name"] for row in members()}
    asked, why = env.get("DB_PARAM_MEMBERS", env["DB_SELF_ID"]).split(), ""
    spare, name = pool.up - (len(pool.nodes) // 2 + 1), asked[0]
    for bucket in pool.buckets():
        have = bucket.get("replicaNumber", 0) + 1
        if have - (have // 2 + 1) < spare:
            spare, name = have - (have // 2 + 1), bucket["name"]
    if not pool.even or not all(node["active"] and node["up"] for node in pool.nodes):
        spare, why = 0, "data moves, or a member is away"
    allowed = []
    for member in asked:
        node = pool.node(ids.get(member, ""))
        missed = bool(node and node["active"] and node["up"])
        if spare >= missed:
            spare -= missed
            allowed.append(member)
    blockers = [{"object": name, "reason": why or "too few copies would stay for durable writes", "hint": "wait, or add members or replicas"}]
    finish(0, {"allowed": allowed}, blockers=[] if allowed else blockers)


def reconfigure():
    pool = local()
    if pool is None or not pool.ours or not pool.quorum:
        later("the server is in no cluster yet, or sees no majority")
    values, changed = settle(pool)
    given = settings()
    finish(0, {"values": {key: value for key, value in values.items() if key in given}, "pendingRestart": []}, changed=changed)


def role():
    try:
        pool = Pool(timeout=2)
    except (Lost, Refused):
        finish(0, {"role": "unknown", "writable": False})
    serves = bool(pool.ours and pool.me.get("active") and pool.me["up"])
    finish(0, {"role": "peer" if serves else "unknown", "writable": serves and pool.quorum})


def health():
    def say(process, ready, cluster, reason="", message=""):
        finish(0, {"process": process, "ready": ready, "cluster": cluster, "reasons": [reason] if reason else [], "message": message})
    try:
        pool = Pool(timeout=3)
    except Lost as error:
        if "timed out" in str(error):
            say("hung", False, "unknown", "NoAnswer", str(error))
        say("starting", False, "unknown", "Loading", "the port is not open yet")
    except Refused as error:
        say("up", False, "unknown", "NotAMember" if error.status == 404 else "NoAccess", str(error))
    mine = pool.me
    if not pool.ours:
        say("up", False, "unknown", "NotAMember", "the server is in no cluster yet")
    away = [node["name"] for node in pool.nodes if not node["up"]]
    if not pool.quorum:
        say("up", False, "noQuorum", "NoMajority", f"{pool.up} of {len(pool.nodes)} members are seen")
    if mine["clusterMembership"] == "inactiveFailed":
        if int(mine.get("uptime", 0)) > 180 and not pool.moving and not away:
            # Nobody takes back a member that the engine failed over while it ran; a start does, and it serves nothing anyway.
            say("hung", False, "degraded", "FailedOver", "the member was failed over; a restart takes it back")
        say("up", False, "degraded", "FailedOver", "the member was failed over and is not taken back yet")
    if not mine["active"] or not mine["up"]:
        say("up", False, "degraded", "NotActive", f"the member is {mine['clusterMembership']} and {mine['status']}")
    if away:
        say("up", True, "degraded", "MembersMissing", "not serving: " + ", ".join(away))
    if not pool.even:
        say("up", True, "degraded", "NotBalanced", "data moves, or waits for a rebalance")
    say("up", True, "ok", "", f"{len(pool.nodes)} members serve")


def main(verb):
    try:
        globals()[verb.replace("-", "_")]()
    except Lost as error:
        later(f"the server does not answer: {error}")
    except Refused as error:
        fail(31, "EngineError", str(error))
