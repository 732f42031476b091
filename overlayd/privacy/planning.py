"""What an erasure will take: the packets asked for, and everything that the node made from them."""

from collections.abc import Callable, Sequence

import msgspec

from overlayd.model.errors import BadParameter, BatchTooLarge
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.privacy.places import Position
from overlayd.privacy.subjects import SubjectIndex
from overlayd.privacy.tables import Place
from overlayd.storage import Log, Stream
from overlayd.storage.erasing import PLACES_PER_STEP, parts_of

Check = Callable[[str], None]
"""Raises what keeps the asker from erasing in a stream."""


class Target(msgspec.Struct, array_like=True):
    """Some packets of one stream, by their places, ascending; at most `PLACES_PER_STEP`, so that whoever works on a plan
    lets others have their turn in between. `stream_hash` is the stream's for ever, whatever its name. `is_made`: the node
    made them from packets that were asked for.
    """

    stream_hash: bytes
    places: list[Place]
    is_made: bool = False

    def offsets(self) -> list[int]:
        """Ascending."""
        return [offset for _, offset in self.places]


class Plan(msgspec.Struct):
    """What goes."""

    targets: list[Target]

    @property
    def packets(self) -> int:
        return sum(len(target.places) for target in self.targets)


class Planner:
    """Finds what is to be erased, and whether that may be."""

    def __init__(self, log: Log, index: SubjectIndex, limits: Limits, metrics: Metrics) -> None:
        self._log = log
        self._index = index
        self._limits = limits
        self._metrics = metrics

    async def of_range(self, stream: Stream, low: int, high: int, check: Check) -> Plan:
        """For the packets of a stream with sequences from `low` to `high`, those that are still there. Checkpoint.

        Raises what `check` does, BadParameter, BatchTooLarge, UnderHold.
        """
        check(stream.name)
        if high < low:
            raise BadParameter(f"the range ends at {high}, before it begins at {low}", subject="to")
        places: list[Place] = []
        high = min(high, stream.head_sequence)
        while low <= high:
            found = await self._log.erasing.read_positions(stream, low, PLACES_PER_STEP)
            places += [place for place in found if place[0] <= high]
            self._check_count(len(places))
            low = found[-1][0] + 1 if len(found) == PLACES_PER_STEP else high + 1
        return await self._complete([(stream, places)], check)

    async def of_subject(self, subject: str, check: Check) -> Plan:
        """For every packet about a subject, in streams that say where that stands. Checkpoint. Raises as `of_range`."""
        all_places = await self._index.look_up(subject)
        found: dict[tuple[Stream, int], list[Place]] = {}  # by name, too: places ascend for each
        position: Position | None = Position()
        count = 0
        while position is not None:
            name = position.name
            some, position = await all_places.read_step(position)
            count += len(some)
            self._check_count(count)
            for stream, place in some:
                found.setdefault((stream, name), []).append(place)
        return await self._complete([(stream, places) for (stream, _), places in found.items()], check)

    async def _complete(self, found: Sequence[tuple[Stream, Sequence[Place]]], check: Check) -> Plan:
        """With what was made from the packets, and after everything that may forbid it was asked."""
        erasing = self._log.erasing
        await erasing.older.run()
        targets: list[Target] = []
        asked: list[int] = []
        for stream, places in found:
            for part in parts_of(places):
                offsets = [offset for _, offset in part]
                kept = await erasing.find_kept(offsets)
                asked += offsets
                targets.append(Target(stream.stream_hash, [place for place in part if place[1] in kept]))
        made = await erasing.find_made(asked, self._limits.erase_packets_max)
        self._check_count(len(asked) + len(made))
        for part_made in parts_of(made):
            targets += await find_targets(self._log, part_made)
        allowed = []
        for target in targets:
            stream_of = self._log.find_stream_by_hash(target.stream_hash)
            if stream_of is None or stream_of.is_deleted or not target.places:
                continue  # it is going as a whole
            check(stream_of.name)
            await self._log.holds.refuse_places(stream_of, target.places)
            allowed.append(target)
        return Plan(allowed)

    def _check_count(self, count: int) -> None:
        if count > self._limits.erase_packets_max:
            self._metrics.count_limit_hit("erase_packets_max")
            raise BatchTooLarge(
                f"more than {self._limits.erase_packets_max} packets at once", subject="erase_packets_max",
                hint="erase a shorter range, several times, or raise erase_packets_max",
            )  # fmt: skip


async def find_targets(log: Log, made: Sequence[int]) -> list[Target]:
    """Of packets that the node made those that are still there, by stream. At most `PLACES_PER_STEP`. Checkpoint."""
    kept = await log.erasing.find_kept(made)
    by_stream: dict[bytes, list[Place]] = {}
    for offset in made:
        if offset in kept:
            stream_hash, sequence = kept[offset]
            by_stream.setdefault(stream_hash, []).append((sequence, offset))
    return [Target(stream_hash, places, is_made=True) for stream_hash, places in by_stream.items()]
