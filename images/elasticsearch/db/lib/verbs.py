#!/usr/bin/python3 -IB
"""The verbs that change something or are called rarely; the request says which.

Invariant: members are those whose node ids the elected master's state holds under `cluster.metadata.member.<id>`. A node id is of a
volume: a new volume is never taken for the old one. Everything is decided by that state, read anew at each call through a member
that has a master: a repeated call finds the work done.
"""
import base64
import hashlib
import json
import os
import sys
import urllib.error
import urllib.parse
import urllib.request

with open(os.environ["DB_REQUEST"], encoding="utf-8") as request_file:
    request = json.load(request_file)
cluster, config, params = request["cluster"], request.get("config") or {}, request.get("params") or {}
members = {m["id"]: m for m in request["members"]}
me = members[request["self"]]
peers = [m for m in members.values() if m["state"] not in ("left", "dead")]
leaving = set((request.get("plan") or {}).get("leaving") or [])
DATA, STAMP = "/data/db", "/data/db/member"
UID, MEMBER, EXCLUDED, TEMPLATE = "cluster.metadata.uid", "cluster.metadata.member.", "cluster.routing.allocation.exclude._id", "/_index_template/copies"
LIVE = ("action.auto_create_index", "action.destructive_requires_name", "cluster.max_shards_per_node", "indices.recovery.max_bytes_per_sec",
        "cluster.routing.allocation.node_concurrent_recoveries", "search.max_buckets", "search.default_search_timeout", "indices.breaker.total.limit")


class Lost(Exception):
    """The server does not answer, or has no master."""


class Refused(Exception):
    """The server says no."""


def finish(code, output=None, **result):
    with open(os.environ["DB_RESULT"] + ".new", "w", encoding="utf-8") as file:
        json.dump({**result, **({} if output is None else {"output": output})}, file)
    os.rename(os.environ["DB_RESULT"] + ".new", os.environ["DB_RESULT"])
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
    fail(22, "Unsafe", "; ".join(": ".join(b[:2]) for b in blockers[:3]), blockers=[dict(zip(("object", "reason", "hint"), b)) for b in blockers[:20]])


def call(host, method, path, body=None, timeout=10):
    with open(f"{os.environ['DB_SECRETS']}/admin/current", encoding="utf-8") as file:
        token = base64.b64encode(f"admin:{file.read().strip()}".encode()).decode()
    there = urllib.request.Request(f"http://{host}:9200{path}", None if body is None else json.dumps(body).encode(), method=method,
                                   headers={"Authorization": f"Basic {token}", "Content-Type": "application/json"})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(there, timeout=timeout) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        text = error.read().decode(errors="replace")
        if error.code == 401:
            fail(30, "Unauthorized", "the server does not know the verbs' password")
        raise (Lost if error.code in (429, 503) else Refused)(f"{error.code} {text[:400]}") from error
    except (OSError, ValueError) as error:
        raise Lost(str(error)) from error


class State:
    """What the elected master says, asked through one member."""

    def __init__(self, host, timeout=10):
        self.host = host
        state = self.call("GET", "/_cluster/state/master_node,nodes,metadata,routing_table?master_timeout=5s&expand_wildcards=all&filter_path=nodes.*.name,"
                          "metadata.cluster_coordination,metadata.indices.*.settings.index,routing_table.indices.*.shards.*", timeout=timeout)
        coordination = state["metadata"]["cluster_coordination"]
        self.nodes = {node: value["name"] for node, value in state["nodes"].items()}
        self.voters = set(coordination["last_committed_config"])
        self.unvoted = {e["node_id"] for e in coordination["voting_config_exclusions"]}
        self.indices = {name: index["settings"]["index"] for name, index in state["metadata"].get("indices", {}).items()}
        self.shards = [s for i in state.get("routing_table", {}).get("indices", {}).values() for copies in i["shards"].values() for s in copies]
        self.settings = self.call("GET", "/_cluster/settings?flat_settings=true&master_timeout=5s", timeout=timeout)["persistent"]
        self.members = {key[len(MEMBER):]: node for key, node in self.settings.items() if key.startswith(MEMBER)}
        self.excluded = {node for node in self.settings.get(EXCLUDED, "").split(",") if node}
        if self.settings.get(UID, cluster["uid"]) != cluster["uid"]:
            fail(23, "OtherCluster", f"the server at {host} belongs to another cluster")

    def call(self, *arguments, **options):
        return call(self.host, *arguments, **options)

    def set(self, **persistent):
        """Changes settings that differ, and says whether there were some."""
        new = {key: value for key, value in persistent.items() if self.settings.get(key) != value}
        if new:
            self.call("PUT", "/_cluster/settings?master_timeout=10s&timeout=10s", {"persistent": new}, timeout=25)
        return bool(new)

    def exclude(self, *nodes):
        return self.set(**{EXCLUDED: ",".join(sorted(nodes)) or None})

    def clean(self):
        """Exclusions of nodes that are gone: only ten votes may be excluded, and a node id never comes back."""
        changed = self.exclude(*self.excluded & self.nodes.keys())
        if self.unvoted and not self.unvoted & self.nodes.keys():
            self.call("DELETE", "/_cluster/voting_config_exclusions?wait_for_removal=false")
            changed = True
        return changed


