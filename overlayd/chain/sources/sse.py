"""Server-sent events, read piece by piece as they come (WHATWG HTML, 9.2). Sans-IO."""

import msgspec

EVENT_BYTES_MAX = 1 << 20
"""One event, or one line; a proof in it has a few thousand bytes."""


class SseEvent(msgspec.Struct, frozen=True):
    """An event. `kind` is "message" unless the sender says otherwise; `id` the last one that was given."""

    kind: str
    data: str
    id: str


class SseReader:
    """Takes bytes, gives whole events. Lines end with a line feed; what isn't known is passed over, as comments are."""

    def __init__(self) -> None:
        self.last_id = ""
        self._rest = b""
        self._data: list[str] = []
        self._kind = ""
        self._size = 0

    def feed(self, data: bytes) -> list[SseEvent]:
        """The events that are whole now. Raises ValueError for one that is too large."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        found = [self._take_line(line.removesuffix(b"\r").decode("utf-8", "replace")) for line in lines]
        if len(self._rest) > EVENT_BYTES_MAX:
            raise ValueError(f"a line is longer than {EVENT_BYTES_MAX} bytes")
        return [event for event in found if event is not None]

    def _take_line(self, line: str) -> SseEvent | None:
        if not line:
            return self._finish()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._size += len(value) + 1
            if self._size > EVENT_BYTES_MAX:
                raise ValueError(f"an event is larger than {EVENT_BYTES_MAX} bytes")
            self._data.append(value)
        elif name == "event":
            self._kind = value
        elif name == "id" and "\0" not in value:
            self.last_id = value
        return None

    def _finish(self) -> SseEvent | None:
        data, kind = "\n".join(self._data), self._kind or "message"
        is_empty = not self._data
        self._data, self._kind, self._size = [], "", 0
        return None if is_empty else SseEvent(kind, data, self.last_id)
