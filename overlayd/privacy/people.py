"""People as the rest of the node asks about them: pseudonyms, consents, and which packets are about whom."""

from collections.abc import Sequence

import trio

from overlayd.model.clock import Clock
from overlayd.model.entry import StoredEntry
from overlayd.model.errors import DamagedEntry
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.privacy.consents import Consents
from overlayd.privacy.hashes import PeopleHashes
from overlayd.privacy.subjects import SubjectIndex
from overlayd.storage import Log, Stream


class People:
    """One for the node; publishing sees it as `PeoplePrivacy`. `load` before anything is published."""

    def __init__(self, log: Log, sealing_key: bytes, *, limits: Limits, clock: Clock, metrics: Metrics) -> None:
        self._log = log
        self._limits = limits
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

    async def read_packets(
        self, subject: str, after: int, limit: int
    ) -> tuple[list[tuple[Stream, StoredEntry]], int | None]:
        """A subject's packets that are still there, by offset, behind one; and the offset to go on from, None at the end.

        Damaged ones are left out: nobody can say what they hold. Checkpoint.
        """
        found = await self.subjects.find(subject, self._limits.erase_packets_max)
        places = sorted(
            ((offset, stream) for stream, some in found for _, offset in some if offset > after), key=lambda one: one[0]
        )
        packets: list[tuple[Stream, StoredEntry]] = []
        for at, (offset, stream) in enumerate(places):
            if len(packets) == limit:
                return packets, places[at - 1][0]
            try:
                entry = await self._log.read_entry(offset)
            except DamagedEntry:
                continue
            if not entry.is_reduced:
                packets.append((stream, entry))
        await trio.lowlevel.checkpoint()
        return packets, None
