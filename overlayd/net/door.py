"""The door: one port for everything. Finds each request's head, judges it, and sends it the right way.

A WebSocket upgrade on the live path goes to the live session with its exact bytes, packets go to the publish
lane, everything else goes through the guard to the Quart application. The connection stays the door's: it comes
back after each request.
"""

import math
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Protocol

import structlog
import trio
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIFramework

from overlayd.access import Peer, Principal
from overlayd.access.gate import Gate
from overlayd.model.errors import HeadTooLarge, OverlaydError, Rate, RequestTimeout, ShuttingDown, UpgradeRequired
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.net.access_log import RequestLog
from overlayd.net.connection import Connection, Link
from overlayd.net.content import Bodies
from overlayd.net.cors import HeaderPairs, OriginHeaders
from overlayd.net.guard import Exchange, hypercorn_config
from overlayd.net.head import METHODS, Head, find_head, parse_head
from overlayd.net.live_lane import LiveVisit
from overlayd.net.live_query import LIVE_PATH
from overlayd.net.problem import Words, complete_headers, plain_answer, problem_body
from overlayd.net.proving import prove_body
from overlayd.net.publish_lane import PublishLane, Visit, find_target
from overlayd.net.quick_publish import QuickPublish
from overlayd.net.sealed_answer import SealedApp, asking_plainly, refuse_endless
from overlayd.net.settings import ListenSettings
from overlayd.net.turnstile import Turnstile

_log = structlog.get_logger("net.door")


class ServeLive(Protocol):
    """Serves what is live on the connection itself."""

    def takes(self, head: Head) -> bool:
        """Whether a request that is no WebSocket's is served here."""
        ...

    async def serve(self, visit: LiveVisit) -> bool:
        """Whether another request may follow. Also writes the request's line."""
        ...


