"""Erasing: written down before it begins, and carried out whatever happens in between.

The order matters. First the packets lose their content, a slice in one transaction with the rows that other tables have
of it. Then what came after: rows again, consumers' copies, caches. Last the write-ahead log, which still holds older pages.
A node that is killed on the way begins again at the first step when it starts, before it takes a request; each step can be
repeated. What a hold or a least age keeps stays an intent, and goes once that ends.
"""

import sqlite3
from collections.abc import Callable, Sequence
from functools import partial

import msgspec
import structlog
import trio

from overlayd.model.audit import AuditRecord
from overlayd.model.clock import Clock, Entropy, format_time_us
from overlayd.model.errors import DamagedEntry, IntakeBusy, OverlaydError, UnderHold, UnknownErasure
from overlayd.model.metrics import Metrics
from overlayd.model.wire_privacy import ErasedRecipient, ErasedStream, ErasureBody, ErasureState
from overlayd.privacy import tables
from overlayd.privacy.planning import Plan, Target, find_targets
from overlayd.privacy.recipients import Recipient, Traces
from overlayd.privacy.tables import ErasureRow
from overlayd.storage import Log, Stream
from overlayd.storage.erasing import parts_of
from overlayd.storage.holds import Kept
from overlayd.storage.own import OwnPacket

