"""Several sources as one: who is asked when, what is made of different answers, and what a lie is worth."""

import random
from collections.abc import AsyncIterator, Sequence
from itertools import permutations
from pathlib import Path

import chaos_sink as chaos
import pytest
import trio
from chain_rig import FileStore, book_of, outgoing
from fakes.fake_desk import Reply, break_proof
from hypothesis import given
from hypothesis import strategies as st
from source_rig import SourceRig, look_up_one, only, plain, source_rig, submit_one
from trio.testing import MockClock, wait_all_tasks_blocked

from overlayd.bsv.header import parse_header
from overlayd.bsv.network import MAINNET
from overlayd.chain.headers import Followed
from overlayd.chain.sources.abilities import Ability
from overlayd.chain.sources.faults import Fault
from overlayd.chain.sources.health import SourceHealth, SourceMetrics
from overlayd.chain.sources.pace import Pace
from overlayd.chain.sources.pool import best_of
from overlayd.chain.sources.settings import AskingSettings
from overlayd.model.chain_source import SourceState, SourceStatus
from overlayd.model.errors import ConfigInvalid, SourceUnavailable
from overlayd.model.metrics import Metrics
from overlayd.model.txid import TxId
from overlayd.model.units import Duration

BROADCASTERS = ("arc", "arcade", "whatsonchain", "node")
TXID = TxId(bytes(31) + b"\x01")


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[SourceRig]:
    """The fakes and what asks them."""
    async with source_rig(tmp_path) as made:
        yield made


@pytest.mark.parametrize(("dead", "alive"), list(permutations(BROADCASTERS, 2)))
async def test_the_next_is_asked_when_one_fails(rig: SourceRig, dead: str, alive: str) -> None:
    """Broadcast, look-up and proof come from the one that works; the other isn't asked again for a while."""
    remote, item = rig.remote(dead, alive), rig.spend()
    rig.desk(dead).always(".*", chaos.reset)
    assert (await submit_one(remote.pool, item)).source == alive
    asked = len(rig.desk(dead).asked)
    await rig.mine()
    status = await look_up_one(remote.pool, item.tx.txid)
    assert (plain(status), status.source) == ((SourceState.MINED, True), alive)
    assert len(rig.desk(dead).asked) == asked
    assert [report.state for report in remote.pool.report()] == ["backing_off", "ok"]
    assert rig.errors(dead, Fault.UNREACHABLE) == 1


async def test_a_source_that_is_well_again_is_asked_again(rig: SourceRig, patient_clock: MockClock) -> None:
    """After its pause; the pauses grow with each failure in a row, are never quite the same, and have an end."""
    remote, item = rig.remote("arc", "node", backoff_max=Duration(60)), rig.spend()
    await submit_one(remote.pool, item)
    health = remote.pool._sources[0].health
    rig.arc.desk.always(".*", chaos.reset)
    pauses = []
    for _ in range(10):
        await look_up_one(remote.pool, item.tx.txid)
        pauses.append(health.pause_s)
        await trio.sleep(health.pause_s)
    for number, pause_s in enumerate(pauses):
        longest_s = min(2.0**number, 60.0)
        assert longest_s / 2 <= pause_s <= longest_s, pauses
    assert len(set(pauses)) == 10
    rig.arc.desk.honest()
    before = len(rig.arc.desk.asked)
    await look_up_one(remote.pool, item.tx.txid)
    assert len(rig.arc.desk.asked) > before
    assert (health.pause_s, health.last_fault) == (0.0, "")


@pytest.mark.parametrize("status", [429, 503])
async def test_a_source_is_left_alone_for_as_long_as_it_asks(
    rig: SourceRig, status: int, patient_clock: MockClock
) -> None:
    """Retry-After counts, up to `backoff_max`; what asks for more hits a limit."""
    remote = rig.remote("arc", "node", backoff_max=Duration(100))
    for asked_s, waited_s in [("40", 40.0), ("99999", 100.0)]:
        rig.arc.desk.trick(".*", chaos.raw(Reply(status, {}, {"retry-after": asked_s}).encode(), is_last=False))
        await look_up_one(remote.pool, TXID)
        health = remote.pool._sources[0].health
        assert health.pause_s == pytest.approx(waited_s, abs=0.5)
        asked = len(rig.arc.desk.asked)
        await trio.sleep(waited_s - 1)
        await look_up_one(remote.pool, TXID)
        assert len(rig.arc.desk.asked) == asked
        await trio.sleep(1.5)
        await look_up_one(remote.pool, TXID)
        assert len(rig.arc.desk.asked) == asked + 1
    assert rig.hits("backoff_max") == 1


