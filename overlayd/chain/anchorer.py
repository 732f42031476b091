"""Writes the log's checkpoint to the chain, for the packets that wait for it and for nothing else."""

import sqlite3
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Protocol, TypeVar

import structlog
import trio

from overlayd.bsv.anchor import Anchor, AnchorKind
from overlayd.chain import item_tables as items
from overlayd.chain import watch_tables as txs
from overlayd.chain.engine_settings import AnchorSettings
from overlayd.chain.rules import Rules
from overlayd.chain.taking import NEWEST_BATCH
from overlayd.chain.wallet import Payment, Wallet, WalletLog
from overlayd.model.clock import Clock
from overlayd.model.entry import Z32
from overlayd.model.errors import OverlaydError, ShuttingDown
from overlayd.model.metrics import Metrics
from overlayd.model.note import CheckpointText
from overlayd.storage import Checkpoint

T = TypeVar("T")
RETRY_S = 30.0
_log = structlog.get_logger("chain.anchorer")


class AnchorLog(WalletLog, Protocol):
    """What is needed of the log."""

    async def append_heads(self) -> int: ...

    async def checkpoint(self, min_size: int = 0) -> Checkpoint: ...


class Anchorer:
    """The task that anchors. What waits is known by two numbers: the newest packet's offset, and the last anchored one."""

    def __init__(
        self, log: AnchorLog, wallet: Wallet, rules: Rules, settings: AnchorSettings, clock: Clock, metrics: Metrics,
        on_paid: Callable[[], None],
    ) -> None:  # fmt: skip
        self._log = log
        self._wallet = wallet
        self._rules = rules
        self._settings = settings
        self._clock = clock
        self._on_paid = on_paid
        self._waiting = 0
        self._newest = 0
        self._is_woken = trio.Event()
        self._is_due_now = False
        self._last_us = 0
        metrics.gauge(
            "overlayd_anchor_waiting_packets", "Packets since the last anchor, as far as counted since the start"
        ).set_function(lambda: self._waiting)
        metrics.gauge(
            "overlayd_anchor_timestamp_seconds", "When a checkpoint was anchored last; 0: never"
        ).set_function(lambda: self._last_us / 1e6)

    @property
    def waiting(self) -> int:
        """Packets since the last anchor, as far as they came since the start."""
        return self._waiting

    @property
    def last_us(self) -> int:
        """When a checkpoint was anchored last; 0: never since the start."""
        return self._last_us

    def note_packets(self, count: int, offset: int) -> None:
        """So many packets wait, up to an offset."""
        self._waiting += count
        self._newest = max(self._newest, offset)
        if self._waiting >= self._settings.anchor_packets:
            self._is_due_now = True
        self._is_woken.set()

    def wake(self) -> None:
        """A range may have lost its anchor."""
        self._is_woken.set()

    async def run(self) -> None:
        """Anchors until cancelled. Raises what isn't to be gone on from."""
        while True:
            self._is_woken = trio.Event()
            try:
                is_waiting = await self.is_waiting()
            except ShuttingDown:
                await trio.sleep_forever()
            if not is_waiting:
                await self._is_woken.wait()
                continue
            await self._wait_until_due()
            if not await self._try_anchor():
                await trio.sleep(RETRY_S)

    async def _wait_until_due(self) -> None:
        with trio.move_on_after(self._settings.anchor_interval):
            while not self._is_due_now:
                self._is_woken = trio.Event()
                await self._is_woken.wait()
        self._is_due_now = False

    async def _try_anchor(self) -> bool:
        try:
            return await self.anchor()
        except ShuttingDown:
            await trio.sleep_forever()
        except OverlaydError as error:
            if not error.retryable:
                raise
            _log.warning("not anchored", error=error.detail)
        return False

    async def is_waiting(self) -> bool:
        """Whether a packet waits that no live anchor covers. A checkpoint."""
        newest, anchored_to, released = await self._log.read(self._read)
        self._newest = max(self._newest, newest)
        return self._newest > anchored_to or bool(released)

    def _read(self, c: sqlite3.Connection) -> tuple[int, int, list[tuple[int, bytes, bytes]]]:
        mark = txs.read_mark(c, NEWEST_BATCH)
        released = items.read_unfunded(c, is_range=True, after=0, limit=1000)
        return (0 if mark is None else mark[0]), items.read_anchored_to(c), released

    async def anchor(self) -> bool:
        """Anchors a checkpoint over everything, if a packet waits for one; whether nothing waits any more.

        A checkpoint in Trio's sense, too. The wallet's coin comes first, so that an empty wallet makes no entries.
        """
        if not await self.is_waiting():
            return True
        rate = await self._wallet.check_rate()
        if rate is None:
            return False
        async with self._wallet.turn:
            chosen = await self._wallet.choose(1, rate)
            if not chosen:
                return False
            heads = await self._log.append_heads()
            checkpoint = await self._log.checkpoint(heads)
            anchor = Anchor(AnchorKind.CHECKPOINT, anchored_hash(checkpoint))
            (payment,) = await self._wallet.sign([(chosen[0], anchor)], rate)
            await self._write(payment, checkpoint)
        self._wallet.note_paid([payment])
        self._last_us = self._clock.now_us()
        if self._newest <= checkpoint.size:
            self._waiting = 0
        self._on_paid()
        _log.info("anchored", size=checkpoint.size, txid=payment.made.tx.txid[::-1].hex())
        return True

    async def _write(self, payment: Payment, checkpoint: Checkpoint) -> None:
        now_us, depths = self._clock.now_us(), self._rules.of_ranges().depths

        def write(c: sqlite3.Connection) -> None:
            tx_id = self._wallet.write_payment(c, payment, "anchor", now_us)
            txs.insert_anchor(c, tx_id, checkpoint.epoch, checkpoint.size, checkpoint.root, checkpoint.note, now_us)
            for offset, _, _ in items.read_unfunded(c, is_range=True, after=0, limit=1000):
                items.assign(c, is_range=True, offset=offset, tx_id=tx_id, vout=0)
            first = items.read_anchored_to(c) + 1
            if first <= checkpoint.size:
                items.insert_item(c, _range(first, checkpoint.size, tx_id, depths))
                items.begin_depths(c, Z32, depths)

        await self._log.write(write)


def anchored_hash(checkpoint: Checkpoint) -> bytes:
    """What an anchor commits to: SHA-256 over the checkpoint's three lines, each with its LF."""
    lines = checkpoint.note.split("\n", 3)[:3]
    text = "".join(f"{line}\n" for line in lines)
    assert text == str(CheckpointText(lines[0], checkpoint.size, checkpoint.root))
    return sha256(text.encode()).digest()


def _range(first: int, last: int, tx_id: int, depths: Sequence[int]) -> items.NewItem:
    return items.NewItem(first, last, Z32, Z32, tx_id, 0, "pending", depths[0], is_range=True)
