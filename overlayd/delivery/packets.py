"""One stream's packets by sequence, and packets by id: what `/v1/streams/{stream}/packets` and its kin answer."""

from collections.abc import Callable

import msgspec

from overlayd.delivery.frames import packet_body, state_at_append
from overlayd.delivery.matching import view_packet
from overlayd.model.cursor import Cursor, Epoch, format_epoch
from overlayd.model.entry import Kind, StoredEntry
from overlayd.model.errors import (
    BadCursor,
    DamagedEntry,
    PacketGone,
    UnknownPacket,
    VerificationFailed,
)
from overlayd.model.wire import GapReason, Packet, PacketGap
from overlayd.storage import Log, Stream

_REDUCED_PAGES_MAX = 10
_EPOCH_SHIFT = 40
"""Sequences jump to a new range when the log's epoch changes (docs/log-format.md, Epochs); that is no gap."""


class StreamPage(msgspec.Struct):
    """Packets behind a sequence and what is missing between them. `after`: the sequence to go on from."""

    packets: list[Packet]
    gaps: list[PacketGap]
    after: int

    @property
    def is_empty(self) -> bool:
        return not self.packets and not self.gaps


async def read_stream(log: Log, stream: Stream, after: int, limit: int) -> StreamPage:
    """Packets of a stream behind a sequence, as they stand now; about `page_bytes` of them. Checkpoint.

    Long runs that were taken away are passed over, several pages of them at a time.
    """
    page = StreamPage([], [], after)
    for _ in range(_REDUCED_PAGES_MAX):
        entries = await _read_some(log, stream, page, limit)
        for entry in entries:
            _add_hole(page, stream, entry.sequence)
            _add_entry(page, log, stream, entry)
        if page.packets or not entries:
            break
    return page


async def find_packet(log: Log, stream: Stream, sequence: int) -> StoredEntry:
    """The packet's entry. Checkpoint. Raises UnknownPacket, PacketGone, DamagedEntry."""
    offset = await log.find_offset(stream, sequence)
    if offset is None or offset <= log.minimum_index:
        if 0 < sequence < stream.oldest_sequence:
            raise _gone(stream, sequence, "retention")
        raise UnknownPacket(
            f"{stream.name} has no packet {sequence}", subject=f"{stream.name}/{sequence}",
            hint=f"its newest is {stream.head_sequence}",
        )  # fmt: skip
    entry = await log.read_entry(offset)
    if entry.is_reduced:
        raise _gone(stream, sequence, log.removal_cause(entry))
    return entry


def show_packet(entry: StoredEntry, stream: Stream) -> Packet:
    """A packet as it stands now. Raises DamagedEntry."""
    try:
        view = view_packet(entry, stream.name)
    except VerificationFailed as err:
        raise DamagedEntry(f"the packet's meta can't be read: {err.detail}", subject=f"offset {entry.offset}") from err
    return packet_body(view, state_at_append(stream.definition))


async def find_named(log: Log, packet_id: str, may_read: Callable[[str], bool]) -> list[Packet]:
    """Packets with the id, of any stream that may be read, oldest first; also the one that is called so for want of an id. Checkpoint."""
    entries = await log.find_by_id(packet_id)
    unnamed = await _find_unnamed(log, packet_id)
    packets = []
    for entry in (*entries, *([] if unnamed is None else [unnamed])):
        stream = log.find_stream_by_hash(entry.stream_hash)
        if stream is not None and not stream.is_deleted and may_read(stream.name):
            packets.append(show_packet(entry, stream))
    return packets


async def _find_unnamed(log: Log, packet_id: str) -> StoredEntry | None:
    """The packet called `<epoch>-<offset>` because it has no id of its own."""
    try:
        place = Cursor.parse(f"e{packet_id}")
        entry = await log.read_entry(place.offset) if place.index is None else None
    except (BadCursor, UnknownPacket, DamagedEntry):
        return None
    if entry is None or entry.kind != Kind.PACKET or entry.is_reduced or entry.epoch != place.epoch:
        return None
    stream = log.find_stream_by_hash(entry.stream_hash)
    is_called_so = stream is not None and show_packet(entry, stream).packet_id == packet_id
    assert f"{format_epoch(Epoch(entry.epoch))}-{entry.offset}" == packet_id
    return entry if is_called_so else None


async def _read_some(log: Log, stream: Stream, page: StreamPage, limit: int) -> list[StoredEntry]:
    """The next entries; damaged ones are told as gaps, after which the reading goes on one by one."""
    try:
        return await log.read_packets(stream, page.after, limit)
    except DamagedEntry:
        pass
    entries: list[StoredEntry] = []
    for sequence in range(page.after + 1, min(page.after + limit, stream.head_sequence) + 1):
        try:
            offset = await log.find_offset(stream, sequence)
            if offset is not None:
                entries.append(await log.read_entry(offset))
        except DamagedEntry:
            break
    if not entries:
        _add_gap(page, page.after + 1, "damaged")
    return entries


def _add_hole(page: StreamPage, stream: Stream, sequence: int) -> None:
    """Sequences in front of this one that aren't there at all."""
    first = page.after + 1
    if first >= sequence or first >> _EPOCH_SHIFT != sequence >> _EPOCH_SHIFT:
        return
    reason: GapReason = "retention" if sequence <= stream.oldest_sequence else "damaged"
    page.gaps.append(PacketGap(from_sequence=first, to_sequence=sequence - 1, reason=reason))


def _add_entry(page: StreamPage, log: Log, stream: Stream, entry: StoredEntry) -> None:
    if entry.is_reduced:
        _add_gap(page, entry.sequence, log.removal_cause(entry))
        return
    try:
        page.packets.append(show_packet(entry, stream))
        page.after = entry.sequence
    except DamagedEntry:
        _add_gap(page, entry.sequence, "damaged")


def _add_gap(page: StreamPage, sequence: int, reason: GapReason) -> None:
    last = page.gaps[-1] if page.gaps else None
    if last is not None and last.reason == reason and last.to_sequence == sequence - 1:
        last.to_sequence = sequence
    else:
        page.gaps.append(PacketGap(from_sequence=sequence, to_sequence=sequence, reason=reason))
    page.after = sequence


def _gone(stream: Stream, sequence: int, reason: str) -> PacketGone:
    return PacketGone(
        f"packet {sequence} of {stream.name} was taken away: {reason}", subject=f"{stream.name}/{sequence}",
        extra={"reason": reason},
    )  # fmt: skip
