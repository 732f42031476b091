"""The embedded chain as a source: what it takes, refuses, mines and proves."""

import sqlite3
from itertools import pairwise
from pathlib import Path

import pytest
import trio
import trio.testing
from chain_rig import KEY, SCRIPT, FileStore, book_of, outgoing, regtest, spend_coin, state_of, states_of

from overlayd.bsv.beef import assemble_beef
from overlayd.bsv.bump import parse_bump
from overlayd.bsv.header import parse_header
from overlayd.bsv.keys import PrivateKey
from overlayd.bsv.network import REGTEST
from overlayd.bsv.script import unlock_with
from overlayd.bsv.sighash import ALL_FORKID, signature_digest
from overlayd.bsv.tx import NULL_OUTPOINT, OutPoint, Transaction, TxInput, TxOutput, parse_transaction
from overlayd.chain.headers import Proven
from overlayd.chain.regtest_ledger import MATURITY_BLOCKS, REFUSALS_KEPT
from overlayd.chain.regtest_tables import write_refusal
from overlayd.model.chain_source import EventsMissed, Outgoing, SourceState, SourceTip, TipMoved, TransactionMoved
from overlayd.model.errors import RegtestRefused, SourceUnavailable
from overlayd.model.metrics import Metrics
from overlayd.model.txid import TxId
from overlayd.model.units import Duration


async def test_a_new_chain_has_coins_to_spend(tmp_path: Path) -> None:
    """It begins with regtest's first block and the blocks that a coinbase waits for, each with its work."""
    async with regtest(tmp_path) as chain:
        tip = await chain.read_tip()
        assert tip.height == MATURITY_BLOCKS + 1
        headers = [parse_header(raw) for raw in await chain.read_headers(0, 2000)]
        assert headers[0] == REGTEST.genesis
        assert len(headers) == tip.height + 1
        assert headers[-1].hash == tip.block_hash
        for lower, upper in pairwise(headers):
            assert upper.previous == lower.hash
            upper.verify_work(REGTEST.limit_bits)
        assert await chain.read_headers(tip.height + 1, 10) == []
        assert await chain.read_headers(5, 2) == [headers[5].raw, headers[6].raw]
        assert (await chain.read_policy()).sat_per_kb == 1
        paid = await chain.pay(SCRIPT, 1_000)
        assert await states_of(chain, paid.txid) == [SourceState.SEEN]


async def test_a_transaction_is_seen_then_mined_with_a_proof(tmp_path: Path) -> None:
    """What was submitted is in the mempool, then in a block whose header its proof leads to; nobody is asked to believe."""
    async with regtest(tmp_path) as chain:
        paid = await chain.pay(SCRIPT, 10_000, 3)
        spends = [spend_coin(paid, place) for place in range(3)]
        answers = await chain.submit([outgoing(item) for item in spends])
        assert [answer.state for answer in answers] == [SourceState.SEEN] * 3
        assert await chain.submit([outgoing(spends[0])]) == answers[:1]
        assert await chain.count_waiting() == 4
        tip = await chain.mine()
        book = await book_of(FileStore(tmp_path / "headers.sqlite3"))
        await book.follow(chain)
        for item in (paid, *(spend.tx for spend in spends)):
            status = await state_of(chain, item.txid)
            assert (status.state, status.height, status.block_hash) == (SourceState.MINED, tip.height, tip.block_hash)
            assert status.bump is not None
            proven = await book.check_proof(item.txid, parse_bump(status.bump))
            assert proven == Proven(tip.height, tip.block_hash)
        assert await chain.count_waiting() == 0


def _signed(
    parent: Transaction, outputs: tuple[TxOutput, ...], *, lock_time: int = 0, key: PrivateKey = KEY
) -> Transaction:
    """Spends the first output as it is told, sensible or not."""
    sequence = 0 if lock_time else 0xFFFFFFFF
    tx = Transaction((TxInput(parent.outpoint(0), b"", sequence),), outputs, 1, lock_time)
    signature = key.sign_digest(signature_digest(tx, 0, parent.outputs[0])) + bytes((ALL_FORKID,))
    return tx.with_scripts((unlock_with(signature, key.public_key.encoded),))


