"""A whole edge on real sockets, and a client that sends exactly the bytes it is told to."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import tls_wire
import trio
import trio.testing
from quart import Response, request
from quart_trio import QuartTrio
from replay_stream import ReplayingStream

from overlayd.access import AccessRules, Principal
from overlayd.access.failures import FailureBook
from overlayd.access.gate import Gate
from overlayd.access.settings import AccessSettings
from overlayd.model.audit import ignore_record
from overlayd.model.clock import Entropy, SystemClock
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.net.access_log import RequestLog
from overlayd.net.app import answer, body_reader, create_app, principal_of
from overlayd.net.content import Bodies
from overlayd.net.cors import OriginHeaders, methods_of
from overlayd.net.door import Door, ServeLive
from overlayd.net.exposure import Credentials
from overlayd.net.head import Head
from overlayd.net.lane import NO_LANE, Lane
from overlayd.net.listeners import SOCKET_NAME
from overlayd.net.live_lane import LiveVisit
from overlayd.net.ports import Ports
from overlayd.net.publish_lane import PublishLane
from overlayd.net.server import Admission, RequestIds, serve_connections
from overlayd.net.settings import ListenSettings

LOCAL = ListenSettings(tcp=("127.0.0.1:0",))
GET_HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Answer:
    """One parsed HTTP/1.1 answer."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def __repr__(self) -> str:
        return f"Answer({self.status}, {self.headers}, {self.body[:300]!r})"


class RawClient:
    """A connection that sends raw bytes and reads whole answers."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.buffer = bytearray()

    async def __aenter__(self) -> "RawClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await trio.aclose_forcefully(self.stream)

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def request(
        self, method: str, target: str, body: bytes | None = None, *, host: str = "localhost", **headers: str
    ) -> Answer:
        lines = [f"{method} {target} HTTP/1.1", f"Host: {host}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        await self.send("\r\n".join(lines).encode() + b"\r\n\r\n" + (body or b""))
        return await self.read_answer(is_head=method == "HEAD")

    async def read_answer(self, *, is_head: bool = False) -> Answer:
        while True:
            head = await self._read_until(b"\r\n\r\n")
            lines = head.decode("latin-1").split("\r\n")
            status = int(lines[0].split(" ")[1])
            if status >= 200 or status == 101:
                break
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:] if line)}
        if is_head or status in (204, 304, 101):
            return Answer(status, headers, b"")
        if headers.get("transfer-encoding") == "chunked":
            return Answer(status, headers, await self._read_chunks())
        if "content-length" in headers:
            return Answer(status, headers, await self._read_exactly(int(headers["content-length"])))
        return Answer(status, headers, await self.read_rest())

    async def read_rest(self) -> bytes:
        """Everything up to the connection's end."""
        while await self._more():
            pass
        data, self.buffer = bytes(self.buffer), bytearray()
        return data

    async def is_closed_by_peer(self) -> bool:
        """Whether the connection ends without another byte."""
        try:
            return await self.stream.receive_some(1) == b""
        except trio.BrokenResourceError:
            return True

    async def _more(self) -> bool:
        try:
            data = await self.stream.receive_some(65536)
        except trio.BrokenResourceError:
            return False
        self.buffer += data
        return bool(data)

    async def _read_until(self, mark: bytes) -> bytes:
        while mark not in self.buffer:
            if not await self._more():
                raise EOFError(bytes(self.buffer))
        end = self.buffer.index(mark) + len(mark)
        data = bytes(self.buffer[:end])
        del self.buffer[:end]
        return data

    async def _read_exactly(self, count: int) -> bytes:
        while len(self.buffer) < count:
            if not await self._more():
                raise EOFError(bytes(self.buffer))
        data = bytes(self.buffer[:count])
        del self.buffer[:count]
        return data

    async def _read_chunks(self) -> bytes:
        body = b""
        while True:
            size = int(await self._read_until(b"\r\n"), 16)
            body += await self._read_exactly(size)
            await self._read_exactly(2)
            if size == 0:
                return body


