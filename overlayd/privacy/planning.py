"""What an erasure will take: the packets asked for, and everything that the node made from them."""

from collections.abc import Callable, Sequence

import msgspec

from overlayd.model.errors import BadParameter, BatchTooLarge
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.privacy.subjects import SubjectIndex
from overlayd.privacy.tables import Place
from overlayd.storage import Log, Stream

Check = Callable[[str], None]
"""Raises what keeps the asker from erasing in a stream."""
POSITIONS_PER_STEP = 5000


class Target(msgspec.Struct, array_like=True):
    """Packets of one stream, by their places, ascending. `stream_hash` is the stream's for ever, whatever its name."""

    stream_hash: bytes
    places: list[Place]


class Plan(msgspec.Struct):
    """Targets by stream, and how many of their packets were made from the others."""

    targets: list[Target]
    derived: int

    @property
    def packets(self) -> int:
        return sum(len(target.places) for target in self.targets)

    def offsets(self) -> list[int]:
        """All of them, ascending."""
        return sorted(offset for target in self.targets for _, offset in target.places)


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
            found = await self._log.erasing.read_positions(stream, low, POSITIONS_PER_STEP)
            places += [place for place in found if place[0] <= high]
            self._check_count(len(places))
            low = found[-1][0] + 1 if len(found) == POSITIONS_PER_STEP else high + 1
        return await self._complete([(stream, places)], check)

    async def of_subject(self, subject: str, check: Check) -> Plan:
        """For every packet about a subject, in streams that say where that stands. Checkpoint. Raises as `of_range`."""
        found = await self._index.find(subject, self._limits.erase_packets_max + 1)
        self._check_count(sum(len(places) for _, places in found))
        return await self._complete(found, check)

    async def _complete(self, found: Sequence[tuple[Stream, Sequence[Place]]], check: Check) -> Plan:
        """With what was made from the packets, and after everything that may forbid it was asked."""
        await self._log.erasing.older.run()
        erasing = self._log.erasing
        asked = sorted(offset for _, places in found for _, offset in places)
        made = await erasing.find_made(asked)
        self._check_count(len(asked) + len(made))
        kept = await erasing.find_kept([*asked, *made])
        by_stream: dict[bytes, list[Place]] = {}
        for offset in sorted(kept):
            stream_hash, sequence = kept[offset]
            by_stream.setdefault(stream_hash, []).append((sequence, offset))
        targets = []
        for stream_hash, places in by_stream.items():
            stream = self._log.find_stream_by_hash(stream_hash)
            if stream is None or stream.is_deleted:
                continue  # it is going as a whole
            check(stream.name)
            for low, high in runs_of([sequence for sequence, _ in places]):
                await self._log.holds.refuse_if_held(stream, low, high)
            targets.append(Target(stream_hash, places))
        return Plan(targets, len(kept.keys() & set(made)))

    def _check_count(self, count: int) -> None:
        if count > self._limits.erase_packets_max:
            self._metrics.count_limit_hit("erase_packets_max")
            raise BatchTooLarge(
                f"more than {self._limits.erase_packets_max} packets at once", subject="erase_packets_max",
                hint="erase a shorter range, several times, or raise erase_packets_max",
            )  # fmt: skip


def runs_of(sequences: Sequence[int]) -> list[tuple[int, int]]:
    """Runs of sequences that follow one another, both ends inclusive."""
    runs: list[tuple[int, int]] = []
    for sequence in sequences:
        if runs and runs[-1][1] == sequence - 1:
            runs[-1] = (runs[-1][0], sequence)
        else:
            runs.append((sequence, sequence))
    return runs
