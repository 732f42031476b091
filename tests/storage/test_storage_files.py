"""The files beside the database."""

import os
import stat
from pathlib import Path

import pytest
from storage_rig import Rig

from overlayd.model.clock import Entropy
from overlayd.model.cursor import make_epoch
from overlayd.model.errors import ConfigInvalid, LogInconsistent
from overlayd.model.units import Size
from overlayd.storage import files
from overlayd.storage.epochs import EpochRow, Loss, ancestry_of, judge_high_water, next_epoch
from overlayd.storage.files import HighWater

E1, E2, E3 = (make_epoch(counter, bytes(5)) for counter in (1, 2, 3))


def test_high_water_round_trip(tmp_path: Path) -> None:
    """What was written is read; nothing is None."""
    assert files.read_high_water(tmp_path) is None
    for size in (0, 1, 1 << 62):
        mark = HighWater(E2, size, bytes(range(32)))
        files.write_high_water(tmp_path, mark)
        assert files.read_high_water(tmp_path) == mark
    assert sorted(path.name for path in tmp_path.iterdir()) == ["high-water"]


def test_replace_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed sync leaves the old content in place."""
    path = tmp_path / "file"
    files.replace_file(path, b"old")

    def fail(descriptor: int) -> None:
        raise OSError(5, "injected")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="injected"):
            files.replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert path.stat().st_mode & 0o777 == 0o600


def test_secrets_are_drawn_once(tmp_path: Path) -> None:
    """The first start draws them, later ones read them."""
    secret, is_new = files.read_or_make_secret(tmp_path / "key", 32, Entropy())
    assert is_new
    assert files.read_or_make_secret(tmp_path / "key", 32, Entropy()) == (secret, False)
    with pytest.raises(LogInconsistent):
        files.read_or_make_secret(tmp_path / "key", 16, Entropy())


def test_reserve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is allocated, released and taken again; without room there is none, and a size of 0 asks for none."""
    assert files.take_reserve(tmp_path, 8192)
    assert (tmp_path / "reserve").stat().st_blocks * 512 >= 8192
    assert files.take_reserve(tmp_path, 4096)
    assert (tmp_path / "reserve").stat().st_size == 4096
    assert files.release_reserve(tmp_path)
    assert not files.release_reserve(tmp_path)

    def fail(descriptor: int, start: int, length: int) -> None:
        raise OSError(28, "injected")

    monkeypatch.setattr(os, "posix_fallocate", fail)
    assert not files.take_reserve(tmp_path, 8192)
    assert not (tmp_path / "reserve").exists()
    assert files.take_reserve(tmp_path, 0)


def put(path: Path, kind: str) -> None:
    """Something that isn't a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        os.mknod(path, stat.S_IFSOCK | 0o600)
    else:
        path.mkdir()


@pytest.mark.parametrize("kind", ["pipe", "socket", "directory"])
@pytest.mark.parametrize("name", ["lock", "high-water", "keys/log.ed25519", "keys/index.key", "reserve"])
async def test_what_is_not_a_file_is_refused(rig: Rig, name: str, kind: str) -> None:
    """A pipe, socket or directory in place of a file is named at once; nobody waits for its other end."""
    put(rig.directory / name, kind)
    rig.set_settings(reserve=Size(4096))
    with pytest.raises(ConfigInvalid, match=name):
        async with rig.open():
            raise AssertionError("it opened")


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_leftovers_are_replaced(tmp_path: Path, kind: str) -> None:
    """Whatever stands under the name that a new file has while it is written goes; nobody waits for it."""
    put(tmp_path / "key.new", kind)
    secret, _ = files.read_or_make_secret(tmp_path / "key", 32, Entropy())
    assert (tmp_path / "key").read_bytes() == secret


def test_high_water_is_judged() -> None:
    """Shorter than the mark: a loss. Long enough: the root at the mark is compared. An acknowledged loss: nothing."""

    def judge(rows: list[EpochRow], epoch: int, mark: int, size: int) -> object:
        return judge_high_water(rows, HighWater(epoch, mark, b"r" * 32), size)  # type: ignore[arg-type]

    one = [EpochRow(E1, 1)]
    two = [EpochRow(E1, 1), EpochRow(E2, 11)]
    assert judge_high_water(one, None, 5) is None
    assert judge(one, E1, 5, 5) == 5
    assert judge(one, E1, 5, 9) == 5
    assert isinstance(judge(one, E1, 6, 5), Loss)
    assert judge(two, E1, 10, 20) == 10
    assert judge(two, E1, 11, 20) is None
    assert judge(two, E2, 20, 20) == 20
    assert isinstance(judge(two, E2, 21, 20), Loss)
    assert isinstance(judge(one, E2, 1, 20), Loss)
    assert isinstance(judge([], E1, 1, 0), Loss)
    assert judge([], E1, 0, 0) is None


def test_epochs() -> None:
    """Ancestors share what lies before the next epoch's first entry; counters only grow."""
    rows = [EpochRow(E1, 1), EpochRow(E2, 11), EpochRow(E3, 11)]
    assert ancestry_of(rows) == [(E1, 10), (E2, 10)]
    assert ancestry_of(rows[:1]) == []
    assert next_epoch([], Entropy()) >> 40 == 1
    assert next_epoch([E2, E1], Entropy()) >> 40 == 3
    with pytest.raises(LogInconsistent):
        next_epoch([make_epoch(8192, bytes(5))], Entropy())
