"""kill -9 at any instant: everything that was acknowledged is there, exactly once."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
from daemon_process import DaemonProcess, Producer, check_nothing_lost, wait_for_packets

STREAMS = ("plant.a", "plant.b")


def _kill_rounds(directory: Path, rounds: int, seed: int) -> None:
    chance = random.Random(seed)
    acknowledged: dict[str, dict[str, dict[str, object]]] = {stream: {} for stream in STREAMS}
    for number in range(rounds):
        with DaemonProcess(directory) as daemon:
            producers = [
                Producer(daemon.url, f"r{number}c{i}", STREAMS[i % 2], batch=chance.choice((1, 1, 20)))
                for i in range(4)
            ]
            for producer in producers:
                producer.start()
            wait_for_packets(producers, chance.randrange(5, 150))
            daemon.kill()
            for i, producer in enumerate(producers):
                acknowledged[STREAMS[i % 2]] |= producer.finish()
    with DaemonProcess(directory) as daemon:
        for stream in STREAMS:
            count = check_nothing_lost(daemon.url, stream, acknowledged[stream])
            assert count >= len(acknowledged[stream])
        assert daemon.stop() == 0
    verified = subprocess.run(
        [sys.executable, "-m", "overlayd", "verify", "--data", str(directory)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert verified.returncode == 0, verified.stdout + verified.stderr


def test_acknowledged_packets_survive_three_kills(tmp_path: Path) -> None:
    """Three kills under load from four clients lose nothing, repeat nothing and leave a log that verifies."""
    _kill_rounds(tmp_path / "data", rounds=3, seed=1)


@pytest.mark.slow
def test_acknowledged_packets_survive_fifty_kills(tmp_path: Path) -> None:
    """The same with fifty kills on one log."""
    _kill_rounds(tmp_path / "data", rounds=50, seed=2)
