"""Publishing over HTTP: two nodes on one machine, one with the publish lane and one with everything on Quart, take
the same work in turn. Prints rates, latencies and the ratio; the load generator runs beside them, on the same
processors, and says how busy it was.

Run: python3 -m benchmarks.publish [--seconds 3] [--rounds 2] [--only TEXT] [--quiet]
"""

import argparse
import os
import re
import select
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from overlayd.model.clock import Entropy

DATA = b'{"station":"weather-001","t":21.5,"h":48,"p":1013.2,"note":"' + b"x" * 150 + b'"}'
JSON, NDJSON = "application/json", "application/x-ndjson"
BATCH = 100
ENTROPY = Entropy()
WARM_UP_S = 0.3


def packet(with_id: bool) -> bytes:
    """One packet object; ids are random, as producers make them."""
    if with_id:
        return b'{"id":"%b","data":%b}' % (ENTROPY.draw(16).hex().encode(), DATA)
    return b'{"data":%b}' % DATA


def request_maker(body: Callable[[], bytes], content_type: str) -> Callable[[], bytes]:
    """Whole requests with such bodies."""
    head = (
        f"POST /v1/streams/bench/packets HTTP/1.1\r\nHost: localhost\r\nUser-Agent: bench\r\nAccept: */*\r\n"
        f"Content-Type: {content_type}\r\nContent-Length: "
    ).encode()

    def make() -> bytes:
        content = body()
        return head + b"%d\r\n\r\n" % len(content) + content

    return make


def single(with_id: bool) -> Callable[[], bytes]:
    """Requests of one packet."""
    return request_maker(lambda: packet(with_id), JSON)


def array(with_id: bool) -> Callable[[], bytes]:
    """Requests with an array of packets."""
    return request_maker(lambda: b"[" + b",".join(packet(with_id) for _ in range(BATCH)) + b"]", JSON)


def lines(with_id: bool) -> Callable[[], bytes]:
    """Requests with a packet a line."""
    return request_maker(lambda: b"\n".join(packet(with_id) for _ in range(BATCH)), NDJSON)


CASES: tuple[tuple[str, int, int, Callable[[], bytes]], ...] = (
    ("single, 1 client", 1, 1, single(False)),
    ("single with id, 1 client", 1, 1, single(True)),
    ("single, 16 clients", 16, 1, single(False)),
    ("single with id, 16 clients", 16, 1, single(True)),
    ("single, 64 clients", 64, 1, single(False)),
    ("single with id, 64 clients", 64, 1, single(True)),
    ("array of 100, 4 clients", 4, BATCH, array(False)),
    ("array of 100 with ids, 4 clients", 4, BATCH, array(True)),
    ("NDJSON of 100, 4 clients", 4, BATCH, lines(False)),
    ("NDJSON of 100 with ids, 4 clients", 4, BATCH, lines(True)),
)
"""Name, clients, packets in a request, requests."""


