"""Live sessions over a streamed HTTP answer: server-sent events, or one JSON message per line.

On the live lane the fan-out writes to the connection (`StreamSession`). Without it the answer is pulled (`LiveStream`):
the server asks for the next piece when the peer took the last one. Both say the same in the same bytes.
"""

import zlib
from typing import Literal, TypeAlias

import msgspec
import trio

from overlayd.delivery.deflate import GZIP_HEAD, gzip_end
from overlayd.delivery.delivery import Delivery, OpenReader
from overlayd.delivery.feed import Feed, FeedEvent, Parcel, Tick
from overlayd.delivery.lane import LiveLane
from overlayd.delivery.line import Line, Seat
from overlayd.delivery.messages import Scribe, bye_message, error_message, subscribed_message
from overlayd.delivery.scanning import Piece
from overlayd.delivery.session import CLOSE_STALLED, Ending, Registry, Session
from overlayd.delivery.wires import (
    NOWHERE,
    Dress,
    Packing,
    Wire,
    encode_chunk,
    encode_line,
    encode_sse,
    encode_sse_tick,
)
from overlayd.model.cursor import Cursor
from overlayd.model.errors import OverlaydError
from overlayd.model.push_stream import PushStream

__all__ = ["LiveStream", "StreamForm", "StreamSession", "StreamTransport", "encode_line", "encode_sse"]

StreamTransport: TypeAlias = Literal["sse", "ndjson"]
_UNSAID = 0
"""An ending that was told already."""
UNREAD_BYTES_MAX = 64 << 10
"""What a client may send behind its request while the answer goes on; whoever sends more is cut."""


class StreamForm(msgspec.Struct, frozen=True):
    """How the answer is written. `is_chunked`: in chunks of HTTP/1.1, where nobody else does that. `greeting`: what a
    dressed answer begins with."""

    transport: StreamTransport
    is_gzip: bool = False
    is_chunked: bool = False
    dress: Dress | None = None
    greeting: bytes = b""

    def wire(self, opened: OpenReader) -> Wire:
        """The form of its frames."""
        packing: Packing = "gzip" if self.is_gzip else ""
        return Wire(self.transport, opened.query.format, is_chunked=self.is_chunked, packing=packing, dress=self.dress)


class _Words:
    """What the node itself says on one stream."""

    __slots__ = ("_delivery", "_greeting", "_node", "_opened", "_scribe", "wire")

    def __init__(self, form: StreamForm, delivery: Delivery, session: Session, opened: OpenReader, node: str) -> None:
        self.wire = form.wire(opened)
        self._greeting = form.greeting
        self._delivery = delivery
        self._opened = opened
        self._node = node
        self._scribe = Scribe(delivery, session.id)

    def begin(self) -> list[Piece]:
        """The first words."""
        if self.wire.dress is not None:
            return [self.wire.raw(self._greeting)]
        retry = b"retry: %d\n\n" % int(self._delivery.settings.sse_retry * 1000)
        first = [self.wire.raw(retry)] if self.wire.transport == "sse" else []
        return [
            *first,
            self.own("welcome", self._scribe.welcome(self._node, self._opened.proof)),
            self.own("subscribed", subscribed_message(self._opened), self._opened.start),
        ]

    def tick(self, cursor: Cursor) -> Piece:
        """A sign of life that moves the resume point."""
        if self.wire.dress is not None:
            return self.wire.raw(self.wire.dress.tick(cursor))
        if self.wire.transport == "sse":
            return self.wire.raw(encode_sse_tick(cursor))
        return self.own("heartbeat", self._scribe.heartbeat(cursor))

    def own(self, event: str, body: msgspec.Struct, cursor: Cursor | None = None) -> Piece:
        return self.wire.own(event, self._scribe.own(body, self.wire.format), cursor)

    def head(self) -> bytes:
        """What a compressed answer begins with."""
        if not self.wire.packing:
            return b""
        return encode_chunk(GZIP_HEAD) if self.wire.is_chunked else GZIP_HEAD

    def end(self, crc32: int, plain_bytes: int) -> bytes:
        """What ends the answer's body."""
        end = gzip_end(crc32, plain_bytes) if self.wire.packing else b""
        if not self.wire.is_chunked:
            return end
        return (encode_chunk(end) if end else b"") + encode_chunk(b"")


