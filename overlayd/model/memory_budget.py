"""How much memory the node may use, and what it does without when that runs out.

What counts is memory that only the process has (RssAnon of proc_pid_status(5)); what the kernel can drop by itself
doesn't. In order: no new live sessions, then readers that are behind wait, then no packets. Each goes on again as soon
as there is room.
"""

import contextlib
import ctypes
import gc
from collections.abc import Callable
from functools import cache
from pathlib import Path

import structlog
import trio

from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.model.units import Size

NOTHING, SESSIONS, CATCHING_UP, PUBLISHING = range(4)
SHARES = (0.0, 0.85, 0.92, 0.97)
"""Of the budget, from which each is done without."""
SHED = ("nothing", "new sessions", "readers that are behind", "packets")
EASED = 0.03
"""What was done without comes back this share of the budget lower, so that it doesn't flicker."""
LOOK_S = 1.0
TRIM_S = 10.0
"""So often the allocator is asked to give back pages that hold nothing, and while the budget is short the collector comes
before it. Else resident memory stays at the largest sum that there ever was of what is needed for a moment, a page of entries
or the new table of a cache, and that grows for hours."""
DEFAULT_SHARE = 0.75
"""Of what the machine, or the control group, gives."""
_STATUS = Path("/proc/self/status")
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")
_log = structlog.get_logger("memory")


class MemoryBudget:
    """One for the node. `level` says what is done without; everybody who adds memory asks."""

    def __init__(
        self, limits: Limits, metrics: Metrics, *, read_used: Callable[[], int] | None = None, given: int | None = None
    ) -> None:
        """`read_used`: bytes in use; `given`: what the machine gives. Both are read from the system otherwise."""
        self._limits = limits
        self._metrics = metrics
        self._read_used = read_used or read_anonymous_bytes
        self._given = memory_given() if given is None else given
        self.level = NOTHING
        self.used = self._read_used()
        self._eased = trio.lowlevel.ParkingLot()
        self._trimmed_at = -TRIM_S
        metrics.gauge("overlayd_memory_used_bytes", "Memory that only the node has").set_function(lambda: self.used)
        metrics.gauge("overlayd_memory_budget_bytes", "What it may use; 0 without bound").set_function(
            lambda: self.budget
        )
        metrics.gauge(
            "overlayd_memory_shed", "What is done without: 1 new sessions, 2 readers that are behind, 3 packets, too"
        ).set_function(lambda: self.level)

    def __repr__(self) -> str:
        return f"MemoryBudget(used={self.used}, budget={self.budget}, level={self.level})"

    @property
    def budget(self) -> int:
        """Bytes; 0 where nobody says and the system doesn't tell."""
        return int(self._limits.memory_bytes) or int(self._given * DEFAULT_SHARE)

    def describe(self) -> str:
        """In words, for readiness."""
        budget = self.budget
        words = f"{self.used >> 20} of {budget >> 20} MiB" if budget else f"{self.used >> 20} MiB, without bound"
        return f"{words}; without {', '.join(SHED[1 : self.level + 1])}" if self.level else words

    def is_short_of(self, level: int) -> bool:
        """Whether that is done without now; counts the hit."""
        if self.level < level:
            return False
        self._metrics.count_limit_hit("memory_bytes")
        return True

    async def wait_for(self, level: int) -> None:
        """Returns once that isn't done without any more. A checkpoint only if it waits."""
        while self.level >= level:
            self._metrics.count_limit_hit("memory_bytes")
            await self._eased.park()

    async def run(self, on_change: Callable[[int], None] = lambda level: None) -> None:
        """Looks once a second, until cancelled. `on_change` hears of each new level."""
        told = NOTHING
        while True:
            self.look()
            if self.level != told:
                told = self.level
                _log.warning(
                    "memory", used=str(Size(self.used)), budget=str(Size(self.budget)), without=SHED[self.level]
                )
                on_change(told)
                self._eased.unpark_all()
            if trio.current_time() >= self._trimmed_at + TRIM_S:
                self._trimmed_at = trio.current_time()
                await trio.to_thread.run_sync(give_back if self.level else trim)
            await trio.sleep(LOOK_S)

    def look(self) -> None:
        """Reads what is used, and settles what is done without."""
        self.used = self._read_used()
        budget = self.budget
        if not budget:
            self.level = NOTHING
            return
        share = self.used / budget
        level = sum(share >= bound for bound in SHARES[1:])
        if level < self.level and share > SHARES[self.level] - EASED:
            level = self.level
        self.level = level


def read_anonymous_bytes() -> int:
    """0 where the system doesn't tell."""
    try:
        for line in _STATUS.read_text(encoding="ascii").splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) << 10
    except (OSError, ValueError):
        pass
    return 0


def memory_given(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP, cgroups: Path = _CGROUPS) -> int:
    """The least of the machine's memory and the bounds of the process's control groups; 0 where the system doesn't
    tell. cgroups(7), version 2."""
    found = []
    try:
        total = next(line for line in meminfo.read_text(encoding="ascii").splitlines() if line.startswith("MemTotal:"))
        found.append(int(total.split()[1]) << 10)
        path = next(
            line[3:].strip() for line in cgroup.read_text(encoding="ascii").splitlines() if line.startswith("0::")
        )
    except (OSError, ValueError, StopIteration):
        return min(found, default=0)
    place = cgroups / path.lstrip("/")
    for group in (place, *place.parents):
        for name in ("memory.max", "memory.high"):
            try:
                found.append(int((group / name).read_text(encoding="ascii")))
            except (OSError, ValueError):  # "max", or none here
                continue
        if group == cgroups:
            break
    return min(found)


def give_back() -> None:
    """Collects garbage, then as `trim`."""
    gc.collect()
    trim()


def trim() -> None:
    """Has the allocator return free pages to the system: 0.3 ms for heaps of 60 MiB, beside the event loop. malloc_trim(3);
    nothing where there is none."""
    with contextlib.suppress(OSError, AttributeError):
        _open_library().malloc_trim(0)


@cache
def _open_library() -> ctypes.CDLL:
    """The C library. Opened once: each opening makes classes. Raises OSError."""
    return ctypes.CDLL(None)
