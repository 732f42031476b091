"""Erasing: written down before it begins, and carried out whatever happens in between.

The order matters. First the packets lose their content, one transaction a slice. Then everything that was made of it
goes: rows of tables, consumers' copies, caches. Last the write-ahead log, which still holds older pages. A node that is
killed on the way begins again at the first step when it starts, before it takes a request; each step can be repeated.
"""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import msgspec
import structlog
import trio

from overlayd.model.audit import AuditRecord, AuditResult
from overlayd.model.clock import Clock, Entropy, format_time_us
from overlayd.model.errors import OverlaydError, UnderHold, UnknownErasure
from overlayd.model.metrics import Metrics
from overlayd.model.wire_privacy import ErasedRecipient, ErasedStream, ErasureBody
from overlayd.privacy import tables
from overlayd.privacy.planning import Plan, Target, runs_of
from overlayd.privacy.recipients import Recipient, Traces
from overlayd.privacy.tables import ErasureRow
from overlayd.storage import Log
from overlayd.storage.own import OwnPacket

RETRY_S = 1.0
CLEARED_PER_STEP = 5000
_log = structlog.get_logger("privacy.erasures")
_report = msgspec.json.Decoder(ErasureBody).decode
_targets = msgspec.json.Decoder(list[Target]).decode

MakePacket = Callable[[AuditRecord], OwnPacket]


