"""A Kafka client, as small as the verbs need: one connection, one request at a time, as the user `peer`.

Invariant: a request either has the server's answer, or raises `Lost`: then it may have happened or not, and the caller reads again.
"""
import base64
import os
import socket
import struct
import time

DATA = "/data/kafka"
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


def number(value):
    data = b""
    while value > 127:
        data, value = data + bytes([value & 127 | 128]), value >> 7
    return data + bytes([value])


def encode(kind, value):
    if kind in ("I", "S") or isinstance(kind, list):
        if value is None:
            return b"\0"
        element = (lambda v: structure(kind, v)) if isinstance(kind, list) else (lambda v: encode(kind.lower(), v))
        return number(len(value) + 1) + b"".join(map(element, value))
    if kind == "s":
        data = (value or "").encode()
        return b"\0" if value is None else number(len(data) + 1) + data
    if kind == "u":
        return base64.urlsafe_b64decode(value + "==")
    return struct.pack(">" + SIZES[kind], value)


def structure(fields, values):
    return b"".join(encode(kind, values[name]) for name, kind in fields) + b"\0"


class Reply:
    def __init__(self, data):
        self.data, self.at = data, 4

    def take(self, size):
        self.at += size
        return self.data[self.at - size:self.at]

    def number(self):
        value = shift = 0
        while True:
            byte = self.take(1)[0]
            value, shift = value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value

    def tags(self):
        for _ in range(self.number()):
            self.number()
            self.take(self.number())

    def value(self, kind):
        if kind in ("I", "S") or isinstance(kind, list):
            read = (lambda: self.structure(kind)) if isinstance(kind, list) else (lambda: self.value(kind.lower()))
            return [read() for _ in range(self.number() - 1)]
        if kind == "s":
            size = self.number() - 1
            return None if size < 0 else self.take(size).decode()
        if kind == "u":
            return base64.urlsafe_b64encode(self.take(16)).decode().rstrip("=")
        form = ">" + SIZES[kind]
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def structure(self, fields):
        values = {name: self.value(kind) for name, kind in fields}
        self.tags()
        return values


class Client:
    """A connection to the server on `host`. Raises ConnectionError when nothing listens there, else Lost."""

    def __init__(self, host="127.0.0.1", timeout=10):
        self.end = time.monotonic() + timeout
        with open(f"{os.environ['DB_SECRETS']}/peer/current", encoding="utf-8") as file:
            password = file.read().strip()
        try:
            self.socket = socket.create_connection((host, 9092), min(timeout, 3))
        except OSError as error:
            raise ConnectionError(f"{host}: {error}") from error
        self._exchange(struct.pack(">hhihh5s", 17, 1, 0, -1, 5, b"PLAIN"))  # the mechanism; older than the other requests' form
        self.call("SaslAuthenticate", token=f"\0peer\0{password}")

    def _exchange(self, payload):
        def exactly(size):
            data = b""
            while len(data) < size:
                self.socket.settimeout(max(0.01, self.end - time.monotonic()))
                part = self.socket.recv(size - len(data))
                if not part:
                    raise Lost("connection closed")
                data += part
            return data
        try:
            self.socket.sendall(struct.pack(">i", len(payload)) + payload)
            return exactly(struct.unpack(">i", exactly(4))[0])
        except OSError as error:
            raise Lost(str(error)) from error

    def call(self, api, /, **values):
        """The answer's fields; the first error that it holds is raised."""
        key, version, request, response = APIS[api]
        reply = Reply(self._exchange(struct.pack(">hhihx", key, version, 0, -1) + structure(parse(request), values)))
        reply.tags()
        answer = reply.structure(parse(response))
        for part in [answer, *answer.get("results", ())]:
            for result in [part, *part.get("results", ())]:
                if result.get("error"):
                    raise Refused(result["error"], result["message"])
        return answer

    def quorum(self):
        """Leader, epoch, voters and observers, as the leader tells; each with `up`: is it caught up?"""
        topic = {"name": "__cluster_metadata", "partitions": [{"index": 0}]}
        result = self.call("DescribeQuorum", topics=[topic])["topics"][0]["results"][0]
        if result["error"]:
            raise Lost(f"no leader: {result['message']}")
        now = max(voter["caught"] for voter in result["voters"])
        for replica in result["voters"] + result["observers"]:
            replica["up"] = now - replica["caught"] < STALE
        return result

    def brokers(self):
        """Numbers of the brokers that serve, as this one knows them."""
        return {broker["id"] for broker in self.call("Metadata", topics=[], create=False, rights=False)["brokers"]}

    def partitions(self):
        """All partitions by topic and index."""
        topics = self.call("Metadata", topics=None, create=False, rights=False)["topics"]
        return {(topic["name"], p["index"]): p for topic in topics for p in topic["partitions"]}


def identity():
    """What the volume's meta.properties says."""
    with open(f"{DATA}/meta.properties", encoding="utf-8") as file:
        return dict(line.strip().split("=", 1) for line in file if "=" in line)
