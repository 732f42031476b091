"""Sources that fail: slow, silent, busy, talking nonsense, lying about proofs. All of it is told from a verdict."""

import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import chaos_sink as chaos
import msgspec
import pytest
import trio
from chain_rig import outgoing
from fakes.fake_desk import Reply, break_proof
from fakes.fake_sv_node import RpcFailed
from source_rig import SourceRig, look_up_one, only, plain, source_rig, submit_one
from trio.testing import MockClock

from overlayd.chain.sources.faults import Fault
from overlayd.model.chain_source import SourceState, SourceStatus
from overlayd.model.errors import ConfigInvalid, SourceUnavailable
from overlayd.model.txid import TxId
from overlayd.model.units import Duration, Size

BROADCASTERS = ("arc", "arcade", "whatsonchain", "node")
ALL = (*BROADCASTERS, "headers")
NOBODY = TxId(bytes(32))


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[SourceRig]:
    """The fakes and what asks them."""
    async with source_rig(tmp_path) as made:
        yield made


async def ask(source: Any) -> None:
    """Asks a source something that it can answer."""
    if hasattr(source, "look_up"):
        await source.look_up([NOBODY])
    else:
        await source.read_tip()


def reply(status: int, body: Any, **headers: str) -> chaos.Step:
    """An answer with a JSON body."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return chaos.raw(Reply(status, body, named).encode(), is_last=False)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize(
    ("step", "fault", "retry_after_s"),
    [
        (chaos.close_silently, Fault.UNREACHABLE, None),
        (chaos.reset, Fault.UNREACHABLE, None),
        (chaos.raw(b"SSH-2.0-OpenSSH_9.2\r\n"), Fault.UNREACHABLE, None),
        (reply(429, "slow down", retry_after="17"), Fault.BUSY, 17.0),
        (reply(503, {"error": "backpressure"}, retry_after="1"), Fault.BUSY, 1.0),
        (reply(503, "down"), Fault.BUSY, None),
        (reply(500, "oops"), Fault.FAILED, None),
        (reply(502, "<html>bad gateway</html>"), Fault.FAILED, None),
        (reply(302, "", location="https://elsewhere.example"), Fault.FAILED, None),
        (reply(401, {"title": "Unauthorized"}), Fault.UNAUTHORIZED, None),
        (reply(403, "blocked by a firewall"), Fault.UNAUTHORIZED, None),
        (reply(200, "<html>hello</html>"), Fault.MALFORMED, None),
        (reply(200, [[[[]]]]), Fault.MALFORMED, None),
        (reply(200, {"txid": 7, "txStatus": None, "header": 3, "height": "x"}), Fault.MALFORMED, None),
        (chaos.answer(200, b"[" * 100_000), Fault.MALFORMED, None),
        (chaos.answer(200, b'"\xff\xfe"'), Fault.MALFORMED, None),
        (chaos.answer(200, b""), Fault.MALFORMED, None),
    ],
    ids=lambda value: str(value) if isinstance(value, Fault) else "",
)
async def test_every_way_to_fail_has_a_name(
    rig: SourceRig, kind: str, step: chaos.Step, fault: Fault, retry_after_s: float | None
) -> None:
    """A source that fails raises one error with a stable reason, is left alone for a while, and is well again after."""
    source = only(rig.remote(kind))
    rig.desk(kind).trick(".*", step, *[step] * 3)
    with pytest.raises(SourceUnavailable) as caught:
        await ask(source)
    assert (caught.value.extra["reason"], caught.value.retry_after_s) == (fault, retry_after_s)
    assert rig.errors(kind, fault) == 1
    assert source.health.pause_s > 0
    assert source.health.last_fault == fault
    assert rig.count("overlayd_chain_source_backoff_seconds", source=kind) > 0
    rig.desk(kind).honest()
    await ask(source)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("step", [chaos.hang, chaos.hang_unread, chaos.trickle(b"HTTP/1.1 200 OK\r\n" * 9)])
async def test_a_slow_source_is_given_up(rig: SourceRig, kind: str, step: chaos.Step, patient_clock: MockClock) -> None:
    """After `timeout`, whatever it does meanwhile; and the time it took is measured."""
    source = only(rig.remote(rig.source(kind, timeout=Duration(3))))
    rig.desk(kind).always(".*", step)
    started = trio.current_time()
    with pytest.raises(SourceUnavailable) as caught:
        await ask(source)
    assert caught.value.extra["reason"] == Fault.TIMEOUT
    assert 3.0 <= trio.current_time() - started < 3.5
    assert rig.count("overlayd_chain_source_seconds_sum", source=kind) >= 3.0


async def test_nobody_listens(rig: SourceRig) -> None:
    """A refused connection is an outage like others."""
    source = only(rig.remote(rig.source("arc", url="http://127.0.0.1:1")))
    with pytest.raises(SourceUnavailable) as caught:
        await ask(source)
    assert caught.value.extra["reason"] == Fault.UNREACHABLE


async def test_a_source_inside_is_called_only_where_the_settings_say_so(rig: SourceRig) -> None:
    """Loopback is refused unless `allow_private` names it, for this source alone."""
    source = only(rig.remote(rig.source("node", allow_private=())))
    with pytest.raises(SourceUnavailable, match="loopback"):
        await ask(source)
    assert rig.node.desk.asked == []
    await ask(only(rig.remote("node")))


async def test_an_answer_without_end_is_cut(rig: SourceRig) -> None:
    """More than `source_answer_bytes` is nonsense, and counted as a limit that was hit."""
    source = only(rig.remote("arc", source_answer_bytes=Size(10_000)))
    rig.arc.desk.trick(".*", chaos.endless_body(200))
    with pytest.raises(SourceUnavailable) as caught:
        await ask(source)
    assert caught.value.extra["reason"] == Fault.MALFORMED
    assert rig.hits("source_answer_bytes") == 1


@pytest.mark.parametrize("kind", ["arc", "arcade"])
async def test_an_answer_about_something_else_is_nonsense(rig: SourceRig, kind: str) -> None:
    """A state of another transaction isn't taken for ours."""
    source, item = only(rig.remote(kind)), rig.spend()
    await submit_one(source, item)
    told = {**await rig.fake(kind).tell(item.tx.txid), "txid": "00" * 32}
    rig.desk(kind).trick(".*/tx/.*", reply(200, told))
    with pytest.raises(SourceUnavailable, match="asked about"):
        await look_up_one(source, item.tx.txid)


