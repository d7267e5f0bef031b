"""The verbs role and health: what this member is. Asks the own server only, which asks the active controller."""
import os

from kafka import Client, Lost, identity, leader

env = os.environ
SELF = int(env["DB_SELF_NUMERIC_ID"])
VERB = env["DB_VERB"]
COMPONENT = env["DB_SELF_COMPONENT"]
WAS_MEMBER = env["DB_SELF_STATE"] in ("joined", "leaving")


def finish(**output):
    # No text here holds a quote, so this is JSON, and the module for it need not be loaded.
    text = str({"output": output}).replace("'", '"').replace("True", "true").replace("False", "false")
    with open(env["DB_RESULT"] + ".new", "w", encoding="utf-8") as file:
        file.write(text)
    os.rename(env["DB_RESULT"] + ".new", env["DB_RESULT"])
    os._exit(0)


def no_answer(process, cluster, reason, message):
    if VERB == "role":
        finish(role="unknown", writable=False)
    finish(process=process, ready=False, cluster=cluster, reasons=[reason], message=message)


try:
    client = Client(timeout=3, component=COMPONENT)
except ConnectionError:
    # The port opens when the metadata is read and the logs are recovered.
    lost = WAS_MEMBER and leader() < 0
    no_answer("starting", "noQuorum" if lost else "unknown", "NoLeader" if lost else "Loading",
              "waits for a majority of the members" if lost else "the client port is not open yet")
except Lost:
    no_answer("hung", "unknown", "NoAnswer", "the server does not answer on its client port")
with open(env["DB_MEMBERS"], encoding="utf-8") as file:
    lines = [line.split("\t") for line in file]
try:
    if COMPONENT != "data" and leader() != SELF:  # brokers pass requests on, controllers do not
        client = Client(next((line[2] for line in lines if line[1] == str(leader())), "127.0.0.1"), 3, COMPONENT)
    quorum = client.quorum()
except (Lost, ConnectionError):
    no_answer("up", "noQuorum" if WAS_MEMBER else "unknown", "NoLeader", "no active controller answers: fewer than a majority of the members serve")
is_broker_only = COMPONENT == "data" and any(line[4] == "controller" for line in lines)
kind = quorum["observers" if is_broker_only else "voters"]
own = next((v for v in kind if v["id"] == SELF and v["dir"] == identity()["directory.id"]), None)
serves = bool(own and own["up"])
leads = quorum["leader"] == SELF
if VERB == "role":
    seen = own or next((o for o in quorum["observers"] if o["id"] == SELF), None)
    finish(role="leader" if leads else "follower" if own else "observer", writable=serves, term=quorum["epoch"],
           **({"position": {"offset": seen["end"]}} if seen else {}))

ids = [v["id"] for v in quorum["voters"]]
missing = [v["id"] for v in quorum["voters"] if not v["up"]]
cluster, reasons, message = "ok", [], f"{'active controller, ' if leads else ''}{len(ids)} members"
if missing:
    cluster, reasons, message = "degraded", ["MembersMissing"], f"members {missing} of {ids} are not in sync or do not serve"
# One member reads all partitions; the others need not.
if SELF == min((o["id"] for o in kind if o["up"]), default=0) if is_broker_only else leads and client.is_broker:
    partitions = client.partitions()
    offline = [key for key, p in partitions.items() if p["leader"] < 0]
    lagging = [key for key, p in partitions.items() if len(p["isr"]) < len(p["replicas"])]
    if offline:
        cluster, reasons = "partlyLost", reasons + ["PartitionsOffline"]
        message = f"{len(offline)} partitions have no leader, first {offline[0][0]}/{offline[0][1]}"
    elif lagging:
        cluster, reasons = "degraded", reasons + ["PartitionsUnderReplicated"]
        message += f"; {len(lagging)} partitions lack replicas in sync, first {lagging[0][0]}/{lagging[0][1]}"
if not serves:
    reasons.append("Fenced" if own else "NotAMember")
    message = "the broker is fenced" if own else "follows the quorum, but has no vote in it"
finish(process="up", ready=serves, cluster=cluster if own else "unknown", reasons=reasons, message=message)