class Door:
    """Serves connections, one call of `serve_connection` each."""

    def __init__(
        self,
        *,
        app: ASGIFramework,
        live: ServeLive,
        gate: Gate,
        bodies: Bodies,
        limits: Limits,
        metrics: Metrics,
        request_log: RequestLog,
        next_request_id: Callable[[], str],
        stop: trio.Event,
        publish_lane: PublishLane | None = None,
        origin_headers: OriginHeaders | None = None,
        signed_body_max: int = 1 << 20,
        ask_live: Callable[[Principal], Awaitable[Rate | None]] | None = None,
        word: Callable[[Head, OverlaydError], Words | None] | None = None,
    ) -> None:
        """Without `publish_lane`, packets are taken through the application like everything else. `ask_live` raises
        LimitReached for those who may open no live connection now, and gives the rate to tell the others. `word`: how an outside system's paths tell errors,
        None for all other paths."""
        self._word = word
        self._ask_live = ask_live
        self._app = app
        self._publish_lane = publish_lane
        self._origin_headers = origin_headers or OriginHeaders(ListenSettings())
        self._live = live
        self._gate = gate
        self._bodies = bodies
        self._signed_body_max = signed_body_max
        self._limits = limits
        self._metrics = metrics
        self._request_log = request_log
        self._next_request_id = next_request_id
        self._stop = stop
        self._config = hypercorn_config(limits)
        self._context = WorkerContext(None)
        self._open: set[Connection] = set()
        self._idle: set[trio.CancelScope] = set()
        self._turnstile: Turnstile | None = None
        if publish_lane is not None:
            quick = QuickPublish(
                publisher=publish_lane.publisher, request_log=request_log, next_request_id=next_request_id,
                recall=self._recall, gate=gate, stop=stop,
            )  # fmt: skip
            self._turnstile = Turnstile(quick, limits=limits, metrics=metrics, stop=stop)
        self._crashes = metrics.counter("overlayd_net_connection_crashes", "Connections ended by an unforeseen error")
        stalls = "Connections cut because the peer didn't read for stall_timeout"
        self._stalls = metrics.counter("overlayd_net_connection_stalls", stalls)

    async def serve_connection(self, link: Link, peer: Peer, unread: bytes = b"") -> None:
        """Serves requests until the connection ends. `unread`: what was read from the link already. Raises nothing
        but Cancelled; closes the link."""
        connection = Connection(link, peer, self._limits.stall_timeout, unread)
        self._open.add(connection)
        try:
            await self._serve_requests(connection)
            await connection.close_politely()
        except* Exception as group:
            _, crashes = group.split(trio.BrokenResourceError)  # which says that the peer is gone
            if crashes is not None:
                self._crashes.inc()
                _log.error("connection crashed", peer=peer.address or f"uid:{peer.uid}", exc_info=crashes)
        finally:
            self._open.discard(connection)
            if connection.is_stalled:
                self._stalls.inc()
                self._metrics.count_limit_hit("stall_timeout")
            connection.abort()

    async def watch(self) -> None:
        """Watches connections between their requests, as long as connections are served. Until it is cancelled."""
        if self._turnstile is not None:
            await self._turnstile.run()

    def end_idle(self) -> None:
        """Ends the connections that wait between requests."""
        if self._turnstile is not None:
            self._turnstile.end_idle()
        for scope in tuple(self._idle):
            scope.cancel()

    def abort_all(self) -> None:
        """Cuts every connection, also those whose tasks are shielded while they write."""
        for connection in tuple(self._open):
            connection.abort()

    async def _serve_requests(self, connection: Connection) -> None:
        with trio.CancelScope() as idle:
            connection.requests_left = self._limits.requests_per_connection
            while connection.requests_left:
                if not await self._wait_for_request(connection, idle):
                    break
                connection.requests_left -= 1
                served = await self._serve_one(connection, is_last=not connection.requests_left)
                if not isinstance(served, bool):
                    served = await self._live.serve(served)
                if not served:
                    break
            if not connection.requests_left:
                self._metrics.count_limit_hit("requests_per_connection")
        if idle.cancelled_caught and not self._stop.is_set():
            self._metrics.count_limit_hit("keep_alive_timeout")

    async def _serve_one(self, connection: Connection, *, is_last: bool) -> bool | LiveVisit:
        """Whether another request may follow; or what is to be served live, which holds nothing of here."""
        request_id = self._next_request_id()
        started = trio.current_time()
        head: Head | None = None
        connection.answer_headers = ()
        connection.seal = None
        try:
            head = await self._read_head(connection)
            if head is None:
                return False
            if self._stop.is_set():
                raise ShuttingDown("the node is shutting down", retry_after_s=5)
            is_websocket = head.is_websocket
            preflight = self._origin_headers.preflight(head)
            if preflight is not None:
                return await self._answer_preflight(connection, head, preflight, request_id, started)
            head, principal = await self._admit(connection, head, is_websocket=is_websocket)
            if is_websocket and head.path != LIVE_PATH:
                raise UpgradeRequired(
                    f"there is no WebSocket at {head.path[:200]}",
                    subject=head.path[:200],
                    hint=f"connect to {LIVE_PATH}",
                )
            if connection.seal is not None and head.path == LIVE_PATH:
                raise refuse_endless(head.path)
            if head.path == LIVE_PATH and self._ask_live is not None:
                connection.tell_rate(await self._ask_live(principal))
            if head.path == "*":
                return await self._answer_asterisk(connection, request_id)
        except OverlaydError as error:
            await self._refuse(connection, error, request_id, head, started)
            return False
        if is_websocket or self._live.takes(head):
            return LiveVisit(
                connection, head, principal, request_id, started, partial(self._is_over, is_last), is_websocket
            )
        return await self._serve_request(connection, head, principal, request_id, started, is_last=is_last)

    async def _admit(self, connection: Connection, head: Head, *, is_websocket: bool) -> tuple[Head, Principal]:
        """Who asks. The one place where a request is judged; raises where it is refused. The head that it goes on
        with is another one where the body had to be read to know. A checkpoint unless the connection is known."""
        principal = None if is_websocket else self._recall(connection, head)
        if principal is not None:
            return head, principal
        connection.answer_headers = self._origin_headers.of(head, connection.peer)
        claim = await self._gate.claim(connection.remembered, connection.peer, head, is_websocket=is_websocket)
        if claim.prove is not None:
            head = await prove_body(connection, head, claim.prove, bodies=self._bodies, bytes_max=self._signed_body_max)
        if claim.seal is not None:
            connection.seal = claim.seal
            head = asking_plainly(head)
        return head, claim.principal

    def _recall(self, connection: Connection, head: Head) -> Principal | None:
        """Who the connection was known as, when the head says the same again."""
        connection.answer_headers = self._origin_headers.of(head, connection.peer)
        return self._gate.recall(connection.remembered, head)

    async def _serve_request(
        self, connection: Connection, head: Head, principal: Principal, request_id: str, started: float, *,
        is_last: bool,
    ) -> bool:  # fmt: skip
        """Packets through the publish lane, everything else through the application."""

        is_over = partial(self._is_over, is_last)
        target = None if self._publish_lane is None else find_target(head)
        if self._publish_lane is not None and target is not None:
            visit = Visit(connection, head, target, principal, request_id, started, is_over)
            return await self._publish_lane.serve(visit)
        state: dict[str, Any] = {
            "principal": principal, "request_id": request_id, "started": started,
            "answer_headers": connection.answer_headers,
        }  # fmt: skip
        app = self._app if connection.seal is None else SealedApp(self._app, connection.seal, self._bodies)
        exchange = Exchange(app, self._config, self._context, connection, state, is_last=is_over)
        return await exchange.run(head)

    def _is_over(self, is_last: bool) -> bool:
        return is_last or self._stop.is_set()

    async def _answer_asterisk(self, connection: Connection, request_id: str) -> bool:
        """`OPTIONS *` asks what the server can do at all (RFC 9110 9.3.7)."""
        headers = complete_headers([(b"allow", ", ".join(METHODS).encode()), (b"content-length", b"0")], request_id)
        lines = [b"HTTP/1.1 200 OK", *(name + b": " + value for name, value in headers), b"", b""]
        await connection.send(b"\r\n".join(lines))
        return True

    async def _answer_preflight(
        self, connection: Connection, head: Head, allowed: HeaderPairs, request_id: str, started: float
    ) -> bool:
        """What a page of another site may send. Asked by its browser, without credentials."""
        headers = complete_headers(list(allowed), request_id)
        lines = [b"HTTP/1.1 204 No Content", *(name + b": " + value for name, value in headers), b"", b""]
        await connection.send(b"\r\n".join(lines))
        self._request_log.record(
            method=head.method, path=head.path, route="preflight", status=204, sent_bytes=0, started=started,
            principal="-", request_id=request_id,
        )  # fmt: skip
        return not head.has_token(b"connection", "close") and head.version == "1.1"

    async def _refuse(
        self, connection: Connection, error: OverlaydError, request_id: str, head: Head | None, started: float
    ) -> None:
        """Answers with a problem, after which the connection ends: its further bytes can't be told apart."""
        limit = error.subject if isinstance(error, (HeadTooLarge, RequestTimeout)) else ""
        if limit:
            self._metrics.count_limit_hit(limit)
        more = connection.answer_headers
        if connection.seal is not None:
            more += tuple(connection.seal.headers(error.status, (), problem_body(error, request_id)))
        words = None if self._word is None or head is None else self._word(head, error)
        is_head = head is not None and head.method == "HEAD"
        body = plain_answer(error, request_id, is_head=is_head, more=more, words=words)
        await connection.send(body)
        self._request_log.record(
            method=head.method if head else "-", path=head.path if head else "-", route="refused", status=error.status,
            sent_bytes=len(body), started=started, principal="-", request_id=request_id,
        )  # fmt: skip

    async def _wait_for_request(self, connection: Connection, idle: trio.CancelScope) -> bool:
        """Whether a request's first byte came. An idle connection ends by itself, and at once on shutdown: `idle` is
        the scope around all of its requests, which can be cancelled only here."""
        if self._turnstile is not None:
            while await self._turnstile.stay(connection):
                await connection.flush()
                if connection.unread:
                    return True
            return False
        if connection.unread:
            return True
        if self._stop.is_set():
            return False
        idle.deadline = trio.current_time() + self._limits.keep_alive_timeout
        self._idle.add(idle)
        try:
            connection.unread += await connection.receive()
        finally:
            self._idle.discard(idle)
            idle.deadline = math.inf
        # Cancelled in the moment in which bytes came: a request could be begun but not finished in this scope.
        return bool(connection.unread) and not idle.cancel_called

    async def _read_head(self, connection: Connection) -> Head | None:
        """The next head; the bytes behind it stay unread. None when the peer left in between."""
        head = self._take_head(connection.unread, 0)
        if head is not None:
            return head
        buffer = connection.unread
        with trio.move_on_after(self._limits.head_timeout):
            while True:
                looked_at = len(buffer) if len(buffer) > 1 else 0
                data = await connection.receive()
                if not data:
                    return None
                buffer += data
                head = self._take_head(buffer, looked_at)
                if head is not None:
                    return head
        raise RequestTimeout(f"the request's head took over {self._limits.head_timeout}", subject="head_timeout")

    def _take_head(self, buffer: bytearray, looked_at: int) -> Head | None:
        """Takes the head from the buffer once it is whole. No head ends in the first `looked_at` bytes."""
        if looked_at == 0:
            while buffer[:2] == b"\r\n":  # an empty line before a request is to be ignored (RFC 9112 2.2)
                del buffer[:2]
        end = find_head(buffer, looked_at, self._limits)
        if end <= 0:
            return None
        raw = bytes(buffer[:end])
        del buffer[:end]
        return parse_head(raw, self._limits)