async def test_an_outage_of_all_is_an_error_with_a_time(rig: SourceRig) -> None:
    """Nobody could be asked: that isn't 'unknown', and it says when to come back."""
    remote, item = rig.remote("arc", "node"), rig.spend()
    for kind in ("arc", "node"):
        rig.desk(kind).always(".*", chaos.reset)
    for ask in (remote.pool.look_up([TXID]), remote.pool.submit([outgoing(item)]), remote.pool.read_policy()):
        with pytest.raises(SourceUnavailable, match="no source can be asked") as caught:
            await ask
        assert caught.value.retryable
        assert caught.value.retry_after_s
        assert "arc: " in caught.value.detail
    with pytest.raises(SourceUnavailable, match="configured"):
        await rig.remote("headers").pool.look_up([TXID])


async def test_seen_without_a_proof_asks_the_next(rig: SourceRig) -> None:
    """A source that lags says SEEN; the next one has the proof: the proof is the answer."""
    remote, item = rig.remote("arc", "whatsonchain", "node"), rig.spend()
    await submit_one(remote.pool, item)
    await rig.mine()
    rig.arc.says[item.tx.txid] = "SEEN_ON_NETWORK"
    status = await look_up_one(remote.pool, item.tx.txid)
    assert (plain(status), status.source) == ((SourceState.MINED, True), "whatsonchain")
    assert rig.node.desk.count("/") == 0, "the word of the first proof is enough"


async def test_mined_without_a_proof_asks_the_next(rig: SourceRig) -> None:
    """The word alone is worth nothing."""
    remote, item = rig.remote("arc", "node"), rig.spend()
    await submit_one(remote.pool, item)
    await rig.mine()
    rig.arc.bend = lambda status: status if status.bump is None else _without_bump(status)
    assert plain(await look_up_one(remote.pool, item.tx.txid)) == (SourceState.MINED, True)


def _without_bump(status: SourceStatus) -> SourceStatus:
    return SourceStatus(status.txid, status.state, block_hash=status.block_hash, height=status.height)


@pytest.mark.parametrize("liar", ["arc", "arcade", "whatsonchain"])
async def test_a_proof_to_a_block_that_there_isnt_is_held_against_its_source(rig: SourceRig, liar: str) -> None:
    """Well formed, and to another root than the block's: noted, dropped, and the next one asked."""
    remote, item = rig.remote(liar, "node"), rig.spend()
    await submit_one(remote.pool, item)
    await rig.mine()
    await rig.mine(15)
    rig.fake(liar).bend = lambda status: break_proof(status) if status.bump else status
    status = await look_up_one(remote.pool, item.tx.txid)
    assert (plain(status), status.source) == ((SourceState.MINED, True), "node")
    assert rig.errors(liar, Fault.BAD_PROOF) == 1
    rig.node.desk.always(".*", chaos.reset)
    assert plain(await look_up_one(remote.pool, item.tx.txid)) == (SourceState.MINED, False)


async def test_a_proof_to_a_new_block_makes_us_look_for_headers(rig: SourceRig) -> None:
    """A block that our headers don't have yet: the proof is kept, all sources are asked, and headers soon after."""
    remote, item = rig.remote("arc", "node"), rig.spend()
    await submit_one(remote.pool, item)
    await rig.chain.mine()
    status = await look_up_one(remote.pool, item.tx.txid)
    assert plain(status) == (SourceState.MINED, True)
    assert rig.node.desk.count("/") >= 1
    assert remote.sync.nudges >= 1
    assert rig.errors("arc", Fault.BAD_PROOF) == 0


async def test_a_refusal_by_one_is_offered_to_the_next(rig: SourceRig) -> None:
    """What one refuses another may take; the refusal stays beside as a reason."""
    remote, item = rig.remote("arc", "node"), rig.spend()
    problem = {"title": "Fee too low", "status": 465, "detail": "The fees are too low", "extraInfo": None}
    rig.arc.desk.trick("/v1/tx", chaos.raw(Reply(465, problem).encode(), is_last=False))
    status = await submit_one(remote.pool, item)
    assert (status.state, status.source) == (SourceState.SEEN, "node")
    assert status.reason.startswith("arc: 465: Fee too low")


async def test_a_refusal_by_all_is_a_refusal(rig: SourceRig) -> None:
    """With the first one's words; no source is blamed for it."""
    remote, item = rig.remote("arc", "arcade", "whatsonchain", "node"), rig.spend(rate=0)
    status = await submit_one(remote.pool, item)
    assert (status.state, status.source) == (SourceState.REJECTED, "arc")
    assert [report.faults for report in remote.pool.report()] == [0] * 4


