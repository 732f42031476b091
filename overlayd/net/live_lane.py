"""The live lane at the door: WebSockets, and live answers over HTTP, straight on the connection.

The connection's own task stays with it to the end; what it waits for meanwhile is the peer. The request's head is let
go of before that, because thousands of idle sessions would hold theirs.
"""

from collections.abc import Callable

import msgspec

from overlayd.access import Principal
from overlayd.access.gate import Remembered
from overlayd.delivery.event_stream import StreamSession
from overlayd.delivery.feed import Feed, FeedEvent
from overlayd.delivery.lane import LiveLane
from overlayd.delivery.session import Registry
from overlayd.model.errors import OverlaydError
from overlayd.net.access_log import RequestLog
from overlayd.net.answer_head import AnswerHeads
from overlayd.net.connection import Connection, Link
from overlayd.net.head import Head
from overlayd.net.live_query import LIVE_PATH, StreamAsk, stream_ask
from overlayd.net.live_socket import LiveSockets
from overlayd.net.problem import plain_answer, problem_body, problem_headers

_LEFT = 499
_READ = frozenset((b"accept", b"accept-encoding", b"last-event-id"))


class LiveVisit(msgspec.Struct, gc=False):
    """A request for something live, with what the door knows about it. `status` and `sent_bytes` become those of its
    answer."""

    connection: Connection
    head: Head | None
    principal: Principal
    request_id: str
    started: float
    is_last: Callable[[], bool]
    is_websocket: bool
    status: int = 0
    sent_bytes: int = 0


class LiveDoor:
    """Serves live requests. One for the node."""

    def __init__(
        self, *, lane: LiveLane, registry: Registry, sockets: LiveSockets, request_log: RequestLog, node: str,
        is_fast: bool = True,
    ) -> None:  # fmt: skip
        """Without `is_fast`, only WebSockets; the application then gives the other live answers."""
        self._lane = lane
        self._registry = registry
        self._sockets = sockets
        self._request_log = request_log
        self._node = node
        self._is_fast = is_fast
        self._heads = AnswerHeads()

    def takes(self, head: Head) -> bool:
        """Whether a request that is no WebSocket's is served here."""
        return self._is_fast and head.method == "GET" and head.path == LIVE_PATH

    async def serve(self, visit: LiveVisit) -> bool:
        """Whether another request may follow on the connection. Checkpoint. Raises only what the door expects of a
        connection that fails."""
        assert visit.head is not None
        method = visit.head.method
        visit.connection.remembered = Remembered()  # the next request, if there is one, says again who asks
        try:
            if visit.is_websocket:
                return await self._serve_socket(visit)
            return await self._serve_stream(visit)
        finally:
            self._request_log.record(
                method=method, path=LIVE_PATH, route=LIVE_PATH, status=visit.status or _LEFT,
                sent_bytes=visit.sent_bytes, started=visit.started, principal=visit.principal.name,
                request_id=visit.request_id,
            )  # fmt: skip

    async def _serve_socket(self, visit: LiveVisit) -> bool:
        connection, head, visit.head = visit.connection, visit.head, None
        assert head is not None
        try:
            accepted = self._sockets.accept(head, visit.principal, connection.answer_headers)
        except OverlaydError as error:
            body = plain_answer(error, visit.request_id, more=connection.answer_headers)
            visit.status, visit.sent_bytes = error.status, len(body)
            await connection.send(body)
            return False
        del head
        visit.status = 101
        try:
            await self._sockets.serve(accepted, connection.link, connection.take_unread())
        finally:
            visit.sent_bytes = accepted.session.bytes_sent
        return False

    async def _serve_stream(self, visit: LiveVisit) -> bool:
        """An endless answer. What is wrong with the query is told by a status, before it begins."""
        connection, head, visit.head = visit.connection, visit.head, None
        assert head is not None
        goes_on = head.version == "1.1" and not head.has_token(b"connection", "close") and not visit.is_last()
        try:
            streaming, feed, first, ask = await self._open_stream(head, visit.principal, connection.link)
        except OverlaydError as error:
            self._request_log.answer_begun(LIVE_PATH, visit.started)
            content = problem_body(error, visit.request_id)
            visit.status, visit.sent_bytes = error.status, len(content)
            start = self._heads.encode(
                error.status, problem_headers(error), len(content), visit.request_id, is_closing=not goes_on,
                more=connection.answer_headers,
            )  # fmt: skip
            await connection.send(start + content)
            return goes_on
        try:
            visit.status = 200
            self._request_log.answer_begun(LIVE_PATH, visit.started)
            headers = ask.headers
            if ask.form.is_chunked:
                headers.append(("transfer-encoding", "chunked"))
            start = self._heads.encode(
                200, headers, None, visit.request_id, is_closing=not goes_on, more=connection.answer_headers
            )
            del head, ask, headers
            is_whole = await streaming.run(start, feed, first)
            return goes_on and is_whole and not visit.is_last()
        finally:
            visit.sent_bytes = streaming.session.bytes_sent
            self._registry.leave(streaming.session)

    async def _open_stream(
        self, head: Head, principal: Principal, link: Link
    ) -> tuple[StreamSession, Feed, FeedEvent | None, StreamAsk]:
        """Raises OverlaydErrors; then nothing stays open."""
        delivery = self._lane.delivery
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers if name in _READ}
        ask = stream_ask(delivery, head.query, headers, is_chunked=head.version == "1.1")
        query = delivery.see(ask.query, principal)
        session = self._registry.enter(ask.form.transport, principal.name, principal.address, principal)
        try:
            self._registry.check_query(session, query)
            opened = await delivery.open_reader(query, principal.name, self._lane.fan_out.horizon)
            streaming = StreamSession(
                ask.form, link, session, opened, lane=self._lane, registry=self._registry, node=self._node
            )
            feed = Feed(delivery, session, opened)
            first = await feed.take()
        except BaseException:
            self._registry.leave(session)
            raise
        return streaming, feed, first, ask
