"""Arcade's events: hints that come as they happen, that may be lost, and that say so when they were."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import chaos_sink as chaos
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from source_rig import KEY, SourceRig, only, plain, source_rig, submit_one
from trio.testing import MockClock, wait_all_tasks_blocked

from overlayd.chain.sources.events import EventBox
from overlayd.chain.sources.faults import Fault
from overlayd.chain.sources.remote import source_token
from overlayd.chain.sources.sse import EVENT_BYTES_MAX, SseEvent, SseReader
from overlayd.model.chain_source import (
    EventsMissed,
    SourceEvent,
    SourceState,
    SourceStatus,
    TipMoved,
    TransactionMoved,
)
from overlayd.model.txid import TxId
from overlayd.model.units import Duration

TOKEN = source_token(KEY, "arcade")


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[SourceRig]:
    """The fakes and what asks them."""
    async with source_rig(tmp_path) as made:
        yield made


async def connected(rig: SourceRig, count: int = 2) -> None:
    """Waits until the fake has so many listeners."""
    while len(rig.arcade.listeners) < count:  # noqa: ASYNC110 - the fake has no event for it
        await trio.sleep(0.01)


async def next_of(box: EventBox) -> SourceEvent:
    """The next event, which must come soon."""
    with trio.fail_after(30):
        return await box.receive()


async def test_what_happens_is_told(rig: SourceRig, patient_clock: MockClock) -> None:
    """The present tip at once, then states with proofs, and tips, each on its stream."""
    remote, item = rig.remote("arcade"), rig.spend()
    await submit_one(remote.pool, item)
    assert remote.pool.is_telling
    assert not rig.remote("arc").pool.is_telling
    async with remote.pool.open_events() as box:
        await connected(rig)
        assert await next_of(box) == TipMoved(await rig.chain.read_tip())
        assert sorted(rig.arcade.listeners) == sorted(["tips", TOKEN])
        await rig.arcade.send_status(item.tx.txid)
        event = await next_of(box)
        assert isinstance(event, TransactionMoved)
        assert (plain(event.status), event.status.source) == ((SourceState.SEEN, False), "arcade")
        await rig.mine()
        await rig.arcade.send_tip()
        assert await next_of(box) == TipMoved(await rig.chain.read_tip())
        await rig.arcade.send_status(item.tx.txid)
        event = await next_of(box)
        assert isinstance(event, TransactionMoved)
        assert plain(event.status) == (SourceState.MINED, True)


async def test_after_a_break_it_goes_on_where_it_was(rig: SourceRig, patient_clock: MockClock) -> None:
    """The last id is sent along, and what moved meanwhile is replayed; nothing is said to be missing."""
    remote, item = rig.remote("arcade"), rig.spend()
    await submit_one(remote.pool, item)
    async with remote.pool.open_events() as box:
        await connected(rig)
        await next_of(box)
        await rig.arcade.send_status(item.tx.txid)
        await next_of(box)
        rig.arcade.cut()
        await rig.mine()
        await rig.arcade.send_status(item.tx.txid)  # nobody listens
        await connected(rig)
        events = [await next_of(box), await next_of(box)]
        moved = [event for event in events if isinstance(event, TransactionMoved)]
        assert [plain(event.status) for event in moved] == [(SourceState.MINED, True)]
        ids = [asked.headers.get("last-event-id") for asked in rig.arcade.desk.asked if asked.path == "/events"]
        assert ids == [None, str(rig.arcade.frames[0][0])]
    assert rig.errors("arcade", Fault.UNREACHABLE) >= 1
    assert only(remote).health.pause_s == 0, "who sends no events may answer questions"


async def test_a_break_before_the_first_event_means_that_some_may_be_lost(
    rig: SourceRig, patient_clock: MockClock
) -> None:
    """Without an id nothing is replayed, so polling is asked for."""
    remote = rig.remote("arcade")
    async with remote.pool.open_events() as box:
        await connected(rig)
        await next_of(box)
        rig.arcade.cut()
        await connected(rig)
        with trio.fail_after(60):
            while not isinstance(await box.receive(), EventsMissed):
                pass


async def test_a_gap_is_passed_on(rig: SourceRig, patient_clock: MockClock) -> None:
    """Arcade says that it lost events for us: poll."""
    remote = rig.remote("arcade")
    async with remote.pool.open_events() as box:
        await connected(rig)
        await next_of(box)
        await rig.arcade.send_gap(TOKEN)
        assert await next_of(box) == EventsMissed()


@pytest.mark.parametrize(
    "frame",
    [
        "event: status\ndata: {nonsense\n\n", 'event: status\ndata: {"txid": "zz", "txStatus": "MINED"}\n\n',
        'event: status\ndata: {"txid": 7}\n\n', "event: status\ndata: " + "[" * 5000 + "\n\n",
    ],
)  # fmt: skip
async def test_an_event_that_cant_be_read_counts_as_missed(
    rig: SourceRig, frame: str, patient_clock: MockClock
) -> None:
    """It may have been about anything: noted with the source, and polled for."""
    remote = rig.remote("arcade")
    async with remote.pool.open_events() as box:
        await connected(rig)
        await next_of(box)
        await rig.arcade.send_frame(frame, TOKEN)
        assert await next_of(box) == EventsMissed()
    assert rig.errors("arcade", Fault.MALFORMED) == 1


async def test_forged_proofs_in_events_are_left_out(rig: SourceRig, patient_clock: MockClock) -> None:
    """As in answers: the state is a hint, a proof that isn't one is gone; tips that can't be read are passed over."""
    remote, item = rig.remote("arcade"), rig.spend()
    await submit_one(remote.pool, item)
    async with remote.pool.open_events() as box:
        await connected(rig)
        await next_of(box)
        await rig.arcade.send_frame('data: {"height": "high"}\n\n', "tips")
        await rig.arcade.send_status(item.tx.txid, txStatus="MINED", merklePath="ffff")
        event = await next_of(box)
        assert isinstance(event, TransactionMoved)
        assert plain(event.status) == (SourceState.MINED, False)
    assert rig.errors("arcade", Fault.BAD_PROOF) == 1


async def test_streams_are_opened_less_and_less_often_while_they_fail(rig: SourceRig, patient_clock: MockClock) -> None:
    """Refused, or silent for a minute: again after a pause that grows up to its end."""
    remote = rig.remote("arcade", backoff_max=Duration(60))
    rig.arcade.desk.always("/events", chaos.answer(503, b'{"error":"events stream not enabled"}'))
    async with remote.pool.open_events() as box:
        await next_of(box)
        await trio.sleep(600)
    opened = rig.arcade.desk.count("/events")
    assert 12 <= opened <= 30
    # Open, without a sign of life: given up after a minute, so four to seven times in all.
    assert 4 <= rig.arcade.desk.count(".*/tip/stream") <= 11
    assert rig.errors("arcade", Fault.TIMEOUT) >= 4
    assert rig.errors("arcade", Fault.FAILED) == pytest.approx(opened, abs=1)


async def test_events_that_nobody_reads_are_dropped_and_missed(rig: SourceRig, patient_clock: MockClock) -> None:
    """Memory is bounded: those before the loss are given, then the loss is told, then it goes on."""
    remote, item = rig.remote("arcade", source_events=3), rig.spend()
    await submit_one(remote.pool, item)
    async with remote.pool.open_events() as box:
        await connected(rig)
        await wait_all_tasks_blocked(0.01)
        for _ in range(20):
            await rig.arcade.send_status(item.tx.txid)
        await wait_all_tasks_blocked(0.05)
        kinds = []
        with trio.move_on_after(5):
            while True:
                kinds.append(type(await box.receive()))
    # The pool's buffer and the source's behind it hold three each.
    assert 1 <= kinds.count(EventsMissed) <= 2
    assert 2 <= kinds.count(TransactionMoved) <= 7
    assert rig.hits("source_events") >= 1


async def test_a_box_ends_with_what_is_in_it() -> None:
    """Closed, it gives what it holds and then its end."""
    box = EventBox(2, "test")
    first = TransactionMoved(SourceStatus(TxId(bytes(32)), SourceState.SEEN))
    assert box.offer(first)
    box.close()
    assert await box.receive() == first
    with pytest.raises(trio.EndOfChannel):
        await box.receive()


EVENTS = st.builds(
    SseEvent,
    kind=st.sampled_from(["message", "status", "gap"]),
    data=st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), min_size=1),
    id=st.sampled_from(["1", "22"]),
)


@given(st.lists(EVENTS), st.sampled_from(["\n", "\r\n"]), st.lists(st.integers(1, 50), min_size=1))
def test_events_are_read_however_they_are_cut(events: list[SseEvent], end: str, cuts: list[int]) -> None:
    """Any pieces give the same events; comments, unknown fields and events without data are passed over."""
    text = f": keepalive{end}{end}retry: 7{end}event: nothing{end}{end}"
    for event in events:
        text += f"id: {event.id}{end}event: {event.kind}{end}data: {event.data}{end}{end}: x{end}"
    octets, reader, found, at = text.encode(), SseReader(), [], 0
    while at < len(octets):
        size = cuts[at % len(cuts)]
        found += reader.feed(octets[at : at + size])
        at += size
    assert found == events


def test_events_are_bounded_and_lines_joined() -> None:
    """Several data lines are one text; a sender that never ends a line or an event is refused."""
    assert SseReader().feed(b"data: a\ndata:b\n\n") == [SseEvent("message", "a\nb", "")]
    assert SseReader().feed(b"id: 1\0\ndata: a\n\n")[0].id == ""
    with pytest.raises(ValueError, match="line"):
        SseReader().feed(b"x" * (EVENT_BYTES_MAX + 1))
    with pytest.raises(ValueError, match="event"):
        SseReader().feed((b"data: " + b"x" * 1000 + b"\n") * (EVENT_BYTES_MAX // 1000 + 1))
    assert json.dumps(SseReader().feed(b"event: x\n\n")) == "[]"
