#!/usr/bin/python3 -IB
"""The verbs for which the engine need not run (render, prepare), and reconfigure, which compares with what render answers."""
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

DATA = "/data/rabbitmq"
CONF = "/run/db/rabbitmq.conf"
with open(os.environ["DB_REQUEST"], encoding="utf-8") as file:
    request = json.load(file)
self_ = next(member for member in request["members"] if member["id"] == request["self"])
NODE = f"rabbit@{self_['name']}"
PLUGINS = ("consistent_hash_exchange", "event_exchange", "federation", "federation_management", "random_exchange",
           "recent_history_exchange", "shovel", "shovel_management", "top")


def finish(code, output=None, **result):
    with open(os.environ["DB_RESULT"], "w", encoding="utf-8") as file:
        json.dump({**result, **({} if output is None else {"output": output})}, file)
    sys.exit(code)


def invalid(code, message):
    finish(20, error={"code": code, "message": message})


def size(text):
    number, unit = re.fullmatch(r"([\d.]+)\s*([a-zA-Z]*)", text).groups()
    return int(float(number) * 1024 ** " kmgt".find(unit[:1].lower() or " "))


def millis(text):
    number, unit = re.fullmatch(r"([\d.]+)\s*([a-z]*)", text).groups()
    return int(float(number) * {"ms": 1, "s": 1000, "min": 60000, "h": 3600000, "d": 86400000, "": 1}[unit])


