"""Each source against a fake of its kind: whatever the network does to a transaction, the answer is a value."""

from collections.abc import AsyncIterator
from pathlib import Path

import chaos_sink as chaos
import pytest
from chain_rig import KEY as COIN_KEY
from chain_rig import SCRIPT, outgoing, spend_coin
from fakes.fake_desk import Reply
from source_rig import KEY, SourceRig, look_up_one, only, plain, raw_of, source_rig, submit_one

from overlayd.bsv.beef import Beef, BeefEntry, BeefVersion
from overlayd.bsv.bump import parse_bump
from overlayd.bsv.tx import ExtendedTransaction, Transaction, TxOutput
from overlayd.chain.regtest_ledger import Returned
from overlayd.chain.sources.remote import source_token
from overlayd.model.chain_source import Outgoing, SourcePolicy, SourceState
from overlayd.model.errors import SourceUnavailable
from overlayd.model.txid import TxId

BROADCASTERS = ("arc", "arcade", "whatsonchain", "node")
TAKEN = (SourceState.SEEN, SourceState.HELD)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[SourceRig]:
    """The fakes and what asks them."""
    async with source_rig(tmp_path) as made:
        yield made


def spoil(item: ExtendedTransaction) -> ExtendedTransaction:
    """The same with a signature that isn't one any more."""
    script = bytearray(item.tx.inputs[0].script)
    script[20] ^= 1
    return ExtendedTransaction(item.tx.with_scripts((bytes(script),)), item.spent)


def with_parent(rig: SourceRig) -> tuple[Transaction, Outgoing]:
    """A transaction whose parent nobody has, and which brings it along in BEEF."""
    parent = rig.spend()
    child = spend_coin(parent.tx, 0)
    beef = Beef((), (BeefEntry(parent.tx.txid, parent.tx), BeefEntry(child.tx.txid, child.tx)), child.tx.txid)
    return parent.tx, Outgoing(child.tx.txid, child.tx.raw, child.encode(), beef.encode(BeefVersion.V2))


@pytest.mark.parametrize("kind", BROADCASTERS)
async def test_a_transaction_is_taken_waits_and_is_mined_with_a_proof(rig: SourceRig, kind: str) -> None:
    """Unknown, taken, in the mempool, mined: and the proof leads to the block's root."""
    source, item = only(rig.remote(kind)), rig.spend()
    assert plain(await look_up_one(source, item.tx.txid)) == (SourceState.UNKNOWN, False)
    assert (await submit_one(source, item)).state in TAKEN
    assert plain(await look_up_one(source, item.tx.txid)) == (SourceState.SEEN, False)
    await rig.mine()
    status = await look_up_one(source, item.tx.txid)
    assert plain(status) == (SourceState.MINED, True)
    bump = parse_bump(status.bump or b"")
    header = await rig.world.header(bump.height)
    assert header is not None
    bump.verify(item.tx.txid, header.merkle_root)
    assert (status.height, status.block_hash) == (bump.height, header.hash)
    assert source.health.faults == 0


@pytest.mark.parametrize("kind", BROADCASTERS)
async def test_every_place_of_a_block_has_its_proof(rig: SourceRig, kind: str) -> None:
    """Left and right, first and last, with copies where a level is odd."""
    source, items = only(rig.remote(kind)), [rig.spend() for _ in range(6)]
    await source.submit([outgoing(item) for item in items])
    await rig.mine()
    statuses = await source.look_up([item.tx.txid for item in items])
    header = await rig.world.header(statuses[0].height or 0)
    assert header is not None
    for item, status in zip(items, statuses, strict=True):
        parse_bump(status.bump or b"").verify(item.tx.txid, header.merkle_root)


@pytest.mark.parametrize("kind", BROADCASTERS)
async def test_broadcasting_twice_is_harmless(rig: SourceRig, kind: str) -> None:
    """A source that has the transaction already says so, in the mempool and in a block."""
    source, item = only(rig.remote(kind)), rig.spend()
    await submit_one(source, item)
    assert (await submit_one(source, item)).state is SourceState.SEEN
    await rig.mine()
    assert (await submit_one(source, item)).state in (SourceState.SEEN, SourceState.MINED)
    assert source.health.faults == 0


