#!/usr/bin/python3 -IB
"""The verbs that change something or are called rarely; the argument says which.

Invariant: whatever is done is decided by the committed list of members as a server with a quorum tells it, read anew at each call.
A repeated call therefore finds the work done.
"""
import json
import os
import re
import socket
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
import client  # noqa: E402
from client import Client, Lost, Refused  # noqa: E402

DATA = "/data/zookeeper"
MARKER = "/zookeeper/backlot"  # holds the cluster's uid; applications may read it
env = os.environ
DEADLINE = time.monotonic() + int(env["DB_DEADLINE_SECONDS"]) - 5
SELF = env["DB_SELF_NUMERIC_ID"]


def finish(code, output=None, **result):
    """Ends the verb."""
    with open(env["DB_RESULT"], "w", encoding="utf-8") as file:
        json.dump({**result, **({} if output is None else {"output": output})}, file)
    sys.exit(code)


def done(changed, output=None):
    finish(0, output, changed=changed)


def later(message):
    finish(11, retry={"afterSeconds": 3}, error={"code": "NotNow", "message": message})


def unsafe(name, reason, hint):
    blocker = {"object": name, "reason": reason, "hint": hint}
    finish(22, blockers=[blocker], error={"code": "Unsafe", "message": f"{name}: {reason}; {hint}"})


def conflict(message):
    finish(23, error={"code": "OtherCluster", "message": message})


def members():
    """Every member of the request, by its number. The last wins: a number has one owner at a time."""
    keys = ("id", "number", "name", "address", "component", "shard", "ordinal", "state", "vote", "engineId")
    with open(env["DB_MEMBERS"], encoding="utf-8") as file:
        rows = [dict(zip(keys, line.rstrip("\n").split("\t"))) for line in file if line.strip()]
    return {row["number"]: row for row in rows if row["state"] not in ("left", "dead")}


def host(number, row):
    return "127.0.0.1" if number == SELF else row["name"]


def line(row):
    return f"{row['name']}:2888:3888:participant;2181"


def session(address):
    return Client(address, "super", client.secret("super"))


def check_cluster(zk):
    try:
        if zk.get(MARKER) != env["DB_CLUSTER_UID"]:
            conflict("this ensemble belongs to another cluster")
    except Refused as error:
        if error.code != client.NO_NODE:
            raise
        later("the ensemble is not founded yet")


def remember():
    """From now on an absence from the committed list means that this member was removed."""
    path = f"{DATA}/member"
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        file.write(env["DB_CLUSTER_UID"])
        file.flush()
        os.fsync(file.fileno())
    os.rename(f"{path}.new", path)


def word(address, text):
    """The answer to a four-letter word; empty when there is none."""
    try:
        with socket.create_connection((address, client.PORT), 2) as connection:
            connection.sendall(text.encode())
            parts = []
            while part := connection.recv(65536):
                parts.append(part)
        return b"".join(parts).decode()
    except OSError:
        return ""


def ask(rows, text):
    """The answers of several members at once, by number: the dead ones cost three seconds together."""
    answers = {}
    threads = [threading.Thread(target=lambda n=n, r=r: answers.update({n: word(host(n, r), text)}), daemon=True)
               for n, r in rows.items()]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 3
    for thread in threads:
        thread.join(max(0, end - time.monotonic()))
    return dict(answers)


def parse_list(text):
    """Version and voters of a list of members; version 0 when the text holds none."""
    version = re.search(r"^version=(\w+)$", text, re.M)
    return int(version.group(1), 16) if version else 0, re.findall(r"^server\.(\d+)=.*:participant", text, re.M)


def files(folder):
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def read(path):
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def agreed_list():
    """The newest list of members on the volume that the ensemble agreed on: the server writes each to a file with its version."""
    versions = [name.rsplit(".", 1)[1] for name in files(f"{DATA}/conf") if re.fullmatch(r"zoo\.cfg\.dynamic\.[0-9a-f]+", name)]
    newest = max(versions, key=lambda version: int(version, 16), default=None)
    return parse_list(read(f"{DATA}/conf/zoo.cfg.dynamic.{newest}") + f"\nversion={newest}") if newest else (0, [])