RETRY_S = 1.0
HOLD_TRIES = 100
LATE_MAX = 100_000
"""Packets made of what is being erased, while it is, that are looked for at once."""
_log = structlog.get_logger("privacy.erasures")
_report = msgspec.json.Decoder(ErasureBody).decode
_pieces = msgspec.json.Decoder(list[msgspec.Raw]).decode
_target = msgspec.json.Decoder(Target).decode

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
        self._kept_back: dict[str, _KeptBack] = {}
        self._arrived = trio.Event()
        self._settled = trio.Event()
        self._limiter = trio.CapacityLimiter(1)
        self._done = metrics.counter("overlayd_erasures", "Erasures by how they ended", "outcome")
        self._packets = metrics.counter("overlayd_erased_packets", "Packets whose content was erased")
        metrics.gauge("overlayd_erasures_open", "Erasures that aren't carried out yet").set_function(
            lambda: len(self._waiting) - len(self._kept_back)
        )
        metrics.gauge(
            "overlayd_erasures_held", "Erasures of which a hold or a least age keeps some packets for now"
        ).set_function(lambda: len(self._kept_back))

    def __repr__(self) -> str:
        return f"Erasures(waiting={len(self._waiting)})"

    async def describe(self, plan: Plan, id: str = "", state: ErasureState = "planned") -> ErasureBody:
        """What the plan is about, and who was given it. Checkpoint."""
        recipients: dict[str, Recipient] = {}
        now_us = self._clock.now_us()
        report = ErasureBody(
            id=id, state=state, asked_at=format_time_us(now_us), packets=0, derived=0, streams=[], recipients=[], backups=[]
        )  # fmt: skip
        for target in plan.targets:
            stream = self._log.find_stream_by_hash(target.stream_hash)
            assert stream is not None
            _count(report, stream, target)
            for one in await self._traces.given_to(stream, target.offsets(), state != "planned"):
                recipients[one.id] = one
        report.recipients = [ErasedRecipient(id=one.id, name=one.name, kind=one.kind) for one in recipients.values()]
        report.backups = await self._add_backups(report)
        return report

    async def begin(self, plan: Plan, record: Callable[[str, ErasureBody], AuditRecord]) -> str:
        """Writes the erasure down, with what `record` says of it to the audit stream; gives its id. From here on it is
        carried out. Checkpoint. Raises as `Log.append_own`."""
        asked_us = self._clock.now_us()
        id = f"er_{asked_us:016x}{self._entropy.draw(4).hex()}"
        report = await self.describe(plan, id, "working")
        targets = await _encode(plan.targets)
        row = ErasureRow(id, asked_us, targets, msgspec.json.encode(report))

        def adopt() -> None:
            self._waiting[id] = row
            self._arrived.set()

        statement = (tables.BEGIN_ERASURE, (id, asked_us, targets, row.report))
        await self._log.append_own([self._audit(record(id, report))], [statement], adopt)
        return id

    async def wait(self, id: str) -> None:
        """Until it was carried out, or only waits for what keeps some of it. Checkpoint."""
        while id in self._waiting and id not in self._kept_back:
            await self._settled.wait()
        await trio.lowlevel.checkpoint()

    async def show(self, id: str) -> ErasureBody:
        """Checkpoint. Raises UnknownErasure."""
        report = await self._log.read(partial(tables.read_report, id=id))
        if report is None:
            raise UnknownErasure(f"there is no erasure {id[:40]}", subject=id[:40])
        return _report(report)

    async def list_newest(self, before: str, limit: int) -> tuple[list[ErasureBody], bool]:
        """The newest first, and whether there are more. Checkpoint."""
        reports = await self._log.read(partial(tables.read_reports, before=before, limit=limit + 1))
        return [_report(report) for report in reports[:limit]], len(reports) > limit

    async def resume(self) -> None:
        """Tries everything once that was cut short by the last stop; `run` goes on with what can't be done yet.

        Before a request is taken, so that nobody is given what was to be erased. Checkpoint.
        """
        for row in await self._log.read(tables.read_open_erasures):
            _log.warning("going on with an erasure that was cut short", erasure=row.id)
            self._waiting[row.id] = row
        await self._work(list(self._waiting.values()))

    async def run(self) -> None:
        """Carries out what is asked for, until cancelled. What is kept back is tried again once something of what keeps
        it changed."""
        while True:
            due = [row for row in self._waiting.values() if self._is_due(row)]
            if due:
                if not await self._work(due):
                    await trio.sleep(RETRY_S)
                continue
            self._arrived = trio.Event()
            with trio.move_on_after(RETRY_S if self._kept_back else float("inf")):
                await self._arrived.wait()

    def _is_due(self, row: ErasureRow) -> bool:
        kept = self._kept_back.get(row.id)
        if kept is None or kept.marks != self._marks():
            return True
        return bool(kept.until_us) and kept.until_us <= self._clock.now_us()

    def _marks(self) -> tuple[int, int]:
        """Grow when a hold, or a stream's least age, changes."""
        return self._log.holds.book.generation, self._log.streams_generation

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
        work = _Work(self._marks())
        for raw in _pieces(row.targets):
            target = _target(raw)
            for part in parts_of(target.places):  # one that an older version wrote down may hold more
                await self._take(msgspec.structs.replace(target, places=list(part)), work)
        await self._take_late(work)
        report = _report(row.report)
        if report.state == "working":  # until now it said what was planned
            report.packets, report.derived, report.streams = 0, 0, []
        if work.gone:
            await self._clear_rest(work)
            for target in work.gone:
                _count(report, self._log.find_stream_by_hash(target.stream_hash), target)
                await trio.lowlevel.checkpoint()
        report.backups = await self._add_backups(report)
        if work.left:
            await self._keep_back(row, report, work)
        else:
            await self._settle(row, report)

    async def _take(self, target: Target, work: "_Work") -> None:
        """Everything of a target that nothing keeps. Checkpoint."""
        log = self._log
        stream = log.find_stream_by_hash(target.stream_hash)
        kept = Kept()
        if stream is not None and not stream.is_deleted:
            kept = await self._take_free(stream, target)
        still = await log.erasing.find_kept(target.offsets())
        gone = [place for place in target.places if place[1] not in still]
        left = [place for place in target.places if place[1] in still]
        if left and not (kept.held or kept.young):
            raise DamagedEntry(f"{len(left)} packets can't be taken away", subject=str(left[0][1]))
        work.add(msgspec.structs.replace(target, places=gone), msgspec.structs.replace(target, places=left), kept)

    async def _take_free(self, stream: Stream, target: Target) -> Kept:
        for _ in range(HOLD_TRIES):
            free, kept = await self._log.holds.split(stream, target.places)
            try:
                self._packets.inc(await self._log.erasing.take(stream, free, self._clear))
            except UnderHold:  # a hold was placed since we asked: what it covers stays
                continue
            return kept
        raise IntakeBusy("holds change faster than packets are erased", subject=stream.name, retry_after_s=RETRY_S)

    async def _take_late(self, work: "_Work") -> None:
        """What the node made of the packets after it was planned: while they were there nobody knew that it mustn't. Only
        in streams of which it takes something anyhow: about others nobody was asked whether it may."""
        streams = {target.stream_hash for target in (*work.gone, *work.left)}
        asked = await _offsets(work.gone)
        known = {*asked, *await _offsets(work.left)}
        for part in parts_of(await self._log.erasing.find_made(asked, LATE_MAX)):
            for target in await find_targets(self._log, [offset for offset in part if offset not in known]):
                if target.stream_hash in streams:
                    await self._take(target, work)

    async def _clear_rest(self, work: "_Work") -> None:
        """Everything about packets that are gone that was written, or kept, by who still had them. Checkpoint."""
        offsets = await _offsets(work.gone)
        self._traces.forget(offsets)
        for target in work.gone:
            await self._log.write(partial(self._clear_gone, target=target))
        for follow in self._traces.followers:
            await follow(self._log.head)
        await self._log.erasing.take_statuses(offsets)
        self._traces.forget(offsets)
        await self._log.erasing.cut_wal()

    async def _add_backups(self, report: ErasureBody) -> list[str]:
        """Those that were begun since it was asked for may hold the packets too. Checkpoint."""
        now_us = self._clock.now_us()
        begun = await trio.to_thread.run_sync(self._traces.backups_before, now_us, limiter=self._limiter)
        return list(dict.fromkeys([*report.backups, *begun])) if report.packets else []

    def _clear(self, connection: sqlite3.Connection, offsets: Sequence[int]) -> None:
        for clear in self._traces.clear:
            clear(connection, offsets)

    def _clear_gone(self, connection: sqlite3.Connection, target: Target) -> None:
        """In the writer's transaction; of packets that are there, after all, nothing is touched."""
        places = tables.only_gone(connection, target.places)
        self._clear(connection, [offset for _, offset in places])
        stream = self._log.find_stream_by_hash(target.stream_hash)
        if stream is not None:
            tables.forget_packets(connection, stream.id, [sequence for sequence, _ in places])

    async def _keep_back(self, row: ErasureRow, report: ErasureBody, work: "_Work") -> None:
        """Some of it stays for now. Told once, and whenever some of it went."""
        left = sum(len(target.places) for target in work.left)
        is_news = bool(work.gone) or report.state != "held" or report.held != left
        report.state, report.held = "held", left
        row = msgspec.structs.replace(row, targets=await _encode(work.left), report=msgspec.json.encode(report))

        def adopt() -> None:
            self._waiting[row.id] = row
            self._kept_back[row.id] = _KeptBack(work.marks, work.until_us)
            self._tell_settled()

        if not is_news:
            adopt()
            return
        record = AuditRecord(
            "erase.held", "failed", actor="node", subject=row.id, detail={"held": left, **_counts(report)}
        )
        statement = (tables.GO_ON_WITH_ERASURE, (row.targets, row.report, row.id))
        await self._log.append_own([self._audit(record)], [statement], adopt)
        self._done.labels("held").inc()
        _log.warning("some of an erasure is kept back", erasure=row.id, packets=report.packets, held=left)

    async def _settle(self, row: ErasureRow, report: ErasureBody) -> None:
        done_us = self._clock.now_us()
        report.state, report.held = "done", 0
        report.done_at = format_time_us(done_us)
        record = AuditRecord("erase.done", actor="node", subject=row.id, detail=_counts(report))

        def adopt() -> None:
            self._waiting.pop(row.id, None)
            self._kept_back.pop(row.id, None)
            self._done.labels("done").inc()
            self._tell_settled()

        values = (done_us, msgspec.json.encode(report), row.id)
        await self._log.append_own([self._audit(record)], [(tables.END_ERASURE, values)], adopt)
        _log.info("erased", erasure=row.id, packets=report.packets, derived=report.derived)

    def _tell_settled(self) -> None:
        self._settled.set()
        self._settled = trio.Event()


