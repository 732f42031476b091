"""Carrying the streams' rules out: slice by slice through the writer, so that publishers never wait for more than one."""

import json
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Literal

import msgspec
import structlog
import trio

from overlayd.model.clock import Clock
from overlayd.model.errors import OverlaydError, ShuttingDown, UnderHold
from overlayd.model.names import is_node_name
from overlayd.storage.group import LogState
from overlayd.storage.holds import Holds
from overlayd.storage.housekeeping import DiskWatch
from overlayd.storage.intake import Intake
from overlayd.storage.jobs import GiveBackJob
from overlayd.storage.readers import ReaderPool
from overlayd.storage.removing import Remover
from overlayd.storage.retention.clock_trust import ClockTrust
from overlayd.storage.retention.cutting import Cutter
from overlayd.storage.retention.figures import RetentionFigures
from overlayd.storage.retention.rules import Bounds, Candidate, Choice, bounds_of, choose
from overlayd.storage.retention.settings import RetentionSettings
from overlayd.storage.space import PAGES_KEPT
from overlayd.storage.streams import Stream

NeededFrom = Callable[[Stream], Awaitable[int]]
"""The first offset from which on somebody may still need packets of the stream; larger than the head for none."""
Announce = Callable[[str, dict[str, object]], Awaitable[None]]
"""Tells an event of the node: a type and data."""

DiskState = Literal["ok", "low", "full"]

LOOK_S = 1.0
"""How often the disk's state is looked at."""
PAUSE_MAX_S = 1.0
FREE_SHARE = 8
"""Under load the file gives pages back when more than one in so many is free; else they are soon needed again."""
SHED_SLICES = 64
"""Slices between two looks at the disk while it is full."""

_SIZES = """
SELECT offset, length(sealed), substr(e, 19, 8) FROM entry
WHERE offset IN (SELECT value FROM json_each(?)) AND sealed IS NOT NULL ORDER BY offset"""
_log = structlog.get_logger("storage.retention")


class _Mark(msgspec.Struct):
    """Where a stream is to be looked at next. `next_us`: when its first packet that stays was appended, 0: unknown."""

    sequence: int
    holds: int
    next_us: int = 0


