"""Reorgs of the embedded chain, restarts and kills in the middle, and its books against a naive replay."""

import shutil
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio
from chain_rig import (
    KEY,
    SCRIPT,
    FileStore,
    FixedClock,
    SameEntropy,
    book_of,
    outgoing,
    regtest,
    spend_coin,
    state_of,
    states_of,
)
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from overlayd.bsv.bump import parse_bump
from overlayd.bsv.header import parse_header
from overlayd.bsv.tx import Transaction, parse_transaction
from overlayd.chain import regtest_ledger as ledger
from overlayd.chain.headers import ProofUnknownBlock, Proven
from overlayd.chain.regtest import RegtestChain, RegtestSettings, open_regtest
from overlayd.chain.regtest_ledger import MATURITY_BLOCKS, Returned
from overlayd.chain.regtest_tables import FILE_NAME, read_waiting, split_txids
from overlayd.model.chain_source import Outgoing, SourceState
from overlayd.model.errors import RegtestRefused
from overlayd.model.metrics import Metrics
from overlayd.model.txid import TxId


@pytest.mark.parametrize("depth", range(1, 7))
@pytest.mark.parametrize("returned", ["return", "remine", "drop"])
@pytest.mark.parametrize("is_restarted", [False, True], ids=["running", "restarted"])
async def test_reorg_matrix(tmp_path: Path, depth: int, returned: Returned, is_restarted: bool) -> None:
    """At each depth, whatever becomes of the transactions, headers and proofs say the same as the chain does.

    The header book follows before and after, in the same process or opened anew, and gives the reorg as a value.
    """
    async with regtest(tmp_path) as chain:
        paid = await chain.pay(SCRIPT, 10_000, depth)
        base = await chain.mine()
        store = FileStore(tmp_path / "headers.sqlite3")
        mined = []
        for place in range(depth):
            item = spend_coin(paid, place)
            await chain.submit([outgoing(item)])
            await chain.mine()
            mined.append(item.tx.txid)
        book = await book_of(store)
        await book.follow(chain)
        old = [(txid, parse_bump((await state_of(chain, txid)).bump or b"")) for txid in mined]
        for txid, bump in old:
            assert isinstance(await book.check_proof(txid, bump), Proven)
        if is_restarted:
            book = await book_of(FileStore(tmp_path / "headers.sqlite3"))
        done = await chain.reorg(depth, transactions=returned)
        assert done.new_tip.height == done.old_tip.height + 1
    async with regtest(tmp_path) as chain:  # the chain itself is always opened anew
        followed = await book.follow(chain)
        (reorg,) = followed.reorgs
        assert (reorg.fork_height, reorg.depth, len(reorg.new)) == (base.height, depth, depth + 1)
        assert [held.height for held in reorg.old] == list(range(base.height + 1, base.height + depth + 1))
        assert reorg.old[-1].hash == done.old_tip.block_hash
        assert book.tip.hash == reorg.new[-1].hash == done.new_tip.block_hash
        for txid, bump in old:
            verdict = await book.check_proof(txid, bump)
            assert isinstance(verdict, ProofUnknownBlock)
            assert verdict.reason == "stale"
        expected = {"return": SourceState.SEEN, "remine": SourceState.MINED, "drop": SourceState.UNKNOWN}[returned]
        assert await states_of(chain, *mined) == [expected] * depth
        await chain.mine()
        await book.follow(chain)
        for txid in mined:
            status = await state_of(chain, txid)
            if returned == "drop":
                assert status.state is SourceState.UNKNOWN
                continue
            verdict = await book.check_proof(txid, parse_bump(status.bump or b""))
            assert isinstance(verdict, Proven)
            assert verdict.height > base.height + depth
        assert await states_of(chain, paid.txid) == [SourceState.MINED]


async def test_what_builds_on_a_lost_coinbase_is_gone(tmp_path: Path) -> None:
    """A coinbase that was taken back takes along what spent it, and what spent that."""
    async with regtest(tmp_path) as chain:
        await chain.mine(payee=SCRIPT)
        raw = await chain._run(lambda c: c.execute("SELECT raw FROM tx ORDER BY seq DESC LIMIT 1").fetchone()[0])
        await chain.mine(MATURITY_BLOCKS - 1)
        first = spend_coin(parse_transaction(raw))
        second = spend_coin(first.tx)
        await chain.submit([outgoing(first), outgoing(second)])
        await chain.reorg(MATURITY_BLOCKS)
        assert await states_of(chain, first.tx.txid, second.tx.txid) == [SourceState.UNKNOWN] * 2