async def test_rejected_later_doesnt_outrank_a_proof(rig: SourceRig) -> None:
    """ARC may call a transaction REJECTED that has been mined for long."""
    remote, item = rig.remote("arc", "node"), rig.spend()
    await submit_one(remote.pool, item)
    await rig.mine()
    rig.arc.says[item.tx.txid] = "REJECTED"
    status = await look_up_one(remote.pool, item.tx.txid)
    assert plain(status) == (SourceState.MINED, True)


async def test_a_batch_is_shared_out(rig: SourceRig) -> None:
    """More than one source takes in one call, the middle of it failing: everything is answered, in order."""
    remote, items = rig.remote("whatsonchain", "node"), [rig.spend() for _ in range(45)]
    statuses = await rig.remote("node").pool.submit([outgoing(item) for item in items])
    assert {status.state for status in statuses} == {SourceState.SEEN}
    await rig.mine()
    rig.woc.desk.trick(".*/txs/status", rig.woc.desk.go_on, chaos.reset, chaos.reset)
    found = await remote.pool.look_up([item.tx.txid for item in items])
    assert [status.txid for status in found] == [item.tx.txid for item in items]
    assert all(plain(status) == (SourceState.MINED, True) for status in found)
    assert [status.source for status in found] == ["whatsonchain"] * 20 + ["node"] * 25


async def test_bytes_are_checked(rig: SourceRig) -> None:
    """A source that gives other bytes than asked for is passed over."""
    remote, item = rig.remote("whatsonchain", "node"), rig.spend()
    await submit_one(remote.pool, item)
    rig.woc.desk.trick(".*/hex", chaos.answer(200, rig.spend().tx.raw.hex().encode()))
    assert await remote.pool.read_raw([item.tx.txid, TXID]) == [item.tx.raw, None]
    assert rig.errors("whatsonchain", Fault.MALFORMED) == 1
    assert await rig.remote("arc").pool.read_raw([TXID]) == [None]
    for kind in ("whatsonchain", "node"):
        rig.desk(kind).always(".*", chaos.reset)
    with pytest.raises(SourceUnavailable):
        await rig.remote("whatsonchain", "node").pool.read_raw([TXID])


async def test_a_policy_comes_from_whoever_has_one(rig: SourceRig) -> None:
    """In the order of the settings."""
    remote = rig.remote("whatsonchain", "node", "arc")
    assert (await remote.pool.read_policy()).sat_per_kb == 50
    rig.node.desk.always(".*", chaos.reset)
    assert (await rig.remote("whatsonchain", "node", "arc").pool.read_policy()).sat_per_kb == 1


async def test_a_source_of_another_network_is_never_used(rig: SourceRig, patient_clock: MockClock) -> None:
    """Asked once before anything else; refused for long, and looked at again after that."""
    remote = rig.remote("node", "whatsonchain", backoff_max=Duration(100))
    remote.pool._network = MAINNET
    with pytest.raises(SourceUnavailable, match="another network than mainnet"):
        await look_up_one(remote.pool, TXID)
    assert [report.state for report in remote.pool.report()] == ["refused", "refused"]
    assert (rig.errors("node", Fault.WRONG_NETWORK), rig.errors("whatsonchain", Fault.WRONG_NETWORK)) == (1, 1)
    assert rig.node.desk.count("/") == rig.woc.desk.count(".*") == 1
    remote.pool._network = rig.book._chain._network
    await trio.sleep(100)
    assert (await look_up_one(remote.pool, TXID)).state is SourceState.UNKNOWN


async def test_the_rate_of_a_source_is_kept(rig: SourceRig, patient_clock: MockClock) -> None:
    """Three a second, evenly: the source never has to say 429, and twenty are asked about in one request."""
    rig.woc.rate = 3
    remote, items = rig.remote(rig.source("whatsonchain", rate=3.0), source_wait=Duration(60)), []
    for _ in range(12):
        items.append(rig.spend())
    await rig.chain.submit([outgoing(item) for item in items])
    started, asked = trio.current_time(), len(rig.woc.desk.asked)
    await rig.mine()
    found = await remote.pool.look_up([item.tx.txid for item in items] * 3)
    requests = len(rig.woc.desk.asked) - asked
    assert all(status.bump for status in found)
    assert rig.woc.refused == 0
    assert requests == 1 + 2 + 36  # the network, two lists of states, a proof each
    assert trio.current_time() - started >= (requests - 1) / 3.0 - 0.1


