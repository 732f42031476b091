"""Packets on their way out: built, cut into requests, and their answers added up. No I/O here."""

import base64
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import UNSET

from overlayd.model.errors import (
    CommitFailed,
    InvalidPacket,
    NodeUnreachable,
    OverlaydError,
    UncertainPublish,
    UnexpectedAnswer,
    UnusableJson,
    Violation,
)
from overlayd.model.wire import PublishBody, ReceiptBody

CHUNK_PACKETS = 1000
CHUNK_BYTES = 4 << 20
"""One request holds at most so many packets and bytes (a larger packet goes alone)."""
ERRORS_MAX = 1000
"""Rejections that an outcome lists; the rest is only counted."""

PacketLike = Mapping[str, Any] | bytes | str
"""A packet object: a mapping with `data`, or its JSON text, which is sent as it is."""


def build_packet(data: Any = UNSET, *, octets: bytes | None = None, **members: Any) -> bytes:
    """The JSON text of a packet object. Members that are None are left out.

    `data` is anything that msgspec can encode, or a msgspec.Raw, which is sent verbatim. Raises InvalidPacket.
    """
    if (data is UNSET) == (octets is None):
        raise InvalidPacket("give either data or octets", subject="packet")
    packet: dict[str, Any] = {name: value for name, value in members.items() if value is not None}
    if octets is not None:
        packet["data_base64"] = base64.b64encode(octets).decode()
    else:
        packet["data"] = data
    return encode_packet(packet)


def encode_packet(packet: PacketLike) -> bytes:
    """The JSON text on one line. Raises InvalidPacket, or UnusableJson for what JSON can't say."""
    if isinstance(packet, str):
        packet = packet.encode()
    if isinstance(packet, bytes):
        return _one_line(packet)
    try:
        text = msgspec.json.encode(packet)
    except (TypeError, ValueError, OverflowError, UnicodeEncodeError) as err:
        raise InvalidPacket(f"the packet can't be written as JSON: {err}", subject="packet") from err
    if b"null" in text:  # how msgspec writes NaN and infinity, which would then travel as a value of its own
        _refuse_nan(packet, "")
    return text


def _one_line(text: bytes) -> bytes:
    text = text.strip()
    if b"\n" in text or b"\r" in text:  # in JSON only ever white space between tokens
        try:
            return msgspec.json.format(text, indent=-1)
        except msgspec.DecodeError as err:
            raise InvalidPacket(f"the packet isn't JSON: {err}", subject="packet") from err
    return text


def _refuse_nan(value: Any, pointer: str) -> None:
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        raise UnusableJson(
            f"{value} isn't JSON", violations=[Violation(pointer=pointer, code="json.unusable", detail="not a number")]
        )
    if isinstance(value, Mapping):
        for name, member in value.items():
            _refuse_nan(member, f"{pointer}/{name}")
    elif isinstance(value, list | tuple | set | frozenset):
        for index, member in enumerate(value):
            _refuse_nan(member, f"{pointer}/{index}")
    elif hasattr(value, "__struct_fields__") or hasattr(value, "__dataclass_fields__"):
        _refuse_nan(msgspec.to_builtins(value), pointer)


class _OnlyId(msgspec.Struct):
    id: str | None = None


_ID_DECODER = msgspec.json.Decoder(_OnlyId)


def is_safe_to_repeat(text: bytes) -> bool:
    """Whether sending a packet object twice can't append it twice: it carries an id, or it can't be a packet."""
    try:
        return bool(_ID_DECODER.decode(text).id)
    except msgspec.DecodeError:
        return True


class Chunk(msgspec.Struct):
    """The packets of one request. `first_number` is the 1-based number of its first packet in the whole input."""

    first_number: int
    lines: list[bytes] = []
    size_bytes: int = 0
    has_ids: bool = True

    @property
    def last_number(self) -> int:
        return self.first_number + len(self.lines) - 1


