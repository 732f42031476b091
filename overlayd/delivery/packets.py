"""One stream's packets by sequence, and packets by id: what `/v1/streams/{stream}/packets` and its kin answer."""

from collections.abc import Callable, Iterable

import msgspec

from overlayd.delivery.frames import PacketState, packet_body
from overlayd.delivery.matching import view_packet
from overlayd.model.confirmation import FINAL_STATES, NOT_CONFIRMED, ConfirmationNow, ConfirmationReads
from overlayd.model.cursor import Cursor, Epoch, format_epoch
from overlayd.model.entry import Z32, Kind, StoredEntry
from overlayd.model.errors import (
    BadCursor,
    DamagedEntry,
    PacketGone,
    UnknownPacket,
    VerificationFailed,
)
from overlayd.model.txid import TxId, format_hash
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


async def read_stream(
    log: Log, reads: ConfirmationReads, stream: Stream, after: int, limit: int, *, is_confirmed: bool = False
) -> StreamPage:
    """Packets of a stream behind a sequence, as they stand now; about `page_bytes` of them. Checkpoint.

    Long runs that were taken away are passed over, several pages of them at a time. `is_confirmed`: the confirmed ones
    of those in front of the first whose state isn't final; what failed or was dropped is passed over.
    """
    page = StreamPage([], [], after)
    settled = None
    if is_confirmed:
        rule = stream.definition.confirm
        settled = await reads.settled_offset(stream.stream_hash, rule, min(rule.depths))
    for _ in range(_REDUCED_PAGES_MAX):
        entries = await _read_some(log, stream, page, limit)
        is_cut = settled is not None and bool(entries) and entries[-1].offset > settled
        if settled is not None and is_cut:
            entries = [entry for entry in entries if entry.offset <= settled]
        now = await states_of(reads, stream, entries)
        for entry in entries:
            state = now.get(entry.offset, NOT_CONFIRMED).state
            if is_confirmed and not entry.is_reduced and state != "confirmed" and state not in FINAL_STATES:
                return page  # taken back since
            _add_hole(page, stream, entry.sequence)
            if is_confirmed and not entry.is_reduced and state in FINAL_STATES:
                page.after = entry.sequence
            else:
                _add_entry(page, log, stream, entry, now.get(entry.offset, NOT_CONFIRMED))
        if page.packets or not entries or is_cut:
            break
    return page


async def states_of(
    reads: ConfirmationReads, stream: Stream, entries: Iterable[StoredEntry]
) -> dict[int, ConfirmationNow]:
    """How packets of a stream stand now, by offset; those that nobody wants confirmed are left out. A checkpoint unless
    that is so of all."""
    rule = stream.definition.confirm
    wanted = [
        entry.offset for entry in entries if not entry.is_reduced and (rule.commit != "none" or entry.commitment != Z32)
    ]
    return await reads.statuses(stream.stream_hash, rule, wanted) if wanted else {}


async def find_confirmed_sequence(log: Log, reads: ConfirmationReads, stream: Stream) -> int | None:
    """The last sequence up to which every packet is confirmed at the first listed depth, failed or dropped; None where
    there is none, or where nothing is to be confirmed. Checkpoint."""
    rule = stream.definition.confirm
    if rule.commit == "none" or not rule.depths or not stream.packets:
        return None
    settled = await reads.settled_offset(stream.stream_hash, rule, min(rule.depths))
    low, high, found = stream.oldest_sequence, stream.head_sequence, None
    middle = high  # most often it is all of them
    while low <= high:
        sequence, offset = middle, await log.find_offset(stream, middle)
        if offset is None:  # where an epoch ended, sequences jump
            entries = await log.read_packets(stream, middle, 1)
            sequence, offset = (entries[0].sequence, entries[0].offset) if entries else (high, log.head + 1)
        if offset <= settled:
            found, low = sequence, sequence + 1
        else:
            high = middle - 1
        middle = (low + high) // 2
    return found


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


def show_packet(entry: StoredEntry, stream: Stream, now: ConfirmationNow = NOT_CONFIRMED) -> Packet:
    """A packet as it stands now. Raises DamagedEntry."""
    try:
        view = view_packet(entry, stream.name)
    except VerificationFailed as err:
        raise DamagedEntry(f"the packet's meta can't be read: {err.detail}", subject=f"offset {entry.offset}") from err
    state = PacketState(
        now.state, now.confirmations, now.height, "" if now.block_hash is None else format_hash(now.block_hash),
        "" if now.txid is None else format_hash(now.txid),
    )  # fmt: skip
    return packet_body(view, state)


async def show_present(reads: ConfirmationReads, entry: StoredEntry, stream: Stream) -> Packet:
    """The same, looked up. A checkpoint where it is to be confirmed. Raises DamagedEntry."""
    now = await states_of(reads, stream, (entry,))
    return show_packet(entry, stream, now.get(entry.offset, NOT_CONFIRMED))


async def find_named(
    log: Log, reads: ConfirmationReads, packet_id: str, may_read: Callable[[str], bool]
) -> list[Packet]:
    """Packets with the id, of any stream that may be read, oldest first; also the one that is called so for want of an id. Checkpoint."""
    entries = await log.find_by_id(packet_id)
    unnamed = await _find_unnamed(log, packet_id)
    return await _show_readable(log, reads, (*entries, *([] if unnamed is None else [unnamed])), may_read)


async def find_paid(
    log: Log, reads: ConfirmationReads, txid: TxId, may_read: Callable[[str], bool], limit: int
) -> list[Packet]:
    """Packets whose own transaction it is, as `find_named`; at most so many. Checkpoint."""
    entries = []
    for offset in await reads.find_by_txid(txid, limit):
        try:
            entry = await log.read_entry(offset)
        except (UnknownPacket, DamagedEntry):
            continue
        if not entry.is_reduced:
            entries.append(entry)
    return await _show_readable(log, reads, entries, may_read)


async def _show_readable(
    log: Log, reads: ConfirmationReads, entries: Iterable[StoredEntry], may_read: Callable[[str], bool]
) -> list[Packet]:
    packets = []
    for entry in entries:
        stream = log.find_stream_by_hash(entry.stream_hash)
        if stream is not None and not stream.is_deleted and may_read(stream.name):
            packets.append(await show_present(reads, entry, stream))
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


def _add_entry(page: StreamPage, log: Log, stream: Stream, entry: StoredEntry, now: ConfirmationNow) -> None:
    if entry.is_reduced:
        _add_gap(page, entry.sequence, log.removal_cause(entry))
        return
    try:
        page.packets.append(show_packet(entry, stream, now))
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
