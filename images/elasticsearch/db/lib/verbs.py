#!/usr/bin/python3 -IB
"""The verbs that change something or are called rarely; the request says which.

Invariant: members are those whose node ids the elected master's state holds under `cluster.metadata.member.<id>`. A node id is a
volume's: a new volume is never taken for the old one. What is done is decided by that state, read anew at each call through a
member that has a master: a repeated call finds the work done.
"""
import base64
import hashlib
import json
import os
import re
import sys
import urllib.error
import urllib.parse
import urllib.request

with open(os.environ["DB_REQUEST"], encoding="utf-8") as request_file:
    request = json.load(request_file)
cluster, config, resources = request["cluster"], request.get("config") or {}, request.get("resources") or {}
members = {m["id"]: m for m in request["members"]}
me, peers = members[request["self"]], [m for m in members.values() if m["state"] not in ("left", "dead")]
leaving = {m["id"] for m in peers if m["state"] == "leaving"}
DATA, STAMP, OWN = "/data/db", "/data/db/member", f"{cluster['uid']} {me['id']}"
UID, MEMBER, EXCLUDED = "cluster.metadata.uid", "cluster.metadata.member.", "cluster.routing.allocation.exclude._id"
LIVE = ("action.auto_create_index", "action.destructive_requires_name", "cluster.max_shards_per_node", "indices.recovery.max_bytes_per_sec",
        "cluster.routing.allocation.node_concurrent_recoveries", "search.max_buckets", "search.default_search_timeout", "indices.breaker.total.limit")

class Lost(Exception):
    """The server does not answer, or has no master."""

class Refused(Exception):
    """The server says no."""

def finish(code, output=None, **result):
    with open(os.environ["DB_RESULT"] + ".new", "w", encoding="utf-8") as file:
        json.dump({**result, **({} if output is None else {"output": output})}, file)
    os.rename(file.name, os.environ["DB_RESULT"])
    sys.exit(code)

def done(changed, output=None):
    finish(0, output, changed=changed)

def fail(code, name, message, **more):
    finish(code, error={"code": name, "message": message}, **more)

def pending(note, fraction=0.5):
    finish(10, progress={"fraction": fraction, "note": note})

def later(message):
    fail(11, "NotNow", message, retry={"afterSeconds": 3})

def unsafe(*blockers):
    fail(22, "Unsafe", ": ".join(blockers[0]), blockers=[dict(zip(("object", "reason", "hint"), b)) for b in blockers[:20]])

