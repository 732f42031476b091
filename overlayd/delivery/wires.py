"""How messages become bytes on each transport. Equal wires give equal bytes, so each is made once for all sessions."""

import re
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, TypeAlias

import msgspec

from overlayd.delivery.deflate import deflate_message, gzip_part
from overlayd.delivery.frames import FrameBook, Message, tag_frame
from overlayd.delivery.query import FrameFormat
from overlayd.delivery.scanning import Piece, Pieces
from overlayd.model.cursor import Cursor, Epoch

Transport: TypeAlias = Literal["websocket", "sse", "ndjson"]
Packing: TypeAlias = Literal["", "deflate", "gzip"]
PIECE_BYTES = 64 << 10
"""What is written at once, unless one frame alone is longer: a session that is slow holds at most one piece."""

NOWHERE = Cursor(Epoch(0), 0)
"""The cursor of what moves no position."""

_TEXT_FRAME = 0x81
_COMPRESSED = 0x40
_PING, _PONG, _CLOSE = 0x89, 0x8A, 0x88
_REASON_BYTES_MAX = 120
_LINE_END = re.compile(rb"\r\n|\r|\n")
_LINE_ENDS = bytes.maketrans(b"\r\n", b"  ")


class Dress(msgspec.Struct, frozen=True):
    """Other words on the same wire, for the surface of an outside system. None of them gives b"", which would end a
    chunked answer. `own`: what stands for one of the node's own messages, by its name."""

    frame: Callable[[Message], bytes]
    tick: Callable[[Cursor], bytes]
    own: Callable[[str], bytes]


class Wire(msgspec.Struct, frozen=True):
    """The form of a subscription's frames. `sub` tags frames of a named subscription; `is_chunked`: as chunks of an
    HTTP/1.1 answer. Compression is `deflate` on WebSockets, `gzip` on the others."""

    transport: Transport
    format: FrameFormat = "packet"
    sub: str = ""
    is_chunked: bool = False
    packing: Packing = ""
    dress: Dress | None = None

    def pieces(self, messages: Sequence[Message], cursor: Cursor, frames: FrameBook) -> Pieces:
        """The messages, in pieces of at most PIECE_BYTES or one frame. `cursor` stands behind the last of them."""
        made: list[Piece] = []
        parts: list[bytes] = []
        size = count = 0
        before = cursor
        for message in messages:
            part = self._encode(message, frames)
            if parts and size + len(part) > PIECE_BYTES:
                made.append(self._piece(parts, before, count))
                parts, size, count = [], 0, 0
            parts.append(part)
            size += len(part)
            count += 1
            before = message.cursor
        if parts:
            made.append(self._piece(parts, cursor, count))
        return tuple(made)

    def own(self, event: str, text: bytes, cursor: Cursor | None = None) -> Piece:
        """One of the node's own messages; on SSE, `cursor` moves the resume point."""
        if self.dress is not None:
            return self.raw(self.dress.own(event))
        if self.transport == "websocket":
            return Piece(encode_text_frame(text), NOWHERE, 0)
        return self.raw(encode_sse(event, text, cursor) if self.transport == "sse" else encode_line(text))

    def raw(self, data: bytes) -> Piece:
        """Bytes of an HTTP answer's body as they go onto the wire."""
        return self._piece([data], NOWHERE, 0)

    def _encode(self, message: Message, frames: FrameBook) -> bytes:
        if self.dress is not None:
            return self.dress.frame(message)
        text = frames.text(message, self.format)
        if self.sub:
            text = tag_frame(text, self.sub)
        if self.transport == "sse":
            return encode_sse(message.kind, text, message.cursor)
        if self.transport == "ndjson":
            return encode_line(text)
        if self.packing == "deflate":
            packed = deflate_message(text) if self.sub else frames.packed(message, self.format, text)
            if packed is not None:
                return encode_text_frame(packed, is_compressed=True)
        return encode_text_frame(text)

    def _piece(self, parts: Iterable[bytes], cursor: Cursor, count: int) -> Piece:
        data = plain = b"".join(parts)
        if self.transport == "websocket":
            return Piece(data, cursor, count)
        if self.packing == "gzip":
            data = gzip_part(data)
        if self.is_chunked:
            data = encode_chunk(data)
        return Piece(data, cursor, count, plain if self.packing else b"")


def encode_text_frame(text: bytes, *, is_compressed: bool = False) -> bytes:
    """A whole text message as one unmasked frame (RFC 6455, 5.2)."""
    first, length = _TEXT_FRAME | (_COMPRESSED if is_compressed else 0), len(text)
    if length < 126:
        return bytes((first, length)) + text
    if length < 1 << 16:
        return struct.pack(">BBH", first, 126, length) + text
    return struct.pack(">BBQ", first, 127, length) + text


def encode_ping() -> bytes:
    """A ping without a payload: any byte of the peer counts as its answer."""
    return bytes((_PING, 0))


def encode_pong(payload: bytes) -> bytes:
    """The answer to a ping, whose payload is at most 125 bytes."""
    return bytes((_PONG, len(payload))) + payload


def encode_close(code: int | None, reason: str) -> bytes:
    """A close frame; without a code, an empty one. A long reason is cut."""
    if code is None:
        return bytes((_CLOSE, 0))
    text = reason.encode()[:_REASON_BYTES_MAX].decode(errors="ignore").encode()
    return struct.pack(">BBH", _CLOSE, 2 + len(text), code) + text


def encode_sse(event: str, text: bytes, cursor: Cursor | None = None) -> bytes:
    """One server-sent event. A payload's own line ends, which are white space in JSON, become lines of data."""
    data = text
    if b"\n" in text or b"\r" in text:
        data = b"\ndata: ".join(_LINE_END.split(text))
    place = b"" if cursor is None else b"id: %s\n" % str(cursor).encode()
    return b"%sevent: %s\ndata: %s\n\n" % (place, event.encode(), data)


def encode_sse_tick(cursor: Cursor) -> bytes:
    """An event with an id and nothing else moves the resume point and reaches no listener."""
    return b": heartbeat\nid: %s\n\n" % str(cursor).encode()


def encode_line(text: bytes) -> bytes:
    """One line of NDJSON. A payload's own line ends, which are white space in JSON, become blanks."""
    return text.translate(_LINE_ENDS) + b"\n"


def encode_chunk(data: bytes) -> bytes:
    """A chunk of an HTTP/1.1 body; the empty one ends it."""
    return b"%x\r\n%b\r\n" % (len(data), data)
