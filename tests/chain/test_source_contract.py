"""What whoever is asked about the network owes those who ask: the same for the embedded chain, for each kind of source
before a fake of it, and for several behind one face."""

from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from chain_rig import SCRIPT, outgoing, spend_coin
from source_rig import SourceRig, look_up_one, only, source_rig, submit_one

from overlayd.bsv.bump import parse_bump
from overlayd.bsv.header import HEADER_BYTES, parse_header
from overlayd.bsv.tx import ExtendedTransaction, TxOutput
from overlayd.chain.regtest_ledger import Returned
from overlayd.model.chain_source import SourceState
from overlayd.model.txid import TxId

TRANSACTION_SOURCES = ("regtest", "arc", "arcade", "whatsonchain", "node", "pool")
HEADER_SOURCES = ("regtest", "arcade", "whatsonchain", "headers", "node")
RAW_SOURCES = ("regtest", "whatsonchain", "node", "pool")
POLICY_SOURCES = ("regtest", "arc", "arcade", "node", "pool")
TAKEN = (SourceState.SEEN, SourceState.HELD)
transaction_source = pytest.mark.parametrize("kind", TRANSACTION_SOURCES)
NOBODYS = TxId(bytes(31) + b"\x01")


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[SourceRig]:
    """The embedded chain, and the fakes before it."""
    async with source_rig(tmp_path) as made:
        yield made


def source_of(rig: SourceRig, kind: str) -> Any:
    """The source of a kind."""
    if kind == "regtest":
        return rig.chain
    if kind == "pool":
        return rig.remote("arc", "whatsonchain", "headers", "node").pool
    return only(rig.remote(kind))


@transaction_source
async def test_unknown_taken_seen_mined(rig: SourceRig, kind: str) -> None:
    """Each step is a value, and the last one brings a proof that leads to the root of the block that it names."""
    source, item = source_of(rig, kind), rig.spend()
    assert (await look_up_one(source, item.tx.txid)).state is SourceState.UNKNOWN
    taken = await submit_one(source, item)
    assert (taken.txid, taken.state in TAKEN, taken.bump) == (item.tx.txid, True, None)
    seen = await look_up_one(source, item.tx.txid)
    assert (seen.state, seen.bump, seen.height) == (SourceState.SEEN, None, None)
    await rig.mine()
    mined = await look_up_one(source, item.tx.txid)
    assert mined.state is SourceState.MINED
    bump = parse_bump(mined.bump or b"")
    header = await rig.world.header(bump.height)
    assert header is not None
    bump.verify(item.tx.txid, header.merkle_root)
    assert (mined.height, mined.block_hash) == (bump.height, header.hash)


@transaction_source
async def test_answers_come_in_the_order_of_the_questions(rig: SourceRig, kind: str) -> None:
    """One for each, also for what nobody knows, for the same twice, and for nothing."""
    source, items = source_of(rig, kind), [rig.spend() for _ in range(4)]
    statuses = await source.submit([outgoing(item) for item in items])
    assert [status.txid for status in statuses] == [item.tx.txid for item in items]
    asked = [items[2].tx.txid, NOBODYS, items[0].tx.txid, items[2].tx.txid]
    found = await source.look_up(asked)
    assert [status.txid for status in found] == asked
    assert [status.state for status in found] == [
        SourceState.SEEN,
        SourceState.UNKNOWN,
        SourceState.SEEN,
        SourceState.SEEN,
    ]
    assert await source.look_up([]) == []
    assert await source.submit([]) == []


@transaction_source
async def test_again_is_harmless(rig: SourceRig, kind: str) -> None:
    """Broadcasting what is in the mempool, or in a block, is no refusal."""
    source, item = source_of(rig, kind), rig.spend()
    await submit_one(source, item)
    assert (await submit_one(source, item)).state in TAKEN
    await rig.mine()
    assert (await submit_one(source, item)).state in (*TAKEN, SourceState.MINED)
    assert (await look_up_one(source, item.tx.txid)).state is SourceState.MINED


def spoil(item: ExtendedTransaction) -> ExtendedTransaction:
    """The same with a signature that isn't one any more."""
    script = bytearray(item.tx.inputs[0].script)
    script[20] ^= 1
    return ExtendedTransaction(item.tx.with_scripts((bytes(script),)), item.spent)


