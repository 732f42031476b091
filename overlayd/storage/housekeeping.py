"""What is looked at once a second: room on the disk, and the wall clock against the monotonic one."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import structlog
import trio

from overlayd.model.bodies import ClockStep
from overlayd.model.clock import Clock
from overlayd.model.metrics import Metrics
from overlayd.storage import files
from overlayd.storage.machine import Machine, read_machine
from overlayd.storage.settings import StorageSettings

PERIOD_S = 1.0
_log = structlog.get_logger("storage.housekeeping")


class StorageStats(msgspec.Struct, frozen=True):
    """What the storage measures about itself, in bytes and packets."""

    database_bytes: int
    wal_bytes: int
    disk_free_bytes: int
    intake_packets: int
    intake_bytes: int
    is_full: bool


class DiskWatch:
    """Knows whether there is room to publish, and holds the reserve as long as there is."""

    def __init__(self, directory: Path, settings: StorageSettings, metrics: Metrics, *, has_reserve: bool) -> None:
        self._directory = directory
        self._settings = settings
        self._has_reserve = has_reserve
        self.is_full = False
        self.is_low = False
        self.free_bytes = 0
        metrics.gauge("overlayd_disk_free_bytes", "Room on the data directory's disk").set_function(
            lambda: self.free_bytes
        )
        metrics.gauge("overlayd_disk_low", "1 while the disk has less room than disk_low_water").set_function(
            lambda: float(self.is_low)
        )
        metrics.gauge("overlayd_storage_full", "1 while publishing is refused for want of room").set_function(
            lambda: float(self.is_full)
        )

    def note_refusal(self) -> None:
        """SQLite found the disk full: gives the reserve back, so that checkpoints and removals can work."""
        if self._has_reserve and files.release_reserve(self._directory):
            _log.warning("disk full: released the reserve")
        self._has_reserve = False
        self.is_full = True

    def look(self) -> None:
        """Blocking, for a thread: measures, and takes the reserve again when there is room."""
        settings = self._settings
        needed = settings.disk_low_water if settings.disk_high_water else 0
        self.free_bytes = files.free_bytes(self._directory)
        is_low = self.free_bytes < settings.disk_low_water
        if is_low and not self.is_low:
            _log.warning("disk space runs low", free_bytes=self.free_bytes)
        self.is_low = is_low
        if self.free_bytes < settings.disk_high_water and not self.is_full:
            _log.warning("disk nearly full: publishing stops", free_bytes=self.free_bytes)
            self.is_full = True
        if not self._has_reserve and self.free_bytes >= needed + settings.reserve:
            self._has_reserve = files.take_reserve(self._directory, settings.reserve)
            self.free_bytes = files.free_bytes(self._directory)
        if self.is_full and self._has_reserve and self.free_bytes >= needed:
            _log.info("room on the disk again: publishing goes on", free_bytes=self.free_bytes)
            self.is_full = False


class ClockWatch:
    """Notices when wall time moves against monotonic time. Slow adjustment of the clock's rate is no step."""

    def __init__(self, clock: Clock, step_s: float) -> None:
        self._clock = clock
        self._step_us = int(step_s * 1_000_000)
        self._difference_us: int | None = None
        self._machine: Machine | None = None

    def look(self, monotonic_s: float, machine: Machine) -> ClockStep | None:
        """What to record, if anything."""
        difference_us = self._clock.now_us() - int(monotonic_s * 1_000_000)
        before, self._difference_us = self._difference_us, difference_us
        machine_before, self._machine = self._machine, machine
        if before is None or machine_before is None:
            return None
        step_us = difference_us - before
        was_synced, is_synced = machine_before.clock_synced, machine.clock_synced
        is_sync_change = None not in (was_synced, is_synced) and was_synced != is_synced
        if abs(step_us) < self._step_us:
            if not is_sync_change:
                return None
            step_us = 0
        return ClockStep(step_us, machine.boot_id, machine.uptime_ms, machine.clock_synced)


async def keep_house(
    disk: DiskWatch, clock: ClockWatch, append: Callable[[ClockStep], Awaitable[object]],
    read: Callable[[], Machine] = read_machine,
) -> None:  # fmt: skip
    """Runs until cancelled."""
    limiter = trio.CapacityLimiter(1)
    while True:
        step = clock.look(trio.current_time(), read())
        if step is not None:
            _log.warning("the wall clock stepped", step_us=step.step_us, synced=step.clock_synced)
            await append(step)
        await trio.to_thread.run_sync(disk.look, limiter=limiter)
        await trio.sleep(PERIOD_S)
