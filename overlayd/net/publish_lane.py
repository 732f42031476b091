"""The publish lane: packets posted over HTTP, served by the door itself, without Hypercorn and Quart.

The same functions as on Quart read the request, publish it and word its answer; only the bytes' way in and out
differs. A request runs in its connection's task, so nobody watches for the client to leave: a publish that has
begun is finished either way, and takes no longer than its commit.
"""

import re
from collections.abc import Callable, Iterable
from contextlib import aclosing
from pathlib import Path

import msgspec
import structlog
import trio

from overlayd.access import Principal
from overlayd.access.gate import Seal
from overlayd.model.errors import AnswerTooLarge, OverlaydError
from overlayd.net.access_log import RequestLog
from overlayd.net.answer_head import AnswerHeads
from overlayd.net.connection import Connection
from overlayd.net.head import Head
from overlayd.net.problem import problem_body, problem_headers
from overlayd.net.publish import Publisher
from overlayd.net.publish_answers import Published
from overlayd.net.publish_ask import data_ask, encoding_of, packets_ask
from overlayd.net.publish_lines import LinesRun, PublishedLines
from overlayd.net.request_body import ClientLeft, RequestBody
from overlayd.net.sealed_answer import gather
from overlayd.net.spool import Spool

_TARGET = re.compile(r"/v1/streams/([A-Za-z0-9._~-]+)/(packets|data)")
ROUTES = {"packets": "/v1/streams/<stream>/packets", "data": "/v1/streams/<stream>/data"}
_LEFT = 499
_Headers = Iterable[tuple[str, str]]
_log = structlog.get_logger("net.publish_lane")


class Target(msgspec.Struct, frozen=True, gc=False):
    """Where a request publishes to."""

    stream: str
    is_data: bool
    route: str


class Visit(msgspec.Struct, gc=False):
    """A request with what the door knows about it. `status` and `sent_bytes` become those of its answer."""

    connection: Connection
    head: Head
    target: Target
    principal: Principal
    request_id: str
    started: float
    is_last: Callable[[], bool]
    status: int = 0
    sent_bytes: int = 0


def find_target(head: Head) -> Target | None:
    """None for everything that isn't a plain POST of packets. Paths with percent codes are left to Quart."""
    if head.method != "POST":
        return None
    match = _TARGET.fullmatch(head.path)
    return None if match is None else Target(match[1], match[2] == "data", ROUTES[match[2]])