async def test_impossible_reorgs_are_refused(tmp_path: Path) -> None:
    """Not 0, not deeper than coins mature; the chain stays as it was."""
    async with regtest(tmp_path) as chain:
        tip = await chain.read_tip()
        for depth in (0, -1, MATURITY_BLOCKS + 1):
            with pytest.raises(RegtestRefused, match="are possible"):
                await chain.reorg(depth)
        assert await chain.read_tip() == tip


async def test_a_kill_between_two_statements_leaves_the_chain_before_it(tmp_path: Path) -> None:
    """The file as it lies on the disk at any point of mining or reorganizing opens as the chain before or after."""
    async with regtest(tmp_path) as chain:
        paid = await chain.pay(SCRIPT, 10_000)
        before = await chain.mine(3)
        item = spend_coin(paid)
        await chain.submit([outgoing(item)])
        copies = []

        def copy(place: Path) -> None:
            place.mkdir()
            for suffix in ("", "-wal"):
                file = tmp_path / (FILE_NAME + suffix)
                if file.exists():
                    shutil.copy(file, place)
            copies.append(place)

        def work(c: Any) -> None:
            for step in range(3):
                ledger.mine_block(c, 1_900_000_000, SCRIPT, read_waiting(c, 10))
                copy(tmp_path / f"mining-{step}")
            ledger.disconnect(c, 2, "return")
            copy(tmp_path / "reorg")

        await chain._run(work)
        after = await chain.read_tip()
        copy(tmp_path / "done")
    for place in copies:
        async with regtest(place) as chain:
            is_done = place.name == "done"
            assert await chain.read_tip() == (after if is_done else before)
            assert await states_of(chain, item.tx.txid) == [SourceState.MINED if is_done else SourceState.SEEN]
            assert (await chain.mine()).height == (after if is_done else before).height + 1
            assert await states_of(chain, item.tx.txid) == [SourceState.MINED]


