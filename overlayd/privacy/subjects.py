"""The index of subjects: which packets are about whom, in streams that say where that stands.

A consumer of the log like others: it follows each such stream from where it stopped, a bounded slice at a time, and
begins anew when the place is declared or changed. Nobody waits for it but those who ask about a subject.
"""

import sqlite3
from collections.abc import Mapping, Sequence
from functools import partial

import msgspec
import structlog
import trio

from overlayd.model.entry import StoredEntry
from overlayd.model.errors import DamagedEntry, OverlaydError, UnknownPacket, VerificationFailed
from overlayd.model.meta import decode_meta
from overlayd.model.metrics import Metrics
from overlayd.model.privacy import PacketPointer, subject_pointer
from overlayd.privacy import tables
from overlayd.privacy.hashes import PeopleHashes
from overlayd.privacy.places import SubjectPlaces
from overlayd.privacy.tables import Asked
from overlayd.storage import Log, Stream
from overlayd.storage.erasing import parts_of

SLICE_PACKETS = 500
DROPPED_PER_STEP = 5000
PAUSE_S = 0.05
"""Rest between looks at a log that grows, so that packets are taken in together."""
RETRY_S = 1.0
_log = structlog.get_logger("privacy.subjects")
_decode = msgspec.json.Decoder().decode