class StreamSession:
    """A live answer on the live lane. Made when the query was found right; `run` then writes the whole body."""

    __slots__ = ("_lane", "_reading", "_seat", "_unread", "_words", "line", "session")

    def __init__(
        self, form: StreamForm, stream: PushStream, session: Session, opened: OpenReader, *, lane: LiveLane,
        registry: Registry, node: str,
    ) -> None:  # fmt: skip
        """Takes over the reader; its session's end closes it."""
        self.session = session
        self.line = Line(stream, session, self, lane.fan_out, session.end)
        self._lane = lane
        self._words = _Words(form, lane.delivery, session, opened, node)
        self._seat = Seat(self.line, "", opened, self._words.wire)
        self._reading: trio.CancelScope | None = None
        self._unread = 0
        registry.add_reader(session, "", self._seat)

    async def run(self, head: bytes, feed: Feed, first: FeedEvent | None) -> bool:
        """Writes the head and everything behind it, until either side ends it; whether the answer is whole.
        `first` is what the feed gave already. Checkpoint. Raises BrokenResourceError when the peer is gone."""
        line, seat = self.line, self._seat
        self.session.on_change = self._on_change
        try:
            line.start(None)
            await line.send(Piece(head + self._words.head(), NOWHERE, 0))
            for piece in self._words.begin():
                await line.send(piece)
            seat.feed = feed
            await self._lane.catching_up.serve(line, seat, feed, first)
            if not seat.is_over:
                line.behind[seat] = None
                if not self._lane.fan_out.try_join(seat, feed):
                    self._lane.catch_up(line)
            with trio.CancelScope() as self._reading:
                if self.session.ending is None:
                    await self._read()
                    return False
            return await self._end() and not self._unread
        finally:
            self.session.on_change = None
            line.close()
            seat.close()

    async def _read(self) -> None:
        """Until the client leaves, or sends too much that nobody asked for."""
        while self._unread <= UNREAD_BYTES_MAX and (data := await self.line.stream.receive_some()):
            self._unread += len(data)

    async def _end(self) -> bool:
        ending = self.session.ending
        assert ending is not None
        self._seat.close()
        if ending.code == CLOSE_STALLED:
            self._lane.delivery.meters.slow_closed.labels(self._words.wire.transport).inc()
            return False
        with trio.move_on_after(self._lane.delivery.settings.close_timeout):
            if ending.code != _UNSAID:
                await self.line.send(self._words.own("bye", bye_message(ending)))
            await self.line.stream.send_all(self._words.end(*self.line.plain_sum))
            return True
        return False

    def _on_change(self) -> None:
        if self.session.ending is None:
            self.line.look_again()
        elif self._reading is not None:
            self._reading.cancel()

    # What the fan-out asks of a transport.

    def tick(self, seat: Seat, cursor: Cursor) -> Piece:
        return self._words.tick(cursor)

    def ping(self) -> bytes:
        return b""

    async def refuse(self, seat: Seat, error: OverlaydError) -> None:
        seat.close()
        await self.line.send(self._words.own("error", error_message(error)))
        self.session.end(Ending(_UNSAID, error.code))

    async def end_seat(self, seat: Seat, ending: Ending) -> None:
        seat.close()
        self.session.end(ending)
        await trio.lowlevel.checkpoint()


class LiveStream:
    """The body of a live answer, as an async iterator of bytes. `aclose` it, or drop it: the session ends then."""

    def __init__(
        self, form: StreamForm, session: Session, opened: OpenReader, *, delivery: Delivery, registry: Registry,
        node: str,
    ) -> None:  # fmt: skip
        """Takes over the session and its reader."""
        self._session = session
        self._delivery = delivery
        self._registry = registry
        self._words = _Words(form, delivery, session, opened, node)
        self._feed = Feed(delivery, session, opened)
        self._first: FeedEvent | None = None
        self._is_begun = False
        self._is_over = False
        self._crc32 = self._plain_bytes = 0

    async def prepare(self) -> None:
        """Looks at the first page, so that what is wrong with the start can still be told by a status.

        Checkpoint. Raises CursorExpired with on_gap=error, and what reading the log can raise.
        """
        self._first = await self._feed.take()

    def __aiter__(self) -> "LiveStream":
        return self

    async def __anext__(self) -> bytes:
        """The next piece. Checkpoint, but for the first one."""
        if self._is_over:
            raise StopAsyncIteration
        if not self._is_begun:
            self._is_begun = True
            return self._words.head() + self._joined(self._words.begin())
        event, self._first = self._first, None
        try:
            while event is None:
                await self._feed.wait()
                event = await self._feed.take()
        except OverlaydError as error:
            self._is_over = True
            return self._joined([self._words.own("error", error_message(error))])
        return self._joined(self._pieces(event))

    async def aclose(self) -> None:
        """Ends the session. Not a checkpoint, so that it works while cancelled."""
        self.close()

    def close(self) -> None:
        """As `aclose`. Again does nothing."""
        self._is_over = True
        self._registry.leave(self._session)

    def __del__(self) -> None:
        # A response that is dropped before its body was asked for is never closed by the framework.
        self.close()

    def _pieces(self, event: FeedEvent) -> list[Piece]:
        if isinstance(event, Parcel):
            wire = self._words.wire
            self._session.messages_sent += len(event.messages)
            self._delivery.meters.count_sent(wire.transport, event.messages, is_live=event.is_live)
            return list(event.pieces(wire, self._delivery.frames))
        if isinstance(event, Tick):
            return [self._words.tick(event.cursor)]
        self._is_over = True
        self._session.end(event)
        return [self._words.own("bye", bye_message(event))]

    def _joined(self, pieces: list[Piece]) -> bytes:
        data = b"".join(piece.data for piece in pieces)
        for piece in pieces:
            self._crc32 = zlib.crc32(piece.plain, self._crc32)
            self._plain_bytes += len(piece.plain)
        if self._is_over:
            data += self._words.end(self._crc32, self._plain_bytes)
        self._session.bytes_sent += len(data)
        return data
