"""A Kafka client, as small as the verbs need: one connection, one request at a time, as the user `peer`.

Invariant: a request either has the server's answer, or raises `Lost`: then it may have happened or not, and the caller reads again.
What takes milliseconds to load (socket, base64, json, re, names as text) is avoided: this is started every few seconds.
"""
import os
from _socket import SOCK_STREAM, getaddrinfo, socket
from binascii import a2b_base64, b2a_base64
from struct import calcsize, pack, unpack
from time import monotonic

DATA = "/data/kafka"
BROKERS = range(1, 1000)  # numbers of the component `data`, in the manifest
STALE = 5000  # milliseconds after which a voter that does not catch up counts as down
ACL = "kind:c name:s pattern:c principal:s host:s operation:c permission:c"
REPLICA = "id:i dir:u end:q fetched:q caught:q"
# Number, version, request, response. Types: b bool, c h i q integers, H port, s text, u uuid, I S lists; name[…] is a list of structures.
APIS = {
    "Metadata": (3, 12, "topics[id:u name:s] create:b rights:b",
                 "throttle:i brokers[id:i host:s port:i rack:s] cluster:s controller:i topics[error:h name:s id:u internal:b "
                 "partitions[error:h index:i leader:i epoch:i replicas:I isr:I offline:I] rights:i]"),
    "DescribeAcls": (29, 3, "kind:c name:s pattern:c principal:s host:s operation:c permission:c",
                     "throttle:i error:h message:s resources[kind:c name:s pattern:c acls[principal:s host:s operation:c permission:c]]"),
    "CreateAcls": (30, 3, f"acls[{ACL}]", "throttle:i results[error:h message:s]"),
    "DescribeConfigs": (32, 4, "resources[kind:c name:s keys:S] synonyms:b docs:b",
                        "throttle:i results[error:h message:s kind:c name:s configs[name:s value:s readonly:b source:c sensitive:b "
                        "synonyms[name:s value:s source:c] type:c doc:s]]"),
    "SaslAuthenticate": (36, 2, "token:s", "error:h message:s token:s lifetime:q"),
    "IncrementalAlterConfigs": (44, 1, "resources[kind:c name:s configs[name:s operation:c value:s]] validate:b",
                                "throttle:i results[error:h message:s kind:c name:s]"),
    "AlterPartitionReassignments": (45, 0, "timeout:i topics[name:s partitions[index:i replicas:I]]",
                                    "throttle:i error:h message:s results[name:s results[index:i error:h message:s]]"),
    "ListPartitionReassignments": (46, 0, "timeout:i topics[name:s partitions:I]",
                                   "throttle:i error:h message:s topics[name:s partitions[index:i replicas:I adding:I removing:I]]"),
    "DescribeQuorum": (55, 2, "topics[name:s partitions[index:i]]",
                       "error:h message:s topics[name:s results[index:i error:h message:s leader:i epoch:i high:q "
                       f"voters[{REPLICA}] observers[{REPLICA}]]] nodes[id:i listeners[name:s host:s port:H]]"),
    "DescribeCluster": (60, 2, "rights:b endpoint:c fenced:b",
                        "throttle:i error:h message:s endpoint:c cluster:s controller:i brokers[id:i host:s port:i rack:s fenced:b] rights:i"),
    "UnregisterBroker": (64, 0, "id:i", "throttle:i error:h message:s"),
    "AddRaftVoter": (80, 0, "cluster:s timeout:i id:i dir:u listeners[name:s host:s port:H]", "throttle:i error:h message:s"),
    "RemoveRaftVoter": (81, 0, "cluster:s id:i dir:u", "throttle:i error:h message:s"),
}
SIZES = {"b": "?", "c": "b", "h": "h", "H": "H", "i": "i", "q": "q"}


class Lost(Exception):
    """The server did not answer."""


class Refused(Exception):
    """The server's answer is an error; `code` is Kafka's number of it."""

    def __init__(self, code, message):
        super().__init__(f"Kafka error {code}: {message}")
        self.code = code


def parse(text):
    """A structure's fields as (name, type); the type of a list of structures is its fields."""
    stack = [[]]
    for word in text.replace("[", " [ ").replace("]", " ] ").split():
        if word == "[":
            stack.append([])
        elif word == "]":
            fields = stack.pop()
            stack[-1][-1] = (stack[-1][-1][0], fields)
        else:
            stack[-1].append(tuple(word.split(":")))
    return stack[0]


def size(value):
    """A length: seven bits a byte, the last byte first; 0 stands for no value at all."""
    return (bytes([value & 127 | 128]) + size(value >> 7)) if value > 127 else bytes([value])


def encode(kind, value):
    if isinstance(kind, list) and isinstance(value, dict):
        return b"".join(encode(part, value[name]) for name, part in kind) + b"\0"
    if value is None:
        return size(0)
    if kind == "s":
        return size(len(value.encode()) + 1) + value.encode()
    if kind == "u":
        return a2b_base64(value.replace("-", "+").replace("_", "/") + "==")
    if isinstance(value, list):
        return size(len(value) + 1) + b"".join(encode(kind if isinstance(kind, list) else kind.lower(), part) for part in value)
    return pack(">" + SIZES[kind], value)


