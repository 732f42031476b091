"""Places for calls: who waits for whom, and that hanging endpoints can't take them all."""

from functools import partial

import chaos_sink as chaos
import trio
from outbound_rig import OutboundRig, RigMaker
from trio.testing import MockClock, wait_all_tasks_blocked

from overlayd.model.errors import OutboundFailure
from overlayd.outbound import OutboundRequest, Reason


async def call(rig: OutboundRig, url: str, owner: str, done: list[str] | None = None) -> None:
    """A call in an owner's name, whatever comes of it."""
    try:
        async with rig.out.place(url, owner) as place:
            await rig.out.send_placed(OutboundRequest("POST", url), place)
            if done is not None:
                done.append(owner)
    except OutboundFailure:
        pass


async def test_a_host_has_so_many_places(make_rig: RigMaker, patient_clock: MockClock) -> None:
    """Further calls wait their turn, in the order of asking; other hosts aren't held up."""
    rig = make_rig(outbound_requests_per_host=2)
    async with chaos.open_sink() as slow, chaos.open_sink() as quick:
        slow.play(chaos.after(1, chaos.answer(200)))
        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(rig.post, slow.url)
            await wait_all_tasks_blocked(0.01)
            assert rig.count("overlayd_outbound_requests_open") == 2
            await rig.post(quick.url)
            assert len(quick.turns) == 1
        assert sorted({round(turn.at_s - slow.turns[0].at_s) for turn in slow.turns}) == [0, 1, 2]
    assert rig.hits("outbound_requests_per_host") > 0


async def test_the_node_has_so_many_places(make_rig: RigMaker, patient_clock: MockClock) -> None:
    """Over all hosts; who gets none within its time is told so, and nothing was sent."""
    rig = make_rig(outbound_requests=1)
    async with chaos.open_sink() as hanging, chaos.open_sink() as other, trio.open_nursery() as nursery:
        hanging.play(chaos.hang)
        nursery.start_soon(partial(rig.refuse, hanging.url, timeout_s=30.0))
        await wait_all_tasks_blocked(0.01)
        assert (await rig.refuse(other.url, timeout_s=3.0)).reason == Reason.NODE_BUSY
        assert not other.turns
    assert rig.hits("outbound_requests") == 1
    assert rig.count("overlayd_outbound_requests_open") == 0


async def test_an_owner_earns_its_places(make_rig: RigMaker, patient_clock: MockClock) -> None:
    """One call at a time at first, one more with each that went well."""
    rig = make_rig()
    most = 0
    async with chaos.open_sink() as sink:
        sink.play(chaos.after(1, chaos.answer(200)))
        async with trio.open_nursery() as nursery:
            for _ in range(15):
                nursery.start_soon(call, rig, sink.url, "one")
            for expected in (1, 2, 4, 8):
                await wait_all_tasks_blocked(0.01)
                most = int(rig.count("overlayd_outbound_requests_open"))
                assert most == expected
                await trio.sleep(1.001)


async def test_hanging_endpoints_hold_one_place_each(make_rig: RigMaker, patient_clock: MockClock) -> None:
    """Owners whose calls hang don't take the host's places from those whose calls are answered."""
    rig = make_rig(outbound_requests_per_host=20)
    done: list[str] = []
    async with chaos.open_sink() as sink:
        sink.play_at("/hang", chaos.hang)
        async with trio.open_nursery() as nursery:
            for number in range(10):
                for _ in range(10):
                    nursery.start_soon(call, rig, f"{sink.origin}/hang", f"bad-{number}")
            await wait_all_tasks_blocked(0.01)
            assert rig.count("overlayd_outbound_requests_open") == 10
            started = trio.current_time()
            async with trio.open_nursery() as good:
                for _ in range(50):
                    good.start_soon(call, rig, sink.url, "good", done)
            assert len(done) == 50
            assert trio.current_time() - started < 2
            nursery.cancel_scope.cancel()
    assert rig.count("overlayd_outbound_requests_open") == 0


async def test_a_slow_failure_puts_an_owner_back_to_one(make_rig: RigMaker, patient_clock: MockClock) -> None:
    """What it had earned is gone once a call hangs; quick failures leave it alone."""
    rig = make_rig()
    async with chaos.open_sink() as sink:
        for _ in range(5):
            await call(rig, sink.url, "one")
        sink.play(chaos.answer(500))
        await call(rig, sink.url, "one")
        sink.play(chaos.hang)
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(call, rig, sink.url, "one")
            await wait_all_tasks_blocked(0.01)
            assert rig.count("overlayd_outbound_requests_open") == 6
            await trio.sleep(20)  # past the timeout of all six
            assert rig.count("overlayd_outbound_requests_open") == 1
            nursery.cancel_scope.cancel()


async def test_who_is_cancelled_while_waiting_leaves_no_trace(make_rig: RigMaker, patient_clock: MockClock) -> None:
    """Also when the place was given in the very moment of the cancellation."""
    rig = make_rig(outbound_requests_per_host=1)
    async with chaos.open_sink() as sink:
        sink.play(chaos.hang)
        holding, waiting = trio.CancelScope(), trio.CancelScope()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_call_within, holding, rig, sink.url)
            await wait_all_tasks_blocked(0.01)
            nursery.start_soon(_call_within, waiting, rig, sink.url)
            await wait_all_tasks_blocked(0.01)
            holding.cancel()
            await trio.lowlevel.checkpoint()
            waiting.cancel()
        assert rig.count("overlayd_outbound_requests_open") == 0
        sink.play(chaos.answer(200))
        assert (await rig.post(sink.url)).status == 200
    assert "hosts=0" in repr(rig.out)


async def _call_within(scope: trio.CancelScope, rig: OutboundRig, url: str) -> None:
    with scope:
        await call(rig, url, "")
