"""The log, as everybody else sees it."""

import sqlite3
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import structlog
import trio

from overlayd.model.bodies import NodeBody, RemovalCause, StatusEntry
from overlayd.model.clock import Clock
from overlayd.model.confirmation import Confirmations
from overlayd.model.cursor import Epoch
from overlayd.model.definition import Definition
from overlayd.model.draft import AppendRequest, AppendResult, StreamStateName
from overlayd.model.entry import StoredEntry, leaf_hash
from overlayd.model.errors import (
    BadParameter,
    DamagedEntry,
    MemoryShort,
    NotFound,
    StorageFull,
    UnknownPacket,
    VerificationFailed,
)
from overlayd.model.merkle import TILE_WIDTH
from overlayd.model.usage import GroupMeter
from overlayd.storage import definitions, files, queries, searching
from overlayd.storage.checkpoint import Checkpoint
from overlayd.storage.checkpoints import CheckpointSigner
from overlayd.storage.damage.book import DamageBook
from overlayd.storage.definitions import Unchanged
from overlayd.storage.erasing import Erasing
from overlayd.storage.errors import FULL_RETRY_AFTER_S
from overlayd.storage.group import Group, LogState
from overlayd.storage.heads import add_heads
from overlayd.storage.holds import Holds
from overlayd.storage.housekeeping import DiskWatch, StorageStats
from overlayd.storage.intake import RETRY_AFTER_S, AnyTicket, Intake, Ticket
from overlayd.storage.jobs import AppendJob, ChangeJob, PingJob, WriteJob, node_job, statuses_job
from overlayd.storage.key_rotation import LogKeys
from overlayd.storage.log_keys import KeyRing
from overlayd.storage.own import OwnPacket, Rows, Statement, append_own
from overlayd.storage.positions import find_proven, join_positions, read_stored
from overlayd.storage.readers import ReaderPool
from overlayd.storage.record import check_are_of
from overlayd.storage.removing import Remover
from overlayd.storage.retention import Retention
from overlayd.storage.streams import Owner, Stream
from overlayd.storage.tail import Page
from overlayd.storage.tree import ReadTiles

T = TypeVar("T")
Along = Callable[[Group, bool], None]

DAMAGED_PAGE_ROWS = 32
"""A page that doesn't verify is read again row by row, in small steps."""

_log = structlog.get_logger("storage.log")


