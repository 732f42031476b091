"""Packets out of a byte stream: one JSON value, a JSON array, or a value a line. Ids are added where asked.

Values are cut out of the input and sent as they are, never decoded and written again.
"""

from collections.abc import Iterator
from typing import BinaryIO, Literal

import click
import msgspec
from blake3 import blake3

LINE_BYTES_MAX = 64 << 20
WHOLE_BYTES_MAX = 256 << 20
"""An input that isn't a value a line is taken into memory."""

Form = Literal["auto", "json", "ndjson"]


class _OnlyId(msgspec.Struct):
    id: str | None = None


_ARRAY = msgspec.json.Decoder(list[msgspec.Raw])
_ONLY_ID = msgspec.json.Decoder(_OnlyId)


class PacketInput:
    """Iterates over the packet objects of an input.

    `form` auto: an input whose first line is a whole value has a value a line, unless that value is an array and
    all there is; otherwise it is one JSON text, a packet or an array of them.
    `is_bare`: the values are the packets' data, not packet objects. `id_prefix` gives a packet without an id that
    prefix and its line number (its place, in an array); `has_content_ids` a hash of its text. `place_of` finds the
    line of the n-th packet; `without_id` counts packets that went out without an id.
    """

    def __init__(
        self,
        source: BinaryIO,
        *,
        form: Form = "auto",
        is_bare: bool = False,
        id_prefix: str | None = None,
        has_content_ids: bool = False,
    ) -> None:
        self._source = source
        self._form = form
        self._is_bare = is_bare
        self._id_prefix = id_prefix
        self._has_content_ids = has_content_ids
        self._blank_before: list[tuple[int, int]] = []
        self.read_bytes = 0
        self.count = 0
        self.without_id = 0
        self.unit = "line"

    def __iter__(self) -> Iterator[bytes]:
        for place, text in self._values():
            self.count += 1
            if place - self.count != (self._blank_before[-1][1] if self._blank_before else 0):
                self._blank_before.append((self.count, place - self.count))
            yield self._packet_of(text, place)

    def place_of(self, number: int) -> int:
        """The line (in an array: the place, from 1) of the n-th packet."""
        return number + next((shift for first, shift in reversed(self._blank_before) if first <= number), 0)

    def _values(self) -> Iterator[tuple[int, bytes]]:
        if self._form == "json":
            yield from self._whole(b"")
            return
        lines = self._lines()
        first = next(lines, None)
        if first is None:
            return
        kind = "line" if self._form == "ndjson" else _kind_of(first[1])
        second = next(lines, None) if kind == "array" else None
        if kind == "array" and self._is_bare and second is not None:
            kind = "line"
        if kind == "line":
            yield first
            if second is not None:
                yield second
            yield from lines
        else:
            yield from self._whole(b"\n".join((first[1], b"" if second is None else second[1] + b"\n")))

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """Numbered lines that aren't blank."""
        number = 0
        while line := self._source.readline(LINE_BYTES_MAX + 1):
            number += 1
            self.read_bytes += len(line)
            if len(line) > LINE_BYTES_MAX:
                raise click.UsageError(f"line {number} is over {LINE_BYTES_MAX} bytes")
            text = line.strip()
            if text:
                yield number, text

    def _whole(self, begun: bytes) -> Iterator[tuple[int, bytes]]:
        """The values of an input that is one JSON text: an array's, or the one there is."""
        rest = self._source.read(WHOLE_BYTES_MAX + 1)
        self.read_bytes += len(rest)
        text = begun + rest
        if len(text) > WHOLE_BYTES_MAX:
            raise click.UsageError(f"a JSON input may have {WHOLE_BYTES_MAX} bytes; send a value a line (NDJSON)")
        self.unit = "packet"
        try:
            if text.lstrip()[:1] == b"[":
                values = [bytes(value) for value in _ARRAY.decode(text)]
            else:
                values = [bytes(msgspec.json.decode(text, type=msgspec.Raw))] if text.strip() else []
        except msgspec.DecodeError as err:
            raise click.UsageError(
                f"the input isn't JSON: {err}. If it is a value a line, say so: --input ndjson"
            ) from err
        yield from enumerate(values, 1)

    def _packet_of(self, text: bytes, place: int) -> bytes:
        packet = b'{"data":' + text + b"}" if self._is_bare else text
        if not packet.startswith(b"{"):
            return packet  # not a packet object; the node says so
        if not self._is_bare and _has_id(packet):
            return packet
        packet_id = self._id_for(text, place)
        if packet_id is None:
            self.without_id += _is_value(packet)
            return packet
        rest = packet[1:].lstrip()
        comma = b"" if rest.startswith(b"}") else b","
        return b'{"id":' + msgspec.json.encode(packet_id) + comma + rest

    def _id_for(self, text: bytes, place: int) -> str | None:
        if self._has_content_ids:
            return blake3(text).hexdigest()[:32]
        return None if self._id_prefix is None else f"{self._id_prefix}{place}"


def _has_id(packet: bytes) -> bool:
    try:
        return bool(_ONLY_ID.decode(packet).id)
    except msgspec.DecodeError:
        return False


def _is_value(text: bytes) -> bool:
    try:
        msgspec.json.decode(text, type=msgspec.Raw)
    except msgspec.DecodeError:
        return False
    return True


def _kind_of(line: bytes) -> Literal["line", "array", "part"]:
    """Whether an input's first line is a value of its own, a whole array, or the beginning of something longer."""
    if not _is_value(line):
        return "part"
    return "array" if line.startswith(b"[") else "line"
