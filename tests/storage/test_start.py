"""Starting: after a clean stop, after a crash, on a shorter log than was signed, and on one that is damaged."""

import shutil
import sqlite3
from pathlib import Path

import pytest
import trio
from storage_rig import Rig, append, draft, drafts, forget_tail, receipts

from overlayd.model.bodies import Boot, Restore, decode_node_body
from overlayd.model.cursor import epoch_counter, format_epoch
from overlayd.model.entry import Kind
from overlayd.model.errors import DamagedEntry, DirectoryInUse, LogInconsistent, NewerSchema, StorageFull
from overlayd.model.note import VerifierKey, open_note
from overlayd.model.units import Size
from overlayd.storage import Feature, Log, files, start
from overlayd.storage.files import HighWater


async def crash(rig: Rig, log: Log) -> Rig:
    """A rig on a copy of an open log's files, as a crash leaves them."""
    await log.checkpoint(log.head)  # then nothing is written while it is copied
    target = rig.directory.with_name(rig.directory.name + "-copy")
    shutil.copytree(rig.directory, target)
    copy = Rig(target)
    copy.settings, copy.limits = rig.settings, rig.limits
    return copy


def tamper(rig: Rig, *statements: str) -> None:
    """Changes a closed database behind the triggers' back."""
    with rig.connect() as connection:
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            connection.execute(statement)


async def bodies_of(log: Log) -> list[object]:
    """Bodies of the node entries that aren't definitions."""
    entries = [entry for entry in (await log.read_page(0)).entries if entry.kind == Kind.NODE]
    bodies = [decode_node_body(entry.body) for entry in entries]
    return [body for body in bodies if type(body).__name__ != "DefinitionChange"]


@pytest.mark.parametrize("flush_entries", [8, 65_536])
async def test_recovers_from_an_unclean_stop(rig: Rig, flush_entries: int) -> None:
    """From the files as they are in the middle of work, everything acknowledged is there exactly once."""
    rig.set_settings(flush_entries=flush_entries)
    async with rig.open() as log:
        for number in range(12):
            await append(log, "s", drafts(*(f"{number}-{n}" for n in range(5)), data="1"))
        await log.checkpoint(log.head)
        before = (await log.read_page(0, limit=200)).entries
        copy = await crash(rig, log)
    async with copy.open() as log:
        assert (await log.read_page(0)).entries[: len(before)] == before
        result = await append(log, "s", drafts("0-0", "11-4", "new", data="1"))
        assert [(receipt.sequence, receipt.duplicate) for receipt in receipts(result)] == [
            (1, True), (60, True), (61, False),
        ]  # fmt: skip
        assert len([body for body in await bodies_of(log) if isinstance(body, Boot)]) == 2
        assert log.ancestry == []


async def test_every_start_is_an_entry(rig: Rig) -> None:
    """With what the machine tells about itself, and nothing that it doesn't."""
    for _ in range(3):
        async with rig.open() as log:
            boots = [body for body in await bodies_of(log) if isinstance(body, Boot)]
    assert len(boots) == 3
    assert {boot.version for boot in boots} == {__import__("overlayd").__version__}


async def test_a_restore_that_was_cut_off_is_no_empty_log(rig: Rig) -> None:
    """Between moving the old log aside and putting the copy in its place there is no log; none is begun there."""
    async with rig.open() as log:
        await append(log, "a", drafts("1"))
    database = rig.directory / "log.sqlite3"
    copy = database.with_name("log.sqlite3.restored")
    database.rename(copy)
    with pytest.raises(LogInconsistent, match="cut off"):
        async with rig.open():
            pass
    assert not database.exists()
    copy.rename(database)
    async with rig.open() as log:
        assert log.find_stream("a") is not None


async def test_second_daemon_is_refused(rig: Rig) -> None:
    """One directory, one daemon; the next may come when the first is gone."""
    async with rig.open():
        other = Rig(rig.directory)
        with pytest.raises(DirectoryInUse):
            async with other.open():
                pass  # pragma: no cover
    async with rig.open():
        pass


