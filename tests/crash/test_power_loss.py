"""Power loss: un-synced writes are dropped or torn, and still nothing acknowledged is lost."""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon_process import DaemonProcess, Producer, check_nothing_lost, wait_for_packets

HERE = Path(__file__).parent
UNSAFE = HERE / "unsafe_daemon.py"

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("pyfuse3") is None or not os.access("/dev/fuse", os.R_OK | os.W_OK),
    reason="needs pyfuse3 (`make fuse`) and /dev/fuse",
)


class PowerLossMount:
    """The forgetful file system, mounted."""

    def __init__(self, mountpoint: Path) -> None:
        mountpoint.mkdir()
        self.path = mountpoint
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "power_loss_fs.py"), str(mountpoint)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "mounted\n":
            _, errors = self._process.communicate(timeout=10)
            pytest.skip(f"the file system could not be mounted here: {errors[-300:]}")

    def cut(self, seed: int, destination: Path) -> None:
        """Loses power; `destination` is what the disk holds afterwards."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"cut {seed} {destination}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "cut\n"

    def close(self) -> None:
        """Unmounts."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        finally:
            subprocess.run(["fusermount3", "-uqz", str(self.path)], check=False)
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()
            for stream in (self._process.stdout, self._process.stderr):
                assert stream is not None
                stream.close()


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[PowerLossMount]:
    """A mounted file system that can lose power."""
    mounted = PowerLossMount(tmp_path / "mount")
    yield mounted
    mounted.close()


def _lose_power(mount: PowerLossMount, survivor: Path, seed: int, script: Path | None) -> dict[str, dict[str, object]]:
    """Publishes from three clients, cuts the power, and returns what was acknowledged."""
    environment = {"OVERLAYD_STORAGE__RESERVE": "64KiB"}
    with DaemonProcess(mount.path / "data", script=script, environment=environment) as daemon:
        producers = [Producer(daemon.url, f"c{i}", "plant.a", batch=(1, 7, 40)[i]) for i in range(3)]
        for producer in producers:
            producer.start()
        wait_for_packets(producers, 400)
        mount.cut(seed, survivor)
        if daemon.is_running:
            daemon.kill()
        acknowledged: dict[str, dict[str, object]] = {}
        for producer in producers:
            acknowledged |= producer.finish()
    return acknowledged


def _is_all_there(survivor: Path, acknowledged: dict[str, dict[str, object]]) -> bool:
    try:
        with DaemonProcess(survivor / "data") as daemon:
            check_nothing_lost(daemon.url, "plant.a", acknowledged)
            return daemon.stop() == 0
    except AssertionError:
        return False


@pytest.mark.parametrize("seed", [1, 2, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 13))])
def test_acknowledged_packets_survive_a_power_cut(mount: PowerLossMount, tmp_path: Path, seed: int) -> None:
    """After a cut that drops and tears un-synced writes, every acknowledged packet is there exactly once."""
    survivor = tmp_path / "survivor"
    acknowledged = _lose_power(mount, survivor, seed, None)
    assert len(acknowledged) >= 400
    with DaemonProcess(survivor / "data") as daemon:
        check_nothing_lost(daemon.url, "plant.a", acknowledged)
        assert daemon.stop() == 0


def test_the_power_cut_would_show_a_log_that_is_not_synced(mount: PowerLossMount, tmp_path: Path) -> None:
    """With synchronous=OFF the same cut loses packets; otherwise the test above would prove nothing."""
    results = []
    survivor = tmp_path / "survivor"
    acknowledged = _lose_power(mount, survivor, 1, UNSAFE)
    results.append(_is_all_there(survivor, acknowledged))
    shutil.rmtree(survivor)
    assert not all(results)
