"""The fakes against the published contracts: the same members of the same kinds; and the contracts' own examples, read."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import chaos_sink as chaos
import pytest
from chain_rig import outgoing
from fakes.fake_desk import Reply
from source_rig import SourceRig, look_up_one, only, plain, source_rig

from overlayd.bsv.bump import parse_bump
from overlayd.chain.sources import arc_words
from overlayd.model.chain_source import SourcePolicy, SourceState, SourceTip
from overlayd.model.txid import format_hash, parse_block_hash, parse_txid
from overlayd.net.chain_callback_routes import read_callback
from overlayd.outbound import OutboundRequest
from overlayd.outbound.networks import NetworkPolicy, parse_networks

EXAMPLES = json.loads((Path(__file__).parents[1] / "data/bsv/source-examples.json").read_text())


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[SourceRig]:
    """The fakes and what asks them."""
    async with source_rig(tmp_path) as made:
        yield made


def kinds_of(value: Any) -> Any:
    """The shape of a JSON value: members and their kinds; what may be null says nothing of its kind."""
    if isinstance(value, dict):
        return {name: kinds_of(member) for name, member in value.items()}
    if isinstance(value, bool) or value is None:
        return type(value).__name__
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, list):
        return [kinds_of(value[0])] if value else []
    return "text"


def assert_like(kind: str, name: str, value: dict[str, Any]) -> None:
    """A fake's answer has the members of the example, of the same kinds, and no others than the contract knows."""
    example = EXAMPLES[kind][name]
    wanted = kinds_of(example["value"])
    found = kinds_of({member: one for member, one in value.items() if member not in example["optional"]})
    assert {member: one for member, one in found.items() if one != "NoneType"} == {
        member: one for member, one in wanted.items() if one != "NoneType"
    }, (kind, name)


def test_the_words_are_those_of_the_contracts() -> None:
    """Every status of ARC's and Arcade's enumerations is known, and no others are made up."""
    arc = (
        "UNKNOWN QUEUED RECEIVED STORED ANNOUNCED_TO_NETWORK REQUESTED_BY_NETWORK SENT_TO_NETWORK ACCEPTED_BY_NETWORK "
        "SEEN_IN_ORPHAN_MEMPOOL SEEN_ON_NETWORK DOUBLE_SPEND_ATTEMPTED REJECTED MINED_IN_STALE_BLOCK MINED"
    )
    arcade = (
        "UNKNOWN RECEIVED SENT_TO_NETWORK ACCEPTED_BY_NETWORK SEEN_ON_NETWORK SEEN_MULTIPLE_NODES DOUBLE_SPEND_ATTEMPTED "
        "REJECTED PENDING_RETRY STUMP_PROCESSING MINED IMMUTABLE"
    )
    assert set(arc_words.STATES) == {*arc.split(), *arcade.split()}


async def answered(rig: SourceRig, kind: str, method: str, path: str, body: Any = None, **headers: str) -> Any:
    """What a fake answers, as JSON."""
    octets = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    given = (("Content-Type", headers.get("content_type", "application/json")),)
    answer = await rig.sender.send(
        OutboundRequest(
            method,  # type: ignore[arg-type] # GET or POST
            rig.url(kind) + path,
            body=octets,
            headers=given,
            policy=NetworkPolicy(parse_networks(["127.0.0.0/8"])),
        )
    )
    return json.loads(answer.body)


async def test_a_fake_arc_answers_as_arc(rig: SourceRig) -> None:
    """Submission, state, refusal, policy and callback."""
    item, poor = rig.spend(), rig.spend(rate=0)
    tx = {"rawTx": item.encode().hex()}
    assert_like("arc", "mempool", await answered(rig, "arc", "POST", "/v1/tx", tx))
    await rig.mine()
    assert_like("arc", "mined", await answered(rig, "arc", "POST", "/v1/tx", tx))
    assert_like("arc", "error", await answered(rig, "arc", "POST", "/v1/tx", {"rawTx": poor.encode().hex()}))
    assert_like("arc", "policy", await answered(rig, "arc", "GET", "/v1/policy"))
    callback = rig.arc.callback_of(await rig.arc.tell(item.tx.txid))
    assert_like("arc", "callback", callback)
    assert read_callback(json.dumps(callback).encode()) == [item.tx.txid]


async def test_a_fake_arcade_answers_as_arcade(rig: SourceRig) -> None:
    """Submission of one and of many, refusal, state, and what it doesn't know."""
    octets, item, poor = "application/octet-stream", rig.spend(), rig.spend(rate=0)
    one = await answered(rig, "arcade", "POST", "/tx", item.encode(), content_type=octets)
    assert_like("arcade", "submitted", one)
    two = rig.spend().encode() + rig.spend().encode()
    assert_like("arcade", "many", await answered(rig, "arcade", "POST", "/txs", two, content_type=octets))
    refused = await answered(rig, "arcade", "POST", "/tx", poor.encode(), content_type=octets)
    assert_like("arcade", "refused", refused)
    await rig.mine()
    txid = format_hash(item.tx.txid)
    assert_like("arcade", "status", await answered(rig, "arcade", "GET", f"/tx/{txid}"))
    assert_like("arcade", "unknown", await answered(rig, "arcade", "GET", f"/tx/{'00' * 32}"))


