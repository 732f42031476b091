"""Clients that a node must bear while others publish: they don't read, trickle, publish without pause, list, filter and
upload. A process of its own, so that they take none of the measuring one's time; it ends with its standard input.

Run: python3 -m benchmarks.disturb PORT crowd|readers
"""

import json
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from benchmarks.work import AFTER, BEFORE

DEAF, TRICKLING = 10, 10
LISTING, READING = 32, 8
UPLOAD_BYTES = 50 << 20
PIPELINED = 64
DATA = BEFORE + b"100000" + AFTER
PACKET = b'{"data":%b}' % DATA


def post(stream: str, body: bytes, kind: str = "application/json") -> bytes:
    """A publish request."""
    head = f"POST /v1/streams/{stream}/packets HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n"
    return head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body


def connect(port: int) -> socket.socket:
    """A connection that keeps little of what it doesn't read."""
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    return connection


def publish_deaf(port: int) -> None:
    """Sends requests for ever and reads no answer; when the node cuts it off, it comes again."""
    while True:
        with suppress(OSError), connect(port) as connection:
            while True:
                connection.sendall(post("deaf", PACKET))


def trickle(port: int) -> None:
    """A byte a second of a request that never becomes whole."""
    while True:
        with suppress(OSError), connect(port) as connection:
            for byte in post("trickle", PACKET):
                connection.sendall(bytes((byte,)))
                time.sleep(1)


def publish_greedily(port: int) -> None:
    """One connection that publishes as fast as it is let, many requests at a time, and reads every answer."""
    requests = post("greedy", PACKET) * PIPELINED
    with socket.create_connection(("127.0.0.1", port)) as connection:
        while True:
            connection.sendall(requests)
            answered = 0
            while answered < PIPELINED:
                data = connection.recv(1 << 18)
                if not data:
                    return
                answered += data.count(b"HTTP/1.1 2")


def ask(port: int, target: str) -> None:
    """The same GET over and over, each answer read before the next request."""
    request = f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    while True:
        with suppress(OSError, ValueError), socket.create_connection(("127.0.0.1", port)) as connection:
            while True:
                connection.sendall(request)
                read_answer(connection)


def read_answer(connection: socket.socket) -> None:
    """Reads one answer with a length. Raises OSError, ValueError."""
    data = b""
    while (end := data.find(b"\r\n\r\n")) < 0:
        data += _more(connection)
    head = data[:end].lower()
    wanted = int(head.partition(b"content-length: ")[2].partition(b"\r")[0]) - (len(data) - end - 4)
    while wanted > 0:
        wanted -= len(_more(connection))


def _more(connection: socket.socket) -> bytes:
    data = connection.recv(1 << 18)
    if not data:
        raise OSError("the node closed the connection")
    return data


def upload(port: int) -> None:
    """50 MB of NDJSON, again and again."""
    line = PACKET + b"\n"
    body = line * (UPLOAD_BYTES // len(line))
    while True:
        with suppress(OSError, ValueError), socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(post("upload", body, "application/x-ndjson"))
            read_answer(connection)


READ = "/v1/read?stream=*&from=beginning&limit=1000&filter=data.temperature%20%3E%2060.0"
CROWDS: dict[str, list[tuple[Callable[..., None], int, tuple[str, ...]]]] = {
    "crowd": [(publish_deaf, DEAF, ()), (trickle, TRICKLING, ()), (publish_greedily, 1, ())],
    "readers": [(ask, LISTING, ("/v1/streams",)), (ask, READING, (READ,)), (upload, 1, ())],
}
"""What does it, how many of them, and on what."""


def main() -> None:
    """Starts all of a crowd and says so."""
    port, kind = int(sys.argv[1]), sys.argv[2]
    for work, count, more in CROWDS[kind]:
        for _ in range(count):
            threading.Thread(target=work, args=(port, *more), daemon=True).start()
    print(json.dumps({"clients": sum(count for _, count, _ in CROWDS[kind])}), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