class SubjectIndex:
    """One for the node. `load`, then `run` until cancelled."""

    def __init__(self, log: Log, hashes: PeopleHashes, metrics: Metrics) -> None:
        self._log = log
        self._hashes = hashes
        self._indexed: dict[int, tuple[str, int]] = {}
        self._declared: dict[int, tuple[Stream, PacketPointer]] = {}
        self._generation = -1
        self._moved = trio.Event()
        self._wanted = trio.Event()
        self._woken = trio.CancelScope()
        self._packets = metrics.counter("overlayd_subject_packets", "Packets that were entered under their subject")
        metrics.gauge(
            "overlayd_subject_index_behind", "Packets whose subject isn't entered in the index yet"
        ).set_function(lambda: self.behind)

    def __repr__(self) -> str:
        return f"SubjectIndex(streams={len(self._declared)}, behind={self.behind})"

    @property
    def behind(self) -> int:
        """About how many packets weren't looked at yet."""
        return sum(
            min(stream.packets, max(0, stream.head_sequence - self._position(stream, pointer)))
            for stream, pointer in self.declared().values()
        )

    async def load(self) -> None:
        """Reads how far it got. Checkpoint."""
        self._indexed = await self._log.read(tables.read_indexed)

    def declared(self) -> Mapping[int, tuple[Stream, PacketPointer]]:
        """The streams that say where the subject stands, by their number."""
        if self._generation != self._log.streams_generation:
            self._generation = self._log.streams_generation
            self._declared = {
                stream.id: (stream, subject_pointer(stream.definition.subject))
                for stream in self._log.list_streams()
                if stream.definition.subject
            }
        return self._declared

    async def run(self) -> None:
        """Follows until cancelled. Where the log takes nothing for a while it waits."""
        while True:
            head = self._log.head
            try:
                is_done = not await self._step()
            except OverlaydError as error:
                _log.warning("subjects can't be entered", error=error.detail)
                await trio.sleep(RETRY_S)
                continue
            self._moved.set()
            self._moved = trio.Event()
            if is_done:
                self._wanted = trio.Event()
                with trio.CancelScope() as self._woken:
                    await self._log.wait_beyond(head)
                with trio.move_on_after(PAUSE_S):  # who waits for the index doesn't wait for this
                    await self._wanted.wait()

    async def wait(self) -> None:
        """Until every packet that is in the log now was looked at. Checkpoint."""
        goals = [(stream, stream.head_sequence) for stream, _ in self.declared().values()]
        self._wanted.set()
        while any(self._is_behind(stream, goal) for stream, goal in goals):
            await self._moved.wait()
        await trio.lowlevel.checkpoint()

    async def look_up(self, subject: str) -> SubjectPlaces:
        """A subject's packets, under its pseudonyms too. Checkpoint; waits until the index has caught up."""
        await self.wait()
        streams = {id: stream for id, (stream, _) in self.declared().items()}
        asked: list[Asked] = []
        for part in parts_of([None, *streams.values()]):  # None: as it is called, in every stream
            hashes: dict[bytes, int | None] = {}
            for stream in part:
                name = subject if stream is None else self._hashes.pseudonym(stream.name, subject)
                hashes[self._hashes.of_subject(name)] = None if stream is None else stream.id
            known = await self._log.read(partial(tables.read_known, subjects=list(hashes)))
            asked += [(hashed, id) for hashed, id in hashes.items() if hashed in known]
        return SubjectPlaces(self._log, streams, asked)

    async def rebuild(self) -> None:
        """Makes the index anew, from the streams' beginning; `run` does it. Checkpoint."""
        await self._log.write(tables.restart_index)
        self._indexed = dict.fromkeys(self._indexed, ("", 0))  # a pointer that no stream declares: all of it is dropped
        self._woken.cancel()

    def _is_behind(self, stream: Stream, goal: int) -> bool:
        found = self.declared().get(stream.id)
        return found is not None and not stream.is_deleted and self._position(*found) < goal

    def _position(self, stream: Stream, pointer: PacketPointer) -> int:
        text, sequence = self._indexed.get(stream.id, ("", 0))
        return sequence if text == pointer.text else 0

    async def _step(self) -> bool:
        """One slice of one stream; whether there is more to do. Checkpoint."""
        declared = self.declared()
        for stream_id, (text, _) in self._indexed.items():
            found = declared.get(stream_id)
            if found is None or found[1].text != text:
                await self._drop(stream_id)
                return True
        for stream, pointer in declared.values():
            if self._position(stream, pointer) < stream.head_sequence:
                await self._follow(stream, pointer)
                return True
        await trio.lowlevel.checkpoint()
        return False

    async def _drop(self, stream_id: int) -> None:
        """The stream is gone, or says something else now."""
        drop = partial(tables.drop_index, stream_id=stream_id, before=1 << 62, limit=DROPPED_PER_STEP)
        if await self._log.write(drop) < DROPPED_PER_STEP:
            await self._log.write(partial(tables.forget_indexed, stream_id=stream_id))
            del self._indexed[stream_id]

    async def _follow(self, stream: Stream, pointer: PacketPointer) -> None:
        after = self._position(stream, pointer)
        entries, upto = await self._read(stream, after)
        rows = []
        for entry in entries:
            subject = subject_of(entry, pointer)
            if subject:
                rows.append((entry.sequence, entry.offset, self._hashes.of_subject(subject)))
        oldest = stream.oldest_sequence or stream.head_sequence + 1

        def write(connection: sqlite3.Connection) -> int:
            tables.drop_index(connection, stream.id, oldest, DROPPED_PER_STEP)
            return tables.index_packets(connection, stream.id, pointer.text, upto, rows)

        self._packets.inc(await self._log.write(write))
        self._indexed[stream.id] = (pointer.text, upto)

    async def _read(self, stream: Stream, after: int) -> tuple[Sequence[StoredEntry], int]:
        """Packets behind a sequence, and the one up to which these are all that can be read."""
        after = max(after, stream.oldest_sequence - 1)
        head = stream.head_sequence
        try:
            entries = await self._log.read_packets(stream, after, SLICE_PACKETS)
        except DamagedEntry:
            return await self._read_singly(stream, after)
        return entries, entries[-1].sequence if entries else head

    async def _read_singly(self, stream: Stream, after: int) -> tuple[Sequence[StoredEntry], int]:
        """The same, without what is damaged: whose that is can't be said."""
        entries = []
        upto = min(stream.head_sequence, after + SLICE_PACKETS // 10)
        for sequence in range(after + 1, upto + 1):
            offset = await self._log.find_offset(stream, sequence)
            try:
                if offset is not None:
                    entries.append(await self._log.read_entry(offset))
            except (DamagedEntry, UnknownPacket):
                _log.warning("a damaged packet can't be entered under its subject", stream=stream.name, offset=offset)
        return entries, upto


def subject_of(entry: StoredEntry, pointer: PacketPointer) -> str:
    """Whom a stored packet is about; "" where it doesn't say, or is gone."""
    if entry.is_reduced:
        return ""
    try:
        meta = decode_meta(entry.meta)
    except VerificationFailed:
        return ""
    if pointer.root == "key":
        return meta.key
    if pointer.root == "source":
        return meta.source
    text = meta.metadata if pointer.root == "metadata" else entry.body
    return pointer.find(_decode(text)) if text else ""
