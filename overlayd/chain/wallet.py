"""The wallet: pays for packets and checkpoints that the node puts on the chain, out of a pool of small coins.

Each transaction spends one coin of the pool and gives the change back to it; a coin whose ancestors no block holds is
passed on only so often. The pool is made of a larger coin that a block holds. One payment is in the making at a time:
coins are chosen, the transaction signed, and written down with the coins' spending; only then is it broadcast.
"""

import sqlite3
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import msgspec
import structlog
import trio

from overlayd.bsv.anchor import Anchor, anchor_output
from overlayd.bsv.base58 import format_address
from overlayd.bsv.brought import parse_brought
from overlayd.bsv.hashes import hash160, sha256
from overlayd.bsv.keys import PublicKey
from overlayd.bsv.network import Network
from overlayd.bsv.script import lock_to_key
from overlayd.bsv.spending import (
    P2PKH_INPUT_BYTES,
    P2PKH_OUTPUT_BYTES,
    Spendable,
    build_spend,
    fee_of,
)
from overlayd.bsv.tx import ExtendedTransaction, Transaction, TxInput, TxOutput
from overlayd.chain import wallet_tables as coins
from overlayd.chain import watch_tables as txs
from overlayd.chain.engine_settings import WalletSettings
from overlayd.chain.proving import Verdict
from overlayd.chain.wallet_tables import Balance, Coin, WalletLine
from overlayd.model.chain_source import TransactionSource
from overlayd.model.clock import Clock
from overlayd.model.errors import SignerUnavailable, SourceUnavailable, WalletRefused
from overlayd.model.metrics import Metrics
from overlayd.model.signer import CurveKey

T = TypeVar("T")
DAY_US = 86_400_000_000
POLICY_S = 600.0
"""What sources ask for is asked again after so long."""
OWN_TIMEOUT_BLOCKS = 144
ANCHOR_BYTES = 200 + P2PKH_OUTPUT_BYTES + P2PKH_INPUT_BYTES
"""More than a transaction with one input, one anchor and change ever has."""
_PROBE = sha256(b"overlayd: is the key there?")
_LIMIT_DAY = "day_sat_max"
_LIMIT_RATE = "fee_sat_per_kb_max"
_log = structlog.get_logger("chain.wallet")


class WalletLog(Protocol):
    """What the wallet needs of the log."""

    async def read(self, function: Callable[[sqlite3.Connection], T]) -> T: ...

    async def write(self, job: Callable[[sqlite3.Connection], T]) -> T: ...


class Payment(msgspec.Struct, frozen=True):
    """A signed transaction and the coin that it spends; output 0 is the anchor, where there is one."""

    made: ExtendedTransaction
    coin: Coin

    @property
    def fee_sat(self) -> int:
        """What it leaves to the miner."""
        return self.made.fee_sat


class _OutputKey:
    """The wallet's key as what unlocks its outputs."""

    def __init__(self, key: CurveKey) -> None:
        self.public_key = PublicKey.parse(key.public_key)
        self._key = key

    @property
    def trouble(self) -> str:
        return self._key.trouble

    def sign_digest(self, digest: bytes) -> bytes:
        return self._key.sign_digest(digest)