class Edge:
    """A running edge."""

    def __init__(self, urls: list[str], directory: Path, metrics: Metrics, door: Door, stop: trio.Event) -> None:
        self.urls = urls
        self.port = int(urls[0].rsplit(":", 1)[1]) if urls[0].startswith("http") else 0
        self.tls_port = next((int(url.rsplit(":", 1)[1]) for url in urls if url.startswith("https")), 0)
        self.path = directory / SOCKET_NAME
        self.metrics = metrics
        self.door = door
        self.stop = stop
        self.calls: list[str] = []
        self.clients: list[RawClient] = []
        self.ports: Ports
        self.is_unix = False
        """Whether `connect` takes the Unix socket."""

    async def connect(self) -> RawClient:
        if self.is_unix:
            return await self.connect_unix()
        return self._noted(await tls_wire.connect(self.port))

    async def connect_unix(self) -> RawClient:
        return self._noted(await trio.open_unix_socket(self.path))

    async def wait_connections(self, count: int = 0) -> None:
        """Until no more than so many connections are open."""
        await self.wait_until(lambda: self.count("overlayd_net_connections_open") <= count, jump_s=2.5)

    async def wait_until(self, is_so: Callable[[], bool], *, jump_s: float = 0.1) -> None:
        """Polls; on a mock clock each round is a jump."""
        for _ in range(2000):
            if is_so():
                return
            await trio.sleep(jump_s if isinstance(trio.lowlevel.current_clock(), trio.testing.MockClock) else 0.002)
        raise AssertionError("it never came so far")

    async def say(self, raw: bytes) -> Answer:
        """One answer to raw bytes on a connection of their own."""
        async with await self.connect() as client:
            await client.send(raw)
            return await client.read_answer()

    def _noted(self, stream: trio.SocketStream) -> RawClient:
        self.clients.append(RawClient(stream))
        return self.clients[-1]

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


def add_probe_routes(app: QuartTrio, lane: Lane) -> None:
    """Routes that show what a request became."""
    bodies = Bodies(Limits(), lane, Metrics())

    @app.get("/healthz")
    async def healthz() -> Response:
        return answer(b'{"alive":true}')

    @app.route("/echo", methods=["GET", "POST", "PUT"])
    async def echo() -> Response:
        body = bytearray()
        async with lane.step_out():
            while data := await request.body.receive():
                body += data
        seen = {
            "method": request.method, "path": request.path, "query": request.query_string.decode(),
            "headers": {k.lower(): v for k, v in request.headers.items()}, "body": body.decode("latin-1"),
            "principal": principal_of(request).name,
        }  # fmt: skip
        return answer(json.dumps(seen).encode())

    @app.post("/timed")
    async def timed() -> Response:
        with bodies.hold() as hold:
            return answer(await body_reader(request, bodies, 10_000, "body_bytes").read_all(hold))

    @app.post("/refuse")
    async def refuse() -> Response:
        return answer(b"{}", 413)

    @app.get("/big")
    async def big() -> Response:
        return answer(b"x" * int(request.args["bytes"]), content_type="application/octet-stream")

    @app.get("/crash")
    async def crash() -> Response:
        raise RuntimeError("by design")

    @app.get("/hang")
    async def hang() -> Response:
        async with lane.step_out():
            await trio.sleep_forever()
        raise AssertionError

    @app.get("/slow")
    async def slow() -> Response:
        if "hold" in request.args:
            await trio.sleep(float(request.args["seconds"]))
        async with lane.step_out():
            await trio.sleep(float(request.args["seconds"]))
        return answer(b"{}")

    @app.get("/flood")
    async def flood() -> Response:
        async def lines() -> AsyncIterator[bytes]:
            while True:
                yield b"x" * 50_000

        return Response(lines(), content_type="text/plain")

    @app.get("/drip")
    async def drip() -> Response:
        async def lines() -> AsyncIterator[bytes]:
            while True:
                yield b"tick\n"
                await trio.sleep(0.01)

        return Response(lines(), content_type="text/plain")