def settings():
    """The lines of rabbitmq.conf that a user may change, and the plugins."""
    config, resources = request.get("config") or {}, request.get("resources") or {}
    memory = resources.get("memoryBytes") or 0
    if memory and memory < 384 << 20:
        invalid("MemoryTooSmall", f"{memory >> 20}Mi of memory do not suffice; give at least 384Mi")
    volume = (resources.get("volumes") or {}).get("data") or 10 << 30
    values = {
        "vm_memory_high_watermark.absolute": memory * 3 // 5 or 512 << 20,
        "disk_free_limit.absolute": max(64 << 20, min(2 << 30, volume // 10)),
        "raft.wal_max_size_bytes": min(512 << 20, max(4 << 20, (memory or 1 << 30) // 16)),
        "heartbeat": 60, "channel_max": 2047, "max_message_size": 128 << 20, "consumer_timeout": 1800000,
        "frame_max": 131072, "collect_statistics_interval": 5000, "tcp_listen_options.backlog": 128, "log.console.level": "info",
    }
    plugins = config.get("plugins", "").replace(",", " ").split()
    if unknown := [plugin for plugin in plugins if plugin.removeprefix("rabbitmq_") not in PLUGINS]:
        invalid("InvalidSetting", f"plugins: {unknown[0]} is not one of {', '.join(PLUGINS)}")
    for key, text in config.items():
        if key in ("vm_memory_high_watermark.absolute", "disk_free_limit.absolute", "raft.wal_max_size_bytes", "max_message_size"):
            values[key] = size(text)
        elif key in ("consumer_timeout", "collect_statistics_interval"):
            values[key] = millis(text)
        elif key in values:
            values[key] = text if key == "log.console.level" else int(text)
    high = values["vm_memory_high_watermark.absolute"]
    if memory and high > memory * 7 // 10:
        invalid("InvalidSetting", f"vm_memory_high_watermark.absolute {high} is above 70 % of the member's {memory} bytes")
    if memory and values["raft.wal_max_size_bytes"] > memory // 4:
        invalid("InvalidSetting", f"raft.wal_max_size_bytes is above a quarter of the member's {memory} bytes")
    return values, sorted({f"rabbitmq_{plugin.removeprefix('rabbitmq_')}" for plugin in plugins})


def render():
    values, plugins = settings()
    conf = "".join(f"{key} = {value}\n" for key, value in values.items())
    conf += "".join(f"# plugin = {plugin}\n" for plugin in plugins)
    # The default user is made with the empty database, at the founding; a member that joins gets the cluster's users.
    # A broker on an empty database waits for others as long as it takes: only `found` lets it start alone, `join` names the others.
    conf += """default_user = admin
default_pass = ${secret:admin}
loopback_users = none
listeners.tcp.default = 5672
management.tcp.port = 15672
prometheus.tcp.port = 15692
cluster_partition_handling = pause_minority
cluster_formation.classic_config.nodes.1 = rabbit@nobody.invalid
cluster_formation.discovery_retry_limit = 1000000000
cluster_formation.discovery_retry_interval = 1000
log.console = true
log.file = false
"""
    resources = request.get("resources") or {}
    if memory := resources.get("memoryBytes"):
        conf += f"total_memory_available_override_value = {memory}\n"
    cores = -(-(resources.get("cpuMillis") or 0) // 1000)
    finish(0, {
        "argv": ["/db/lib/start", "-noinput", "-pa", "/opt/rabbitmq", "-s", "backlot", "boot", "-boot", "start_sasl", "+W", "w",
                 *([f"+S", f"{cores}:{cores}"] if cores else []), "+P", "262144", "+sbwt", "none", "+sbwtdcpu", "none", "+sbwtdio", "none",
                 "+MBas", "ageffcbf", "+MHas", "ageffcbf", "+MBlmbcs", "512", "+MHlmbcs", "512", "+MMmcs", "30",
                 "-kernel", "prevent_overlapping_partitions", "false", "-kernel", "inet_default_connect_options", "[{nodelay,true}]",
                 "-syslog", "logger", "[]", "-syslog", "syslog_error_logger", "false"],
        "env": {
            "HOME": "/run/db/home", "ERL_LIBS": "/opt/rabbitmq/plugins", "ERL_CRASH_DUMP_SECONDS": "0",
            "RABBITMQ_HOME": "/opt/rabbitmq", "RABBITMQ_PLUGINS_DIR": "/opt/rabbitmq/plugins",
            "RABBITMQ_NODENAME": NODE, "RABBITMQ_USE_LONGNAME": "true",
            "RABBITMQ_MNESIA_BASE": DATA, "RABBITMQ_MNESIA_DIR": f"{DATA}/mnesia", "RABBITMQ_LOGS": "-", "RABBITMQ_LOG_BASE": "/run/db",
            "RABBITMQ_CONFIG_FILE": CONF, "RABBITMQ_ENABLED_PLUGINS_FILE": "/run/db/enabled_plugins",
            "RABBITMQ_FEATURE_FLAGS_FILE": f"{DATA}/mnesia/feature_flags", "RABBITMQ_PID_FILE": "/run/db/rabbitmq.pid",
        },
        "files": [
            {"path": "/run/db/home/.erlang.cookie", "content": "${secret:cookie}", "mode": "0600"},
            {"path": CONF, "content": conf},
            {"path": "/run/db/enabled_plugins", "content": f"[{','.join(['rabbitmq_management', 'rabbitmq_prometheus', *plugins])}].\n"},
        ],
    }, changed=False)


def call(host, function, arguments, home="/run/db/home"):
    """A function of backlot.erl in a member's virtual machine; empty when it does not answer."""
    try:
        return subprocess.run(["erl_call", "-h", f"c{os.getpid() % 997}", "-address", f"{host}:25672", "-a", f"backlot {function} {arguments}"],
                              timeout=8, check=False, capture_output=True, text=True, env={**os.environ, "HOME": home}).stdout.strip()
    except subprocess.TimeoutExpired:
        return ""


def prepare():
    def state(name, message=""):
        finish(0, {"state": name, "message": message}, changed=False)

    def others_know():
        """Whether the members that serve list this one; None when none serves."""
        home = os.environ["DB_SCRATCH"]
        with open(f"{os.environ['DB_SECRETS']}/cookie/current", encoding="utf-8") as file, \
             open(os.open(f"{home}/.erlang.cookie", os.O_WRONLY | os.O_CREAT, 0o600), "w", encoding="utf-8") as copy:
            copy.write(file.read().strip())
        names = [m["name"] for m in request["members"] if m["id"] != self_["id"] and m["state"] in ("joined", "leaving")]
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda name: call(name, "knows", f"['{NODE}']", home), names))
        return True if "true" in answers else False if "false" in answers else None

    cluster, there = request["cluster"], lambda name: os.path.exists(f"{DATA}/{name}")
    stamp = open(f"{DATA}/member", encoding="utf-8").read() if there("member") else ""
    if stamp and stamp != f"{cluster['uid']} {NODE}":
        state("foreign", f"the volume holds {stamp.split()[-1]} of another cluster or member")
    if self_["state"] in ("left", "dead"):
        state("retired", "the member was removed")
    if stamp and not there("mnesia/schema.DAT"):
        state("unreadable", "the volume was a member's, but its database is gone")
    if stamp:
        # Half left, it starts without a broker, so that `leave` can end.
        state("retired" if others_know() is False else "existing", "")
    if there("mnesia/schema.DAT") and not there("joining"):
        state("foreign", "the volume holds a database that is not this image's")
    if cluster.get("founded") and not there("joining") and others_know():
        finish(22, blockers=[{"object": self_["id"], "reason": "the volume is empty, but the cluster lists the member",
                              "hint": "forget it first"}])
    state("fresh")


LIVE = ("vm_memory_high_watermark.absolute", "disk_free_limit.absolute", "heartbeat", "channel_max", "frame_max", "max_message_size",
        "consumer_timeout")


def reconfigure():
    values, plugins = settings()
    with open(CONF, encoding="utf-8") as file:
        started = [tuple(line.rstrip("\n").split(" = ", 1)) for line in file if " = " in line]
    pending = [key for key, value in values.items() if key not in LIVE and (key, str(value)) not in started]
    if [value for key, value in started if key == "# plugin"] != plugins:
        pending.append("plugins")
    pairs = ",".join(f"{{'{key}',{values[key]}}}" for key in LIVE)
    code = call("127.0.0.1", "set", f"[\"{os.environ['DB_RESULT']}\",[{pairs}],[{','.join(json.dumps(key) for key in pending)}]]")
    if code != "0":
        finish(31, error={"code": "EngineError", "message": f"the engine did not take the settings: {code[:200]}"})


{"render": render, "prepare": prepare, "reconfigure": reconfigure}[sys.argv[1]]()
