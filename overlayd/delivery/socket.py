"""The live protocol over one WebSocket: its life from the handshake to the close (docs/api.md, Live).

The connection's own task reads and answers pings. What the client asks for is dealt with in socket_messages.py, by a
task that exists only meanwhile; packets are written by the fan-out, or by the catching up of whoever is behind.
"""

from collections.abc import Awaitable, Callable
from typing import Literal, Protocol

import msgspec
import trio
from wsproto.frame_protocol import Opcode

from overlayd.access import Principal
from overlayd.delivery.delivery import Delivery, OpenReader
from overlayd.delivery.feed import Feed
from overlayd.delivery.lane import LiveLane
from overlayd.delivery.line import Line, Seat
from overlayd.delivery.messages import Scribe, bye_message, error_message, subscribed_message
from overlayd.delivery.query import Format, FrameFormat, LiveQuery
from overlayd.delivery.scanning import Piece
from overlayd.delivery.session import (
    CLOSE_EXPIRED,
    CLOSE_FAULT,
    CLOSE_FORBIDDEN,
    CLOSE_GOING_AWAY,
    CLOSE_LIMIT,
    CLOSE_POLICY,
    CLOSE_STALLED,
    CLOSE_UNAUTHORIZED,
    Ending,
    Registry,
    Session,
)
from overlayd.delivery.socket_messages import SocketMessages
from overlayd.delivery.websocket import BadInput, Closing, Inbox, InputBudget, parse_close
from overlayd.delivery.wires import NOWHERE, Packing, Wire, encode_close, encode_ping, encode_pong
from overlayd.model.cursor import Cursor
from overlayd.model.errors import (
    CursorExpired,
    Forbidden,
    LimitReached,
    OverlaydError,
    StreamPaused,
    Unauthorized,
)
from overlayd.model.push_stream import PushStream
from overlayd.model.wire import PublishMessage, ReceiptMessage

TRANSPORT: Literal["websocket"] = "websocket"
READ_BYTES = 4 << 10
"""Read at once: compressed input can't grow beyond a thousand times of it before somebody looks."""


class PublishPackets(Protocol):
    """Publishes the packets of one message for a principal; gives the receipt. Raises OverlaydErrors."""

    def __call__(self, message: PublishMessage, principal: Principal) -> Awaitable[ReceiptMessage]: ...


class NamedSubscription(Protocol):
    """A durable subscription that a socket reads for its client. Everything else about the socket's subscription is as
    for one without a name: the same frames, order and gaps, from `query.start` on."""

    @property
    def query(self) -> LiveQuery:
        """What it selects; `start` is the cursor up to which everything was acknowledged."""
        ...

    async def ack(self, cursor: Cursor, reply: bytes = b"") -> None:
        """The client has dealt with everything up to and with the cursor, whose packet it may reply to. Raises
        OverlaydErrors."""
        ...

    def detach(self) -> None:
        """The socket reads it no more. Called once, whatever the reason."""
        ...


class AttachNamed(Protocol):
    """Attaches a client to the durable subscription of the name. An earlier client's session is ended by the callee,
    with close code 4009. `forced`: the format that the client's subprotocol demands. Raises OverlaydErrors."""

    def __call__(
        self, name: str, principal: Principal, session: Session, forced: Format | None
    ) -> Awaitable[NamedSubscription]: ...


Control = Callable[[Principal, int], None]
"""From who sent a message of so many characters."""


class SocketParts(msgspec.Struct, frozen=True):
    """What all sockets share. Without `attach_named`, durable subscriptions can't be attached to. `control` is asked
    about each message but publishes, and raises LimitReached where there are too many."""

    lane: LiveLane
    registry: Registry
    publish: PublishPackets
    budget: InputBudget
    node: str
    attach_named: AttachNamed | None = None
    control: Control | None = None


