"""A client of Couchbase's REST API, as small as polls want it: HTTP/1.0, one request per connection.

Invariant: a request has the server's answer, or raises `Lost`: then it may have happened or not, and the caller reads again.
"""
import _socket  # `socket` and `json` would be a half of a poll's cost
import binascii
import os
from _json import make_scanner


class Lost(Exception):
    """The server did not answer."""


class Refused(Exception):
    """The server's answer is an error; `status` is HTTP's."""

    def __init__(self, status, text):
        super().__init__(f"Couchbase answers {status}: {text[:300]}")
        self.status, self.text = status, text


class Decoder:
    strict, object_hook, object_pairs_hook, memo = False, None, None, {}
    parse_float, parse_int, parse_constant = float, int, float


def decode(text):
    """JSON as values; a text that is none, as it is (Couchbase answers some errors in plain words)."""
    text = text.strip()
    try:
        return make_scanner(Decoder)(text, 0)[0] if text else None
    except (StopIteration, ValueError):
        return text


def secret(name):
    """The current value of a secret of the cluster."""
    with open(f"{os.environ['DB_SECRETS']}/{name}/current", encoding="utf-8") as file:
        return file.read().strip()


def quote(value):
    return "".join(chr(c) if chr(c) in "-_.~" or (c < 128 and chr(c).isalnum()) else f"%{c:02X}" for c in str(value).encode())


def call(method, path, form=None, host="127.0.0.1", port=8091, login=("backlot", None), timeout=5):
    """The answer's value. `form` is a dictionary; `login` is None, or user and password (None: the cluster's secret)."""
    body = "" if form is None else "&".join(f"{quote(key)}={quote(value)}" for key, value in form.items())
    head = f"{method} {path} HTTP/1.0\r\nHost: {host}:{port}\r\nAccept: application/json\r\n"
    if login:
        pair = f"{login[0]}:{secret('system') if login[1] is None else login[1]}"
        head += f"Authorization: Basic {binascii.b2a_base64(pair.encode(), newline=False).decode()}\r\n"
    if form is not None:
        head += f"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(body)}\r\n"
    data = bytearray()
    try:
        kind, _, _, _, address = _socket.getaddrinfo(host, port, 0, _socket.SOCK_STREAM)[0]
        connection = _socket.socket(kind, _socket.SOCK_STREAM)
        connection.settimeout(timeout)
        connection.connect(address)
        whole = memoryview((head + "\r\n" + body).encode())
        while whole:
            whole = whole[connection.send(whole):]
        while part := connection.recv(65536):
            data += part
        connection.close()
    except OSError as error:
        raise Lost(f"{host}:{port}: {error}") from error
    head, found, body = bytes(data).partition(b"\r\n\r\n")
    if not found:
        raise Lost(f"{host}:{port}: connection closed")
    lines = head.split(b"\r\n")
    for line in lines[1:]:
        if line.lower().startswith(b"content-length:") and len(body) < int(line[15:]):
            raise Lost(f"{host}:{port}: the answer is cut off")
    status = int(lines[0].split()[1])
    if status >= 300:
        raise Refused(status, body.decode())
    return decode(body.decode())
