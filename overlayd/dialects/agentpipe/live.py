"""The live side: `/api/realtime/stream` and `/api/stream`, on the live lane with everybody else's sessions.

Frames are unnamed, because AgentPipe's page listens with `onmessage`; each has an id, so that a browser that comes back
goes on where it was.
"""

from collections import Counter
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from overlayd.access import Principal
from overlayd.access.gate import Remembered
from overlayd.access.rates import address_group
from overlayd.delivery.event_stream import StreamForm, StreamSession
from overlayd.delivery.feed import Feed, FeedEvent
from overlayd.delivery.frames import Gap, Message
from overlayd.delivery.lane import LiveLane
from overlayd.delivery.matching import PacketView
from overlayd.delivery.query import LiveQuery, Now, Selection, Start
from overlayd.delivery.session import Registry
from overlayd.delivery.wires import Dress
from overlayd.dialects.agentpipe.answers import error_body, error_headers, status_of
from overlayd.dialects.agentpipe.events import EVENT_TYPES, PATTERN, stream_of
from overlayd.dialects.agentpipe.surface import Surface
from overlayd.dialects.agentpipe.times import iso_ms
from overlayd.model.cursor import Cursor
from overlayd.model.errors import BadParameter, LimitReached, OverlaydError
from overlayd.net.access_log import RequestLog
from overlayd.net.answer_head import AnswerHeads
from overlayd.net.connection import Link
from overlayd.net.door import ServeLive
from overlayd.net.head import Head
from overlayd.net.live_lane import LiveVisit

REALTIME_PATH = "/api/realtime/stream"
PAGE_PATH = "/api/stream"
PATHS = frozenset((REALTIME_PATH, PAGE_PATH))
RETRY_AFTER_S = 5.0
HEADERS = [
    ("content-type", "text/event-stream"), ("cache-control", "no-cache, no-transform"), ("connection", "keep-alive"),
    ("x-accel-buffering", "no"),
]  # fmt: skip
_ID_NAMES = ("conversationId", "conversation_id")
_LEFT = 499
_encode = msgspec.json.Encoder().encode
_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def encode_frame(message: Message) -> bytes:
    """An event as an unnamed frame with an id. What isn't a packet is told as an event that AgentPipe doesn't know."""
    view = message.subject
    if not isinstance(view, PacketView):
        data = {"reason": view.reason} if isinstance(view, Gap) else {}
        text = _encode({"type": f"overlayd.{message.kind}", "timestamp": iso_ms(message.trigger_us), "data": data})
    else:
        text = _with_time(view.entry.body, message.trigger_us)
    if b"\n" in text or b"\r" in text:
        text = text.replace(b"\r", b" ").replace(b"\n", b" ")  # JSON's own white space; texts have theirs escaped
    return b"id: %s\ndata: %s\n\n" % (str(message.cursor).encode(), text)


def _with_time(body: bytes, time_us: int) -> bytes:
    """The event; one that brought no time has that at which it came."""
    try:
        members = _members(body)
    except msgspec.MsgspecError:
        return body
    if "timestamp" in members:
        return body
    return _encode({**members, "timestamp": iso_ms(time_us)})


DRESS = Dress(
    frame=encode_frame, tick=lambda cursor: b":heartbeat\n\n", own=lambda event: b":%s\n\n" % event.encode()
)  # fmt: skip


