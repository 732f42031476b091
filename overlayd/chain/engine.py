"""The chain engine: what of `[chain]` runs. Made of the log and a source by `open_engine`; `run` is its life.

The watcher, the payer and the anchorer end the node when they die, since what they leave half done is found at the next
start. What only listens to sources is started again.
"""

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import structlog
import trio

from overlayd.bsv.curve_key import MemoryCurveKey
from overlayd.bsv.keys import PrivateKey
from overlayd.bsv.network import NETWORKS, Network
from overlayd.bsv.tx import Transaction
from overlayd.chain.anchorer import Anchorer, AnchorLog
from overlayd.chain.header_tables import HEADERS_FEATURE
from overlayd.chain.headers import HeaderBook, open_headers
from overlayd.chain.payer import Payer
from overlayd.chain.reads import ConfirmationTable, ReadLog
from overlayd.chain.regtest import RegtestChain, open_regtest
from overlayd.chain.rules import Rules
from overlayd.chain.settings import ChainSettings
from overlayd.chain.sources.remote import RemoteChain
from overlayd.chain.taking import Taker
from overlayd.chain.wallet import Wallet
from overlayd.chain.wallet_tables import WALLET_FEATURE
from overlayd.chain.watch_tables import WATCH_FEATURE, WatchedTx
from overlayd.chain.watcher import Watcher, WatchLog
from overlayd.model.chain_source import (
    EventsMissed,
    EventSource,
    RawSource,
    TipMoved,
    TransactionMoved,
    TransactionSource,
)
from overlayd.model.clock import Clock, Entropy
from overlayd.model.confirmation import Confirmations
from overlayd.model.errors import SourceUnavailable
from overlayd.model.metrics import Metrics
from overlayd.model.signer import CurveKey
from overlayd.model.supervise import supervise
from overlayd.outbound import Outbound
from overlayd.signers import open_curve_key

CHAIN_FEATURES = (HEADERS_FEATURE, WATCH_FEATURE, WALLET_FEATURE)
KEY_NAME = "wallet.key"
KEY_BYTES = 32
REGTEST_COINS = 20
REGTEST_COIN_SAT = 10_000_000
"""What the regtest chain's miner pays the node's wallet when that is empty."""
STALE_INTERVALS = 10
STALE_MIN_S = 60.0
"""An embedded chain without a new block for so many intervals, and so long, is called stale."""
_log = structlog.get_logger("chain")


class EngineLog(WatchLog, AnchorLog, ReadLog, Protocol):
    """What the engine needs of the log."""

    def confirm_with(self, confirmations: Confirmations) -> None: ...


class Source(TransactionSource, EventSource, RawSource, Protocol):
    """Who is asked about the network."""


