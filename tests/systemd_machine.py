"""A small Debian with systemd as its first process, in namespaces of its own, for tests of units and packages.

Needs root, debootstrap and a Debian mirror. The base system is made once and kept in build/; each machine gets a copy.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from real_waiting import pause

ROOT = Path(__file__).parents[1]
BASE = ROOT / "build/systemd-base-curl.tar"
RELEASE = "bookworm"
BOOT_S = 60
NEEDED = ("debootstrap", "unshare", "nsenter", "chroot", "mount", "tar")

# Runs as the parent of systemd, in the new namespaces: what a container manager would mount. $1: the root.
_BOOT = """
set -e
mount --bind "$1" "$1"
mount -t proc proc "$1/proc"
mount -t sysfs sysfs "$1/sys"
mount -t cgroup2 cgroup2 "$1/sys/fs/cgroup"
mount -t tmpfs tmpfs "$1/run"
mount -t tmpfs tmpfs "$1/tmp"
mount -t tmpfs -o mode=755 tmpfs "$1/dev"
for name in null zero full random urandom tty; do
  touch "$1/dev/$name"; mount --bind "/dev/$name" "$1/dev/$name"
done
mkdir -p "$1/dev/shm" "$1/dev/pts"
mount -t tmpfs tmpfs "$1/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$1/dev/pts"
ln -s pts/ptmx "$1/dev/ptmx"
mount --make-rshared "$1"  # systemd mounts a service's credentials elsewhere and waits for them to come here
exec chroot "$1" /usr/bin/env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin \\
  /lib/systemd/systemd --unit=multi-user.target --log-level=warning
"""


def why_not() -> str:
    """What this machine lacks for it; empty when nothing."""
    if os.geteuid() != 0:
        return "needs root"
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        return f"needs {', '.join(missing)}"
    trial = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--uts", "--ipc", "--cgroup", "--net", "true"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return f"can't make namespaces: {trial.stderr.strip()}" if trial.returncode else ""


def make_base() -> str:
    """Makes the base system when there is none yet. Returns why it couldn't."""
    if BASE.exists():
        return ""
    BASE.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="overlayd-base-") as place:
        done = subprocess.run(
            ["debootstrap", "--variant=minbase", "--include=systemd,dbus,curl", RELEASE, f"{place}/root"],
            capture_output=True, text=True, timeout=400, check=False,
        )  # fmt: skip
        if done.returncode:
            return f"debootstrap failed: {done.stdout[-300:]}{done.stderr[-300:]}"
        part = BASE.with_suffix(".part")
        subprocess.run(["tar", "--create", "--file", part, "--directory", f"{place}/root", "."], check=True)
        part.rename(BASE)
    return ""


class Machine:
    """A running one."""

    def __init__(self, root: Path, pid: int) -> None:
        self.root = root
        self._pid = pid

    def run(self, *command: str, check: bool = True, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        """A command inside, as its root. Fails the test when it does and `check` is set."""
        done = subprocess.run(
            ["nsenter", "--target", str(self._pid), "--mount", "--pid", "--uts", "--ipc", "--cgroup", "--net", "--root", "--wd",
             "/usr/bin/env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", *command],
            capture_output=True, text=True, timeout=timeout_s, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if check:
            assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done

    def beside(self, *command: str) -> subprocess.Popen[str]:
        """A command of the outside, with its files, on the machine's network."""
        return subprocess.Popen(
            ["nsenter", "--target", str(self._pid), "--net", *command], stdout=subprocess.PIPE, stdin=subprocess.PIPE,
            text=True,
        )  # fmt: skip

    def property(self, unit: str, name: str) -> str:
        """One property of a unit."""
        return self.run("systemctl", "show", "--property", name, "--value", unit).stdout.strip()

    def wait_active(self, unit: str, *, unlike: str = "0", tries: int = 200) -> str:
        """Waits until the unit runs with a main process other than `unlike`; its number inside."""
        for _ in range(tries):
            state, pid = self.property(unit, "ActiveState"), self.property(unit, "MainPID")
            if state == "active" and pid not in ("0", unlike):
                return pid
            pause(0.1)
        raise AssertionError(self.run("journalctl", "--no-pager", "--lines", "20", check=False).stdout)

    def wait_journal(self, unit: str, text: str, tries: int = 100) -> None:
        """Waits until the unit said something."""
        for _ in range(tries):
            if text in self.journal(unit):
                return
            pause(0.1)
        raise AssertionError(f"no {text!r} in {self.journal(unit)[-2000:]}")

    def journal(self, unit: str) -> str:
        """What the unit said."""
        return self.run("journalctl", "--unit", unit, "--no-pager", "--output", "cat").stdout


@contextmanager
def running() -> Iterator[Machine]:
    """A machine that has reached multi-user.target. It is gone afterwards, with its files."""
    place = Path(tempfile.mkdtemp(prefix="overlayd-machine-"))
    try:
        subprocess.run(["tar", "--extract", "--file", BASE, "--directory", place], check=True)
        with subprocess.Popen(
            ["unshare", "--mount", "--pid", "--fork", "--uts", "--ipc", "--cgroup", "--net", "--kill-child",
             "bash", "-c", _BOOT, "boot", place], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        ) as parent:  # fmt: skip
            try:
                machine = Machine(place, _first_process(parent.pid))
                _wait_running(machine)
                yield machine
            finally:
                parent.kill()
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _first_process(parent: int) -> int:
    """Its number outside, once it is systemd: the only child of unshare."""
    for _ in range(BOOT_S * 10):
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        if children and Path(f"/proc/{children[0]}/comm").read_text().strip() == "systemd":
            return int(children[0])
        pause(0.1)
    raise AssertionError("systemd didn't start")


def _wait_running(machine: Machine) -> None:
    state = ""
    for _ in range(BOOT_S * 5):
        state = machine.run("systemctl", "is-system-running", check=False).stdout.strip()
        if state in ("running", "degraded"):
            return
        pause(0.2)
    raise AssertionError(f"the machine doesn't come up: {state}")
