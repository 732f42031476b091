"""A regtest chain and a header book in temporary directories, and headers with regtest's work out of nothing."""

import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from overlayd.bsv.header import BlockHeader, encode_header, parse_header
from overlayd.bsv.keys import PrivateKey
from overlayd.bsv.network import REGTEST, Network
from overlayd.bsv.script import lock_to_key
from overlayd.bsv.spending import Spendable, build_spend
from overlayd.bsv.tx import ExtendedTransaction, OutPoint, Transaction, TxInput, TxOutput
from overlayd.chain.header_tables import HEADERS_FEATURE
from overlayd.chain.headers import HeaderBook, HeadersSettings, open_headers
from overlayd.chain.regtest import RegtestChain, RegtestSettings, open_regtest
from overlayd.model.chain_source import Outgoing, SourceState, SourceStatus
from overlayd.model.clock import Entropy
from overlayd.model.metrics import Metrics
from overlayd.model.txid import TxId
from overlayd.storage.migrations import migrate

START_US = 1_800_000_000_000_000
KEY = PrivateKey((77).to_bytes(32, "big"))
SCRIPT = lock_to_key(KEY.public_key.encoded)


class FixedClock:
    """Wall time that moves when a test says so."""

    def __init__(self) -> None:
        self.us = START_US

    def now_us(self) -> int:
        return self.us


class SameEntropy(Entropy):
    """No chance at all, so that a failing example fails again."""

    def draw(self, count: int) -> bytes:
        return bytes(range(1, count + 1))


class FileStore:
    """The log's two calls on a database of its own, without the log's thread and groups."""

    def __init__(self, path: Path) -> None:
        self.connection = sqlite3.connect(path, isolation_level=None)
        migrate(self.connection, (HEADERS_FEATURE,))

    async def write(self, job: Callable[[sqlite3.Connection], Any]) -> Any:
        await trio.lowlevel.checkpoint()
        self.connection.execute("BEGIN")
        try:
            result = job(self.connection)
        except BaseException:
            self.connection.execute("ROLLBACK")
            raise
        self.connection.execute("COMMIT")
        return result

    async def read(self, function: Callable[[sqlite3.Connection], Any]) -> Any:
        await trio.lowlevel.checkpoint()
        return function(self.connection)


@asynccontextmanager
async def regtest(directory: Path, **settings: Any) -> AsyncIterator[RegtestChain]:
    """A chain with its first hundred blocks."""
    metrics = settings.pop("metrics", None) or Metrics()
    async with open_regtest(
        directory, settings=RegtestSettings(**settings), clock=FixedClock(), entropy=SameEntropy(), metrics=metrics
    ) as chain:
        yield chain


async def book_of(store: FileStore, network: Network = REGTEST, **settings: Any) -> HeaderBook:
    """The headers in a store."""
    metrics = settings.pop("metrics", None) or Metrics()
    clock = settings.pop("clock", None) or FixedClock()
    return await open_headers(store, network, settings=HeadersSettings(**settings), clock=clock, metrics=metrics)


def child_of(
    parent: BlockHeader, number: int = 0, *, bits: int = REGTEST.limit_bits, time_s: int | None = None
) -> BlockHeader:
    """A block on top of another, with regtest's work; `number` makes siblings differ."""
    for nonce in range(100_000):
        header = parse_header(
            encode_header(
                version=4, previous=parent.hash, merkle_root=number.to_bytes(32, "big"),
                time_s=parent.time_s + 1 if time_s is None else time_s, bits=bits, nonce=nonce,
            )
        )  # fmt: skip
        if int.from_bytes(header.hash, "little") <= header.target:
            return header
    raise AssertionError


def branch(parent: BlockHeader, count: int, number: int = 0) -> list[BlockHeader]:
    """Blocks on top of another, each on the one before."""
    headers: list[BlockHeader] = []
    for _ in range(count):
        headers.append(child_of(headers[-1] if headers else parent, number))
    return headers


def outgoing(item: ExtendedTransaction) -> Outgoing:
    """What is handed to a source."""
    return Outgoing(item.tx.txid, item.tx.raw, item.encode())


def spend_coin(
    parent: Transaction, place: int = 0, *outputs: TxOutput, key: PrivateKey = KEY, rate: int = 50
) -> ExtendedTransaction:
    """Spends one output, giving the rest back to the key."""
    spendable = Spendable(TxInput(OutPoint(parent.txid, place)), parent.outputs[place], key)
    return build_spend([spendable], outputs, lock_to_key(key.public_key.encoded), rate)


async def state_of(chain: RegtestChain, txid: TxId) -> SourceStatus:
    """What the chain says of one transaction."""
    (status,) = await chain.look_up([txid])
    return status


async def states_of(chain: RegtestChain, *txids: TxId) -> list[SourceState]:
    """What the chain says of several."""
    return [status.state for status in await chain.look_up(txids)]