class ChainEngine:
    """Everything about one network. `reads` answers how packets stand, `wallet` what there is to pay with."""

    def __init__(
        self, *, settings: ChainSettings, log: EngineLog, book: HeaderBook, source: Source, key: CurveKey,
        clock: Clock, metrics: Metrics, chance: random.Random, regtest: RegtestChain | None = None,
    ) -> None:  # fmt: skip
        self.settings = settings
        self.network: Network = NETWORKS[settings.network]
        self.book = book
        self.source = source
        self.regtest = regtest
        self.remote: RemoteChain | None = None
        self._key = key
        self._clock = clock
        self._chance = chance
        self._restarts = metrics.counter("overlayd_chain_restarts", "Tasks of the chain that crashed", "task")
        self.wallet = Wallet(
            log=log,
            key=key,
            source=source,
            network=self.network,
            settings=settings.wallet,
            clock=clock,
            metrics=metrics,
        )
        self.watcher = Watcher(
            log=log, book=book, source=source, raws=source, own=self, settings=settings.watch, clock=clock,
            metrics=metrics,
        )  # fmt: skip
        self.payer = Payer(log, self.wallet, clock, self.watcher.wake)
        self.anchorer = Anchorer(log, self.wallet, Rules(log), settings.anchors, clock, metrics, self.watcher.wake)
        self.reads = ConfirmationTable(log, book, self.network.name, lambda: self.wallet.why_not)
        log.confirm_with(Taker(self._note_packets, self.anchorer.note_packets))

    def __repr__(self) -> str:
        return f"ChainEngine({self.network.name!r}, tip={self.book.tip.height})"

    def _note_packets(self, count: int) -> None:
        self.payer.wake()
        self.watcher.wake()

    def release(self, c: object, tx: WatchedTx, verdict: object) -> None:
        """As `OwnTxs`: the wallet's coins are freed, and what they paid for waits anew."""
        self.wallet.release(c, tx, verdict)  # type: ignore[arg-type]  # as it was given

    def note_changed(self) -> None:
        """As `OwnTxs`."""
        self.payer.wake()
        self.anchorer.wake()

    @property
    def regtest_keys(self) -> tuple[PrivateKey, ...]:
        """The keys whose coins a regtest chain may spend twice for a test; none where the wallet's lies in a device."""
        key = self._key
        return (key.child(bytes(KEY_BYTES)),) if self.regtest is not None and isinstance(key, MemoryCurveKey) else ()

    async def fan_out(self, count: int | None = None) -> Transaction | None:
        """As `Wallet.fan_out`, and broadcast. A checkpoint."""
        made = await self.wallet.fan_out(count)
        self.watcher.wake()
        return made

    async def receive(self, text: str) -> Transaction:
        """As `Wallet.receive`, and watched from now on. A checkpoint."""
        tx = await self.wallet.receive(text)
        self.watcher.hint_all()
        return tx

    def describe_staleness(self) -> str:
        """Why confirmations may not come in time; "" when all is well. For readiness."""
        if self.remote is not None:
            return self.remote.sync.describe_staleness()
        interval_s = float(self.settings.regtest.block_interval)
        if (
            interval_s
            and self._clock.now_us() / 1e6 - self.book.tip.time_s > STALE_INTERVALS * interval_s + STALE_MIN_S
        ):
            return "the embedded chain doesn't go on"
        return ""

    def describe(self) -> str:
        """Where the chain stands, in words, for readiness."""
        tip, age_s = self.book.tip, self._clock.now_us() / 1e6 - self.book.tip.time_s
        words = f"{self.network.name} at block {tip.height}, {max(age_s, 0) / 60:.0f} minutes old"
        stale, waits = self.describe_staleness(), self.wallet.trouble
        return "; ".join(filter(None, (words, stale, waits)))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Works until cancelled. Raises when the watcher, payer or anchorer can't go on."""
        async with trio.open_nursery() as nursery:
            if self.regtest is not None:
                await self._begin_regtest(self.regtest)
                nursery.start_soon(self._supervise, "mining", self.regtest.keep_mining)
            if self.remote is not None:
                nursery.start_soon(self._supervise, "headers", self.remote.sync.run)
            nursery.start_soon(self._supervise, "events", self._listen)
            nursery.start_soon(self.watcher.run)
            nursery.start_soon(self.payer.run)
            nursery.start_soon(self.anchorer.run)
            nursery.start_soon(self._follow_blocks)
            task_status.started()

    async def _begin_regtest(self, chain: RegtestChain) -> None:
        await self.book.follow(chain)
        if await self.wallet.read_sum() < REGTEST_COIN_SAT:
            paid = await chain.pay(self.wallet.script, REGTEST_COIN_SAT, REGTEST_COINS)
            await self.wallet.receive(paid.raw, is_own=True)

    async def _follow_blocks(self) -> None:
        """A block may have confirmed coins for which the payer waits."""
        tip = self.book.tip
        while True:
            tip = await self.book.wait_moved(tip)
            self.payer.wake()

    async def _listen(self) -> None:
        """Passes on what the source tells. Its end, or its failure, is no harm: everything is asked about now and then."""
        try:
            async with self.source.open_events() as reader:
                self.watcher.hint_all()
                while True:
                    event = await reader.receive()
                    if isinstance(event, TransactionMoved):
                        self.watcher.hint(event.status.txid)
                    elif isinstance(event, TipMoved):
                        await self._note_tip()
                    elif isinstance(event, EventsMissed):
                        self.watcher.hint_all()
                        await self._note_tip()
        except (trio.EndOfChannel, SourceUnavailable):
            await trio.sleep_forever()

    async def _note_tip(self) -> None:
        if self.regtest is not None:
            await self.book.follow(self.regtest)
        elif self.remote is not None:
            self.remote.sync.nudge()
            await trio.lowlevel.checkpoint()

    async def _supervise(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        await supervise(f"chain {name}", run, chance=self._chance, on_crash=lambda _: self._restarts.labels(name).inc())


@asynccontextmanager
async def open_engine(
    settings: ChainSettings, log: EngineLog, directory: Path, *, outbound: Outbound, secret: bytes,
    environ: Mapping[str, str], clock: Clock, entropy: Entropy, metrics: Metrics, chance: random.Random,
    wallet_key: str = "",
) -> AsyncIterator[ChainEngine | None]:  # fmt: skip
    """The engine of a directory; None for `network = "none"`.

    `wallet_key`: where the key of the coins lies, as the settings say it. `secret`: one of the node's that stays the same, for tokens of callbacks. From here on, streams may commit to the
    chain. Raises ConfigInvalid, and as `open_headers`, `open_regtest` and `open_curve_key`.
    """
    if settings.network == "none":
        yield None
        return
    key = await trio.to_thread.run_sync(read_wallet_key, directory, entropy, wallet_key, environ)
    network = NETWORKS[settings.network]
    book = await open_headers(log, network, settings=settings.headers, clock=clock, metrics=metrics)
    if settings.network == "regtest" and not settings.sources:
        async with open_regtest(
            directory, settings=settings.regtest, clock=clock, entropy=entropy, metrics=metrics
        ) as chain:
            yield ChainEngine(
                settings=settings, log=log, book=book, source=chain, key=key, clock=clock, metrics=metrics,
                chance=chance, regtest=chain,
            )  # fmt: skip
        return
    remote = RemoteChain(
        settings, book, sender=outbound, key=secret, environ=environ, clock=clock, metrics=metrics, chance=chance
    )
    engine = ChainEngine(
        settings=settings, log=log, book=book, source=remote.pool, key=key, clock=clock, metrics=metrics, chance=chance
    )
    engine.remote = remote
    yield engine


def read_wallet_key(
    directory: Path, entropy: Entropy, wallet_key: str = "", environ: Mapping[str, str] = MappingProxyType({})
) -> CurveKey:  # fmt: skip
    """The key of the node's coins; where the settings name none, drawn on first use. Blocking. As `open_curve_key`."""
    return open_curve_key(
        "node.wallet_key", wallet_key, file_name=KEY_NAME, directory=directory, environ=environ, entropy=entropy,
        must_derive=False,
    )  # fmt: skip
