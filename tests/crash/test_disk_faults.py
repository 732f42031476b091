"""The real process on a disk that fails: no room is survived, a failed sync ends the process."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from daemon_process import DaemonProcess, Producer, check_nothing_lost, wait_for_packets
from real_waiting import PATIENCE_S, looks

can_trace = (
    shutil.which("strace") is not None
    and subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, check=False).returncode == 0
)
needs_trace = pytest.mark.skipif(not can_trace, reason="needs strace and the right to trace")


def _inject(directory: Path, calls: str, fault: str) -> list[str]:
    """An strace command that injects a fault into calls on the database's WAL."""
    return [
        "strace", "-f", "-q", "-o", "/dev/null", "-P", str(directory / "log.sqlite3-wal"),
        "-e", f"trace={calls}", "-e", f"inject={calls}:{fault}",
    ]  # fmt: skip


@needs_trace
@pytest.mark.parametrize(
    ("calls", "fault"), [("fdatasync,fsync", "error=EIO:when=25+"), ("pwrite64", "error=EIO:when=300+")]
)
def test_an_io_error_ends_the_process_and_loses_nothing(tmp_path: Path, calls: str, fault: str) -> None:
    """After EIO the waiting producers get no 2xx, the process exits by itself, and the next start has all that was acknowledged."""
    data = tmp_path / "data"
    with DaemonProcess(data) as daemon:
        assert daemon.stop() == 0
    acknowledged: dict[str, dict[str, object]] = {}
    with DaemonProcess(data, prefix=_inject(data, calls, fault)) as daemon:
        producers = [Producer(daemon.url, f"c{i}", "plant.a") for i in range(3)]
        for producer in producers:
            producer.start()
        assert daemon.wait() not in (0, None)
        for producer in producers:
            acknowledged |= producer.finish()
        assert "Traceback" not in daemon.text()
    assert acknowledged
    with DaemonProcess(data) as daemon:
        check_nothing_lost(daemon.url, "plant.a", acknowledged)
        assert daemon.stop() == 0


@needs_trace
def test_no_room_is_answered_with_507_and_passes(tmp_path: Path) -> None:
    """While writes fail with ENOSPC producers get 507 and readers are served; afterwards packets are taken again."""
    data = tmp_path / "data"
    with DaemonProcess(data) as daemon:
        assert httpx.post(f"{daemon.url}/v1/streams/plant.a/data", content=b'{"n":0}').status_code == 201
        assert daemon.stop() == 0
    # strace counts calls per thread, and the node tries again once a second: a short window ends soon in each.
    with DaemonProcess(data, prefix=_inject(data, "pwrite64", "error=ENOSPC:when=60..63")) as daemon:
        statuses = []
        with httpx.Client(base_url=daemon.url, timeout=PATIENCE_S) as client:
            for number in looks():
                statuses.append(client.post("/v1/streams/plant.a/data", json={"n": number}).status_code)
                if statuses[-1] == 507:
                    assert client.get("/v1/streams/plant.a/packets").status_code == 200
                if 507 in statuses and statuses[-1] == 201:
                    break
        assert 507 in statuses
        assert statuses[-1] == 201
        assert set(statuses) == {201, 507}
        assert daemon.stop() == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(path)], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("needs the right to mount a tmpfs")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_full_disk_refuses_publishers_and_serves_readers(small_disk: Path) -> None:
    """On a disk that is really full publishing gets 507, reading goes on, and freed room is used again."""
    environment = {
        "OVERLAYD_STORAGE__RESERVE": "1MiB",
        "OVERLAYD_STORAGE__DISK_HIGH_WATER": "64KiB",
        "OVERLAYD_STORAGE__DISK_LOW_WATER": "1MiB",
    }
    filler = small_disk / "filler"
    with DaemonProcess(small_disk / "data", environment=environment) as daemon:
        producer = Producer(daemon.url, "c", "plant.a")
        producer.start()
        wait_for_packets([producer], 50)
        acknowledged = producer.finish()
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        with httpx.Client(base_url=daemon.url, timeout=PATIENCE_S) as client:
            statuses = [
                client.post("/v1/streams/plant.a/data", content=b'"' + b"x" * 50_000 + b'"').status_code
                for _ in range(50)
            ]
            assert 507 in statuses
            assert set(statuses) <= {201, 507}
            assert client.get("/v1/streams/plant.a/packets").status_code == 200
            filler.unlink()
            for _ in looks():
                if client.post("/v1/streams/plant.a/data", content=b'"again"').status_code == 201:
                    break
            else:
                pytest.fail("freed room was not used again")
        check_nothing_lost(daemon.url, "plant.a", acknowledged)
        assert daemon.stop() == 0