def prepare():
    def state(name, message=""):
        done(False, {"state": name, "message": message})

    others = {n: r for n, r in members().items() if n != SELF and r["component"] == env["DB_SELF_COMPONENT"]}
    stored = files(f"{DATA}/version-2")
    snapshots = [name for name in stored if re.fullmatch(r"snapshot\.[0-9a-f]+", name)]
    logs = [name for name in stored if re.fullmatch(r"log\.[0-9a-f]+", name)]
    myid, owner = read(f"{DATA}/myid").strip(), read(f"{DATA}/member")
    if myid and myid != SELF:
        state("foreign", f"the volume holds server {myid}, this member is server {SELF}")
    if owner and owner != env["DB_CLUSTER_UID"]:
        state("foreign", "the volume holds a member of another cluster")
    if env["DB_SELF_STATE"] in ("left", "dead"):
        state("retired", "the member was removed")
    if not snapshots and (logs or owner):
        state("unreadable", "the transaction logs are there without a snapshot" if logs else "the data is gone")
    if not snapshots:
        if env["DB_FOUNDED"] == "true" and env["DB_SELF_STATE"] in ("new", "joining"):
            # Empty under a number that still votes, it could help to elect a leader that lacks acknowledged writes.
            answers = [parse_list(text) for text in ask(others, "conf").values()]
            version, voters = max(answers, default=(0, []))
            if SELF in voters:
                unsafe(env["DB_SELF_ID"], f"the volume is empty, but server {SELF} still votes", "forget it first")
            if not version:
                later("no member answers whether this number still votes")
        os.makedirs(DATA, exist_ok=True)
        with open(f"{DATA}/myid", "w", encoding="utf-8") as file:
            file.write(SELF)
        state("fresh")
    valid = 0
    for name in snapshots:
        with open(f"{DATA}/version-2/{name}", "rb") as file:
            valid += file.read(4) == b"ZKSN"
    if not valid or not myid:
        state("unreadable", "no snapshot can be read" if myid else "the data is there without the file myid")
    version, voters = agreed_list()
    if owner:
        if version and SELF not in voters:
            state("retired", f"the ensemble removed server {SELF}")
        newest, voters = max((parse_list(text) for text in ask(others, "conf").values()), default=(0, []))
        if newest > version and SELF not in voters:
            state("retired", f"the ensemble removed server {SELF}")
    elif SELF in voters:
        remember()
    state("existing")