class Measured:
    """What one run showed."""

    def __init__(self, packets: int, seconds: float, latencies_s: list[float], generator_share: float) -> None:
        self.rate = packets / seconds
        self.cpu_us = 0.0
        ordered = sorted(latencies_s)
        self.p50_ms = ordered[len(ordered) // 2] * 1e3
        self.p99_ms = ordered[int(len(ordered) * 0.99)] * 1e3
        self.generator_share = generator_share


class Client:
    """One keep-alive connection with one request in flight."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sent_at = 0.0
        self._buffer = b""
        self._wanted = 0

    def send(self, request: bytes) -> None:
        self.sent_at = time.perf_counter()
        self.socket.sendall(request)

    def is_answered(self) -> bool:
        """Reads; whether the answer is whole. Raises RuntimeError for one that isn't 201."""
        data = self.socket.recv(1 << 18)
        self._buffer = self._buffer + data if self._buffer else data
        if not self._wanted:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0 and data:
                return False
            if not self._buffer.startswith(b"HTTP/1.1 201"):
                raise RuntimeError(self._buffer[:2000].decode("latin-1"))
            at = self._buffer.find(b"content-length: ") + 16
            self._wanted = end + 4 + int(self._buffer[at : self._buffer.find(b"\r", at)])
        if len(self._buffer) < self._wanted:
            return False
        self._buffer, self._wanted = b"", 0
        return True


def measure(port: int, clients: int, packets: int, make: Callable[[], bytes], seconds: float) -> Measured:
    """Keeps every client busy for so long."""
    poll = select.epoll()
    open_clients = {client.socket.fileno(): client for client in (Client(port) for _ in range(clients))}
    for number, client in open_clients.items():
        poll.register(number, select.EPOLLIN)
        client.send(make())
    latencies: list[float] = []
    count, began, busy = 0, time.perf_counter(), 0.0
    ending, counting_from = began + WARM_UP_S + seconds, began + WARM_UP_S
    now = began
    while now < ending:
        events = poll.poll()
        woke = time.perf_counter()
        for number, _ in events:
            client = open_clients[number]
            if client.is_answered():
                now = time.perf_counter()
                if now >= counting_from:
                    count += 1
                    latencies.append(now - client.sent_at)
                client.send(make())
        busy += time.perf_counter() - woke
    for client in open_clients.values():
        client.socket.close()
    poll.close()
    return Measured(count * packets, now - counting_from, latencies, busy / (now - began))


class Node:
    """A node as a child process, on a directory of its own."""

    def __init__(self, directory: Path, *, is_fast: bool, is_quiet: bool) -> None:
        directory.mkdir()
        config = directory / "config.toml"
        level = 'level = "warning"\naccess = false\n' if is_quiet else ""
        config.write_text(
            f'[listen]\ntcp = ["127.0.0.1:0"]\nfast_lanes = {str(is_fast).lower()}\n'
            f'[storage]\ndir = "{directory}/data"\n[log]\n{level}'
        )
        self._log = (directory / "log").open("w")
        self._process = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-m", "overlayd", "run", "--config", str(config)], stdout=subprocess.PIPE,
            stderr=self._log, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        said = self._process.stdout.readline()
        found = re.search(r"listening on http://[^:]+:(\d+)", said)
        if found is None:
            raise RuntimeError(f"the node didn't come up: {said} {(directory / 'log').read_text()[-2000:]}")
        self.port = int(found[1])

    def cpu_s(self) -> float:
        """Processor time that the process has used."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(30)
        self._log.close()


def run(node: Node, clients: int, packets: int, make: Callable[[], bytes], seconds: float) -> Measured:
    """One measurement, with the node's processor time for each request."""
    before = node.cpu_s()
    measured = measure(node.port, clients, packets, make, seconds)
    measured.cpu_us = (node.cpu_s() - before) / (measured.rate / packets * (seconds + WARM_UP_S)) * 1e6
    return measured


def compare(nodes: tuple[Node, Node], rounds: int, seconds: float, only: str) -> None:
    """One line for each kind of work: medians over the rounds."""
    side = f"{'/s':>9} {'p50 ms':>7} {'p99 ms':>7} {'cpu us':>7}"
    print(f"{'':34} {'lane':>33} {'Quart':>33}\n{'':34} {side} {side} {'ratio':>6} {'cpu':>5} busy")
    for name, clients, packets, make in CASES:
        if only not in name:
            continue
        runs = [[run(node, clients, packets, make, seconds) for node in nodes] for _ in range(rounds)]
        sides = [[pair[at] for pair in runs] for at in (0, 1)]
        ratio = statistics.median(fast.rate / slow.rate for fast, slow in runs)
        saved = statistics.median(slow.cpu_us / fast.cpu_us for fast, slow in runs)
        cells = " ".join(
            f"{statistics.median(one.rate for one in side):9,.0f} {statistics.median(one.p50_ms for one in side):7.2f} "
            f"{statistics.median(one.p99_ms for one in side):7.2f} "
            f"{statistics.median(one.cpu_us for one in side):7.0f}"
            for side in sides
        )
        busy = max(one.generator_share for one in sides[0])
        print(f"{name:34} {cells} {ratio:6.2f} {saved:5.2f} {busy:4.0%}", flush=True)


def main() -> None:
    """Reads the command line and runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", default="", help="work whose name holds this text")
    parser.add_argument("--quiet", action="store_true", help="without the access log")
    given = parser.parse_args()
    print(f"{os.cpu_count()} processors, shared with the load generator; packets/s, durable (synchronous=FULL)")
    with tempfile.TemporaryDirectory() as directory:
        fast = Node(Path(directory, "fast"), is_fast=True, is_quiet=given.quiet)
        slow = Node(Path(directory, "slow"), is_fast=False, is_quiet=given.quiet)
        try:
            compare((fast, slow), given.rounds, given.seconds, given.only)
        finally:
            fast.stop()
            slow.stop()


if __name__ == "__main__":
    main()