async def echo_websocket(stream: trio.abc.Stream, head: Head, principal: Principal) -> None:
    """Stands in for the live session: gives back the bytes it got, once."""
    received = await stream.receive_some(65536)
    await stream.send_all(b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + received)
    await stream.aclose()


class SocketsOnly:
    """What is live, served by a function that stands in for it."""

    def __init__(self, serve_websocket: Callable[[trio.abc.Stream, Head, Principal], Awaitable[None]]) -> None:
        self._serve_websocket = serve_websocket

    def takes(self, head: Head) -> bool:
        return False

    async def serve(self, visit: LiveVisit) -> bool:
        assert visit.head is not None
        stream = ReplayingStream(visit.connection, visit.head.raw + visit.connection.take_unread())
        await self._serve_websocket(stream, visit.head, visit.principal)
        return False


def keyless_gate(rules: AccessRules, metrics: Metrics) -> Gate:
    """The gate of a node without credentials."""
    failures = FailureBook(AccessSettings(), metrics, trio.current_time)
    return Gate(rules=rules, schemes=(), failures=failures, audit=ignore_record, clock=SystemClock(), metrics=metrics)


@asynccontextmanager
async def open_edge(
    directory: Path,
    *,
    limits: Limits | None = None,
    settings: ListenSettings = LOCAL,
    add_routes: Callable[[QuartTrio, Lane], None] = add_probe_routes,
    serve_websocket: Any = echo_websocket,
    open_live: Callable[[RequestLog], ServeLive] | None = None,
    service_uid: int = 0,
    end_sessions: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint,
    open_publish_lane: Callable[[RequestLog], PublishLane] | None = None,
    credentials: Credentials = Credentials(),  # noqa: B008 - frozen
    gate: Gate | None = None,
) -> AsyncIterator[Edge]:
    """An edge that is drained at the block's end. `open_publish_lane` is called after `add_routes`; without `open_live`,
    WebSockets go to `serve_websocket`."""
    limits = limits or Limits()
    metrics, stop = Metrics(), trio.Event()
    lane = Lane(limits.other_lane_concurrency, limits.other_lane_queue, metrics)
    request_log = RequestLog(metrics)
    app = create_app(lane=lane, request_log=request_log)
    add_routes(app, lane)
    await app.startup()
    settings = tls_wire.secured(settings)
    ports = Ports(settings, limits=limits, clock=SystemClock(), metrics=metrics)
    ports.credentials = credentials
    rules = msgspec.structs.replace(ports.rules(auto_create=True), service_uid=service_uid)
    ids = RequestIds(Entropy())
    door = Door(
        app=app, live=SocketsOnly(serve_websocket) if open_live is None else open_live(request_log), gate=gate or keyless_gate(rules, metrics), limits=limits,
        bodies=Bodies(limits, NO_LANE, metrics), metrics=metrics,
        request_log=request_log, next_request_id=ids.draw, stop=stop,
        publish_lane=None if open_publish_lane is None else open_publish_lane(request_log),
        origin_headers=OriginHeaders(settings, methods_of(app)),
    )  # fmt: skip
    listeners = ports.open(directory)
    async with trio.open_nursery() as nursery:
        serve = partial(
            serve_connections, admission=Admission(limits, metrics, limits.connections_max), limits=limits,
            metrics=metrics, next_request_id=ids.draw, stop=stop, end_sessions=end_sessions,
        )  # fmt: skip
        urls = await nursery.start(serve, listeners, door)
        edge = Edge(urls, directory, metrics, door, stop)
        edge.ports = ports
        app.before_request(partial(_note_call, edge.calls))
        try:
            yield edge
        finally:
            stop.set()
            for client in edge.clients:
                client.stream.socket.close()


async def _note_call(calls: list[str]) -> None:
    calls.append(request.path)


def limits_with(**values: Any) -> Limits:
    """Limits with some of them changed."""
    return Limits(**values)
