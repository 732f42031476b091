"""The watcher: broadcasts, asks, checks, and appends what became of packets (docs/chain.md).

One task changes what the tables say about transactions and items, besides appends and the wallet, which only add. Every
step writes its entries and rows in one transaction, so that it can be cut anywhere and goes on after a start where it
stopped. Nothing is held in memory but hints.
"""

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

import structlog
import trio

from overlayd.chain import item_tables as items
from overlayd.chain import watch_tables as txs
from overlayd.chain.clearing import ClearedLog, Clearing
from overlayd.chain.engine_settings import WatchSettings
from overlayd.chain.headers import HeaderBook
from overlayd.chain.proving import Prover, Verdict, find_output
from overlayd.chain.rules import Rules, Streams
from overlayd.chain.turns import Turns, entries_of
from overlayd.chain.watch_metrics import WatchMetrics
from overlayd.chain.watch_tables import Answered, Mined, WatchedTx
from overlayd.model.bodies import StatusEntry
from overlayd.model.chain_source import Outgoing, RawSource, SourceStatus, TransactionSource
from overlayd.model.clock import Clock
from overlayd.model.errors import OverlaydError, ShuttingDown, SourceUnavailable
from overlayd.model.metrics import Metrics
from overlayd.model.txid import BlockHash, TxId
from overlayd.storage import Stream

T = TypeVar("T")
BACK_AT_ONCE = 200
"""Transactions of a block that left the best chain, which are taken back in one transaction of ours."""
DEPTHS_AT_ONCE = 2000
BACKOFF_FIRST_S = 1.0
BACKOFF_MAX_S = 60.0
TIP_MARK = "watched_tip"
_LIMIT_HINTS = "hints_max"
_log = structlog.get_logger("chain.watcher")


class WatchLog(ClearedLog, Streams, Protocol):
    """What the watcher needs of the log."""

    def find_stream_by_hash(self, stream_hash: bytes) -> Stream | None: ...

    async def append_statuses(
        self, statuses: Sequence[StatusEntry], along: Callable[[sqlite3.Connection], None]
    ) -> list[int]: ...


class OwnTxs(Protocol):
    """What the wallet does when one of its transactions comes to nothing."""

    def release(self, c: sqlite3.Connection, tx: WatchedTx, verdict: Verdict) -> None:
        """In the watcher's transaction, so in the writer's thread: tasks can't be woken from there."""
        ...

    def note_changed(self) -> None:
        """That is durable, or a block holds one of them: something waits anew, or coins have come."""
        ...


