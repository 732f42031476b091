"""Gives packets that came without a transaction one of the wallet's, in order, as far as the wallet has coins."""

import sqlite3
from collections.abc import Callable

import structlog
import trio

from overlayd.bsv.anchor import Anchor, AnchorKind
from overlayd.chain import item_tables as items
from overlayd.chain.wallet import Payment, Wallet, WalletLog
from overlayd.model.clock import Clock
from overlayd.model.errors import OverlaydError, ShuttingDown

PAID_AT_ONCE = 100
"""Transactions that are signed and written down together; about 10 ms in a thread."""
RETRY_S = 30.0
"""The wallet is looked at again so often while packets wait for it."""
_log = structlog.get_logger("chain.payer")


class Payer:
    """The task that pays for packets."""

    def __init__(self, log: WalletLog, wallet: Wallet, clock: Clock, on_paid: Callable[[], None]) -> None:
        """`on_paid`: there is something to broadcast."""
        self._log = log
        self._wallet = wallet
        self._clock = clock
        self._on_paid = on_paid
        self._is_woken = trio.Event()

    def wake(self) -> None:
        """Packets may wait for a transaction, or coins have come."""
        self._is_woken.set()

    async def run(self) -> None:
        """Pays until cancelled. Raises what isn't to be gone on from."""
        while True:
            self._is_woken = trio.Event()
            try:
                is_waiting = await self.pay_all()
                await self._wallet.read_balance()
            except ShuttingDown:
                await trio.sleep_forever()
            except OverlaydError as error:
                if not error.retryable:
                    raise
                _log.warning("not paid", error=error.detail)
                is_waiting = True
            with trio.move_on_after(RETRY_S if is_waiting else float("inf")):
                await self._is_woken.wait()

    async def pay_all(self) -> bool:
        """Pays for what waits; whether something waits further, for the reason that the wallet tells. Checkpoint."""
        while waiting := await self._log.read(self._read_waiting):
            rate = await self._wallet.check_rate()
            if rate is None:
                return True
            if await self._wallet.fan_out() is not None:
                self._on_paid()
            if not await self._pay(waiting, rate):
                return True
        return False

    def _read_waiting(self, c: sqlite3.Connection) -> list[tuple[int, bytes, bytes]]:
        return items.read_unfunded(c, is_range=False, after=0, limit=PAID_AT_ONCE)

    async def _pay(self, waiting: list[tuple[int, bytes, bytes]], rate: int) -> bool:
        """Whether anything was paid."""
        async with self._wallet.turn:
            chosen = await self._wallet.choose(len(waiting), rate)
            paid_for = waiting[: len(chosen)]
            pairs = [
                (coin, Anchor(AnchorKind.COMMITMENT, commitment))
                for coin, (_, _, commitment) in zip(chosen, paid_for, strict=True)
            ]
            if not pairs:
                return False
            payments = await self._wallet.sign(pairs, rate)
            now_us = self._clock.now_us()

            def write(c: sqlite3.Connection) -> None:
                for (offset, _, _), payment in zip(paid_for, payments, strict=True):
                    tx_id = self._wallet.write_payment(c, payment, "funded", now_us)
                    items.assign(c, is_range=False, offset=offset, tx_id=tx_id, vout=0)

            await self._log.write(write)
        self._note(payments)
        return True

    def _note(self, payments: list[Payment]) -> None:
        self._wallet.note_paid(payments)
        self._on_paid()