class Wallet:
    """The node's coins. Whoever pays holds `turn` from the choice of coins to their spending's commit."""

    def __init__(
        self, *, log: WalletLog, key: CurveKey, source: TransactionSource, network: Network, settings: WalletSettings,
        clock: Clock, metrics: Metrics,
    ) -> None:  # fmt: skip
        self._log = log
        self._key = _OutputKey(key)
        self._source = source
        self._network = network
        self._settings = settings
        self._clock = clock
        self._metrics = metrics
        self._rate: int | None = None
        self._rate_at = float("-inf")
        self._thread = trio.CapacityLimiter(1)
        self._balance = Balance(0, 0, 0, 0)
        self._is_alarmed = False
        self.turn = trio.Lock()
        self.why_not = ""
        """Why nothing is paid now, in words; "" when nothing keeps it from paying."""
        self.script = lock_to_key(self._key.public_key.encoded)
        self.address = format_address(hash160(self._key.public_key.encoded), network)
        balance = metrics.gauge("overlayd_wallet_satoshis", "What the node's wallet has, in satoshis", "kind")
        balance.labels("confirmed").set_function(lambda: self._balance.confirmed)
        balance.labels("unconfirmed").set_function(lambda: self._balance.unconfirmed)
        balance.labels("doubtful").set_function(lambda: self._balance.doubtful)
        metrics.gauge("overlayd_wallet_coins", "Coins that may be spent now").set_function(
            lambda: self._balance.usable_coins
        )
        metrics.gauge("overlayd_wallet_low", "1 while the balance is below the alarm").set_function(
            lambda: self._is_alarmed
        )
        self._fees = metrics.counter("overlayd_wallet_fees_satoshis", "Fees that the node's wallet paid")

    # What may be spent.

    async def check_rate(self) -> int | None:
        """The fee rate to pay, in satoshis for 1000 bytes; None, and `why_not`, when nothing may be paid. A checkpoint."""
        if self._key.trouble and not await trio.to_thread.run_sync(self._is_key_back, limiter=self._thread):
            return None
        if self._rate is None or trio.current_time() - self._rate_at > POLICY_S:
            try:
                policy = await self._source.read_policy()
            except SourceUnavailable as error:
                if self._rate is None:
                    self.why_not = f"no source told its fee: {error.detail}"
                    return None
            else:
                self._rate, self._rate_at = policy.sat_per_kb, trio.current_time()
        else:
            await trio.lowlevel.checkpoint()
        assert self._rate is not None
        if self._rate > self._settings.fee_sat_per_kb_max:
            self._metrics.count_limit_hit(_LIMIT_RATE)
            self.why_not = f"sources ask for {self._rate} satoshis for 1000 bytes; at most {self._settings.fee_sat_per_kb_max} are paid"
            return None
        return self._rate

    @property
    def trouble(self) -> str:
        """Why nothing is paid now, or will be when something has to be: `why_not`, or a key that isn't there."""
        return self.why_not or (f"the wallet's key can't be reached: {self._key.trouble}" if self._key.trouble else "")

    def _is_key_back(self) -> bool:
        """Asks a key that couldn't be reached for a signature over nothing. Blocking."""
        try:
            self._key.sign_digest(_PROBE)
        except SignerUnavailable as error:
            self.why_not = f"the wallet's key can't be reached: {error.detail}"
            return False
        return True

    async def choose(self, count: int, rate: int) -> list[Coin]:
        """At most `count` coins, each enough for an anchor; fewer when there aren't more or the day's fees are paid.
        `why_not` says so. Only with the turn. A checkpoint."""
        fee = fee_of(ANCHOR_BYTES, rate)
        today, settings = self._clock.now_us() // DAY_US, self._settings

        def read(c: sqlite3.Connection) -> tuple[int, list[Coin]]:
            return coins.read_fees(c, today), coins.read_usable(c, fee + 1, settings.unconfirmed_max, count)

        paid, found = await self._log.read(read)
        if settings.day_sat_max and paid + fee * len(found) > settings.day_sat_max:
            self._metrics.count_limit_hit(_LIMIT_DAY)
            found = found[: max(0, settings.day_sat_max - paid) // fee]
            if not found:
                self.why_not = f"the {settings.day_sat_max} satoshis of today are paid; it goes on tomorrow (UTC)"
                return []
        self.why_not = "" if found else f"the wallet has no coin to spend; pay to {self.address}"
        return found

    async def sign(self, pairs: Sequence[tuple[Coin, Anchor]], rate: int) -> list[Payment]:
        """Signed transactions, each with an anchor; about 80 µs each, in a thread. A checkpoint."""

        def build() -> list[Payment]:
            return [Payment(self._spend([coin], [anchor_output(anchor)], rate), coin) for coin, anchor in pairs]

        return await trio.to_thread.run_sync(build, limiter=self._thread)

    def _spend(self, spent: Sequence[Coin], outputs: Sequence[TxOutput], rate: int) -> ExtendedTransaction:
        spendables = [
            Spendable(TxInput(coin.outpoint), TxOutput(coin.satoshis, self.script), self._key) for coin in spent
        ]
        return build_spend(spendables, outputs, self.script, rate)

    def write_payment(self, c: sqlite3.Connection, payment: Payment, role: txs.Role, now_us: int) -> int:
        """Writes a payment down, with its coin spent and its change as a new one; its row. In the writer's thread."""
        tx = payment.made.tx
        new = txs.NewTx(tx.txid, role, tx.raw, OWN_TIMEOUT_BLOCKS, payment.made.encode(), fee_sat=payment.fee_sat)
        tx_id = txs.insert_tx(c, new, now_us)
        coins.spend(c, payment.coin, tx_id)
        coins.add_coins(c, tx_id, self._own_outputs(tx), payment.coin.next_rank)
        coins.add_fees(c, now_us // DAY_US, payment.fee_sat)
        return tx_id

    def note_paid(self, payments: Sequence[Payment]) -> None:
        """They are durable."""
        self._fees.inc(sum(payment.fee_sat for payment in payments))

    def release(self, c: sqlite3.Connection, tx: txs.WatchedTx, verdict: Verdict) -> None:
        """One of the wallet's transactions came to nothing; as `OwnTxs`. A coin that was refused isn't tried again."""
        coins.release(c, tx.id, is_lost=verdict.is_conflict or tx.refused_since is not None)

    # The pool.

    async def fan_out(self, count: int | None = None) -> Transaction | None:
        """Makes coins for the pool of the largest coin that a block holds: as many as are missing, or `count`.

        None when none is missing or can be made; `why_not` isn't touched. A checkpoint.
        """
        rate = await self.check_rate()
        if rate is None:
            return None
        async with self.turn:
            return await self._fan_out(count, rate)

    async def _fan_out(self, count: int | None, rate: int) -> Transaction | None:
        settings, fee = self._settings, fee_of(ANCHOR_BYTES, rate)

        now_us = self._clock.now_us()

        def read(c: sqlite3.Connection) -> tuple[int, Coin | None, int]:
            usable = coins.count_usable(c, fee + 1, settings.unconfirmed_max) if count is None else 0
            return usable, coins.read_largest(c), coins.read_fees(c, now_us // DAY_US)

        usable, largest, paid = await self._log.read(read)
        missing = settings.pool_coins - usable if count is None else min(count, settings.pool_coins)
        if largest is None or missing <= (settings.pool_coins // 2 if count is None else 0):
            return None
        fit = (largest.satoshis - fee) // (settings.coin_sat + fee_of(P2PKH_OUTPUT_BYTES, rate) + 1)
        made_coins = min(missing, fit)
        if made_coins < 2:
            return None
        outputs = [TxOutput(settings.coin_sat, self.script)] * made_coins
        made = await trio.to_thread.run_sync(lambda: self._spend([largest], outputs, rate), limiter=self._thread)
        payment = Payment(made, largest)
        if settings.day_sat_max and paid + payment.fee_sat > settings.day_sat_max:
            self._metrics.count_limit_hit(_LIMIT_DAY)
            return None
        await self._log.write(lambda c: self.write_payment(c, payment, "wallet", now_us))
        self.note_paid([payment])
        _log.info("fanned out", txid=made.tx.txid[::-1].hex(), coins=made_coins)
        return made.tx

    async def receive(self, text: str | bytes, *, is_own: bool = False) -> Transaction:
        """Takes note of a transaction that pays the wallet: raw, EF or BEEF, as hex or bytes. Its coins may be spent once
        a block holds it (`is_own`: at once). A checkpoint. Raises MalformedChainData, WalletRefused."""
        brought = parse_brought(text)
        tx = brought.tx
        outputs = self._own_outputs(tx)
        if not outputs:
            raise WalletRefused(f"it pays nothing to {self.address}", subject="transaction")
        extended = None if brought.extended is None else brought.extended.encode()
        beef = None if brought.beef is None else brought.beef.encode()
        new = txs.NewTx(tx.txid, "wallet", tx.raw, OWN_TIMEOUT_BLOCKS, extended, beef)
        now_us = self._clock.now_us()

        def write(c: sqlite3.Connection) -> None:
            coins.add_coins(c, txs.insert_tx(c, new, now_us), outputs, 1 if is_own else coins.FOREIGN_RANK)

        await self._log.write(write)
        return tx

    def _own_outputs(self, tx: Transaction) -> list[tuple[int, int]]:
        return [(vout, output.satoshis) for vout, output in enumerate(tx.outputs) if output.script == self.script]

    # What it says of itself.

    async def read_balance(self) -> Balance:
        """What it has now. A checkpoint."""
        unconfirmed_max = self._settings.unconfirmed_max
        self._balance = await self._log.read(lambda c: coins.read_balance(c, unconfirmed_max))
        is_low = self._balance.confirmed + self._balance.unconfirmed < self._settings.alarm_sat
        if is_low and not self._is_alarmed:
            _log.warning("the wallet runs low", satoshis=self._balance.confirmed, address=self.address)
        self._is_alarmed = is_low
        return self._balance

    async def read_sum(self) -> int:
        """All that it can count on, in satoshis. A checkpoint."""
        found = await self._log.read(lambda c: coins.read_balance(c, 0))
        return found.confirmed + found.unconfirmed

    @property
    def is_low(self) -> bool:
        """Whether the balance was below the alarm when it was read last."""
        return self._is_alarmed

    async def read_fees_today(self) -> int:
        """What was paid since midnight UTC. A checkpoint."""
        today = self._clock.now_us() // DAY_US
        return await self._log.read(lambda c: coins.read_fees(c, today))

    async def read_history(self, before: int, limit: int) -> list[WalletLine]:
        """Its transactions, the newest first, of rows below `before`. A checkpoint."""
        return await self._log.read(lambda c: coins.read_history(c, before, limit))
