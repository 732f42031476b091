"""Cuts an NDJSON body into lines while it arrives. Holds at most one line and one chunk."""

import msgspec


class Line(msgspec.Struct, gc=False, frozen=True):
    """One line that isn't blank. `number` counts from 1, blank lines included.

    `text` has no line end and no white space around it. It is None for a line over the limit.
    """

    number: int
    text: bytes | None


class LineSplitter:
    """Takes chunks, gives lines: `\\n` or `\\r\\n` ends one, the last needs no end, blank ones are skipped.

    A line over `line_bytes_max` (its end not counted) comes out once with `text` None; what follows it is
    not affected. No I/O in here: feed what arrived, then finish.
    """

    __slots__ = ("_held", "_held_bytes", "_is_overlong", "_line_bytes_max", "_number")

    def __init__(self, line_bytes_max: int) -> None:
        self._line_bytes_max = line_bytes_max
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._is_overlong = False
        self._number = 1

    @property
    def held_bytes(self) -> int:
        """Bytes of the line that isn't complete."""
        return self._held_bytes

    def feed(self, chunk: bytes) -> list[Line]:
        """The lines that are complete with this chunk."""
        first, *rest = chunk.split(b"\n")
        if not rest:
            self._hold(first)
            return []
        self._hold(first)
        out = self._close_line([])
        *whole, last = rest
        for text in whole:
            self._take(text, out)
        self._hold(last)
        return out

    def finish(self) -> list[Line]:
        """The last line, if it came without an end."""
        return self._close_line([])

    def _hold(self, part: bytes) -> None:
        """Keeps a part of a line; one byte more than the limit is allowed, for it may be the `\\r` of its end."""
        if not part or self._is_overlong:
            return
        self._held_bytes += len(part)
        if self._held_bytes > self._line_bytes_max + 1:
            self._is_overlong = True
            self._held, self._held_bytes = [], 0
        else:
            self._held.append(part)

    def _close_line(self, out: list[Line]) -> list[Line]:
        if self._is_overlong:
            out.append(Line(self._number, None))
            self._number += 1
        else:
            self._take(b"".join(self._held), out)
        self._held, self._held_bytes, self._is_overlong = [], 0, False
        return out

    def _take(self, text: bytes, out: list[Line]) -> None:
        text = text.removesuffix(b"\r")
        if len(text) > self._line_bytes_max:
            out.append(Line(self._number, None))
        elif stripped := text.strip(b" \t\r"):
            out.append(Line(self._number, stripped))
        self._number += 1
