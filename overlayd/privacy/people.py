"""People as the rest of the node asks about them: pseudonyms, consents, and which packets are about whom."""

from collections.abc import Sequence

from overlayd.model.clock import Clock
from overlayd.model.entry import StoredEntry
from overlayd.model.errors import DamagedEntry
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.privacy.consents import Consents
from overlayd.privacy.hashes import PeopleHashes
from overlayd.privacy.places import StreamCount
from overlayd.privacy.subjects import SubjectIndex
from overlayd.storage import Log, Stream

EXPORT_BYTES = 1 << 20
"""Of packets' bodies in one page of an export."""


class People:
    """One for the node; publishing sees it as `PeoplePrivacy`. `load` before anything is published."""

    def __init__(self, log: Log, sealing_key: bytes, *, limits: Limits, clock: Clock, metrics: Metrics) -> None:
        self._log = log
        self._limits = limits
        self._metrics = metrics
        self.hashes = PeopleHashes(sealing_key)
        self.consents = Consents(log, self.hashes, limits, clock, metrics)
        self.subjects = SubjectIndex(log, self.hashes, metrics)

    async def load(self) -> None:
        """Reads where everything stands. Checkpoint."""
        await self.consents.load()
        await self.subjects.load()

    @property
    def generation(self) -> int:
        """Grows whenever a consent changes."""
        return self.consents.generation

    def pseudonym(self, stream: str, text: str) -> str:
        """Stands for a text in a stream, the same each time."""
        return self.hashes.pseudonym(stream, text)

    async def missing(self, purpose: str, subjects: Sequence[str]) -> frozenset[str]:
        """Those without consent to the purpose now. Checkpoint."""
        return await self.consents.missing(purpose, subjects)

    async def count_packets(self, subject: str) -> tuple[list[StreamCount], bool]:
        """How many packets about a subject are still there, by stream; and whether all were counted: at most
        `subject_packets_max` are. Checkpoint."""
        places = await self.subjects.look_up(subject)
        counts, is_complete = await places.count(self._limits.subject_packets_max)
        if not is_complete:
            self._metrics.count_limit_hit("subject_packets_max")
        return counts, is_complete

    async def read_packets(
        self, subject: str, after: int, limit: int
    ) -> tuple[list[tuple[Stream, StoredEntry]], int | None]:
        """A subject's packets that are still there, by offset, behind one; and the offset to go on from, None at the end.

        At most `limit`, and none behind the one that reaches `EXPORT_BYTES`. Damaged ones are left out: nobody can say
        what they hold. Checkpoint.
        """
        places = await self.subjects.look_up(subject)
        packets: list[tuple[Stream, StoredEntry]] = []
        size, follows = 0, 0
        goes_on: int | None = after
        while goes_on is not None:
            found, goes_on = await places.read_after(goes_on, limit)
            for stream, (_, offset) in found:
                if len(packets) == limit or size >= EXPORT_BYTES:
                    return packets, follows
                follows = offset
                try:
                    entry = await self._log.read_entry(offset)
                except DamagedEntry:
                    continue
                if not entry.is_reduced:
                    packets.append((stream, entry))
                    size += len(entry.body)
        return packets, None