def _garbage(status: SourceStatus) -> SourceStatus:
    return msgspec.structs.replace(status, bump=b"\xff\xff\xff")


def _truncated(status: SourceStatus) -> SourceStatus:
    return msgspec.structs.replace(status, bump=(status.bump or b"")[:-5])


@pytest.mark.parametrize("kind", ["arc", "arcade"])
@pytest.mark.parametrize("bend", [_garbage, _truncated], ids=["garbage", "truncated"])
async def test_a_proof_that_cant_be_read_is_the_sources_fault(
    rig: SourceRig, kind: str, bend: Callable[[SourceStatus], SourceStatus]
) -> None:
    """The state stays, as its word; the proof is gone; nothing is raised, and the source is asked on."""
    source, item = only(rig.remote(kind)), rig.spend()
    await submit_one(source, item)
    await rig.mine()
    rig.fake(kind).bend = bend
    assert plain(await look_up_one(source, item.tx.txid)) == (SourceState.MINED, False)
    assert rig.errors(kind, Fault.BAD_PROOF) == 1
    assert source.health.pause_s == 0


@pytest.mark.parametrize("kind", ["whatsonchain", "node"])
@pytest.mark.parametrize(
    "change",
    [
        {"nodes": ["zz"]}, {"nodes": ["00"] * 3}, {"index": -1}, {"index": 1 << 40}, {"nodes": []}, {"nodes": ["*"] * 70},
    ],
    ids=["not hex", "short", "negative", "beyond", "none", "too many"],
)  # fmt: skip
async def test_a_tsc_proof_that_cant_be_one_is_the_sources_fault(
    rig: SourceRig, kind: str, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Places outside of the tree, nodes that aren't hashes: noted, left out, asked on."""
    source, item = only(rig.remote(kind)), rig.spend()
    await submit_one(source, item)
    await rig.mine()
    encode = Reply.encode

    def bend(self: Reply) -> bytes:
        proofs = [one for one in self.body if isinstance(one, dict)] if isinstance(self.body, list) else []
        for one in proofs:
            proof = one.get("result") if isinstance(one.get("result"), dict) else one
            if "nodes" in proof:
                proof.update(change)
        return encode(self)

    monkeypatch.setattr(Reply, "encode", bend)
    assert plain(await look_up_one(source, item.tx.txid)) == (SourceState.MINED, False)
    assert rig.errors(kind, Fault.BAD_PROOF) == 1


async def test_a_node_whose_proof_leads_elsewhere_is_caught_by_its_own_header(rig: SourceRig) -> None:
    """The header comes along with the proof: both must say the same."""
    source, item = only(rig.remote("node")), rig.spend()
    await submit_one(source, item)
    await rig.mine()
    rig.node.bend = lambda status: break_proof(status) if status.bump else status
    assert plain(await look_up_one(source, item.tx.txid)) == (SourceState.MINED, False)
    assert rig.errors("node", Fault.BAD_PROOF) == 1


async def test_a_node_says_that_a_block_was_left_behind(rig: SourceRig) -> None:
    """-1 confirmations: the proof is of a block off its best chain."""
    source, item = only(rig.remote("node")), rig.spend()
    await submit_one(source, item)
    await rig.mine()
    tip = await rig.chain.read_tip()
    rig.node.stale.add(tip.block_hash[::-1].hex())
    status = await look_up_one(source, item.tx.txid)
    assert (status.state, status.bump, status.height) == (SourceState.STALE, None, tip.height)


@pytest.mark.parametrize("code", [-28, -9, -32603, -32601])
async def test_a_nodes_own_trouble_is_no_verdict(rig: SourceRig, code: int) -> None:
    """Starting up, not connected, out of order: the node fails, not the transaction."""
    source, item = only(rig.remote("node")), rig.spend()
    rig.node.fails["sendrawtransaction"] = RpcFailed(code, "Loading block index...")
    assert (await submit_one(source, item)).state is SourceState.NO_ANSWER
    assert rig.errors("node", Fault.FAILED) == 1
    rig.node.fails["getmempoolentry"] = RpcFailed(code, "Loading block index...")
    with pytest.raises(SourceUnavailable):
        await look_up_one(source, item.tx.txid)


async def test_whatsonchains_own_500_is_told_from_its_nodes(rig: SourceRig) -> None:
    """Its node's refusal comes as 400 with the node's words; a 500 without such words is an outage."""
    source, item = only(rig.remote("whatsonchain")), rig.spend()
    rig.woc.desk.trick(".*/tx/raw", reply(500, "Internal Server Error"))
    with pytest.raises(SourceUnavailable, match="500"):
        await submit_one(source, item)
    rig.woc.desk.trick(".*/tx/raw", reply(500, "unexpected response code 500: 64: dust"))
    status = await submit_one(source, item)
    assert (status.state, status.reason) == (SourceState.REJECTED, "64: dust")


@pytest.mark.parametrize("kind", ["arc", "arcade"])
async def test_an_outage_in_the_middle_loses_no_answers(rig: SourceRig, kind: str) -> None:
    """What was answered before is given; the rest has no answer, which isn't 'unknown'."""
    source, items = only(rig.remote(kind, source_requests=1)), [rig.spend() for _ in range(4)]
    for item in items:
        await submit_one(source, item)
    paths = [f".*/{item.tx.txid[::-1].hex()}" for item in items]
    rig.desk(kind).trick(paths[2], reply(503, "later", retry_after="30"))
    found = await source.look_up([item.tx.txid for item in items])
    assert [status.state for status in found] == [SourceState.SEEN] * 2 + [SourceState.NO_ANSWER] * 2
    assert source.health.pause_s > 20


async def test_a_member_that_is_missing_has_no_answer(rig: SourceRig) -> None:
    """Many were asked about and one is left out: nothing is made up for it."""
    items = [rig.spend(), rig.spend()]
    arc, woc = only(rig.remote("arc")), only(rig.remote("whatsonchain"))
    txids = [item.tx.txid for item in items]
    rig.arc.desk.trick("/v1/txs", reply(200, [{"txid": txids[0][::-1].hex(), "txStatus": "RECEIVED"}]))
    statuses = await arc.submit([outgoing(item) for item in items])
    assert [status.state for status in statuses] == [SourceState.HELD, SourceState.NO_ANSWER]
    rig.woc.desk.trick(".*/txs/status", reply(200, [{"txid": txids[1][::-1].hex()}]))
    statuses = await woc.look_up(txids)
    assert [status.state for status in statuses] == [SourceState.NO_ANSWER, SourceState.SEEN]


async def test_tokens_come_from_files_and_are_read_again(rig: SourceRig, tmp_path: Path) -> None:
    """A node's cookie changes when it starts anew: the first 401 makes us look, and the call goes on."""
    file = tmp_path / "cookie"
    file.write_text("__cookie__:first\n")
    source = only(rig.remote(rig.source("node", file=str(file))))
    rig.node.desk.authorization = "Basic X19jb29raWVfXzpmaXJzdA=="
    await ask(source)
    file.write_text("__cookie__:second")
    rig.node.desk.authorization = "Basic X19jb29raWVfXzpzZWNvbmQ="
    await ask(source)
    assert source.health.faults == 0
    file.write_text("__cookie__:second")
    rig.node.desk.authorization = "Basic another"
    with pytest.raises(SourceUnavailable, match="401"):
        await ask(source)
    assert source.health.is_lasting


@pytest.mark.parametrize(
    ("kind", "header"), [("arc", "Bearer s3cret"), ("headers", "Bearer s3cret"), ("whatsonchain", "s3cret")]
)
async def test_each_kind_shows_its_token_in_its_way(rig: SourceRig, tmp_path: Path, kind: str, header: str) -> None:
    """As a bearer, or alone; from a credential of the service manager as well; never in a message."""
    (tmp_path / "token").write_text("s3cret")
    source = rig.source(kind, credential="token")
    asker = only(rig.remote(source, environ={"CREDENTIALS_DIRECTORY": str(tmp_path)}))
    rig.desk(kind).authorization = header
    await ask(asker)
    assert "s3cret" not in repr(asker) + repr(asker._calls) + repr(asker._calls._token)
    with pytest.raises(ConfigInvalid, match="no credential"):
        rig.remote(source)


async def test_a_token_that_cant_be_read_is_a_lasting_fault(rig: SourceRig, tmp_path: Path) -> None:
    """It is told without what stands in the file, and asked for again later."""
    file = tmp_path / "missing"
    source = only(rig.remote(rig.source("arc", file=str(file))))
    with pytest.raises(SourceUnavailable, match="token can't be read"):
        await ask(source)
    assert (source.health.is_lasting, rig.errors("arc", Fault.UNAUTHORIZED)) == (True, 1)
    file.write_text("two\nlines")
    with pytest.raises(SourceUnavailable, match="one line"):
        await ask(source)
    file.write_text("good")
    await ask(source)


async def test_requests_are_counted_by_what_they_ask(rig: SourceRig) -> None:
    """A metric for each source and call, and how long they take."""
    remote = rig.remote("whatsonchain", "headers")
    item = rig.spend()
    await submit_one(remote.pool, item)
    await look_up_one(remote.pool, item.tx.txid)
    await remote.sync.follow_all()
    for source, call in [
        ("whatsonchain", "submit"),
        ("whatsonchain", "look_up"),
        ("headers", "tip"),
        ("headers", "network"),
    ]:
        assert rig.count("overlayd_chain_source_requests_total", source=source, call=call) >= 1, (source, call)
    assert rig.count("overlayd_chain_source_seconds_count", source="headers") >= 2
    assert rig.count("overlayd_chain_source_tip_height", source="headers") == rig.book.tip.height


def test_every_fault_is_explained() -> None:
    """The page lists each word, and no others."""
    text = (Path(__file__).parents[2] / "docs/chain.md").read_text()
    table = text[text.index("| reason |") : text.index("The words are those of")]
    assert re.findall(r"^\| `([a-z_]+)` \|", table, re.MULTILINE) == list(Fault)
