"""The machine under a benchmark: what it is, how fast it syncs, and how busy it was before."""

import os
import platform
import sqlite3
import time
from contextlib import suppress
from pathlib import Path

SYNC_BYTES = 4096


def fdatasync_rate(directory: Path, seconds: float = 1.0) -> float:
    """Appends of one page followed by fdatasync, each second: what one commit costs at least."""
    path = directory / "fdatasync"
    page = b"\0" * SYNC_BYTES
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        count, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            os.write(descriptor, page)
            os.fdatasync(descriptor)
            count += 1
        return count / (time.perf_counter() - began)
    finally:
        os.close(descriptor)
        path.unlink()


def processor_name() -> str:
    """As the kernel calls it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def memory_gib() -> float:
    """Memory of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def file_system(directory: Path) -> str:
    """Type of the file system that holds the directory."""
    place, kind = Path("/"), "unknown"
    for line in Path("/proc/mounts").read_text().splitlines():
        fields = line.split()
        mounted = Path(fields[1])
        if directory.resolve().is_relative_to(mounted) and len(str(mounted)) >= len(str(place)):
            place, kind = mounted, fields[2]
    return kind


def describe_machine(directory: Path, seconds: float = 1.0) -> dict[str, object]:
    """What stands above every table; the disk is watched for so long."""
    return {
        "processor": processor_name(),
        "processors": os.cpu_count(),
        "memory_gib": round(memory_gib(), 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "file_system": file_system(directory),
        "fdatasync_per_second": round(fdatasync_rate(directory, seconds)),
        "load_before": round(os.getloadavg()[0], 2),
    }


def is_quiet(machine: dict[str, object]) -> bool:
    """Whether little else ran when the benchmark began."""
    load = machine["load_before"]
    return isinstance(load, float) and load < 0.5


class CpuClock:
    """Processor time of processes that aren't ours. One that ends keeps what it was last seen to have used."""

    def __init__(self, *pids: int) -> None:
        self._ticks = dict.fromkeys(pids, 0)
        self._began = time.perf_counter()
        self._before = self._used()

    def _used(self) -> float:
        for pid in self._ticks:
            with suppress(FileNotFoundError, ProcessLookupError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                self._ticks[pid] = int(fields[11]) + int(fields[12])
        return sum(self._ticks.values()) / os.sysconf("SC_CLK_TCK")

    def share(self) -> float:
        """Of one processor, since the clock was made."""
        return (self._used() - self._before) / (time.perf_counter() - self._began)


def resident_kib(pids: tuple[int, ...]) -> int:
    """VmRSS of the processes together."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                total += int(line.split()[1])
    return total
