"""What the machine tells about itself: boot, uptime, whether its clock is kept in time. Measured or absent."""

import ctypes
import time
from functools import cache
from pathlib import Path

import msgspec

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_TIMESYNC = Path("/run/systemd/timesync/synchronized")
_STA_UNSYNC = 0x0040


class Machine(msgspec.Struct, frozen=True):
    """Facts for a boot or clock entry; "" and None where the system doesn't tell."""

    boot_id: str = ""
    uptime_ms: int | None = None
    clock_synced: bool | None = None


class _Timex(ctypes.Structure):
    """Head of Linux's struct timex (adjtimex(2)), with room to spare for the rest of it."""

    _fields_ = (
        ("modes", ctypes.c_uint), ("offset", ctypes.c_long), ("freq", ctypes.c_long), ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long), ("status", ctypes.c_int), ("rest", ctypes.c_char * 512),
    )  # fmt: skip


def read_machine() -> Machine:
    """Asks the running system. Blocks for microseconds only."""
    return Machine(_read_boot_id(), _read_uptime_ms(), _read_clock_synced())


def _read_clock_synced() -> bool | None:
    """Whether the clock is disciplined; None when neither the service manager nor the kernel says."""
    if _TIMESYNC.exists():
        return True
    timex = _Timex()
    try:
        if _open_library().adjtimex(ctypes.byref(timex)) < 0:
            return None
    except (OSError, AttributeError):
        return None
    return not timex.status & _STA_UNSYNC


@cache
def _open_library() -> ctypes.CDLL:
    """The C library. Opened once: each opening makes classes, which are garbage until the collector comes by. Raises OSError."""
    return ctypes.CDLL(None, use_errno=True)


def _read_boot_id() -> str:
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _read_uptime_ms() -> int | None:
    try:
        return int(time.clock_gettime(time.CLOCK_BOOTTIME) * 1000)
    except (OSError, AttributeError):
        return None