def call(host, method, path, body=None, timeout=10):
    with open(f"{os.environ['DB_SECRETS']}/admin/current", encoding="utf-8") as file:
        token = base64.b64encode(f"admin:{file.read().strip()}".encode()).decode()
    there = urllib.request.Request(f"http://{host}:9200{path}", None if body is None else json.dumps(body).encode(), method=method,
                                   headers={"Authorization": f"Basic {token}", "Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(there, timeout=timeout) as answer:
            return json.loads(answer.read() or "{}")
    except urllib.error.HTTPError as error:
        if error.code == 401:
            fail(30, "Unauthorized", "the server does not know the verbs' password")
        raise (Lost if error.code in (429, 503) else Refused)(f"{error.code} {error.read()[:400].decode(errors='replace')}") from error
    except OSError as error:
        raise Lost(str(error)) from error

class State:
    """What the elected master says, asked through one member."""
    def __init__(self, host, timeout=10):
        self.host = host
        state = self.call("GET", "/_cluster/state/nodes,metadata,routing_table?master_timeout=5s&expand_wildcards=all&filter_path=nodes.*.name,"
                          "metadata.cluster_coordination,metadata.indices.*.settings.index,routing_table.indices.*.shards.*", timeout=timeout)
        self.nodes, coordination = set(state["nodes"]), state["metadata"]["cluster_coordination"]
        self.voters = set(coordination["last_committed_config"])
        self.unvoted = {e["node_id"] for e in coordination["voting_config_exclusions"]}
        self.indices = {name: index["settings"]["index"] for name, index in state["metadata"].get("indices", {}).items()}
        self.shards = [s for i in state.get("routing_table", {}).get("indices", {}).values() for copies in i["shards"].values() for s in copies]
        self.settings = self.call("GET", "/_cluster/settings?flat_settings=true&master_timeout=5s", timeout=timeout)["persistent"]
        self.members = {key[len(MEMBER):]: node for key, node in self.settings.items() if key.startswith(MEMBER)}
        self.excluded = set(self.settings.get(EXCLUDED, "").split(",")) - {""}
        if self.settings.get(UID, cluster["uid"]) != cluster["uid"]:
            fail(23, "OtherCluster", f"the server at {host} belongs to another cluster")

    def call(self, *arguments, **options):
        return call(self.host, *arguments, **options)

    def set(self, persistent):
        """Changes settings that differ, and says whether there were some."""
        if new := {key: value for key, value in persistent.items() if self.settings.get(key) != value}:
            self.call("PUT", "/_cluster/settings?master_timeout=10s&timeout=10s", {"persistent": new}, timeout=25)
        return bool(new)

    def exclude(self, nodes):
        return self.set({EXCLUDED: ",".join(sorted(nodes)) or None})

    def take_vote(self, node):
        if node in self.voters or node in self.nodes - self.unvoted:
            self.call("POST", f"/_cluster/voting_config_exclusions?node_ids={node}&timeout=20s&master_timeout=10s", timeout=35)

    def give_votes(self, when):
        if when:
            self.call("DELETE", "/_cluster/voting_config_exclusions?wait_for_removal=false")
        return bool(when)

    def clean(self):
        """Ends exclusions of nodes that stay after all, and of those that are gone: only ten votes may be excluded, and a node id never comes back."""
        stay = {node for member, node in self.members.items() if member not in leaving and members.get(member, {}).get("state") == "joined"}
        return self.exclude(self.excluded & self.nodes - stay) | self.give_votes(self.unvoted and not self.unvoted & self.nodes - stay)

def own():
    """The own server's state, and its node id."""
    return State("127.0.0.1"), next(iter(call("127.0.0.1", "GET", "/_nodes/_local?filter_path=nodes.*.name")["nodes"]))

def elsewhere(without=None, timeout=10):
    """The master's state through a member that stays, None when none has a master."""
    for member in sorted((m for m in peers if m["id"] != without and m["state"] in ("joined", "leaving")), key=lambda m: (m is not me, m["state"])):
        try:
            return State("127.0.0.1" if member is me else member["name"], timeout)
        except Lost:
            pass
    return None

def check_majority(state, going):
    """Refuses unless a majority of the other members serves."""
    rest = [node in state.nodes for member, node in state.members.items() if member != going]
    if not rest:
        unsafe((going, "it is the last member", "delete the Database instead"))
    if sum(rest) < len(rest) // 2 + 1:
        unsafe((going, f"of the {len(rest)} other members only {sum(rest)} serve", "bring them back first"))

def holders(ids):
    """How many of these members hold shards, at least one."""
    return sum(members.get(member, me)["component"] == "data" for member in ids) or 1

def waits(index):
    """For how many copies a write waits; 0 where the index does not say."""
    value = index.get("write", {}).get("wait_for_active_shards", "0")
    return int(value) if value.isdigit() else 1

def expands(index):
    return index.get("auto_expand_replicas", "false") != "false"

def follows(index):
    """Whether an index has the copies that the members allow: those that wait for copies before a write, as the template says."""
    return waits(index) in (1, 2) and not expands(index)

def adapt(state, size):
    """Gives the indices that follow, and the template for new ones, three copies or as many as there are members."""
    replicas, needed, template = min(size, 3) - 1, min(size, 2), "/_index_template/copies"
    lacks = {s["index"] for s in state.shards if s["state"] == "UNASSIGNED" or s["state"] == "INITIALIZING" and not s["relocating_node"]}
    steps = []
    for name, index in state.indices.items():
        # One after the other, or the server refuses. Writes wait for a copy only after it is there: else growing would stop them.
        more = int(index["number_of_replicas"]) != replicas
        if follows(index) and (waits(index) > needed or waits(index) < needed and not more and name not in lacks):
            steps.append((name, {"write.wait_for_active_shards": needed}))
        if follows(index) and more:
            steps.append((name, {"number_of_replicas": replicas}))
    for name, step in steps:
        state.call("PUT", f"/{urllib.parse.quote(name)}/_settings?master_timeout=10s&timeout=10s", {"index": step}, timeout=25)
    wanted = {"settings": {"index": {"number_of_replicas": str(replicas), "write": {"wait_for_active_shards": str(needed)}}}}
    try:
        stored = state.call("GET", template)["index_templates"][0]["index_template"]["template"]
    except Refused:
        stored = None
    if stored != wanted:
        state.call("PUT", template + "?master_timeout=10s", {"index_patterns": ["*"], "priority": 0, "template": wanted}, timeout=25)
    return bool(steps) or stored != wanted

def prepare():
    def state(name, message=""):
        done(False, {"state": name, "message": message})

    stamp = open(STAMP, encoding="utf-8").read() if os.path.exists(STAMP) else ""
    holds = os.path.isdir(f"{DATA}/_state")
    if stamp not in ("", OWN):
        state("foreign", f"the volume holds {stamp.split()[-1]} of another cluster or member")
    if me["state"] in ("left", "dead"):
        state("retired", "the member was removed")
    if not holds and (stamp or os.path.isdir(f"{DATA}/indices")):
        state("unreadable", "the volume was a member's, but the folder _state is gone")
    seen = elsewhere(me["id"], 2) if stamp and me["state"] in ("joined", "leaving") else None
    if seen and me["id"] not in seen.members:
        state("retired", f"the cluster removed {me['id']}")
    state("existing" if holds else "fresh")

def size(text):
    number, unit = re.fullmatch(r"([\d.]+)\s*([a-zA-Z]*)", text).groups()
    return int(float(number) * 1024 ** " kmgt".index(unit[:1].lower().replace("b", "") or " "))

def plain(key):
    """A setting as Elasticsearch wants it: sizes in bytes, minutes as m."""
    if re.search(r"(buffer_size|cache.size|bytes_per_sec|content_length)$", key):
        return f"{size(config[key])}b"
    return config[key].replace("min", "m") if key.endswith("timeout") else config[key]

def render():
    memory, cores = resources.get("memoryBytes") or 0, -(-(resources.get("cpuMillis") or 0) // 1000)
    if memory and memory < 448 << 20:
        fail(20, "MemoryTooSmall", f"{memory >> 20}Mi of memory do not suffice; give at least 448Mi")
    # Beside the heap: up to half as much for the network's buffers, 160 MiB for code and threads, 32 for verbs and agent.
    heap = min(memory // 2, (memory - (192 << 20)) * 2 // 3, 31 << 30) if memory else 512 << 20
    if "heap" in config:
        heap = size(config["heap"])
        if memory and heap > (memory - (192 << 20)) * 4 // 5:
            fail(20, "InvalidSetting", f"heap {config['heap']} leaves too little of the member's memory ({memory >> 20}Mi)")
    ssl = {"enabled": "true", "verification_mode": "certificate", "client_authentication": "required", "key": "peer.key", "certificate": "peer.crt",
           "certificate_authorities": "peer.crt"}
    # Members of the component `data` vote only where there are none for that.
    voters = any(m["component"] == "master" for m in peers)
    roles = {"master": "master", "data": "data,ingest,remote_cluster_client" if voters else None, "coordinating": ""}[me["component"]]
    settings = {
        **({} if roles is None else {"node.roles": roles}),
        "node.store.allow_mmap": "false", **{key: plain(key) for key in config if key not in (*LIVE, "heap")},
        "cluster.name": cluster["engineName"], "node.name": me["id"], "path.home": "/opt/elasticsearch", "path.data": DATA, "path.logs": "/run/db/logs",
        "network.host": "0.0.0.0", "http.port": "9200", "transport.port": "9300",
        "discovery.seed_providers": "file", "discovery.initial_state_timeout": "5s",
        "xpack.security.enabled": "true", "xpack.security.autoconfiguration.enabled": "false", "xpack.security.authc.reserved_realm.enabled": "false",
        "xpack.security.authc.realms.file.file.order": "0", "xpack.security.authc.realms.native.native.enabled": "false",
        **{f"xpack.security.transport.ssl.{key}": value for key, value in ssl.items()},
        # An empty volume that names masters would make a second cluster.
        **({"cluster.initial_master_nodes": me["id"]} if cluster.get("founding") else {}),
    }
    small = ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:ReservedCodeCacheSize=64m"]
    rights = {"app": {"cluster": ["monitor", "manage_index_templates"], "indices": [{"names": ["*"], "privileges": ["all"]}]}}
    files = {
        "settings.json": json.dumps(settings, indent=1), "roles.yml": json.dumps(rights), "users_roles": "superuser:admin\napp:app\n",
        "log4j2.properties": "appender.console.type = Console\nappender.console.name = console\nappender.console.layout.type = PatternLayout\n"
                             "appender.console.layout.pattern = [%-5p][%c{1.}] %m%n\nrootLogger.level = info\nrootLogger.appenderRef.console.ref = console\n",
        **{f"{name}.plain": f"${{secret:{name}}}" for name in ("admin", "app", "peer")},
    }
    # The server reads this file again and again: members come and go without a restart.
    seeds = {"path": "/run/db/config/unicast_hosts.txt", "owner": "engine", "content": "".join(f"{m['name']}\n" for m in peers if m is not me and m["state"] != "new")}
    done(False, {
        "argv": ["/db/lib/start", cluster["engineName"], f"-Xms{heap >> 10}k", f"-Xmx{heap >> 10}k", *(small if heap < 1 << 30 else ["-XX:+UseG1GC"]),
                 *([f"-XX:ActiveProcessorCount={cores}"] if cores else [])],
        "env": {"LIBFFI_TMPDIR": "/tmp", "MALLOC_ARENA_MAX": "2"},
        "files": [seeds, *({"path": f"/run/db/config/{name}", "content": content} for name, content in files.items())],
    })

def remember():
    """From now on the volume is known to be this member's."""
    with open(STAMP + ".new", "w", encoding="utf-8") as file:
        file.write(OWN)
        file.flush()
        os.fsync(file.fileno())
    os.rename(file.name, STAMP)

def found():
    if not cluster.get("founding"):
        fail(20, "NotFounding", "this call does not permit to create a cluster")
    try:
        state, node = own()
    except Lost as error:
        pending(f"the server has no master yet: {error}")
    changed = state.set({UID: cluster["uid"], MEMBER + me["id"]: node}) | adapt(state, holders(state.members)) | configure(state)
    remember()
    done(changed, {"engineId": node})

def join():
    try:
        state, node = own()
    except Lost as error:
        pending(f"has not met the master yet: {error}")
    if UID not in state.settings:
        later("the cluster is not founded yet")
    # Votes that were taken away come back for all or for none.
    changed = state.exclude(state.excluded - {node}) | state.give_votes(node in state.unvoted) | state.set({MEMBER + me["id"]: node})
    remember()
    done(changed, {"engineId": node})

def leave():
    seen = elsewhere(me["id"])
    if not seen:
        check_majority(State("127.0.0.1"), me["id"])
        later("no other member with a master answers")
    node = seen.members.get(me["id"])
    if not node:
        done(False)
    check_majority(seen, me["id"])
    rest = seen.members.keys() - {me["id"]}
    stay = holders(rest - leaving or rest)
    if many := [(f"index {name}", f"has {int(index['number_of_replicas']) + 1} copies, and {stay} members would stay", "lower its number_of_replicas")
                for name, index in seen.indices.items() if not follows(index) and not expands(index) and int(index["number_of_replicas"]) >= stay]:
        unsafe(*many)
    adapt(seen, stay)
    going = {seen.members[member] for member in leaving & seen.members.keys()} | {node}
    seen.exclude(seen.excluded & seen.nodes | (going if len(going) < len(seen.members) else {node}))
    seen = State(seen.host)
    here = [s for s in seen.shards if s["node"] == node]
    if here and not any(s["relocating_node"] or s["state"] == "INITIALIZING" for s in seen.shards):
        why = seen.call("POST", "/_cluster/allocation/explain", {**{key: here[0][key] for key in ("index", "shard", "primary")}, "current_node": node})
        if why.get("can_move_to_other_node") == "no":
            reasons = {d["explanation"] for n in why.get("node_allocation_decisions", []) for d in n.get("deciders", []) if d["decision"] == "NO"}
            unsafe((f"index {here[0]['index']}, shard {here[0]['shard']}", "cannot move: " + "; ".join(sorted(reasons))[:600], "make room for it on the others"))
    if here:
        pending(f"{len(here)} copies of shards to move")
    seen.take_vote(node)
    seen = State(seen.host)
    if node in seen.voters:
        pending("still votes", 0.9)
    done(seen.set({MEMBER + me["id"]: None}))

def forget():
    subject = members[request["subject"]]
    seen = elsewhere(subject["id"])
    if not seen:
        later("no member with a master answers")
    node, changed = subject.get("engineId") or seen.members.get(subject["id"]), seen.clean()
    if not node or node not in seen.voters and seen.members.get(subject["id"]) != node:
        done(changed)
    if node in seen.nodes:
        later(f"{subject['id']} still serves; stop it first")
    check_majority(seen, subject["id"])
    if lost := sorted({s["index"] for s in seen.shards if s["primary"] and s["state"] == "UNASSIGNED"}):
        unsafe(*((f"index {name}", f"has a shard without a copy, perhaps on {subject['id']} only", "bring it back, or delete the index") for name in lost))
    seen.take_vote(node)
    seen.set({MEMBER + subject["id"]: None})
    State(seen.host).clean()
    done(True)

def rebalance():
    seen = elsewhere()
    if not seen:
        later("no member with a master answers")
    stay, changed = holders(seen.members.keys() - leaving), seen.clean()
    for _ in range(3):  # first the copies, then that writes wait for them
        if not adapt(seen, stay):
            break
        changed, seen = True, State(seen.host)
    moving = sum(s["state"] in ("INITIALIZING", "RELOCATING") for s in seen.shards)
    lacks = sum(s["state"] == "UNASSIGNED" and follows(seen.indices[s["index"]]) for s in seen.shards)
    early = any(follows(index) and waits(index) < min(stay, 2) for index in seen.indices.values())
    if moving or early or lacks and seen.nodes >= set(seen.members.values()):
        pending(f"{moving + lacks} copies of shards to move")
    done(changed)

def membership():
    seen = State("127.0.0.1")
    names = {node: member for member, node in seen.members.items()}
    ghosts = seen.nodes - names.keys() - seen.excluded  # excluded ones have left, and stop soon
    done(False, {"version": hashlib.sha256(repr(sorted(seen.members.items())).encode()).hexdigest()[:16], "members": [
        {**({"id": names[node]} if names.get(node) in members else {}), "engineId": node, "vote": node in seen.voters, "up": node in seen.nodes}
        for node in sorted(names.keys() | ghosts, key=lambda node: (names.get(node, "~"), node))]})

def can_disrupt():
    seen, copies, away, allowed, refused = State("127.0.0.1"), {}, set(), [], []
    up, need = seen.voters & seen.nodes, len(seen.voters) // 2 + 1
    for s in seen.shards:
        if s["state"] in ("STARTED", "RELOCATING"):
            copies.setdefault((s["index"], s["shard"]), set()).add(s["node"])
    for name in (request.get("params") or {}).get("members") or [me["id"]]:
        node = seen.members.get(name)
        gone = away | {node}
        short = next((key for key, on in copies.items() if node in on and len(on - gone) < max(1, waits(seen.indices[key[0]]))), None)
        if node not in seen.nodes:  # who is down is not missed
            allowed.append(name)
        elif node in up and len(up - gone) < need:
            refused.append({"object": name, "reason": f"of {len(seen.voters)} voters {len(up - away)} serve, {need} must", "hint": "wait for all, or add members"})
        elif short:
            refused.append({"object": f"index {short[0]}, shard {short[1]}", "reason": f"would have too few copies without {name}",
                            "hint": "wait until all copies are there, or add members"})
        else:
            allowed.append(name)
            away = gone
    finish(0, {"allowed": allowed}, blockers=[] if allowed else refused)

def configure(state):
    """Live settings. The marks of a full disk are shares of the volume's size: the file system below it may be larger, and others' too."""
    volume = (resources.get("volumes") or {}).get("data")
    marks = {} if me["component"] != "data" else {f"cluster.routing.allocation.disk.watermark.{name}": f"{volume * share // 100}b" if volume else None
             for name, share in (("low", 15), ("high", 10), ("flood_stage", 5))}
    return state.set({**marks, **{key: plain(key) if key in config else None for key in LIVE}})

def post_start():
    try:
        state = State("127.0.0.1")
    except Lost:
        done(False)  # it has no master: it cannot be asked, and takes no writes
    done(UID in state.settings and configure(state))

def reconfigure():
    changed, applied = configure(State("127.0.0.1")), request.get("appliedConfig") or {}
    stored = State("127.0.0.1").settings
    done(changed, {"values": {key: config[key] for key in LIVE if key in config and stored.get(key) == plain(key)},
                   "pendingRestart": sorted(k for k in config.keys() | applied.keys() if k not in LIVE and config.get(k) != applied.get(k))})

try:
    globals()[request["verb"].replace("-", "_")]()
except Lost as error:
    later(f"the server does not answer: {error}")
except Refused as error:
    fail(31, "EngineError", str(error))