async def test_bad_transactions_are_rejected_for_their_reason(tmp_path: Path) -> None:
    """Missing inputs, bad signatures, coins out of nothing, low fees, lock times and more are answers, not errors."""
    async with regtest(tmp_path, fee_sat_per_kb=500) as chain:
        parent = await chain.pay(SCRIPT, 10_000)
        stranger = Transaction((TxInput(OutPoint(TxId(bytes(31) + b"\1"), 0)),), (TxOutput(1, b"\x51"),))
        coinbase = Transaction((TxInput(NULL_OUTPOINT, b"\x51"),), (TxOutput(1, b"\x51"),))
        forged = _signed(parent, (TxOutput(9_000, SCRIPT),), key=PrivateKey((5).to_bytes(32, "big")))
        burnt = TxOutput(1, b"\x00\x6a\x01a")
        cases = {
            stranger: "missing-inputs", coinbase: "coinbase", forged: "isn't a signature and the key",
            _signed(parent, (TxOutput(10_001, SCRIPT),)): "exceed",
            _signed(parent, (TxOutput(9_990, SCRIPT),)): "fee too low",
            _signed(parent, (TxOutput(8_000, SCRIPT), burnt)): "can't be spent holds coins",
            _signed(parent, (TxOutput(8_000, SCRIPT),), lock_time=500): "non-final",
        }  # fmt: skip
        for tx, reason in cases.items():
            (status,) = await chain.submit([Outgoing(tx.txid, tx.raw)])
            assert status.state is SourceState.REJECTED, reason
            assert reason in status.reason
            assert await state_of(chain, tx.txid) == status
        (status,) = await chain.submit([Outgoing(parent.txid, parent.raw[:-1])])
        assert (status.state, "malformed" in status.reason) == (SourceState.REJECTED, True)
        (status,) = await chain.submit([Outgoing(stranger.txid, parent.raw)])
        assert "another transaction" in status.reason
        late = _signed(parent, (TxOutput(8_000, SCRIPT),), lock_time=500)
        await chain.mine(500)
        (status,) = await chain.submit([Outgoing(late.txid, late.raw)])
        assert status.state is SourceState.SEEN
        assert await states_of(chain, TxId(bytes(32))) == [SourceState.UNKNOWN]


async def test_coins_of_young_coinbases_wait(tmp_path: Path) -> None:
    """The newest coinbase can't be spent; the miner pays only with old ones, and says when it has too few."""
    async with regtest(tmp_path) as chain:
        await chain.mine(payee=SCRIPT)
        raw = await chain._run(lambda c: c.execute("SELECT raw FROM tx ORDER BY seq DESC LIMIT 1").fetchone()[0])
        item = spend_coin(parse_transaction(raw))
        (status,) = await chain.submit([outgoing(item)])
        assert "premature" in status.reason
        await chain.mine(MATURITY_BLOCKS - 2)
        assert (await chain.submit([outgoing(item)]))[0].state is SourceState.REJECTED
        await chain.mine()
        assert (await chain.submit([outgoing(item)]))[0].state is SourceState.SEEN
        with pytest.raises(RegtestRefused, match="satoshis to spend"):
            await chain.pay(SCRIPT, 10**12)
        for satoshis, count in ((0, 1), (1, 0), (1, 10_001)):
            with pytest.raises(RegtestRefused, match="at once"):
                await chain.pay(SCRIPT, satoshis, count)


async def test_the_miner_goes_on_paying(tmp_path: Path) -> None:
    """It spends its change as well, mined or not, so that many are paid between two blocks."""
    async with regtest(tmp_path) as chain:
        paid = [await chain.pay(SCRIPT, 1_000) for _ in range(20)]
        await chain.mine()
        assert set(await states_of(chain, *[tx.txid for tx in paid])) == {SourceState.MINED}


async def test_second_spends_are_told_with_their_rivals(tmp_path: Path) -> None:
    """Whoever comes first is in; the other is told whom it meets, before and after the block."""
    async with regtest(tmp_path) as chain:
        parent = await chain.pay(SCRIPT, 10_000)
        first, second = spend_coin(parent), spend_coin(parent, rate=200)
        await chain.submit([outgoing(first)])
        (status,) = await chain.submit([outgoing(second)])
        assert (status.state, status.competing) == (SourceState.DOUBLE_SPEND, (first.tx.txid,))
        await chain.mine()
        (status,) = await chain.submit([outgoing(second)])
        assert (status.state, status.competing) == (SourceState.DOUBLE_SPEND, (first.tx.txid,))
        assert await states_of(chain, first.tx.txid) == [SourceState.MINED]


async def test_ancestors_come_along_in_beef(tmp_path: Path) -> None:
    """A child whose unconfirmed parent nobody submitted is taken with it; without, it isn't."""
    async with regtest(tmp_path) as chain:
        paid = await chain.pay(SCRIPT, 10_000)
        await chain.mine()
        status = await state_of(chain, paid.txid)
        assert status.bump is not None
        parent = spend_coin(paid)
        child = spend_coin(parent.tx)
        (status_alone,) = await chain.submit([outgoing(child)])
        assert "missing-inputs" in status_alone.reason
        known = {paid.txid: (paid, parse_bump(status.bump)), parent.tx.txid: (parent.tx, None)}
        beef = assemble_beef(child.tx, known).encode()
        (status,) = await chain.submit([Outgoing(child.tx.txid, child.tx.raw, None, beef)])
        assert status.state is SourceState.SEEN
        assert await states_of(chain, parent.tx.txid) == [SourceState.SEEN]
        (broken,) = await chain.submit([Outgoing(child.tx.txid, child.tx.raw, None, beef[:-1])])
        assert "malformed" in broken.reason


