"""A small client of Cassandra's protocol, version 4: one connection, PLAIN login, text results."""
import socket
import struct

QUORUM, LOCAL_ONE = 4, 10


class Refused(Exception):
    """The server's answer to what it does not do."""


class Client:
    def __init__(self, hosts, user, password, timeout=10):
        for number, host in enumerate(hosts):
            try:
                self.socket = socket.create_connection((host, 9042), timeout)
                break
            except OSError:
                if number == len(hosts) - 1:
                    raise
        self.rows = self.socket.makefile("rb")
        if self.call(1, struct.pack(">H", 1) + text("CQL_VERSION") + text("3.0.0"))[0] == 3:
            token = f"\0{user}\0{password}".encode()
            self.call(15, struct.pack(">i", len(token)) + token)

    def call(self, opcode, body):
        self.socket.sendall(struct.pack(">BBhBi", 4, 0, 0, opcode, len(body)) + body)
        head = self.rows.read(9)
        if len(head) < 9:
            raise ConnectionError("the server closed the connection")
        _, _, _, answer, size = struct.unpack(">BBhBi", head)
        body = self.rows.read(size)
        if answer == 0:
            raise Refused(body[6:6 + struct.unpack(">H", body[4:6])[0]].decode())
        return answer, body

    def query(self, statement, *values, consistency=QUORUM):
        """Runs a statement. Rows are lists of bytes, so a SELECT must not have more than 5000 of them."""
        data = statement.encode()
        values = [str(value).encode() if isinstance(value, str) else struct.pack(">i", value) for value in values]
        flags = struct.pack(">HB", consistency, 1) + struct.pack(">H", len(values)) if values else struct.pack(">HB", consistency, 0)
        _, body = self.call(7, struct.pack(">i", len(data)) + data + flags + b"".join(struct.pack(">i", len(v)) + v for v in values))
        kind, flags, columns = struct.unpack(">iii", body[:12]) if len(body) >= 12 else (1, 0, 0)
        if kind != 2:
            return []
        # Of the description of the columns only its length matters: all of them are asked for as plain types.
        place = 12
        for number in range(2 * (flags & 1) + columns * (1 if flags & 1 else 3)):
            place += 2 + struct.unpack(">H", body[place:place + 2])[0]
            place += 2 if number >= 2 * (flags & 1) and (flags & 1 or number % 3 == 2) else 0
        (count,), place, rows = struct.unpack(">i", body[place:place + 4]), place + 4, []
        for _ in range(count):
            row = []
            for _ in range(columns):
                size = struct.unpack(">i", body[place:place + 4])[0]
                row.append(body[place + 4:place + 4 + max(size, 0)])
                place += 4 + max(size, 0)
            rows.append(row)
        return rows


def text(value):
    return struct.pack(">H", len(value)) + value.encode()