@pytest.mark.parametrize("kind", BROADCASTERS)
async def test_many_are_broadcast_and_asked_about_at_once(rig: SourceRig, kind: str) -> None:
    """Each has its answer, in order, parents before children; one bad one spoils nothing."""
    source, first = only(rig.remote(kind)), rig.spend()
    items = [first, spend_coin(first.tx, 0), rig.spend(rate=0), rig.spend()]
    statuses = await source.submit([outgoing(item) for item in items])
    assert [status.txid for status in statuses] == [item.tx.txid for item in items]
    assert [status.state in TAKEN for status in statuses] == [True, True, False, True]
    assert statuses[2].state is SourceState.REJECTED
    found = await source.look_up([item.tx.txid for item in items])
    assert [status.state for status in found if status.txid != items[2].tx.txid] == [SourceState.SEEN] * 3


@pytest.mark.parametrize("kind", BROADCASTERS)
@pytest.mark.parametrize(("flaw", "word"), [("fee", "fee"), ("parent", "inputs"), ("script", "")])
async def test_a_refusal_is_an_answer_with_its_reason(rig: SourceRig, kind: str, flaw: str, word: str) -> None:
    """Too low a fee, a parent that nobody knows, a wrong signature: a state with the source's words, not an error."""
    source = only(rig.remote(kind))
    item = {"fee": rig.spend(rate=0), "parent": spend_coin(rig.spend().tx, 0), "script": spoil(rig.spend())}[flaw]
    status = await submit_one(source, item)
    assert status.state is SourceState.REJECTED
    assert status.reason
    assert word in status.reason.lower().replace("insufficient priority", "fee")
    assert source.health.faults == 0


@pytest.mark.parametrize("kind", BROADCASTERS)
async def test_a_conflicting_transaction_is_a_double_spend(rig: SourceRig, kind: str) -> None:
    """Where the source tells it, with the transaction that came first."""
    source, item = only(rig.remote(kind)), rig.spend()
    await submit_one(source, item)
    rival = spend_coin(rig.coins, 0, TxOutput(500, SCRIPT))
    status = await submit_one(source, rival)
    assert status.state is SourceState.DOUBLE_SPEND if kind != "arcade" else SourceState.HELD
    if kind == "arc":
        assert status.competing == (item.tx.txid,)
    assert (await look_up_one(source, item.tx.txid)).state is SourceState.SEEN


@pytest.mark.parametrize("kind", BROADCASTERS)
async def test_being_replaced_later_is_told(rig: SourceRig, kind: str) -> None:
    """A transaction that was seen loses its coin to another: a double spend, or nothing known any more."""
    source, item = only(rig.remote(kind)), rig.spend()
    await submit_one(source, item)
    rival = await rig.chain.double_spend(item.tx.txid, [COIN_KEY])
    status = await look_up_one(source, item.tx.txid)
    if kind in ("arc", "arcade"):
        assert (status.state, status.competing) == (SourceState.DOUBLE_SPEND, (rival.txid,))
        assert "double spend" in status.reason
    else:
        assert status.state is SourceState.UNKNOWN


@pytest.mark.parametrize("kind", BROADCASTERS)
@pytest.mark.parametrize("returned", ["remine", "return", "drop"])
async def test_a_reorg_takes_a_transaction_elsewhere_or_nowhere(rig: SourceRig, kind: str, returned: Returned) -> None:
    """Into another block, with another proof; back to the mempool; or away."""
    source, item = only(rig.remote(kind)), rig.spend()
    await submit_one(source, item)
    await rig.mine()
    before = await look_up_one(source, item.tx.txid)
    await rig.chain.reorg(1, transactions=returned)
    after = await look_up_one(source, item.tx.txid)
    if returned == "remine":
        assert plain(after) == (SourceState.MINED, True)
        assert after.block_hash != before.block_hash
        header = await rig.world.header(after.height or 0)
        assert header is not None
        parse_bump(after.bump or b"").verify(item.tx.txid, header.merkle_root)
    elif returned == "return":
        assert after.state is (SourceState.STALE if kind == "arc" else SourceState.SEEN)
    else:
        assert after.state in (SourceState.HELD, SourceState.UNKNOWN)
    assert returned == "remine" or after.bump is None