async def test_files_are_private(rig: Rig) -> None:
    """Directory and keys are readable by the service alone."""
    async with rig.open():
        assert rig.directory.stat().st_mode & 0o777 == 0o700
        for name in ("log.ed25519", "index.key"):
            path = rig.directory / "keys" / name
            assert (path.stat().st_mode & 0o777, path.stat().st_size) == (0o600, 32)


async def test_newer_schema_is_refused(rig: Rig) -> None:
    """A database that a later version wrote isn't touched."""
    async with rig.open():
        pass
    with rig.connect() as connection:
        connection.execute("UPDATE schema_version SET version = 99 WHERE feature = 'log'")
    with pytest.raises(NewerSchema):
        async with rig.open():
            pass  # pragma: no cover


async def test_features_bring_their_tables(rig: Rig) -> None:
    """A feature's steps run once, in order, also when it learns more later."""
    first = Feature("jobs", ("CREATE TABLE job (n INTEGER) STRICT;\nINSERT INTO job VALUES (1);",))
    async with rig.open(features=(first,)) as log:
        assert await log.read(lambda c: c.execute("SELECT n FROM job").fetchall()) == [(1,)]
    later = Feature("jobs", (*first.steps, "ALTER TABLE job ADD COLUMN m INTEGER;"))
    async with rig.open(features=(later,)) as log:
        assert await log.read(lambda c: c.execute("SELECT n, m FROM job").fetchall()) == [(1, None)]
    with pytest.raises(NewerSchema):
        async with rig.open(features=(first,)):
            pass  # pragma: no cover


async def test_shorter_log_gets_a_new_epoch(rig: Rig) -> None:
    """An older copy of the database beside the newest high-water mark: the loss is put on record."""
    async with rig.open() as log:
        await append(log, "s", drafts("a", "b", data="1"))
        old_epoch, old_origin = log.epoch, log.origin
    kept = rig.directory / "kept.sqlite3"
    shutil.copy(rig.directory / "log.sqlite3", kept)
    async with rig.open() as log:
        common = log.head - 1
        await append(log, "s", drafts("c", "d", data="1"))
        seen = await log.checkpoint(log.head)
    kept.rename(rig.directory / "log.sqlite3")
    async with rig.open() as log:
        assert log.head == common + 2
        assert epoch_counter(log.epoch) == epoch_counter(old_epoch) + 1
        assert log.ancestry == [(old_epoch, common)]
        restore = decode_node_body((await log.read_entry(common + 1)).body)
        assert isinstance(restore, Restore)
        assert (restore.from_epoch, restore.common_size) == (format_epoch(old_epoch), common)
        assert restore.common_root == f"sha256:{(await log.root_at(common)).hex()}"
        assert restore.last_seen is not None
        assert (restore.last_seen.size, restore.last_seen.root) == (seen.size, f"sha256:{seen.root.hex()}")
        assert (await log.read_entry(common + 1)).epoch == log.epoch
        assert (await log.read_entry(common)).epoch == old_epoch
        result = receipts(await append(log, "s", drafts("a", "c", data="1")))
        assert [receipt.duplicate for receipt in result] == [True, False]
        assert result[1].sequence == (1 << 40) + 1
        assert (await append(log, "t")).head_sequence == (1 << 40) + 1
        stream = log.find_stream("s")
        assert stream is not None
        assert [entry.sequence for entry in await log.read_packets(stream, 0, 10)] == [1, 2, (1 << 40) + 1]
        signed = await log.checkpoint(log.head)
        open_note(signed.note, [VerifierKey.parse(log.vkey)])
        assert (log.log_id in log.origin, log.origin != old_origin) == (True, True)
        epoch = log.epoch
        assert (await log.find_checkpoint(old_epoch)).size <= common  # type: ignore[union-attr]
    async with rig.open() as log:
        assert (log.epoch, log.ancestry) == (epoch, [(old_epoch, common)])


