"""Fake sources on loopback before an embedded chain, and the product's own sources that ask them."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

from chain_rig import SCRIPT, FileStore, FixedClock, SameEntropy, book_of, outgoing, spend_coin
from fakes.fake_arc import FakeArc
from fakes.fake_arcade import FakeArcade
from fakes.fake_desk import World, served
from fakes.fake_headers_service import FakeHeadersService
from fakes.fake_sv_node import FakeNode
from fakes.fake_whatsonchain import FakeWhatsOnChain

from overlayd.bsv.tx import ExtendedTransaction, Transaction, TxOutput
from overlayd.chain.headers import HeaderBook
from overlayd.chain.regtest import RegtestChain, RegtestSettings, open_regtest
from overlayd.chain.settings import ChainSettings
from overlayd.chain.sources.calls import Sender
from overlayd.chain.sources.remote import RemoteChain
from overlayd.chain.sources.settings import AskingSettings, ChainSourceSettings
from overlayd.model.chain_source import Outgoing, SourceState, SourceStatus
from overlayd.model.clock import Clock
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.model.txid import TxId
from overlayd.model.units import Duration
from overlayd.outbound import Outbound, OutboundSettings

KINDS = ("arc", "arcade", "whatsonchain", "headers", "node")
KEY = bytes(range(32))
LOOPBACK = ("127.0.0.0/8",)


class SourceRig:
    """The fakes, and what asks them."""

    def __init__(self, directory: Path, chain: RegtestChain, sender: Outbound, metrics: Metrics) -> None:
        self.directory = directory
        self.chain = chain
        self.world = World(chain)
        self.arc = FakeArc(self.world)
        self.arcade = FakeArcade(self.world)
        self.woc = FakeWhatsOnChain(self.world, rate=10_000)
        self.headers = FakeHeadersService(self.world)
        self.node = FakeNode(self.world)
        self.sender = sender
        self.metrics = metrics
        self.clock = FixedClock()
        self.book: HeaderBook
        self.coins: Transaction
        self._spent = 0

    def url(self, kind: str) -> str:
        """Where the fake of a kind stands."""
        return self.woc.url if kind == "whatsonchain" else self.desk(kind).url

    def desk(self, kind: str) -> Any:
        """The desk of the fake of a kind."""
        fakes = {
            "arc": self.arc, "arcade": self.arcade, "whatsonchain": self.woc, "headers": self.headers, "node": self.node,
        }  # fmt: skip
        return cast(Any, fakes[kind]).desk

    def fake(self, kind: str) -> Any:
        """The fake of a kind."""
        return {"arc": self.arc, "arcade": self.arcade.arc, "whatsonchain": self.woc, "node": self.node}[kind]

    def settings(self, *kinds: str | ChainSourceSettings, callback_url: str = "", **asking: Any) -> ChainSettings:
        """Settings that name the fakes."""
        sources = tuple(kind if isinstance(kind, ChainSourceSettings) else self.source(kind) for kind in kinds)
        return ChainSettings(
            network="regtest", sources=sources, asking=AskingSettings(**asking), callback_url=callback_url
        )

    def source(self, kind: str, **options: Any) -> ChainSourceSettings:
        """Settings of one source, unhurried by rates, and with time enough on a machine that is busy."""
        return ChainSourceSettings(
            kind=kind,  # type: ignore[arg-type] # one of KINDS
            **{"url": self.url(kind), "rate": 100_000.0, "allow_private": LOOPBACK, "timeout": Duration(60), **options},
        )

    def remote(
        self, *kinds: str | ChainSourceSettings, sender: Sender | None = None, environ: dict[str, str] | None = None,
        on_followed: Any = None, book: HeaderBook | None = None, **options: Any,
    ) -> RemoteChain:  # fmt: skip
        """The product's sources, which ask the fakes. Metrics are new each time."""
        self.metrics = Metrics()
        return RemoteChain(
            self.settings(*kinds, **options), book or self.book, sender=sender or self.sender, key=KEY,
            environ=environ or {}, clock=self.clock, metrics=self.metrics, chance=random.Random(7),
            on_followed=on_followed,
        )  # fmt: skip

    def spend(self, *outputs: TxOutput, rate: int = 50) -> ExtendedTransaction:
        """A new transaction, which spends a coin of its own."""
        self._spent += 1
        return spend_coin(self.coins, self._spent - 1, *outputs, rate=rate)

    async def mine(self, count: int = 1) -> None:
        """Blocks that our headers hear of at once."""
        await self.chain.mine(count)
        await self.book.follow(self.chain)

    def count(self, name: str, **labels: str) -> float:
        """A metric's value."""
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    def errors(self, source: str, reason: str) -> float:
        """How often a source failed for a reason."""
        return self.count("overlayd_chain_source_errors_total", source=source, reason=reason)

    def hits(self, limit: str) -> float:
        """How often a limit was hit."""
        return self.count("overlayd_limit_hits_total", limit=limit)


@asynccontextmanager
async def source_rig(directory: Path, clock: Clock | None = None) -> AsyncIterator[SourceRig]:
    """A chain with coins, five fakes before it, a book of headers at its tip."""
    metrics = Metrics()
    sender = Outbound(Limits(), OutboundSettings(), metrics)
    async with open_regtest(
        directory, settings=RegtestSettings(), clock=clock or FixedClock(), entropy=SameEntropy(), metrics=Metrics()
    ) as chain:
        rig = SourceRig(directory, chain, sender, metrics)
        rig.book = await book_of(FileStore(directory / "headers.sqlite3"))
        rig.coins = await chain.pay(SCRIPT, 100_000, 60)
        await rig.mine()
        desks = [rig.desk(kind) for kind in KINDS]
        async with served(*desks):
            try:
                yield rig
            finally:
                sender.close()


async def submit_one(source: Any, item: ExtendedTransaction) -> SourceStatus:
    """What a source says to a broadcast."""
    (status,) = await source.submit([outgoing(item)])
    return cast(SourceStatus, status)


async def look_up_one(source: Any, txid: TxId) -> SourceStatus:
    """What a source says of one transaction."""
    (status,) = await source.look_up([txid])
    return cast(SourceStatus, status)


def only(pool: RemoteChain) -> Any:
    """The one source of a pool."""
    (source,) = pool.pool._sources
    return source


def plain(status: SourceStatus) -> tuple[SourceState, bool]:
    """State, and whether there is a proof."""
    return status.state, status.bump is not None


def raw_of(item: ExtendedTransaction) -> Outgoing:
    """A transaction of which only the bytes are at hand."""
    return Outgoing(item.tx.txid, item.tx.raw)
