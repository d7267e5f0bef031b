"""All verbs; the argument says which.

Invariant: what is done is decided by the set's committed configuration as its primary tells it, read anew at each call;
it is changed by one voter at a time and never by force.
"""
import os
import struct
import sys
import time
from _json import encode_basestring_ascii

from client import Client, Lost, Refused, secret

env = os.environ
DEADLINE = time.monotonic() + int(env.get("DB_DEADLINE_SECONDS") or 10) - 2
SELF, SET = env["DB_SELF_NUMERIC_ID"], env["DB_ENGINE_NAME"]
# The settings that the server changes while it runs, with its own defaults.
LIVE = {"logLevel": 0, "ttlMonitorEnabled": True, "notablescan": False, "transactionLifetimeLimitSeconds": 60,
        "cursorTimeoutMillis": 600000, "maxTransactionLockRequestTimeoutMillis": 5}


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


def later(message):
    finish(11, retry={"afterSeconds": 3}, error={"code": "NotNow", "message": message})


def pending(fraction, note):
    finish(10, retry={"afterSeconds": 1}, progress={"fraction": fraction, "note": note})


def unsafe(name, reason, hint):
    finish(22, blockers=[{"object": name, "reason": reason, "hint": hint}],
           error={"code": "Unsafe", "message": f"{name}: {reason}; {hint}"})


def members():
    keys = ("id", "number", "name", "address", "component", "shard", "ordinal", "state", "vote", "engineId")
    with open(env["DB_MEMBERS"], encoding="utf-8") as file:
        rows = [dict(zip(keys, line.rstrip("\n").split("\t"))) for line in file if line.strip()]
    return [row for row in rows if row["component"] == env["DB_SELF_COMPONENT"] and row["state"] not in ("left", "dead")]


def settings():
    with open(env["DB_CONFIG"], encoding="utf-8") as file:
        given = dict(line.rstrip("\n").split("=", 1) for line in file if "=" in line)
    return {key: value == "true" if value in ("true", "false") else float(value) if "." in value else int(value)
            for key, value in given.items()}


def admin(host="127.0.0.1"):
    return Client(host, "backlot", secret("system"))


def primary():
    """A session with the primary of this cluster's set; the primary that a member names is asked itself."""
    rows = members()
    hosts = ["127.0.0.1"] + [row["name"] for row in rows if row["number"] != SELF and row["state"] != "new"]
    for host in hosts:
        try:
            hello = Client(host, timeout=2).call("hello")
            if hello.get("setName", SET) != SET:
                finish(23, error={"code": "OtherCluster", "message": f"{host} is of the set {hello['setName']}, not of {SET}"})
            if hello.get("isWritablePrimary"):
                return admin(host)
            name = hello.get("primary", "").rsplit(":", 1)[0]
            if name and name not in hosts:
                hosts.append(name)
        except Lost:
            continue
    later("no member is primary: fewer than a majority of the voters reach each other, or an election is under way")


def config(session):
    """The configuration, and whether a majority has it."""
    answer = session.call("replSetGetConfig", commitmentStatus=True)
    return answer["config"], answer.get("commitmentStatus", False)


def propose(session, wanted):
    try:
        session.call({"replSetReconfig": {**wanted, "version": wanted["version"] + 1}}, maxTimeMS=20000)
    except Refused as error:
        if error.code in (109, 308, 50):  # in progress; the former is not committed yet; committed too slowly
            pending(0.8, f"the set is still taking over its configuration: {error}")
        if error.code in (10107, 189, 91, 11600, 11602):
            later("the primary stepped down")
        raise


def states(session):
    return {member["name"]: member for member in session.call("replSetGetStatus")["members"]}


def serves(state):
    return state.get("health") == 1 and state.get("stateStr") in ("PRIMARY", "SECONDARY")