@transaction_source
async def test_a_refusal_is_a_value_with_a_reason(rig: SourceRig, kind: str) -> None:
    """What breaks a rule, or pays too little, is REJECTED, isn't known afterwards, and takes nothing else along."""
    source, good = source_of(rig, kind), rig.spend()
    bad = [spoil(rig.spend()), rig.spend(rate=0)]
    statuses = await source.submit([outgoing(bad[0]), outgoing(good), outgoing(bad[1])])
    assert [status.state in TAKEN for status in statuses] == [False, True, False]
    for status in (statuses[0], statuses[2]):
        assert status.state is SourceState.REJECTED
        assert status.reason
    await rig.mine()
    for item in bad:
        assert (await look_up_one(source, item.tx.txid)).state in (SourceState.UNKNOWN, SourceState.REJECTED)


@transaction_source
async def test_a_conflict_is_a_double_spend_and_never_a_block(rig: SourceRig, kind: str) -> None:
    """The second spend of a coin is told as such, or as refused; the first one goes its way."""
    source, parent = source_of(rig, kind), rig.spend()
    await submit_one(source, parent)
    await rig.mine()
    first, second = spend_coin(parent.tx, 0), spend_coin(parent.tx, 0, TxOutput(1000, SCRIPT))
    await submit_one(source, first)
    told = await submit_one(source, second)
    assert told.state in (SourceState.DOUBLE_SPEND, SourceState.REJECTED)
    assert told.reason or told.competing
    await rig.mine()
    assert (await look_up_one(source, first.tx.txid)).state is SourceState.MINED
    assert (await look_up_one(source, second.tx.txid)).bump is None


@transaction_source
@pytest.mark.parametrize("returned", ["return", "remine", "drop"])
async def test_after_a_reorg_no_old_proof_is_given(rig: SourceRig, kind: str, returned: Returned) -> None:
    """Mined elsewhere: the new block's proof. Nowhere: no proof at all, whatever else is said."""
    source, item = source_of(rig, kind), rig.spend()
    await submit_one(source, item)
    await rig.mine()
    old = await look_up_one(source, item.tx.txid)
    await rig.chain.reorg(1, transactions=returned)
    await rig.book.follow(rig.chain)
    now = await look_up_one(source, item.tx.txid)
    if returned == "remine":
        assert now.state is SourceState.MINED
        assert now.bump is not None
        assert now.block_hash != old.block_hash
    else:
        assert now.bump is None


@pytest.mark.parametrize("kind", HEADER_SOURCES)
async def test_headers_lead_to_the_tip_that_is_named(rig: SourceRig, kind: str) -> None:
    """Eighty bytes each, ascending from where was asked, linked; none beyond the tip; after a reorg those of the other
    branch."""
    source = source_of(rig, kind)
    for _ in range(2):
        tip = await source.read_tip()
        assert tip.block_hash == (await rig.chain.read_tip()).block_hash
        raws = await source.read_headers(tip.height - 5, 6)
        headers = [parse_header(raw) for raw in raws]
        assert {len(raw) for raw in raws} == {HEADER_BYTES}
        assert headers[-1].hash == tip.block_hash
        assert all(upper.previous == lower.hash for lower, upper in pairwise(headers))
        assert await source.read_headers(tip.height + 1, 5) == []
        await rig.chain.reorg(2)


@pytest.mark.parametrize("kind", RAW_SOURCES)
async def test_bytes_are_those_of_the_transaction(rig: SourceRig, kind: str) -> None:
    """As they were broadcast; None for what isn't there; each in its place."""
    source, item = source_of(rig, kind), rig.spend()
    await rig.chain.submit([outgoing(item)])
    assert await source.read_raw([NOBODYS, item.tx.txid]) == [None, item.tx.raw]


@pytest.mark.parametrize("kind", POLICY_SOURCES)
async def test_a_policy_has_a_price(rig: SourceRig, kind: str) -> None:
    """Satoshis for 1000 bytes; a transaction that pays them is taken."""
    source = source_of(rig, kind)
    policy = await source.read_policy()
    assert policy.sat_per_kb >= 1
    assert (await submit_one(source, rig.spend(rate=policy.sat_per_kb))).state in TAKEN
