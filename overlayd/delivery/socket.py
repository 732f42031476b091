"""The live protocol over one WebSocket: subscriptions with positions of their own, and publishing (docs/api.md, Live)."""

from collections.abc import Awaitable
from typing import Any, Protocol

import msgspec
import trio
from trio_websocket import ConnectionClosed

from overlayd.access import Principal, require
from overlayd.delivery.delivery import Delivery, OpenReader
from overlayd.delivery.feed import Feed, Parcel, Tick
from overlayd.delivery.messages import Scribe, bye_message, error_message, subscribed_message
from overlayd.delivery.query import Format, LiveQuery
from overlayd.delivery.session import (
    CLOSE_EXPIRED,
    CLOSE_FAULT,
    CLOSE_FORBIDDEN,
    CLOSE_GOING_AWAY,
    CLOSE_LIMIT,
    CLOSE_NORMAL,
    CLOSE_POLICY,
    CLOSE_PROTOCOL,
    CLOSE_STALLED,
    CLOSE_UNAUTHORIZED,
    Ending,
    Registry,
    Session,
)
from overlayd.delivery.websocket import LiveSocket, encode_text_frame
from overlayd.model.errors import (
    BadParameter,
    BadRequest,
    CursorExpired,
    Forbidden,
    LimitReached,
    MalformedJson,
    OverlaydError,
    StreamPaused,
    Unauthorized,
)
from overlayd.model.wire import PublishMessage, ReceiptMessage, Ref

TRANSPORT = "websocket"
_ID_CHARS_MAX = 64
_PIPELINED_BYTES = 16 << 10
_STREAMS_KNOWN_MAX = 1000


class PublishPackets(Protocol):
    """Publishes the packets of one message for a principal; gives the receipt. Raises OverlaydErrors."""

    def __call__(self, message: PublishMessage, principal: Principal) -> Awaitable[ReceiptMessage]: ...


class _Envelope(msgspec.Struct):
    """What every client message may have. `ref` comes back with the answer."""

    type: str
    ref: Ref | None = None
    id: Any = None


class _Publish(PublishMessage, tag_field="type", tag="publish", forbid_unknown_fields=True):
    """As served, but a misspelled member is an error."""


_CLOSE_CODES: tuple[tuple[type[OverlaydError], int], ...] = (
    (Unauthorized, CLOSE_UNAUTHORIZED),
    (Forbidden, CLOSE_FORBIDDEN),
    (CursorExpired, CLOSE_EXPIRED),
    (LimitReached, CLOSE_LIMIT),
)
_decode_envelope = msgspec.json.Decoder(_Envelope).decode
_decode_publish = msgspec.json.Decoder(_Publish).decode
_decode_members = msgspec.json.Decoder(dict[str, Any]).decode


