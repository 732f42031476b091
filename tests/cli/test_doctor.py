"""The doctor's examinations: each finds what it is for, and says what to do about it."""

import os
import resource
import sqlite3
from pathlib import Path

import msgspec
import pytest
import trio
from click.testing import CliRunner
from export_rig import make_log
from tls_authority import Authority

from overlayd.cli import cli, examinations
from overlayd.cli.examinations import Finding
from overlayd.cli.exits import CONFIG, FAILED, OK
from overlayd.cli.features import known_features
from overlayd.config import load_settings
from overlayd.config.settings import Settings
from overlayd.storage import files
from overlayd.storage.machine import Machine


class FixedClock:
    """Some time in 2026."""

    def __init__(self, now_us: int = 1_790_000_000_000_000) -> None:
        self._now_us = now_us

    def now_us(self) -> int:
        return self._now_us


def settings_of(tmp_path: Path, text: str = "") -> Settings:
    """Those of a file, with the data directory beside it."""
    file = tmp_path / "config.toml"
    file.write_text(f'[storage]\ndir = "{tmp_path / "data"}"\n{text}')
    return load_settings(file, environ={}).settings


def states(found: "list[Finding]") -> dict[str, str]:
    """By name; each that isn't fine says what to do."""
    for finding in found:
        assert finding.detail
        assert finding.fix or finding.state == "ok", finding
    return {finding.name: finding.state for finding in found}


def run(tmp_path: Path, *arguments: str) -> tuple[int, dict[str, list[dict[str, str]]]]:
    """The command's exit code, and its findings by name."""
    result = CliRunner().invoke(cli, ["doctor", "--data", str(tmp_path / "data"), "--json", *arguments])
    found: dict[str, list[dict[str, str]]] = {}
    for line in result.stdout.splitlines():
        finding = msgspec.json.decode(line)
        found.setdefault(finding["name"], []).append(finding)
    return result.exit_code, found


def test_a_machine_without_a_node_is_fine(tmp_path: Path) -> None:
    """Before the first start there is nothing to complain of but, perhaps, the clock; and nothing is left behind."""
    code, found = run(tmp_path)
    assert code == OK
    assert {
        "configuration",
        "directory",
        "space",
        "disk",
        "descriptors",
        "sqlite",
        "clock",
        "log",
        "chain",
        "node",
    } == set(found)
    assert all(finding["state"] in ("ok", "warning") for named in found.values() for finding in named)
    assert list(tmp_path.iterdir()) == []


def test_a_configuration_that_cannot_be_read_is_told_line_by_line(tmp_path: Path) -> None:
    """Every mistake is a finding of its own."""
    file = tmp_path / "config.toml"
    file.write_text("[limits]\nsessions_max = 0\nnonsense = 1\n")
    code, found = run(tmp_path, "--config", str(file))
    assert code == CONFIG
    assert [finding["state"] for finding in found["configuration"]] == ["failed", "failed"]


def test_keys_that_others_may_read(tmp_path: Path) -> None:
    """The files are named, with the command that closes them."""
    keys = tmp_path / "keys"
    keys.mkdir()
    (keys / "log.ed25519").write_bytes(bytes(32))
    (keys / "log.ed25519").chmod(0o644)
    (found, _) = examinations.examine_directory(tmp_path)
    assert (found.state, found.fix) == ("failed", f"chmod 600 {keys / 'log.ed25519'}")
    (keys / "log.ed25519").chmod(0o600)
    assert states(list(examinations.examine_directory(tmp_path)))["directory"] == "ok"


@pytest.mark.parametrize(("mode", "closed"), [(0o777, "0755"), (0o770, "0750"), (0o722, "0700")])
def test_a_directory_that_others_may_write_to(tmp_path: Path, mode: int, closed: str) -> None:
    """They could take the log away, or put another there; the command closes it and no more."""
    tmp_path.chmod(mode)
    (found, _) = examinations.examine_directory(tmp_path)
    assert (found.state, found.fix) == ("failed", f"chmod {closed} {tmp_path}")
    tmp_path.chmod(int(closed, 8))
    assert states(list(examinations.examine_directory(tmp_path)))["directory"] == "ok"


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_directory_of_somebody_else(tmp_path: Path) -> None:
    """Whose it is, and who asks."""
    tmp_path.chmod(0o500)
    assert states(list(examinations.examine_directory(tmp_path)))["directory"] == "failed"