async def test_dropping_takes_descendants_along(tmp_path: Path) -> None:
    """What is forgotten is unknown, its coins can be spent again; what is mined can't be forgotten."""
    async with regtest(tmp_path) as chain:
        paid = await chain.pay(SCRIPT, 10_000)
        await chain.mine()
        parent = spend_coin(paid)
        child = spend_coin(parent.tx)
        await chain.submit([outgoing(parent), outgoing(child)])
        assert set(await chain.drop(parent.tx.txid)) == {parent.tx.txid, child.tx.txid}
        assert await states_of(chain, parent.tx.txid, child.tx.txid) == [SourceState.UNKNOWN] * 2
        assert (await chain.submit([outgoing(spend_coin(paid, rate=99))]))[0].state is SourceState.SEEN
        with pytest.raises(RegtestRefused, match="in a block"):
            await chain.drop(paid.txid)
        with pytest.raises(RegtestRefused, match="isn't in the mempool"):
            await chain.drop(parent.tx.txid)


async def test_double_spending_needs_a_key_and_throws_the_first_out(tmp_path: Path) -> None:
    """The rival is a real transaction signed by an owner; the first and what built on it are told as conflicting."""
    async with regtest(tmp_path) as chain:
        paid = await chain.pay(SCRIPT, 10_000)
        await chain.mine()
        first = spend_coin(paid)
        child = spend_coin(first.tx)
        await chain.submit([outgoing(first), outgoing(child)])
        with pytest.raises(RegtestRefused, match="key that is at hand"):
            await chain.double_spend(first.tx.txid)
        assert await states_of(chain, first.tx.txid) == [SourceState.SEEN]
        rival = await chain.double_spend(first.tx.txid, [KEY])
        for txid in (first.tx.txid, child.tx.txid):
            status = await state_of(chain, txid)
            assert (status.state, status.competing) == (SourceState.DOUBLE_SPEND, (rival.txid,))
        await chain.mine()
        assert await states_of(chain, rival.txid, first.tx.txid) == [SourceState.MINED, SourceState.DOUBLE_SPEND]
        for txid, reason in ((rival.txid, "in a block"), (TxId(bytes(32)), "no such")):
            with pytest.raises(RegtestRefused, match=reason):
                await chain.double_spend(txid, [KEY])
        own = await chain.pay(SCRIPT, 100)
        assert (await chain.double_spend(own.txid)).txid != own.txid


async def test_a_coin_too_small_to_spend_otherwise_keeps_its_spender(tmp_path: Path) -> None:
    """A refused double spend changes nothing."""
    async with regtest(tmp_path, fee_sat_per_kb=1000) as chain:
        paid = await chain.pay(SCRIPT, 180)
        only = _signed(paid, (TxOutput(0, b"\x00\x6a"),))
        (status,) = await chain.submit([Outgoing(only.txid, only.raw)])
        assert status.state is SourceState.SEEN
        with pytest.raises(RegtestRefused, match="can't be spent otherwise"):
            await chain.double_spend(only.txid, [KEY])
        assert await states_of(chain, only.txid) == [SourceState.SEEN]


async def test_a_full_mempool_refuses_and_counts(tmp_path: Path) -> None:
    """Beyond `mempool_max` a transaction is rejected, can come again after a block, and the limit's hit is counted."""
    metrics = Metrics()
    async with regtest(tmp_path, mempool_max=2, metrics=metrics) as chain:
        paid = await chain.pay(SCRIPT, 10_000, 3)
        items = [outgoing(spend_coin(paid, place)) for place in range(3)]
        states = [answer.state for answer in await chain.submit(items)]
        assert states == [SourceState.SEEN, SourceState.REJECTED, SourceState.REJECTED]
        assert (await state_of(chain, items[1].txid)).reason == "mempool full"
        assert metrics.registry.get_sample_value("overlayd_limit_hits_total", {"limit": "mempool_max"}) == 2
        await chain.mine()
        assert [answer.state for answer in await chain.submit(items)] == [SourceState.MINED] + [SourceState.SEEN] * 2


