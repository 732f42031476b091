"""Manifests, the catalogue of backups, and the copy itself."""

import sqlite3
from pathlib import Path

import msgspec
import pytest
from storage_rig import Rig, append, drafts

from overlayd.cli.making_backup import make_backup
from overlayd.model.errors import BackupDamaged, BackupRefused, LogInconsistent
from overlayd.model.units import Size
from overlayd.storage.backup import catalogue as catalogue_module
from overlayd.storage.backup.catalogue import BackupCatalogue, BackupRecord, begin_record, rotate_backups
from overlayd.storage.backup.copying import SYNC_BYTES, CopyWatch, copy_database
from overlayd.storage.backup.manifest import (
    FORMAT,
    MANIFEST_BYTES_MAX,
    MANIFEST_NAME,
    Manifest,
    check_files,
    describe_file,
    encode_manifest,
    read_manifest,
)
from overlayd.storage.backup.partials import partial_directory, partial_name
from overlayd.storage.backup.settings import BackupSettings

SETTINGS = BackupSettings()


def written(place: Path, **changes: object) -> Manifest:
    """A backup of one file in a directory."""
    (place / "log.sqlite3").write_bytes(b"log" * 1000)
    manifest = Manifest(
        FORMAT, "id", 1, "then", "0", "3", "log", "e", 1, "root", "note", 1, ("key",), {"log": 1},
        (describe_file(place / "log.sqlite3"),),
    )  # fmt: skip
    manifest = msgspec.structs.replace(manifest, **changes)
    (place / MANIFEST_NAME).write_bytes(encode_manifest(manifest))
    return manifest


def put(record: BackupRecord, *, log: str | None = None) -> None:
    """The directory of a backup, with a manifest that says so; `log`: or says that it is of that one."""
    path = Path(record.path)
    path.mkdir(parents=True)
    written(path, id=record.id, log=record.log if log is None else log)


def test_manifest_comes_back(tmp_path: Path) -> None:
    """What was written is what is read, and the files are those it speaks of."""
    manifest = written(tmp_path)
    found = read_manifest(tmp_path)
    assert msgspec.structs.replace(found, self_blake3="") == manifest
    assert found.bytes == 3000
    check_files(tmp_path, found)


def test_every_flipped_byte_of_a_manifest_is_noticed(tmp_path: Path) -> None:
    """No byte of it can change, except white space, without being refused or meaning the same."""
    written(tmp_path)
    path = tmp_path / MANIFEST_NAME
    whole, found = path.read_bytes(), read_manifest(tmp_path)
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            assert read_manifest(tmp_path) == found
        except BackupDamaged:
            continue


@pytest.mark.parametrize("content", [b"", b"{}", b"null", b"[" * 10_000, b" " * (MANIFEST_BYTES_MAX + 1)])
def test_what_is_no_manifest_is_refused(tmp_path: Path, content: bytes) -> None:
    """Empty, foreign, endless."""
    (tmp_path / MANIFEST_NAME).write_bytes(content)
    with pytest.raises(BackupDamaged):
        read_manifest(tmp_path)


