"""Limits of the intake, the groups and the readers: what they do, and that hitting them is counted."""

import sqlite3
import threading
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from storage_rig import Rig, append

from overlayd.model.errors import IntakeBusy
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.model.units import Duration, Size
from overlayd.storage.intake import Intake, Ticket


class Weight:
    """A job that is nothing but its weight."""

    def __init__(self, packets: int, size: int) -> None:
        self.packets, self.bytes = packets, size
        self.ticket: Ticket[Any] = Ticket()


class Desk:
    """An intake and what was counted about it."""

    def __init__(self, **limits: Any) -> None:
        self.metrics = Metrics()
        self.intake = Intake(msgspec.structs.replace(Limits(), **limits), self.metrics)

    def hits(self, limit: str) -> float:
        return self.metrics.registry.get_sample_value("overlayd_limit_hits_total", {"limit": limit}) or 0.0


@pytest.mark.parametrize(("limit", "packets", "size"), [("group_packets", 5, 1 << 20), ("group_bytes", 100, 50)])
async def test_groups_are_bounded(limit: str, packets: int, size: int) -> None:
    """A group takes what fits, and what is left for the next one is a hit; a group that takes all is none."""
    desk = Desk()
    for _ in range(7):
        await desk.intake.put(Weight(1, 10))
    assert len(desk.intake.take(packets, size)) == 5
    assert desk.hits(limit) == 1
    assert len(desk.intake.take(packets, size)) == 2
    assert desk.hits(limit) == 1


@pytest.mark.parametrize("limit", ["intake_packets", "intake_bytes"])
async def test_a_full_intake_makes_senders_wait(limit: str, autojump_clock: trio.testing.MockClock) -> None:
    """Who finds no room waits for `admit_timeout`; who can't wait is told so at once, and counts nothing."""
    bound = {"intake_packets": 3} if limit == "intake_packets" else {"intake_bytes": Size(30)}
    desk = Desk(admit_timeout=Duration(5), **bound)
    for _ in range(3):
        assert desk.intake.try_put(Weight(1, 10))
    assert not desk.intake.try_put(Weight(1, 10))
    assert desk.hits(limit) == desk.hits("admit_timeout") == 0
    with pytest.raises(IntakeBusy):
        await desk.intake.put(Weight(1, 10))
    assert trio.current_time() == 5
    assert desk.hits(limit) == desk.hits("admit_timeout") == 1
    desk.intake.take(1, 10)
    assert desk.intake.try_put(Weight(1, 10))


async def test_nobody_passes_those_who_wait() -> None:
    """While a large job waits for room, a small one that would fit isn't let in before it."""
    desk = Desk(intake_packets=10)
    assert desk.intake.try_put(Weight(8, 10))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.intake.put, Weight(5, 10))
        await trio.testing.wait_all_tasks_blocked()
        assert not desk.intake.try_put(Weight(1, 10))
        assert [job.packets for job in desk.intake.take(100, 1000)] == [8]
    assert [job.packets for job in desk.intake.take(100, 1000)] == [5]
    desk.intake.close()
    assert not desk.intake.try_put(Weight(1, 10))


async def test_readers_are_waited_for(rig: Rig) -> None:
    """A read that finds every connection busy waits for one, and that is counted."""
    rig.set_limits(readers=1)
    begun, go_on = trio.Event(), threading.Event()
    token = trio.lowlevel.current_trio_token()

    def hold(connection: sqlite3.Connection) -> None:
        token.run_sync_soon(begun.set)
        go_on.wait(5)

    async with rig.open() as log:
        await append(log, "s")
        before = rig.limit_hits("readers")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(log.read, hold)
            await begun.wait()
            assert rig.limit_hits("readers") == before
            nursery.start_soon(log.read, lambda connection: None)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert rig.limit_hits("readers") == before + 1
            go_on.set()
