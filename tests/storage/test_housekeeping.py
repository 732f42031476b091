"""Clock steps and the machine's facts, recorded as measured; the disk watch is tested with the writer's faults."""

from pathlib import Path

import pytest
import trio
import trio.testing
from storage_rig import FakeClock, Rig

from overlayd.model.bodies import ClockStep, decode_node_body
from overlayd.model.entry import Kind
from overlayd.model.units import Duration
from overlayd.storage import housekeeping, machine
from overlayd.storage.housekeeping import ClockWatch
from overlayd.storage.machine import Machine, read_machine


def test_steps_in_either_direction() -> None:
    """A jump of wall against monotonic time of at least the threshold is a step, told in microseconds."""
    clock = FakeClock()
    watch = ClockWatch(clock, 2.0)
    facts = Machine("boot", 1000, None)
    assert watch.look(100.0, facts) is None
    for monotonic_s, advance_s, expected in (
        (101.0, 1.0, None),
        (102.0, 2.9, None),
        (103.0, 3.0, 2_000_000),
        (104.0, 1.0, None),
        (105.0, -3600.0, -3_601_000_000),
        (106.0, 1.0, None),
    ):
        clock.advance(advance_s)
        step = watch.look(monotonic_s, facts)
        assert step == (None if expected is None else ClockStep(expected, "boot", 1000, None))


def test_slow_adjustment_is_no_step() -> None:
    """A clock that is slewed by 500 ppm for a day never steps."""
    clock = FakeClock()
    watch = ClockWatch(clock, 2.0)
    for second in range(0, 86_400, 60):
        clock.advance(60 * 1.0005)
        assert watch.look(float(second), Machine()) is None


def test_change_of_synchronization_is_recorded() -> None:
    """Where the system tells both before and after; a step of 0 then."""
    watch = ClockWatch(FakeClock(), 2.0)
    assert watch.look(0.0, Machine("b", 1, False)) is None
    step = watch.look(0.0, Machine("b", 2, True))
    assert step == ClockStep(0, "b", 2, True)
    assert watch.look(0.0, Machine("b", 3, None)) is None
    assert watch.look(0.0, Machine("b", 4, False)) is None


async def test_a_step_becomes_an_entry(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next look appends a node entry, and times after it start from the new clock."""
    monkeypatch.setattr(housekeeping, "PERIOD_S", 0.005)
    rig.set_settings(clock_step=Duration(1000))
    async with rig.open() as log:
        head = log.head
        await trio.testing.wait_all_tasks_blocked(0.001)
        rig.clock.advance(5000)
        await log.wait_beyond(head)
        entry = await log.read_entry(head + 1)
        body = decode_node_body(entry.body)
        assert entry.kind == Kind.NODE
        assert isinstance(body, ClockStep)
        assert body.step_us == pytest.approx(5_000_000_000, abs=300_000_000)


def test_machine_facts_are_measured_or_absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What can't be read is left out, not guessed."""
    facts = read_machine()
    assert facts.boot_id == "" or len(facts.boot_id) == 36
    assert facts.uptime_ms is None or facts.uptime_ms > 0
    monkeypatch.setattr(machine, "_BOOT_ID", tmp_path / "absent")
    monkeypatch.setattr(machine, "_TIMESYNC", tmp_path)
    assert (read_machine().boot_id, read_machine().clock_synced) == ("", True)
