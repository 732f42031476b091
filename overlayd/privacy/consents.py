"""Consents: whether a subject agreed to a purpose. A record each, durable and audited, and asked by publishing."""

from collections.abc import Callable, Sequence
from functools import partial

import trio

from overlayd.model.clock import Clock
from overlayd.model.errors import LimitReached
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.privacy import tables
from overlayd.privacy.hashes import PeopleHashes
from overlayd.privacy.tables import ConsentRow
from overlayd.storage import Log
from overlayd.storage.own import OwnPacket

_Name = tuple[bytes, str]
READ_AT_ONCE = 500


class Consents:
    """One for the node. Newest answers are kept in memory, `consents_cached` of them; the table leads."""

    def __init__(self, log: Log, hashes: PeopleHashes, limits: Limits, clock: Clock, metrics: Metrics) -> None:
        self._log = log
        self._hashes = hashes
        self._limits = limits
        self._clock = clock
        self._metrics = metrics
        self._known: dict[_Name, ConsentRow | None] = {}
        self._count = 0
        self._lock = trio.Lock()
        self.generation = 0
        """Grows whenever a consent changes."""
        self._changes = metrics.counter("overlayd_consent_changes", "Consents that were recorded", "outcome")
        metrics.gauge("overlayd_consents", "Records of consent").set_function(lambda: self._count)

    def __repr__(self) -> str:
        return f"Consents(records={self._count}, known={len(self._known)})"

    async def load(self) -> None:
        """Counts the records. Checkpoint."""
        self._count = await self._log.read(tables.count_consents)

    async def put(self, subject: str, row: ConsentRow, tell: Callable[[str], OwnPacket]) -> ConsentRow:
        """Records it; durable when it returns, with what `tell` makes of it for the audit stream (from the name by which
        that knows the subject). Checkpoint. Raises LimitReached, and as `Log.append_own`."""
        hashed = self._hashes.of_subject(subject)
        async with self._lock:
            known = await self._log.read(partial(tables.read_consents_of, subjects=[hashed], purpose=row.purpose))
            if not known and self._count >= self._limits.consents_max:
                self._metrics.count_limit_hit("consents_max")
                raise LimitReached(
                    f"there are {self._count} records of consent, which is the limit", subject="consents_max",
                    hint="raise consents_max",
                )  # fmt: skip
            values = (hashed, row.purpose, row.is_granted, row.changed_us, row.until_us, row.reference, row.principal)

            def adopt() -> None:
                self.generation += 1
                self._keep((hashed, row.purpose), row)
                self._count += not known

            packet = tell(self._hashes.reference(subject))
            await self._log.append_own([packet], [(tables.PUT_CONSENT, values)], adopt)
        self._changes.labels("granted" if row.is_granted else "withdrawn").inc()
        return row

    async def list_of(self, subject: str) -> list[ConsentRow]:
        """A subject's, by purpose. Checkpoint."""
        return await self._log.read(partial(tables.read_consents, subject=self._hashes.of_subject(subject)))

    async def missing(self, purpose: str, subjects: Sequence[str]) -> frozenset[str]:
        """As `PeoplePrivacy`."""
        names = {subject: self._hashes.of_subject(subject) for subject in subjects}
        rows: dict[bytes, ConsentRow | None] = {}
        unknown = []
        for hashed in names.values():
            if (hashed, purpose) in self._known:
                rows[hashed] = self._known[hashed, purpose]
            else:
                unknown.append(hashed)
        for at in range(0, len(unknown), READ_AT_ONCE):
            rows.update(await self._read(purpose, unknown[at : at + READ_AT_ONCE]))
        if not unknown:
            await trio.lowlevel.checkpoint()
        now_us = self._clock.now_us()
        return frozenset(subject for subject, hashed in names.items() if not _holds(rows[hashed], now_us))

    async def _read(self, purpose: str, subjects: list[bytes]) -> dict[bytes, ConsentRow | None]:
        generation = self.generation
        found = await self._log.read(partial(tables.read_consents_of, subjects=subjects, purpose=purpose))
        if generation == self.generation:  # else it may be older than what was recorded meanwhile
            for hashed in subjects:
                self._keep((hashed, purpose), found.get(hashed))
        return {hashed: found.get(hashed) for hashed in subjects}

    def _keep(self, name: _Name, row: ConsentRow | None) -> None:
        self._known.pop(name, None)
        if len(self._known) >= self._limits.consents_cached:
            self._metrics.count_limit_hit("consents_cached")
            del self._known[next(iter(self._known))]
        self._known[name] = row


def _holds(row: ConsentRow | None, now_us: int) -> bool:
    return row is not None and row.holds_at(now_us)