class PublishLane:
    """Serves publish requests. One for the node."""

    def __init__(self, *, publisher: Publisher, spool_directory: Path, request_log: RequestLog) -> None:
        self.publisher = self._publisher = publisher.without_lane()
        self._spool_directory = spool_directory
        self._request_log = request_log
        self._heads = AnswerHeads()

    async def serve(self, visit: Visit) -> bool:
        """Whether another request may follow on the connection. Checkpoint. Raises only what the door expects of a
        connection that fails."""
        body = RequestBody(visit.connection, visit.head, self._publisher.limits)
        try:
            return await self._answer(visit, body)
        except ClientLeft:
            return False
        finally:
            self._request_log.record(
                method=visit.head.method, path=visit.head.path, route=visit.target.route, status=visit.status or _LEFT,
                sent_bytes=visit.sent_bytes, started=visit.started, principal=visit.principal.name,
                request_id=visit.request_id,
            )  # fmt: skip

    async def _answer(self, visit: Visit, body: RequestBody) -> bool:
        try:
            published = await self._publish(visit, body)
        except OverlaydError as error:
            return await self._send_problem(visit, body, error)
        except (ClientLeft, trio.BrokenResourceError):
            raise
        except Exception as error:  # a fault of ours: the log gets the traceback, the client the request's id
            _log.error("request failed", request_id=visit.request_id, exc_info=error)
            problem = OverlaydError("something went wrong; the node's log has it under this request's id")
            return await self._send_problem(visit, body, problem)
        told = self._publisher.tell_rate(
            visit.principal, visit.target.stream, visit.head.get(b"content-type") or ""
        )  # fmt: skip
        headers = (("content-type", published.content_type), *told)
        if isinstance(published, PublishedLines):
            return await self._send_lines(visit, body, published, headers)
        return await self._send(visit, body, published.status, headers, published.body)

    async def _publish(self, visit: Visit, body: RequestBody) -> Published | PublishedLines:
        head, target, publisher = visit.head, visit.target, self._publisher
        publisher.streams.require(visit.principal, "publish", target.stream)
        bodies, limits = publisher.bodies, publisher.limits
        url = f"{'https' if visit.connection.peer.is_tls else 'http'}://{head.get(b'host') or 'localhost'}{head.path}"
        if target.is_data:
            ask, data = data_ask(target.stream, visit.principal, head.headers, head.query, url)
            with bodies.hold() as hold:
                reader = bodies.reader(body, encoding_of(head.headers), int(limits.packet_bytes), "packet_bytes")
                return await publisher.publish_data(ask, data, reader, hold)
        ask = packets_ask(target.stream, visit.principal, head.headers, head.query, url)
        with bodies.hold() as hold:
            if ask.is_lines:
                reader = bodies.reader(body, encoding_of(head.headers), int(limits.upload_bytes), "upload_bytes")
                return await LinesRun(publisher, ask, reader, hold, lambda: Spool(self._spool_directory)).run()
            reader = bodies.reader(body, encoding_of(head.headers), int(limits.body_bytes), "body_bytes")
            return await publisher.publish(ask, reader, hold)

    async def _send_problem(self, visit: Visit, body: RequestBody, error: OverlaydError) -> bool:
        await trio.lowlevel.checkpoint()  # what was refused may not have waited for anything yet
        return await self._send(
            visit, body, error.status, problem_headers(error), problem_body(error, visit.request_id)
        )

    async def _send(self, visit: Visit, body: RequestBody, status: int, headers: _Headers, content: bytes) -> bool:
        goes_on = self._begin(visit, body, status)
        more = visit.connection.answer_headers
        if visit.connection.seal is not None:
            more += tuple(visit.connection.seal.headers(status, (), content))
        head = self._heads.encode(
            status, headers, len(content), visit.request_id, is_closing=not goes_on, more=more
        )  # fmt: skip
        visit.sent_bytes = len(content)
        await visit.connection.send_soon(head + content)
        return goes_on

    async def _send_lines(self, visit: Visit, body: RequestBody, published: PublishedLines, headers: _Headers) -> bool:
        """Receipts in chunks; to a client of HTTP/1.0 up to the connection's end. Whole where they are signed."""
        if visit.connection.seal is not None:
            return await self._send_sealed_lines(visit, body, published, headers, visit.connection.seal)
        goes_on = self._begin(visit, body, published.status)
        is_chunked = visit.head.version == "1.1"
        if is_chunked:
            headers = (*headers, ("transfer-encoding", "chunked"))
        head = self._heads.encode(
            published.status, headers, None, visit.request_id, is_closing=not goes_on,
            more=visit.connection.answer_headers,
        )  # fmt: skip
        await visit.connection.send(head)
        async with aclosing(published.lines):
            async for piece in published.lines:
                if piece:
                    visit.sent_bytes += len(piece)
                    await visit.connection.send(b"%x\r\n%b\r\n" % (len(piece), piece) if is_chunked else piece)
        if is_chunked:
            await visit.connection.send(b"0\r\n\r\n")
        return goes_on

    async def _send_sealed_lines(
        self, visit: Visit, body: RequestBody, published: PublishedLines, headers: _Headers, seal: Seal
    ) -> bool:
        async with aclosing(published.lines):
            try:
                content = await gather(published.lines, seal)
            except AnswerTooLarge as error:
                return await self._send_problem(visit, body, error)
        return await self._send(visit, body, published.status, headers, content)

    def _begin(self, visit: Visit, body: RequestBody, status: int) -> bool:
        """Notes that the answer begins; whether the connection outlives it."""
        visit.status = status
        self._request_log.answer_begun(visit.target.route, visit.started)
        is_read = body.skip_rest()
        wants_more = visit.head.version == "1.1" and not visit.head.has_token(b"connection", "close")
        return is_read and wants_more and not visit.is_last()