async def test_http_200_with_rejected_is_a_refusal(rig: SourceRig) -> None:
    """ARC says OK and means no: the txStatus counts."""
    rig.arc.is_quiet = True
    source, item = only(rig.remote("arc")), rig.spend(rate=0)
    status = await submit_one(source, item)
    assert status.state is SourceState.REJECTED
    assert "fee too low" in status.reason


@pytest.mark.parametrize("kind", ["arc", "arcade"])
@pytest.mark.parametrize(
    ("word", "state"),
    [
        ("SEEN_IN_ORPHAN_MEMPOOL", SourceState.HELD), ("ANNOUNCED_TO_NETWORK", SourceState.HELD),
        ("DOUBLE_SPEND_ATTEMPTED", SourceState.DOUBLE_SPEND), ("SEEN_MULTIPLE_NODES", SourceState.SEEN),
        ("IMMUTABLE", SourceState.MINED), ("PENDING_RETRY", SourceState.HELD), ("UNKNOWN", SourceState.UNKNOWN),
        ("A_WORD_OF_TOMORROW", SourceState.HELD),
    ],
)  # fmt: skip
async def test_every_word_of_theirs_has_a_meaning(rig: SourceRig, kind: str, word: str, state: SourceState) -> None:
    """Also one that isn't known yet: it has the transaction, and that is all that is taken from it."""
    source, item = only(rig.remote(kind)), rig.spend()
    await submit_one(source, item)
    rig.fake(kind).says[item.tx.txid] = word
    status = await look_up_one(source, item.tx.txid)
    assert status.state is state
    assert source.health.faults == 0
    if word in ("A_WORD_OF_TOMORROW", "SEEN_IN_ORPHAN_MEMPOOL"):
        assert word in status.reason


@pytest.mark.parametrize(
    ("status", "number", "state"),
    [(400, None, SourceState.REJECTED), (409, 409, SourceState.REJECTED), (422, 461, SourceState.REJECTED)]
    + [(number, number, SourceState.REJECTED) for number in range(460, 477) if number != 466]
    + [(466, 466, SourceState.DOUBLE_SPEND), (409, 466, SourceState.DOUBLE_SPEND)],
)
async def test_every_number_of_arcs_is_a_reason(
    rig: SourceRig, status: int, number: int | None, state: SourceState
) -> None:
    """460 to 476 and their like are about the transaction: refused, with number and words."""
    source, item = only(rig.remote("arc")), rig.spend()
    problem = {"title": "No", "detail": "because", "status": number, "extraInfo": "arc error"}
    rig.arc.desk.trick("/v1/tx", chaos.raw(Reply(status, problem).encode(), is_last=False))
    answer = await submit_one(source, item)
    assert answer.state is state
    assert "because" in answer.reason
    assert str(number or "") in answer.reason


async def test_arcade_tells_a_conflict_by_its_number(rig: SourceRig) -> None:
    """A REJECTED with the number 466 is a double spend."""
    source, item = only(rig.remote("arcade")), rig.spend()
    await submit_one(source, item)
    told = {
        **await rig.arcade.tell(item.tx.txid),
        "txStatus": "REJECTED",
        "status": 466,
        "extraInfo": "UTXO_SPENT (70)",
    }
    rig.arcade.desk.trick("/tx/.*", chaos.raw(Reply(200, told).encode(), is_last=False))
    status = await look_up_one(source, item.tx.txid)
    assert (status.state, status.reason) == (SourceState.DOUBLE_SPEND, "REJECTED: UTXO_SPENT (70)")


@pytest.mark.parametrize("kind", ["arc", "arcade"])
async def test_a_refused_callback_address_is_not_the_transactions_fault(rig: SourceRig, kind: str) -> None:
    """400 may be about the headers that come along: that is a fault to mend, no verdict."""
    source, item = only(rig.remote(kind, callback_url="http://10.0.0.1")), rig.spend()
    problem = {"title": "Bad request", "detail": "invalid callback URL", "status": 400, "error": "invalid callback url"}
    rig.desk(kind).trick(".*/tx", chaos.raw(Reply(400, problem).encode(), is_last=False))
    with pytest.raises(SourceUnavailable, match="callback_url"):
        await submit_one(source, item)


