"""The audit trail: security-relevant acts on their way into the node's audit stream (docs/security.md, Audit).

What an answer depends on is durable before it (`write`); what only has to be noted waits in a bounded queue (`note`).
What comes again and again, as failures under attack do, is written once and then counted.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Sequence

import msgspec
import structlog
import trio

from overlayd.access.settings import AccessSettings
from overlayd.model.audit import AuditRecord, AuditValue
from overlayd.model.errors import OverlaydError, ShuttingDown
from overlayd.model.metrics import Metrics
from overlayd.storage.own import OwnPacket

MakePacket = Callable[[str, dict[str, object]], OwnPacket]
"""From a type and data."""
PackAudit = Callable[[AuditRecord], OwnPacket]
"""`AuditTrail.packet`."""
AppendOwn = Callable[[Sequence[OwnPacket]], Awaitable[object]]

AT_ONCE_MAX = 200
SUBJECT_CHARS_MAX = 200
RETRY_S = 1.0
_Kind = tuple[str, str, str, str]
_OTHERS: _Kind = ("", "", "", "")
_log = structlog.get_logger("access.audit")


class _Repeats(msgspec.Struct):
    """What is counted instead of being written. `last`: the newest of it."""

    until_s: float
    last: AuditRecord
    count: int = 0


class AuditTrail:
    """Where security-relevant acts are told. One for the node; `run` writes what waits."""

    def __init__(
        self, settings: AccessSettings, metrics: Metrics, *, make_packet: MakePacket, append: AppendOwn,
        now_s: Callable[[], float],
    ) -> None:  # fmt: skip
        """`now_s`: monotonic seconds."""
        self._settings = settings
        self._metrics = metrics
        self._make_packet = make_packet
        self._append = append
        self._now_s = now_s
        self._waiting: deque[AuditRecord] = deque()
        self._arrived = trio.Event()
        self._dropped = 0
        self._repeats: dict[_Kind, _Repeats] = {}
        self._written = metrics.counter("overlayd_audit_records", "Audit records by what became of them", "outcome")
        waiting = metrics.gauge("overlayd_audit_waiting", "Audit records that wait to be written")
        waiting.set_function(lambda: len(self._waiting))

    def __repr__(self) -> str:
        return f"AuditTrail(waiting={len(self._waiting)}, counted={len(self._repeats)})"

    def adopt(self, settings: AccessSettings) -> None:
        """Its limits are these from now on."""
        self._settings = settings

    def packet(self, record: AuditRecord) -> OwnPacket:
        """The record as a packet, to be appended in the transaction of what it tells about."""
        self._written.labels("written").inc()
        return self._make_packet(record.action, _data_of(record))

    async def write(self, record: AuditRecord) -> None:
        """Durable when it returns. Checkpoint. Raises what keeps the log from taking it; then the act may not be."""
        await self._append([self.packet(record)])

    async def write_once(self, record: AuditRecord) -> None:
        """As `write`; equal ones that follow within `audit_repeats` are counted. Checkpoint."""
        if self._is_first(record):
            await self.write(record)
        else:
            await trio.lowlevel.checkpoint()

    def note(self, record: AuditRecord) -> None:
        """An AuditSink: written soon. What doesn't fit is counted, and the count is written."""
        if len(self._waiting) >= self._settings.audit_pending:
            self._metrics.count_limit_hit("audit_pending")
            self._written.labels("dropped").inc()
            self._dropped += 1
            return
        self._waiting.append(record)
        self._arrived.set()

    def note_once(self, record: AuditRecord) -> None:
        """As `note`; equal ones that follow within `audit_repeats` are counted."""
        if self._is_first(record):
            self.note(record)

    async def run(self) -> None:
        """Writes what waits until it is cancelled, and then what is left. Checkpoint."""
        try:
            while True:
                with trio.move_on_after(float(self._settings.audit_repeats) / 4):
                    await self._arrived.wait()
                self._tell_repeats(self._now_s())
                await self._write_waiting()
        finally:
            with trio.move_on_after(RETRY_S, shield=True):
                self._tell_repeats(float("inf"))
                await self._write_waiting()

    async def _write_waiting(self) -> None:
        """Everything that waits, some at a time. What can't be written now stays and is tried again."""
        while self._waiting or self._dropped:
            records = [self._waiting[at] for at in range(min(AT_ONCE_MAX, len(self._waiting)))]
            dropped = self._dropped
            if dropped:
                records.append(AuditRecord("audit.dropped", "failed", detail={"records": dropped}))
            try:
                await self._append([self._make_packet(record.action, _data_of(record)) for record in records])
            except ShuttingDown:
                _log.warning("audit records lost in the shutdown", records=len(self._waiting))
                break
            except OverlaydError as error:
                _log.warning("audit records can't be written yet", error=error.detail, waiting=len(self._waiting))
                await trio.sleep(RETRY_S)
                return
            for _ in range(len(records) - bool(dropped)):
                self._waiting.popleft()
            self._dropped -= dropped
            self._written.labels("written").inc(len(records))
        self._arrived = trio.Event()

    def _is_first(self, record: AuditRecord) -> bool:
        """Whether nothing equal was written lately; else it is counted."""
        kind: _Kind = (record.action, record.result, record.actor, record.address)
        now = self._now_s()
        found = self._repeats.get(kind)
        if found is None and len(self._repeats) >= self._settings.audit_repeats_max:
            self._metrics.count_limit_hit("audit_repeats_max")
            kind, found = _OTHERS, self._repeats.get(_OTHERS)
            if found is None:
                found = self._repeats[_OTHERS] = _Repeats(now + float(self._settings.audit_repeats), record)
        if found is None:
            self._repeats[kind] = _Repeats(now + float(self._settings.audit_repeats), record)
            return True
        found.count += 1
        found.last = record
        self._written.labels("counted").inc()
        return False

    def _tell_repeats(self, now: float) -> None:
        """Writes the counts of what is over, and forgets it."""
        for kind in [kind for kind, repeats in self._repeats.items() if repeats.until_s <= now]:
            repeats = self._repeats.pop(kind)
            if not repeats.count:
                continue
            last = repeats.last
            if kind == _OTHERS:
                self.note(AuditRecord("audit.repeats", last.result, detail={"repeats": repeats.count}))
            else:
                detail: dict[str, AuditValue] = {**last.detail, "repeats": repeats.count}
                self.note(msgspec.structs.replace(last, detail=detail))


def _data_of(record: AuditRecord) -> dict[str, object]:
    """The members of the packet's data; empty ones are left out."""
    data: dict[str, object] = {"action": record.action, "result": record.result}
    for name in ("actor", "address", "subject", "request_id"):
        text = getattr(record, name)
        if text:
            data[name] = text[:SUBJECT_CHARS_MAX]
    if record.detail:
        data["detail"] = record.detail
    return data
