"""What the packaged overlayd runs first: tidies up after killed one-file runs, then hands over to the command line.

In the one-file form the process that was started only unpacks and waits; this one is its child. A kill -9 of the
parent would leave the child running and the unpacked directory lying there, so the child asks the kernel to be
stopped with its parent, and each start removes what runs that are gone have left.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import sys
from pathlib import Path

from overlayd.cli import main
from overlayd.model.build_info import unpacked_in

MARK = ".overlayd-run"
_PR_SET_PDEATHSIG = 1


def _started_at(pid: int) -> str:
    """The process's start in clock ticks since boot, which tells a reused number apart; empty when it has ended."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else rest[18]  # ended, and nobody has asked for its exit code yet


def _end_with_parent() -> None:
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it was gone before the kernel knew
        sys.exit(128 + signal.SIGTERM)


def _mark_and_tidy(place: Path) -> None:
    """Leaves a note of who uses the directory, and removes neighbours whose user is gone."""
    (place / MARK).write_text(f"{os.getpid()} {_started_at(os.getpid())}\n")
    for neighbour in place.parent.glob("_MEI*"):
        with contextlib.suppress(OSError, ValueError):
            if neighbour.is_symlink() or neighbour.stat().st_uid != os.getuid():
                continue
            pid, started = (neighbour / MARK).read_text().split()
            if _started_at(int(pid)) != started:
                shutil.rmtree(neighbour, ignore_errors=True)


if place := unpacked_in():
    _end_with_parent()
    _mark_and_tidy(place)
main()
