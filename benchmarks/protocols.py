"""What clients of each server say: requests as bytes, and how to tell that they have been answered.

A conversation belongs to one connection. It has one request (or one batch) in flight.
"""

import json
import re
import socket
import struct
from typing import Protocol

from benchmarks.work import Maker, Work, stream_name

HANDSHAKE_TIMEOUT_S = 10.0
RECEIVE_BYTES = 1 << 16
"""Larger buffers come fresh from the system each time, which costs more than the read."""


class BadAnswer(Exception):
    """A server said something else than that it has the packets."""


class Conversation(Protocol):
    """One connection's side of a protocol."""

    def greet(self, connection: socket.socket) -> None:
        """What has to be said before the first request. The socket blocks."""

    def request(self) -> bytes:
        """The next request, with every packet of a batch."""

    def is_answered(self, data: bytes) -> bool:
        """Takes what came in; whether the request is answered now. Raises BadAnswer."""


class HttpConversation:
    """POST of packets to a node, or of payloads to nchan."""

    def __init__(self, work: Work, path: str) -> None:
        """`path` has a %s for the name of the stream. The body is the payload alone unless it ends in /packets."""
        self._maker = Maker(work)
        self._is_native = path.endswith("/packets")
        self._heads = [
            f"POST {path % stream_name(work, number)} HTTP/1.1\r\nHost: localhost\r\n"
            f"Content-Type: {work.content_type}\r\nContent-Length: ".encode()
            for number in range(work.streams)
        ]
        self._buffer, self._wanted = b"", 0

    def greet(self, connection: socket.socket) -> None:
        pass

    def request(self) -> bytes:
        body = self._maker.body() if self._is_native else self._maker.data()
        return b"%b%d\r\n\r\n%b" % (self._heads[self._maker.stream()], len(body), body)

    def is_answered(self, data: bytes) -> bool:
        self._buffer = self._buffer + data if self._buffer else data
        if not self._wanted:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return False
            if not self._buffer.startswith((b"HTTP/1.1 200", b"HTTP/1.1 201", b"HTTP/1.1 202")):
                raise BadAnswer(self._buffer[:500].decode("latin-1"))
            length = re.search(rb"(?i)content-length: *(\d+)", self._buffer[:end])
            self._wanted = end + 4 + (int(length[1]) if length else 0)
        if len(self._buffer) < self._wanted:
            return False
        self._buffer, self._wanted = b"", 0
        return True


class NatsConversation:
    """JetStream publishes, acknowledged into an inbox. Arrays are atomic batches, lines are publishes at once."""

    def __init__(self, work: Work, inbox: str, stream: str) -> None:
        """`stream` takes the subjects `<stream>.>`; the streams of the work are its subjects."""
        self._work, self._maker = work, Maker(work)
        self._inbox, self._stream = inbox.encode(), stream
        self._waiting = 0
        self._buffer = b""

    def greet(self, connection: socket.socket) -> None:
        options = b'CONNECT {"verbose":false,"pedantic":false,"headers":true,"no_responders":true,"lang":"raw"}\r\n'
        connection.sendall(options + b"SUB %b 1\r\nPING\r\n" % self._inbox)
        said = b""
        while b"PONG\r\n" not in said:
            said += receive(connection)

    def request(self) -> bytes:
        subject = f"{self._stream}.{stream_name(self._work, self._maker.stream())}".encode()
        if self._work.form == "array":
            self._waiting = 1
            batch, size = self._maker.packet_id(), self._work.batch
            return b"".join(self._publish(subject, batch, number, number == size) for number in range(1, size + 1))
        self._waiting = self._work.batch
        return b"".join(self._publish(subject, b"", 0, True) for _ in range(self._work.batch))

    def _publish(self, subject: bytes, batch: bytes, number: int, is_answered: bool) -> bytes:
        headers = b"Nats-Msg-Id: %b\r\n" % self._maker.packet_id() if self._work.has_ids else b""
        if batch:
            headers += b"Nats-Batch-Id: %b\r\nNats-Batch-Sequence: %d\r\n" % (batch, number)
            headers += b"Nats-Batch-Commit: 1\r\n" if is_answered else b""
        data, reply = self._maker.data(), self._inbox if is_answered else b""
        if not headers:
            return b"PUB %b %b %d\r\n%b\r\n" % (subject, reply, len(data), data)
        headers = b"NATS/1.0\r\n" + headers + b"\r\n"
        return b"HPUB %b %b %d %d\r\n%b%b\r\n" % (
            subject, reply, len(headers), len(headers) + len(data), headers, data,
        )  # fmt: skip

    def is_answered(self, data: bytes) -> bool:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n")) >= 0:
            line = self._buffer[:end]
            if line.startswith((b"MSG ", b"HMSG ")):
                size = int(line.rpartition(b" ")[2])
                if len(self._buffer) < end + 4 + size:
                    return False
                said = self._buffer[end + 2 : end + 2 + size]
                if b'"error"' in said or b'"seq"' not in said:
                    raise BadAnswer(said.decode("latin-1"))
                self._waiting -= 1
                end += 2 + size
            elif line.startswith(b"-ERR"):
                raise BadAnswer(line.decode("latin-1"))
            self._buffer = self._buffer[end + 2 :]
        return self._waiting == 0