class Erasures:
    """One for the node. `run` carries out what was asked for, one after the other."""

    def __init__(
        self, log: Log, traces: Traces, *, audit: MakePacket, clock: Clock, entropy: Entropy, metrics: Metrics
    ) -> None:
        """`audit`: makes a packet of the audit stream of a record."""
        self._log = log
        self._traces = traces
        self._audit = audit
        self._clock = clock
        self._entropy = entropy
        self._waiting: dict[str, ErasureRow] = {}
        self._arrived = trio.Event()
        self._settled = trio.Event()
        self._limiter = trio.CapacityLimiter(1)
        self._done = metrics.counter("overlayd_erasures", "Erasures by how they ended", "outcome")
        self._packets = metrics.counter("overlayd_erased_packets", "Packets whose content was erased")
        metrics.gauge("overlayd_erasures_open", "Erasures that aren't carried out yet").set_function(
            lambda: len(self._waiting)
        )

    def __repr__(self) -> str:
        return f"Erasures(waiting={len(self._waiting)})"

    async def describe(self, plan: Plan, id: str = "", state: str = "planned") -> ErasureBody:
        """What the plan is about, and who was given it. Checkpoint."""
        recipients: dict[str, Recipient] = {}
        streams = []
        for target in plan.targets:
            stream = self._log.find_stream_by_hash(target.stream_hash)
            assert stream is not None
            sequences = [sequence for sequence, _ in target.places]
            streams.append(
                ErasedStream(
                    stream=stream.name, packets=len(sequences), first_sequence=sequences[0], last_sequence=sequences[-1]
                )
            )  # fmt: skip
            offsets = [offset for _, offset in target.places]
            for one in await self._traces.given_to(stream, offsets, state != "planned"):
                recipients[one.id] = one
        now_us = self._clock.now_us()
        backups = await trio.to_thread.run_sync(self._traces.backups_before, now_us, limiter=self._limiter)
        return ErasureBody(
            id=id, state=state,  # type: ignore[arg-type]  # one of the words
            asked_at=format_time_us(now_us), packets=plan.packets, derived=plan.derived, streams=streams,
            recipients=[ErasedRecipient(id=one.id, name=one.name, kind=one.kind) for one in recipients.values()],
            backups=list(backups) if plan.packets else [],
        )  # fmt: skip

    async def begin(self, plan: Plan, record: Callable[[str, ErasureBody], AuditRecord]) -> str:
        """Writes the erasure down, with what `record` says of it to the audit stream; gives its id. From here on it is
        carried out. Checkpoint. Raises as `Log.append_own`."""
        asked_us = self._clock.now_us()
        id = f"er_{asked_us:016x}{self._entropy.draw(4).hex()}"
        report = await self.describe(plan, id, "working")
        targets = msgspec.json.encode(plan.targets)
        row = ErasureRow(id, asked_us, 0, targets, msgspec.json.encode(report))

        def adopt() -> None:
            self._waiting[id] = row
            self._arrived.set()

        statement = (tables.BEGIN_ERASURE, (id, asked_us, targets, row.report))
        await self._log.append_own([self._audit(record(id, report))], [statement], adopt)
        return id

    async def wait(self, id: str) -> None:
        """Until it was carried out. Checkpoint."""
        while id in self._waiting:
            await self._settled.wait()
        await trio.lowlevel.checkpoint()

    async def show(self, id: str) -> ErasureBody:
        """Checkpoint. Raises UnknownErasure."""
        row = await self._log.read(partial(tables.read_erasure, id=id))
        if row is None:
            raise UnknownErasure(f"there is no erasure {id[:40]}", subject=id[:40])
        return _report(row.report)

    async def list_newest(self, before: str, limit: int) -> tuple[list[ErasureBody], bool]:
        """The newest first, and whether there are more. Checkpoint."""
        rows = await self._log.read(partial(tables.read_erasures, before=before, limit=limit + 1))
        return [_report(row.report) for row in rows[:limit]], len(rows) > limit

    async def resume(self) -> None:
        """Tries everything once that was cut short by the last stop; `run` goes on with what can't be done yet.

        Before a request is taken, so that nobody is given what was to be erased. Checkpoint.
        """
        for row in await self._log.read(tables.read_open_erasures):
            _log.warning("going on with an erasure that was cut short", erasure=row.id)
            self._waiting[row.id] = row
        await self._work(list(self._waiting.values()))

    async def run(self) -> None:
        """Carries out what is asked for, until cancelled."""
        while True:
            if not self._waiting:
                self._arrived = trio.Event()
                await self._arrived.wait()
            if not await self._work(list(self._waiting.values())):
                await trio.sleep(RETRY_S)

    async def _work(self, rows: Sequence[ErasureRow]) -> bool:
        """Whether all of them were carried out; what isn't is tried again. Checkpoint."""
        is_all = True
        for row in rows:
            try:
                await self._carry_out(row)
            except OverlaydError as error:
                _log.warning("an erasure can't be carried out yet", erasure=row.id, error=error.detail)
                self._done.labels("delayed").inc()
                is_all = False
        await trio.lowlevel.checkpoint()
        return is_all

    async def _carry_out(self, row: ErasureRow) -> None:
        log, traces = self._log, self._traces
        targets, held = await self._split(_targets(row.targets))
        report = _report(row.report)
        offsets = sorted(offset for target in targets for _, offset in target.places)
        for part in _parts(offsets):  # before the packets: what confirms them must not tell of them any more
            await log.write(partial(self._clear, offsets=part))
        for target in targets:
            stream = log.find_stream_by_hash(target.stream_hash)
            if stream is None or stream.is_deleted:
                continue
            try:
                self._packets.inc(await log.erasing.take(stream, target.places))
            except UnderHold as error:
                held = held or error.detail
            else:
                await log.write(partial(_forget_index, stream_id=stream.id, target=target))
        report.backups = await self._add_backups(report)
        traces.forget()
        for part in _parts(offsets):
            await log.write(partial(self._clear, offsets=part))
        for follow in traces.followers:
            await follow(log.head)
        await log.erasing.take_statuses(offsets)
        traces.forget()
        await log.erasing.cut_wal()
        await self._settle(row, report, held)

    async def _split(self, targets: Sequence[Target]) -> tuple[list[Target], str]:
        """Those of which nothing is held by now, and why others aren't among them: what was made of a held packet stays
        too. Checkpoint."""
        free, held = list[Target](), ""
        for target in targets:
            stream = self._log.find_stream_by_hash(target.stream_hash)
            try:
                if stream is not None and not stream.is_deleted:
                    for low, high in runs_of([sequence for sequence, _ in target.places]):
                        await self._log.holds.refuse_if_held(stream, low, high)
            except UnderHold as error:
                held = held or error.detail
            else:
                free.append(target)
        return free, held

    async def _add_backups(self, report: ErasureBody) -> list[str]:
        """Those that were begun since it was asked for may hold the packets too. Checkpoint."""
        now_us = self._clock.now_us()
        begun = await trio.to_thread.run_sync(self._traces.backups_before, now_us, limiter=self._limiter)
        return list(dict.fromkeys([*report.backups, *begun])) if report.packets else []

    def _clear(self, connection: sqlite3.Connection, offsets: Sequence[int]) -> None:
        for clear in self._traces.clear:
            clear(connection, offsets)

    async def _settle(self, row: ErasureRow, report: ErasureBody, held: str) -> None:
        done_us = self._clock.now_us()
        result: AuditResult = "failed" if held else "ok"
        report.state = "held" if held else "done"
        report.done_at = format_time_us(done_us)
        record = AuditRecord(
            "erase.held" if held else "erase.done", result, actor="node", subject=row.id,
            detail={"packets": report.packets, "derived": report.derived, "streams": len(report.streams)},
        )  # fmt: skip

        def adopt() -> None:
            self._waiting.pop(row.id, None)
            self._done.labels(report.state).inc()
            self._settled.set()
            self._settled = trio.Event()

        values = (done_us, msgspec.json.encode(report), row.id)
        await self._log.append_own([self._audit(record)], [(tables.END_ERASURE, values)], adopt)
        _log.info("erased", erasure=row.id, packets=report.packets, derived=report.derived)


def _forget_index(connection: sqlite3.Connection, stream_id: int, target: Target) -> None:
    tables.forget_packets(connection, stream_id, [sequence for sequence, _ in target.places])


def _parts(offsets: Sequence[int]) -> Iterator[Sequence[int]]:
    for at in range(0, len(offsets), CLEARED_PER_STEP):
        yield offsets[at : at + CLEARED_PER_STEP]