async def test_restore_before_its_first_checkpoint(rig: Rig) -> None:
    """A crash between the restore entry and the first checkpoint of the new epoch isn't a second loss."""
    async with rig.open() as log:
        await append(log, "s")
        epoch, head = log.epoch, log.head
    files.write_high_water(rig.directory, HighWater(epoch, head + 5, bytes(32)))
    async with rig.open() as log:
        restored = log.epoch
        await append(log, "s", [draft() for _ in range(20)])
        copy = await crash(rig, log)
    files.write_high_water(copy.directory, HighWater(epoch, head + 5, bytes(32)))
    async with copy.open() as log:
        assert (log.epoch, log.ancestry) == (restored, [(epoch, head)])


async def test_lost_database(rig: Rig) -> None:
    """Without its database the log begins anew, with its name, in a later epoch."""
    async with rig.open() as log:
        await append(log, "s")
        epoch, log_id = log.epoch, log.log_id
    (rig.directory / "log.sqlite3").unlink()
    async with rig.open() as log:
        assert log.log_id == log_id
        assert epoch_counter(log.epoch) == epoch_counter(epoch) + 1
        assert [type(body).__name__ for body in await bodies_of(log)] == ["Genesis", "Restore", "Boot"]
        assert log.ancestry == []


async def test_mark_of_an_epoch_that_the_database_never_saw(rig: Rig) -> None:
    """A database older than the last restore begins another epoch, above both."""
    async with rig.open() as log:
        await append(log, "s")
        epoch = log.epoch
    later = epoch + (3 << 40)
    files.write_high_water(rig.directory, HighWater(later, 2, bytes(32)))  # type: ignore[arg-type]
    async with rig.open() as log:
        assert epoch_counter(log.epoch) == 5


@pytest.mark.parametrize("size_change", [0, -1])
async def test_another_history_is_refused(rig: Rig, size_change: int) -> None:
    """The same or a longer log with another root than was signed: nothing is signed any more."""
    async with rig.open() as log:
        await append(log, "s")
        epoch, head = log.epoch, log.head
    files.write_high_water(rig.directory, HighWater(epoch, head + size_change, bytes(32)))
    with pytest.raises(LogInconsistent, match="was signed"):
        async with rig.open():
            pass  # pragma: no cover


async def test_unreadable_mark_is_refused(rig: Rig) -> None:
    """A mark that something else wrote to isn't guessed at."""
    async with rig.open():
        pass
    for text in ("", "overlayd/high-water/1\nx\n1\n00\n", "overlayd/high-water/2\n1aaaaaaaa\n1\n" + "00" * 32 + "\n"):
        (rig.directory / "high-water").write_text(text)
        with pytest.raises(LogInconsistent):
            async with rig.open():
                pass  # pragma: no cover


async def test_high_water_follows_checkpoints(rig: Rig) -> None:
    """What is signed was marked before."""
    async with rig.open() as log:
        await append(log, "s")
        signed = await log.checkpoint(log.head)
        mark = files.read_high_water(rig.directory)
        assert mark is not None
        assert (mark.epoch, mark.size >= signed.size) == (log.epoch, True)
        assert await log.root_at(mark.size) == mark.root


async def test_damaged_body_is_never_served(rig: Rig) -> None:
    """A row whose body changed is named as damage by pages and refused alone; its neighbors are served."""
    async with rig.open() as log:
        await append(log, "s", [draft(id=f"i{n}") for n in range(10)])
        bad = receipts(await append(log, "s", [draft('"good"', id="bad")]))[0]
        await append(log, "s", [draft() for _ in range(10)])
        await append(log, "t", [draft('"sound"', id="bad")])
    tamper(rig)
    with rig.connect() as connection:
        (sealed,) = connection.execute("SELECT sealed FROM entry WHERE offset = ?", (bad.offset,)).fetchone()
        changed = sealed.replace(b"good", b"evil")
        connection.execute("UPDATE entry SET sealed = ? WHERE offset = ?", (changed, bad.offset))
    for is_clean in (True, False):
        if not is_clean:
            with rig.connect() as connection:
                connection.execute("UPDATE state SET value = 0 WHERE key = 'is_clean'")
        async with rig.open() as log:
            forget_tail(log)
            page = await log.read_page(bad.offset - 3)
            assert page.damaged == [(bad.offset, bad.offset)]
            assert [entry.offset for entry in page.entries][:4] == [
                bad.offset - 2, bad.offset - 1, bad.offset + 1, bad.offset + 2,
            ]  # fmt: skip
            with pytest.raises(DamagedEntry):
                await log.read_entry(bad.offset)
            assert (await log.read_entry(bad.offset + 1)).offset == bad.offset + 1
            assert [entry.body for entry in await log.find_by_id("bad")] == [b'"sound"']
            stream = log.find_stream("s")
            assert stream is not None
            assert stream.head_sequence == 21