def test_manifest_of_another_format(tmp_path: Path) -> None:
    """A later format isn't guessed at."""
    written(tmp_path, format=2)
    with pytest.raises(BackupDamaged, match="format 2"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        ["../log.sqlite3"], ["log.sqlite3", "keys"], ["log.sqlite3", "high-water"], ["log.sqlite3", "backups.json"],
        ["log.sqlite3", "log.sqlite3"], ["log.sqlite3", "log.sqlite3-wal"], ["regtest.sqlite3"], [],
    ],
)  # fmt: skip
def test_manifest_names_only_what_a_backup_has(tmp_path: Path, names: list[str]) -> None:
    """Whatever else it names would be restored: outside the directory, or in place of the node's keys and marks."""
    manifest = written(tmp_path)
    named = tuple(msgspec.structs.replace(manifest.files[0], name=name) for name in names)
    (tmp_path / MANIFEST_NAME).write_bytes(encode_manifest(msgspec.structs.replace(manifest, files=named)))
    with pytest.raises(BackupDamaged, match="doesn't name the files"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("change", ["cut", "flip", "longer", "gone"])
def test_altered_files_are_refused(tmp_path: Path, change: str) -> None:
    """Truncated, altered, longer, or not there."""
    manifest = written(tmp_path)
    path = tmp_path / "log.sqlite3"
    content = path.read_bytes()
    if change == "gone":
        path.unlink()
    else:
        path.write_bytes({"cut": content[:-1], "flip": b"x" + content[1:], "longer": content + b"x"}[change])
    with pytest.raises(BackupDamaged):
        check_files(tmp_path, manifest)


def test_catalogue_knows_what_came_before(tmp_path: Path) -> None:
    """Whoever erases something is told every copy made before that rotation left; the list has the others, too."""
    catalogue = BackupCatalogue(tmp_path)
    assert catalogue.all() == []
    for made_us in (30, 10, 20):
        catalogue.add(msgspec.structs.replace(begin_record(made_us, tmp_path), verified=True))
    catalogue.note_removed(frozenset({begin_record(10, tmp_path).id}), 99)
    assert [record.made_us for record in catalogue.backups_before(30)] == [20]
    assert [(record.made_us, record.removed_us) for record in catalogue.all()] == [(10, 99), (20, 0), (30, 0)]
    catalogue.add(begin_record(30, tmp_path))
    assert [record.verified for record in catalogue.all()] == [True, True, False]
    assert not catalogue.all()[0].is_there


def test_rotation_lists_what_it_could_not_take_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backup that stays, because a file of it can't be deleted, isn't listed as gone, and is tried again."""
    catalogue, place = BackupCatalogue(tmp_path), tmp_path / "backups"
    for made_us in (1, 2):
        record = msgspec.structs.replace(begin_record(made_us, place), verified=True)
        put(record)
        catalogue.add(record)
    with monkeypatch.context() as patch:
        patch.setattr(catalogue_module.shutil, "rmtree", lambda path, ignore_errors: None)
        assert rotate_backups(catalogue, place, 1, 9) == []
    assert [record.removed_us for record in catalogue.all()] == [0, 0]
    assert rotate_backups(catalogue, place, 1, 9) == [begin_record(1, place).id]
    assert [record.removed_us for record in catalogue.all()] == [9, 0]


def test_rotation_takes_only_its_own(tmp_path: Path) -> None:
    """What another node, or a person, put where a backup of ours was isn't deleted; what nobody can read isn't either."""
    catalogue, place = BackupCatalogue(tmp_path), tmp_path / "backups"
    ours = [msgspec.structs.replace(begin_record(at, place), log="ours", verified=True) for at in range(1, 5)]
    for record, log in zip(ours, ("theirs", "ours", "ours", "ours"), strict=True):
        put(record, log=log)
        catalogue.add(record)
    (Path(ours[1].path) / MANIFEST_NAME).write_bytes(b"{}")
    assert rotate_backups(catalogue, place, 1, 9) == [ours[0].id, ours[2].id]
    assert [Path(record.path).exists() for record in ours] == [True, True, False, True]
    assert [record.removed_us for record in catalogue.all()] == [9, 0, 9, 0]


def test_partials_are_their_makers(tmp_path: Path) -> None:
    """In a place that nodes share each removes what it left itself, not what another one left or is writing."""
    left = {log: tmp_path / partial_name("left", log) for log in ("ours", "theirs")}
    for path in left.values():
        path.mkdir()
        (path / "log.sqlite3").write_bytes(b"half")
    with partial_directory(tmp_path, "a", "ours") as running:
        assert [path.exists() for path in left.values()] == [False, True]
        with partial_directory(tmp_path, "b", "ours"), partial_directory(tmp_path, "a", "theirs"):
            assert running.exists()  # beside one of the same log: a restored copy of it, or two commands at once
        assert not left["theirs"].exists()
        running.rename(tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_partials_where_nobody_may_write(tmp_path: Path) -> None:
    """It is refused, and says where."""
    (tmp_path / "file").touch()
    with pytest.raises(BackupRefused, match="file"), partial_directory(tmp_path / "file", "a", "ours"):
        raise AssertionError


async def test_nodes_that_share_a_place(tmp_path: Path) -> None:
    """A backup of one log leaves what another log's backup is putting together where it is."""
    place, partials = tmp_path / "place", set[str]()
    for name in ("one", "two"):
        rig = Rig(tmp_path / name)
        rig.directory.mkdir()
        async with rig.open() as log:
            await append(log, "a")
        made = make_backup(rig.directory, place, rig.clock.now_us() + len(partials), SETTINGS)
        assert made.faults == ()
        left = place / partial_name(made.manifest.id, made.manifest.log)
        left.mkdir()
        partials.add(left.name)
        assert {path.name for path in place.glob(".*")} == partials


def test_unreadable_catalogue_says_so(tmp_path: Path) -> None:
    """It isn't taken for an empty one, which would say that nothing was ever copied."""
    (tmp_path / "backups.json").write_bytes(b"{")
    with pytest.raises(LogInconsistent, match="can't be read"):
        BackupCatalogue(tmp_path).all()


def test_catalogue_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest that are gone make room; one that may be there never does."""
    monkeypatch.setattr(catalogue_module, "RECORDS_MAX", 3)
    catalogue = BackupCatalogue(tmp_path)
    for made_us in range(1, 4):
        catalogue.add(begin_record(made_us, tmp_path))
    catalogue.note_removed(frozenset({begin_record(2, tmp_path).id}), 9)
    catalogue.add(begin_record(4, tmp_path))
    catalogue.add(begin_record(5, tmp_path))
    assert [record.made_us for record in catalogue.all()] == [1, 3, 4, 5]


def test_rotation_keeps_the_newest_that_are_whole(tmp_path: Path) -> None:
    """Neither a damaged nor another place's backup is taken away or counted."""
    catalogue = BackupCatalogue(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    for made_us, place, verified in ((1, tmp_path, True), (2, elsewhere, True), (3, tmp_path, False), (4, tmp_path, True),
                                     (5, tmp_path, True)):  # fmt: skip
        record = msgspec.structs.replace(begin_record(made_us, place), verified=verified)
        put(record)
        catalogue.add(record)
    assert rotate_backups(catalogue, tmp_path, 2, 77) == [begin_record(1, tmp_path).id]
    there = [record.made_us for record in catalogue.all() if Path(record.path).exists()]
    assert there == [2, 3, 4, 5]
    assert [record.made_us for record in catalogue.all() if record.removed_us] == [1]
    assert rotate_backups(catalogue, tmp_path, 2, 78) == []


@pytest.fixture
def source(tmp_path: Path) -> sqlite3.Connection:
    """A database of a few hundred pages, read-only."""
    path = tmp_path / "source.sqlite3"
    with sqlite3.connect(path, isolation_level=None) as connection:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("CREATE TABLE t (a INTEGER PRIMARY KEY, b BLOB)")
        connection.execute("BEGIN")
        connection.executemany("INSERT INTO t VALUES (?, ?)", ((n, b"%08d" % n * 40) for n in range(20_000)))
        connection.execute("DELETE FROM t WHERE a >= 4000")
        connection.execute("COMMIT")
    connection.close()
    return sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, isolation_level=None)


def test_copy_is_whole_and_compact(source: sqlite3.Connection, tmp_path: Path) -> None:
    """Every row; no free page, and with them nothing that was deleted; the vacuum setting stays."""
    target, wal = tmp_path / "copy", tmp_path / "wal"
    copy_database(source, target, CopyWatch(target, wal, SETTINGS))
    copy = sqlite3.connect(target)
    assert copy.execute("SELECT count(*), max(a) FROM t").fetchone() == (4000, 3999)
    assert copy.execute("PRAGMA freelist_count").fetchone() == (0,)
    assert copy.execute("PRAGMA auto_vacuum").fetchone() == (2,)
    assert b"00019999" not in target.read_bytes()
    assert target.stat().st_mode & 0o777 == 0o600
    copy.close()
    source.close()


def test_copy_is_given_up_when_the_wal_grows(source: sqlite3.Connection, tmp_path: Path) -> None:
    """`wal_bytes`: the log can't be cut while it is read, so what is copied too slowly isn't copied."""
    target, wal = tmp_path / "copy", tmp_path / "wal"
    wal.write_bytes(bytes(1001))
    with pytest.raises(BackupRefused, match="write-ahead log grew to 1001"):
        copy_database(source, target, CopyWatch(target, wal, msgspec.structs.replace(SETTINGS, wal_bytes=Size(1000))))
    assert not target.exists()
    wal.write_bytes(bytes(1000))
    copy_database(source, target, CopyWatch(target, wal, msgspec.structs.replace(SETTINGS, wal_bytes=Size(1000))))
    source.close()


def test_copy_keeps_to_its_rate(tmp_path: Path) -> None:
    """`rate`: after each piece it pauses as long as the piece should have taken."""
    target, pauses = tmp_path / "copy", list[float]()
    rate = msgspec.structs.replace(SETTINGS, rate=Size(1 << 20))
    watch = CopyWatch(target, tmp_path / "wal", rate, sleep=pauses.append)
    target.write_bytes(bytes(SYNC_BYTES - 1))
    assert not watch.look()
    target.write_bytes(bytes(SYNC_BYTES))
    assert not watch.look()
    assert not watch.look()
    assert pauses == [16.0]


async def test_damaged_database_is_refused_by_the_copy(rig: Rig) -> None:
    """A page that can't be read ends the copy with what to do, and leaves no half of one."""
    async with rig.open() as log:
        await append(log, "a", drafts(*[""] * 2000))
    path = rig.directory / "log.sqlite3"
    content = bytearray(path.read_bytes())
    at = next(at for at in range(40 * 4096, len(content), 4096) if content[at] == 13)
    content[at : at + 4096] = bytes([7]) * 4096
    path.write_bytes(content)
    connection, target = sqlite3.connect(f"{path.as_uri()}?immutable=1", uri=True), rig.directory / "copy"
    with pytest.raises(BackupRefused, match="damaged"):
        copy_database(connection, target, CopyWatch(target, rig.directory / "wal", SETTINGS))
    assert not target.exists()
    connection.close()
