"""Taking packets away: E and leaf stay, everything else goes, and a removal entry says so in the same transaction."""

import bisect
import json
import sqlite3
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec
import structlog
import trio

from overlayd.model.bodies import RemovalCause
from overlayd.model.errors import OwnedByConfig, UnknownStream, VerificationFailed
from overlayd.model.meta import Meta, decode_meta
from overlayd.storage import links, queries
from overlayd.storage.commit import Call, run_call
from overlayd.storage.definitions import Unchanged, stop_for_good
from overlayd.storage.group import Group, LogState, id_key, producers_commitment
from overlayd.storage.holds import Holds
from overlayd.storage.intake import Intake
from overlayd.storage.jobs import ChangeJob
from overlayd.storage.maintenance import head_row, store_heads
from overlayd.storage.own import OwnPacket, append_own
from overlayd.storage.packing import reduce_rows
from overlayd.storage.positions import join_positions, read_stored
from overlayd.storage.readers import ReaderPool
from overlayd.storage.record import reduce_entry
from overlayd.storage.removals import Removal
from overlayd.storage.streams import Stream

SLICE_ROWS = 5000
"""Places looked at in one step."""
SLICE_PACKETS = 500
SLICE_BYTES = 4 << 20
"""What one transaction takes away, at most; the packet that reaches the bytes is its last. Publishers wait for it."""
OLDEST_ROWS = 512
"""Packets looked at in one step towards the oldest one that will be left."""
PAGE_BYTES = 4096
_log = structlog.get_logger("storage.removing")

_SIZES = "SELECT offset, length(sealed) FROM entry WHERE offset IN (SELECT value FROM json_each(?))"


class _Kept(msgspec.Struct, frozen=True):
    """A packet that is still whole: where, since when, how long its row's sealed part is, and the names that lead to it.

    `commitment`: the producer's, or b"".
    """

    offset: int
    sequence: int
    appended_us: int
    size: int
    id: str
    key: str
    commitment: bytes


Along = Callable[[sqlite3.Connection, Sequence[int]], None]
"""Takes away what other tables hold of packets, by their offsets, in the transaction in which these go."""