async def test_a_failed_step_is_undone_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a reorg fails in its last block, none of it happened."""
    async with regtest(tmp_path) as chain:
        await chain.mine(5)
        tip, waiting = await chain.read_tip(), await chain.count_waiting()
        blocks = ledger.mine_block
        calls = []

        def fail(*arguments: Any) -> None:
            calls.append(1)
            if len(calls) == 3:
                raise RuntimeError("broken")
            blocks(*arguments)

        monkeypatch.setattr(ledger, "mine_block", fail)
        with pytest.raises(RuntimeError, match="broken"):
            await chain.reorg(2)
        monkeypatch.undo()
        assert (await chain.read_tip(), await chain.count_waiting()) == (tip, waiting)
        assert (await chain.reorg(2)).old_tip == tip


class Books(RuleBasedStateMachine):
    """Anything that a chain may be asked to do, in any order, with restarts; its books equal a replay of its blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.path = Path(self.directory.name)
        self.coins: list[tuple[Transaction, int]] = []
        self.seen: list[TxId] = []

    def teardown(self) -> None:
        self.directory.cleanup()

    def on_chain(self, work: Any) -> Any:
        """Runs something on the chain, opened for it alone: every step is a restart."""

        async def main() -> Any:
            async with open_regtest(
                self.path, settings=RegtestSettings(), clock=FixedClock(), entropy=SameEntropy(), metrics=Metrics()
            ) as chain:
                return await work(chain)

        return trio.run(main)

    @rule(count=st.integers(1, 3))
    def pay(self, count: int) -> None:
        """Coins out of the miner's."""

        async def work(chain: RegtestChain) -> None:
            tx = await chain.pay(SCRIPT, 10_000, count)
            self.coins += [(tx, place) for place in range(count)]
            self.seen.append(tx.txid)

        self.on_chain(work)

    @precondition(lambda self: self.coins)
    @rule(data=st.data(), rate=st.integers(1, 300))
    def spend(self, data: st.DataObject, rate: int) -> None:
        """A coin that may be spent already, or be gone."""
        tx, place = data.draw(st.sampled_from(self.coins))
        if tx.outputs[place].satoshis < 1_000:
            return
        item = spend_coin(tx, place, rate=rate)

        async def work(chain: RegtestChain) -> None:
            (status,) = await chain.submit([outgoing(item)])
            if status.state in (SourceState.SEEN, SourceState.MINED):
                self.coins.append((item.tx, 0))
                self.seen.append(item.tx.txid)

        self.on_chain(work)

    @rule(count=st.integers(1, 3))
    def mine(self, count: int) -> None:
        """Some blocks."""
        self.on_chain(lambda chain: chain.mine(count))

    @rule(depth=st.integers(1, 6), returned=st.sampled_from(["return", "remine", "drop"]))
    def reorganize(self, depth: int, returned: Returned) -> None:
        """Another branch overtakes."""
        self.on_chain(lambda chain: chain.reorg(depth, transactions=returned))

    @precondition(lambda self: self.seen)
    @rule(data=st.data(), is_drop=st.booleans())
    def take_away(self, data: st.DataObject, is_drop: bool) -> None:
        """A transaction is forgotten or spent twice, if it may be."""
        txid = data.draw(st.sampled_from(self.seen))

        async def work(chain: RegtestChain) -> None:
            try:
                if is_drop:
                    await chain.drop(txid)
                else:
                    other = await chain.double_spend(txid, [KEY])
                    self.coins += [(other, 0)] if other.outputs[0].script == SCRIPT else []
            except RegtestRefused:
                pass

        self.on_chain(work)

    @invariant()
    def books_equal_a_replay(self) -> None:
        """Headers link up; every transaction spends what is there and unspent; coins are what blocks and mempool leave."""

        def replay(c: Any) -> None:
            blocks = c.execute("SELECT raw, txids, height FROM block WHERE is_best ORDER BY height").fetchall()
            known = {
                row[0]: (parse_transaction(row[1]), row[2]) for row in c.execute("SELECT txid, raw, height FROM tx")
            }
            coins: dict[tuple[bytes, int], int] = {}
            spent: dict[tuple[bytes, int], bytes] = {}
            order = [txid for _, txids, _ in blocks[1:] for txid in split_txids(txids)]
            waiting = [row[0] for row in c.execute("SELECT txid FROM tx WHERE height IS NULL ORDER BY seq")]
            assert len(order) + len(waiting) == len(known)
            for (lower, _, below), (upper, txids, height) in pairwise(blocks):
                assert parse_header(upper).previous == parse_header(lower).hash
                assert height == below + 1
                assert all(known[txid][1] == height for txid in split_txids(txids))
            for txid in (*order, *waiting):
                tx = known[txid][0]
                for item in () if tx.is_coinbase else tx.inputs:
                    name = (bytes(item.outpoint.txid), item.outpoint.index)
                    assert name in coins
                    assert name not in spent
                    spent[name] = txid
                for place, output in enumerate(tx.outputs):
                    coins[(txid, place)] = output.satoshis
            rows = c.execute("SELECT txid, place, satoshis, spent_by FROM coin").fetchall()
            assert {(row[0], row[1]): row[2] for row in rows} == coins
            assert {(row[0], row[1]): row[3] for row in rows if row[3] is not None} == spent

        self.on_chain(lambda chain: chain._run(replay))


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=5, stateful_step_count=12, deadline=None)
TestBooks.__doc__ = Books.__doc__


async def test_outgoing_bytes_are_what_is_mined(tmp_path: Path) -> None:
    """Two hundred transactions in one call, mined in one block, each proven."""
    async with regtest(tmp_path) as chain:
        paid = await chain.pay(SCRIPT, 1_000, 200)
        items = [Outgoing(item.tx.txid, item.tx.raw) for item in (spend_coin(paid, place) for place in range(200))]
        assert {answer.state for answer in await chain.submit(items)} == {SourceState.SEEN}
        tip = await chain.mine()
        for status in await chain.look_up([item.txid for item in items]):
            assert status.height == tip.height
            assert parse_bump(status.bump or b"").find(status.txid) is not None