class _KeptBack(msgspec.Struct, frozen=True):
    """What kept some of an erasure back when it was last tried; `until_us`: when the first packet is old enough, 0: none."""

    marks: tuple[int, int]
    until_us: int


class _Work:
    """What came of carrying an erasure out once: places that hold nothing any more, and those that something keeps."""

    def __init__(self, marks: tuple[int, int]) -> None:
        self.marks = marks
        self.gone: list[Target] = []
        self.left: list[Target] = []
        self.until_us = 0

    def add(self, gone: Target, left: Target, kept: Kept) -> None:
        if gone.places:
            self.gone.append(gone)
        if left.places:
            self.left.append(left)
        if kept.until_us:
            self.until_us = min(self.until_us or kept.until_us, kept.until_us)


def _count(report: ErasureBody, stream: Stream | None, target: Target) -> None:
    """Adds a target to what a report tells."""
    count = len(target.places)
    report.packets += count
    report.derived += count if target.is_made else 0
    if stream is None:
        return
    first, last = target.places[0][0], target.places[-1][0]
    known = next((one for one in report.streams if one.stream == stream.name), None)
    if known is None:
        new = ErasedStream(stream=stream.name, packets=count, first_sequence=first, last_sequence=last)
        report.streams.append(new)
        return
    known.packets += count
    known.first_sequence, known.last_sequence = min(known.first_sequence, first), max(known.last_sequence, last)


def _counts(report: ErasureBody) -> dict[str, str | int | bool]:
    return {"packets": report.packets, "derived": report.derived, "streams": len(report.streams)}


async def _offsets(targets: Sequence[Target]) -> list[int]:
    """Ascending. Checkpoint."""
    offsets: list[int] = []
    for target in targets:
        offsets += target.offsets()
        await trio.lowlevel.checkpoint()
    offsets.sort()
    return offsets


async def _encode(targets: Sequence[Target]) -> bytes:
    """As JSON, one after the other. Checkpoint."""
    pieces = []
    for target in targets:
        pieces.append(msgspec.json.encode(target))
        await trio.lowlevel.checkpoint()
    return b"[" + b",".join(pieces) + b"]"
