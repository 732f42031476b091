"""A log, a regtest chain, a header book and a watcher that tests step by hand."""

import itertools
import random
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from chain_rig import KEY, SCRIPT, FixedClock, outgoing
from standing_clock import NO_STEP

from overlayd.bsv.anchor import Anchor, AnchorKind, anchor_output
from overlayd.bsv.network import REGTEST
from overlayd.bsv.spending import Spendable, build_spend
from overlayd.bsv.tx import ExtendedTransaction, OutPoint, Transaction, TxInput, parse_transaction
from overlayd.chain.engine import CHAIN_FEATURES, ChainEngine, Source, read_wallet_key
from overlayd.chain.headers import HeadersSettings, open_headers
from overlayd.chain.regtest import RegtestChain, RegtestSettings, open_regtest
from overlayd.chain.settings import ChainSettings
from overlayd.model.bodies import StatusBody, decode_status_body
from overlayd.model.clock import Entropy
from overlayd.model.confirmation import BroughtTx, ConfirmationNow
from overlayd.model.definition import ConfirmRule, Definition
from overlayd.model.draft import AppendRequest, Draft, Receipt
from overlayd.model.entry import Kind, StoredEntry
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.model.names import StreamName
from overlayd.model.txid import TxId
from overlayd.model.units import Duration, Size
from overlayd.storage import Log, StorageSettings, open_log
from overlayd.storage.lookup import draft_commitment

STREAM = StreamName("weather-001")
_numbers = itertools.count(1)


class Node:
    """What a test steps."""

    def __init__(self, log: Log, chain: RegtestChain, engine: ChainEngine, clock: FixedClock, metrics: Metrics) -> None:
        self.log = log
        self.chain = chain
        self.engine = engine
        self.book = engine.book
        self.watcher = engine.watcher
        self.wallet = engine.wallet
        self.reads = engine.reads
        self.clock = clock
        self.metrics = metrics
        self.coins: list[tuple[Transaction, int]] = []
        self.unsent: dict[TxId, ExtendedTransaction] = {}
        self.key = KEY

    async def define(self, name: StreamName = STREAM, **rule: Any) -> None:
        """A stream that commits each packet, unless told otherwise."""
        confirm = ConfirmRule(**{"commit": "packet", **rule})
        await self.log.define_stream(name, Definition(confirm=confirm))

    async def settle(self) -> None:
        """Headers are followed, and the watcher does all there is to do."""
        await self.book.follow(self.chain)
        assert await self.watcher.step()
        assert await self.watcher.step()

    async def fund(self, count: int = 20, satoshis: int = 100_000) -> Transaction:
        """Pays the wallet, out of the miner's coins, in a block."""
        paid = await self.chain.pay(self.wallet.script, satoshis, count)
        await self.wallet.receive(paid.raw)
        await self.settle()
        await self.mine()
        return paid

    async def append(self, count: int = 1, name: StreamName = STREAM) -> list[Receipt]:
        """Packets without a transaction."""
        drafts = [Draft(index, b"%d" % (number := next(_numbers)), b"%d" % number) for index in range(count)]
        stream = self.log.find_stream(name)
        assert stream is not None
        result = await self.log.append(AppendRequest(name, drafts, definition_version=stream.definition_version))
        return [outcome for outcome in result.outcomes if isinstance(outcome, Receipt)]

    async def mine(self, count: int = 1) -> None:
        """Blocks, one by one, each followed."""
        for _ in range(count):
            await self.chain.mine()
            await self.settle()

    async def coin(self) -> tuple[Transaction, int]:
        """One of the producer's coins, from a block."""
        if not self.coins:
            paid = await self.chain.pay(SCRIPT, 10_000, 400)
            self.coins = [(paid, place) for place in range(400)]
            await self.chain.mine()
        return self.coins.pop()

    async def publish(
        self, name: StreamName = STREAM, *, is_named: bool = False, commits: bool = True
    ) -> tuple[Receipt, Transaction]:
        """A packet with its transaction, which goes along, or only its name (`is_named`)."""
        return (await self.publish_many(1, name, is_named=is_named, commits=commits))[0]

    async def publish_many(
        self, count: int, name: StreamName = STREAM, *, is_named: bool = False, commits: bool = True
    ) -> list[tuple[Receipt, Transaction]]:
        """Several in one request."""
        drafts, made = [], []
        for index in range(count):
            number = next(_numbers)
            draft = Draft(index, b"%d" % number, b"%d" % number, id=f"p{number}", csalt=number.to_bytes(16, "big"))
            tx = await self.make_tx(draft_commitment(name, draft) if commits else bytes(32))
            raw = b"" if is_named else tx.tx.raw
            brought = BroughtTx(tx.tx.txid, raw, None if is_named else tx.encode(), None, None if is_named else 0)
            drafts.append(msgspec.structs.replace(draft, brought=brought))
            made.append(tx)
            self.unsent[tx.tx.txid] = tx
        stream = self.log.find_stream(name)
        assert stream is not None
        result = await self.log.append(AppendRequest(name, drafts, definition_version=stream.definition_version))
        receipts = [outcome for outcome in result.outcomes if isinstance(outcome, Receipt)]
        return [(receipt, tx.tx) for receipt, tx in zip(receipts, made, strict=True)]

    async def make_tx(self, commitment: bytes) -> ExtendedTransaction:
        """The producer's transaction that commits to it."""
        tx, place = await self.coin()
        spendable = Spendable(TxInput(OutPoint(tx.txid, place)), tx.outputs[place], KEY)
        return build_spend([spendable], [anchor_output(Anchor(AnchorKind.COMMITMENT, commitment))], SCRIPT, 100)

    async def send(self, tx: ExtendedTransaction) -> None:
        """Past the node."""
        await self.chain.submit([outgoing(tx)])

    async def entries(self) -> list[tuple[StoredEntry, StatusBody]]:
        """Every status entry that isn't reduced, oldest first."""
        found: list[tuple[StoredEntry, StatusBody]] = []
        after = 0
        while page := (await self.log.read_page(after)).entries:
            found += [
                (entry, decode_status_body(entry.body))
                for entry in page
                if entry.kind == Kind.STATUS and not entry.is_reduced
            ]
            after = page[-1].offset
        return found

    async def told(self, offset: int | None = None) -> list[str]:
        """What was told, in short: `confirmed1`, `pending`; of one packet, or with its offset before it."""
        lines = []
        for entry, body in await self.entries():
            words = f"{body.state}{body.depth if body.state == 'confirmed' else ''}" + (
                "!" if body.reason == "confirmed again" else ""
            )
            if offset is None:
                lines.append(f"{entry.target_from} {words}")
            elif entry.target_from == offset:
                lines.append(words)
        return lines

    async def now(self, offset: int, name: StreamName = STREAM) -> ConfirmationNow:
        """How a packet stands."""
        stream = self.log.find_stream(name)
        assert stream is not None
        return await self.reads.status_of(stream.stream_hash, stream.definition.confirm, offset)

    async def settled(self, depth: int = 1, name: StreamName = STREAM) -> int:
        """Up to where the stream's packets are final."""
        stream = self.log.find_stream(name)
        assert stream is not None
        return await self.reads.settled_offset(stream.stream_hash, stream.definition.confirm, depth)


