"""A ZooKeeper client, as small as the verbs need: one session, one request at a time, always authenticated (SASL DIGEST-MD5).

Invariant: a request either has the server's answer, or raises `Lost`: then it may have happened or not, and the caller reads again.
"""
import hashlib
import os
import re
import socket
import struct

PORT = 2181
NO_NODE, BAD_VERSION, NODE_EXISTS, BAD_ARGUMENTS = -101, -103, -110, -8
NEW_CONFIG_NO_QUORUM, RECONFIG_IN_PROGRESS = -13, -14
READ, ALL = 1, 31


class Lost(Exception):
    """The server did not answer."""


class Refused(Exception):
    """The server's answer is an error; `code` is ZooKeeper's number of it."""

    def __init__(self, code):
        super().__init__(f"ZooKeeper error {code}")
        self.code = code


def secret(name):
    """The current value of a secret of the cluster."""
    with open(f"{os.environ['DB_SECRETS']}/{name}/current", encoding="utf-8") as file:
        return file.read().strip()


def buffer(data):
    data = data.encode() if isinstance(data, str) else data
    return struct.pack(">i", len(data)) + data


def everybody(rights):
    """A list of rights; everybody are those who passed authentication."""
    return struct.pack(">ii", 1, rights) + buffer("world") + buffer("anyone")


class Client:
    """A session with the server on `host`, as `user`."""

    def __init__(self, host, user, password, timeout=5):
        self.xid = 0
        try:
            self.socket = socket.create_connection((host, PORT), timeout)
            self._send(struct.pack(">iqiqi16s?", 0, 0, 10_000, 0, 16, bytes(16), False))
            if struct.unpack_from(">i", self._receive(), 4)[0] <= 0:
                raise Lost("session refused")
        except OSError as error:
            raise Lost(str(error)) from error
        self._authenticate(user, password)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self._call(-11, b"")
        except (Lost, Refused):
            pass
        self.socket.close()

    def _send(self, payload):
        self.socket.sendall(buffer(payload))

    def _receive(self):
        def exactly(size):
            data = b""
            while len(data) < size:
                part = self.socket.recv(size - len(data))
                if not part:
                    raise Lost("connection closed")
                data += part
            return data
        return exactly(struct.unpack(">i", exactly(4))[0])

    def _call(self, operation, body):
        self.xid += 1
        try:
            self._send(struct.pack(">ii", self.xid, operation) + body)
            reply = self._receive()
        except OSError as error:
            raise Lost(str(error)) from error
        code = struct.unpack_from(">i", reply, 12)[0]
        if code in (-4, -7, -112, -118):  # connection loss, timeout, session expired or moved
            raise Lost(f"ZooKeeper error {code}")
        if code:
            raise Refused(code)
        return reply[16:]

    def _authenticate(self, user, password):
        challenge = self._call(102, buffer(b""))[4:].decode()
        given = {key: value.strip('"') for key, value in re.findall(r'([\w-]+)=("[^"]*"|[^,]*)', challenge)}
        realm, nonce, mine, uri = given.get("realm", ""), given["nonce"], os.urandom(12).hex(), "zookeeper/zk-sasl-md5"
        inner = hashlib.md5(f"{user}:{realm}:{password}".encode()).digest() + f":{nonce}:{mine}".encode()
        outer = hashlib.md5(f"AUTHENTICATE:{uri}".encode()).hexdigest()
        proof = f"{hashlib.md5(inner).hexdigest()}:{nonce}:00000001:{mine}:auth:{outer}"
        self._call(102, buffer(
            f'charset=utf-8,username="{user}",realm="{realm}",nonce="{nonce}",nc=00000001,cnonce="{mine}",'
            f'digest-uri="{uri}",maxbuf=65536,response={hashlib.md5(proof.encode()).hexdigest()},qop=auth'))

    def sync(self, path):
        """What is read afterwards is at least as new as the leader's state now; a server may lag behind."""
        self._call(9, buffer(path))

    def get(self, path):
        reply = self._call(4, buffer(path) + b"\0")
        size = max(struct.unpack_from(">i", reply)[0], 0)
        return reply[4:4 + size].decode()

    def create(self, path, data, rights):
        """Makes a lasting node that everybody may use in these ways; the super user always may."""
        self._call(1, buffer(path) + buffer(data) + everybody(rights) + struct.pack(">i", 0))

    def allow(self, path, rights):
        """Sets what everybody may do with a node."""
        self._call(7, buffer(path) + everybody(rights) + struct.pack(">i", -1))

    def members(self):
        """The committed list: its version, and the line of each member by its id."""
        self.sync("/zookeeper/config")
        text = self.get("/zookeeper/config")
        lines = dict(re.findall(r"^server\.(\d+)=(.*)$", text, re.M))
        return int(re.search(r"^version=(\w+)$", text, re.M).group(1), 16), lines

    def reconfigure(self, version, joining="", leaving=""):
        """Adds or removes members, if the committed list still has this version."""
        none = struct.pack(">i", -1)
        self._call(16, (buffer(joining) if joining else none) + (buffer(leaving) if leaving else none) + none
                   + struct.pack(">q", version))
