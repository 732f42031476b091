"""Bulk work makes room for single packets, and only for them, and never for long."""

from pathlib import Path

import pytest
import trio
import trio.testing
from publish_rig import HEAD, open_publishing

from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.net.courtesy import RECENT_S, REST_MAX_S, WAIT_MAX_S, Courtesy
from overlayd.net.lane import Lane


async def work(courtesy: Courtesy, seconds: float) -> None:
    """A piece of bulk work."""
    await courtesy.begin()
    began = trio.current_time()
    await trio.sleep(seconds)
    courtesy.end(trio.current_time() - began)


async def test_nothing_rests_for_nobody(autojump_clock: trio.testing.MockClock) -> None:
    """Without single packets, pieces of work follow one another, and run beside one another."""
    courtesy = Courtesy()
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(work, courtesy, 0.004)
    await work(courtesy, 0.004)
    assert trio.current_time() == pytest.approx(0.008)


async def test_work_rests_as_long_as_it_worked(autojump_clock: trio.testing.MockClock) -> None:
    """While packets are published, one piece at a time, each after a rest as long as the one before, so that at least
    half of the time is free."""
    courtesy = Courtesy()
    courtesy.note_packet(0.0)
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(work, courtesy, 0.003)
    assert 4 * 0.003 + 3 * 0.003 <= trio.current_time() <= 0.03


async def test_a_rest_is_short(autojump_clock: trio.testing.MockClock) -> None:
    """However long somebody worked, others begin soon: what they hold may be what he waits for."""
    courtesy = Courtesy()
    courtesy.note_packet(0.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(work, courtesy, 1.0)
        await trio.testing.wait_all_tasks_blocked()
        await courtesy.begin()
        assert trio.current_time() == pytest.approx(WAIT_MAX_S)
        courtesy.end(0.0)
    courtesy.note_packet(trio.current_time())
    before = trio.current_time()
    await courtesy.begin()
    assert trio.current_time() - before <= REST_MAX_S


async def test_who_published_long_ago_is_forgotten(autojump_clock: trio.testing.MockClock) -> None:
    """A moment after the last packet nobody rests any more."""
    courtesy = Courtesy()
    courtesy.note_packet(0.0)
    await trio.sleep(RECENT_S)
    await work(courtesy, 0.005)
    await work(courtesy, 0.005)
    assert trio.current_time() == pytest.approx(RECENT_S + 0.01)


async def test_a_place_in_the_lane_rests(autojump_clock: trio.testing.MockClock) -> None:
    """Requests in the lane rest before they begin and after each wait; one that is cancelled while it rests gives its
    place back."""
    lane = Lane(2, 10, Metrics())
    lane.courtesy.note_packet(0.0)
    place = await lane.enter()
    await trio.sleep(0.006)
    lane.leave(place)
    with trio.move_on_after(0.003) as scope:
        await lane.enter()
    assert scope.cancelled_caught
    assert repr(lane) == "Lane(free=2, beginning=0, returning=0)"
    lane.courtesy.note_packet(trio.current_time())
    place = await lane.enter()
    assert trio.current_time() == pytest.approx(0.012)
    lane.leave(place)


async def test_packets_at_the_door_are_noted(tmp_path: Path) -> None:
    """A plain packet on its way is what bulk work makes room for."""
    post = HEAD + b'Content-Type: application/json\r\nContent-Length: 10\r\n\r\n{"data":1}'
    async with open_publishing(tmp_path, Limits(), is_fast=True) as (edge, _), await edge.connect() as client:
        turnstile = edge.door._turnstile
        assert turnstile is not None
        courtesy = turnstile._quick._courtesy  # type: ignore[union-attr]
        for expected in (False, True):  # the first request of a connection is its task's
            await client.send(post)
            assert (await client.read_answer()).status == 201
            assert courtesy._is_publishing() == expected
