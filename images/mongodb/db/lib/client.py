"""A MongoDB client, as small as the verbs need: OP_MSG, BSON, SCRAM-SHA-256; one request at a time.

Invariant: a request has the server's answer, or raises `Lost`: then it may have happened or not, and the caller reads again.
"""
import binascii
import os
import socket
import struct

PORT = 27017


class Lost(Exception):
    """The server did not answer."""


class Refused(Exception):
    """The server's answer is an error; `code` is MongoDB's number of it."""

    def __init__(self, code, message):
        super().__init__(f"MongoDB error {code}: {message}")
        self.code = code


class Raw(bytes):
    """A value that is only handed on (ObjectId, date, timestamp…), with its BSON type."""

    kind = 0


class Long(int):
    """An integer that stays 64 bits wide."""


def raw(kind, data):
    value = Raw(data)
    value.kind = kind
    return value


def element(key, value):
    name = key.encode() + b"\0"
    if isinstance(value, Raw):
        return bytes([value.kind]) + name + value
    if isinstance(value, bool):
        return b"\x08" + name + bytes([value])
    if isinstance(value, int):
        wide = isinstance(value, Long) or not -2**31 <= value < 2**31
        return (b"\x12" if wide else b"\x10") + name + struct.pack("<q" if wide else "<i", value)
    if isinstance(value, float):
        return b"\x01" + name + struct.pack("<d", value)
    if isinstance(value, str):
        data = value.encode() + b"\0"
        return b"\x02" + name + struct.pack("<i", len(data)) + data
    if isinstance(value, bytes):
        return b"\x05" + name + struct.pack("<iB", len(value), 0) + value
    if isinstance(value, dict):
        return b"\x03" + name + encode(value)
    if isinstance(value, list):
        return b"\x04" + name + encode({str(i): item for i, item in enumerate(value)})
    return b"\x0a" + name


def encode(document):
    body = b"".join(element(key, value) for key, value in document.items())
    return struct.pack("<i", len(body) + 5) + body + b"\0"


FIXED = {7: 12, 9: 8, 17: 8, 19: 16, 6: 0, 255: 0, 127: 0}  # types that are only handed on, and their sizes


def decode(data, at=0):
    end, document = at + struct.unpack_from("<i", data, at)[0] - 1, {}
    at += 4
    while at < end:
        kind, stop = data[at], data.index(b"\0", at + 1)
        key, at = data[at + 1:stop].decode(), stop + 1
        if kind in (1, 18, 16):
            form = {1: "<d", 18: "<q", 16: "<i"}[kind]
            value = struct.unpack_from(form, data, at)[0]
            at += struct.calcsize(form)
            value = Long(value) if kind == 18 else value
        elif kind in (3, 4):
            value, size = decode(data, at), struct.unpack_from("<i", data, at)[0]
            value, at = (list(value.values()) if kind == 4 else value), at + size
        elif kind == 8:
            value, at = bool(data[at]), at + 1
        elif kind == 10:
            value = None
        elif kind in (2, 5):
            size, head = struct.unpack_from("<i", data, at)[0], 4 if kind == 2 else 5
            value = data[at + head:at + head + size]
            value, at = (value[:-1].decode() if kind == 2 else value), at + head + size
        elif kind in FIXED:
            value, at = raw(kind, data[at:at + FIXED[kind]]), at + FIXED[kind]
        else:
            raise Lost(f"BSON type {kind} is not known")
        document[key] = value
    return document


def exactly(connection, size):
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise Lost("connection closed")
        data += part
    return data


def b64(data):
    return binascii.b2a_base64(data, newline=False)


def secret(name):
    """The current value of a secret of the cluster."""
    with open(f"{os.environ['DB_SECRETS']}/{name}/current", encoding="utf-8") as file:
        return file.read().strip()


class Client:
    """A connection to the server on `host`, authenticated when there is a user."""

    def __init__(self, host="127.0.0.1", user=None, password=None, timeout=3):
        try:
            self.socket = socket.create_connection((host, PORT), timeout)
        except OSError as error:
            raise Lost(f"{host}: {error}") from error
        if user:
            self._login(user, password)

    def call(self, command, database="admin", **fields):
        """One command; `command` is a dictionary, or a name whose value is 1."""
        body = {**(command if isinstance(command, dict) else {command: 1}), **fields, "$db": database}
        data = b"\0\0\0\0\0" + encode(body)
        try:
            self.socket.sendall(struct.pack("<iiii", len(data) + 16, 1, 0, 2013) + data)
            reply = exactly(self.socket, struct.unpack("<i", exactly(self.socket, 16)[:4])[0] - 16)
        except OSError as error:
            raise Lost(str(error)) from error
        answer = decode(reply, 5)
        if answer.get("ok") != 1:
            raise Refused(answer.get("code", 0), answer.get("errmsg", ""))
        return answer

    def _login(self, user, password):
        import hashlib  # here, because what needs no login is polled, and loading them is dear
        import hmac
        mine = b64(os.urandom(18)).decode()
        first = f"n={user},r={mine}"  # our user names hold neither , nor =
        step = self.call({"saslStart": 1, "mechanism": "SCRAM-SHA-256", "payload": ("n,," + first).encode(),
                          "options": {"skipEmptyExchange": True}})
        given = step["payload"].decode()
        parts = dict(part.split("=", 1) for part in given.split(","))
        if not parts["r"].startswith(mine) or int(parts["i"]) < 4096:
            raise Refused(18, "the server's challenge is not to be trusted")
        salted = hashlib.pbkdf2_hmac("sha256", password.encode(), binascii.a2b_base64(parts["s"]), int(parts["i"]))
        last = f"c=biws,r={parts['r']}"
        text = f"{first},{given},{last}".encode()
        key = hmac.digest(salted, b"Client Key", "sha256")
        signature = hmac.digest(hashlib.sha256(key).digest(), text, "sha256")
        proof = b64(bytes(a ^ b for a, b in zip(key, signature))).decode()
        step = self.call({"saslContinue": 1, "conversationId": step["conversationId"],
                          "payload": f"{last},p={proof}".encode()})
        server = b64(hmac.digest(hmac.digest(salted, b"Server Key", "sha256"), text, "sha256"))
        if step["payload"] != b"v=" + server or not step["done"]:
            raise Refused(18, "the server does not know the password")