@pytest.mark.parametrize("kind", ["arc", "arcade"])
async def test_a_404_of_somebody_else_is_not_unknown(rig: SourceRig, kind: str) -> None:
    """A wrong address mustn't make us broadcast everything again."""
    source = only(rig.remote(kind))
    rig.desk(kind).trick(".*/tx/.*", chaos.answer(404, b"<html>nginx</html>"))
    with pytest.raises(SourceUnavailable, match="404"):
        await look_up_one(source, TxId(bytes(32)))


@pytest.mark.parametrize("kind", BROADCASTERS)
async def test_ancestors_come_along(rig: SourceRig, kind: str) -> None:
    """Whoever reads no BEEF gets the parents first; whoever does gets it as BRC-62 has it."""
    source = only(rig.remote(kind))
    parent, item = with_parent(rig)
    (status,) = await source.submit([item])
    assert (status.txid, status.state in TAKEN) == (item.txid, True)
    assert [one.state for one in await rig.chain.look_up([parent.txid, item.txid])] == [SourceState.SEEN] * 2
    if kind == "arc":
        assert rig.arc.desk.asked[-1].body.startswith(bytes.fromhex("0100beef"))


async def test_beef_that_arc_refuses_goes_in_another_form(rig: SourceRig) -> None:
    """A refusal of the form isn't one of the transaction."""
    source = only(rig.remote("arc"))
    parent, item = with_parent(rig)
    await rig.chain.submit([Outgoing(parent.txid, parent.raw)])
    problem = {"title": "Mined ancestors not found", "detail": "no", "status": 467}
    rig.arc.desk.trick("/v1/tx", chaos.raw(Reply(467, problem).encode(), is_last=False))
    (status,) = await source.submit([item])
    assert status.state is SourceState.SEEN
    assert rig.arc.desk.asked[-1].body == item.extended


@pytest.mark.parametrize("kind", BROADCASTERS)
async def test_bytes_alone_are_enough(rig: SourceRig, kind: str) -> None:
    """A producer may bring nothing but a raw transaction."""
    source, item = only(rig.remote(kind)), rig.spend()
    (status,) = await source.submit([raw_of(item)])
    assert status.state in TAKEN


@pytest.mark.parametrize("kind", ["whatsonchain", "node"])
async def test_bytes_are_given_where_they_are_had(rig: SourceRig, kind: str) -> None:
    """Raw transactions by their txids, None for unknown ones."""
    source, item = only(rig.remote(kind)), rig.spend()
    await submit_one(source, item)
    assert await source.read_raw([TxId(bytes(32)), item.tx.txid]) == [None, item.tx.raw]


@pytest.mark.parametrize(
    ("kind", "policy"),
    [
        ("arc", SourcePolicy(1, 1000, 10_000_000)), ("arcade", SourcePolicy(1, 1000, 10_000_000)),
        ("node", SourcePolicy(50, 1000, 10_000_000)),
    ],
)  # fmt: skip
async def test_policies_are_read(rig: SourceRig, kind: str, policy: SourcePolicy) -> None:
    """Fee and largest transaction, as each of them writes it."""
    assert await only(rig.remote(kind)).read_policy() == policy


async def test_callbacks_are_asked_for_when_there_is_an_address(rig: SourceRig) -> None:
    """With the node's own token for that source; without an address nothing is asked."""
    item = rig.spend()
    await submit_one(only(rig.remote("arc", callback_url="https://node.example/")), item)
    headers = rig.arc.desk.asked[-1].headers
    assert headers["x-callbackurl"] == "https://node.example/v1/chain/callback"
    assert headers["x-callbacktoken"] == source_token(KEY, "arc")
    assert headers["x-callbackbatch"] == "true"
    await submit_one(only(rig.remote("arc")), rig.spend())
    assert "x-callbackurl" not in rig.arc.desk.asked[-1].headers
    assert source_token(KEY, "arc") != source_token(KEY, "other") != source_token(bytes(32), "other")