class Chunker:
    """Cuts packets into requests that are bounded in packets and bytes."""

    def __init__(self, *, packets_max: int = CHUNK_PACKETS, bytes_max: int = CHUNK_BYTES) -> None:
        self._packets_max = packets_max
        self._bytes_max = bytes_max
        self._chunk = Chunk(1)

    def add(self, packet: PacketLike) -> Chunk | None:
        """Takes a packet; gives the chunk that is full now, without it if it no longer fitted. Raises InvalidPacket."""
        line = encode_packet(packet)
        full = None
        if self._chunk.lines and self._chunk.size_bytes + len(line) > self._bytes_max:
            full = self.finish()
        self._chunk.lines.append(line)
        self._chunk.size_bytes += len(line) + 1
        self._chunk.has_ids = self._chunk.has_ids and is_safe_to_repeat(line)
        if full is None and len(self._chunk.lines) >= self._packets_max:
            full = self.finish()
        return full

    def finish(self) -> Chunk | None:
        """What is left."""
        chunk = self._chunk
        self._chunk = Chunk(chunk.first_number + len(chunk.lines))
        return chunk if chunk.lines else None


class PublishOutcome(msgspec.Struct):
    """What became of many packets. `errors` name packets by `line`, their 1-based number in the input.

    `errors` lists at most 1,000; `rejected` counts all. `first` and `last` are the first and last receipt.
    """

    sent: int = 0
    sent_bytes: int = 0
    accepted: int = 0
    duplicates: int = 0
    rejected: int = 0
    errors: list[Violation] = []
    first: ReceiptBody | None = None
    last: ReceiptBody | None = None

    def add(self, chunk: Chunk, body: PublishBody) -> None:
        """Adds one request's answer."""
        self.sent += len(chunk.lines)
        self.sent_bytes += chunk.size_bytes
        self.accepted += body.accepted
        self.duplicates += body.duplicates
        self.rejected += body.rejected
        room = ERRORS_MAX - len(self.errors)
        self.errors += [_numbered(violation, chunk) for violation in body.errors[: max(0, room)]]
        first, last = _ends_of(body)
        self.first = self.first or first
        self.last = last or self.last


def _numbered(violation: Violation, chunk: Chunk) -> Violation:
    if violation.line is not None:
        number = chunk.first_number + violation.line - 1
    else:
        number = chunk.first_number + (violation.index or 0)
    return msgspec.structs.replace(violation, line=number, index=None)


def _ends_of(body: PublishBody) -> tuple[ReceiptBody | None, ReceiptBody | None]:
    if body.receipts:
        return body.receipts[0], body.receipts[-1]
    return body.first or None, body.last or None


def is_uncertain(error: OverlaydError) -> bool:
    """Whether packets may have become durable although the request failed with this."""
    if isinstance(error, NodeUnreachable):
        return error.is_sent
    return isinstance(error, CommitFailed | UnexpectedAnswer)


def explained(error: OverlaydError, chunk: Chunk, done: PublishOutcome) -> OverlaydError:
    """What to raise when a request failed for good: UncertainPublish where a repeat might append packets twice.

    A request that broke off on the way says itself how far it got; that is put into the hint.
    """
    if not chunk.has_ids and is_uncertain(error):
        return _uncertain(chunk, done, error)
    taken = sum(error.extra.get(name, 0) for name in ("accepted", "duplicates", "rejected"))
    if taken and not chunk.has_ids:
        error.hint = (
            f"packets up to {chunk.first_number + taken - 1} were dealt with, those from {chunk.first_number + taken} "
            f"on were not. {error.hint}"
        ).rstrip()
    return error


def _uncertain(chunk: Chunk, done: PublishOutcome, error: OverlaydError) -> UncertainPublish:
    """What to raise when a chunk without ids was sent and nobody said what became of it."""
    return UncertainPublish(
        f"packets {chunk.first_number} to {chunk.last_number} were sent and no answer came ({error.detail}); "
        f"some of them carry no id, so sending them again might append them twice. "
        f"The {done.sent} packets before them were answered.",
        hint="give every packet an id, and a repeat is safe",
        extra={"first_number": chunk.first_number, "last_number": chunk.last_number, "answered": done.sent},
    )
