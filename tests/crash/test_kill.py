"""kill -9 at any instant: everything that was acknowledged is there, exactly once."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
from daemon_process import DaemonProcess, Producer, check_nothing_lost, wait_for_packets

STREAMS = ("plant.a", "plant.b")


def _kill_rounds(directory: Path, rounds: int, seed: int, *, stops: bool = False) -> None:
    """`stops`: after each kill the daemon starts and stops in order, having published nothing or very little."""
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
        if stops:
            acknowledged[STREAMS[0]] |= _stop_in_order(directory, f"r{number}s", chance.randrange(2))
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


def _stop_in_order(directory: Path, name: str, count: int) -> dict[str, dict[str, object]]:
    """A start and a clean stop, `count` packets into the first stream between them; their receipts."""
    with DaemonProcess(directory) as daemon:
        producer = Producer(daemon.url, name, STREAMS[0])
        if count:
            producer.start()
            wait_for_packets([producer], count)
            producer.finish()
        assert daemon.stop() == 0
    return producer.acknowledged


def test_acknowledged_packets_survive_three_kills(tmp_path: Path) -> None:
    """Three kills under load from four clients lose nothing, repeat nothing and leave a log that verifies."""
    _kill_rounds(tmp_path / "data", rounds=3, seed=1)


def test_kills_and_clean_stops_in_turn(tmp_path: Path) -> None:
    """What a start after a kill works out is there after the clean stop that follows, and after the next kill."""
    _kill_rounds(tmp_path / "data", rounds=2, seed=3, stops=True)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_acknowledged_packets_survive_fifty_kills(tmp_path: Path) -> None:
    """The same with fifty kills on one log."""
    _kill_rounds(tmp_path / "data", rounds=50, seed=2)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_kills_and_clean_stops_in_turn(tmp_path: Path) -> None:
    """The same with twenty kills, each followed by a start and a clean stop."""
    _kill_rounds(tmp_path / "data", rounds=20, seed=4, stops=True)
