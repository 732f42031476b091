"""Taking packets away: what goes, what stays, what is said about it, and that both happen or neither."""

import pytest
import trio
import trio.testing
from real_waiting import PATIENCE_S
from storage_rig import Rig, append, draft, drafts, forget_tail, receipts

from overlayd.model.bodies import decode_removal_body
from overlayd.model.definition import Definition
from overlayd.model.entry import Kind, StoredEntry, verify_entry
from overlayd.model.errors import CommitFailed, StreamPaused, UnknownStream
from overlayd.model.merkle import root_of
from overlayd.storage import Log, Stream, removing, space, writer


async def fill(log: Log, count: int = 12) -> Stream:
    """Stream `s` with packets that have ids and keys, another stream's packets between them."""
    for number in range(count):
        await append(log, "s", [draft('"classified"', id=f"i{number}", key=f"k{number % 3}")])
        await append(log, "other")
    stream = log.find_stream("s")
    assert stream is not None
    return stream


async def read_all(log: Log, cold: bool = False) -> list[StoredEntry]:
    """Every entry, from the disk if asked; none may be damaged."""
    if cold:
        forget_tail(log)
    entries = []
    while len(entries) < log.head:
        page = await log.read_page(len(entries))
        assert not page.damaged
        entries += page.entries
    return entries


async def test_reduce_takes_a_range(rig: Rig) -> None:
    """The packets of one stream in a range lose all but E and leaf, and a removal entry names range, count and cause."""
    async with rig.open() as log:
        stream = await fill(log)
        packets = await log.read_packets(stream, 0, 100)
        low, high = packets[3].offset, packets[7].offset
        assert await log.reduce(stream, low - 1, high + 1, "erased") == 5
        removal = await log.read_entry(log.head)
        assert (removal.kind, removal.stream_hash) == (Kind.REMOVAL, stream.stream_hash)
        assert (removal.target_from, removal.target_to) == (low, high)
        body = decode_removal_body(removal.body)
        assert (body.cause, body.count) == ("erased", 5)
        for cold in (False, True):
            for entry in await read_all(log, cold):
                verify_entry(entry, None)
                is_gone = entry.stream_hash == stream.stream_hash and low <= entry.offset <= high
                assert entry.is_reduced == (is_gone and entry.kind == Kind.PACKET)
                if entry.is_reduced:
                    assert (entry.body, entry.meta, entry.salt, entry.fingerprint) == (b"", b"", b"", b"")
                    assert log.removal_cause(entry) == "erased"
        assert (stream.packets, stream.oldest_sequence, stream.head_sequence) == (7, 1, 12)
        assert await log.reduce(stream, low, high, "erased") == 0


async def test_what_stays_still_proves(rig: Rig) -> None:
    """Roots and paths are as before."""
    async with rig.open() as log:
        stream = await fill(log)
        size = log.head
        root = await log.root_at(size)
        await log.reduce(stream, 1, size, "retention")
        entries = await read_all(log, cold=True)
        assert await log.root_at(size) == root == root_of(entry.leaf for entry in entries[:size])


async def test_erasure_forgets_ids_and_keys(rig: Rig) -> None:
    """An erased id is found by nobody and may be used again; of a key the newest that is left is found."""
    rig.set_settings(flush_entries=8)
    async with rig.open() as log:
        stream = await fill(log)
        (last,) = await log.find_by_id("i11")
        await log.reduce(stream, last.offset, last.offset, "erased")
        assert await log.find_by_id("i11") == []
        newest = await log.find_last(stream, "k2")
        assert newest is not None
        assert newest.sequence == 9
        left = await log.find_last(stream)
        assert left is not None
        assert left.sequence == 11
        assert [r.duplicate for r in receipts(await append(log, "s", drafts("i11", data='"x"')))] == [False]
    with rig.connect() as connection:
        ids = log._state.ids
        pairs = ids.read_stored(connection, [ids.key(b"i11", stream.stream_hash)])
        assert last.offset not in next(iter(pairs.values()))