async def test_a_fake_whatsonchain_answers_as_whatsonchain(rig: SourceRig) -> None:
    """States, proof, header and chain info."""
    item, waiting = rig.spend(), rig.spend()
    await rig.chain.submit([outgoing(item)])
    await rig.mine()
    await rig.chain.submit([outgoing(waiting)])
    txids = [format_hash(item.tx.txid), format_hash(waiting.tx.txid), "00" * 32]
    told = await answered(rig, "whatsonchain", "POST", "/txs/status", {"txids": txids})
    for name, one in zip(("mined", "mempool", "unknown"), told, strict=True):
        assert_like("whatsonchain", name, one)
    (proof,) = await answered(rig, "whatsonchain", "GET", f"/tx/{txids[0]}/proof/tsc")
    assert_like("whatsonchain", "proof", proof)
    assert_like("whatsonchain", "header", await answered(rig, "whatsonchain", "GET", "/block/7/header"))
    assert_like("whatsonchain", "header", (await answered(rig, "whatsonchain", "GET", "/block/headers"))[0])
    assert_like("whatsonchain", "info", await answered(rig, "whatsonchain", "GET", "/chain/info"))


async def test_the_fake_services_of_headers_and_nodes_answer_as_they_do(rig: SourceRig) -> None:
    """Tip, a range that isn't there, a proof, an error inside a batch."""
    base = "/api/v1/chain"
    assert_like("headers", "tip", await answered(rig, "headers", "GET", f"{base}/tip/longest"))
    missing = await answered(rig, "headers", "GET", f"{base}/header/byHeight?height=99999&count=2")
    assert missing == EXAMPLES["headers"]["missing"]["value"]
    item = rig.spend()
    await rig.chain.submit([outgoing(item)])
    await rig.mine()
    calls = [
        {"id": number, "method": "getmerkleproof2", "params": ["", txid, False, "header"]}
        for number, txid in enumerate([format_hash(item.tx.txid), "00" * 32])
    ]
    proven, unknown = await answered(rig, "node", "POST", "/", calls)
    assert_like("node", "proof", proven["result"])
    assert unknown["error"] == EXAMPLES["node"]["unknown"]["value"]


async def test_examples_of_arc_and_arcade_are_read(rig: SourceRig) -> None:
    """The mined example, its proof included, means what it says; so do the refusal and the policy."""
    for kind, name in [("arc", "mined"), ("arcade", "status")]:
        value = EXAMPLES[kind][name]["value"]
        rig.desk(kind).trick(".*/tx/.*", chaos.raw(Reply(200, value).encode(), is_last=False))
        status = await look_up_one(only(rig.remote(kind)), parse_txid(value["txid"]))
        # Its proof is of block 1582420, not of 736228 as it says beside: a proof counts for what it is.
        assert (status.state, status.bump) == (SourceState.MINED, None)
        assert rig.errors(kind, "bad_proof") == 1
        bump = parse_bump(bytes.fromhex(value["merklePath"]))
        assert bump.height == 1582420
        changed = {**value, "blockHeight": bump.height}
        if bump.find(parse_txid(value["txid"])) is None:
            changed["txid"] = format_hash(bump.txids[0])
        rig.desk(kind).trick(".*/tx/.*", chaos.raw(Reply(200, changed).encode(), is_last=False))
        status = await look_up_one(only(rig.remote(kind)), parse_txid(changed["txid"]))
        assert plain(status) == (SourceState.MINED, True)
    rig.arc.desk.trick("/v1/policy", chaos.raw(Reply(200, EXAMPLES["arc"]["policy"]["value"]).encode(), is_last=False))
    assert await only(rig.remote("arc")).read_policy() == SourcePolicy(1, 1000, 10_000_000)
    problem = EXAMPLES["arc"]["error"]["value"]
    rig.arc.desk.trick("/v1/tx", chaos.raw(Reply(463, problem).encode(), is_last=False))
    (refused,) = await only(rig.remote("arc")).submit([outgoing(rig.spend())])
    assert refused.state is SourceState.REJECTED
    assert "transaction output 0 satoshis is invalid" in refused.reason


async def test_examples_of_the_others_are_read(rig: SourceRig) -> None:
    """States of WhatsOnChain, and the tip of a headers service."""
    woc = EXAMPLES["whatsonchain"]
    values = [woc[name]["value"] for name in ("mined", "mempool", "unknown")]
    rig.woc.desk.trick(".*/txs/status", chaos.raw(Reply(200, values).encode(), is_last=False))
    rig.woc.desk.trick(".*/proof/tsc", chaos.answer(404, b"Not Found"))
    found = await only(rig.remote("whatsonchain")).look_up([parse_txid(value["txid"]) for value in values])
    assert [status.state for status in found] == [SourceState.MINED, SourceState.SEEN, SourceState.UNKNOWN]
    assert found[0].height == 612251
    rig.woc.desk.trick(".*/chain/info", chaos.raw(Reply(200, woc["info"]["value"]).encode(), is_last=False))
    tip = await only(rig.remote("whatsonchain")).read_tip()
    assert tip == SourceTip(635302, parse_block_hash(woc["info"]["value"]["bestblockhash"]))
    value = EXAMPLES["headers"]["tip"]["value"]
    rig.headers.desk.trick(".*/tip/longest", chaos.raw(Reply(200, value).encode(), is_last=False))
    tip = await only(rig.remote("headers")).read_tip()
    assert tip == SourceTip(1, parse_block_hash(value["header"]["hash"]))
