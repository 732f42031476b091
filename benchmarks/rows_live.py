"""Rows of delivery: publish to the last of N subscribers, a steady stream, replay, and what an idle session weighs."""

import gc
import http.client
import select
import socket
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.certificate import client_context
from benchmarks.protocols import BadAnswer, receive
from benchmarks.samples import Contender, Row, Sample, percentile
from benchmarks.servers import Server
from benchmarks.sockets import HEAD_END, Greeting, attach, close_all, event_stream, has_more, read_some, websocket
from benchmarks.sqlite_limit import SqliteLimit
from benchmarks.work import AFTER, BEFORE

NODE_PUBLISH, NCHAN_PUBLISH = "/v1/streams/fan/packets", "/pub/fan"
NODE_LIVE, NCHAN_LIVE = "/v1/live?stream=fan", "/sub/fan"
FRAME_BYTES = 1 << 14
PAUSE_S = 0.02
SILENCE_S = 20.0
SETTLE_S = 2.0
STEADY_RATE = 1000
STEADY_SUBSCRIBERS = 100
STEADY_PUBLISHERS = 64
PRELOAD_BATCH = 1000
MARK, MARK_DIGITS = b"#@#", 12
"""What no frame head, hash or cursor holds, and a number behind it."""


class Publisher:
    """One keep-alive connection that posts marked packets and doesn't wait for the answers."""

    def __init__(self, port: int, path: str, first: int = 0, step: int = 1) -> None:
        """The marks' numbers begin with `first`."""
        self.socket = socket.create_connection(("127.0.0.1", port), SILENCE_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
        self._is_native = path.endswith("/packets")
        self._number, self._step = first, step

    def publish(self) -> bytes:
        """Sends a packet; its mark, which no other packet's text holds."""
        mark = b"%b%0*d" % (MARK, MARK_DIGITS, self._number)
        self._number += self._step
        data = BEFORE + b"1" + AFTER[:-2] + mark + b'"}'
        body = b'{"data":%b}' % data if self._is_native else data
        self.socket.sendall(self._head.encode() + b"%d\r\n\r\n%b" % (len(body), body))
        return mark


class Audience:
    """All subscribers on one epoll."""

    def __init__(
        self, server: Server, count: int, greeting: Callable[[int], Greeting], *, is_tls: bool = False
    ) -> None:  # fmt: skip
        context = client_context(server.certificate) if is_tls else None
        self.connections = attach(server.tls_port if is_tls else server.port, count, greeting, context)
        self._tails: dict[int, bytes] = {}
        self.poll = select.epoll()
        for connection in self.connections:
            connection.setblocking(False)
            self.poll.register(connection.fileno(), select.EPOLLIN)
        self._by_descriptor = {connection.fileno(): connection for connection in self.connections}

    def wait_for(self, mark: bytes, publisher: Publisher) -> tuple[float, float]:
        """When the first and the last one had the packet. Raises BadAnswer."""
        missing, first = len(self.connections), 0.0
        own = publisher.socket.fileno()
        while missing:
            events = self.poll.poll(SILENCE_S)
            if not events:
                raise BadAnswer(f"{missing} of {len(self.connections)} subscribers got nothing for {SILENCE_S:.0f} s")
            for descriptor, _ in events:
                if descriptor == own:
                    check_answer(receive(publisher.socket))
                    continue
                if self._has_come(descriptor, mark):
                    first = first or time.perf_counter()
                    missing -= 1
        return first, time.perf_counter()

    def _has_come(self, descriptor: int, mark: bytes) -> bool:
        connection, is_found = self._by_descriptor[descriptor], False
        while True:
            data = read_some(connection, FRAME_BYTES)
            if data is not None and (mark in data or self._is_in_two_parts(descriptor, data, mark)):
                is_found = True
            if not has_more(connection):
                return is_found

    def _is_in_two_parts(self, descriptor: int, data: bytes, mark: bytes) -> bool:
        """A packet may arrive in pieces. Raises BadAnswer for an end."""
        if not data:
            raise BadAnswer("the server hung up on a subscriber")
        whole = self._tails.pop(descriptor, b"") + data
        if mark in whole:
            return True
        self._tails[descriptor] = whole[-len(mark) :]
        return False

    def close(self) -> None:
        """Hangs up."""
        self.poll.close()
        close_all(self.connections)


def check_answer(said: bytes) -> None:
    """Raises BadAnswer unless the packet was taken. (An answer is small: it comes in one piece.)"""
    if said.startswith(b"HTTP/1.1") and not said.startswith((b"HTTP/1.1 201", b"HTTP/1.1 202", b"HTTP/1.1 200")):
        raise BadAnswer(said[:500].decode("latin-1"))


def fan_out(
    server: Server, publish: str, greeting: Callable[[int], Greeting], count: int, seconds: float, *,
    is_tls: bool = False,
) -> Sample:  # fmt: skip
    """One packet after the other, each sent when the last subscriber had the one before. `is_tls`: the subscribers are
    encrypted; the publisher never is."""
    audience = Audience(server, count, greeting, is_tls=is_tls)
    publisher = Publisher(server.port, publish)
    audience.poll.register(publisher.socket.fileno(), select.EPOLLIN)
    waits: list[float] = []
    firsts: list[float] = []
    busy = server_busy = 0.0
    gc.disable()
    try:
        began = time.perf_counter()
        while not waits or time.perf_counter() - began < seconds:
            cpu_before, server_clock, sent = time.process_time(), server.cpu_clock(), time.perf_counter()
            first, last = audience.wait_for(publisher.publish(), publisher)
            waits.append(last - sent)
            firsts.append(first - sent)
            busy += time.process_time() - cpu_before
            server_busy += server_clock.share() * (last - sent)
            time.sleep(PAUSE_S)
    finally:
        gc.enable()
        publisher.socket.close()
        audience.close()
    ordered = sorted(waits)
    values = {"p50_ms": percentile(ordered, 0.5) * 1e3, "p99_ms": percentile(ordered, 0.99) * 1e3}
    note = f"first subscriber after {statistics.median(firsts) * 1e3:.2f} ms; {len(waits)} packets"
    return Sample(values, busy / sum(waits), server_busy / sum(waits), 0, note)  # type: ignore[arg-type]


def steady(server: Server, publish: str, greeting: Callable[[int], Greeting], seconds: float) -> Sample:
    """So many packets a second, on time whatever happens; every subscriber's wait for every packet counts.

    The packets go over many connections in turn, because those of one are answered one after the other.
    """
    audience = Audience(server, STEADY_SUBSCRIBERS, greeting)
    publishers = [Publisher(server.port, publish, number, STEADY_PUBLISHERS) for number in range(STEADY_PUBLISHERS)]
    by_descriptor = {one.fileno(): one for one in audience.connections}
    answering = {one.socket.fileno(): one.socket for one in publishers}
    for descriptor in answering:
        audience.poll.register(descriptor, select.EPOLLIN)
    tails: dict[int, bytes] = {}
    waits: list[float] = []
    due: list[float] = []
    total = int(seconds * STEADY_RATE)
    server_clock, cpu_before, began = server.cpu_clock(), time.process_time(), time.perf_counter()
    gc.disable()
    try:
        while len(waits) < total * STEADY_SUBSCRIBERS:
            now = time.perf_counter()
            while len(due) < total and began + len(due) / STEADY_RATE <= now:
                publishers[len(due) % STEADY_PUBLISHERS].publish()
                due.append(began + len(due) / STEADY_RATE)
            pause = began + len(due) / STEADY_RATE - now if len(due) < total else SILENCE_S
            events = audience.poll.poll(max(pause, 0.0))
            if not events and len(due) == total:
                raise BadAnswer("packets are missing")
            for descriptor, _ in events:
                if descriptor in answering:
                    check_answer(receive(answering[descriptor]))
                    continue
                data = by_descriptor[descriptor].recv(FRAME_BYTES)
                tails[descriptor] = note_arrivals(tails.get(descriptor, b"") + data, due, waits)
        elapsed = time.perf_counter() - began
        generator_share, server_share = (time.process_time() - cpu_before) / elapsed, server_clock.share()
    finally:
        gc.enable()
        for publisher in publishers:
            publisher.socket.close()
        audience.close()
    waits.sort()
    values = {"p50_ms": percentile(waits, 0.5) * 1e3, "p99_ms": percentile(waits, 0.99) * 1e3}
    return Sample(values, generator_share, server_share, 0, f"{total} packets")  # type: ignore[arg-type]


def note_arrivals(data: bytes, due: list[float], waits: list[float]) -> bytes:
    """Finds the marks in what a subscriber got; what is left of a mark that isn't whole yet."""
    now, at, size = time.perf_counter(), 0, len(MARK) + MARK_DIGITS
    while (found := data.find(MARK, at)) >= 0 and found + size <= len(data):
        waits.append(now - due[int(data[found + len(MARK) : found + size])])
        at = found + size
    return data[max(at, len(data) - size + 1) :]


def preload(node: Server, stream: str, count: int) -> None:
    """Fills a stream. Raises BadAnswer."""
    connection = http.client.HTTPConnection("127.0.0.1", node.port, timeout=60)
    packet = b'{"data":%b1%b}' % (BEFORE, AFTER)
    for first in range(0, count, PRELOAD_BATCH):
        body = b"[" + b",".join([packet] * min(PRELOAD_BATCH, count - first)) + b"]"
        connection.request("POST", f"/v1/streams/{stream}/packets", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 201:
            raise BadAnswer(answer.read()[:500].decode())
        answer.read()
    connection.close()


def replay(node: Server, stream: str, count: int) -> Sample:
    """From the beginning to one WebSocket subscriber; counts whole frames."""
    connection = socket.create_connection(("127.0.0.1", node.port), SILENCE_S)
    hello, _ = websocket(f"/v1/live?stream={stream}&from=beginning")
    server_clock, cpu_before, began = node.cpu_clock(), time.process_time(), time.perf_counter()
    connection.sendall(hello)
    data = b""
    while HEAD_END not in data:
        data += receive(connection)
    data = data.partition(HEAD_END)[2]
    packets = 0
    while True:
        found, used = count_frames(data)
        packets += found
        if packets >= count:
            break
        data = data[used:] + receive(connection)
    elapsed = time.perf_counter() - began
    share, server_share = (time.process_time() - cpu_before) / elapsed, server_clock.share()
    connection.close()
    return Sample({"rate": packets / elapsed}, share, server_share, 0, f"{packets} packets")


def count_frames(data: bytes) -> tuple[int, int]:
    """Packet frames that are whole, and the bytes of all whole frames."""
    packets = at = 0
    end = len(data)
    while at + 4 <= end:
        size, head = data[at + 1], 2
        if size == 126:
            size, head = int.from_bytes(data[at + 2 : at + 4], "big"), 4
        elif size == 127:
            size, head = int.from_bytes(data[at + 2 : at + 10], "big"), 10
        if at + head + size > end:
            break
        packets += data.find(b'"packet"', at, at + head + 40) >= 0
        at += head + size
    return packets, at


def weigh_idle(
    start: Callable[[Path], Server], directory: Path, greeting: Callable[[int], Greeting], count: int
) -> Sample:
    """Resident memory of a fresh server with sessions, less that without them, for each. They get nothing."""
    server = start(directory)
    try:
        close_all(attach(server.port, 1, greeting))
        time.sleep(SETTLE_S)
        before = server.resident_kib()
        connections = attach(server.port, count, greeting)
        time.sleep(SETTLE_S)
        after = server.resident_kib()
        close_all(connections)
    finally:
        server.stop()
    return Sample({"kib": (after - before) / count}, note=f"{count} sessions")


def fan_out_rows(node: Server, nchan: Server | None, counts: list[int]) -> list[Row]:
    """Publish to the last of N, and a steady stream to 100."""

    def ours(_: int) -> Greeting:
        return websocket(NODE_LIVE, b'"subscribed"')

    def theirs(_: int) -> Greeting:
        return websocket(NCHAN_LIVE)

    rows = []
    for count in counts:
        run = [Contender(node.name, lambda s, n=count: fan_out(node, NODE_PUBLISH, ours, n, s))]  # type: ignore[misc]
        if nchan is not None:
            run.append(Contender(nchan.name, lambda s, n=count: fan_out(nchan, NCHAN_PUBLISH, theirs, n, s), False))  # type: ignore[misc]
        rows.append(Row("fanout", f"publish to the last of {count:,} WebSocket subscribers", "p50_ms", tuple(run),
                        "from sending the request to the last subscriber's read"))  # fmt: skip
    for count in counts:
        tls, clear = (
            Contender(name, lambda s, n=count, is_tls=is_tls: fan_out(node, NODE_PUBLISH, ours, n, s, is_tls=is_tls))  # type: ignore[misc]
            for name, is_tls in ((f"{node.name}, TLS", True), (f"{node.name}, clear text", False))
        )
        rows.append(Row("fanout", f"publish to the last of {count:,} WebSocket subscribers, TLS", "p50_ms", (tls, clear),
                        "beside clear text; to reach: at most 3 times as long (ratio 0.33)"))  # fmt: skip
    run = [Contender(node.name, lambda s: steady(node, NODE_PUBLISH, ours, s))]
    if nchan is not None:
        run.append(Contender(nchan.name, lambda s: steady(nchan, NCHAN_PUBLISH, theirs, s), False))
    title = f"{STEADY_SUBSCRIBERS} subscribers, {STEADY_RATE:,} packets/s: publish to delivery"
    rows.append(Row("fanout", title, "p50_ms", tuple(run), "from when a packet was due to each subscriber's read"))
    return rows


def replay_row(node: Server, limit: SqliteLimit | None, count: int) -> Row:
    """The stream is filled when the row is made."""
    preload(node, "replay", count)
    run = [Contender(node.name, lambda _: replay(node, "replay", count))]
    if limit is not None:
        run.append(Contender("SQLite alone, reading the log", lambda _: limit.read()))
    return Row("replay", f"replay of {count:,} packets to one WebSocket subscriber", "rate", tuple(run))


def session_rows(starters: dict[str, Callable[[Path], Server]], directory: Path, count: int) -> list[Row]:
    """WebSocket and SSE sessions; `starters` by name, those of nchan without a disk."""
    numbers = iter(range(1_000_000))
    rows = []
    for kind, greet in (("WebSocket", websocket), ("SSE", event_stream)):
        run = []
        for name, start in starters.items():
            path = NODE_LIVE if name == "overlayd" else NCHAN_LIVE

            def weigh(_: float, start: Callable[[Path], Server] = start, path: str = path,
                      greet: Callable[[str], Greeting] = greet) -> Sample:  # fmt: skip
                return weigh_idle(start, directory / f"idle-{next(numbers)}", lambda _: greet(path), count)

            run.append(Contender(name, weigh, name == "overlayd"))
        rows.append(
            Row("sessions", f"an idle {kind} session", "kib", tuple(run), "resident memory, without the kernel's")
        )
    return rows