async def test_a_source_whose_turn_is_far_isnt_waited_for(rig: SourceRig, patient_clock: MockClock) -> None:
    """Past `source_wait` the next one is asked, which is counted."""
    source = rig.source("arc", rate=0.5)
    remote = rig.remote(source, "node", source_wait=Duration(3))
    for _ in range(2):
        await look_up_one(remote.pool, TXID)
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(look_up_one, remote.pool, TXID)
    assert rig.hits("source_wait") >= 1
    assert rig.errors("arc", Fault.BUSY) >= 1


async def test_only_so_many_requests_are_under_way(rig: SourceRig, patient_clock: MockClock) -> None:
    """`source_requests` bounds what one source gets at once."""
    remote = rig.remote("arc", source_requests=3)
    most = now = 0

    async def slow(turn: chaos.Turn) -> None:
        nonlocal most, now
        now += 1
        most = max(most, now)
        await trio.sleep(0.5)
        now -= 1
        await chaos.answer(404, b'{"status": 404, "title": "Not found"}')(turn)

    rig.arc.desk.always(".*", slow)
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(remote.pool.look_up, [TxId(bytes((number,)) * 32) for number in range(9)])
    assert most == 3


async def test_after_downtime_everything_pending_is_found_out(
    rig: SourceRig, tmp_path: Path, patient_clock: MockClock
) -> None:
    """Blocks, a reorg and a double spend went by while nobody asked: one poll tells it all, with nothing called back."""
    items = [rig.spend() for _ in range(5)]
    await rig.remote("arc", callback_url="http://127.0.0.1:9").pool.submit([outgoing(item) for item in items[:4]])
    await rig.chain.mine()
    await rig.chain.reorg(1, transactions="remine")
    await rig.chain.mine(3)
    remote = rig.remote("arc", "node", book=await book_of(FileStore(tmp_path / "late.sqlite3")))
    await remote.sync.follow_all()
    found = await remote.pool.look_up([item.tx.txid for item in items])
    assert [plain(status) for status in found] == [(SourceState.MINED, True)] * 4 + [(SourceState.UNKNOWN, False)]
    book = remote.sync._book
    for status in found[:4]:
        assert (await book.read_at(status.height or 0)) is not None
        assert book.depth_of(status.height or 0) == 4


STATES = [state for state in SourceState if state is not SourceState.NO_ANSWER]


def _status(state: SourceState, bump: bool, reason: str) -> SourceStatus:
    is_proven = bump and state is SourceState.MINED
    return SourceStatus(TXID, state, reason, bump=b"x" if is_proven else None, source="one")


@given(st.lists(st.builds(_status, st.sampled_from(STATES), st.booleans(), st.sampled_from(["", "why"])), min_size=1))
def test_the_best_of_many_answers_doesnt_depend_on_who_speaks_first(statuses: Sequence[SourceStatus]) -> None:
    """Its state is the best of all, a proof is never lost to a word, and a complaint is kept beside a mere word."""

    forth, back = best_of(statuses), best_of(list(reversed(statuses)))
    assert (forth.state, forth.bump) == (back.state, back.bump)
    if any(status.state is SourceState.MINED and status.bump for status in statuses):
        assert plain(forth) == (SourceState.MINED, True)
    complaints = [status for status in statuses if status.state is SourceState.REJECTED and status.reason]
    if complaints and forth.bump is None:
        assert forth.reason


async def test_pauses_are_told_apart_from_counts() -> None:
    """A fault at one thing doesn't keep a source from being asked about others."""
    metrics = Metrics()
    health = SourceHealth("one", AskingSettings(), SourceMetrics(metrics), random.Random(1))
    health.count(Fault.BAD_PROOF, "no")
    assert (health.pause_s, health.faults, health.last_fault) == (0.0, 1, "bad_proof")
    health.note_fault(Fault.WRONG_NETWORK, "no")
    assert health.is_lasting
    assert 150 <= health.pause_s <= 300
    health.note_good()
    assert (health.pause_s, health.is_lasting, health.last_detail) == (0.0, False, "")
    assert metrics.registry.get_sample_value("overlayd_chain_source_backoff_seconds", {"source": "one"}) == 0.0


async def test_requests_are_spread_evenly(patient_clock: MockClock) -> None:
    """Ten at once at five a second end 1.8 seconds later; whoever comes when it is full is told how long it takes."""
    full = []
    pace = Pace("one", 5.0, wait_max_s=1.7, on_full=lambda: full.append(1))
    times, refused = [], []

    async def take() -> None:
        try:
            await pace.take()
            times.append(trio.current_time())
        except SourceUnavailable as err:
            refused.append(err.retry_after_s)

    async with trio.open_nursery() as nursery:
        for _ in range(12):
            nursery.start_soon(take)
    assert [round(time - times[0], 3) for time in times] == [round(0.2 * number, 3) for number in range(9)]
    assert len(refused) == len(full) == 3
    assert all(wait_s and wait_s > 1.7 for wait_s in refused)