class Reply:
    def __init__(self, data):
        self.data, self.at = data, 4

    def take(self, count):
        self.at += count
        return self.data[self.at - count:self.at]

    def size(self):
        byte = self.take(1)[0]
        return byte & 127 | self.size() << 7 if byte > 127 else byte

    def skip_tags(self):
        for _ in range(self.size()):
            self.size()
            self.take(self.size())

    def value(self, kind):
        if kind == "s":
            count = self.size() - 1
            return None if count < 0 else self.take(count).decode()
        if kind == "u":
            return b2a_base64(self.take(16), newline=False).decode().rstrip("=").replace("+", "-").replace("/", "_")
        if kind in ("I", "S"):
            return [self.value(kind.lower()) for _ in range(self.size() - 1)]
        if isinstance(kind, list):
            return [self.structure(kind) for _ in range(self.size() - 1)]
        return unpack(">" + SIZES[kind], self.take(calcsize(">" + SIZES[kind])))[0]

    def structure(self, fields):
        values = {name: self.value(kind) for name, kind in fields}
        self.skip_tags()
        return values


class Client:
    """A connection to the server on `host`, a broker's or a controller's. Raises ConnectionError when nothing listens there, else Lost."""

    def __init__(self, host="127.0.0.1", timeout=10, component="data"):
        self.end, self.is_broker = monotonic() + timeout, component == "data"
        with open(f"{os.environ['DB_SECRETS']}/peer/current", encoding="utf-8") as file:
            password = file.read().strip()
        try:
            family, kind, protocol, _, address = getaddrinfo(host.encode(), 9092 if self.is_broker else 9093, 0, SOCK_STREAM)[0]
            self.socket = socket(family, kind, protocol)
            self.socket.settimeout(min(timeout, 3))
            self.socket.connect(address)
        except OSError as error:
            raise ConnectionError(f"{host}: {error}") from error
        self._exchange(pack(">hhihh5s", 17, 1, 0, -1, 5, b"PLAIN"))  # which mechanism; older than the other requests' form
        self.call("SaslAuthenticate", token=f"\0peer\0{password}")

    def _exchange(self, payload):
        def exactly(count):
            data = b""
            while len(data) < count:
                self.socket.settimeout(max(0.01, self.end - monotonic()))
                part = self.socket.recv(count - len(data))
                if not part:
                    raise Lost("connection closed")
                data += part
            return data
        try:
            self.socket.sendall(pack(">i", len(payload)) + payload)
            return exactly(unpack(">i", exactly(4))[0])
        except OSError as error:
            raise Lost(str(error)) from error

    def call(self, api, /, **values):
        """The answer's fields; the first error that it holds is raised."""
        key, version, request, response = APIS[api]
        reply = Reply(self._exchange(pack(">hhihx", key, version, 0, -1) + encode(parse(request), values)))
        reply.skip_tags()
        answer = reply.structure(parse(response))
        for part in [answer, *answer.get("results", ())]:
            for result in [part, *part.get("results", ())]:
                if result.get("error"):
                    raise Refused(result["error"], result["message"])
        return answer

    def quorum(self):
        """Leader, epoch, voters and observers, as the leader tells; each with `up`: is it caught up, and its broker serves?"""
        topic = {"name": "__cluster_metadata", "partitions": [{"index": 0}]}
        result = self.call("DescribeQuorum", topics=[topic])["topics"][0]["results"][0]
        if result["error"]:
            raise Lost(f"no leader: {result['message']}")
        now, serving = max(voter["caught"] for voter in result["voters"]), self.brokers() if self.is_broker else BROKERS
        for replica in result["voters"] + result["observers"]:
            replica["up"] = now - replica["caught"] < STALE and (replica["id"] not in BROKERS or replica["id"] in serving)
        return result

    def brokers(self):
        """Numbers of the brokers that serve, as this one knows them."""
        return {broker["id"] for broker in self.call("Metadata", topics=[], create=False, rights=False)["brokers"]}

    def partitions(self):
        """All partitions by topic and index."""
        topics = self.call("Metadata", topics=None, create=False, rights=False)["topics"]
        return {(topic["name"], p["index"]): p for topic in topics for p in topic["partitions"]}


def leader():
    """Number of the active controller as the own server wrote it down, -1 when it knows none. Only that one answers about the quorum."""
    try:
        with open(f"{DATA}/__cluster_metadata-0/quorum-state", encoding="utf-8") as file:
            return int(file.read().split('"leaderId":')[1].split(",")[0])
    except (OSError, IndexError):
        return -1


def identity():
    """What the volume's meta.properties says."""
    with open(f"{DATA}/meta.properties", encoding="utf-8") as file:
        return dict(line.strip().split("=", 1) for line in file if "=" in line)