def own():
    """The node id of the own server, and its state."""
    state = State("127.0.0.1")
    return next(iter(state.call("GET", "/_nodes/_local?filter_path=nodes.*.name")["nodes"])), state


def elsewhere(without=None, timeout=10):
    """The master's state through a member that stays, and None when none has a master."""
    for member in sorted((m for m in peers if m["id"] != without and m["state"] in ("joined", "leaving")), key=lambda m: (m is not me, m["state"])):
        try:
            return State("127.0.0.1" if member is me else member["name"], timeout)
        except Lost:
            pass
    return None


def check_majority(state, going):
    """Refuses unless a majority of the other members serves."""
    rest = [node for member, node in state.members.items() if member != going]
    up = sum(node in state.nodes for node in rest)
    if not rest:
        unsafe((going, "it is the last member", "delete the Database instead"))
    if up < len(rest) // 2 + 1:
        unsafe((going, f"of the {len(rest)} other members only {up} serve", "bring them back first"))


def follows(index):
    """Whether an index has the copies that the members allow: those that wait for copies before a write, as the template says."""
    return index.get("write", {}).get("wait_for_active_shards") in ("1", "2") and index.get("auto_expand_replicas", "false") == "false"


def adapt(state, size):
    """Gives the indices that follow, and the template for new ones, three copies or as many as there are members."""
    replicas, needed = str(min(size, 3) - 1), str(min(size, 2))
    changed, lacks = False, {s["index"] for s in state.shards if s["state"] == "UNASSIGNED" or s["state"] == "INITIALIZING" and not s["relocating_node"]}
    for name, index in state.indices.items():
        # Writes wait for a copy only after it is there: else growing would stop them.
        wait = needed if replicas <= index["number_of_replicas"] and (name not in lacks or replicas < index["number_of_replicas"]) else \
            min(needed, index.get("write", {}).get("wait_for_active_shards", needed))
        wanted = {"number_of_replicas": replicas, "write.wait_for_active_shards": wait}
        if follows(index) and wanted != {"number_of_replicas": index["number_of_replicas"], "write.wait_for_active_shards": index["write"]["wait_for_active_shards"]}:
            state.call("PUT", f"/{urllib.parse.quote(name)}/_settings?expand_wildcards=all&master_timeout=10s&timeout=10s", {"index": wanted}, timeout=25)
            changed = True
    template = {"index_patterns": ["*"], "priority": 0, "template": {"settings": {"index": {
        "number_of_replicas": replicas, "write": {"wait_for_active_shards": needed}}}}}
    try:
        stored = state.call("GET", TEMPLATE)["index_templates"][0]["index_template"]["template"]
    except Refused:
        stored = None
    if stored != template["template"]:
        state.call("PUT", TEMPLATE + "?master_timeout=10s", template, timeout=25)
        changed = True
    return changed


def remember():
    """From now on the volume is known to be this member's."""
    with open(STAMP + ".new", "w", encoding="utf-8") as file:
        file.write(f"{cluster['uid']} {me['id']}")
        file.flush()
        os.fsync(file.fileno())
    os.rename(STAMP + ".new", STAMP)


