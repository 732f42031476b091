"""The embedded regtest chain: real transactions and blocks with minimum work, in a file of its own.

It implements `ChainSource`, and nothing above can tell it from a remote one. Beside that it has what only a test chain
can do: mine, pay out coins, reorganize, forget, spend twice. One connection, used by one thread at a time; each call
is one transaction of the file.
"""

import sqlite3
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
import trio
from msgspec import Meta

from overlayd.bsv.beef import parse_beef
from overlayd.bsv.blocktree import BlockTree
from overlayd.bsv.keys import SECRET_BYTES, PrivateKey
from overlayd.bsv.script import lock_to_key
from overlayd.bsv.tx import TRANSACTION_BYTES_MAX, Transaction, parse_transaction
from overlayd.chain import regtest_ledger as ledger
from overlayd.chain import regtest_tables as tables
from overlayd.chain.regtest_ledger import MATURITY_BLOCKS, Returned
from overlayd.model.chain_source import (
    EventsMissed,
    Outgoing,
    SourceEvent,
    SourcePolicy,
    SourceState,
    SourceStatus,
    SourceTip,
    TipMoved,
    TransactionMoved,
)
from overlayd.model.channels import bounded
from overlayd.model.clock import Clock, Entropy
from overlayd.model.errors import MalformedChainData, RegtestRefused, SourceUnavailable
from overlayd.model.metrics import Metrics
from overlayd.model.txid import BlockHash, TxId, format_hash
from overlayd.model.units import Duration

T = TypeVar("T")

BATCH_MAX = 1000
HEADERS_MAX = 2000
TREES_KEPT = 4
"""Merkle trees of blocks that were asked about last."""
MINE_MAX = 10_000
"""Blocks of one command."""
PAY_OUTPUTS_MAX = 10_000
"""Outputs of one payment of the miner's."""
_LIMIT_MEMPOOL = "mempool_max"
_LIMIT_EVENTS = "events_max"


class RegtestSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The embedded chain."""

    block_interval: Annotated[
        Duration, Meta(description="Regtest: a block is mined so often; 0s: only when `overlayd regtest mine` asks")
    ] = Duration(10)
    fee_sat_per_kb: Annotated[int, Meta(ge=0, description="Regtest: least fee, in satoshis for 1000 bytes")] = 1
    mempool_max: Annotated[int, Meta(ge=1, description="Regtest: transactions that wait for a block")] = 200_000
    block_transactions_max: Annotated[int, Meta(ge=1, description="Regtest: transactions of one block")] = 100_000
    events_max: Annotated[int, Meta(ge=1, le=100_000, description="Regtest: events that one reader may be behind")] = (
        1000
    )


class RegtestReorg(msgspec.Struct, frozen=True):
    """What a reorg command did: the tip that was left and the one that came."""

    depth: int
    old_tip: SourceTip
    new_tip: SourceTip


class _Events:
    """One reader's events. A full buffer loses them and says so."""

    def __init__(self, capacity: int) -> None:
        self.send: trio.MemorySendChannel[SourceEvent]
        self._receive: trio.MemoryReceiveChannel[SourceEvent]
        self.send, self._receive = bounded(capacity, "regtest events")
        self._is_behind = False

    def offer(self, event: SourceEvent) -> bool:
        """Whether there was room."""
        try:
            self.send.send_nowait(event)
        except trio.WouldBlock:
            self._is_behind = True
            return False
        return True

    async def receive(self) -> SourceEvent:
        """The next event. A checkpoint. Raises trio.EndOfChannel when the chain was closed."""
        if self._is_behind and not self._receive.statistics().current_buffer_used:
            self._is_behind = False
            await trio.lowlevel.checkpoint()
            return EventsMissed()
        return await self._receive.receive()


