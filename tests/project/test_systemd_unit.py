"""The service file: accepted by systemd, and as confined as it says."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[2] / "systemd"
UNIT = UNITS / "overlayd.service"
BACKUP, TIMER = UNITS / "overlayd-backup.service", UNITS / "overlayd-backup.timer"
EXPOSURE_MAX = 2.0
"""systemd-analyze's own scale from 0 (closed) to 10 (open)."""

needs_analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")


def analyze(directory: Path, *arguments: str, unit: Path = UNIT) -> subprocess.CompletedProcess[str]:
    """Runs systemd-analyze on a copy whose program exists on this machine."""
    copy = directory / unit.name
    copy.write_text(unit.read_text().replace("/usr/bin/overlayd", shutil.which("true") or "/bin/true"))
    command = ["systemd-analyze", *arguments, str(copy)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@needs_analyze
@pytest.mark.parametrize("unit", [UNIT, BACKUP, TIMER], ids=lambda unit: unit.name)
def test_systemd_accepts_the_unit(unit: Path, tmp_path: Path) -> None:
    """`systemd-analyze verify` finds nothing to say about the file."""
    for other in (UNIT, BACKUP):  # what it names
        (tmp_path / other.name).write_text(
            other.read_text().replace("/usr/bin/overlayd", shutil.which("true") or "/bin/true")
        )
    result = analyze(tmp_path, "verify", "--man=no", unit=unit)
    said = [line for line in result.stderr.splitlines() if unit.name in line]
    assert (result.returncode, said) == (0, []), result.stderr


@needs_analyze
@pytest.mark.parametrize("unit", [UNIT, BACKUP], ids=lambda unit: unit.name)
def test_the_service_is_confined(unit: Path, tmp_path: Path) -> None:
    """systemd's own rating of the sandbox stays low."""
    result = analyze(tmp_path, "security", "--offline=yes", "--no-pager", unit=unit)
    rating = re.search(r"exposure level for \S+: ([0-9.]+)", result.stdout)
    if rating is None:
        pytest.skip(f"this systemd rates no files: {result.stderr.strip()}")
    assert float(rating[1]) <= EXPOSURE_MAX


def test_the_backup_is_the_nodes_own() -> None:
    """It runs as the node's user, in the node's directories, and reaches nothing but its socket."""
    lines = BACKUP.read_text().splitlines()
    assert {"User=overlayd", "DynamicUser=yes", "StateDirectory=overlayd", "PrivateNetwork=yes"} <= set(lines)
    assert "ExecStart=/usr/bin/overlayd backup" in lines
    assert "DynamicUser=yes" in UNIT.read_text()
    assert not any(line.startswith("User=") and line != "User=overlayd" for line in UNIT.read_text().splitlines())


def test_the_unit_fits_the_oldest_systemd() -> None:
    """Debian 12 has systemd 252, which doesn't know notify-reload; only the main process may notify."""
    lines = UNIT.read_text().splitlines()
    assert "Type=notify" in lines
    assert "NotifyAccess=main" in lines
    assert "StateDirectory=overlayd" in lines
    assert "ConfigurationDirectory=overlayd" in lines


@needs_analyze
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace and the right to trace")
def test_the_sandbox_leaves_what_reading_the_machine_needs(tmp_path: Path) -> None:
    """The calls with which the boot entry's facts are read are in the filter, as this machine's C library makes them."""
    trace = tmp_path / "trace"
    program = "from overlayd.storage.machine import read_machine; print(read_machine().clock_synced)"
    traced = ["strace", "-qq", "-e", "trace=adjtimex,clock_adjtime", "-o", str(trace), sys.executable, "-c", program]
    if subprocess.run(traced, capture_output=True, timeout=60, check=False).returncode:
        pytest.skip("needs strace and the right to trace")
    calls = set(re.findall(r"^(\w+)\(", trace.read_text(), re.MULTILINE))
    allowed = re.findall(r"^SystemCallFilter=(\w.*)$", UNIT.read_text(), re.MULTILINE)
    assert calls
    assert calls <= set(" ".join(allowed).split())