class Remover:
    """One removal at a time; each in slices, between which others get their turn."""

    def __init__(self, state: LogState, intake: Intake, readers: ReaderPool, holds: Holds) -> None:
        self._state = state
        self._holds = holds
        self._intake = intake
        self._readers = readers
        self._lock = trio.Lock()

    async def reduce(self, stream: Stream, low: int, high: int, cause: RemovalCause) -> int:
        """Packets taken away in the range of offsets, inclusive."""
        async with self._lock:
            return await self._reduce(stream, low, high, cause, [])

    async def take(
        self, stream: Stream, positions: Sequence[tuple[int, int]], cause: RemovalCause, clear: Along | None = None
    ) -> int:
        """Packets taken away of those at these (sequence, offset), ascending, wherever they lie. `clear`: takes along what
        else there is of them, in the same transactions; its own failure undoes only what it did."""
        removed = 0
        async with self._lock:
            for at in range(0, len(positions), SLICE_ROWS):
                removed += await self._reduce_slice(stream, list(positions[at : at + SLICE_ROWS]), cause, [], clear)
        return removed

    async def delete_stream(self, name: str, own: Sequence[OwnPacket] = (), only: Unchanged | None = None) -> int:
        """Packets taken away. Raises UnknownStream, OwnedByConfig, and as `Unchanged.check`."""
        async with self._lock:
            stream = self._state.book.find(name)
            if stream is None:
                raise UnknownStream(f"no stream {name}", subject=name)
            if stream.owner == "config":
                raise OwnedByConfig(
                    f"{name} is declared in the config file", subject=name, hint="remove it there first"
                )
            await self._holds.refuse_if_held(stream, 1, stream.head_sequence)
            await self._send(lambda group: (stop_for_good(group, name, only), append_own(group, own)))
            definitions = await self._readers.read(lambda c: _read_definition_offsets(c, stream.id))
            count = await self._reduce(stream, 1, self._state.head.offset, "deleted", definitions)
            await self._send(lambda group: self._free(group, stream, definitions))
            return count

    async def _reduce(
        self, stream: Stream, low: int, high: int, cause: RemovalCause, definitions: list[int]
    ) -> int:  # fmt: skip
        """`definitions`: entries that go along with the packets around them; those that are left stay in the list."""
        removed, sequence = 0, stream.oldest_sequence
        while sequence:
            positions = await self.read_positions(stream, sequence, SLICE_ROWS)
            chosen = [position for position in positions if low <= position[1] <= high]
            is_last = len(positions) < SLICE_ROWS or positions[-1][1] >= high
            if chosen:
                along = [offset for offset in definitions if is_last or offset <= chosen[-1][1]]
                count = await self._reduce_slice(stream, chosen, cause, along)
                if count:
                    definitions[:] = definitions[len(along) :]
                removed += count
            sequence = 0 if is_last else positions[-1][0] + 1
        return removed

    async def _reduce_slice(
        self, stream: Stream, chosen: list[tuple[int, int]], cause: RemovalCause, along: list[int],
        clear: Along | None = None,
    ) -> int:  # fmt: skip
        offsets, runs = [offset for _, offset in chosen], _runs_of(chosen)
        kept = await self._readers.read(lambda c: _read_kept(c, offsets, stream.stream_hash))
        parts = _transactions_of(kept)
        for part in parts:
            oldest = await self._find_oldest(stream, {packet.offset for packet in part})
            last = along if part is parts[-1] else []
            take = partial(
                self._take_away,
                stream=stream,
                kept=part,
                oldest=oldest,
                cause=cause,
                along=last,
                runs=runs,
                clear=clear,
            )
            await self._send(take, len(part))
        return len(kept)

    async def _find_oldest(self, stream: Stream, gone: set[int]) -> int:
        """The sequence of the oldest packet that will be left without some; 0 when none will."""
        sequence = stream.oldest_sequence
        while sequence:
            positions = await self.read_positions(stream, sequence, OLDEST_ROWS)
            offsets = [offset for _, offset in positions if offset not in gone]
            oldest = await self._readers.read(partial(queries.find_oldest_kept, offsets=offsets)) if offsets else None
            if oldest is not None:
                return next(sequence for sequence, offset in positions if offset == oldest)
            sequence = positions[-1][0] + 1 if len(positions) == OLDEST_ROWS else 0
        return 0

    def _take_away(
        self, group: Group, stream: Stream, kept: list[_Kept], oldest: int, cause: RemovalCause, along: list[int],
        runs: list[tuple[int, int]], clear: Along | None,
    ) -> None:  # fmt: skip
        """`runs`: offsets of the first and last packet of each run of sequences. What goes along goes with the last."""
        self._check_holds(stream, kept)
        group.pages_changed += len(kept) + sum(packet.size for packet in kept) // PAGE_BYTES
        head = group.touch(stream).head
        head.packets -= len(kept)
        head.bytes -= sum(packet.size for packet in kept)
        head.oldest_sequence = oldest if head.packets else 0
        packets = [packet.offset for packet in kept]
        for low, high in [(runs[0][0], runs[-1][1])] if along else runs:
            gone = packets[bisect.bisect_left(packets, low) : bisect.bisect_right(packets, high)]
            if gone:
                ends = sorted((*gone, *along))
                group.add_removal(Removal(stream.stream_hash, ends[0], ends[-1], cause), len(gone))
        self._clear_rows(group, [*packets, *along])
        add_status_reduction(group, packets)
        if clear is not None:
            group.actions.append(partial(_clear_apart, clear=clear, offsets=packets))
        row = head_row(group, stream)
        group.actions.append(lambda connection: store_heads(connection, [row]))
        self._keep_or_drop_names(group, stream.stream_hash, kept, cause)

    def _check_holds(self, stream: Stream, kept: list[_Kept]) -> None:
        """In the writer, where no hold can come in between. Raises UnderHold."""
        for packet in kept:
            if self._state.holds.find(stream, packet.sequence, packet.sequence) is not None:
                self._holds.check_hold(stream, packet.sequence, packet.sequence)
        self._holds.check_age(stream, max(packet.appended_us for packet in kept))

    def _keep_or_drop_names(self, group: Group, stream_hash: bytes, kept: list[_Kept], cause: RemovalCause) -> None:
        """Commitments are remembered for ever, ids after retention alone."""
        ids, commitments, keys = self._state.ids, self._state.commitments, self._state.keys
        used = [(commitments.key(packet.commitment), packet.offset) for packet in kept if packet.commitment]
        group.actions.append(lambda connection: commitments.hold(connection, used))
        named = [(id_key(ids, stream_hash, packet.id), packet.offset) for packet in kept if packet.id]
        if cause == "retention":
            group.actions.append(lambda connection: ids.hold(connection, named))
            return
        keyed = [(keys.key(packet.key.encode(), stream_hash), packet.offset) for packet in kept if packet.key]
        group.actions.append(lambda connection: ids.discard_all(connection, named))
        group.actions.append(lambda connection: keys.discard_all(connection, keyed))

    def _free(self, group: Group, stream: Stream, definitions: list[int]) -> None:
        """After the last slice: the name is free, and what definitions no packet took along go too."""
        if definitions:
            removal = Removal(stream.stream_hash, definitions[0], definitions[-1], "deleted")
            group.add_removal(removal, len(definitions))
            self._clear_rows(group, definitions)
        group.free_name(group.touch(stream))
        group.statements += (
            ("DELETE FROM definition WHERE stream_id = ?", (stream.id,)),
            ("UPDATE stream SET definition = ? WHERE id = ?", (b"{}", stream.id)),
        )
        group.actions.append(lambda connection: self._state.positions.drop_stream(connection, stream.id))

    def _clear_rows(self, group: Group, offsets: list[int]) -> None:
        group.actions.append(partial(reduce_rows, offsets=offsets))
        group.reduced += [entry for entry in map(self._state.tail.find, offsets) if entry is not None]

    async def read_positions(self, stream: Stream, sequence: int, limit: int) -> list[tuple[int, int]]:
        """(sequence, offset) of a stream's packets from a sequence on, reduced ones among them. Checkpoint."""
        recent = self._state.positions.read_recent(stream.id, sequence, limit)
        stored = await self._readers.read(lambda c: read_stored(c, stream.id, sequence, limit))
        return join_positions(stored, recent, limit)

    async def _send(self, change: Callable[[Group], Any], packets: int = 1) -> None:
        job = ChangeJob(change, packets)
        await self._intake.put(job)
        await job.ticket.wait()