class Listeners:
    """Live listeners, counted in all, by address and by conversation."""

    def __init__(self, surface: Surface) -> None:
        self._settings = surface.settings
        self._metrics = surface.metrics
        self._by_address: Counter[str] = Counter()
        self._by_conversation: Counter[str] = Counter()
        self.count = 0
        surface.metrics.gauge("agentpipe_sse_connections", "Live listeners").set_function(lambda: self.count)

    @property
    def by_conversation(self) -> dict[str, int]:
        """How many ask for one conversation."""
        return {name: count for name, count in self._by_conversation.items() if name}

    def enter(self, address: str, conversation: str) -> None:
        """Another one; `leave` must follow. Raises LimitReached."""
        settings, group = self._settings, address_group(address)
        for limit, held, most in (
            ("sse_connections", self.count, settings.sse_connections),
            ("sse_per_address", self._by_address[group], settings.sse_per_address),
            (
                "sse_per_conversation", self._by_conversation[conversation] if conversation else 0,
                settings.sse_per_conversation,
            ),
        ):  # fmt: skip
            if held >= most:
                self._metrics.count_limit_hit(f"agentpipe.{limit}")
                raise LimitReached(
                    f"{most} live listeners are there already",
                    subject=f"agentpipe.{limit}",
                    retry_after_s=RETRY_AFTER_S,
                )
        self.count += 1
        self._by_address[group] += 1
        self._by_conversation[conversation] += 1

    def leave(self, address: str, conversation: str) -> None:
        """One is gone."""
        self.count -= 1
        for held, name in ((self._by_address, address_group(address)), (self._by_conversation, conversation)):
            held[name] -= 1
            if not held[name]:
                del held[name]


class Listening(msgspec.Struct, frozen=True):
    """What a listener asks for."""

    conversation: str
    query: LiveQuery
    greeting: bytes