async def test_a_block_takes_no_more_than_its_limit(tmp_path: Path) -> None:
    """What doesn't fit waits for the next block, in order of arrival."""
    async with regtest(tmp_path, block_transactions_max=2) as chain:
        paid = await chain.pay(SCRIPT, 10_000, 3)
        items = [spend_coin(paid, place) for place in range(3)]
        await chain.submit([outgoing(item) for item in items])
        await chain.mine()
        assert await states_of(chain, paid.txid, items[0].tx.txid, items[1].tx.txid) == [
            SourceState.MINED, SourceState.MINED, SourceState.SEEN,
        ]  # fmt: skip
        await chain.mine()
        assert await chain.count_waiting() == 0


async def test_refusals_are_remembered_up_to_a_number(tmp_path: Path) -> None:
    """Old ones go, so that a stranger's nonsense doesn't fill the disk."""
    async with regtest(tmp_path) as chain:

        def refuse(c: sqlite3.Connection) -> int:
            for number in range(30):
                write_refusal(c, TxId(number.to_bytes(32, "big")), "bad", (), 10)
            count: int = c.execute("SELECT count(*) FROM refused").fetchone()[0]
            return count

        assert await chain._run(refuse) == 10 < REFUSALS_KEPT
        assert (await state_of(chain, TxId((29).to_bytes(32, "big")))).reason == "bad"


async def test_events_tell_what_enters_and_every_tip(tmp_path: Path) -> None:
    """A reader hears of transactions and tips in order; nobody hears of a drop."""
    async with regtest(tmp_path) as chain, chain.open_events() as events:
        paid = await chain.pay(SCRIPT, 10_000)
        spend = spend_coin(paid)
        await chain.submit([outgoing(spend), outgoing(spend)])
        await chain.submit([outgoing(spend)])
        rival = await chain.double_spend(spend.tx.txid, [KEY])
        await chain.drop(rival.txid)
        tip = await chain.mine(2)
        done = await chain.reorg(1)
        told = [await events.receive() for _ in range(6)]
        assert [
            (event.status.txid, event.status.state) for event in told[:4] if isinstance(event, TransactionMoved)
        ] == [
            (paid.txid, SourceState.SEEN), (spend.tx.txid, SourceState.SEEN),
            (spend.tx.txid, SourceState.DOUBLE_SPEND), (rival.txid, SourceState.SEEN),
        ]  # fmt: skip
        assert told[4:] == [TipMoved(tip), TipMoved(done.new_tip)]
        assert done.old_tip == tip


async def test_a_slow_reader_is_told_that_it_missed_something(tmp_path: Path) -> None:
    """Beyond `events_max` events are lost, the reader learns of it, and the limit's hit is counted."""
    metrics = Metrics()
    async with regtest(tmp_path, events_max=2, metrics=metrics) as chain, chain.open_events() as events:
        tips = [await chain.mine() for _ in range(5)]
        assert [await events.receive() for _ in range(3)] == [TipMoved(tips[0]), TipMoved(tips[1]), EventsMissed()]
        assert metrics.registry.get_sample_value("overlayd_limit_hits_total", {"limit": "events_max"}) == 3
        tip = await chain.mine()
        assert await events.receive() == TipMoved(tip)
        chain.end_events()
        with pytest.raises(trio.EndOfChannel):
            await events.receive()


async def test_it_mines_by_itself(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    """A block every interval; none when the interval is 0."""
    async with regtest(tmp_path, block_interval=Duration(7)) as chain:
        start, began = (await chain.read_tip()).height, trio.current_time()
        async with trio.open_nursery() as nursery, chain.open_events() as events:
            nursery.start_soon(chain.keep_mining)
            for count in range(1, 6):
                event = await events.receive()
                assert isinstance(event, TipMoved)
                assert event.tip.height == start + count
                assert trio.current_time() - began >= 7 * count
            nursery.cancel_scope.cancel()
        for count in (0, 10_001):
            with pytest.raises(RegtestRefused, match="at once"):
                await chain.mine(count)
    async with regtest(tmp_path, block_interval=Duration(0)) as chain:
        await chain.keep_mining()


async def test_cancelled_calls_leave_whole_blocks(tmp_path: Path) -> None:
    """Whenever mining is cancelled, the chain stands and goes on."""
    async with regtest(tmp_path) as chain:
        start = (await chain.read_tip()).height
        for _ in range(5):
            with trio.CancelScope() as scope:
                scope.cancel()
                await chain.mine()
        assert (await chain.read_tip()).height == start
        assert (await chain.mine()).height == start + 1


async def test_a_broken_file_is_a_source_without_an_answer(tmp_path: Path) -> None:
    """Faults of SQLite come as the error that any source raises."""
    async with regtest(tmp_path) as chain:
        with pytest.raises(SourceUnavailable, match="no such table"):
            await chain._run(lambda c: c.execute("SELECT * FROM absent"))
        assert isinstance(await chain.read_tip(), SourceTip)