async def test_headers_come_from_all_sources_and_the_most_work_counts(rig: SourceRig, tmp_path: Path) -> None:
    """One lags, one lies, one is ahead: ours is the best that is true, and each is measured."""
    seen: list[Followed] = []

    async def note(followed: Followed) -> None:
        seen.append(followed)
        await trio.lowlevel.checkpoint()

    remote = rig.remote(
        "arcade", "headers", "node", book=await book_of(FileStore(tmp_path / "own.sqlite3")), on_followed=note
    )
    tip = await rig.chain.read_tip()
    bad = bytearray((await rig.chain.read_headers(1, 1))[0])
    bad[73] ^= 1
    rig.arcade.desk.trick(".*/headers", rig.arcade.desk.go_on, chaos.answer(200, bytes(bad)))
    await remote.sync.follow_all()
    assert remote.sync._book.tip.hash == tip.block_hash
    assert rig.errors("arcade", Fault.BAD_HEADERS) == 1
    assert [followed.added for followed in seen] == [tip.height]
    assert remote.sync.is_synced
    assert rig.count("overlayd_chain_source_tip_height", source="node") == tip.height
    assert parse_header((await rig.chain.read_headers(tip.height, 1))[0]).hash == tip.block_hash


async def test_headers_are_asked_for_now_and_then_and_when_nudged(
    rig: SourceRig, tmp_path: Path, patient_clock: MockClock
) -> None:
    """At the interval, or at once when somebody heard of a block; a source in trouble is passed over."""
    remote = rig.remote("node", book=await book_of(FileStore(tmp_path / "own.sqlite3")), header_interval=Duration(30))
    sync, book = remote.sync, remote.sync._book
    assert "no source" in sync.describe_staleness()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sync.run)
        await book.wait_moved(book.start)
        await wait_all_tasks_blocked(0.01)
        started = trio.current_time()
        for nudged, within_s in [(False, 31), (True, 1)]:
            before = book.tip
            await rig.chain.mine()
            if nudged:
                sync.nudge()
            await book.wait_moved(before)
            assert trio.current_time() - started <= within_s
            started = trio.current_time()
        nursery.cancel_scope.cancel()
    rig.clock.us = (book.tip.time_s + 60) * 1_000_000
    assert sync.describe_staleness() == ""
    rig.clock.us = (book.tip.time_s + 7201) * 1_000_000
    assert "120 minutes old" in sync.describe_staleness()


async def test_a_source_that_hangs_holds_up_no_other(rig: SourceRig, tmp_path: Path, patient_clock: MockClock) -> None:
    """Each is followed at its own speed: blocks go on coming from the one that answers."""
    remote = rig.remote(
        rig.source("headers", timeout=Duration(600)), "node", book=await book_of(FileStore(tmp_path / "own.sqlite3")),
        header_interval=Duration(5),
    )  # fmt: skip
    rig.headers.desk.always(".*", chaos.hang)
    book = remote.sync._book
    async with trio.open_nursery() as nursery:
        nursery.start_soon(remote.sync.run)
        await book.wait_moved(book.start)
        started = trio.current_time()
        for _ in range(3):
            before = book.tip
            await rig.chain.mine()
            await book.wait_moved(before)
        assert trio.current_time() - started < 20
        nursery.cancel_scope.cancel()


async def test_a_source_cant_be_made_without_what_it_needs(rig: SourceRig) -> None:
    """WhatsOnChain has no public regtest."""
    with pytest.raises(ConfigInvalid, match="no regtest"):
        rig.remote(rig.source("whatsonchain", url=""))


async def test_reports_name_what_is_wrong(rig: SourceRig) -> None:
    """For people: state, fault, words, and how long it is left alone."""
    remote = rig.remote("arc", "headers")
    rig.arc.desk.always(".*", chaos.answer(500, b"database is locked"))
    with pytest.raises(SourceUnavailable):
        await look_up_one(remote.pool, TXID)
    report, other = remote.pool.report()
    assert (report.name, report.state, report.fault, report.faults) == ("arc", "backing_off", "failed", 1)
    assert "database is locked" in report.detail
    assert report.pause_s > 0
    assert (other.state, other.abilities) == ("ok", ("headers",))
    assert set(report.abilities) == {Ability.SUBMIT, Ability.STATUS, Ability.PROOFS, Ability.POLICY}
    assert only(rig.remote("arc")).abilities == set(report.abilities)