def prepare():
    def state(name, message=""):
        done(False, {"state": name, "message": message})

    stamp = open(STAMP, encoding="utf-8").read() if os.path.exists(STAMP) else ""
    holds = os.path.isdir(f"{DATA}/_state")
    if stamp and stamp != f"{cluster['uid']} {me['id']}":
        state("foreign", f"the volume holds {stamp.split()[-1]} of another cluster or member")
    if me["state"] in ("left", "dead"):
        state("retired", "the member was removed")
    if stamp and not holds or os.path.isdir(f"{DATA}/indices") and not holds:
        state("unreadable", "the volume was a member's, but the folder _state is gone")
    if stamp and me["state"] in ("joined", "leaving"):
        seen = elsewhere(me["id"], 2)
        if seen and me["id"] not in seen.members:
            state("retired", f"the cluster removed {me['id']}")
    state("existing" if holds else "fresh")


def size(text):
    number, unit = text.rstrip("0123456789.iBbKkMmGgTt ") or text, text.lstrip("0123456789. ")[:1].lower()
    return int(float(number.rstrip("iBbKkMmGgTt ")) * (1024 ** (1 + "kmgt".index(unit)) if unit in tuple("kmgt") else 1))


def plain(key, value):
    """A setting as Elasticsearch wants it: sizes in bytes, times without `min`."""
    if key.endswith(("size", "bytes_per_sec", "length")) and not key.endswith("queue_size"):
        return f"{size(value)}b"
    return value.replace("min", "m") if key.endswith("timeout") else value