def create_nats_stream(port: int, stream: str) -> None:
    """A JetStream stream of files for the subjects `<stream>.>`. Raises BadAnswer."""
    config = {
        "name": stream,
        "subjects": [f"{stream}.>"],
        "storage": "file",
        "allow_atomic": True,
        "max_bytes": 4 << 30,
    }
    body = json.dumps(config).encode()
    with socket.create_connection(("127.0.0.1", port), HANDSHAKE_TIMEOUT_S) as connection:
        connection.sendall(
            b'CONNECT {"verbose":false,"headers":true}\r\nSUB made 1\r\n'
            b"PUB $JS.API.STREAM.CREATE.%b made %d\r\n%b\r\n" % (stream.encode(), len(body), body)
        )
        said = b""
        while b"MSG made" not in said or not said.endswith(b"}\r\n"):
            said += receive(connection)
    if b'"error"' in said:
        raise BadAnswer(said.decode("latin-1"))


class MqttConversation:
    """MQTT 3.1.1 publishes with QoS 1; a batch is that many at once."""

    def __init__(self, work: Work, name: str) -> None:
        self._work, self._maker, self._name = work, Maker(work), name
        self._number = self._waiting = 0
        self._buffer = b""

    def greet(self, connection: socket.socket) -> None:
        connection.sendall(mqtt_connect(self._name))
        if receive(connection)[:4] != b"\x20\x02\x00\x00":
            raise BadAnswer("the MQTT server refuses the connection")

    def request(self) -> bytes:
        topic = stream_name(self._work, self._maker.stream()).encode()
        self._waiting = self._work.batch
        parts = []
        for _ in range(self._work.batch):
            self._number = self._number % 65_535 + 1
            content = struct.pack("!H", len(topic)) + topic + struct.pack("!H", self._number) + self._maker.data()
            parts.append(b"\x32" + mqtt_length(len(content)) + content)
        return b"".join(parts)

    def is_answered(self, data: bytes) -> bool:
        self._buffer += data
        while len(self._buffer) >= 4:
            if self._buffer[:2] != b"\x40\x02":
                raise BadAnswer(f"not a PUBACK: {self._buffer[:16].hex()}")
            self._waiting -= 1
            self._buffer = self._buffer[4:]
        return self._waiting == 0


def mqtt_length(size: int) -> bytes:
    """The remaining length of an MQTT packet."""
    encoded = bytearray()
    while True:
        size, digit = size >> 7, size & 127
        encoded.append(digit | (128 if size else 0))
        if not size:
            return bytes(encoded)


def mqtt_connect(name: str) -> bytes:
    """CONNECT with a clean session and without keep-alive."""
    client = name.encode()
    content = b"\x00\x04MQTT\x04\x02\x00\x00" + struct.pack("!H", len(client)) + client
    return b"\x10" + mqtt_length(len(content)) + content


def mqtt_subscribe(topic: str) -> bytes:
    """SUBSCRIBE to one topic with QoS 1."""
    name = topic.encode()
    content = b"\x00\x01" + struct.pack("!H", len(name)) + name + b"\x01"
    return b"\x82" + mqtt_length(len(content)) + content


def receive(connection: socket.socket) -> bytes:
    """What has come in. Raises BadAnswer when the server hung up."""
    data = connection.recv(RECEIVE_BYTES)
    if not data:
        raise BadAnswer("the server closed the connection")
    return data