class AgentPipeLive:
    """Serves AgentPipe's two live paths, and leaves everything else to the node's own live door."""

    def __init__(
        self, inner: ServeLive, surface: Surface, listeners: Listeners, *, lane: LiveLane, registry: Registry,
        request_log: RequestLog,
    ) -> None:  # fmt: skip
        self._inner = inner
        self._surface = surface
        self._listeners = listeners
        self._lane = lane
        self._registry = registry
        self._request_log = request_log
        self._heads = AnswerHeads()

    def takes(self, head: Head) -> bool:
        """Whether a request that is no WebSocket's is served here."""
        return (head.method == "GET" and head.path in PATHS) or self._inner.takes(head)

    async def serve(self, visit: LiveVisit) -> bool:
        """Whether another request may follow. Checkpoint. Raises as the node's own."""
        head = visit.head
        assert head is not None
        if visit.is_websocket or head.path not in PATHS:
            return await self._inner.serve(visit)
        path = head.path
        visit.connection.remembered = Remembered()
        try:
            return await self._serve(visit, head)
        finally:
            self._request_log.record(
                method="GET", path=path, route=path, status=visit.status or _LEFT, sent_bytes=visit.sent_bytes,
                started=visit.started, principal=visit.principal.name, request_id=visit.request_id,
            )  # fmt: skip

    async def _serve(self, visit: LiveVisit, head: Head) -> bool:
        connection, principal = visit.connection, visit.principal
        visit.head = None
        goes_on = head.version == "1.1" and not head.has_token(b"connection", "close") and not visit.is_last()
        path, is_chunked = head.path, head.version == "1.1"
        conversation = ""
        try:
            listening = await self._listening(head)
            conversation = listening.conversation
            metering = self._surface.publisher.metering
            if metering is not None:
                connection.tell_rate(await metering.connect(principal))
            self._listeners.enter(principal.address, conversation)
        except OverlaydError as error:
            return await self._refuse(visit, error, path, goes_on=goes_on)
        del head
        try:
            try:
                opened = await self._open(listening, principal, connection.link, is_chunked=is_chunked)
            except OverlaydError as error:
                return await self._refuse(visit, error, path, goes_on=goes_on)
            streaming, feed, first = opened
            try:
                visit.status = 200
                self._request_log.answer_begun(path, visit.started)
                start = self._head_of(visit, is_chunked=is_chunked, is_closing=not goes_on)
                is_whole = await streaming.run(start, feed, first)
                return goes_on and is_whole and not visit.is_last()
            finally:
                visit.sent_bytes = streaming.session.bytes_sent
                self._registry.leave(streaming.session)
        finally:
            self._listeners.leave(principal.address, conversation)

    def _head_of(self, visit: LiveVisit, *, is_chunked: bool, is_closing: bool) -> bytes:
        headers = [pair for pair in HEADERS if not (is_closing and pair[0] == "connection")]
        if is_chunked:
            headers.append(("transfer-encoding", "chunked"))
        head = self._heads.encode(
            200, headers, None, visit.request_id, is_closing=is_closing, more=visit.connection.answer_headers
        )
        return head.replace(b"cache-control: no-store\r\n", b"", 1)

    async def _refuse(self, visit: LiveVisit, error: OverlaydError, path: str, *, goes_on: bool) -> bool:
        self._request_log.answer_begun(path, visit.started)
        content = _encode(error_body(error))
        visit.status, visit.sent_bytes = status_of(error), len(content)
        named = [("content-type", "application/json"), *error_headers(error, self._surface.clock).items()]
        start = self._heads.encode(
            visit.status, named, len(content), visit.request_id, is_closing=not goes_on,
            more=visit.connection.answer_headers,
        )  # fmt: skip
        await visit.connection.send(start + content)
        return goes_on

    async def _listening(self, head: Head) -> Listening:
        """Raises BadParameter, BadCursor."""
        try:
            pairs = parse_qsl(head.query, keep_blank_values=True, errors="strict", max_num_fields=64)
        except (UnicodeDecodeError, ValueError) as err:
            raise BadParameter("the URL's query can't be read", subject="query") from err
        conversation = next((value for name, value in pairs if name in _ID_NAMES and value), "")
        streams = (str(stream_of(conversation)),) if conversation else (PATTERN,)
        last = head.get(b"last-event-id") or next((value for name, value in pairs if name == "lastEventId"), "")
        start = Cursor.parse(last) if last else await self._replay_start(streams[0])
        query = LiveQuery(
            Selection(streams=streams, types=frozenset(EVENT_TYPES)), start,
            heartbeat_s=float(self._surface.settings.sse_heartbeat),
        )  # fmt: skip
        return Listening(conversation, query, self._greeting(head.path, conversation))

    async def _replay_start(self, stream: str) -> Start:
        """Behind which the newest events stand that a new listener gets. Checkpoint for some."""
        surface, count = self._surface, self._surface.settings.sse_replayed
        log = surface.log
        if not count:
            return Now()
        if stream == PATTERN:
            await surface.catch_up()
            return surface.follower.replay_start(count)
        found = log.find_stream(stream)
        if found is None or found.head_sequence == 0:
            return Now()
        sequence = max(found.head_sequence - count + 1, found.oldest_sequence, 1)
        offset = await log.find_offset(found, sequence)
        return Now() if offset is None else Cursor(log.epoch, offset - 1)

    def _greeting(self, path: str, conversation: str) -> bytes:
        now = iso_ms(self._surface.clock.now_us())
        what = f"Subscribed to conversation {conversation}" if conversation else "Subscribed to all events"
        if path == REALTIME_PATH:
            body: dict[str, Any] = {"type": "connected", "timestamp": now, "message": what}
        else:
            data = {"conversationId": conversation or None, "message": what}
            body = {"type": "connection.established", "timestamp": now, "data": data}
        return b"data: %s\n\n" % _encode(body)

    async def _open(
        self, listening: Listening, principal: Principal, link: Link, *, is_chunked: bool
    ) -> tuple[StreamSession, Feed, FeedEvent | None]:
        """Raises OverlaydErrors; then nothing stays open."""
        delivery = self._lane.delivery
        query = delivery.see(listening.query, principal)
        form = StreamForm("sse", is_chunked=is_chunked, dress=DRESS, greeting=listening.greeting)
        session = self._registry.enter("sse", principal.name, principal.address, principal)
        try:
            self._registry.check_query(session, query)
            opened = await delivery.open_reader(query, principal.name, self._lane.fan_out.horizon)
            streaming = StreamSession(form, link, session, opened, lane=self._lane, registry=self._registry, node="")
            feed = Feed(delivery, session, opened)
            first = await feed.take()
        except BaseException:
            self._registry.leave(session)
            raise
        return streaming, feed, first
