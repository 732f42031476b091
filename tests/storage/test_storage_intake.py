"""The queue before the writer: bounded in packets and bytes, first come first served."""

from typing import Any

import pytest
import trio
import trio.testing

from overlayd.model.errors import CommitFailed, IntakeBusy, ShuttingDown
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.model.units import Duration, Size
from overlayd.storage.intake import Intake, Job, Ticket


class Load:
    """A job that only weighs something."""

    def __init__(self, packets: int = 1, size: int = 1, name: str = "") -> None:
        self.packets = packets
        self.bytes = size
        self.name = name
        self.ticket: Ticket[Any] = Ticket()


def names(jobs: list[Job]) -> list[str]:
    """Of loads."""
    return [job.name for job in jobs]  # type: ignore[attr-defined]


@pytest.fixture
def metrics() -> Metrics:
    """Of one test."""
    return Metrics()


@pytest.fixture
def intake(metrics: Metrics) -> Intake:
    """Room for 10 packets and 100 bytes, one second's patience."""
    return Intake(Limits(intake_packets=10, intake_bytes=Size(100), admit_timeout=Duration(1)), metrics)


@pytest.mark.parametrize(("packets", "size", "limit"), [(6, 1, "intake_packets"), (1, 60, "intake_bytes")])
async def test_full_intake_refuses_after_a_while(
    intake: Intake, metrics: Metrics, autojump_clock: trio.testing.MockClock, packets: int, size: int, limit: str
) -> None:
    """After `admit_timeout`, not before, by either bound; the sender is told when to come again."""
    await intake.put(Load(packets, size))
    started = trio.current_time()
    with pytest.raises(IntakeBusy) as caught:
        await intake.put(Load(packets, size))
    assert trio.current_time() - started == pytest.approx(1)
    assert caught.value.retry_after_s
    assert metrics.registry.get_sample_value("overlayd_limit_hits_total", {"limit": limit}) == 1
    assert (intake.packets, intake.bytes) == (packets, size)


async def test_waits_for_room_in_order(intake: Intake, autojump_clock: trio.testing.MockClock) -> None:
    """A small job doesn't overtake a large one that waits."""
    await intake.put(Load(8, name="first"))
    order = []

    async def put(name: str, packets: int) -> None:
        await intake.put(Load(packets, name=name))
        order.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(put, "large", 7)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(put, "small", 1)
        await trio.testing.wait_all_tasks_blocked()
        assert order == []
        assert names(intake.take(100, 1000)) == ["first"]
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(order) == ["large", "small"]
    assert names(intake.take(100, 1000)) == ["large", "small"]


async def test_job_larger_than_the_intake(intake: Intake) -> None:
    """It is let in when nothing else waits, and taken alone."""
    await intake.put(Load(50, 500))
    assert len(intake.take(10, 10)) == 1


async def test_take_is_bounded(intake: Intake) -> None:
    """Up to the bounds, at least one, in order."""
    for number in range(6):
        await intake.put(Load(1, 10, name=str(number)))
    assert names(intake.take(2, 1000)) == ["0", "1"]
    assert names(intake.take(100, 25)) == ["2", "3"]
    assert names(intake.take(0, 0)) == ["4"]
    assert (intake.packets, intake.bytes, len(intake)) == (1, 10, 1)


async def test_cancelled_waiter_leaves_no_trace(intake: Intake) -> None:
    """Who gives up before there was room isn't judged; who gives up later is."""
    await intake.put(Load(10))
    with trio.move_on_after(0):
        await intake.put(Load(name="gone"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(intake.put, Load(name="admitted"))
        await trio.testing.wait_all_tasks_blocked()
        intake.take(100, 1000)
        nursery.cancel_scope.cancel()
    assert names(intake.take(100, 1000)) == ["admitted"]


async def test_closing(intake: Intake) -> None:
    """Those who wait and those who come are refused with the reason; what is queued stays."""
    await intake.put(Load(10, name="queued"))
    caught = []

    async def put() -> None:
        try:
            await intake.put(Load())
        except CommitFailed as err:
            caught.append(err)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(put)
        nursery.start_soon(put)
        await trio.testing.wait_all_tasks_blocked()
        intake.close(CommitFailed("broken"))
    assert len({id(err) for err in caught}) == 2
    await put()
    with pytest.raises(CommitFailed):
        intake.put_nowait(Load())
    await intake.wait_arrival()
    assert names(intake.take(100, 1000)) == ["queued"]
    intake.close()
    with pytest.raises(ShuttingDown):
        await intake.put(Load())


async def test_wait_arrival_is_level_triggered(intake: Intake) -> None:
    """It returns at once while there is something, and waits while there isn't."""
    await intake.put(Load())
    await intake.wait_arrival()
    intake.take(10, 10)
    with trio.move_on_after(0) as scope:
        await intake.wait_arrival()
    assert scope.cancelled_caught
    async with trio.open_nursery() as nursery:
        nursery.start_soon(intake.wait_arrival)
        await trio.testing.wait_all_tasks_blocked()
        intake.put_nowait(Load())


async def test_tickets() -> None:
    """Answered once; many may wait."""
    ticket: Ticket[int] = Ticket()
    assert not ticket.is_settled
    ticket.settle(7)
    assert [await ticket.wait(), await ticket.wait()] == [7, 7]
    failed: Ticket[int] = Ticket()
    failed.fail(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        await failed.wait()
    assert "packets=0" in repr(Intake(Limits(), Metrics()))