def render():
    memory, given = int(env.get("DB_MEMORY_BYTES") or 0), settings()
    cache = given.get("cacheSizeGB") or max(0.25, round(memory * 0.4 / 2**30, 2))
    if memory and cache * 2**30 > memory * 0.7:
        finish(20, error={"code": "InvalidConfig", "message": f"a cache of {cache} GB leaves too little of {memory >> 20}Mi"})
    # Only the founder may be reached without a password, by localhost, until it has its first user.
    parameters = {"enableLocalhostAuthBypass": env["DB_FOUNDING"] == "true", "authenticationMechanisms": "SCRAM-SHA-256",
                  "scramSHA256IterationCount": 5000,  # passwords are random; each poll has to log in
                  **{key: value for key, value in given.items() if key in LIVE}}
    text = {  # JSON is YAML
        "net": {"port": 27017, "bindIpAll": True, "ipv6": True, "unixDomainSocket": {"enabled": False},
                "maxIncomingConnections": given.get("maxIncomingConnections", 10000)},
        "storage": {"dbPath": "/data/db", "oplogMinRetentionHours": given.get("oplogMinRetentionHours", 0),
                    "wiredTiger": {"engineConfig": {"cacheSizeGB": cache}}},
        "operationProfiling": {"slowOpThresholdMs": given.get("slowOpThresholdMs", 100)},
        "replication": {"replSetName": SET},
        "security": {"keyFile": "/run/db/keyfile", "authorization": "enabled"},
        "setParameter": parameters}
    finish(0, {"argv": ["/db/lib/start"], "env": {}, "files": [
        {"path": "/run/db/mongod.conf", "content": dump(text)},
        # The server refuses a key that others can read.
        {"path": "/run/db/keyfile", "content": "${secret:peer}\n", "mode": "0400", "owner": "engine"}]})


def found():
    session, row, changed = Client(), next(row for row in members() if row["number"] == SELF), False
    if "setName" not in session.call("hello"):
        changed = True
        try:
            session.call({"replSetInitiate": {"_id": SET, "members": [
                {"_id": int(SELF), "host": f"{row['name']}:27017"}]}})
        except Refused as error:
            if error.code != 23:
                raise
    while not (hello := session.call("hello")).get("isWritablePrimary"):
        if time.monotonic() > DEADLINE:
            pending(0.5, "the member is not primary yet")
        time.sleep(0.2)
    if hello["setName"] != SET:
        finish(23, error={"code": "OtherCluster", "message": f"the data is of the set {hello['setName']}, not of {SET}"})
    try:
        session = admin()
    except Refused as error:
        if error.code != 18:
            raise
        session.call({"createUser": "backlot", "pwd": secret("system"), "mechanisms": ["SCRAM-SHA-256"],
                      "roles": ["clusterAdmin", "userAdminAnyDatabase"]}, writeConcern={"w": "majority"})
        session, changed = admin(), True
    if not session.call({"usersInfo": "app"})["users"]:
        session.call({"createUser": "app", "pwd": secret("app"), "mechanisms": ["SCRAM-SHA-256"], "roles": [
            "readWriteAnyDatabase", "dbAdminAnyDatabase", "clusterMonitor"]}, writeConcern={"w": "majority"})
        changed = True
    concern = session.call("getDefaultRWConcern").get("defaultWriteConcern", {})
    if concern.get("w") != "majority":
        session.call("setDefaultRWConcern", defaultWriteConcern={"w": "majority", "wtimeout": 0})
        changed = True
    finish(0, {"engineId": SELF}, changed=changed)


def clone():
    """An empty volume under a name that the set still counts forgot what it confirmed: its vote ends before it starts."""
    drop(SELF)


def join():
    host = next(row["name"] for row in members() if row["number"] == SELF) + ":27017"
    session = primary()
    current, committed = config(session)
    mine = next((member for member in current["members"] if member["host"] == host), None)
    if not committed:
        pending(0.2, "the set's last configuration is not committed yet")
    if mine and mine["votes"]:
        serves(states(session).get(host, {})) or pending(0.9, "the member is not in sync")
        finish(0, {"engineId": SELF}, changed=False)
    if not mine:
        if any(member["_id"] == int(SELF) for member in current["members"]):
            later(f"the number {SELF} still belongs to another name in the set")
        # Without a vote until it holds the data, so that a slow copy never costs the majority.
        current["members"].append({"_id": int(SELF), "host": host, "votes": 0, "priority": 0})
        propose(session, current)
        pending(0.3, "added without a vote; it copies the data")
    if not serves(states(session).get(host, {})):
        pending(0.5, f"it is {states(session).get(host, {}).get('stateStr', 'not known')}")
    mine.update(votes=1, priority=1)
    propose(session, current)
    pending(0.9, "its vote is being committed")


def drop(subject):
    session = primary()
    current, committed = config(session)
    gone = next((member for member in current["members"] if member["_id"] == int(subject)), None)
    if not committed:
        pending(0.8, "the set's last configuration is not committed yet")
    if not gone:
        finish(0, changed=False)
    rest = [member for member in current["members"] if member is not gone]
    known = states(session)
    voters = [member for member in rest if member["votes"]]
    up = sum(serves(known.get(member["host"], {})) for member in voters)
    if not voters or up < len(voters) // 2 + 1:
        unsafe(gone["host"], f"of the {len(voters)} voters that stay {up} serve", "bring them back first; a last member is not removed")
    if known.get(gone["host"], {}).get("stateStr") == "PRIMARY":
        try:
            session.call({"replSetStepDown": 60}, secondaryCatchUpPeriodSecs=10)
        except Lost:
            pass  # it may close connections when it steps down
        except Refused as error:
            if error.code != 262:  # no secondary caught up in time
                raise
        pending(0.3, "the leadership moves to another member")
    propose(session, {**current, "members": rest})
    pending(0.8, "the removal is being committed")


