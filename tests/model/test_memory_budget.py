"""The memory budget: what is done without in which order, that it comes back, and where the figures come from."""

import ctypes
from pathlib import Path

import pytest
import trio
from patient_clock import patient_clock

from overlayd.model import memory_budget
from overlayd.model.limits import Limits
from overlayd.model.memory_budget import CATCHING_UP, LOOK_S, PUBLISHING, SESSIONS, TRIM_S, MemoryBudget, memory_given
from overlayd.model.metrics import Metrics
from overlayd.model.units import Size


class Memory:
    """What is in use, as a share of 1,000 MiB."""

    def __init__(self) -> None:
        self.share = 0.0
        self.metrics = Metrics()
        self.budget = MemoryBudget(
            Limits(memory_bytes=Size(1000 << 20)),
            self.metrics,
            read_used=lambda: int(self.share * (1000 << 20)),
            given=0,
        )

    def at(self, share: float) -> int:
        """The level there."""
        self.share = share
        self.budget.look()
        return self.budget.level


def test_what_is_done_without_in_turn() -> None:
    """Sessions, then readers that are behind, then packets; each comes back only when there is a little more room."""
    memory = Memory()
    assert [memory.at(share) for share in (0.5, 0.84, 0.86, 0.93, 0.98)] == [0, 0, SESSIONS, CATCHING_UP, PUBLISHING]
    assert [memory.at(share) for share in (0.96, 0.95, 0.93, 0.9, 0.86, 0.83, 0.8)] == [3, 3, 2, 2, 1, 1, 0]
    assert memory.at(1.2) == PUBLISHING
    assert "without new sessions, readers that are behind, packets" in memory.budget.describe()


def test_each_refusal_is_counted() -> None:
    """Whoever is told no is a hit of the limit."""
    memory = Memory()
    memory.at(0.5)
    assert not memory.budget.is_short_of(SESSIONS)
    memory.at(0.86)
    assert memory.budget.is_short_of(SESSIONS)
    assert not memory.budget.is_short_of(CATCHING_UP)
    assert memory.metrics.registry.get_sample_value("overlayd_limit_hits_total", {"limit": "memory_bytes"}) == 1


def test_readers_wait_and_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for room goes on once there is some; changes are told, and the allocator is asked for its pages."""
    levels: list[int] = []
    trimmed: list[bool] = []
    monkeypatch.setattr(memory_budget, "give_back", lambda: trimmed.append(True))

    async def main() -> None:
        memory = Memory()
        memory.at(0.93)

        async def read() -> None:
            await memory.budget.wait_for(CATCHING_UP)
            levels.append(-1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(memory.budget.run, levels.append)
            nursery.start_soon(read)
            await trio.sleep(5)
            assert levels == [CATCHING_UP]
            memory.share = 0.2
            await trio.sleep(2)
            assert sorted(levels) == [-1, 0, CATCHING_UP]
            nursery.cancel_scope.cancel()

    with patient_clock() as clock:
        trio.run(main, clock=clock)
    assert trimmed == [True]


def test_pages_are_given_back_in_quiet_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every ten seconds, with nothing short; the collector isn't called for it."""
    asked: list[str] = []
    monkeypatch.setattr(memory_budget, "trim", lambda: asked.append("trim"))
    monkeypatch.setattr(memory_budget, "give_back", lambda: asked.append("give back"))

    async def main() -> None:
        memory = Memory()
        memory.at(0.5)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(memory.budget.run)
            await trio.sleep(3 * TRIM_S + LOOK_S / 2)
            nursery.cancel_scope.cancel()

    with patient_clock() as clock:
        trio.run(main, clock=clock)
    assert asked == ["trim"] * 4


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the allocator can't be asked")
def test_trimming_gives_back_what_lies_below_what_is_needed() -> None:
    """Pages that were freed in the midst of a heap are the system's again."""
    blocks = [bytes(3000) for _ in range(10_000)]
    del blocks[:-1]
    before = memory_budget.read_anonymous_bytes()
    memory_budget.trim()
    assert memory_budget.read_anonymous_bytes() < before - (16 << 20)
    assert len(blocks) == 1


def test_without_a_bound_nothing_is_held_off() -> None:
    """Where nobody says and the system doesn't tell."""
    budget = MemoryBudget(Limits(), Metrics(), read_used=lambda: 1 << 50, given=0)
    budget.look()
    assert (budget.level, budget.budget) == (0, 0)
    assert "without bound" in budget.describe()


def test_the_least_of_machine_and_control_groups_counts(tmp_path: Path) -> None:
    """A group's bound and those above it; "max" is none."""
    meminfo, cgroup, groups = tmp_path / "meminfo", tmp_path / "cgroup", tmp_path / "groups"
    meminfo.write_text("MemTotal:        4096 kB\nMemFree: 1 kB\n")
    assert memory_given(meminfo, cgroup, groups) == 4096 << 10
    cgroup.write_text("0::/system.slice/overlayd.service\n")
    place = groups / "system.slice/overlayd.service"
    place.mkdir(parents=True)
    (place / "memory.max").write_text("max\n")
    assert memory_given(meminfo, cgroup, groups) == 4096 << 10
    (groups / "system.slice/memory.high").write_text("2097152\n")
    assert memory_given(meminfo, cgroup, groups) == 2 << 20
    (place / "memory.max").write_text("1048576\n")
    assert memory_given(meminfo, cgroup, groups) == 1 << 20
    assert memory_given(tmp_path / "none", cgroup, groups) == 0


def test_what_the_process_uses_is_read() -> None:
    """Some megabytes, on Linux; giving pages back does no harm."""
    assert 1 << 20 < memory_budget.read_anonymous_bytes() < 1 << 40
    memory_budget.give_back()