@pytest.mark.parametrize(
    ("kind", "state"), [("ext4", "ok"), ("tmpfs", "warning"), ("overlay", "warning"), ("nfs4", "failed")]
)
def test_where_the_directory_lies(tmp_path: Path, kind: str, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest mount point above it counts, spaces in its name included."""
    place = tmp_path / "a b"
    place.mkdir()
    shown = str(place).replace(" ", "\\040")
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "22 1 8:1 / / rw - xfs /dev/sda rw\n"
        f"23 22 8:2 / {shown} rw,relatime shared:1 - {kind} /dev/sdb rw\n"
        f"24 22 8:2 / {shown}er rw - btrfs /dev/sdc rw\n"
    )
    assert examinations.kind_of_filesystem(place, mounts) == kind
    assert examinations.kind_of_filesystem(tmp_path, mounts) == "xfs"
    monkeypatch.setattr(examinations, "kind_of_filesystem", lambda directory: kind)
    assert states(list(examinations.examine_directory(place)))["file system"] == state


def test_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below the mark at which publishing stops it fails; near it, it warns."""
    settings = settings_of(tmp_path, 'disk_high_water = "1GiB"\ndisk_low_water = "4GiB"\nreserve = "0B"\n')
    found = []
    for free in (1 << 29, 2 << 30, 8 << 30):
        monkeypatch.setattr(files, "free_bytes", lambda directory, free=free: free)
        found.append(states(list(examinations.examine_space(settings, tmp_path)))["space"])
    assert found == ["failed", "warning", "ok"]


def test_a_disk_that_is_slow(tmp_path: Path) -> None:
    """Measured by syncs one after the other, within a second; a disk that takes 100 ms for each is told of."""
    time = iter(range(10_000))
    (slow,) = examinations.examine_disk(tmp_path, lambda: next(time) / 10)
    assert (slow.state, "10 writes a second" in slow.detail) == ("warning", True), slow
    (real,) = examinations.examine_disk(tmp_path)
    assert "writes a second" in real.detail
    assert list(tmp_path.iterdir()) == []


def test_few_descriptors(tmp_path: Path) -> None:
    """The hard limit counts: the node raises the soft one."""
    settings = settings_of(tmp_path)
    for limit, state in (((256, 1024), "warning"), ((256, 65536), "ok"), ((256, resource.RLIM_INFINITY), "ok")):
        assert states(list(examinations.examine_descriptors(settings, limit))) == {"descriptors": state}


def test_versions_of_sqlite() -> None:
    """What follows from one that isn't mended is said."""
    for version, is_old in (
        ((3, 40, 1), True),
        ((3, 44, 6), False),
        ((3, 45, 0), True),
        ((3, 51, 2), True),
        ((3, 52, 0), False),
    ):
        (found,) = examinations.examine_sqlite(version)
        assert ("beside the node" in found.detail) is is_old


def test_clocks_that_cannot_be_right() -> None:
    """In the past, before the log's newest entry, kept by nobody, and kept."""
    clock = FixedClock()

    def state(machine: Machine, newest_us: int = 0, clock: FixedClock = clock) -> str:
        (found,) = examinations.examine_clock(clock, machine, newest_us)
        return found.state

    assert state(Machine(clock_synced=True), clock=FixedClock(1_000_000)) == "failed"
    assert state(Machine(clock_synced=True), clock.now_us() + 60_000_000) == "failed"
    assert state(Machine(clock_synced=True), clock.now_us() + 1_000_000) == "ok"
    assert state(Machine(clock_synced=False)) == "warning"
    assert state(Machine()) == "ok"


def test_a_log_that_is_none(tmp_path: Path) -> None:
    """A file that isn't a database, and a database that isn't a log."""
    (tmp_path / files.DATABASE_NAME).write_bytes(b"something else" * 1000)
    assert states(list(examinations.examine_log(tmp_path))) == {"log": "failed"}
    assert examinations.newest_entry_us(tmp_path) == 0
    (tmp_path / files.DATABASE_NAME).unlink()
    connection = sqlite3.connect(tmp_path / files.DATABASE_NAME)
    connection.execute("CREATE TABLE x (y)")
    connection.close()
    assert states(list(examinations.examine_log(tmp_path))) == {"log": "failed"}


def test_a_log_of_another_version(tmp_path: Path) -> None:
    """A newer one's is what no start opens; an older one's is brought up to date, which takes a backup."""
    trio.run(make_log, tmp_path)
    features = known_features()

    def log_of(version: str) -> examinations.Finding:
        with sqlite3.connect(tmp_path / files.DATABASE_NAME) as connection:
            connection.execute(f"UPDATE schema_version SET version = {version} WHERE feature = 'log'")
        connection.close()
        return next(finding for finding in examinations.examine_log(tmp_path, features) if finding.name == "log")

    assert "up to date" not in log_of("version").detail
    older = log_of("version - 1")
    assert (older.state, "makes a backup" in older.detail) == ("ok", True)
    newer = log_of("version + 900")
    assert (newer.state, "have version" in newer.detail, "newer version" in newer.fix) == ("failed", True, True)


def test_certificates(tmp_path: Path) -> None:
    """One that is there and holds; a file that is none fails with its name."""
    authority = Authority(tmp_path)
    certificate = authority.issue("node")
    listener = f'[[listen.tls]]\naddress = "127.0.0.1:0"\ncert = "{certificate}"\n'
    settings = settings_of(tmp_path, listener)
    from overlayd.model.clock import SystemClock  # certificates are issued by the machine's own clock

    assert set(states(list(examinations.examine_certificates(settings, SystemClock())))) == {"certificates"}
    certificate.write_text("nothing")
    (found,) = examinations.examine_certificates(settings, SystemClock())
    assert found.state == "failed"


def test_a_failure_is_the_exit_code(tmp_path: Path) -> None:
    """Scripts see it."""
    data = tmp_path / "data"
    data.mkdir()
    (data / files.DATABASE_NAME).write_bytes(b"something else" * 1000)
    code, found = run(tmp_path)
    assert (code, found["log"][0]["state"]) == (FAILED, "failed")