class RegtestChain:
    """A chain of its own. Made by `open_regtest`."""

    name = "regtest"
    batch_max = BATCH_MAX
    headers_max = HEADERS_MAX

    def __init__(
        self, connection: sqlite3.Connection, key: PrivateKey, settings: RegtestSettings, clock: Clock, metrics: Metrics
    ) -> None:
        self._connection = connection
        self._settings = settings
        self._clock = clock
        self._metrics = metrics
        self._turn = trio.Lock()
        self._thread = trio.CapacityLimiter(1)
        self._trees: OrderedDict[BlockHash, BlockTree] = OrderedDict()
        self._readers: list[_Events] = []
        self.miner_key = key
        """What coinbases pay when nobody else is named. Everybody may know it: these coins are worth nothing."""

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Runs statements as one transaction, in the thread. Not left half-way when cancelled."""
        try:
            async with self._turn:
                return await trio.to_thread.run_sync(
                    partial(_in_transaction, self._connection, work), limiter=self._thread
                )
        except sqlite3.Error as err:
            raise SourceUnavailable(f"the chain's file can't be used: {err}", subject="source regtest") from err

    # What any source does.

    async def submit(self, transactions: Sequence[Outgoing]) -> list[SourceStatus]:
        """Judges transactions as a node would, and takes good ones into the mempool. Unconfirmed ancestors may come
        along in BEEF."""
        assert len(transactions) <= BATCH_MAX
        statuses, fresh, overflow = await self._run(lambda c: self._submit(c, transactions))
        for _ in range(overflow):
            self._metrics.count_limit_hit(_LIMIT_MEMPOOL)
        for txid in fresh:
            self._tell(TransactionMoved(SourceStatus(txid, SourceState.SEEN)))
        return statuses

    async def look_up(self, txids: Sequence[TxId]) -> list[SourceStatus]:
        """What became of transactions, mined ones with their proof."""
        assert len(txids) <= BATCH_MAX
        return await self._run(lambda c: [self._status(c, txid) for txid in txids])

    async def read_raw(self, txids: Sequence[TxId]) -> list[bytes | None]:
        """The bytes of those that it holds."""

        def read(c: sqlite3.Connection) -> list[bytes | None]:
            found = [tables.read_tx(c, txid) for txid in txids]
            return [None if stored is None else stored.raw for stored in found]

        return await self._run(read)

    async def read_policy(self) -> SourcePolicy:
        """The least fee."""
        await trio.lowlevel.checkpoint()
        return SourcePolicy(self._settings.fee_sat_per_kb, 1000, TRANSACTION_BYTES_MAX)

    async def read_tip(self) -> SourceTip:
        """The newest block."""
        return await self._run(_tip)

    async def read_headers(self, from_height: int, count: int) -> list[bytes]:
        """Headers of the best chain."""
        return await self._run(lambda c: tables.read_raw_headers(c, from_height, min(count, HEADERS_MAX)))

    @asynccontextmanager
    async def open_events(self) -> AsyncIterator[_Events]:
        """Transactions that were taken or thrown out, and every new tip. What a block holds is to be asked for."""
        events = _Events(self._settings.events_max)
        self._readers.append(events)
        try:
            yield events
        finally:
            self._readers.remove(events)
            events.send.close()

    # What only a chain of one's own does.

    async def mine(self, count: int = 1, *, payee: bytes = b"") -> SourceTip:
        """Mines blocks, the first taking what waits; their coins go to a locking script. Raises RegtestRefused."""
        if not 1 <= count <= MINE_MAX:
            raise RegtestRefused(f"{count} blocks; 1 to {MINE_MAX} are mined at once", subject="mine")
        now_s = self._now_s()
        for _ in range(count):
            tip = await self._run(lambda c: self._mine(c, now_s, payee))
        self._tell(TipMoved(tip))
        return tip

    async def reorg(self, depth: int, *, transactions: Returned = "return") -> RegtestReorg:
        """Lets a branch overtake that leaves the best chain `depth` blocks ago and is one block longer.

        The transactions of the blocks that are taken back go to the mempool (`return`), into the newest block of the
        new branch (`remine`), or are forgotten (`drop`); those that build on lost coinbases are forgotten always.
        Raises RegtestRefused beyond the first block or the depth at which coinbases are spent.
        """
        now_s = self._now_s()
        done = await self._run(lambda c: self._reorg(c, depth, transactions, now_s))
        self._tell(TipMoved(done.new_tip))
        return done

    async def drop(self, txid: TxId) -> list[TxId]:
        """Forgets a mempool transaction and what builds on it, without telling; gives their txids.

        Raises RegtestRefused.
        """
        return await self._run(lambda c: _drop(c, txid))

    async def double_spend(self, txid: TxId, keys: Sequence[PrivateKey] = ()) -> Transaction:
        """Replaces a mempool transaction by another that spends one of its inputs, signed with one of these keys or
        the miner's; gives that one. Raises RegtestRefused.
        """
        rate = self._settings.fee_sat_per_kb
        all_keys = (*keys, self.miner_key)
        other = await self._run(lambda c: ledger.conflict_with(c, txid, all_keys, rate))
        self._tell(TransactionMoved(SourceStatus(txid, SourceState.DOUBLE_SPEND, "double spend", (other.txid,))))
        self._tell(TransactionMoved(SourceStatus(other.txid, SourceState.SEEN)))
        return other

    async def pay(self, script: bytes, satoshis: int, count: int = 1) -> Transaction:
        """Pays a locking script out of the miner's coins, `count` times the amount; spendable at once, mined later.

        Raises RegtestRefused when the miner hasn't the coins.
        """
        if not (1 <= count <= PAY_OUTPUTS_MAX and satoshis >= 1):
            raise RegtestRefused(
                f"1 to {PAY_OUTPUTS_MAX} outputs of at least 1 satoshi are paid at once", subject="pay"
            )
        rate = self._settings.fee_sat_per_kb
        tx = await self._run(lambda c: ledger.pay(c, self.miner_key, script, satoshis, count, rate))
        self._tell(TransactionMoved(SourceStatus(tx.txid, SourceState.SEEN)))
        return tx

    async def count_waiting(self) -> int:
        """Transactions in the mempool."""
        return await self._run(tables.count_waiting)

    async def keep_mining(self) -> None:
        """Mines a block every `block_interval`, until cancelled. Does nothing for 0."""
        while self._settings.block_interval:
            await trio.sleep(self._settings.block_interval)
            await self.mine()

    # In the thread, inside a transaction.

    def _submit(self, c: sqlite3.Connection, given: Sequence[Outgoing]) -> tuple[list[SourceStatus], list[TxId], int]:
        broken: dict[TxId, str] = {}
        transactions: list[Transaction] = []
        for item in given:
            try:
                transactions += _transactions_of(item)
            except MalformedChainData as err:
                broken[item.txid] = err.detail
        fresh = dict.fromkeys(tx.txid for tx in transactions if tables.read_tx(c, tx.txid) is None)
        settings = self._settings
        overflow = ledger.submit(c, transactions, settings.fee_sat_per_kb, settings.mempool_max)
        statuses = [
            SourceStatus(item.txid, SourceState.REJECTED, f"malformed: {broken[item.txid]}")
            if item.txid in broken else self._status(c, item.txid)
            for item in given
        ]  # fmt: skip
        taken = [txid for txid in fresh if tables.read_tx(c, txid) is not None]
        return statuses, taken, overflow

    def _status(self, c: sqlite3.Connection, txid: TxId) -> SourceStatus:
        stored = tables.read_tx(c, txid)
        if stored is None:
            refusal = tables.read_refusal(c, txid)
            if refusal is None:
                return SourceStatus(txid, SourceState.UNKNOWN)
            reason, competing = refusal
            state = SourceState.DOUBLE_SPEND if competing else SourceState.REJECTED
            return SourceStatus(txid, state, reason, competing)
        if stored.height is None:
            return SourceStatus(txid, SourceState.SEEN)
        block_hash = tables.read_block_hash(c, stored.height)
        bump = self._tree(c, block_hash, stored.height).bump([txid]).encode()
        return SourceStatus(txid, SourceState.MINED, block_hash=block_hash, height=stored.height, bump=bump)

    def _tree(self, c: sqlite3.Connection, block_hash: BlockHash, height: int) -> BlockTree:
        tree = self._trees.get(block_hash)
        if tree is None:
            block = tables.read_block(c, height)
            assert block is not None
            tree = self._trees[block_hash] = BlockTree(height, block.txids)
            if len(self._trees) > TREES_KEPT:
                self._trees.popitem(last=False)
        return tree

    def _mine(self, c: sqlite3.Connection, now_s: int, payee: bytes = b"", *, is_empty: bool = False) -> SourceTip:
        waiting = [] if is_empty else tables.read_waiting(c, self._settings.block_transactions_max)
        ledger.mine_block(c, now_s, payee or lock_to_key(self.miner_key.public_key.encoded), waiting)
        return _tip(c)

    def _reorg(self, c: sqlite3.Connection, depth: int, returned: Returned, now_s: int) -> RegtestReorg:
        old = _tip(c)
        if not 1 <= depth <= min(old.height, MATURITY_BLOCKS):
            raise RegtestRefused(
                f"a reorg of {depth} blocks; 1 to {min(old.height, MATURITY_BLOCKS)} are possible", subject="reorg"
            )
        ledger.disconnect(c, depth, returned)
        for _ in range(depth):
            self._mine(c, now_s, is_empty=True)
        # In the last one, no transaction comes too early for the coins that it spends.
        new = self._mine(c, now_s, is_empty=returned != "remine")
        return RegtestReorg(depth, old, new)

    def _now_s(self) -> int:
        return self._clock.now_us() // 1_000_000

    def _tell(self, event: SourceEvent) -> None:
        for reader in self._readers:
            if not reader.offer(event):
                self._metrics.count_limit_hit(_LIMIT_EVENTS)

    def end_events(self) -> None:
        """Ends every reader's stream."""
        for reader in self._readers:
            reader.send.close()