async def test_missing_rows_are_damage(rig: Rig) -> None:
    """A hole above the minimum index is told from retention, wherever in a page it lies."""
    async with rig.open() as log:
        await append(log, "s", [draft() for _ in range(300)])
    tamper(rig, "DELETE FROM entry WHERE offset BETWEEN 5 AND 7", "DELETE FROM entry WHERE offset BETWEEN 10 AND 60")
    async with rig.open() as log:
        forget_tail(log)
        damaged, offsets, after = [], [], 0
        while after < log.head:
            page = await log.read_page(after)
            damaged += page.damaged
            offsets += [entry.offset for entry in page.entries]
            assert page.after > after
            after = page.after
        missing = {offset for low, high in damaged for offset in range(low, high + 1)}
        assert missing == {5, 6, 7, *range(10, 61)}
        assert sorted(missing | set(offsets)) == list(range(1, log.head + 1))
        with pytest.raises(DamagedEntry):
            await log.read_entry(6)


@pytest.mark.parametrize(
    ("change", "lost"),
    [
        ("UPDATE entry SET e = zeroblob(146) WHERE offset = 300", [300]),
        ("UPDATE entry SET leaf = zeroblob(32) WHERE offset = 300", [300]),
        ("UPDATE entry SET leaf = zeroblob(32) WHERE offset = 200", [200]),
        ("UPDATE tile SET hashes = zeroblob(8192)", []),
    ],
)
async def test_damage_to_what_is_hashed_is_mended(rig: Rig, change: str, lost: list[int]) -> None:
    """After an unclean stop the newest entries must hash to their leaves, and these to their tiles; where they don't, what
    contradicts is left out, and all else is served as before."""
    async with rig.open() as log:
        await append(log, "s", [draft() for _ in range(300)])
        await log.checkpoint(log.head)
        root, head, epoch = await log.root_at(log.head), log.head, log.epoch
        copy = await crash(rig, log)
    tamper(copy, change)
    async with copy.open() as log:
        forget_tail(log)
        assert await log.root_at(head) == root
        for offset in (1, 199, 200, 201, 299, 300, 301):
            if offset in lost:
                with pytest.raises(DamagedEntry):
                    await log.read_entry(offset)
            else:
                assert (await log.read_entry(offset)).offset == offset
        assert (log.epoch == epoch) == (not lost)
        assert [offset for _, offset in log.ancestry] == [head] * bool(lost)
    assert len(list(copy.directory.glob("damaged-*/log.sqlite3"))) == 1


async def test_wrong_key_file_is_refused(rig: Rig) -> None:
    """A key of another length is nobody's key."""
    async with rig.open():
        pass
    (rig.directory / "keys" / "log.ed25519").write_bytes(b"short")
    with pytest.raises(LogInconsistent):
        async with rig.open():
            pass  # pragma: no cover


async def test_foreign_database_is_refused(rig: Rig) -> None:
    """A file that isn't a database ends the start with a word for it, and the directory is free again."""
    rig.directory.mkdir()
    (rig.directory / "log.sqlite3").write_bytes(b"not a database" * 1000)
    for _ in range(2):
        with pytest.raises(LogInconsistent, match="not a database"):
            async with rig.open():
                pass  # pragma: no cover


