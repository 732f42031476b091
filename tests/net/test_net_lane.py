"""The lane: places, turns, stepping out."""

import pytest
import trio
import trio.testing

from overlayd.model.errors import IntakeBusy
from overlayd.model.metrics import Metrics
from overlayd.net.lane import Lane


def _make_lane(concurrency: int = 1, queue_max: int = 8) -> Lane:
    return Lane(concurrency, queue_max, Metrics())


async def _hold(lane: Lane, log: list[str], name: str, until: trio.Event) -> None:
    place = await lane.enter()
    try:
        log.append(f"{name} in")
        await until.wait()
    finally:
        lane.leave(place)


async def test_one_at_a_time() -> None:
    """With one place, requests run one after the other in the order they came."""
    lane, log, until = _make_lane(), list[str](), trio.Event()
    async with trio.open_nursery() as nursery:
        for name in "abc":
            nursery.start_soon(_hold, lane, log, name, until)
            await trio.testing.wait_all_tasks_blocked()
        assert log == ["a in"]
        until.set()
    assert log == ["a in", "b in", "c in"]
    assert repr(lane) == "Lane(free=1, beginning=0, returning=0)"


async def test_stepping_out_lets_another_in() -> None:
    """A request that waits gives its place away, and comes back before those that haven't begun."""
    lane, log = _make_lane(), list[str]()
    waiting, release_b = trio.Event(), trio.Event()

    async def outside() -> None:
        place = await lane.enter()
        async with lane.step_out():
            log.append("a out")
            await waiting.wait()
        log.append("a back")
        lane.leave(place)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(outside)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(_hold, lane, log, "b", release_b)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(_hold, lane, log, "c", release_b)
        await trio.testing.wait_all_tasks_blocked()
        waiting.set()
        await trio.testing.wait_all_tasks_blocked()
        assert log == ["a out", "b in"]
        release_b.set()
    assert log == ["a out", "b in", "a back", "c in"]


async def test_full_queue_refuses() -> None:
    """More than `other_lane_queue` waiting requests are 503, and counted."""
    metrics = Metrics()
    lane, until = Lane(1, 1, metrics), trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_hold, lane, [], "a", until)
        nursery.start_soon(_hold, lane, [], "b", until)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(IntakeBusy):
            await lane.enter()
        until.set()
    assert metrics.registry.get_sample_value("overlayd_limit_hits_total", {"limit": "other_lane_queue"}) == 1


async def test_cancelled_waiters_leave_no_trace() -> None:
    """Cancelling a request while it waits, steps back in, or has just been given its turn loses no place."""
    lane, until = _make_lane(), trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_hold, lane, [], "a", until)
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(0):
            await lane.enter()
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as inner:
                inner.start_soon(_hold, lane, [], "b", until)
                await trio.testing.wait_all_tasks_blocked()
                until.set()
                scope.cancel()
    assert repr(lane) == "Lane(free=1, beginning=0, returning=0)"


async def test_step_out_without_a_place() -> None:
    """Outside a request, and after the answer has begun, stepping out does nothing."""
    lane = _make_lane()
    async with lane.step_out():
        pass
    place = await lane.enter()
    lane.leave(place)
    lane.leave(place)
    async with lane.step_out():
        pass
    assert repr(lane) == "Lane(free=1, beginning=0, returning=0)"
