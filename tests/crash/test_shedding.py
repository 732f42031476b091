"""A disk that fills, really small: what is marked gives way, everything else is refused, and nothing is corrupted."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from daemon_process import DaemonProcess
from real_waiting import PATIENCE_S, pause

DISK_BYTES = 64 << 20
ENVIRONMENT = {
    "OVERLAYD_STORAGE__RESERVE": "4MiB",
    "OVERLAYD_STORAGE__DISK_HIGH_WATER": "16MiB",
    "OVERLAYD_STORAGE__DISK_LOW_WATER": "24MiB",
    "OVERLAYD_RETENTION__TRUST_CLOCK": "true",
}
BODY = b'"' + b"x" * 100_000 + b'"'


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def publish(client: httpx.Client, stream: str) -> int:
    """One packet of 100 kB; the status."""
    return client.post(f"/v1/streams/{stream}/data", content=BODY).status_code


def own_client(directory: Path) -> httpx.Client:
    """The service's own user, who may do everything."""
    return httpx.Client(
        transport=httpx.HTTPTransport(uds=str(directory / "overlayd.sock")),
        base_url="http://localhost",
        timeout=PATIENCE_S,
    )


def test_marked_streams_give_way(disk: Path) -> None:
    """Twice the disk goes through a stream that may be shed; what isn't marked or is held stays whole."""
    directory = disk / "data"
    with DaemonProcess(directory, environment=ENVIRONMENT) as daemon, own_client(directory) as client:
        marked = {"retention": {"when_full": "drop_oldest"}}
        assert client.put("/v1/streams/camera", json=marked).status_code == 201
        assert client.put("/v1/streams/case", json=marked).status_code == 201
        for name in ("case", "ledger"):
            assert [publish(client, name) for _ in range(20)] == [201] * 20
        hold = client.post("/v1/streams/case/holds", json={"reason": "case 7", "to": 20})
        assert hold.status_code == 201
        taken, refused = 0, 0
        while taken < 2 * DISK_BYTES // len(BODY):
            status = publish(client, "camera")
            taken += status == 201
            refused += status == 507
            assert status in (201, 507)
            assert refused < 3000
            if status == 507:
                pause(0.05)
        assert refused
        found = client.get("/v1/streams/camera").json()
        assert found["head_sequence"] == taken
        assert 0 < found["packets"] < taken
        newest = client.get(f"/v1/streams/camera/packets/{taken}")
        assert newest.status_code == 200
        for name in ("case", "ledger"):
            packets = client.get(f"/v1/streams/{name}").json()["packets"]
            assert packets == 20
        events = client.get("/v1/streams/overlayd.events/packets", params={"limit": 1000}).json()["packets"]
        assert {"disk.full", "disk.shed"} <= {event["type"] for event in events}
        assert "bytes free" in client.get("/readyz").json()["checks"]["disk"]["detail"]
        assert daemon.stop() == 0
    verified = subprocess.run(
        [sys.executable, "-m", "overlayd", "verify", "--data", str(directory)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert verified.returncode == 0, verified.stdout + verified.stderr


def test_without_marks_the_disk_refuses(disk: Path) -> None:
    """Nothing is dropped that isn't marked: publishing is refused, reading goes on."""
    directory = disk / "data"
    with DaemonProcess(directory, environment=ENVIRONMENT) as daemon, own_client(directory) as client:
        statuses: list[int] = []
        while 507 not in statuses and len(statuses) < 1000:
            statuses.append(publish(client, "ledger"))
            if len(statuses) % 50 == 0:
                pause(0.2)
        assert statuses[-1] == 507
        pause(1.5)
        assert publish(client, "ledger") == 507
        found = client.get("/v1/streams/ledger").json()
        assert found["packets"] == statuses.count(201)
        assert client.get("/readyz").status_code == 503
        assert daemon.stop() == 0