def add_status_reduction(group: Group, offsets: Sequence[int]) -> None:
    """Takes the content of the packets' own status entries away, in the group's transaction."""
    tail, gone = group.state.tail, list[int]()

    def write(connection: sqlite3.Connection) -> None:
        gone.extend(links.reduce_statuses(connection, offsets))

    def adopt() -> None:
        for entry in map(tail.find, gone):
            if entry is not None and not entry.is_reduced:
                tail.replace(reduce_entry(entry))

    group.actions.append(write)
    group.on_adopt(adopt)


def _clear_apart(connection: sqlite3.Connection, clear: Along, offsets: Sequence[int]) -> None:
    """Under a savepoint: a row that can't be cleared keeps no packet from going, nor anybody else from publishing. Who
    takes packets away clears once more afterwards, and is told then."""
    call = Call(lambda inside: clear(inside, offsets))
    run_call(connection, call)
    if call.error is not None:
        _log.warning("what else there is of packets can't be taken away with them", error=str(call.error))


def _transactions_of(kept: Sequence[_Kept]) -> list[list[_Kept]]:
    """Packets as they go together, so that nobody waits for long."""
    parts: list[list[_Kept]] = []
    size = 0
    for packet in kept:
        if not parts or len(parts[-1]) >= SLICE_PACKETS or size >= SLICE_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(packet)
        size += packet.size
    return parts


def _runs_of(positions: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """First and last offset of each run of sequences that follow one another."""
    runs: list[tuple[int, int]] = []
    last = -1
    for sequence, offset in positions:
        if runs and sequence == last + 1:
            runs[-1] = (runs[-1][0], offset)
        else:
            runs.append((offset, offset))
        last = sequence
    return runs


def _read_kept(connection: sqlite3.Connection, offsets: Sequence[int], stream_hash: bytes) -> list[_Kept]:
    """Packets of the stream only: a damaged list of positions leads to nobody else's."""
    sizes = dict(connection.execute(_SIZES, (json.dumps(offsets),)))
    kept = []
    for stub in queries.read_stubs(connection, offsets):
        size = sizes[stub.offset]
        if size is None or stub.stream_hash != stream_hash:
            continue
        try:
            meta = decode_meta(stub.meta)
        except VerificationFailed:  # a damaged row goes like any other; its names can't be found any more
            meta = Meta()
        kept.append(
            _Kept(
                stub.offset, stub.sequence, stub.appended_us, size, meta.id, meta.key, producers_commitment(stub, meta)
            )
        )
    return kept


def _read_definition_offsets(connection: sqlite3.Connection, stream_id: int) -> list[int]:
    rows = connection.execute("SELECT offset FROM definition WHERE stream_id = ? ORDER BY offset", (stream_id,))
    return [offset for (offset,) in rows]