class Log:
    """One log: appends, reads, proofs. Every offset is 1-based; `head` is the newest, 0 in an empty log.

    `ancestry`: (earlier epoch, last offset in common with it), oldest first.
    """

    def __init__(
        self, *, directory: Path, state: LogState, keys: KeyRing, intake: Intake, readers: ReaderPool,
        signer: CheckpointSigner, disk: DiskWatch, clock: Clock, started_us: int,
        make_retention: Callable[["Log", Remover], Retention], damage: DamageBook,
    ) -> None:  # fmt: skip
        self._directory = directory
        self.damage = damage
        self._state = state
        self._intake = intake
        self._readers = readers
        self._signer = signer
        self._disk = disk
        self._is_held_back = False
        self.holds = Holds(state, readers, clock, self._change)
        self._remover = Remover(state, intake, readers, self.holds)
        self.retention = make_retention(self, self._remover)
        self.erasing = Erasing(
            state, intake, self._remover, read=self.read, write=self.write, read_page=self.read_page
        )  # fmt: skip
        self._read_tiles: ReadTiles = lambda wanted: readers.read(lambda c: queries.read_tiles(c, wanted))
        state.tree.read_kept = lambda nodes: readers.read(lambda c: queries.read_kept_nodes(c, nodes))
        state.tree.minimum_index = lambda: state.minimum_index
        self.log_id = keys.log_id
        self.origin = keys.origin
        self.keys = LogKeys(keys, signer)
        self.started_us = started_us

    @property
    def vkey(self) -> str:
        """What verifies the checkpoints that are signed now."""
        return self.keys.vkey

    @property
    def epoch(self) -> Epoch:
        return self._state.epoch

    @property
    def ancestry(self) -> list[tuple[Epoch, int]]:
        return self._state.ancestry

    @property
    def head(self) -> int:
        return self._state.head.offset

    @property
    def minimum_index(self) -> int:
        """Entries with a smaller leaf index (offsets up to it) were cut."""
        return self._state.minimum_index

    @property
    def defaults(self) -> Definition:
        """The definition of a stream that doesn't say otherwise."""
        return self._state.defaults

    @property
    def streams_generation(self) -> int:
        """Grows whenever a stream comes, goes, or is defined anew."""
        return self._state.book.generation

    def __repr__(self) -> str:
        return f"Log({self.origin!r}, head={self.head}, streams={len(self._state.book)})"

    async def append(self, request: AppendRequest) -> AppendResult:
        """Puts drafts in the log; durable when it returns.

        Checkpoint. If it is cancelled once the request is queued, the drafts are still committed; senders retry
        safely where their packets have ids. With `atomic`, a refusal is raised with the violations of all.
        Raises: IntakeBusy, StorageFull, MemoryShort, UnknownStream, DefinitionConflict, SequenceMismatch, StreamPaused,
        LimitReached, Forbidden, CommitFailed, ShuttingDown.
        """
        if self._disk.is_full:
            await trio.lowlevel.checkpoint()
            raise StorageFull(
                "the disk is nearly full; nothing is taken until there is room again", subject="disk",
                hint="free some room, or shorten the retention of some streams", retry_after_s=FULL_RETRY_AFTER_S,
            )  # fmt: skip
        if self._is_held_back:
            await trio.lowlevel.checkpoint()
            raise MemoryShort("no packets are taken", subject="memory_bytes", retry_after_s=RETRY_AFTER_S)
        ticket: Ticket[AppendResult] = Ticket()
        await self._intake.put(AppendJob(request, ticket))
        return await ticket.wait()

    def append_soon(self, request: AppendRequest, ticket: AnyTicket) -> bool:
        """As `append`, for who can't wait: the ticket is settled once the drafts are durable, or fails with what
        refused them. False when that would take a wait or a refusal now; nothing happened then."""
        return not (self._disk.is_full or self._is_held_back) and self._intake.try_put(AppendJob(request, ticket))

    async def append_node(self, body: NodeBody | dict[str, Any]) -> int:
        """An entry of the node itself; gives its offset. Raises ValueError for wrong members, and as `append`."""
        return int(await self._change(node_job(body)))

    async def append_own(
        self, packets: Sequence[OwnPacket], statements: Sequence[Statement] = (),
        on_commit: Callable[[], None] | None = None, along: Rows | None = None,
    ) -> list[int]:  # fmt: skip
        """Packets of the node's own streams, and a feature's statements and rows in the same transaction; the offsets.

        `on_commit` is called once they are durable, also when the caller was cancelled meanwhile; it must not raise.
        Checkpoint. Raises as `append`, except that a nearly full disk doesn't keep the node from it.
        """

        def change(group: Group) -> list[int]:
            if on_commit is not None:
                group.on_adopt(on_commit)
            return append_own(group, packets, statements, along)

        offsets: list[int] = await self._change(ChangeJob(change))
        return offsets

    async def write(self, job: Callable[[sqlite3.Connection], T]) -> T:
        """Runs a feature's statements in the writer's group transaction, under a savepoint of their own.

        Runs in a thread, between BEGIN and COMMIT: no commits of its own, and short. What it raises is raised here
        and undoes its own statements only. Durable when it returns. Checkpoint.
        """
        write_job = WriteJob(job)
        await self._intake.put(write_job)
        result: T = await write_job.ticket.wait()
        return result

    async def append_statuses(
        self, statuses: Sequence[StatusEntry], along: Callable[[sqlite3.Connection], None]
    ) -> list[int]:
        """Entries of what became of packets, a few hundred at most, and rows about it in one transaction; the offsets.
        `along` must not fail: it would take the whole group along. Checkpoint. Raises as `append_own`."""
        return list(await self._change(statuses_job(statuses, along)))

    async def append_heads(self) -> int:
        """States each stream's last packet in an entry; its offset. Checkpoint. Raises as `append_own`."""
        return int(await self._change(ChangeJob(add_heads)))

    def hold_back(self, is_held_back: bool) -> None:
        """Whether producers are refused because the node is short of memory. What is under way is committed."""
        self._is_held_back = is_held_back

    def confirm_with(self, confirmations: Confirmations) -> None:
        """From now on packets of streams that commit to a chain are told to it, in their own transaction."""
        self._state.confirmations = confirmations

    def meter_with(self, meter: GroupMeter) -> None:
        """From now on the packets of those that the meter names are counted, each in its own transaction."""
        self._state.meter = meter

    async def read(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Runs a feature's own reads over a read-only connection, in its thread. Checkpoint."""
        return await self._readers.read(function)

    # Streams.

    def find_stream(self, name: str) -> Stream | None:
        """The stream of that name, the same object for its whole life."""
        return self._state.book.find(name)

    def find_stream_by_hash(self, stream_hash: bytes) -> Stream | None:
        """Also deleted streams (`is_deleted`)."""
        return self._state.book.find_by_hash(stream_hash)

    def list_streams(self) -> list[Stream]:
        """By name."""
        return self._state.book.list_active()

    async def define_stream(
        self, name: str, definition: Definition, *, if_version: int | None = None, owner: Owner = "api",
        principal: str = "", along: Along | None = None,
    ) -> tuple[Stream, bool]:  # fmt: skip
        """Creates a stream or changes its definition; whether it was created. Nothing is appended for no change.

        `if_version`: the version it must have now, 0 = it must not exist. `along`: called with the group and
        whether it was created, to add what belongs to the same transaction; it must not raise.
        Raises DefinitionConflict, OwnedByConfig, InvalidDefinition, LimitReached, and as `append`.
        """
        definitions.check_definition(name, definition, has_chain=self._state.confirmations is not None)

        def change(group: Group) -> tuple[Stream, bool]:
            defined = definitions.define(group, name, definition, if_version, owner, principal)
            if along is not None:
                along(group, defined[1])
            return defined

        stream, created = await self._change(ChangeJob(change))
        return stream, created

    async def set_stream_state(self, name: str, state: StreamStateName, *, own: Sequence[OwnPacket] = ()) -> Stream:
        """Pauses, stops or activates a stream. `own`: packets of the node's own streams that tell about it, in the same
        transaction. Raises UnknownStream, Forbidden for the node's own streams, and as `append`."""
        definitions.check_is_changeable(name)

        def change(group: Group) -> Stream:
            stream = definitions.set_state(group, name, state)
            append_own(group, own)
            return stream

        changed: Stream = await self._change(ChangeJob(change))
        return changed

    async def release_stream(self, name: str) -> Stream:
        """Lets the API change a stream that the config file declares no more. Raises UnknownStream, and as `append`."""
        stream: Stream = await self._change(ChangeJob(lambda group: definitions.release(group, name)))
        return stream

    async def delete_stream(self, name: str, *, own: Sequence[OwnPacket] = (), only: Unchanged | None = None) -> int:
        """Takes every packet of the stream away and frees its name; gives how many packets they were.

        Works in slices, so that others get their turn; cancelled half way, it can be called again. `own` goes in with
        the first step, before anything is taken away; `only` is judged in that step.
        Raises Forbidden for the node's own streams, UnknownStream, OwnedByConfig, as `Unchanged.check`, and as `append`.
        """
        definitions.check_is_changeable(name)
        return await self._remover.delete_stream(name, own, only)

    async def reduce(self, stream: Stream, from_offset: int, to_offset: int, cause: RemovalCause) -> int:
        """Takes the stream's packets in a range of offsets (inclusive) away; gives how many they were.

        Their removal entry and the loss itself are one transaction per slice. Raises Forbidden for the node's own
        streams, from which only retention takes something away.
        """
        if cause != "retention":
            definitions.check_is_changeable(stream.name)
        return await self._remover.reduce(stream, from_offset, to_offset, cause)

    def removal_cause(self, entry: StoredEntry) -> RemovalCause:
        """Why a reduced entry was reduced."""
        if (entry.target_from or entry.offset) <= self._state.minimum_index:
            return "retention"  # a status of a packet that was cut
        return self._state.removals.cause_of(entry)

    async def wait_beyond(self, offset: int) -> None:
        """Returns once the head is larger. Level-triggered; a checkpoint."""
        await self._state.head.wait_beyond(offset)

    async def read_page(self, after: int, *, limit: int | None = None) -> Page:
        """The entries after an offset, up to `page_entries` and about `page_bytes`. A checkpoint.

        The newest come from memory. What is read from the disk is verified row by row; what doesn't verify, or is
        missing above the minimum index, is named in `damaged` and never served.
        """
        state, limits = self._state, self._state.limits
        count = limits.page_entries if limit is None else min(limit, limits.page_entries)
        after = max(after, state.minimum_index)
        head = state.head.offset
        if after >= head:
            await trio.lowlevel.checkpoint()
            return Page([], after)
        page = state.tail.read(after, count, limits.page_bytes)
        if page is not None:
            await trio.lowlevel.checkpoint()
            return page
        size = int(limits.page_bytes)
        try:
            blob = await self._readers.read(lambda c: queries.read_page_blob(c, after, head, count, size))
            opened = queries.open_page(blob, after, head)
        except DamagedEntry:
            opened = None
        if opened is not None:
            return opened
        if after < state.minimum_index:  # it was cut meanwhile: the reader finds its position below the log's beginning
            return Page([], after)
        upto = min(head, after + min(count, DAMAGED_PAGE_ROWS))
        rows = await self._readers.read(lambda c: queries.read_rows_singly(c, after, upto))
        page = queries.open_rows(rows, after, upto)
        for low, high in page.damaged:
            self.damage.note(low, high)
        return page

    async def read_entry(self, offset: int) -> StoredEntry:
        """One entry, verified. A checkpoint. Raises UnknownPacket, DamagedEntry."""
        if not self._state.minimum_index < offset <= self._state.head.offset:
            await trio.lowlevel.checkpoint()
            raise UnknownPacket(f"no entry at offset {offset}", subject=f"offset {offset}")
        try:
            return (await self._read_many([offset]))[0]
        except DamagedEntry:
            self.damage.note(offset, offset)
            raise

    async def read_packets(self, stream: Stream, after_sequence: int, limit: int) -> list[StoredEntry]:
        """Packets of a stream in order, after a sequence; at most `limit`, about `page_bytes`. A checkpoint.

        Reduced ones are among them. Raises DamagedEntry.
        """
        offsets = await self._read_offsets(stream, after_sequence + 1, min(limit, self._state.limits.read_packets_max))
        entries = await self._read_many(offsets) if offsets else []
        check_are_of(stream.stream_hash, after_sequence, entries)
        size = 0
        for count, entry in enumerate(entries):
            size += len(entry.body) + len(entry.meta)
            if size > self._state.limits.page_bytes and count:
                return entries[:count]
        return entries

    async def find_offset(self, stream: Stream, sequence: int) -> int | None:
        """Where a packet stands; None also where it was cut. A checkpoint."""
        positions = self._state.positions
        if not 0 < sequence <= stream.head_sequence:
            await trio.lowlevel.checkpoint()
            return None
        offset = positions.find_recent(stream.id, sequence)
        if offset is not None or positions.is_recent(stream.id, sequence):
            await trio.lowlevel.checkpoint()
        else:
            offset = await self._readers.read(
                partial(find_proven, stream=stream.id, stream_hash=stream.stream_hash, sequence=sequence)
            )
        return None if offset is not None and offset <= self.minimum_index else offset

    async def find_last(self, stream: Stream, key: str | None = None) -> StoredEntry | None:
        """The newest packet that is kept, of a key if one is given; None when there is none. A checkpoint."""
        return await searching.find_last(self._state, self._readers, self.read_entry, stream, key)

    async def find_by_id(self, packet_id: str) -> list[StoredEntry]:
        """The kept packets with this id in any stream, oldest first; damaged ones are left out. A checkpoint."""
        return await searching.find_by_id(self._state, self._readers, self.read_entry, packet_id)

    async def find_offset_at(self, time_us: int) -> int:
        """The first offset appended at or after a time; head + 1 if there is none. A checkpoint."""
        state = self._state
        oldest = state.tail.find(state.tail.first)
        if oldest is not None and oldest.appended_us < time_us:
            await trio.lowlevel.checkpoint()
            return state.tail.find_at(time_us)
        low, high = state.minimum_index + 1, state.head.offset
        return await self._readers.read(lambda c: queries.find_offset_at(c, low, high, time_us))

    async def checkpoint(self, min_size: int = 0) -> Checkpoint:
        """The newest signed checkpoint; signs now if that doesn't cover `min_size` yet. Raises BadParameter."""
        if min_size > self._state.head.offset:
            raise BadParameter(f"the log has {self.head} entries, not {min_size}", subject="size")
        return await self._signer.get(min_size)

    async def find_checkpoint(self, epoch: Epoch) -> Checkpoint | None:
        """The newest stored checkpoint of an epoch, an ancestor's too."""
        return await self._readers.read(lambda c: queries.read_newest_checkpoint(c, epoch))

    async def inclusion_path(self, index: int, size: int) -> list[bytes]:
        """The audit path of leaf `index` (offset - 1) in the first `size` entries. Raises BadParameter, DamagedEntry."""
        if not 0 <= index < size <= self._state.tree.size:
            raise BadParameter(f"no leaf {index} in a tree of {size}", subject="size")
        return await self._state.tree.inclusion_path(index, size, self._read_tiles)

    async def consistency_path(self, old: int, new: int) -> list[bytes]:
        """The proof that the first `new` entries extend the first `old`. Raises BadParameter, LogCut, DamagedEntry."""
        if not 0 <= old <= new <= self._state.tree.size:
            raise BadParameter(f"no path from size {old} to {new}", subject="size")
        return await self._state.tree.consistency_path(old, new, self._read_tiles)

    async def root_at(self, size: int) -> bytes:
        """The root over the first `size` entries. Raises BadParameter, LogCut, DamagedEntry."""
        if not 0 <= size <= self._state.tree.size:
            raise BadParameter(f"the log has {self.head} entries, not {size}", subject="size")
        return await self._state.tree.root_at(size, self._read_tiles)

    async def read_tile(self, level: int, index: int, width: int) -> bytes:
        """The first `width` (1 to 256) hashes of a C2SP tile. Raises NotFound."""
        return await self._state.tree.read_tile(level, index, width, self._read_tiles)

    async def read_entry_tile(self, index: int, width: int) -> bytes:
        """A C2SP entry bundle: the first `width` entries of tile `index`, each as u16 length and E. Raises NotFound."""
        first = index * TILE_WIDTH
        if index < 0 or not 1 <= width <= TILE_WIDTH or first + width > self.head or first < self.minimum_index:
            raise NotFound("the log has no such entry bundle", subject=f"entries {index}, width {width}")
        rows = await self._readers.read(lambda c: queries.read_rows(c, first, first + width))
        if len(rows) != width or any(leaf_hash(raw) != leaf for _, raw, leaf, _ in rows):
            raise DamagedEntry("entries are missing or damaged", subject=f"entries {index}")
        return b"".join(len(raw).to_bytes(2, "big") + raw for _, raw, _, _ in rows)

    async def ping(self) -> None:
        """Returns when the writer has got to it, with its thread. A writer that is stuck on the disk doesn't; one that
        has nothing to do, or refuses for lack of space, does. Raises what the intake was closed with. Checkpoint."""
        job = PingJob()
        self._intake.put_nowait(job)
        await job.ticket.wait()

    def stats(self) -> StorageStats:
        """Bytes on the disk and what waits. Reads two file lengths."""
        path = self._directory / files.DATABASE_NAME
        return StorageStats(
            files.file_bytes(path), files.file_bytes(path.with_name(path.name + "-wal")), self._disk.free_bytes,
            self._intake.packets, self._intake.bytes, self._disk.is_full,
        )  # fmt: skip

    async def _change(self, job: ChangeJob) -> Any:
        await self._intake.put(job)
        return await job.ticket.wait()

    async def _read_many(self, offsets: list[int]) -> list[StoredEntry]:
        """Entries by ascending offset, from memory where all are there, else at most about `page_bytes` of them.

        A checkpoint. Raises DamagedEntry.
        """
        found = [self._state.tail.find(offset) for offset in offsets]
        entries = [entry for entry in found if entry is not None]
        if len(entries) == len(offsets):
            await trio.lowlevel.checkpoint()
            return entries
        size = int(self._state.limits.page_bytes)
        blob = await self._readers.read(lambda c: queries.read_many_blob(c, offsets, size))
        try:
            entries = queries.open_many(blob)
        except VerificationFailed as err:
            raise DamagedEntry(
                f"a stored entry doesn't verify: {err.detail}", subject=err.subject,
                hint="overlayd verify names every damaged entry",
            ) from err  # fmt: skip
        if not entries or [entry.offset for entry in entries] != offsets[: len(entries)]:
            raise DamagedEntry("a stored entry is missing", subject=f"offsets {offsets[0]} to {offsets[-1]}")
        return entries

    async def _pass_cut(self, stream: Stream, sequence: int) -> int:
        """The first sequence from this one on that wasn't cut. No checkpoint where nothing was."""
        minimum, limit = self._state.minimum_index, self._state.limits.read_packets_max
        while minimum:
            found = await self._remover.read_positions(stream, sequence, limit)
            kept = next((at for at, offset in found if offset > minimum), None)
            if kept is not None or len(found) < limit:
                return kept or (found[-1][0] + 1 if found else sequence)
            sequence = found[-1][0] + 1
        return sequence

    async def _read_offsets(self, stream: Stream, sequence: int, limit: int) -> list[int]:
        """Where the packets from a sequence on stand; memory is asked before the disk."""
        sequence = await self._pass_cut(stream, sequence)
        limit = min(limit, max(0, stream.head_sequence - sequence + 1))
        positions = self._state.positions
        recent = positions.read_recent(stream.id, sequence, limit)
        if positions.is_recent(stream.id, sequence):
            await trio.lowlevel.checkpoint()
            return [offset for _, offset in recent]
        stored = await self._readers.read(lambda c: read_stored(c, stream.id, sequence, limit))
        return [offset for _, offset in join_positions(stored, recent, limit)]