@asynccontextmanager
async def watching(
    directory: Path, *, clock: FixedClock | None = None, source: Source | None = None, **chain_settings: Any
) -> AsyncIterator[Node]:
    """A node's engine over a directory, none of whose tasks runs; to be opened again for a restart."""
    clock, metrics = clock or FixedClock(), Metrics()
    storage = StorageSettings(reserve=Size(0), disk_high_water=Size(0), disk_low_water=Size(0), clock_step=NO_STEP)
    async with (
        open_log(
            directory, settings=storage, limits=Limits(), defaults=Definition(), clock=clock, entropy=Entropy(),
            metrics=metrics, features=CHAIN_FEATURES,
        ) as log,
        open_regtest(
            directory, settings=RegtestSettings(block_interval=Duration(0)), clock=clock, entropy=Entropy(),
            metrics=metrics,
        ) as chain,
    ):  # fmt: skip
        book = await open_headers(log, REGTEST, settings=HeadersSettings(), clock=clock, metrics=metrics)
        engine = ChainEngine(
            settings=ChainSettings(network="regtest", **chain_settings), log=log, book=book, source=source or chain,
            key=read_wallet_key(directory, Entropy()), clock=clock, metrics=metrics, chance=random.Random(1),
            regtest=chain,
        )  # fmt: skip
        await book.follow(chain)
        yield Node(log, chain, engine, clock, metrics)


def txids_of(made: Sequence[tuple[Receipt, Transaction]]) -> list[bytes]:
    """Of packets that were published."""
    return [tx.txid for _, tx in made]


def keep_books(directory: Path) -> None:
    """Every coin is spent at most once by what is written down, and what is written down balances."""
    connection = sqlite3.connect(directory / "log.sqlite3")
    spent: dict[OutPoint, bytes] = {}
    for txid, raw in connection.execute("SELECT txid, raw FROM chain_tx WHERE role <> 'brought'"):
        for item in parse_transaction(raw).inputs:
            assert spent.setdefault(item.outpoint, txid) == txid, "a coin was spent twice"
    coins = {}
    for txid, vout, spent_by in connection.execute(
        "SELECT t.txid, c.vout, s.txid FROM chain_coin c JOIN chain_tx t ON t.id = c.tx_id"
        " LEFT JOIN chain_tx s ON s.id = c.spent_by"
    ):
        coins[OutPoint(txid, vout)] = spent_by
    for outpoint, txid in spent.items():
        assert coins.get(outpoint, txid) == txid, "a coin is spent, but the wallet doesn't know"
    for outpoint, spent_by in coins.items():
        assert spent.get(outpoint) == spent_by, "a coin is lost: nothing spends it, and the wallet thinks so"
    connection.close()