def render():
    memory = (request.get("resources") or {}).get("memoryBytes") or 0
    if memory and memory < 576 << 20:
        fail(20, "MemoryTooSmall", f"{memory >> 20}Mi of memory do not suffice; give at least 576Mi")
    # Beside the heap: half as much for the network, 160 MiB for code and threads, 100 for the program that watches the server, 32 for verbs.
    heap = min(memory // 2, (memory - (292 << 20)) * 2 // 3, 31 << 30) if memory else 512 << 20
    if "heap" in config:
        heap = size(config["heap"])
        if memory and heap > (memory - (292 << 20)) * 4 // 5:
            fail(20, "InvalidSetting", f"heap {config['heap']} leaves too little of the member's memory ({memory >> 20}Mi)")
    cores = -(-((request.get("resources") or {}).get("cpuMillis") or 0) // 1000)
    settings = {key: plain(key, value) for key, value in config.items() if key not in LIVE + ("heap",)}
    settings = {
        "node.store.allow_mmap": "false", **settings,
        "cluster.name": cluster["engineName"], "node.name": me["id"], "path.data": DATA, "path.logs": "/run/db/logs",
        "network.host": "0.0.0.0", "http.port": "9200", "transport.port": "9300", "path.home": "/opt/elasticsearch",
        "discovery.seed_providers": "file", "discovery.initial_state_timeout": "5s",
        "xpack.security.enabled": "true", "xpack.security.autoconfiguration.enabled": "false", "xpack.security.authc.reserved_realm.enabled": "false",
        "xpack.security.authc.realms.file.file.order": "0", "xpack.security.authc.realms.native.native.enabled": "false",
        "xpack.security.transport.ssl.enabled": "true", "xpack.security.transport.ssl.verification_mode": "certificate",
        "xpack.security.transport.ssl.client_authentication": "required", "xpack.security.transport.ssl.key": "peer.key",
        "xpack.security.transport.ssl.certificate": "peer.crt", "xpack.security.transport.ssl.certificate_authorities": "peer.crt",
        # An empty volume that names masters would make a second cluster.
        **({"cluster.initial_master_nodes": me["id"]} if cluster.get("founding") else {}),
    }
    jvm = [f"-Xms{heap >> 10}k", f"-Xmx{heap >> 10}k", *(["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:ReservedCodeCacheSize=64m"] if heap < 1 << 30 else ["-XX:+UseG1GC"]),
           *([f"-XX:ActiveProcessorCount={cores}"] if cores else [])]
    seeds = [m["name"] for m in peers if m is not me and m["state"] != "new"]
    console = "status = error\nappender.console.type = Console\nappender.console.name = console\nappender.console.layout.type = PatternLayout\n" \
              "appender.console.layout.pattern = [%-5p][%c{1.}] %m%n\nrootLogger.level = info\nrootLogger.appenderRef.console.ref = console\n"
    roles = {"app": {"cluster": ["monitor", "manage_index_templates", "manage_ingest_pipelines"], "indices": [{"names": ["*"], "privileges": ["all"]}]}}
    files = {
        "settings.json": json.dumps(settings, indent=1), "log4j2.properties": console,
        "roles.yml": json.dumps(roles), "users_roles": "superuser:admin\napp:app\n",
        **{f"{name}.plain": f"${{secret:{name}}}" for name in ("admin", "app", "peer")},
    }
    done(False, {
        "argv": ["/db/lib/start", *jvm],
        "env": {"LIBFFI_TMPDIR": "/tmp", "MALLOC_ARENA_MAX": "2", "PEER": cluster["engineName"]},
        "files": [*({"path": f"/run/db/config/{name}", "content": content} for name, content in files.items()),
                  # The server reads this file again and again: members come and go without a restart.
                  {"path": "/run/db/config/unicast_hosts.txt", "content": "".join(f"{name}\n" for name in seeds), "owner": "engine"}],
    })


def found():
    if not cluster.get("founding"):
        fail(20, "NotFounding", "this call does not permit to create a cluster")
    try:
        node, state = own()
    except Lost as error:
        pending(f"the server has no master yet: {error}")
    changed = state.set(**{UID: cluster["uid"], MEMBER + me["id"]: node})
    changed = adapt(state, len(state.members) or 1) or changed
    changed = configure(state) or changed
    remember()
    done(changed, {"engineId": node})


def join():
    try:
        node, state = own()
    except Lost as error:
        pending(f"has not met the master yet: {error}")
    if UID not in state.settings:
        later("the cluster is not founded yet")
    # A vote that was taken away comes back for all or for none.
    changed = state.exclude(*state.excluded - {node})
    if node in state.unvoted:
        state.call("DELETE", "/_cluster/voting_config_exclusions?wait_for_removal=false")
        changed = True
    changed = state.set(**{MEMBER + me["id"]: node}) or changed
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
    stay = [member for member in seen.members if member != me["id"] and member not in leaving] or [m for m in seen.members if m != me["id"]]
    many = [(f"index {name}", f"has {int(index['number_of_replicas']) + 1} copies, and {len(stay)} members would stay", "set its number_of_replicas")
            for name, index in seen.indices.items() if not follows(index) and index.get("auto_expand_replicas", "false") == "false"
            and int(index["number_of_replicas"]) >= len(stay)]
    if many:
        unsafe(*many)
    adapt(seen, len(stay))
    seen.exclude(*seen.excluded & seen.nodes.keys() | {node})
    seen = State(seen.host)
    here = [s for s in seen.shards if s["node"] == node]
    still = [s for s in here if s["state"] == "STARTED"]
    if still and not any(s["relocating_node"] for s in seen.shards):
        why = seen.call("POST", "/_cluster/allocation/explain", {"index": still[0]["index"], "shard": still[0]["shard"], "primary": still[0]["primary"],
                                                                 "current_node": node})
        if why.get("can_move_to_other_node") == "no" and not any(s["state"] == "INITIALIZING" for s in seen.shards):
            reasons = {d["explanation"] for n in why.get("node_allocation_decisions", []) for d in n.get("deciders", []) if d["decision"] == "NO"}
            unsafe((f"index {still[0]['index']}, shard {still[0]['shard']}", "cannot move: " + "; ".join(sorted(reasons))[:600], "make room for it on the others"))
    if here:
        pending(f"{len(here)} copies of shards to move")
    if node in seen.voters or node not in seen.unvoted:
        seen.call("POST", f"/_cluster/voting_config_exclusions?node_ids={node}&timeout=20s&master_timeout=10s", timeout=35)
    seen = State(seen.host)
    if node in seen.voters:
        pending("still votes", 0.9)
    seen.set(**{MEMBER + me["id"]: None})
    done(True)


def forget():
    subject = members[request["subject"]]
    seen = elsewhere(subject["id"])
    if not seen:
        later("no member with a master answers")
    node = subject.get("engineId") or seen.members.get(subject["id"])
    changed = seen.clean()
    if not node or node not in seen.voters and seen.members.get(subject["id"]) != node:
        done(changed)
    if node in seen.nodes:
        later(f"{subject['id']} still serves; stop it first")
    check_majority(seen, subject["id"])
    lost = sorted({s["index"] for s in seen.shards if s["primary"] and s["state"] == "UNASSIGNED"})
    if lost:
        unsafe(*((f"index {name}", f"has a shard without a copy, perhaps on {subject['id']} only", "bring it back, or delete the index") for name in lost))
    if node in seen.voters:
        seen.call("POST", f"/_cluster/voting_config_exclusions?node_ids={node}&timeout=20s&master_timeout=10s", timeout=35)
    seen.set(**{MEMBER + subject["id"]: None})
    State(seen.host).clean()
    done(True)


def rebalance():
    seen = elsewhere()
    if not seen:
        later("no member with a master answers")
    stay = [member for member in seen.members if member not in leaving]
    changed = seen.clean()
    for _ in range(2):  # first the copies, then that writes wait for them
        changed = adapt(seen, len(stay) or 1) or changed
        seen = State(seen.host)
    moving = [s for s in seen.shards if s["state"] in ("INITIALIZING", "RELOCATING")]
    lacks = [s for s in seen.shards if s["state"] == "UNASSIGNED" and follows(seen.indices[s["index"]])]
    if moving or lacks and all(node in seen.nodes for node in seen.members.values()):
        pending(f"{len(moving) + len(lacks)} copies of shards to move")
    done(changed)


def membership():
    seen = own()[1]
    known = [{"id": member, "engineId": node, "vote": node in seen.voters, "up": node in seen.nodes} for member, node in sorted(seen.members.items())]
    ghosts = [{"engineId": node, "vote": node in seen.voters, "up": True} for node in sorted(seen.nodes.keys() - set(seen.members.values()) - seen.excluded)]
    for entry in known:
        if entry["id"] not in members:
            del entry["id"]
    done(False, {"version": hashlib.sha256(repr(sorted(seen.members.items())).encode()).hexdigest()[:16], "members": known + ghosts})


def can_disrupt():
    seen = own()[1]
    up = seen.voters & seen.nodes.keys()
    spare, away, allowed, refused = len(up) - (len(seen.voters) // 2 + 1), set(), [], []
    copies = {}
    for s in seen.shards:
        if s["state"] in ("STARTED", "RELOCATING"):
            copies.setdefault((s["index"], s["shard"]), set()).add(s["node"])
    for name in params.get("members") or [me["id"]]:
        node = seen.members.get(name)
        if node not in seen.nodes:  # who is down is not missed
            allowed.append(name)
            continue
        gone = away | {node}
        short = next((key for key, on in copies.items() if node in on and
                      len(on - gone) < int(seen.indices[key[0]].get("write", {}).get("wait_for_active_shards", "1").replace("all", "1"))), None)
        if node in up and spare < 1:
            refused.append({"object": name, "reason": f"of {len(seen.voters)} voters {len(up - away)} serve, {len(seen.voters) // 2 + 1} must",
                            "hint": "wait until every member serves, or add members"})
        elif short:
            refused.append({"object": f"index {short[0]}, shard {short[1]}", "reason": f"would have too few copies without {name}",
                            "hint": "wait until all copies are there, or add members"})
        else:
            spare, away = spare - (node in up), gone
            allowed.append(name)
    finish(0, {"allowed": allowed}, blockers=[] if allowed else refused)


def configure(state):
    """Live settings. The marks of a full disk are shares of the volume's size: the file system below it may be larger, and others' too."""
    volume = ((request.get("resources") or {}).get("volumes") or {}).get("data")
    marks = {f"cluster.routing.allocation.disk.watermark.{name}": f"{volume * share // 100}b" if volume else None
             for name, share in (("low", 15), ("high", 10), ("flood_stage", 5))}
    return state.set(**marks, **{key: plain(key, config[key]) if key in config else None for key in LIVE})


def post_start():
    try:
        state = State("127.0.0.1")
    except Lost:
        done(False)  # without a master it cannot be asked, and takes no writes
    done(UID in state.settings and configure(state))


def reconfigure():
    state = State("127.0.0.1")
    changed = configure(state)
    stored = State(state.host).settings
    applied = request.get("appliedConfig") or {}
    done(changed, {"values": {key: config[key] for key in LIVE if key in config and stored.get(key) == plain(key, config[key])},
                   "pendingRestart": sorted(k for k in config.keys() | applied.keys() if k not in LIVE and config.get(k) != applied.get(k))})


if __name__ == "__main__":
    try:
        globals()[request["verb"].replace("-", "_")]()
    except Lost as error:
        later(f"the server does not answer: {error}")
    except Refused as error:
        fail(31, "EngineError", str(error))
