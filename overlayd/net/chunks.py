"""The chunked transfer coding (RFC 9112 7.1), read strictly. Sans-IO.

What two readers could read differently is refused: sizes are hexadecimal digits and nothing else, every line
ends with CR LF, trailers are header lines. Extensions and trailers are bounded and ignored.
"""

import re

from overlayd.model.errors import BadRequest, HeadTooLarge

_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?")
_TRAILER = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*")
_AT_SIZE, _IN_CHUNK, _AT_CHUNK_END, _AT_TRAILER, _DONE = range(5)


class ChunkDecoder:
    """Takes a body as it was sent and gives what it holds. `rest`: the bytes behind the body, once it is done."""

    __slots__ = ("_held", "_left", "_line_bytes_max", "_state", "_trailer_bytes", "rest")

    def __init__(self, line_bytes_max: int) -> None:
        """`line_bytes_max`: the longest size line, and the bound of all trailers together."""
        self._line_bytes_max = line_bytes_max
        self._state = _AT_SIZE
        self._left = 0
        self._held = b""
        self._trailer_bytes = 0
        self.rest = b""

    @property
    def is_done(self) -> bool:
        """Whether the body's last byte was fed."""
        return self._state == _DONE

    def feed(self, data: bytes) -> bytes:
        """What these bytes add to the body. Not to be called once it is done. Raises BadRequest, HeadTooLarge."""
        if self._held:
            data, self._held = self._held + data, b""
        pieces: list[bytes] = []
        at, end = 0, len(data)
        while at < end and self._state != _DONE:
            if self._state == _IN_CHUNK:
                piece = data[at : at + self._left]
                pieces.append(piece)
                at += len(piece)
                self._left -= len(piece)
                if not self._left:
                    self._state = _AT_CHUNK_END
                continue
            stop = data.find(b"\r\n", at, at + self._line_bytes_max + 2)
            if self._state == _AT_CHUNK_END and stop != at and (end - at > 1 or data[at] != 13):
                raise BadRequest("the request's body can't be read: a chunk is longer than it says")
            if stop < 0:
                if b"\n" in data[at:]:
                    raise BadRequest("the request's body can't be read: a line ends without CR")
                if end - at > self._line_bytes_max:
                    raise HeadTooLarge("a chunk's head or the trailers are too long")
                self._held = data[at:]
                break
            self._take_line(data[at:stop])
            at = stop + 2
        if self._state == _DONE:
            self.rest = data[at:]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _take_line(self, line: bytes) -> None:
        if self._state == _AT_CHUNK_END:
            self._state = _AT_SIZE
        elif self._state == _AT_SIZE:
            match = _SIZE.fullmatch(line)
            if match is None:
                raise BadRequest("the request's body can't be read: a chunk's size isn't a hexadecimal number")
            self._left = int(match[1], 16)
            self._state = _IN_CHUNK if self._left else _AT_TRAILER
        elif not line:
            self._state = _DONE
        else:
            self._trailer_bytes += len(line) + 2
            if self._trailer_bytes > self._line_bytes_max:
                raise HeadTooLarge("a chunk's head or the trailers are too long")
            if _TRAILER.fullmatch(line) is None:
                raise BadRequest("the request's body can't be read: a trailer isn't a header line")
