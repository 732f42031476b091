"""Files that are damaged at random: nothing wrong is served, nothing is missing without a word, the node goes on."""

import random
import shutil
from pathlib import Path

import pytest
import trio
from damage_rig import Sound, damage, judge_damaged, make_sound

SHORT = 25
LONG = 600
SERVED_MIN = 0.99


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Sound:
    """A log in order, to be copied."""
    return trio.run(make_sound, tmp_path_factory.mktemp("sound") / "data")


def outcome(sound: Sound, directory: Path, seed: int) -> tuple[int, int]:
    """One damage; how many entries' pages it didn't hit, and how many of these are served."""
    shutil.copytree(sound.directory, directory)
    _, hit = damage(directory / "log.sqlite3", random.Random(seed))
    found = trio.run(judge_damaged, sound, directory, hit)
    assert found.served >= SERVED_MIN * found.unhit, f"{found} after damage {seed}"
    shutil.rmtree(directory)
    return found.unhit, found.served


@pytest.mark.parametrize("seed", range(SHORT))
def test_damaged(sound: Sound, tmp_path: Path, seed: int) -> None:
    """One of a few damages, of every kind."""
    outcome(sound, tmp_path / "data", seed)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_damaged_many_times(sound: Sound, tmp_path: Path) -> None:
    """Hundreds of damages: each must hold by itself."""
    for seed in range(SHORT, SHORT + LONG):
        outcome(sound, tmp_path / "data", seed)