@asynccontextmanager
async def open_regtest(
    directory: Path, *, settings: RegtestSettings, clock: Clock, entropy: Entropy, metrics: Metrics
) -> AsyncIterator[RegtestChain]:
    """The chain of a directory, for the life of the block.

    A new one has the network's first block and as many on top as it takes until the miner's first coins may be spent.
    """
    connection = await trio.to_thread.run_sync(tables.open_chain_file, directory / tables.FILE_NAME)
    try:
        now_s = clock.now_us() // 1_000_000
        secret = await trio.to_thread.run_sync(
            partial(_in_transaction, connection, lambda c: _prepare(c, entropy, now_s))
        )
        chain = RegtestChain(connection, PrivateKey(secret), settings, clock, metrics)
        try:
            yield chain
        finally:
            chain.end_events()
    finally:
        connection.close()


def _prepare(c: sqlite3.Connection, entropy: Entropy, now_s: int) -> bytes:
    secret = tables.read_miner(c)
    if secret is None:
        key = PrivateKey(entropy.draw(SECRET_BYTES))
        secret = key.secret
        ledger.begin(c, secret)
        for before in range(MATURITY_BLOCKS, -1, -1):
            ledger.mine_block(c, now_s - before, lock_to_key(key.public_key.encoded), ())
    return secret


def _in_transaction(connection: sqlite3.Connection, work: Callable[[sqlite3.Connection], T]) -> T:
    connection.execute("BEGIN IMMEDIATE")
    try:
        result = work(connection)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return result


def _transactions_of(item: Outgoing) -> list[Transaction]:
    """The transaction, after those that came along unproven. Raises MalformedChainData."""
    tx = parse_transaction(item.raw)
    if tx.txid != item.txid:
        raise MalformedChainData("the bytes are of another transaction", subject="transaction")
    if item.beef is None:
        return [tx]
    entries = parse_beef(item.beef).entries
    return [*(one.tx for one in entries if one.tx is not None and one.bump_index is None and one.txid != tx.txid), tx]


def _tip(c: sqlite3.Connection) -> SourceTip:
    height, block_hash = tables.read_tip(c)
    return SourceTip(height, block_hash)


def _drop(c: sqlite3.Connection, txid: TxId) -> list[TxId]:
    stored = tables.read_tx(c, txid)
    if stored is None or stored.height is not None:
        raise RegtestRefused(
            "it isn't in the mempool" if stored is None else "it is in a block", subject=f"txid {format_hash(txid)}"
        )
    return ledger.evict(c, txid)
