"""The Debian package on a machine with systemd as its first process: install, serve, be killed, restart, upgrade, go."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import systemd_machine
from real_waiting import pause
from systemd_machine import Machine

pytestmark = pytest.mark.timeout(900)

UNIT = "overlayd.service"
ROOT = Path(__file__).parents[2]
DATA = ("--data", "/var/lib/overlayd")


@pytest.fixture(scope="module")
def package(binary: Path) -> Path:
    """The Debian package of the checkout."""
    reason = systemd_machine.why_not() or systemd_machine.make_base()
    if reason:
        pytest.skip(f"systemd can't be tried here: {reason}")
    subprocess.run([ROOT / "packaging/build-deb"], check=True, capture_output=True)
    (found,) = binary.parent.glob("overlayd_*.deb")
    return found


@pytest.fixture(scope="module")
def machine(package: Path) -> Iterator[Machine]:
    """A machine with the package installed and the node running."""
    with systemd_machine.running() as found:
        (found.root / "root/overlayd.deb").write_bytes(package.read_bytes())
        found.run("dpkg", "--install", "/root/overlayd.deb")
        found.wait_active(UNIT)
        yield found


def publish(machine: Machine, stream: str, count: int) -> None:
    """Publishes through the Unix socket, as root."""
    line = f"seq {count} | overlayd publish {stream} --bare --input ndjson --quiet {' '.join(DATA)}"
    machine.run("sh", "-c", line)


def packets(machine: Machine, stream: str) -> int:
    """How many packets the stream holds."""
    return int(json.loads(machine.run("overlayd", "streams", "show", stream, "--json", *DATA).stdout)["packets"])


@contextmanager
def publishing(machine: Machine, stream: str) -> Iterator[dict[str, int]]:
    """A client that publishes over TCP meanwhile; afterwards what became of its connections."""
    counts: dict[str, int] = {}
    client = machine.beside(sys.executable, str(ROOT / "tests/steady_publisher.py"), "127.0.0.1", "7878", stream)
    try:
        pause(0.5)
        yield counts
        pause(0.5)
        counts.update(json.loads(client.communicate("", 90)[0]))
    finally:
        client.kill()
        client.wait()


def test_installed_node_serves(machine: Machine) -> None:
    """After dpkg the node runs as a user of its own, ready, and everything a packet goes through works."""
    assert "ok     publish" in machine.run("overlayd", "smoke", *DATA).stdout
    assert "taking packets" in machine.property(UNIT, "StatusText")
    pid = machine.property(UNIT, "MainPID")
    assert machine.run("cat", f"/proc/{pid}/comm").stdout == "overlayd\n"
    assert machine.run("stat", "--format", "%u", f"/proc/{pid}").stdout.strip() != "0"
    assert "taking packets" in machine.journal(UNIT)


def test_killed_node_is_back_with_everything(machine: Machine) -> None:
    """kill -9 of the main process: systemd starts it anew, and no acknowledged packet is missing."""
    publish(machine, "kept", 500)
    first = machine.property(UNIT, "MainPID")
    machine.run("sh", "-c", f"kill -9 {first}")
    machine.wait_active(UNIT, unlike=first)
    assert packets(machine, "kept") == 500
    assert int(machine.property(UNIT, "NRestarts")) >= 1


def test_restart_under_load_refuses_no_connection(machine: Machine) -> None:
    """systemd holds the listening socket, so that a client that connects while the node restarts only waits."""
    with publishing(machine, "steady") as counts:
        before = machine.property(UNIT, "MainPID")
        machine.run("systemctl", "restart", UNIT)
        machine.wait_active(UNIT, unlike=before)
    assert counts["refused"] == 0
    assert counts["acknowledged"] > 10
    assert packets(machine, "steady") == counts["acknowledged"]


def test_reload_takes_over_what_can_change(machine: Machine) -> None:
    """`systemctl reload`: a changed limit counts, the process stays, the journal tells; a mistake is told and changes
    nothing."""
    before = machine.property(UNIT, "MainPID")
    config = machine.root / "etc/overlayd/config.toml"
    kept = config.read_text()
    config.write_text(kept + '\n[limits]\nreaders = 3\n[[streams]]\nname = "declared.now"\n')
    machine.run("systemctl", "reload", UNIT)
    machine.wait_journal(UNIT, "configuration read anew")
    assert "limits.readers" in machine.journal(UNIT)
    assert packets(machine, "declared.now") == 0
    config.write_text(kept + "\n[limits]\nnonsense = 1\n")
    machine.run("systemctl", "reload", UNIT)
    machine.wait_journal(UNIT, "not reloaded")
    assert "config.toml" in machine.journal(UNIT)
    config.write_text(kept)
    machine.run("overlayd", "reload", *DATA)
    assert machine.property(UNIT, "MainPID") == before
    assert machine.property(UNIT, "ActiveState") == "active"


def test_backup_service(machine: Machine) -> None:
    """The packaged service makes a backup as the node's user, through the running node and without one; the timer can be
    switched on."""
    machine.run("systemctl", "start", "overlayd-backup.service")
    machine.run("systemctl", "stop", UNIT, "overlayd.socket")
    machine.run("systemctl", "start", "overlayd-backup.service")
    machine.run("systemctl", "start", "overlayd.socket", UNIT)
    machine.wait_active(UNIT)
    listed = [
        json.loads(line) for line in machine.run("overlayd", "backup", "list", "--json", *DATA).stdout.splitlines()
    ]
    assert [(backup["verified"], backup["present"]) for backup in listed] == [(True, True)] * 2
    assert (
        machine.run("stat", "--format", "%U", listed[0]["path"]).stdout
        == machine.run("stat", "--format", "%U", listed[1]["path"]).stdout
    )
    machine.run("systemctl", "enable", "--now", "overlayd-backup.timer")
    assert "overlayd-backup.service" in machine.run("systemctl", "list-timers", "--all").stdout


def test_stuck_node_is_restarted(machine: Machine) -> None:
    """A process that feeds the watchdog no more is ended by systemd and started anew."""
    machine.run("mkdir", "-p", "/etc/systemd/system/overlayd.service.d")
    machine.run("sh", "-c", "printf '[Service]\\nWatchdogSec=2\\n' >/etc/systemd/system/overlayd.service.d/w.conf")
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", UNIT)
    stuck = machine.wait_active(UNIT)
    machine.run("sh", "-c", f"kill -STOP {stuck}")
    machine.wait_active(UNIT, unlike=stuck, tries=400)
    assert "Watchdog timeout" in machine.run("journalctl", "--no-pager", "--output", "cat").stdout
    assert packets(machine, "kept") == 500
    machine.run("rm", "-r", "/etc/systemd/system/overlayd.service.d")
    machine.run("systemctl", "daemon-reload")


def test_unit_is_locked_in(machine: Machine) -> None:
    """systemd-analyze rates what the unit may do 2.0 or less."""
    line = machine.run("systemd-analyze", "security", "--no-pager", UNIT).stdout.strip().splitlines()[-1]
    assert float(line.partition(":")[2].split()[0]) <= 2.0, line


def test_upgrade_keeps_log_and_configuration(machine: Machine) -> None:
    """Installing again restarts the node on the same log; what an admin wrote in the configuration stays."""
    machine.run("sh", "-c", "echo '[node]\nname = \"edge-7\"' >/etc/overlayd/config.toml")
    before = machine.property(UNIT, "MainPID")
    machine.run("dpkg", "--install", "--force-confold", "/root/overlayd.deb")
    machine.wait_active(UNIT, unlike=before)
    assert packets(machine, "kept") == 500
    assert "edge-7" in machine.run("overlayd", "node", *DATA).stdout


def test_removed_and_purged(machine: Machine) -> None:
    """Removal ends the node and keeps log and configuration; purging takes the configuration, and names the log."""
    machine.run("dpkg", "--remove", "overlayd")
    assert "overlayd" not in machine.run("sh", "-c", "cat /proc/[0-9]*/comm").stdout
    assert (machine.root / "etc/overlayd/config.toml").exists()
    purged = machine.run("dpkg", "--purge", "overlayd")
    assert "the log stays in /var/lib/private/overlayd" in purged.stderr
    assert not (machine.root / "etc/overlayd").exists()
    assert (machine.root / "var/lib/private/overlayd/log.sqlite3").exists()
    left = machine.run(
        "sh", "-c", "find / -xdev -name '*overlayd*' -not -path '/var/lib/private/*' -not -path '/root/*'"
    )
    assert left.stdout.split() == ["/var/lib/overlayd"], left.stdout