class SocketSession:
    """One client on a WebSocket. Each subscription is a task that waits by itself and sends in turn with the
    others, so that the session never holds more than one page."""

    def __init__(
        self, connection: LiveSocket, session: Session, *, delivery: Delivery, registry: Registry,
        publish: PublishPackets, principal: Principal, node: str, format: Format | None,
    ) -> None:  # fmt: skip
        """`format`: what the subprotocol demands of every frame, None when each subscription chooses."""
        self._connection = connection
        self._session = session
        self._delivery = delivery
        self._registry = registry
        self._publish_packets = publish
        self._principal = principal
        self._node = node
        self._forced = format
        self._scribe = Scribe(delivery, session.id)
        self._turn = trio.Lock()
        self._publishing = trio.Semaphore(delivery.limits.publishes_in_flight)
        self._subscriptions: dict[str, trio.CancelScope] = {}
        self._published: dict[str, int] = {}

    async def run(self, query: LiveQuery | OverlaydError | None) -> None:
        """Serves until either side ends it. `query` is the URL's subscription, or what is wrong with it. Checkpoint."""
        close = Ending(CLOSE_FAULT, "server fault")
        try:
            ending = await self._serve(query)
            close = ending or Ending(CLOSE_NORMAL, "")
        except ConnectionClosed:
            close = Ending(CLOSE_NORMAL, "")  # it is closed; nothing is sent any more
        except trio.Cancelled:
            close = Ending(CLOSE_GOING_AWAY, "the node is shutting down")
            raise
        finally:
            if self._connection.paced.is_stalled:
                close = Ending(CLOSE_STALLED, "stalled")
            if close.code == CLOSE_STALLED:
                self._delivery.meters.slow_closed.labels(TRANSPORT).inc()
            await self._connection.close(close.code, close.reason, self._delivery.settings.close_timeout)

    async def _serve(self, query: LiveQuery | OverlaydError | None) -> Ending | None:
        """What the node closes with, None when the client left. Raises ConnectionClosed."""
        opened = None
        if isinstance(query, LiveQuery):
            try:
                opened = await self._open("", query)
            except OverlaydError as error:
                query = error
        if isinstance(query, OverlaydError):
            await self._send(error_message(query))
            return Ending(close_code_of(query), query.code)
        await self._send(self._scribe.welcome(self._node, opened.proof if opened else None))
        async with trio.open_nursery() as around:
            async with trio.open_nursery() as tasks:
                if opened is not None:
                    tasks.start_soon(self._deliver, "", opened)
                around.start_soon(self._ping)
                await self._receive(tasks)
                around.start_soon(self._cut_late, tasks)
            around.cancel_scope.cancel()
        ending = self._session.ending
        if ending is not None and ending.code != CLOSE_STALLED:
            await self._send(bye_message(ending))
        return ending

    async def _cut_late(self, tasks: trio.Nursery) -> None:
        """Gives what is being sent or published a moment to finish, then cuts the connection."""
        if self._connection.closed is None and not self._connection.paced.is_stalled:
            await trio.sleep(self._delivery.settings.close_timeout)
        await self._connection.cut()
        tasks.cancel_scope.cancel()

    async def _ping(self) -> None:
        """Ends the session when nothing at all moves for as long as a pong may take."""
        limits, settings = self._delivery.limits, self._delivery.settings
        paced = self._connection.paced
        while True:
            await trio.sleep(settings.ping_interval)
            is_answered = False
            while not is_answered:
                asked_at = trio.current_time()
                with trio.move_on_after(limits.pong_timeout):
                    try:
                        await self._connection.ping()
                    except ConnectionClosed:
                        return
                    is_answered = True
                if not is_answered and not paced.has_moved_since(asked_at):
                    self._delivery.metrics.count_limit_hit("pong_timeout")
                    self._session.end(Ending(CLOSE_STALLED, "no pong"))
                    return

    async def _receive(self, tasks: trio.Nursery) -> None:
        """Takes the client's messages until the connection or the session ends. Raises nothing but Cancelled."""
        while self._session.ending is None:
            message: str | bytes | None = None
            with self._session.waiting():
                try:
                    message = await self._connection.get_message()
                except ConnectionClosed:
                    return
            if message is None:
                return
            if isinstance(message, bytes):
                self._session.end(Ending(CLOSE_PROTOCOL, "messages are JSON in text frames"))
                return
            try:
                await self._take(message, tasks)
            except ConnectionClosed:
                return

    async def _take(self, message: str, tasks: trio.Nursery) -> None:
        """One client message. What is wrong with it is told, and the session goes on. Raises ConnectionClosed."""
        held = len(message)
        envelope = _Envelope("")
        try:
            envelope = _decode(_decode_envelope, message)
            if envelope.type == "publish":
                publish = _decode(_decode_publish, message)
                require(self._principal, "publish")
                if not self._publishing.value:
                    self._delivery.metrics.count_limit_hit("publishes_in_flight")
                await self._publishing.acquire()
                if self._may_overtake(publish.stream, held):
                    await self._publish(publish, envelope.ref, 0)
                else:
                    tasks.start_soon(self._publish, publish, envelope.ref, held)
                    held = 0
            elif envelope.type == "ping":
                own = self._session.readers.get("")
                await self._send(self._scribe.heartbeat(own.reader.cursor if own else None))
            else:
                await self._take_subscription(envelope.type, message, tasks)
        except OverlaydError as error:
            await self._send(error_message(error, ref=envelope.ref, sub=self._refused(envelope)))
        finally:
            self._connection.give_back(held)

    def _refused(self, envelope: _Envelope) -> str:
        """The subscription that an error is about; "" when one of that id goes on."""
        name = envelope.id
        is_named = envelope.type == "subscribe" and isinstance(name, str) and 1 <= len(name) <= _ID_CHARS_MAX
        return name if is_named and name not in self._session.readers else ""

    def _may_overtake(self, stream: str, size: int) -> bool:
        """Whether a message that follows could be appended before this one, unless it waits for its answer.

        Messages of one socket are to be appended in the order they were sent. Small ones reach the writer's queue
        in the same few steps, each begun after the one before; a large one may take a way through a thread, and the
        first of a stream may have to wait until its schema is compiled.
        """
        found = self._delivery.log.find_stream(stream)
        if found is None:
            return True
        is_known = self._published.get(stream) == found.definition_version
        if len(self._published) >= _STREAMS_KNOWN_MAX:
            self._published.clear()
        self._published[stream] = found.definition_version
        return not is_known or size > _PIPELINED_BYTES

    async def _take_subscription(self, kind: str, message: str, tasks: trio.Nursery) -> None:
        """Raises OverlaydErrors and ConnectionClosed."""
        if kind not in ("subscribe", "unsubscribe", "ack"):
            raise BadParameter(
                f"no such message: {kind[:60]!r}", subject="type",
                hint="known are subscribe, unsubscribe, publish and ping",
            )  # fmt: skip
        members = _decode(_decode_members, message)
        name = members.get("id")
        if not isinstance(name, str) or not 1 <= len(name) <= _ID_CHARS_MAX:
            raise BadParameter(f"id must be a text of 1 to {_ID_CHARS_MAX} characters", subject="id")
        if kind == "subscribe":
            await self._subscribe(name, members, tasks)
            return
        scope = self._subscriptions.get(name)
        if scope is None:
            raise BadParameter(f"there is no subscription {name!r} on this connection", subject="id")
        if kind == "ack":
            raise BadParameter(
                f"subscription {name!r} isn't durable, so there is nothing to acknowledge", subject="id",
                hint="keep the cursor of what you have dealt with and resume with after=<cursor>",
            )  # fmt: skip
        scope.cancel()

    async def _subscribe(self, name: str, members: dict[str, Any], tasks: trio.Nursery) -> None:
        limits = self._delivery.limits
        if name in self._session.readers:
            raise BadParameter(f"there is a subscription {name!r} on this connection already", subject="id")
        if len(self._session.readers) >= limits.subscriptions_per_session:
            self._delivery.metrics.count_limit_hit("subscriptions_per_session")
            raise LimitReached(
                f"{limits.subscriptions_per_session} subscriptions are open on this connection already",
                subject="subscriptions_per_session",
            )
        query = self._delivery.parse_message(members)
        if query.seen is not None:
            raise BadParameter("seen goes into the connection's URL", subject="seen")
        opened = await self._open(name, query)
        tasks.start_soon(self._deliver, name, opened)

    async def _open(self, name: str, query: LiveQuery) -> OpenReader:
        """Raises OverlaydErrors."""
        require(self._principal, "subscribe")
        self._registry.check_query(self._session, query)
        opened = await self._delivery.open_reader(query, self._principal.name)
        self._registry.add_reader(self._session, name, opened)
        self._subscriptions[name] = trio.CancelScope()
        return opened

    async def _deliver(self, name: str, opened: OpenReader) -> None:
        """One subscription, until it or the session ends. Raises nothing but Cancelled."""
        format = self._forced or opened.query.format
        try:
            with self._subscriptions[name]:
                await self._send(subscribed_message(opened, name), format)
                await self._follow(name, opened, format)
        except ConnectionClosed:
            pass
        finally:
            del self._subscriptions[name]
            self._registry.drop_reader(self._session, name)

    async def _follow(self, name: str, opened: OpenReader, format: Format) -> None:
        feed = Feed(self._delivery, self._session, opened)
        while True:
            await feed.wait()
            await self._take_turn()
            try:
                event = await feed.take()
                if isinstance(event, Parcel):
                    await self._send_parcel(event, name, format)
                elif isinstance(event, Tick):
                    await self._send(self._scribe.heartbeat(event.cursor, name), format)
            except OverlaydError as error:
                await self._refuse(name, error)
                return
            finally:
                self._turn.release()
            if isinstance(event, Ending):
                await self._end_subscription(name, event)
                return

    async def _take_turn(self) -> None:
        """The session's only page is this subscription's now. A checkpoint only if another one has it."""
        try:
            self._turn.acquire_nowait()
        except trio.WouldBlock:
            await self._turn.acquire()

    async def _refuse(self, name: str, error: OverlaydError) -> None:
        """A subscription can't go on; without a name it was the session's own, which ends with it."""
        await self._send(error_message(error, sub=name))
        if not name:
            self._session.end(Ending(close_code_of(error), error.code))

    async def _end_subscription(self, name: str, ending: Ending) -> None:
        if self._session.ending is not None:
            return
        if name:
            await self._send(error_message(StreamPaused("every stream of the subscription is stopped"), sub=name))
        else:
            self._session.end(ending)

    async def _send_parcel(self, parcel: Parcel, name: str, format: Format) -> None:
        frames = None if name else parcel.wire.get(format)
        if frames is None:
            texts = [self._scribe.frame(message, format, name) for message in parcel.messages]
            frames = b"".join(map(encode_text_frame, texts))
            if not name:
                parcel.wire[format] = frames
        await self._connection.send_frames(frames)
        self._session.messages_sent += len(parcel.messages)
        self._session.bytes_sent += len(frames)
        self._delivery.meters.count_sent(TRANSPORT, parcel.messages, is_live=parcel.is_live)

    async def _publish(self, message: PublishMessage, ref: Ref | None, held: int) -> None:
        """Publishes and answers. Raises nothing but Cancelled."""
        try:
            try:
                receipt = await self._publish_packets(message, self._principal)
                outcome = "accepted" if not receipt.rejected else "rejected"
                await self._send(receipt)
            except OverlaydError as error:
                outcome = "refused"
                await self._send(error_message(error, ref=ref))
            self._delivery.meters.published.labels(outcome).inc()
        except ConnectionClosed:
            pass
        finally:
            self._publishing.release()
            self._connection.give_back(held)

    async def _send(self, body: msgspec.Struct, format: Format = "packet") -> None:
        """One of the node's own messages. Checkpoint. Raises ConnectionClosed."""
        frame = encode_text_frame(self._scribe.own(body, self._forced or format))
        await self._connection.send_frames(frame)
        self._session.bytes_sent += len(frame)


def close_code_of(error: OverlaydError) -> int:
    """How a session ends whose own subscription can't be, or can't go on."""
    for kind, code in _CLOSE_CODES:
        if isinstance(error, kind):
            return code
    return CLOSE_FAULT if error.status >= 500 else CLOSE_POLICY


def _decode(decode: Any, message: str) -> Any:
    """Raises MalformedJson for what isn't JSON, BadRequest for what isn't the message that it says it is."""
    try:
        return decode(message)
    except msgspec.ValidationError as err:
        raise BadRequest(f"the message can't be read: {err}", subject="message") from err
    except (msgspec.DecodeError, RecursionError) as err:
        raise MalformedJson(f"the message isn't JSON: {err}", subject="message") from err