class Watcher:
    """Watches every transaction that confirms something, until cancelled."""

    def __init__(
        self, *, log: WatchLog, book: HeaderBook, source: TransactionSource, raws: RawSource | None, own: OwnTxs,
        settings: WatchSettings, clock: Clock, metrics: Metrics,
    ) -> None:  # fmt: skip
        self._log = log
        self._book = book
        self._source = source
        self._own = own
        self._settings = settings
        self._clock = clock
        self._metrics = metrics
        self._prover = Prover(book, source, raws)
        self._rules = Rules(log)
        self._measured = WatchMetrics(metrics, clock)
        self._turns = Turns(log, self._rules, self._measured.note_told)
        self.clearing = Clearing(log, book, metrics)
        self._hints: dict[TxId, None] = {}
        self._is_poll_due = True
        self._is_woken = trio.Event()
        self._generation = -1
        self._tip: tuple[int, bytes] | None = None
        self._backoff_s = 0.0

    # What others tell it.

    def hint(self, txid: TxId) -> None:
        """Something may have happened to a transaction. Neither blocks nor fails; what isn't watched is passed over."""
        if len(self._hints) >= self._settings.hints_max:
            self._metrics.count_limit_hit(_LIMIT_HINTS)
            self._is_poll_due = True
            self._hints.clear()
        else:
            self._hints[txid] = None
        self.wake()

    def hint_all(self) -> None:
        """Hints were lost: everything is asked about."""
        self._is_poll_due = True
        self.wake()

    def wake(self) -> None:
        """There is something to broadcast or to tell."""
        self._is_woken.set()

    async def count(self) -> None:
        """Counts what waits, for `measured`. A checkpoint."""
        self._measured.count(await self._log.read(self._measured.read))

    @property
    def measured(self) -> WatchMetrics:
        """What is waiting, as it was when it was counted last."""
        return self._measured

    # Its life.

    async def run(self) -> None:
        """Works until cancelled. Raises what isn't to be gone on from, such as CommitFailed."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen_to_blocks)
            while True:
                is_done = await self.step()
                wait_s = float(self._settings.poll_interval) if is_done else self._backoff_s
                with trio.move_on_after(wait_s) as waited:
                    await self._is_woken.wait()
                if waited.cancelled_caught and is_done:
                    self._is_poll_due = True

    async def _listen_to_blocks(self) -> None:
        tip = self._book.tip
        while True:
            tip = await self._book.wait_moved(tip)
            self.wake()

    async def step(self) -> bool:
        """Does what is to be done now; whether nothing of it has to be tried again soon. Checkpoint."""
        self._is_woken = trio.Event()
        try:
            await self._keep_up()
            await self._announce()
            if await self.clearing.step():
                self.wake()
            await self._ask_sources()
            await self._turns.advance(await self._log.read(items.read_untold_streams))
        except ShuttingDown:
            await trio.sleep_forever()
        except OverlaydError as error:
            if not error.retryable:
                raise
            self._backoff_s = min(max(2 * self._backoff_s, BACKOFF_FIRST_S), BACKOFF_MAX_S)
            _log.warning("tried again", error=error.detail, subject=error.subject, after_s=self._backoff_s)
            return False
        self._backoff_s = 0.0
        return True

    async def _keep_up(self) -> None:
        """With definitions and with our own headers: what left the best chain is taken back, what got deeper is told."""
        is_changed = self._tip is None
        if self._tip is None:
            mark = await self._log.read(lambda c: txs.read_mark(c, TIP_MARK))
            self._tip = (0, b"") if mark is None else (mark[0], mark[1] or b"")
        if self._generation != self._rules.generation:
            generation = self._rules.generation
            is_changed = await self._align_depths() or is_changed
            self._generation = generation
        tip = self._book.tip
        is_new = self._tip[1] != tip.hash
        if is_new:
            await self._take_back()
            await self._log.write(lambda c: txs.write_mark(c, TIP_MARK, tip.height, tip.hash))
            self._tip = (tip.height, tip.hash)
            self._is_poll_due = True
        self._turns.tip_height = self._tip[0]
        # Only now: what lies in blocks that were left must not be told as deeper.
        if is_new or is_changed:
            await self._turns.advance_all()

    async def _align_depths(self) -> bool:
        """Brings items in line with the depths that are listed now; those of deleted streams wait for nothing. Whether
        any listed others."""
        is_changed = False
        known: dict[bytes, tuple[int, ...]] = await self._log.read(items.read_depths)
        opened: list[bytes] = await self._log.read(items.read_open_streams)
        for stream_hash in {*known, *opened}:
            rule = self._rules.of(stream_hash)
            if rule is None:
                while await self._log.write(lambda c: items.close_stream(c, stream_hash, DEPTHS_AT_ONCE)):  # noqa: B023
                    pass
            elif known.get(stream_hash) != rule.depths:
                is_changed = True
                after: int | None = 0
                while after is not None:
                    after = await self._log.write(
                        lambda c: items.align_depths(c, stream_hash, rule.depths, after or 0, DEPTHS_AT_ONCE)  # noqa: B023
                    )
                await self._log.write(lambda c: items.write_depths(c, stream_hash, rule.depths))  # noqa: B023
        return is_changed

    async def _take_back(self) -> None:
        """What blocks held that aren't in the best chain any more is pending again, and told so."""
        assert self._tip is not None
        held = self._book.find(BlockHash(self._tip[1]))
        while held is not None and not self._book.is_best(held):
            held = self._book.find(held.header.previous)
        from_height = 0 if held is None else held.height + 1
        blocks: list[tuple[int, BlockHash]] = await self._log.read(lambda c: txs.read_blocks(c, from_height))
        for height, block in blocks:
            best = await self._book.read_at(height)
            if best is None or best.hash != block:
                while await self._take_block_back(height, block):
                    pass

    async def _take_block_back(self, height: int, block: BlockHash) -> bool:
        """A slice of one; whether there was anything."""

        def read(c: sqlite3.Connection) -> tuple[list[int], list[items.Item]]:
            ids = txs.read_mined_in(c, height, block, BACK_AT_ONCE)
            return ids, items.read_items_of(c, ids)

        ids, found = await self._log.read(read)
        tellings = []
        for item in found:
            rule = self._rules.of(item.stream_hash)
            if item.state in ("mined", "confirmed"):
                depths = (1,) if rule is None else rule.depths
                tellings.append(items.tell_back(item, items.REORG_REASON, depths))
        now_us = self._clock.now_us()

        def write(c: sqlite3.Connection) -> None:
            txs.note_orphaned(c, ids, now_us)
            items.write_tellings(c, tellings)

        if ids:
            await self._log.append_statuses(entries_of(tellings), write)
            _log.info("taken back", block=block[::-1].hex(), height=height, transactions=len(ids), items=len(tellings))
        return bool(ids)

    async def _announce(self) -> None:
        """Tells of the packets of verbose streams that they wait."""
        while unsaid := await self._log.read(lambda c: items.read_unsaid(c, BACK_AT_ONCE)):
            await self._turns.tell([items.tell_first(item) for item in unsaid])
            followed = {item.tx_id for item in unsaid if item.tx_id is not None}
            await self._log.write(lambda c: items.follow_txs(c, followed))  # noqa: B023

    # Sources.

    async def _ask_sources(self) -> None:
        """Broadcasts what is to be, asks about what is open or hinted at, and tells what came of it."""
        away: SourceUnavailable | None = None
        try:
            await self._send()
        except SourceUnavailable as error:
            away = error  # who can't be sent to may still answer
        hints, self._hints = self._hints, {}
        is_poll, self._is_poll_due = self._is_poll_due, False
        try:
            if is_poll:
                await self._look_up_all()
                await self.count()
            elif hints:
                await self._look_up(await self._log.read(lambda c: txs.find_txs(c, hints)))
            # Those that were forgotten, or refused before, are tried once more.
            if away is None:
                await self._send()
        except OverlaydError:
            self._is_poll_due = True
            raise
        if away is not None:
            raise away

    async def _send(self) -> None:
        after, size = 0, self._source.batch_max
        while batch := await self._log.read(lambda c: txs.read_to_send(c, after, size)):  # noqa: B023
            outgoing = [Outgoing(tx.txid, tx.raw, tx.extended, tx.beef) for tx in batch if tx.raw is not None]
            statuses = await self._source.submit(outgoing)
            await self._take(batch, statuses, is_reply=True)
            after = batch[-1].id

    async def _look_up_all(self) -> None:
        after, size = 0, self._source.batch_max
        while batch := await self._log.read(lambda c: txs.read_open(c, after, size)):  # noqa: B023
            await self._look_up(batch)
            after = batch[-1].id

    async def _look_up(self, batch: Sequence[WatchedTx]) -> None:
        for start in range(0, len(batch), self._source.batch_max):
            part = [tx for tx in batch[start : start + self._source.batch_max] if tx.height is None]
            if part:
                await self._take(part, await self._source.look_up([tx.txid for tx in part]), is_reply=False)

    async def _take(self, batch: Sequence[WatchedTx], statuses: Sequence[SourceStatus], *, is_reply: bool) -> None:
        """Writes down what answers come to, and tells of it."""
        mined: list[Mined] = []
        answered: list[Answered] = []
        verdicts: list[tuple[WatchedTx, Verdict]] = []
        by_id = {tx.id: tx for tx in batch}
        for tx, status in zip(batch, statuses, strict=True):
            judged = await self._prover.judge(tx, status, is_reply=is_reply)
            if isinstance(judged, Mined):
                mined.append(judged)
            elif isinstance(judged, Verdict):
                verdicts.append((tx, judged))
            elif is_reply or has_changed(tx, judged):
                answered.append(judged)
        await self._find_outputs([by_id[one.tx_id] for one in mined if by_id[one.tx_id].raw is None])
        mined = await self._with_raw(mined, by_id)
        fresh = [change.tx_id for change in answered if change.is_seen and not by_id[change.tx_id].is_seen]
        lost = [change.tx_id for change in answered if not change.is_seen and by_id[change.tx_id].is_seen]
        is_own = any(by_id[one.tx_id].role != "brought" for one in mined)
        await self._write_answers(mined, answered, verdicts, fresh, lost, is_own=is_own)
        await self._close_late(batch)
        self._measured.note_seen(by_id[one] for one in fresh)
        self._measured.note_mined(by_id[one.tx_id] for one in mined)
        changed = [one.tx_id for one in mined] + [tx.id for tx, _ in verdicts]
        if changed:
            touched: set[bytes] = await self._log.read(lambda c: items.read_streams_of(c, changed))
            await self._turns.advance(touched)

    async def _write_answers(
        self, mined: Sequence[Mined], answered: Sequence[Answered], verdicts: Iterable[tuple[WatchedTx, Verdict]],
        fresh: Sequence[int], lost: Sequence[int], *, is_own: bool,
    ) -> None:  # fmt: skip
        """`is_own`: one of our own transactions is among the mined."""
        now_us, tip_height, verdicts = self._clock.now_us(), self._book.tip.height, list(verdicts)

        def write(c: sqlite3.Connection) -> None:
            txs.note_answers(c, answered, now_us)
            items.note_seen(c, fresh)
            items.note_unseen(c, lost)
            txs.note_mined(c, mined, now_us)
            for tx, verdict in verdicts:
                if tx.role == "brought":
                    txs.note_verdict(c, tx.id, verdict.state, verdict.reason, tip_height)
                else:
                    items.release_items(c, tx.id)
                    txs.note_verdict(c, tx.id, verdict.state, verdict.reason, tip_height)
                    self._own.release(c, tx, verdict)

        if not (mined or answered or verdicts):
            return
        heard = await self._read_verbose(fresh)
        if heard:
            await self._log.append_statuses(entries_of([items.tell_seen(item) for item in heard]), write)
        else:
            await self._log.write(write)
        if is_own or any(tx.role != "brought" for tx, _ in verdicts):
            self._own.note_changed()
        for tx, verdict in verdicts:
            _log.warning("given up", txid=tx.txid[::-1].hex(), role=tx.role, state=verdict.state, reason=verdict.reason)

    async def _read_verbose(self, tx_ids: Sequence[int]) -> list[items.Item]:
        """What is to be told as seen."""
        if not tx_ids or not self._rules.has_verbose():
            return []
        found: list[items.Item] = await self._log.read(lambda c: items.read_items_of(c, tx_ids))
        rules = [(item, self._rules.of(item.stream_hash)) for item in found if item.state == "pending"]
        return [item for item, rule in rules if rule is not None and rule.is_verbose]

    async def _find_outputs(self, unknown: Sequence[WatchedTx]) -> None:
        """Gets the bytes of transactions that go by their names, and looks whether they commit to their packets."""
        raws = await self._prover.find_raw([tx.txid for tx in unknown])
        found = {tx.id: raws[tx.txid] for tx in unknown if tx.txid in raws}
        if not found:
            return
        wanted: dict[int, list[tuple[int, bytes, int | None]]] = await self._log.read(
            lambda c: {tx_id: items.read_commitments(c, tx_id) for tx_id in found}
        )
        outputs = {
            tx_id: {offset: find_output(found[tx_id], commitment) for offset, commitment, _ in rows}
            for tx_id, rows in wanted.items()
        }

        def write(c: sqlite3.Connection) -> None:
            for tx_id, raw in found.items():
                txs.note_raw(c, tx_id, raw)
                items.note_outputs(c, tx_id, outputs[tx_id])

        await self._log.write(write)
        await self._turns.advance(await self._log.read(lambda c: items.read_streams_of(c, found)))

    async def _with_raw(self, mined: list[Mined], by_id: dict[int, WatchedTx]) -> list[Mined]:
        """Those whose bytes are known: what wasn't seen can't be said to commit to anything."""
        unknown = [one.tx_id for one in mined if by_id[one.tx_id].raw is None]
        if not unknown:
            return mined
        now: dict[int, WatchedTx] = await self._log.read(lambda c: txs.read_txs(c, unknown))
        missing = {tx_id for tx_id in unknown if now[tx_id].raw is None}
        return [one for one in mined if one.tx_id not in missing]

    async def _close_late(self, batch: Sequence[WatchedTx]) -> None:
        """Asks no more about what was given up long ago."""
        height = self._book.tip.height - txs.LATE_BLOCKS
        late = [tx.id for tx in batch if tx.verdict and (tx.unknown_since or 0) < height]
        if late:
            await self._log.write(lambda c: txs.close_txs(c, late))


def has_changed(tx: WatchedTx, answer: Answered) -> bool:
    """Whether it is worth a write. What stands as it stood isn't written at each block."""
    before = (tx.is_seen, tx.reason, tx.unknown_since, tx.refused_since, False)
    after = (answer.is_seen, answer.reason, answer.unknown_since, answer.refused_since, answer.to_send)
    return before != after