async def test_start_on_a_full_disk(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reserve makes room for the boot entry; readers are served, publishing waits for room."""
    rig.set_settings(reserve=Size(8192), disk_high_water=Size(1000), disk_low_water=Size(2000))
    async with rig.open() as log:
        await append(log, "s")
    real, free = start.commit_group, 0

    def commit(*arguments: object) -> None:
        if (rig.directory / "reserve").exists():
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error
        real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(start, "commit_group", commit)
    monkeypatch.setattr(files, "free_bytes", lambda directory: free)
    async with rig.open() as log:
        assert not (rig.directory / "reserve").exists()
        assert len((await log.read_page(0)).entries) == log.head
        with pytest.raises(StorageFull):
            await append(log, "s")
        free = 20_000
        log._disk.look()
        assert (rig.directory / "reserve").exists()
        await append(log, "s")


async def test_flushes_reach_the_disk_in_slices(rig: Rig) -> None:
    """Stream heads and indexes follow the log: a crash copy starts from a floor, not from the first entry."""
    rig.set_settings(flush_entries=64)
    async with rig.open() as log:
        for number in range(40):
            await append(log, f"s{number % 7}", drafts(*(f"{number}-{n}" for n in range(20))))
        copy = await crash(rig, log)
    async with copy.open() as log:
        state = log._state
        floors = [state.indexed, *(index.stored_to for index in state.indexes)]
        assert min(floors) > log.head // 2
        assert {stream.name: stream.head_sequence for stream in log.list_streams()} == {
            f"s{n}": 20 * len(range(n, 40, 7)) for n in range(7)
        }


async def test_clean_stop_leaves_one_file_and_no_replay(rig: Rig) -> None:
    """After a stop in order the WAL is gone and every floor is at the head."""
    async with rig.open() as log:
        await append(log, "s", drafts("a", "b"))
    assert not (rig.directory / "log.sqlite3-wal").exists()
    async with rig.open() as log:
        assert log._state.tail.first == log.head


async def test_many_starts(tmp_path: Path) -> None:
    """Opening and closing leaves no thread and no descriptor behind."""
    import os
    import threading

    rig = Rig(tmp_path / "data")
    async with rig.open():
        pass
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        async with rig.open() as log:
            forget_tail(log)
            await log.read_page(0)
    with trio.move_on_after(1):
        while threading.active_count() > threads + 2:
            await trio.lowlevel.checkpoint()
    assert len(os.listdir("/proc/self/fd")) <= descriptors


@pytest.mark.parametrize("key", [None, bytes(range(32))])
async def test_another_signing_key_is_refused(rig: Rig, key: bytes | None) -> None:
    """A log whose key file is gone, or another's, doesn't start under another name; with its own file it goes on."""
    async with rig.open() as log:
        log_id, head = log.log_id, log.head
    path = rig.directory / "keys" / "log.ed25519"
    own = path.read_bytes()
    if key is None:
        path.unlink()
    else:
        path.write_bytes(key)
    for _ in range(2):
        with pytest.raises(LogInconsistent, match="none of the keys"):
            async with rig.open():
                pass
    path.write_bytes(own)
    path.chmod(0o600)
    async with rig.open() as log:
        assert (log.log_id, log.head) == (log_id, head + 1)


@pytest.mark.parametrize("more", [[], ["other"]])
async def test_heads_outlast_a_crash_and_a_clean_stop(rig: Rig, more: list[str]) -> None:
    """What a start after a crash worked out from the entries is written out by the stop after it, though no packet
    came in between: no sequence is given twice."""
    async with rig.open() as log:
        await append(log, "s", drafts("a", "b", "c"))
        copy = await crash(rig, log)
    async with copy.open() as log:
        for name in more:
            await append(log, name)
    async with copy.open() as log:
        stream = log.find_stream("s")
        assert stream is not None
        assert (stream.head_sequence, stream.oldest_sequence, stream.packets) == (3, 1, 3)
        assert [receipt.sequence for receipt in receipts(await append(log, "s", drafts("d")))] == [4]


async def test_head_behind_its_positions_is_mended(rig: Rig) -> None:
    """A stored head below packets that the stream has would give their sequences again; the entries know better."""
    rig.set_settings(flush_entries=4)
    async with rig.open() as log:
        for _ in range(20):
            await append(log, "s")
            await append(log, "t")
    tamper(rig, "UPDATE stream_head SET sequence = 19 WHERE stream_id = 1")
    async with rig.open() as log:
        (receipt,) = receipts(await append(log, "s"))
        assert receipt.sequence == 21
    assert list(rig.directory.glob("damaged-*/report.json"))