@pytest.mark.parametrize("flush_entries", [8, 65_536])
async def test_the_newest_that_is_kept(rig: Rig, flush_entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many of a stream's last packets were taken away, its last one is the newest that is left."""
    monkeypatch.setattr("overlayd.storage.searching.BACK_ROWS", 3)
    rig.set_settings(flush_entries=flush_entries)
    async with rig.open() as log:
        stream = await fill(log, 24)
        packets = await log.read_packets(stream, 0, 100)
        for first, newest in ((23, 23), (10, 10), (1, 1)):
            await log.reduce(stream, packets[first].offset, log.head, "erased")
            for cold in (False, True):
                if cold:
                    forget_tail(log)
                last = await log.find_last(stream)
                assert last is not None
                assert last.sequence == newest
        await log.reduce(stream, 1, log.head, "erased")
        assert await log.find_last(stream) is None


async def test_retention_keeps_duplicates(rig: Rig) -> None:
    """After retention a repeat is a duplicate, uncompared; its receipt holds what is left."""
    async with rig.open() as log:
        stream = await fill(log)
        (first,) = await log.find_by_id("i0")
        await log.reduce(stream, first.offset, first.offset, "retention")
        assert await log.find_by_id("i0") == []
        (receipt,) = receipts(await append(log, "s", drafts("i0", data='"other"')))
        assert (receipt.duplicate, receipt.sequence, receipt.content_hash) == (True, 1, b"")
        assert receipt.leaf == first.leaf
        assert stream.oldest_sequence == 2


async def test_counts_survive_a_restart(rig: Rig) -> None:
    """Packets, bytes and oldest sequence are the same before and after, clean or not."""
    for flush_entries in (4, 65_536):
        rig.set_settings(flush_entries=flush_entries)
        async with rig.open() as log:
            stream = await fill(log, 4)
            packets = await log.read_packets(stream, stream.oldest_sequence and stream.oldest_sequence - 1, 100)
            await log.reduce(stream, 1, packets[1].offset, "retention")
            await append(log, "s")
            before = (stream.packets, stream.bytes, stream.oldest_sequence, stream.head_sequence, stream.last_packet_us)
        with rig.connect() as connection:
            connection.execute("UPDATE state SET value = 0 WHERE key = 'is_clean'")
        async with rig.open() as log:
            stream = log.find_stream("s")  # type: ignore[assignment]
            after = (stream.packets, stream.bytes, stream.oldest_sequence, stream.head_sequence, stream.last_packet_us)
            assert after == before
            stored = await log.read(
                lambda c: c.execute("SELECT sum(length(sealed)) FROM entry").fetchone()[0]
            )  # fmt: skip
            assert 0 < stream.bytes < stored


async def test_deleting_a_stream(rig: Rig) -> None:
    """Packets and definitions lose their content, the name is free, and a new stream of that name starts anew."""
    async with rig.open() as log:
        stream = await fill(log)
        assert await log.delete_stream("s") == 12
        assert log.find_stream("s") is None
        assert log.find_stream_by_hash(stream.stream_hash) is stream
        assert (stream.is_deleted, stream.packets, stream.bytes, stream.oldest_sequence) == (True, 0, 0, 0)
        for entry in await read_all(log, cold=True):
            if entry.stream_hash == stream.stream_hash and entry.kind != Kind.REMOVAL:
                assert entry.is_reduced
                assert log.removal_cause(entry) == "deleted"
        with pytest.raises(UnknownStream):
            await log.delete_stream("s")
        (receipt,) = receipts(await append(log, "s", drafts("i0", data="1")))
        assert (receipt.sequence, receipt.duplicate) == (1, False)
        assert log.find_stream("s").stream_hash != stream.stream_hash  # type: ignore[union-attr]
    async with rig.open() as log:
        again = log.find_stream_by_hash(stream.stream_hash)
        assert again is not None
        assert (again.is_deleted, again.name) == (True, "s")
        assert log.find_stream("s").head_sequence == 1  # type: ignore[union-attr]
    raw = (rig.directory / "log.sqlite3").read_bytes()
    assert b"classified" not in raw


async def test_deleting_works_in_slices(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long stream goes slice by slice, each with its own entry; publishers to others get their turn."""
    monkeypatch.setattr(removing, "SLICE_ROWS", 10)
    async with rig.open() as log:
        await append(log, "s", [draft() for _ in range(95)])
        results = []

        async def publish() -> None:
            for _ in range(5):
                results.append(await append(log, "other"))
            with pytest.raises(StreamPaused):
                await append(log, "s", definition_version=1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(log.delete_stream, "s")
            await trio.lowlevel.checkpoint()
            nursery.start_soon(publish)
        counts = [
            decode_removal_body(entry.body).count
            for entry in await read_all(log)
            if entry.kind == Kind.REMOVAL
        ]  # fmt: skip
        assert counts == [10] * 9 + [5]
        assert len(results) == 5


async def test_cancelled_deletion_can_be_repeated(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half way the stream is stopped; deleting again takes the rest."""
    monkeypatch.setattr(removing, "SLICE_ROWS", 10)
    async with rig.open() as log:
        await append(log, "s", [draft() for _ in range(50)])
        stream = log.find_stream("s")
        assert stream is not None
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(log.delete_stream, "s")
                while stream.packets > 30:
                    await trio.lowlevel.checkpoint()
                scope.cancel()
        assert (stream.state, log.find_stream("s")) == ("stopped", stream)
        left = stream.packets
        assert 0 < left <= 30
        assert await log.delete_stream("s") in (left, left - 10)
        assert stream.packets == 0


async def test_removal_and_loss_are_one(rig: Rig) -> None:
    """If the rows can't be reduced there is no removal entry either; such a database ends the writer."""
    heads = []

    async def run() -> None:
        async with rig.open() as log:
            stream = await fill(log, 2)
            heads.append(log.head)
            await log.write(lambda c: c.execute(_FORBID))
            await log.reduce(stream, 1, log.head, "erased")

    with pytest.raises(CommitFailed, match="CONSTRAINT"):
        await run()
    async with rig.open() as log:
        assert log.head == heads[0] + 1
        assert not any(entry.is_reduced for entry in await read_all(log))


_FORBID = "CREATE TEMP TRIGGER stop BEFORE UPDATE ON entry BEGIN SELECT RAISE(ABORT, 'no'); END"


async def test_nothing_of_what_was_taken_stays_in_the_file(rig: Rig) -> None:
    """Bodies of all sizes, on leaf and overflow pages, leave no byte behind, and their neighbors lose none."""
    async with rig.open() as log:
        for number in range(60):
            size = (number * 97) % 6000
            await append(log, "s", [draft(f'"classified {"z" * size}"', id=f"private-{number}")])
            await append(log, "other", [draft(f'"kept {number} {"y" * (number * 31 % 3000)}"')])
        stream = log.find_stream("s")
        assert stream is not None
        await log.reduce(stream, 1, log.head, "erased")
    raw = (rig.directory / "log.sqlite3").read_bytes()
    assert raw.count(b"classified") == raw.count(b"private-") == raw.count(b"zzzz") == 0
    assert raw.count(b'"kept ') >= 60


async def test_room_goes_back_to_the_disk(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """In idle moments the file gives back what a removal freed, but for what is soon needed again."""
    monkeypatch.setattr(space, "PAGES_KEPT", 16)
    monkeypatch.setattr(writer, "IDLE_S", 0.01)
    async with rig.open() as log:
        await append(log, "s", [draft('"' + "x" * 50_000 + '"') for _ in range(60)])
        await append(log, "kept")
        with trio.fail_after(PATIENCE_S):
            while log.stats().database_bytes < 3_000_000:
                await trio.testing.wait_all_tasks_blocked(0.005)
        await log.delete_stream("s")
        with trio.fail_after(PATIENCE_S):
            while log.stats().database_bytes > 400_000 or await count_free_pages(log) > 16:
                await trio.testing.wait_all_tasks_blocked(0.005)
        assert [entry for entry in await read_all(log, cold=True) if entry.kind == Kind.PACKET and not entry.is_reduced]


async def count_free_pages(log: Log) -> int:
    """Pages in the file that hold nothing."""
    ((free,),) = await log.read(lambda c: c.execute("PRAGMA freelist_count").fetchall())
    return int(free)


async def test_large_metadata(rig: Rig) -> None:
    """Names are found also where a packet's meta is larger than what is looked at first."""
    async with rig.open() as log:
        metadata = b'{"x":"' + b"y" * 30_000 + b'"}'
        await append(log, "s", [draft(id="big", metadata=metadata, topics=b"[]")])
        stream = log.find_stream("s")
        assert stream is not None
        await log.reduce(stream, 1, log.head, "erased")
        assert log._state.ids.recent(log._state.ids.key(b"big", stream.stream_hash)) == ()


async def test_empty_stream(rig: Rig) -> None:
    """There is nothing to take from it; deleting it removes its definition."""
    async with rig.open() as log:
        stream, _ = await log.define_stream("s", Definition())
        assert await log.reduce(stream, 1, log.head, "retention") == 0
        assert await log.delete_stream("s") == 0