_CLOSE_CODES: tuple[tuple[type[OverlaydError], int], ...] = (
    (Unauthorized, CLOSE_UNAUTHORIZED),
    (Forbidden, CLOSE_FORBIDDEN),
    (CursorExpired, CLOSE_EXPIRED),
    (LimitReached, CLOSE_LIMIT),
)


class SocketSession:
    """One client on a WebSocket whose handshake was answered."""

    __slots__ = (
        "_is_peer_closed", "_packing", "_reading", "forced", "inbox", "line", "messages", "named", "parts", "principal",
        "scribe", "session",
    )  # fmt: skip

    def __init__(
        self, stream: PushStream, session: Session, *, parts: SocketParts, principal: Principal, format: Format | None,
        is_compressed: bool,
    ) -> None:  # fmt: skip
        """`format`: what the subprotocol demands of every frame, None when each subscription chooses."""
        lane = parts.lane
        self.parts = parts
        self.session = session
        self.principal = principal
        self.forced = format
        self.scribe = Scribe(lane.delivery, session.id)
        self.line = Line(stream, session, self, lane.fan_out, session.end)
        self.messages: SocketMessages | None = None
        self.named: dict[str, NamedSubscription] | None = None
        """The durable subscriptions that are read here, by the ids that the client gave them."""
        self._packing: Packing = "deflate" if is_compressed else ""
        self.inbox: Inbox | None = None
        self._reading: trio.CancelScope | None = None
        self._is_peer_closed = False

    async def run(self, query: LiveQuery | OverlaydError | None, unread: bytes) -> None:
        """Serves until either side ends it. `query` is the URL's subscription, or what is wrong with it; `unread` came
        behind the handshake. Checkpoint. Raises nothing but Cancelled."""
        close: bytes | None = encode_close(CLOSE_FAULT, "server fault")
        self.session.on_change = self._on_change
        try:
            close = await self._serve(query, unread)
        except trio.BrokenResourceError:
            close = None
        except trio.Cancelled:
            close = encode_close(CLOSE_GOING_AWAY, "the node is shutting down")
            raise
        finally:
            self._let_go()
            if self.session.ending is not None and self.session.ending.code == CLOSE_STALLED:
                self._delivery.meters.slow_closed.labels(TRANSPORT).inc()
            await self._close(close)

    async def _serve(self, query: LiveQuery | OverlaydError | None, unread: bytes) -> bytes | None:
        """The close frame to send, None when the client is gone. Raises BrokenResourceError."""
        opened = None
        if isinstance(query, LiveQuery):
            try:
                opened = await self.open(query)
            except OverlaydError as error:
                query = error
        if isinstance(query, OverlaydError):
            await self.send(error_message(query))
            return encode_close(close_code_of(query), query.code)
        await self._begin(opened)
        closing: Closing | None = None
        with trio.CancelScope() as self._reading:
            if self.session.ending is None:
                try:
                    closing = await self._read(unread)
                except BadInput as bad:
                    return self._refuse_input(bad)
        if self.inbox is not None and self.inbox.is_given_up:
            words = "the message took too long and others need the room"
            return self._refuse_input(BadInput(CLOSE_POLICY, words, "sockets_unread_bytes"))
        if self.session.ending is not None:
            return await self._say_bye(self.session.ending)
        return None if closing is None else encode_close(closing.code, closing.reason)

    async def _begin(self, opened: OpenReader | None) -> None:
        """The first words. Raises BrokenResourceError."""
        self.line.start(self._delivery.settings.ping_interval)
        try:
            await self.send(self.scribe.welcome(self.parts.node, opened.proof if opened else None))
        except BaseException:
            if opened is not None:
                opened.close()
            raise
        if opened is not None:
            await self.begin("", opened)

    def _refuse_input(self, bad: BadInput) -> bytes:
        if bad.limit:
            self._delivery.metrics.count_limit_hit(bad.limit)
        return encode_close(bad.code, bad.reason)

    async def _say_bye(self, ending: Ending) -> bytes:
        """The last words, after what is being published has had a moment to finish."""
        for seat in tuple(self.line.seats.values()):
            seat.close()
        timeout_s = self._delivery.settings.close_timeout
        if ending.code != CLOSE_STALLED:
            with trio.move_on_after(timeout_s):
                if self.messages is not None:
                    await self.messages.wait_done()
                await self.send(bye_message(ending))
        return encode_close(ending.code, ending.reason)

    def _on_change(self) -> None:
        if self.session.ending is None:
            self.line.look_again()
        elif self._reading is not None:
            self._reading.cancel()

    async def _read(self, data: bytes) -> Closing | None:
        """Takes what the client sends until it closes or leaves. Raises BadInput, BrokenResourceError."""
        while True:
            if data:
                closing = await self._take(data)
                if closing is not None:
                    return closing
            inbox = self.inbox
            if inbox is not None and inbox.is_empty:
                inbox = self.inbox = None
            if inbox is None:
                data = await self.line.stream.receive_some(READ_BYTES)
            else:
                data = await self._read_more(inbox)
            if not data:
                return None

    async def _read_more(self, inbox: Inbox) -> bytes:
        """More of a message that has begun, or while others are worked on. b"" also when it was given up."""
        with trio.CancelScope() as inbox.on_give_up:
            inbox.is_waiting = True
            try:
                return await self.line.stream.receive_some(READ_BYTES)
            finally:
                inbox.is_waiting = False
        return b""

    async def _take(self, data: bytes) -> Closing | None:
        """Raises BadInput, BrokenResourceError."""
        if self.inbox is None:
            self.inbox = self._new_inbox()
        inbox = self.inbox
        for frame in inbox.frames(data):
            if frame.opcode is Opcode.PING:
                assert isinstance(frame.payload, bytes)
                await self.line.send(Piece(encode_pong(frame.payload), NOWHERE, 0))
            elif frame.opcode is Opcode.CLOSE:
                assert isinstance(frame.payload, bytes)
                closing = parse_close(frame.payload)
                self._is_peer_closed = True
                return closing
            elif not frame.opcode.iscontrol():
                await inbox.add(frame)
                if frame.message_finished:
                    await self._work(inbox)
        return None

    def _new_inbox(self) -> Inbox:
        return Inbox(
            limits=self._delivery.limits, budget=self.parts.budget, is_compressed=self._packing == "deflate"
        )  # fmt: skip

    async def _work(self, inbox: Inbox) -> None:
        """Has the messages looked at; waits while too many do. Raises BadInput."""
        self.look_at_messages()
        limits = self._delivery.limits
        if len(inbox.messages) > limits.unread_messages:
            with trio.move_on_after(limits.admit_timeout) as scope:
                while len(inbox.messages) > limits.unread_messages and self.messages is not None:
                    await self.messages.wait_taken()
            if scope.cancelled_caught:
                raise BadInput(CLOSE_POLICY, "too many messages wait to be looked at", "unread_messages")

    def look_at_messages(self) -> None:
        """Sees to it that somebody does."""
        if self.messages is None:
            self.messages = SocketMessages(self)
            self.parts.lane.start_soon(self.messages.run)
        self.messages.notice()

    def _let_go(self) -> None:
        """Nobody else writes to the connection any more."""
        self.session.on_change = None
        self.line.close()
        for seat in tuple(self.line.seats.values()):
            seat.close()  # the registry still knows what it was, until the session leaves
        for name in tuple(self.named or ()):
            self.detach(name)
        if self.inbox is not None:
            self.inbox.close()
        if self.messages is not None:
            self.messages.notice()

    async def _close(self, frame: bytes | None) -> None:
        """Sends a close frame and waits for the peer's, both at most for the timeout, then cuts. Shielded."""
        stream = self.line.stream
        try:
            if frame is not None:
                with trio.move_on_after(self._delivery.settings.close_timeout, shield=True):
                    await stream.send_all(frame)
                    if not self._is_peer_closed:
                        await self._read_to_close(stream)
        except (trio.BrokenResourceError, trio.BusyResourceError):
            pass
        finally:
            stream.abort()

    async def _read_to_close(self, stream: PushStream) -> None:
        """Up to the peer's close frame, where its frames can still be told apart, else up to its end."""
        inbox = self.inbox or self._new_inbox()
        while data := await stream.receive_some(READ_BYTES):
            try:
                if any(frame.opcode is Opcode.CLOSE for frame in inbox.frames(data)):
                    return
            except BadInput:
                continue

    # What subscriptions need.

    async def open(self, query: LiveQuery) -> OpenReader:
        """A reader for a subscription. Raises OverlaydErrors."""
        lane = self.parts.lane
        query = lane.delivery.see(query, self.principal)
        self.parts.registry.check_query(self.session, query)
        return await lane.delivery.open_reader(query, self.principal.name, lane.fan_out.horizon)

    async def begin(self, name: str, opened: OpenReader) -> Seat:
        """The subscription says that it begins, and does. Raises BrokenResourceError."""
        format = self.forced or opened.query.format
        seat = Seat(self.line, name, opened, Wire(TRANSPORT, format, sub=name, packing=self._packing))
        self.parts.registry.add_reader(self.session, name, seat)
        feed = seat.feed = Feed(self._delivery, self.session, opened)
        try:
            await self.send(subscribed_message(opened, name), format)
        except BaseException:
            self.drop(seat)
            raise
        if seat.is_over:
            return seat
        self.line.behind[seat] = None
        if not self.parts.lane.fan_out.try_join(seat, feed):
            self.parts.lane.catch_up(self.line)
        return seat

    def drop(self, seat: Seat) -> None:
        """The subscription ends. Again does nothing."""
        if not seat.is_over:
            self.parts.registry.drop_reader(self.session, seat.name)
            self.detach(seat.name)

    def detach(self, name: str) -> None:
        """If the subscription of this id is a durable one, it is read no more. Again does nothing."""
        named = None if self.named is None else self.named.pop(name, None)
        if named is not None:
            named.detach()

    async def send(self, body: msgspec.Struct, format: FrameFormat = "packet") -> None:
        """One of the node's own messages. Checkpoint. Raises BrokenResourceError."""
        wire = _PLAIN
        await self.line.send(wire.own("", self.scribe.own(body, self.forced or format)))

    # What the fan-out asks of a transport.

    def tick(self, seat: Seat, cursor: Cursor) -> Piece:
        return seat.wire.own("", self.scribe.own(self.scribe.heartbeat(cursor, seat.name), seat.wire.format))

    def ping(self) -> bytes:
        return encode_ping()

    async def refuse(self, seat: Seat, error: OverlaydError) -> None:
        """Without a name it was the session's own subscription, and the session ends with it."""
        name = seat.name
        self.drop(seat)
        await self.send(error_message(error, sub=name))
        if not name:
            self.session.end(Ending(close_code_of(error), error.code))

    async def end_seat(self, seat: Seat, ending: Ending) -> None:
        if self.session.ending is not None:
            return
        name = seat.name
        self.drop(seat)
        if name:
            await self.send(error_message(StreamPaused("every stream of the subscription is stopped"), sub=name))
        else:
            self.session.end(ending)

    @property
    def _delivery(self) -> Delivery:
        return self.parts.lane.delivery


def close_code_of(error: OverlaydError) -> int:
    """How a session ends whose own subscription can't be, or can't go on."""
    for kind, code in _CLOSE_CODES:
        if isinstance(error, kind):
            return code
    return CLOSE_FAULT if error.status >= 500 else CLOSE_POLICY


_PLAIN = Wire(TRANSPORT)
