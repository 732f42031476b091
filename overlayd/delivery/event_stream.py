"""Live sessions over a streamed HTTP answer: server-sent events, or one JSON message per line.

Both are pulled: the server asks for the next piece when the peer took the last one, so a slow peer costs a page.
"""

import re
from typing import Literal, TypeAlias

import msgspec

from overlayd.delivery.delivery import Delivery, OpenReader
from overlayd.delivery.feed import Feed, FeedEvent, Parcel, Tick
from overlayd.delivery.frames import Message
from overlayd.delivery.messages import Scribe, bye_message, error_message, subscribed_message
from overlayd.delivery.session import Ending, Registry, Session
from overlayd.model.cursor import Cursor
from overlayd.model.errors import OverlaydError

StreamTransport: TypeAlias = Literal["sse", "ndjson"]
_LINE_END = re.compile(rb"\r\n|\r|\n")
_LINE_ENDS = bytes.maketrans(b"\r\n", b"  ")


def encode_sse(event: str, text: bytes, cursor: Cursor | None = None) -> bytes:
    """One server-sent event. A payload's own line ends, which are white space in JSON, become lines of data."""
    data = text
    if b"\n" in text or b"\r" in text:
        data = b"\ndata: ".join(_LINE_END.split(text))
    place = b"" if cursor is None else b"id: %s\n" % str(cursor).encode()
    return b"%sevent: %s\ndata: %s\n\n" % (place, event.encode(), data)


def encode_line(text: bytes) -> bytes:
    """One line of NDJSON. A payload's own line ends, which are white space in JSON, become blanks."""
    return text.translate(_LINE_ENDS) + b"\n"


class LiveStream:
    """The body of a live answer, as an async iterator of bytes. `aclose` it, or drop it: the session ends then."""

    def __init__(
        self, transport: StreamTransport, session: Session, opened: OpenReader, *, delivery: Delivery,
        registry: Registry, node: str,
    ) -> None:  # fmt: skip
        """Takes over the session and its reader."""
        self._transport: StreamTransport = transport
        self._session = session
        self._opened = opened
        self._format = opened.query.format
        self._delivery = delivery
        self._registry = registry
        self._node = node
        self._scribe = Scribe(delivery, session.id)
        self._feed = Feed(delivery, session, opened)
        self._first: FeedEvent | None = None
        self._is_begun = False
        self._is_over = False

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
            return self._count(self._begin())
        event, self._first = self._first, None
        try:
            while event is None:
                await self._feed.wait()
                event = await self._feed.take()
        except OverlaydError as error:
            self._is_over = True
            return self._count(self._own("error", error_message(error)))
        return self._count(self._piece(event))

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

    def _begin(self) -> bytes:
        welcome = self._own("welcome", self._scribe.welcome(self._node, self._opened.proof))
        subscribed = self._own("subscribed", subscribed_message(self._opened), self._opened.start)
        if self._transport == "ndjson":
            return welcome + subscribed
        retry_ms = int(self._delivery.settings.sse_retry * 1000)
        return b"retry: %d\n\n" % retry_ms + welcome + subscribed

    def _piece(self, event: FeedEvent) -> bytes:
        if isinstance(event, Parcel):
            return self._parcel(event)
        if isinstance(event, Tick):
            return self._tick(event.cursor)
        return self._bye(event)

    def _parcel(self, parcel: Parcel) -> bytes:
        key = f"{self._transport} {self._format}"
        piece = parcel.wire.get(key)
        if piece is None:
            piece = parcel.wire[key] = b"".join(map(self._message, parcel.messages))
        self._session.messages_sent += len(parcel.messages)
        self._delivery.meters.count_sent(self._transport, parcel.messages, is_live=parcel.is_live)
        return piece

    def _message(self, message: Message) -> bytes:
        text = self._scribe.frame(message, self._format)
        return encode_sse(message.kind, text, message.cursor) if self._transport == "sse" else encode_line(text)

    def _tick(self, cursor: Cursor) -> bytes:
        """An event with an id and nothing else moves the resume point and reaches no listener."""
        if self._transport == "sse":
            return b": heartbeat\nid: %s\n\n" % str(cursor).encode()
        return self._own("heartbeat", self._scribe.heartbeat(cursor))

    def _bye(self, ending: Ending) -> bytes:
        self._is_over = True
        self._session.end(ending)
        return self._own("bye", bye_message(ending))

    def _own(self, event: str, body: msgspec.Struct, cursor: Cursor | None = None) -> bytes:
        text = self._scribe.own(body, self._format)
        return encode_sse(event, text, cursor) if self._transport == "sse" else encode_line(text)

    def _count(self, piece: bytes) -> bytes:
        self._session.bytes_sent += len(piece)
        return piece
