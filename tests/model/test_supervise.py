"""Supervised tasks and bounded channels."""

import itertools
import random

import pytest
import trio
import trio.testing

from overlayd.model.channels import bounded
from overlayd.model.supervise import BACKOFF_MAX_S, supervise


async def test_a_task_that_returns_is_done():
    """A task that ends by itself isn't started again."""
    runs = []

    async def run() -> None:
        runs.append(trio.current_time())
        await trio.lowlevel.checkpoint()

    await supervise("once", run, chance=random.Random(1))
    assert len(runs) == 1


async def test_a_crashing_task_comes_back_later_and_later(autojump_clock: trio.testing.MockClock):
    """Crashes are counted and followed by growing, jittered pauses up to a bound."""
    starts: list[float] = []
    crashes: list[str] = []

    async def run() -> None:
        starts.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        if len(starts) < 10:
            raise ValueError("again")

    await supervise("shaky", run, chance=random.Random(1), on_crash=crashes.append)
    pauses = [later - earlier for earlier, later in itertools.pairwise(starts)]
    assert crashes == ["shaky"] * 9
    assert 0.25 <= pauses[0] <= 0.5
    assert all(pause <= BACKOFF_MAX_S for pause in pauses)
    assert pauses[-1] >= BACKOFF_MAX_S / 2


async def test_a_long_run_forgives(autojump_clock: trio.testing.MockClock):
    """A task that ran for long before it crashed is started again soon."""
    starts: list[float] = []

    async def run() -> None:
        starts.append(trio.current_time())
        if len(starts) == 8:
            return
        await trio.sleep(BACKOFF_MAX_S * 2 if len(starts) == 7 else 0)
        raise OSError

    await supervise("mostly fine", run, chance=random.Random(1))
    assert starts[-1] - starts[-2] <= BACKOFF_MAX_S * 2 + 0.5


async def test_cancellation_passes_through():
    """A cancelled task isn't taken for a crashed one."""
    crashes: list[str] = []
    with trio.CancelScope() as scope:

        async def run() -> None:
            scope.cancel()
            await trio.sleep_forever()

        await supervise("cancelled", run, chance=random.Random(1), on_crash=crashes.append)
    assert scope.cancelled_caught
    assert crashes == []


async def test_channels_are_bounded():
    """A full channel says so, and one without a bound can't be made."""
    send, receive = bounded(1, "test")
    async with send, receive:
        send.send_nowait("a")
        with pytest.raises(trio.WouldBlock):
            send.send_nowait("b")
    with pytest.raises(AssertionError):
        bounded(1_000_000, "endless")
