#!/usr/bin/python3 -IBS
"""The verbs that change something or are called rarely; the request says which.

Invariant: what is done is decided by what the active controller says, read anew at each call: a repeated call finds the work done.
A voter is a number together with the identity of its volume (engineId); a new volume is never taken for the old one.
"""
import base64
import hashlib
import json
import os
import re
import sys
import time

sys.path.insert(0, "/db/lib")
from kafka import DATA, Client, Lost, Refused, identity, leader  # noqa: E402

BATCH = 20  # partitions that move at the same time: the throttle
LIVE = ("compression.type", "log.cleanup.policy", "log.retention.ms", "log.retention.bytes", "log.segment.bytes", "message.max.bytes",
        "max.connections", "max.connections.per.ip", "num.replica.fetchers")
with open(os.environ["DB_REQUEST"], encoding="utf-8") as request_file:
    request = json.load(request_file)
uid, founded, config = request["cluster"]["uid"], request["cluster"]["founded"], request.get("config") or {}
plan, params = request.get("plan") or {}, request.get("params") or {}
members = {m["id"]: m for m in request["members"]}
me = members[request["self"]]
SELF, peers = me["numericId"], [m for m in members.values() if m["state"] not in ("left", "dead")]
# Who votes: controllers, where there are some, else the brokers.
VOTING = "controller" if any(m["component"] == "controller" for m in peers) else "data"
VOTES, SERVES = me["component"] == VOTING, me["component"] == "data"
brokers = [m for m in peers if m["component"] == "data"]
WANTED = plan.get("target") if SERVES else sum(m["state"] != "leaving" for m in brokers)
# As Kafka writes ids: 16 bytes in base64, and no dash in front.
CLUSTER = re.sub("^-", "_", base64.urlsafe_b64encode(hashlib.sha256(uid.encode()).digest()[:16]).decode().rstrip("="))


def finish(code, output=None, **result):
    """Ends the verb."""
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


def unsafe(name, reason, hint):
    fail(22, "Unsafe", f"{name}: {reason}; {hint}", blockers=[{"object": name, "reason": reason, "hint": hint}])


def elsewhere(without, timeout=25, among=peers):
    """A connection to a member that stays, through which the quorum answers, and that answer. Brokers know the partitions, controllers do not."""
    order = sorted((m for m in among if m["id"] != without and m["state"] in ("joined", "leaving")),
                   key=lambda m: (m["component"] != "data", m["state"] != "joined"))
    for member in order:
        try:
            client = Client("127.0.0.1" if member is me else member["name"], timeout, member["component"])
            client.end = time.monotonic() + 4
            quorum = client.quorum()
            client.end = time.monotonic() + timeout
            return client, quorum
        except (ConnectionError, Lost):
            pass
    return None, None


def votes(quorum, number, volume=None):
    return [v for v in quorum["voters"] if v["id"] == number and volume in (None, v["dir"])]


def prepare():
    def state(name, message=""):
        done(False, {"state": name, "message": message})

    try:
        stored = identity()
    except FileNotFoundError:
        stored = {}
    if os.path.exists(DATA) and not {"cluster.id", "node.id", "directory.id"} <= stored.keys():
        state("unreadable", "the folder kafka is there without a whole meta.properties")
    if stored and (stored["cluster.id"], stored["node.id"]) != (CLUSTER, str(SELF)):
        state("foreign", f"the volume holds node {stored['node.id']} of the Kafka cluster {stored['cluster.id']}")
    if me["state"] in ("left", "dead"):
        state("retired", "the member was removed")
    if stored and me["state"] not in ("joined", "leaving") or not stored and not (founded and me["state"] in ("new", "joining")):
        state("existing" if stored else "fresh")
    client, quorum = elsewhere(me["id"], among=peers if VOTES else brokers)
    if stored:
        removed = quorum and not (votes(quorum, SELF, stored["directory.id"]) if VOTES else SELF in registrations(client))
        state("retired" if removed else "existing", f"the cluster removed node {SELF} with this volume" if removed else "")
    if not quorum and (VOTES or any(m["state"] in ("joined", "leaving") for m in brokers)):
        later("no member with a quorum answers whether this number is still a member's")
    if quorum and (votes(quorum, SELF) if VOTES else SELF in registrations(client)):
        unsafe(me["id"], f"the volume is empty, but node {SELF} is still a member", "forget it first")
    state("fresh")