class Retention:
    """Takes away what is too old or too much. One for the log; `run` is started once those are known who need packets."""

    def __init__(
        self, state: LogState, intake: Intake, readers: ReaderPool, remover: Remover, holds: Holds, *, disk: DiskWatch,
        clock: Clock, settings: RetentionSettings, figures: RetentionFigures, trust: ClockTrust, cutter: Cutter,
    ) -> None:  # fmt: skip
        self._state = state
        self._intake = intake
        self._readers = readers
        self._remover = remover
        self._holds = holds
        self._disk = disk
        self._clock = clock
        self._settings = settings
        self._figures = figures
        self._needs: list[NeededFrom] = []
        self._marks: dict[int, _Mark] = {}
        self._announce: Announce | None = None
        self._asked = trio.Event()
        self.trust = trust
        self.cutter = cutter
        figures.show(state, trust, lambda: self.oldest_us, clock)

    @property
    def oldest_us(self) -> int:
        """When the oldest packet that is kept was appended, as far as was looked; 0 where none was."""
        streams = {stream.id for stream in self._state.book.list_active() if stream.packets}
        return min((mark.next_us for id, mark in self._marks.items() if mark.next_us and id in streams), default=0)

    @property
    def disk_state(self) -> DiskState:
        """How much room there is: enough, below `disk_low_water`, or none for publishing."""
        return "full" if self._disk.is_full else "low" if self._disk.is_low else "ok"

    def describe_disk(self) -> str:
        """For people: what is free, and what that means."""
        meaning = {"ok": "enough", "low": "runs low: free some, or shorten retention", "full": "publishing is refused"}
        return f"{self._disk.free_bytes} bytes free: {meaning[self.disk_state]}"

    def wait_for(self, needed_from: NeededFrom) -> None:
        """From now on packets that it names stay, for at most their stream's `hold_max`."""
        self._needs.append(needed_from)

    def announce_with(self, announce: Announce) -> None:
        """From now on what happens to the disk is told as events too."""
        self._announce = announce

    def ask(self) -> None:
        """Looks at every stream soon, without waiting for `every` to be over."""
        self._asked.set()

    async def run(self) -> None:
        """Until it is cancelled. What can't be taken away now is tried again later."""
        due_s = trio.current_time()
        told = ""
        while True:
            try:
                told = await self._tell_disk(told)
                if self._disk.is_full:
                    await self.shed()
                if self._asked.is_set() or trio.current_time() >= due_s:
                    self._asked = trio.Event()
                    await self.look()
                    due_s = trio.current_time() + float(self._settings.every)
            except ShuttingDown:
                return
            except OverlaydError as err:
                _log.warning("nothing can be taken away now", error=err.detail)
                due_s = trio.current_time() + float(self._settings.every)
            with trio.move_on_after(LOOK_S):
                await self._asked.wait()

    async def look(self) -> int:
        """One look at every stream; gives how many packets were taken away. Checkpoint. Raises as a removal."""
        taken, kept_back = 0, 0
        for stream in self._state.book.list_active():
            if not stream.packets:
                continue
            choice, count = await self._reduce(stream)
            taken += count
            kept_back += choice is not None and choice.why in ("needed", "young")
        self._figures.kept_back = kept_back
        if self._settings.cut and self.trust.is_trusted:
            await self._cut()
        await self.give_back()
        return taken

    async def shed(self) -> int:
        """The disk is full: takes the oldest packets of streams away that say so, until there is room; how many they were.

        What a legal hold or `min_age` keeps stays, whoever still needs a packet is not waited for. Checkpoint.
        """
        total, slices = 0, 0
        stuck: set[int] = set()
        while self._disk.is_full:
            stream = await self._find_sheddable(stuck)
            if stream is None:
                break
            choice, count = await self._take_slice(stream, self._hard_bounds(stream))
            total += count
            slices += 1
            if not count and choice.why != "slice":
                stuck.add(stream.id)  # nothing of it can go now
            if slices % SHED_SLICES == 0:
                await self._make_room()
        await self._make_room()
        if total:
            _log.warning("shed the oldest packets: the disk was full", packets=total)
            await self._tell("disk.shed", {"packets": total})
        return total

    async def give_back(self, *, is_all: bool = False) -> None:
        """Lets the file give free pages back to the disk. `is_all`: also those that would soon be used again."""
        if not is_all:
            free, pages = await self._readers.read(_count_pages)
            if free <= max(PAGES_KEPT, pages // FREE_SHARE):
                return
        is_more = True
        while is_more:
            started = trio.current_time()
            job = GiveBackJob()
            await self._intake.put(job)
            is_more = await job.ticket.wait()
            await self._rest(trio.current_time() - started)

    async def _reduce(self, stream: Stream) -> tuple[Choice | None, int]:
        """Everything of a stream that is due; the last choice, and how many packets went."""
        rule = stream.definition.retention
        bounds = bounds_of(
            rule, self._clock.now_us(), is_clock_trusted=self.trust.is_trusted, needed_from=await self._needed_from(stream)
        )  # fmt: skip
        mark = self._mark(stream)
        is_over = stream.packets > (bounds.packets_max or 1 << 62) or stream.bytes > (bounds.bytes_max or 1 << 62)
        if mark.next_us and not is_over and mark.next_us >= bounds.before_us:
            return None, 0
        taken = 0
        while True:
            started = trio.current_time()
            choice, count = await self._take_slice(stream, bounds)
            taken += count
            if choice.why != "slice":
                return choice, taken
            await self._rest(trio.current_time() - started)

    async def _take_slice(self, stream: Stream, bounds: Bounds) -> tuple[Choice, int]:
        """One transaction at most; what was chosen and how many packets went."""
        started, settings = trio.current_time(), self._settings
        mark = self._mark(stream)
        rows = settings.slice_packets + 1
        positions = await self._remover.read_positions(stream, mark.sequence, rows)
        offsets = {offset: sequence for sequence, offset in positions}
        candidates = await self._readers.read(partial(_read_candidates, offsets=offsets))
        choice = choose(
            candidates, bounds, packets=stream.packets, size=stream.bytes, after=mark.sequence - 1,
            is_held=lambda sequence: self._state.holds.find(stream, sequence, sequence) is not None,
            packets_max=settings.slice_packets, size_max=int(settings.slice_bytes),
        )  # fmt: skip
        if not choice.why and not choice.next_us and len(positions) == rows:
            choice.why, choice.passed = "slice", positions[-1][0]
        count = 0
        if choice.taken:
            places = [(candidate.sequence, candidate.offset) for candidate in choice.taken]
            try:
                count = await self._remover.take(stream, places, "retention")
            except UnderHold:  # somebody held one of them in between
                return Choice([], "slice", mark.sequence - 1), 0
            self._figures.note_slice(count, choice.size, trio.current_time() - started)
        mark.sequence, mark.next_us = choice.passed + 1, choice.next_us
        return choice, count

    def _mark(self, stream: Stream) -> _Mark:
        generation = self._state.holds.generation
        mark = self._marks.get(stream.id)
        if mark is None or mark.holds != generation:
            mark = self._marks[stream.id] = _Mark(max(1, stream.oldest_sequence), generation)
        return mark

    def _hard_bounds(self, stream: Stream) -> Bounds:
        """Everything goes but what `min_age` keeps."""
        bounds = bounds_of(
            stream.definition.retention,
            self._clock.now_us(),
            is_clock_trusted=self.trust.is_trusted,
            needed_from=1 << 62,
        )
        return msgspec.structs.replace(bounds, packets_max=0)

    async def _needed_from(self, stream: Stream) -> int:
        return min([await needed(stream) for needed in self._needs], default=1 << 62)

    async def _find_sheddable(self, stuck: set[int]) -> Stream | None:
        """Of the streams that may be shed the one with the oldest packet."""
        marked = [
            stream for stream in self._state.book.list_active()
            if stream.packets and stream.id not in stuck and stream.definition.retention.when_full == "drop_oldest"
        ]  # fmt: skip
        for stream in marked:
            while not self._mark(stream).next_us:
                choice, _ = await self._take_slice(stream, Bounds())  # finds where its packets begin, takes none
                if choice.why != "slice":
                    break
        found = [stream for stream in marked if self._mark(stream).next_us]
        return min(found, key=lambda stream: self._mark(stream).next_us, default=None)

    async def _make_room(self) -> None:
        await self.give_back(is_all=True)
        await trio.to_thread.run_sync(self._disk.look)

    async def _cut(self) -> None:
        """Away with the prefix that holds nothing which is kept or needed, and no id that still counts."""
        longest_us, oldest = 0, self._state.head.offset
        for stream in self._state.book.list_active():
            if stream.head_sequence and not is_node_name(stream.name):  # whose ids are recognized for so long
                rule = stream.definition
                longest_us = max(longest_us, int(max(float(rule.retention.max_age), float(rule.dedup.window)) * 1e6))
            if stream.packets:
                mark = self._mark(stream)
                at = await self._remover.read_positions(stream, max(stream.oldest_sequence, 1), 1)
                oldest = min(oldest, at[0][1] - 1) if at else 0
                if mark.next_us == 0:
                    oldest = 0  # not looked at yet
            oldest = min(oldest, await self._needed_from(stream) - 1)
        if await self.cutter.cut(min(oldest, self._state.head.offset), self._clock.now_us() - longest_us):
            self._figures.cuts += 1
        while await self.cutter.delete_slice():
            await self._rest(0.002)

    async def _rest(self, worked_s: float) -> None:
        """Leaves the writer to others for their share of the time."""
        if self._disk.is_full:
            await trio.lowlevel.checkpoint()
            return
        await trio.sleep(min(PAUSE_MAX_S, worked_s * (1 / self._settings.share - 1)))

    async def _tell_disk(self, told: str) -> str:
        """Announces a change of the disk's state; gives the state."""
        state = self.disk_state
        if state != (told or "ok"):
            await self._tell(f"disk.{state}", {"free_bytes": self._disk.free_bytes})
        return state

    async def _tell(self, type: str, data: dict[str, object]) -> None:
        if self._announce is None:
            return
        try:
            await self._announce(type, data)
        except OverlaydError as err:
            _log.warning("event not recorded", type=type, error=err.detail)


def _read_candidates(connection: sqlite3.Connection, offsets: dict[int, int]) -> list[Candidate]:
    """Those of the packets (offset -> sequence) that are whole. In a reader's thread."""
    rows: Sequence[tuple[int, int, bytes]] = connection.execute(_SIZES, (json.dumps(list(offsets)),)).fetchall()
    return [
        Candidate(offsets[offset], offset, int.from_bytes(appended, "big"), size) for offset, size, appended in rows
    ]


def _count_pages(connection: sqlite3.Connection) -> tuple[int, int]:
    """Free pages of the file, and all."""
    ((free,),) = connection.execute("PRAGMA freelist_count").fetchall()
    ((pages,),) = connection.execute("PRAGMA page_count").fetchall()
    return free, pages