def render():
    with open(env["DB_CONFIG"], encoding="utf-8") as file:
        config = dict(entry.rstrip("\n").split("=", 1) for entry in file if "=" in entry)
    memory = int(env.get("DB_MEMORY_BYTES") or 0)
    if memory and memory < 160 << 20:
        finish(20, error={"code": "MemoryTooSmall", "message": f"{memory >> 20}Mi of memory do not suffice; give at least 160Mi"})
    # Beside the heap the runtime needs about 64 MiB, verbs and agent 32.
    heap = max(memory * 3 // 4 - (64 << 20), 48 << 20) if memory else 256 << 20
    if wanted := config.pop("heap", None):
        number, unit = re.fullmatch(r"([\d.]+)\s*([a-zA-Z]*)", wanted).groups()
        heap = int(float(number) * 1024 ** "kmgt".find(unit[:1].lower()) * 1024 if unit.rstrip("bB") else float(number))
        if memory and heap > memory - (96 << 20):
            finish(20, error={"code": "InvalidConfig", "message":
                              f"heap {wanted} leaves less than 96Mi of the member's memory ({memory >> 20}Mi)"})
    buffer, level = config.pop("jute.maxbuffer", None), config.pop("logLevel", "info")
    settings = {"tickTime": "2000", "initLimit": "15", "syncLimit": "5", "autopurge.purgeInterval": "1", **config}
    tick = int(settings["tickTime"])
    lowest, highest = (int(settings.get(f"{end}SessionTimeout", tick * times)) for end, times in (("min", 2), ("max", 20)))
    if lowest > highest:
        finish(20, error={"code": "InvalidConfig", "message": f"minSessionTimeout {lowest} is above maxSessionTimeout {highest}"})
    settings.update({
        "dataDir": DATA, "standaloneEnabled": "false", "reconfigEnabled": "true", "admin.enableServer": "false",
        "4lw.commands.whitelist": "srvr,mntr,conf,ruok,isro", "quorumListenOnAllIPs": "true",
        "authProvider.sasl": "org.apache.zookeeper.server.auth.SASLAuthenticationProvider", "superUser": "super",
        "leader.maxTimeToWaitForEpoch": "10000",  # else a leader whose followers went elsewhere waits for the initLimit
        "enforce.auth.enabled": "true", "enforce.auth.schemes": "sasl",
        "quorum.auth.enableSasl": "true", "quorum.auth.learnerRequireSasl": "true", "quorum.auth.serverRequireSasl": "true",
    })
    login = "org.apache.zookeeper.server.auth.DigestLoginModule required"
    jaas = f"""Server {{ {login} user_super="${{secret:super}}" user_app="${{secret:app}}"; }};
QuorumServer {{ {login} user_peer="${{secret:peer}}"; }};
QuorumLearner {{ {login} username="peer" password="${{secret:peer}}"; }};
"""
    rows = {n: r for n, r in members().items() if n == SELF or r["state"] in ("joined", "leaving")}
    if env["DB_FOUNDING"] == "true":
        rows = {SELF: rows[SELF]}
    elif len(rows) == 1:
        rows = {}  # alone it would make a second ensemble; one that was founded has its list on the volume
    seed = "".join(f"server.{n}={line(r)}\n" for n, r in sorted(rows.items()))
    small = ["-XX:+UseSerialGC"] + (["-XX:TieredStopAtLevel=1"] if heap < 256 << 20 else []) if heap < 1 << 30 else []
    done(False, {
        "argv": ["/db/lib/start", f"-Xmx{heap >> 10}k", *small, "-Xss512k", "-XX:MaxMetaspaceSize=64m", "-XX:-UsePerfData",
                 "-XX:+ExitOnOutOfMemoryError", "-Djava.io.tmpdir=/run/db", "-Dsun.net.inetaddr.ttl=10",
                 "-Dsun.net.inetaddr.negative.ttl=0", "-Djava.security.auth.login.config=/run/db/jaas.conf",
                 f"-Dorg.slf4j.simpleLogger.defaultLogLevel={level}", *([f"-Djute.maxbuffer={buffer}"] if buffer else [])],
        # The server looks names up in the thread that answers its leader: a lost question must not cost the syncLimit.
        "env": {"MALLOC_ARENA_MAX": "2", "RES_OPTIONS": "ndots:1 timeout:1 attempts:2"},
        "files": [
            {"path": "/run/db/zoo.cfg", "content": "".join(f"{k}={v}\n" for k, v in sorted(settings.items()))},
            {"path": "/run/db/jaas.conf", "content": jaas},
            {"path": "/run/db/seed", "content": seed, "owner": "engine"},
        ],
    })


def found():
    try:
        with session("127.0.0.1") as zk:
            _, lines = zk.members()
            changed = False
            try:
                zk.allow("/zookeeper", client.READ)  # else applications could remove the marker
                zk.create(MARKER, env["DB_CLUSTER_UID"], client.READ)
                changed = True
            except Refused as error:
                if error.code != client.NODE_EXISTS:
                    raise
            check_cluster(zk)
    except Lost:
        finish(10, progress={"fraction": 0.5, "note": "the server has no leader yet"})
    if SELF not in lines:
        conflict(f"the ensemble does not hold server {SELF}")
    remember()
    done(changed, {"engineId": SELF})


def change(hosts, is_done, **wanted):
    """Changes the committed list through the first host that answers; returns whether anything was changed."""
    asked = changed = lags = False
    while time.monotonic() < DEADLINE:
        for address in hosts:
            try:
                with session(address) as zk:
                    check_cluster(zk)
                    version, lines = zk.members()
                    if is_done(lines):
                        return changed
                    if "leaving" in wanted and len(lines) == 1:
                        unsafe(f"server {wanted['leaving']}", "it is the last member", "delete the Database instead")
                    asked = True
                    zk.reconfigure(version, **wanted)
                    changed = True
                    break  # and read again: only a list that was read counts
            except Lost:
                changed = asked  # perhaps: a leader that removes itself does not answer
            except Refused as error:
                lags = error.code == client.NEW_CONFIG_NO_QUORUM
                if error.code == client.RECONFIG_IN_PROGRESS:
                    finish(12, error={"code": "Busy", "message": "another change of members is at work"})
                if lags and "joining" in wanted:
                    finish(10, progress={"fraction": 0.9, "note": "too few members are in sync with the leader"})
                if not lags and error.code != client.BAD_VERSION:
                    raise
                break
        else:
            lags = False
        time.sleep(0.2 if changed else 1)
    if lags:
        unsafe(f"server {wanted['leaving']}", "the others would have no majority that is in sync", "bring them back first")
    later("no member with a leader answered")


def join():
    row = members()[SELF]
    text = word("127.0.0.1", "srvr")
    if "Mode: " not in text:
        finish(10, progress={"fraction": 0.5, "note": "the server is not in sync with a leader yet"})
    # Through this server only: that it serves proves that it is in sync.
    changed = change(["127.0.0.1"], lambda lines: SELF in lines, joining=f"server.{SELF}={line(row)}")
    remember()
    done(changed, {"engineId": SELF})


def leave():
    subject = env.get("DB_SUBJECT_ENGINE_ID") or env.get("DB_SUBJECT_NUMERIC_ID") or SELF
    rows = {n: r for n, r in members().items() if r["component"] == env["DB_SELF_COMPONENT"]}
    # The subject itself is asked last: a server that was removed cannot tell.
    order = sorted((n for n in rows if rows[n]["state"] != "new"), key=lambda n: (n == subject, n != SELF))
    done(change([host(n, rows[n]) for n in order], lambda lines: subject not in lines, leaving=subject))


def serving(rows):
    """Those who follow a leader, with their answers to `srvr`."""
    return {n: text for n, text in ask(rows, "srvr").items() if "Mode: " in text}


def membership():
    rows = members()
    with session("127.0.0.1") as zk:
        version, lines = zk.members()
    up = serving({n: rows[n] for n in lines if n in rows})
    done(False, {"version": f"{version:x}", "members": [
        {**({"id": rows[n]["id"]} if n in rows else {}), "engineId": n, "vote": ":participant" in text, "up": n in up}
        for n, text in lines.items()]})


def can_disrupt():
    rows = members()
    with session("127.0.0.1") as zk:
        voters = set(zk.members()[1])
    up = serving({n: rows[n] for n in voters if n in rows})
    leader = next((n for n, text in up.items() if "Mode: leader" in text), None)
    in_sync = re.search(r"^zk_synced_followers\t(\d+)", word(host(leader, rows[leader]), "mntr"), re.M) if leader else None
    if not in_sync:
        later("the leader does not answer")
    need = len(voters) // 2 + 1
    spare = min(len(up), int(in_sync.group(1)) + 1) - need
    allowed, refused = [], []
    for member in env.get("DB_PARAM_MEMBERS", env["DB_SELF_ID"]).split():
        number = next((n for n, row in rows.items() if row["id"] == member), None)
        misses = number in voters and number in up  # who is down or has no vote is not missed
        if misses and spare < 1:
            refused.append({"object": member, "reason": f"of {len(voters)} members {len(up)} serve, {need} must",
                            "hint": "wait until every member is in sync"})
        else:
            spare -= misses
            allowed.append(member)
    finish(0, {"allowed": allowed}, blockers=[] if allowed else refused)


VERBS = {"prepare": prepare, "render": render, "found": found, "join": join, "leave": leave, "forget": leave,
         "membership": membership, "can-disrupt": can_disrupt}
if __name__ == "__main__":
    try:
        VERBS[sys.argv[1]]()
    except Lost as error:
        later(f"the server does not answer: {error}")
    except Refused as error:
        finish(31, error={"code": "EngineError", "message": str(error)})
