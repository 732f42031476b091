"""The parts that mend a damaged log: pages read without SQLite, the schema and edge kept outside, the exchange of files."""

import contextlib
import os
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from damage_rig import check_served, make_sound, read_everything
from hypothesis import given, settings
from hypothesis import strategies as st
from storage_rig import Rig, append, draft, drafts, forget_tail, receipts

from overlayd.model.errors import DamagedEntry, LogDamaged
from overlayd.storage.damage import mending
from overlayd.storage.damage.edges import Edge, EdgeFile, read_edges
from overlayd.storage.damage.known_loss import is_in_runs, join_runs, read_runs
from overlayd.storage.damage.mending import MARKER_NAME, MENDED_NAME, ask_for_mending, read_mendings
from overlayd.storage.damage.pages import BadPage, PageImage, decode_record, find_leaves, read_cells
from overlayd.storage.damage.schema import load_schema, read_schema
from overlayd.storage.damage.structure import find_broken_structure
from overlayd.storage.migrations import Feature

PAGE = 4096


def rows_of(image: PageImage, root: int) -> list[list[Any]]:
    """A table's rows as the pages have them; the rowid first."""
    rows = []
    for number, error in find_leaves(image, root):
        assert error is None
        rows += [[cell.rowid, *decode_record(cell.payload)] for cell in read_cells(image, number)]
    return rows


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.one_of(st.none(), st.integers(-(1 << 63), (1 << 63) - 1), st.floats(allow_nan=False)), st.text(max_size=40),
                  st.binary(max_size=9000)),
        max_size=60,
    )
)  # fmt: skip
def test_pages_say_what_sqlite_says(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[Any, str, bytes]]
) -> None:
    """Any rows, long ones over many pages included, with and without a rowid, before and after a checkpoint."""
    path = tmp_path_factory.mktemp("pages") / "some.sqlite3"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    connection.execute("CREATE TABLE t (a, b TEXT, c BLOB)")
    connection.execute("CREATE TABLE u (k INTEGER, v BLOB, PRIMARY KEY (k)) WITHOUT ROWID")
    connection.executemany("INSERT INTO t VALUES (?, ?, ?)", rows)
    connection.executemany("INSERT INTO u VALUES (?, ?)", [(at, row[2]) for at, row in enumerate(rows)])
    roots = dict(connection.execute("SELECT name, rootpage FROM sqlite_schema"))
    for _ in range(2):
        with PageImage(path) as image:
            assert rows_of(image, roots["t"]) == [[at, *row] for at, row in enumerate(rows, 1)]
            assert sorted(rows_of(image, roots["u"])) == [[0, at, row[2]] for at, row in enumerate(rows)]
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
def test_records_of_noise(payload: bytes) -> None:
    """Whatever the bytes, they are values or a bad page."""
    with contextlib.suppress(BadPage):
        decode_record(payload)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_pages_of_noise(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Files of noise that look like pages end, and end in nothing else than bad pages."""
    path = tmp_path_factory.mktemp("noise") / "noise.sqlite3"
    content = bytearray(data.draw(st.integers(1, 6)) * PAGE)
    for at in range(0, len(content), PAGE):
        content[at] = data.draw(st.sampled_from((2, 5, 10, 13, 0)))
        content[at + 1 : at + 40] = data.draw(st.binary(min_size=39, max_size=39))
    path.write_bytes(content)
    with PageImage(path) as image:
        for number, error in find_leaves(image, 1):
            if error is None:
                try:
                    list(read_cells(image, number))
                except BadPage:
                    continue
        assert find_broken_structure(path, path.parent)


def test_unfinished_and_foreign_frames_are_left_out(tmp_path: Path) -> None:
    """Of the write-ahead log everything up to the last whole commit counts, as for SQLite."""
    path = tmp_path / "some.sqlite3"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    connection.execute("CREATE TABLE t (a)")
    for number in range(5):
        connection.execute("INSERT INTO t VALUES (?)", (number,))
    root = connection.execute("SELECT rootpage FROM sqlite_schema").fetchone()[0]
    wal = Path(f"{path}-wal").read_bytes()
    for cut in range(len(wal) - 3 * (PAGE + 24), len(wal), 500):
        copy = tmp_path / "copy.sqlite3"
        shutil.copy(path, copy)
        Path(f"{copy}-wal").write_bytes(wal[:cut])
        with PageImage(copy) as image:
            mine = [row[1] for row in rows_of(image, root)]
        other = sqlite3.connect(copy)
        assert mine == [row[0] for row in other.execute("SELECT a FROM t")]
        other.close()
    for name in ("-wal", "-shm"):
        Path(f"{copy}{name}").unlink(missing_ok=True)
    Path(f"{copy}-wal").write_bytes(bytes(len(wal)))
    with PageImage(copy) as image:
        assert image.pages == range(1, copy.stat().st_size // PAGE + 1)
    connection.close()


def test_edges(tmp_path: Path) -> None:
    """Nodes are found by level and index; a file that is cut or altered says nothing; it is written only when it changes."""
    level0, level1 = bytes(range(32)) * 3, b"\1" * 32 + b"\2" * 32
    file = EdgeFile(tmp_path)
    file.write(515, (level0, level1))
    written = os.stat(tmp_path / "edge").st_ino
    file.write(516, (level0 + bytes(32), level1))
    assert os.stat(tmp_path / "edge").st_ino == written
    (edge,) = read_edges(tmp_path)
    assert [edge.find(1, index) for index in range(3)] == [b"\1" * 32, b"\2" * 32, b""]
    assert edge.find(0, 514) == b""
    assert edge.find(2, 0) == b""
    assert Edge(515, (level0,)).find(0, 512) == bytes(range(32))
    assert Edge(515, (level0,)).find(0, 511) == b""
    content = (tmp_path / "edge").read_bytes()
    for broken in (content[:-10], b"", b"\xff", content.replace(b"515", b"9999"), b"overlayd/edge/1\nx\n\n"):
        (tmp_path / "edge").write_bytes(broken)
        assert read_edges(tmp_path) == ()


def test_runs() -> None:
    """Joined where they touch; what isn't such a list is none."""
    assert join_runs([(5, 6), (1, 2), (3, 3), (6, 9)]) == [(1, 3), (5, 9)]
    assert read_runs("[[1,2]]") == [(1, 2)]
    for text in ("[1]", "{", None, 5):
        assert read_runs(text) == []
    assert is_in_runs([(1, 3)], 3)
    assert not is_in_runs([(1, 3)], 4)


def leading_page(directory: Path) -> int:
    """The page that leads to the entries' pages."""
    with PageImage(directory / "log.sqlite3") as image:
        rows = read_schema(image, load_schema(directory))
    return next(row.root for row in rows if row.name == "entry")


async def mend_me(directory: Path) -> Rig:
    """A log whose entries no way leads to any more."""
    rig = Rig(directory)
    async with rig.open() as log:
        await append(log, "s", drafts(*[f"{n}" for n in range(600)]))
    path, page = directory / "log.sqlite3", leading_page(directory)
    content = bytearray(path.read_bytes())
    content[(page - 1) * PAGE : page * PAGE] = bytes(PAGE)
    path.write_bytes(content)
    return rig


async def test_every_entry_comes_back_without_a_way_to_it(tmp_path: Path) -> None:
    """The page that leads to all others is gone: all are found, nothing is lost, the epoch stays, names are known."""
    rig = await mend_me(tmp_path / "data")
    assert "page" in find_broken_structure(tmp_path / "data" / "log.sqlite3", tmp_path / "data")
    async with rig.open() as log:
        served, lost = await read_everything(log)
        assert lost == []
        assert len(served) == log.head
        assert log.ancestry == []
        (found,) = await log.find_by_id("17")
        assert found == served[found.offset]
        (again,) = receipts(await append(log, "s", [draft(found.body.decode(), id="17")]))
        assert (again.offset, again.duplicate) == (found.offset, True)
        (fresh,) = receipts(await append(log, "s"))
        assert fresh.sequence == 601
    (report,) = read_mendings(tmp_path / "data")
    assert (report.lost_count, report.new_epoch) == (0, False)
    assert (Path(report.kept_in) / "log.sqlite3").exists()


async def test_exchange_can_be_cut_off_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start that dies at any rename or removal of the exchange is taken up by the next one."""
    sound = tmp_path / "sound"
    await mend_me(sound)

    class Dead(BaseException):
        """Not an error that anybody handles."""

    for steps in range(8):
        directory = tmp_path / f"run-{steps}"
        shutil.copytree(sound, directory)
        left = [steps]

        def dying(real: Any, left: list[int] = left) -> Any:
            def call(*arguments: Any, **keywords: Any) -> Any:
                if not left[0]:
                    raise Dead
                left[0] -= 1
                return real(*arguments, **keywords)

            return call

        rig = Rig(directory)
        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", dying(Path.rename))
            patch.setattr(mending.files, "sync_directory", dying(mending.files.sync_directory))
            try:
                async with rig.open():
                    pass
            except Dead:
                pass
        async with rig.open() as log:
            served, lost = await read_everything(log)
            assert (len(served), lost) == (log.head, [])
            assert log.head > 600
        assert not (directory / MARKER_NAME).exists()
        assert not (directory / MENDED_NAME).exists()
        assert list(directory.glob("damaged-*/log.sqlite3"))


async def test_mending_is_asked_for_and_done_once(tmp_path: Path) -> None:
    """What was found while the node ran is mended by the next start, and not again by the one after it."""
    rig = Rig(tmp_path / "data")
    async with rig.open() as log:
        await append(log, "s")
    ask_for_mending(tmp_path / "data", "an index was found broken")
    for _ in range(2):
        async with rig.open() as log:
            assert log.head
    (report,) = read_mendings(tmp_path / "data")
    assert report.reason == "an index was found broken"


async def test_mendings_are_bounded(tmp_path: Path) -> None:
    """A disk that damages the log again and again isn't filled with copies: the start says that it has to be replaced."""
    rig = await mend_me(tmp_path / "data")
    for number in range(mending.MENDINGS_MAX):
        (tmp_path / "data" / f"damaged-{number}").mkdir()
    with pytest.raises(LogDamaged, match="17th time"):
        async with rig.open():
            pass  # pragma: no cover


async def test_mending_needs_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without room for the new database nothing is begun, and how much it takes is said."""
    rig = await mend_me(tmp_path / "data")
    monkeypatch.setattr(mending.files, "free_bytes", lambda directory: 1000)
    with pytest.raises(LogDamaged, match="1000 are free"):
        async with rig.open():
            pass  # pragma: no cover
    assert not list((tmp_path / "data").glob("damaged-*"))


async def test_lost_rows_of_a_feature_are_made_harmless(tmp_path: Path) -> None:
    """A feature says what has to be done when rows of its tables are gone."""
    steps = ("CREATE TABLE guests (name TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;",)
    feature = Feature("guests", steps, ("INSERT OR IGNORE INTO guests VALUES ('nobody')",))
    rig = Rig(tmp_path / "data")
    async with rig.open(features=(feature,)) as log:
        await log.write(lambda c: c.execute("INSERT INTO guests VALUES ('somebody')"))
    rows = load_schema(tmp_path / "data").rows
    page = next(row.root for row in rows if row.name == "guests")
    path = tmp_path / "data" / "log.sqlite3"
    content = bytearray(path.read_bytes())
    content[(page - 1) * PAGE : page * PAGE] = bytes(PAGE)
    path.write_bytes(content)
    ask_for_mending(tmp_path / "data", "because")
    async with rig.open(features=(feature,)) as log:
        assert await log.read(lambda c: c.execute("SELECT name FROM guests").fetchall()) == [("nobody",)]
    (report,) = read_mendings(tmp_path / "data")
    assert report.damaged_tables == ["guests"]


async def test_positions_lead_to_nobody_elses_packet(tmp_path: Path) -> None:
    """A stored position that points at another stream's packet is damage, not that packet."""
    rig = Rig(tmp_path / "data")
    async with rig.open() as log:
        for _ in range(20):
            await append(log, "s")
            await append(log, "t")
    with sqlite3.connect(tmp_path / "data" / "log.sqlite3", isolation_level=None) as connection:
        blocks = dict(connection.execute("SELECT stream, offsets FROM position_block"))
        connection.execute("UPDATE position_block SET offsets = ? WHERE stream = 1", (blocks[2],))
    connection.close()
    async with rig.open() as log:
        forget_tail(log)
        stream = log.find_stream("s")
        assert stream is not None
        with pytest.raises(DamagedEntry, match="positions"):
            await log.find_offset(stream, 3)
        with pytest.raises(DamagedEntry, match="positions"):
            await log.read_packets(stream, 0, 10)


async def test_times_are_found_past_damage(tmp_path: Path) -> None:
    """Reading from a time looks past entries that are lost or damaged."""
    rig = Rig(tmp_path / "data")
    async with rig.open() as log:
        for _ in range(40):
            rig.clock.advance(1)
            await append(log, "s")
        wanted = rig.clock.us - 10_000_000
        right = await log.find_offset_at(wanted)
    with sqlite3.connect(tmp_path / "data" / "log.sqlite3", isolation_level=None) as connection:
        connection.execute("DROP TRIGGER entry_update_guard")
        connection.execute("UPDATE entry SET e = zeroblob(146) WHERE offset BETWEEN 10 AND 25")
        connection.execute("UPDATE entry SET e = randomblob(146) WHERE offset BETWEEN 26 AND 28")
        connection.execute("INSERT OR REPLACE INTO state VALUES ('is_clean', 1)")
    connection.close()
    async with rig.open() as log:
        forget_tail(log)
        assert await log.find_offset_at(wanted) == right


async def test_sound_log_needs_no_mending(tmp_path: Path) -> None:
    """All the checks of a start leave a log alone that is in order, whatever was taken away from it."""
    sound = await make_sound(tmp_path / "data", flush_entries=256)
    assert find_broken_structure(tmp_path / "data" / "log.sqlite3", tmp_path / "data") == ""
    async with Rig(tmp_path / "data").open() as log:
        assert await check_served(sound, log) == []
    assert not list((tmp_path / "data").glob("damaged-*"))
