"""What live sessions cost the node alone: processor time of each delivery, resident memory of each idle session.

Run: .venv/bin/python -m benchmarks.live [--sessions 1000] [--packets 200] [--kind websocket|sse|deflate|gzip] [--replay N]

Processor time is counted in the node's process, in kernel and user mode, so that a busy machine changes little.
"""

import argparse
import http.client
import os
import selectors
import socket
import tempfile
import time
from pathlib import Path

from benchmarks.rows_live import preload
from benchmarks.servers import Server, start_overlayd
from benchmarks.sockets import Greeting, allow_descriptors, attach, close_all, event_stream, websocket
from benchmarks.work import AFTER, BEFORE

SETTLE_S = 1.5
READ_BYTES = 1 << 18
SILENCE_S = 20.0
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
MARK = b"#@#%08d#"


def greeting_of(kind: str, query: str) -> Greeting:
    """How a client of the kind begins."""
    path = f"/v1/live?{query}"
    if kind in ("sse", "gzip"):
        head, is_attached = event_stream(path)
        extra = b"Accept-Encoding: gzip\r\n" if kind == "gzip" else b""
    else:
        head, is_attached = websocket(path)
        extra = b"Sec-WebSocket-Extensions: permessage-deflate\r\n" if kind == "deflate" else b""
    return head[:-2] + extra + b"\r\n", is_attached


def cpu_s(server: Server) -> float:
    """Processor time that the node has used."""
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S


class Audience:
    """All clients on one selector; counts bytes, which costs little."""

    def __init__(self, server: Server, count: int, greeting: Greeting) -> None:
        self.connections = attach(server.port, count, lambda _: greeting)
        self._selector = selectors.EpollSelector()
        for connection in self.connections:
            connection.setblocking(False)
            self._selector.register(connection, selectors.EVENT_READ)

    def drain(self, pause_s: float) -> tuple[int, float]:
        """Reads until nothing came for so long; bytes, and when the last of them came."""
        count, last = 0, time.perf_counter()
        while events := self._selector.select(pause_s):
            for key, _ in events:
                data = key.fileobj.recv(READ_BYTES)  # type: ignore[union-attr]
                if not data:
                    raise SystemExit("the node hung up on a session")
                count += len(data)
            last = time.perf_counter()
        return count, last

    def close(self) -> None:
        self._selector.close()
        close_all(self.connections)


def publish(connection: http.client.HTTPConnection, number: int) -> None:
    """One packet, durable when this returns."""
    body = b'{"data":%b1%b}' % (BEFORE, AFTER[:-2] + MARK % number + b'"}')
    connection.request("POST", "/v1/streams/fan/packets", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    if answer.status != 201:
        raise SystemExit(answer.read()[:500].decode())
    answer.read()


def measure(server: Server, kind: str, sessions: int, packets: int) -> None:
    """Prints memory of each idle session, then processor time of each delivery beside packets that match nobody."""
    time.sleep(SETTLE_S)
    empty_kib = server.resident_kib()
    audience = Audience(server, sessions, greeting_of(kind, "stream=fan"))
    audience.drain(SETTLE_S)
    each_kib = (server.resident_kib() - empty_kib) / sessions
    print(f"{sessions} idle {kind} sessions: {each_kib:.1f} KiB each")
    publisher = http.client.HTTPConnection("127.0.0.1", server.port, timeout=SILENCE_S)
    publish(publisher, 0)
    audience.drain(0.3)
    before, waits, size = cpu_s(server), [], 0
    for number in range(packets):
        began = time.perf_counter()
        publish(publisher, number)
        got, last = audience.drain(0.05)
        waits.append(last - began)
        size += got
    used = cpu_s(server) - before
    waits.sort()
    each_us = used / packets / sessions * 1e6
    print(
        f"{packets} packets to {sessions} {kind} sessions: {each_us:.1f} us of processor time for each delivery, "
        f"{size / packets / sessions:.0f} bytes; publish to last read p50 {waits[len(waits) // 2] * 1e3:.1f} ms"
    )
    print(f"resident afterwards: {(server.resident_kib() - empty_kib) / sessions:.1f} KiB each")
    audience.close()


def measure_replay(server: Server, kind: str, count: int) -> None:
    """Prints how fast one session reads a filled stream from its beginning."""
    preload(server, "replay", count)
    before, began = cpu_s(server), time.perf_counter()
    head, _ = greeting_of(kind, "stream=replay&from=beginning")
    with socket.create_connection(("127.0.0.1", server.port), SILENCE_S) as connection:
        connection.sendall(head)
        found, tail, wanted = 0, b"", b'"offset":'
        while found < count:
            data = tail + connection.recv(READ_BYTES)
            found += data.count(wanted)
            tail = data[len(data) - len(wanted) + 1 :]
    elapsed, used = time.perf_counter() - began, cpu_s(server) - before
    print(f"replay of {count} packets to one {kind} session: {count / elapsed:.0f}/s, {used / count * 1e6:.1f} us each")


def main() -> None:
    """Runs what is asked for on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=1000)
    parser.add_argument("--packets", type=int, default=50)
    parser.add_argument("--kind", choices=("websocket", "sse", "deflate", "gzip"), default="websocket")
    parser.add_argument("--replay", type=int, default=0)
    given = parser.parse_args()
    allow_descriptors(given.sessions)
    with tempfile.TemporaryDirectory() as directory:
        server = start_overlayd(Path(directory) / "node")
        try:
            if given.replay:
                measure_replay(server, given.kind, given.replay)
            else:
                measure(server, given.kind, given.sessions, given.packets)
        finally:
            server.stop()


if __name__ == "__main__":
    main()