def leave():
    drop(env.get("DB_SUBJECT_ENGINE_ID") or env.get("DB_SUBJECT_NUMERIC_ID") or SELF)


forget = leave


def view():
    session = primary()
    current, known = config(session)[0], states(session)
    ids = {row["name"] + ":27017": row["id"] for row in members()}
    return current, [{**({"id": ids[m["host"]]} if m["host"] in ids else {}), "engineId": str(m["_id"]),
                      "vote": bool(m["votes"]), "up": serves(known.get(m["host"], {}))} for m in current["members"]]


def membership():
    current, rows = view()
    finish(0, {"version": f"{current.get('term', 0)}.{current['version']}", "members": rows})


def can_disrupt():
    rows = view()[1]
    voters = [row for row in rows if row["vote"]]
    spare = sum(row["up"] for row in voters) - (len(voters) // 2 + 1)
    allowed, refused = [], []
    for member in env.get("DB_PARAM_MEMBERS", env["DB_SELF_ID"]).split():
        missed = any(row.get("id") == member and row["up"] for row in voters)
        if missed and spare < 1:
            refused.append({"object": member, "reason": "the other voters would have no majority", "hint": "wait until all serve"})
        else:
            spare -= missed
            allowed.append(member)
    finish(0, {"allowed": allowed}, blockers=[] if allowed else refused)


def reconfigure():
    wanted, session = settings(), admin()
    have = session.call("getParameter", **dict.fromkeys(LIVE, 1))
    lacking = {key: wanted.get(key, default) for key, default in LIVE.items() if have.get(key) != wanted.get(key, default)}
    for key, value in lacking.items():
        session.call("setParameter", **{key: value})
    have = session.call("getParameter", **dict.fromkeys(LIVE, 1))
    finish(0, {"values": {key: dump(have[key]) for key in LIVE if key in wanted},
               "pendingRestart": [key for key in LIVE if have[key] != wanted.get(key, LIVE[key])]}, changed=bool(lacking))


def role():
    """By `hello` alone, which needs no login."""
    try:
        hello = Client(timeout=2).call("hello")
    except Lost:
        finish(0, {"role": "unknown", "writable": False})
    writable = bool(hello.get("isWritablePrimary"))
    last = hello.get("lastWrite", {}).get("opTime", {})
    more = {}
    if "ts" in last:
        more = {"term": max(last["t"], 0), "position": {"offset": struct.unpack("<Q", last["ts"])[0]}}
    finish(0, {"role": "leader" if writable else "follower" if hello.get("secondary") else "unknown", "writable": writable, **more})


def health():
    def say(process, ready, cluster, reason="", message=""):
        finish(0, {"process": process, "ready": ready, "cluster": cluster, "reasons": [reason] if reason else [], "message": message})
    try:
        session = Client(timeout=2)
    except Lost:
        say("starting", False, "unknown", "Loading", "the port is not open yet")
    try:
        hello = session.call("hello")
    except Lost:
        say("hung", False, "unknown", "NoAnswer", "the server does not answer")
    if "setName" not in hello:
        say("up", False, "unknown", "NotAMember", "the server is in no replica set")
    if not hello.get("isWritablePrimary") and not hello.get("secondary"):
        say("up", False, "unknown", "NotInSync", "the member copies data, recovers or was removed")
    if not hello.get("primary"):
        say("up", False, "noQuorum", "NoPrimary", "no primary is known: fewer than a majority of the voters reach each other")
    try:
        known = admin().call("replSetGetStatus")["members"]
    except (Lost, Refused) as error:
        say("up", True, "unknown", "NoStatus", str(error))
    down = [member["name"] for member in known if not serves(member)]
    if down:
        say("up", True, "degraded", "MembersMissing", "not serving: " + ", ".join(down))
    say("up", True, "ok", "", f"{len(known)} members serve")


def main(verb):
    try:
        globals()[verb.replace("-", "_")]()
    except Lost as error:
        later(f"the server does not answer: {error}")
    except Refused as error:
        finish(31, error={"code": "EngineError", "message": str(error)})