def plain(key, value):
    """A setting as Kafka wants it: times in milliseconds, sizes in bytes."""
    parts = re.fullmatch(r"([\d.]+)\s*([a-zA-Z]*)", value)
    if key.endswith(".ms") and parts:
        return str(int(float(parts[1]) * {"": 1, "ms": 1, "s": 1e3, "min": 6e4, "m": 6e4, "h": 3.6e6, "d": 8.64e7}[parts[2].lower()]))
    if (key.endswith(".bytes") or key == "heap") and parts:
        unit = parts[2].lower()[:1]
        return str(int(float(parts[1]) * (1 if unit in ("", "b") else 1024 ** (1 + "kmgt".index(unit)))))
    return value


def render():
    settings = {key: plain(key, value) for key, value in config.items()}
    memory = request.get("resources", {}).get("memoryBytes") or 0
    if memory and memory < 320 << 20:
        fail(20, "MemoryTooSmall", f"{memory >> 20}Mi of memory do not suffice; give at least 320Mi")
    # A broker lives from the page cache. Beside the heap the runtime needs about 120 MiB, verbs and agent 32.
    heap = min(max(memory // 2 - (48 << 20), 112 << 20), 6 << 30) if memory else 512 << 20
    heap = int(settings.pop("heap", heap))
    if memory and heap > memory - (160 << 20):
        fail(20, "InvalidConfig", f"heap {heap >> 20}Mi leaves less than 160Mi of the member's memory ({memory >> 20}Mi)")
    small, level = heap < 512 << 20, settings.pop("logLevel", "info")
    founding = request["cluster"].get("founding", False)
    seeds = [me] if founding else [m for m in peers if m["component"] == VOTING and (m is me or m["state"] in ("joined", "leaving"))]
    factor = min(3, max(WANTED or 0, 1))
    listeners = [*["CLIENT://{}:9092"] * SERVES, *["CONTROLLER://{}:9093"] * VOTES]
    if small:
        settings = {"log.cleaner.dedupe.buffer.size": 4 << 20, "num.network.threads": 2, "num.io.threads": 2, "background.threads": 2, **settings}
    settings = {
        "offsets.topic.num.partitions": 12, "transaction.state.log.num.partitions": 12, "auto.create.topics.enable": "false", **settings,
        "process.roles": ",".join(["broker"] * SERVES + ["controller"] * VOTES), "node.id": SELF, "log.dirs": DATA,
        "controller.quorum.bootstrap.servers": ",".join(f"{m['name']}:9093" for m in seeds),
        "listeners": ",".join(listener.format("") for listener in listeners),
        "advertised.listeners": ",".join(listener.format(me["name"]) for listener in listeners),
        "listener.security.protocol.map": "CLIENT:SASL_PLAINTEXT,CONTROLLER:SASL_PLAINTEXT",
        **({"inter.broker.listener.name": "CLIENT"} if SERVES else {}), "controller.listener.names": "CONTROLLER",
        "sasl.enabled.mechanisms": "PLAIN", "sasl.mechanism.inter.broker.protocol": "PLAIN", "sasl.mechanism.controller.protocol": "PLAIN",
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer", "super.users": "User:peer",
        # These hold when a topic is created; `rebalance` and `leave` keep every topic at three copies, or as many as there are members.
        **{f"{topic}.replication.factor": factor for topic in ("default", "offsets.topic", "transaction.state.log", "share.coordinator.state.topic")},
        "min.insync.replicas": 2, "transaction.state.log.min.isr": 2, "share.coordinator.state.topic.min.isr": 2,
        "share.coordinator.state.topic.num.partitions": 3, "unclean.leader.election.enable": "false",
    }
    login = "org.apache.kafka.common.security.plain.PlainLoginModule required username=peer password=\"${secret:peer}\" user_peer=\"${secret:peer}\""
    settings["listener.name.client.plain.sasl.jaas.config"] = login + " user_app=\"${secret:app}\";"
    settings["listener.name.controller.plain.sasl.jaas.config"] = login + ";"
    done(False, {
        "argv": ["/db/lib/start", "--standalone" if founding else "--no-initial-controllers", CLUSTER, f"-Xmx{heap >> 10}k", f"-Xms{min(heap, 64 << 20) >> 10}k",
                 *(["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:ReservedCodeCacheSize=64m", "-XX:MaxDirectMemorySize=48m"] if small else ["-XX:+UseG1GC"]),
                 "-Xss512k", "-XX:-UsePerfData", "-XX:+ExitOnOutOfMemoryError", "-Djava.io.tmpdir=/run/db", "-Dsun.net.inetaddr.ttl=10",
                 "-Dsun.net.inetaddr.negative.ttl=0", "-Dlog4j2.configurationFile=/db/lib/log4j2.properties", f"-DlogLevel={level}"],
        "env": {"MALLOC_ARENA_MAX": "2"},
        "files": [{"path": "/run/db/server.properties", "content": "".join(f"{k}={v}\n" for k, v in sorted(settings.items()))}],
    })


def own():
    """The own server, the quorum as it tells, and the identity of the own volume."""
    # Brokers pass requests on to the active controller, controllers do not.
    host = "127.0.0.1" if SERVES else next((m["name"] for m in peers if m["numericId"] == leader() != SELF), "127.0.0.1")
    client = Client(host, request["deadlineSeconds"] * 0.7, me["component"])
    stored = identity()
    if stored["cluster.id"] != CLUSTER:
        fail(23, "OtherCluster", f"this server belongs to the Kafka cluster {stored['cluster.id']}")
    return client, client.quorum(), stored["directory.id"]


def found():
    if not request["cluster"].get("founding"):
        fail(20, "NotFounding", "this call does not permit to create a cluster")
    client, quorum, volume = own()
    if not votes(quorum, SELF, volume):
        fail(23, "OtherCluster", f"the cluster has no voter {SELF} with this volume")
    if SERVES and SELF not in client.brokers():
        pending("the broker is fenced yet")
    done(SERVES and give_rights(client), {"engineId": volume})


def give_rights(client):
    """The application's rights, by the first broker."""
    # Applications may do what they like with topics (2), groups (3) and transactions (5), and nothing with the cluster (4) but
    # create (5), describe (8), describe configurations (10) and write idempotently (12). 2 is everything, 3 the permission to.
    rights = [(2, "*", 2), (3, "*", 2), (5, "*", 2)] + [(4, "kafka-cluster", operation) for operation in (5, 8, 10, 12)]
    found = client.call("DescribeAcls", kind=1, name=None, pattern=1, principal="User:app", host=None, operation=1, permission=1)
    changed = sum(len(resource["acls"]) for resource in found["resources"]) < len(rights)
    if changed:
        client.call("CreateAcls", acls=[{"kind": kind, "name": name, "pattern": 3, "principal": "User:app", "host": "*", "operation": operation,
                                         "permission": 3} for kind, name, operation in rights])
    return changed


def join():
    client, quorum, volume = own()
    if not VOTES:
        seen = [o for o in quorum["observers"] if (o["id"], o["dir"]) == (SELF, volume) and o["up"]]
        if not seen:
            pending("reads the metadata, or is fenced yet")
        done(give_rights(client), {"engineId": volume})
    changed = False
    if not votes(quorum, SELF, volume):
        if votes(quorum, SELF):
            unsafe(me["id"], f"node {SELF} still votes with another volume", "forget it first")
        seen = [o for o in quorum["observers"] if (o["id"], o["dir"]) == (SELF, volume) and o["up"]]
        if not seen:
            pending("reads the metadata", 0.3)
        listener = {"name": "CONTROLLER", "host": me["name"], "port": 9093}
        try:
            client.call("AddRaftVoter", cluster=CLUSTER, timeout=20000, id=SELF, dir=volume, listeners=[listener])
            changed = True
        except Refused as error:
            if error.code != 126:  # a voter already
                pending(f"not added yet: {error}", 0.6)
        quorum = client.quorum()
    if not votes(quorum, SELF, volume) or SERVES and SELF not in client.brokers():
        pending("is not a voter yet, or its broker is fenced", 0.9)
    done(changed, {"engineId": volume})


def move(client, stay, gone, limit, balance):
    """Takes the next steps until `gone` holds no partition and all have three copies (at most `limit`), on `stay` if possible.

    Copies on members outside of `stay` are kept as long as there is nobody to take them. Returns how many partitions are not there yet.
    """
    partitions, wanted, load, leads = client.partitions(), {}, dict.fromkeys(stay, 0), dict.fromkeys(stay, 0)
    listed = client.call("ListPartitionReassignments", timeout=10000, topics=None)["topics"]
    moving = {(topic["name"], p["index"]): [r for r in p["replicas"] if r not in p["removing"]] for topic in listed for p in topic["partitions"]}
    current = {key: moving.get(key, p["replicas"]) for key, p in partitions.items()}
    for replicas in current.values():
        for replica in set(replicas) & load.keys():
            load[replica] += 1
    for key, replicas in current.items():
        size = min(max(3, len(replicas)), limit)
        new = [r for r in replicas if r in load]
        while len(new) < min(size, len(load)):
            least = min(load.keys() - set(new), key=lambda r: (load[r], r))
            load[least] += 1
            new.append(least)
        new = (new + [r for r in replicas if r not in load and r not in gone])[:size]
        wanted[key] = new or replicas
    for counts, first in ((load, False), (leads, True)) if balance else ():
        if first:
            for new in wanted.values():
                leads[new[0]] = leads.get(new[0], 0) + 1
        for key, new in wanted.items():
            high = max((new[:1] if first else [r for r in new if r in counts]) or [None], key=lambda r: counts.get(r, 0))
            options = [r for r in stay if (r in new) == first and r != high]
            low = min(options, key=lambda r: (counts[r], r), default=None)
            if high in counts and low is not None and counts[high] - counts[low] > 1:
                counts[high], counts[low] = counts[high] - 1, counts[low] + 1
                wanted[key] = [low] + [r for r in new if r != low] if first else [low if r == high else r for r in new]
    todo = [key for key in wanted if wanted[key] != current[key]]
    steps = todo[:max(0, BATCH - len(moving.keys() - set(todo)))]
    if steps:
        try:
            client.call("AlterPartitionReassignments", timeout=20000, topics=[
                {"name": topic, "partitions": [{"index": index, "replicas": wanted[topic, index]}]} for topic, index in steps])
        except Refused as error:  # perhaps a copy that stays is not in sync yet
            pending(f"not moved yet: {error}", 0.1)
    return len(todo) + len(moving.keys() - set(todo))


def holding(quorum):
    """Numbers of the members that hold partitions and serve."""
    held = {m["numericId"] for m in brokers if m["state"] in ("joined", "leaving")}
    return {r["id"] for r in quorum["voters"] + quorum["observers"] if r["up"] and r["id"] in held}


def check_majority(quorum, number):
    """Refuses unless a majority of the other voters serves and is in sync."""
    rest = [v for v in quorum["voters"] if v["id"] != number]
    up = sum(v["up"] for v in rest)
    if not rest:
        unsafe(f"node {number}", "it is the last member", "delete the Database instead")
    if up < len(rest) // 2 + 1:
        unsafe(f"node {number}", f"of the {len(rest)} other members only {up} serve", "bring them back first")


def remove(quorum, without, number, volumes):
    """Ends these votes; returns when a member that stays says so."""
    for volume in volumes:
        check_majority(quorum, number)
        client, _ = elsewhere(without)
        if not client:
            later("no member with a quorum answers")
        try:
            client.call("RemoveRaftVoter", cluster=CLUSTER, id=number, dir=volume)
        except Lost:
            pass  # perhaps it was the active controller, which resigns
        except Refused as error:
            if error.code != 127:  # no voter
                pending(f"the vote is not removed yet: {error}", 0.8)
    for _ in range(5 if volumes else 0):
        client, quorum = elsewhere(without)
        if quorum and not [v for v in votes(quorum, number) if v["dir"] in volumes]:
            return
        time.sleep(1)
    if volumes:
        pending("the vote is not removed yet", 0.9)


def leave():
    volume = identity()["directory.id"]
    client, quorum = elsewhere(me["id"], among=brokers if SERVES else peers)
    if not client:
        if VOTES:
            check_majority(own()[1], SELF)
        later("no other member with a quorum answers")
    mine = votes(quorum, SELF, volume)
    if mine:
        check_majority(quorum, SELF)
    if SERVES:
        stay, going = holding(quorum) - {SELF}, {m["numericId"] for m in brokers if m["state"] == "leaving"}
        if not stay:
            later("no other member that could take the partitions serves")
        others = sum(m["state"] in ("joined", "leaving") and m is not me for m in brokers)
        if left := move(client, stay - going or stay, {SELF}, others, False):
            pending(f"{left} partitions to move", 0.4)
    remove(quorum, me["id"], SELF, [volume] if mine else [])
    done(bool(mine))


def registrations(client):
    """Whether each registered broker is fenced."""
    return {b["id"]: b["fenced"] for b in client.call("DescribeCluster", rights=False, endpoint=1, fenced=True)["brokers"]}


def forget():
    subject = members[request["subject"]]
    number, volume = subject["numericId"], subject.get("engineId")
    holds = subject["component"] == "data"
    client, quorum = elsewhere(subject["id"], among=brokers if holds else peers)
    if not client:
        later("no member with a quorum answers")
    dead = [v for v in votes(quorum, number) if volume in (None, "", v["dir"])]
    if any(v["up"] for v in dead):
        later(f"node {number} still serves; stop it first")
    if dead:
        check_majority(quorum, number)
    partitions = client.partitions() if holds else {}
    only = [f"{topic}/{index}" for (topic, index), p in partitions.items() if number in p["replicas"] and p["leader"] < 0]
    if only:
        unsafe(f"partition {only[0]}", f"{len(only)} partitions have their newest data on node {number} only", "bring it back, or delete the topics")
    remove(quorum, subject["id"], number, [v["dir"] for v in dead])
    fenced = registrations(client).get(number) if holds else None
    lives = {o["dir"] for o in quorum["observers"] if o["id"] == number and o["up"]}
    if lives & {volume}:
        later(f"node {number} still serves; stop it first")
    if fenced:
        client.call("UnregisterBroker", id=number)
    elif fenced is False and (dead or VOTING != "data" and not lives):
        pending("waits until the dead broker's session ends", 0.9)
    done(bool(dead or fenced))


def rebalance():
    if not any(m["state"] in ("joined", "leaving") for m in brokers):
        done(False)
    client, quorum = elsewhere(None, among=brokers)
    if not client:
        later("no member with a quorum answers")
    stay = holding(quorum) & {m["numericId"] for m in brokers if m["state"] == "joined"}
    if not stay:
        later("no member that stays is in sync")
    if left := move(client, stay, set(), max(len(stay), WANTED or 0), True):
        pending(f"{left} partitions to move")
    # Members that left stay registered until they were stopped and their session has ended.
    known, held = {m["numericId"] for m in peers}, {r for p in client.partitions().values() for r in p["replicas"]}
    ghosts = [n for n, fenced in registrations(client).items() if fenced and n not in known | held and not votes(quorum, n)]
    for ghost in ghosts:
        client.call("UnregisterBroker", id=ghost)
    done(bool(ghosts))


def membership():
    client, quorum, _ = own()
    ids = {m["numericId"]: m["id"] for m in peers}
    voters = [{**({"id": ids[v["id"]]} if v["id"] in ids else {}), "engineId": v["dir"], "vote": True, "up": v["up"]}
              for v in quorum["voters"]]
    if VOTING != "data" and any(m["state"] in ("joined", "leaving") for m in brokers):
        if not SERVES:
            client, quorum = elsewhere(None, among=brokers)
            if not client:
                later("no broker answers")
        # Brokers are members as long as they are registered; one that leaves, as long as it holds partitions.
        held, dirs = {r for p in client.partitions().values() for r in p["replicas"]}, {o["id"]: o["dir"] for o in quorum["observers"]}
        stay = {m["numericId"] for m in brokers if m["state"] != "leaving"}
        voters += [{**({"id": ids[n]} if n in ids else {}), "engineId": dirs.get(n, f"node-{n}"), "vote": False, "up": not fenced}
                   for n, fenced in sorted(registrations(client).items()) if n in held | stay]
    done(False, {"version": hashlib.sha256(",".join(sorted(v["engineId"] for v in voters)).encode()).hexdigest()[:16], "members": voters})


def can_disrupt():
    client, quorum = own()[:2] if SERVES else elsewhere(None, among=brokers)
    if not client:
        later("no broker answers")
    voting, up = {v["id"] for v in quorum["voters"] if v["up"]}, holding(quorum)
    partitions = [(key, set(p["isr"]), min(2, len(p["replicas"]))) for key, p in client.partitions().items()]
    spare = len(voting) - (len(quorum["voters"]) // 2 + 1)
    allowed, refused, away = [], [], set()
    for name in params.get("members") or [me["id"]]:
        number = members[name]["numericId"] if name in members else None
        if number not in voting | up:  # who is down is not missed
            allowed.append(name)
            continue
        short = next((key for key, isr, least in partitions if number in isr and len(isr & up - away - {number}) < least), None)
        if number in voting and spare < 1:
            refused.append({"object": name, "reason": f"of {len(quorum['voters'])} voters {len(voting - away)} serve, {len(quorum['voters']) // 2 + 1} must",
                            "hint": "wait until every member is in sync"})
        elif short:
            refused.append({"object": f"topic {short[0]}, partition {short[1]}", "reason": f"would have too few copies in sync without {name}",
                            "hint": "wait until all copies are in sync, or add members"})
        else:
            spare, away = spare - (number in voting), away | {number}
            allowed.append(name)
    finish(0, {"allowed": allowed}, blockers=[] if allowed else refused)


def reconfigure():
    """The live settings are the cluster's own: one place for all members, and they win over the file."""
    applied = request.get("appliedConfig") or {}
    waits = sorted(k for k in config.keys() | applied.keys() if k not in LIVE and config.get(k) != applied.get(k))
    if not SERVES:  # brokers see to them
        done(False, {"pendingRestart": waits} if request["verb"] == "reconfigure" else None)
    client = Client(timeout=20)
    wanted = {key: plain(key, value) for key, value in config.items() if key in LIVE}

    def stored():
        answer = client.call("DescribeConfigs", resources=[{"kind": 4, "name": "", "keys": None}], synonyms=False, docs=False)
        return {c["name"]: c["value"] for c in answer["results"][0]["configs"] if c["name"] in LIVE}
    before = stored()
    changes = [{"name": k, "operation": 0, "value": v} for k, v in wanted.items() if before.get(k) != v]
    changes += [{"name": k, "operation": 1, "value": None} for k in before.keys() - wanted.keys()]
    if changes:
        client.call("IncrementalAlterConfigs", resources=[{"kind": 4, "name": "", "configs": changes}], validate=False)
    for _ in range(20):
        if stored() == wanted:
            break
        time.sleep(0.2)
    else:
        pending("the settings are not read back yet", 0.9)
    if request["verb"] == "post-start":
        done(bool(changes))
    done(bool(changes), {"values": {k: config[k] for k in wanted}, "pendingRestart": waits})


if __name__ == "__main__":
    try:
        globals()[{"post-start": "reconfigure"}.get(request["verb"], request["verb"].replace("-", "_"))]()
    except (Lost, ConnectionError, FileNotFoundError) as error:
        later(f"the server does not answer: {error}")
    except Refused as error:
        finish(31, error={"code": "EngineError", "message": str(error)})
