"""The log from outside: what is appended is there, in order, found again by every road, and after a restart."""

import pytest
import trio
import trio.testing
from storage_rig import START_US, Rig, append, draft, drafts, forget_tail, receipts

from overlayd.model.bodies import decode_node_body
from overlayd.model.cursor import Epoch, epoch_counter, format_epoch
from overlayd.model.definition import ConfirmRule, Definition
from overlayd.model.entry import Kind, content_hash_of, stream_hash_of, verify_entry
from overlayd.model.errors import (
    BadParameter,
    DefinitionConflict,
    Forbidden,
    InvalidDefinition,
    NotFound,
    OwnedByConfig,
    UnknownPacket,
    UnknownStream,
)
from overlayd.model.meta import decode_meta
from overlayd.model.names import StreamName
from overlayd.storage import Log


async def test_begins_with_genesis_and_boot(rig: Rig) -> None:
    """A new log's first entries are its key and its first start."""
    async with rig.open() as log:
        page = await log.read_page(0)
        bodies = [decode_node_body(entry.body) for entry in page.entries]
        assert [type(body).__name__ for body in bodies] == ["Genesis", "Boot"]
        assert bodies[0].keys == (log.vkey,)
        assert log.vkey.startswith(f"{log.origin}+")
        assert log.origin == f"overlayd/{log.log_id}/{format_epoch(log.epoch)}"
        assert epoch_counter(log.epoch) == 1
        assert log.ancestry == []


async def test_receipt_says_what_is_stored(rig: Rig) -> None:
    """A receipt's fields are those of the entry at its offset."""
    async with rig.open() as log:
        result = await append(log, "weather", [draft('{"t":21}', id="a", key="k", type="reading")])
        (receipt,) = receipts(result)
        entry = await log.read_entry(receipt.offset)
        assert result.created
        assert (result.head, result.head_sequence) == (receipt.offset, 1)
        assert (receipt.sequence, receipt.packet_id, receipt.stream) == (1, "a", "weather")
        assert receipt.content_hash == content_hash_of(b'{"t":21}') == entry.content_hash
        assert receipt.leaf == entry.leaf
        assert receipt.appended_us == START_US
        assert (receipt.duplicate, receipt.commitment) == (False, b"")
        meta = decode_meta(entry.meta)
        assert (meta.id, meta.key, meta.type, meta.definition_version) == ("a", "k", "reading", 1)


async def test_packet_without_id_is_named_after_its_place(rig: Rig) -> None:
    """`packet_id` is epoch and offset, and such packets are never duplicates."""
    async with rig.open() as log:
        first, second = receipts(await append(log, "s", [draft("1"), draft("1", index=1)]))
        assert first.packet_id == f"{format_epoch(log.epoch)}-{first.offset}"
        assert (first.sequence, second.sequence) == (1, 2)


async def test_packets_chain_to_the_stream_s_previous_one(rig: Rig) -> None:
    """`prev` is the leaf of the same stream's packet before, whatever lies between."""
    async with rig.open() as log:
        (first,) = receipts(await append(log, "a"))
        await append(log, "b")
        (second,) = receipts(await append(log, "a"))
        entry = await log.read_entry(second.offset)
        assert entry.prev == first.leaf
        assert (await log.read_entry(first.offset)).prev == bytes(32)


async def test_reads_the_same_from_memory_and_disk(rig: Rig) -> None:
    """A page is equal whether it comes from the tail or from verified rows."""
    async with rig.open() as log:
        await append(
            log, "s", [draft(id="x", topics=b'["t"]'), draft(csalt=bytes(16)), draft(data="\u00e9\x00".join("ab"))]
        )
        hot = await log.read_page(0)
        forget_tail(log)
        cold = await log.read_page(0)
        assert hot.entries == cold.entries
        assert (hot.after, hot.damaged) == (cold.after, cold.damaged) == (log.head, [])


async def test_page_is_bounded(rig: Rig) -> None:
    """A page ends at `page_entries`, and at about `page_bytes` but never empty, on both roads."""
    rig.set_limits(page_entries=5, page_bytes=3000)
    async with rig.open() as log:
        await append(log, "s", [draft('"' + "x" * 2000 + '"') for _ in range(4)] + [draft() for _ in range(20)])
        for is_cold in (False, True):
            if is_cold:
                forget_tail(log)
            counts, after = [], 0
            while after < log.head:
                page = await log.read_page(after)
                assert page.entries[0].offset == after + 1
                after = page.after
                counts.append(len(page.entries))
            assert max(counts) <= 5
            assert sum(counts) == log.head
            assert (await log.read_page(0, limit=2)).after == 2
            assert (await log.read_page(log.head)).entries == []


async def test_survives_a_restart(rig: Rig) -> None:
    """Streams, sequences, duplicates and every entry are as before."""
    async with rig.open() as log:
        await log.define_stream("s", Definition(title="kept"))
        await append(log, "s", drafts("a", "b", "", data="1"))
        before = (await log.read_page(0)).entries
        epoch, origin = log.epoch, log.origin
    async with rig.open() as log:
        assert (await log.read_page(0)).entries[: len(before)] == before
        assert (log.epoch, log.origin) == (epoch, origin)
        stream = log.find_stream("s")
        assert stream is not None
        assert (stream.head_sequence, stream.packets, stream.definition.title) == (3, 3, "kept")
        result = await append(log, "s", drafts("b", "c", data="1"))
        assert [(receipt.sequence, receipt.duplicate) for receipt in receipts(result)] == [(2, True), (4, False)]
        entry = await log.read_entry(receipts(result)[1].offset)
        assert entry.prev == before[-1].leaf


async def test_appended_at_never_goes_back(rig: Rig) -> None:
    """A clock that steps back doesn't take the log with it, not even over a restart."""
    async with rig.open() as log:
        (first,) = receipts(await append(log, "s"))
        rig.clock.advance(-3600)
        (second,) = receipts(await append(log, "s"))
        assert second.appended_us == first.appended_us
    async with rig.open() as log:
        (third,) = receipts(await append(log, "s"))
        assert third.appended_us == first.appended_us


async def test_finds_offsets_by_time(rig: Rig) -> None:
    """`from=<time>` is the first entry at or after it, in memory and on disk; head + 1 beyond the end."""
    async with rig.open() as log:
        offsets = []
        for _ in range(6):
            rig.clock.advance(10)
            offsets.append(receipts(await append(log, "s"))[0].offset)
        for is_cold in (False, True):
            if is_cold:
                forget_tail(log)
            assert await log.find_offset_at(0) == 1
            assert await log.find_offset_at(START_US + 25_000_000) == offsets[2]
            assert await log.find_offset_at(START_US + 30_000_000) == offsets[2]
            assert await log.find_offset_at(START_US + 61_000_000) == log.head + 1


async def test_finds_packets_by_sequence_id_and_key(rig: Rig) -> None:
    """Each look-up gives the same before and after a restart, from memory or disk."""
    async with rig.open() as log:
        await append(log, "a", [draft(id="x", key="k1"), draft(id="y", key="k2"), draft(key="k1")])
        await append(log, "b", [draft(id="x", key="k1")])
    for flush_entries in (256, 65_536):
        rig.set_settings(flush_entries=flush_entries)
        async with rig.open() as log:
            forget_tail(log)
            stream = log.find_stream("a")
            assert stream is not None
            assert [entry.sequence for entry in await log.read_packets(stream, 1, 10)] == [2, 3]
            assert [entry.sequence for entry in await log.read_packets(stream, 0, 1)] == [1]
            assert await log.read_packets(stream, 3, 10) == []
            offset = await log.find_offset(stream, 2)
            assert offset is not None
            assert (await log.read_entry(offset)).sequence == 2
            assert await log.find_offset(stream, 4) is None
            assert await log.find_offset(stream, 0) is None
            found = await log.find_by_id("x")
            assert [(entry.stream_hash == stream.stream_hash, entry.sequence) for entry in found] == [
                (True, 1), (False, 1),
            ]  # fmt: skip
            assert await log.find_by_id("nobody") == []
            for key, sequence in ((None, 3), ("k1", 3), ("k2", 2)):
                last = await log.find_last(stream, key)
                assert last is not None
                assert last.sequence == sequence
            assert await log.find_last(stream, "k9") is None


async def test_packets_of_a_stream_are_bounded_in_bytes(rig: Rig) -> None:
    """A read of large packets gives some of them, at least one, from memory and from disk alike."""
    rig.set_limits(page_bytes=10_000, tail_bytes=1 << 20)
    async with rig.open() as log:
        await append(log, "s", [draft('"' + "x" * size + '"') for size in (4000, 4000, 4000, 30_000, 10)])
        stream = log.find_stream("s")
        assert stream is not None
        for is_cold in (False, True):
            if is_cold:
                forget_tail(log)
            after, counts = 0, []
            while packets := await log.read_packets(stream, after, 100):
                assert packets[0].sequence == after + 1
                after = packets[-1].sequence
                counts.append(len(packets))
            assert after == 5
            assert len(counts) >= 3


async def test_unknown_offsets(rig: Rig) -> None:
    """Offsets outside the log name no entry."""
    async with rig.open() as log:
        for offset in (0, -1, log.head + 1):
            with pytest.raises(UnknownPacket):
                await log.read_entry(offset)


async def test_every_entry_verifies(rig: Rig) -> None:
    """What the log builds is what the format says, for every kind it makes."""
    async with rig.open() as log:
        await append(
            log,
            "s",
            [
                draft(
                    id="x",
                    csalt=bytes(range(16)),
                    topics=b"[]",
                    metadata=b"{}",
                    source="here",
                    time="2024-01-15T10:30:00Z",
                )
            ],
        )
        stream = log.find_stream("s")
        assert stream is not None
        assert stream.stream_hash == stream_hash_of(stream.ssalt, "s")
        await log.delete_stream("s")
        for entry in (await log.read_page(0)).entries:
            verify_entry(entry, None)
        assert {entry.kind for entry in (await log.read_page(0)).entries} == {Kind.PACKET, Kind.NODE, Kind.REMOVAL}


async def test_wait_beyond_is_level_triggered(rig: Rig) -> None:
    """It returns at once for what is there already, and wakes everybody when the head moves."""
    async with rig.open() as log:
        await log.wait_beyond(0)
        head, woken = log.head, []

        async def wait(number: int) -> None:
            await log.wait_beyond(head)
            woken.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(wait, number)
            await trio.testing.wait_all_tasks_blocked()
            assert woken == []
            await append(log, "s")
        assert sorted(woken) == list(range(100))


async def test_definitions(rig: Rig) -> None:
    """Creating, changing, changing nothing, and by version; each change is one entry of the node."""
    async with rig.open() as log:
        head, generation = log.head, log.streams_generation
        stream, created = await log.define_stream("s", Definition(title="one"), if_version=0, principal="me")
        assert (created, stream.definition_version, log.head) == (True, 1, head + 1)
        again, created = await log.define_stream("s", Definition(title="one"))
        assert (again is stream, created, log.head) == (True, False, head + 1)
        assert log.streams_generation > generation
        await log.define_stream("s", Definition(title="two", topics=("a.b",)), if_version=1)
        assert (stream.definition_version, stream.definition.title) == (2, "two")
        with pytest.raises(DefinitionConflict) as caught:
            await log.define_stream("s", Definition(), if_version=1)
        assert caught.value.extra == {"definition_version": 2}
        entry = await log.read_entry(head + 1)
        body = decode_node_body(entry.body)
        assert (body.stream, body.version, body.definition["title"]) == ("s", 1, "one")
        assert entry.stream_hash == stream.stream_hash
        assert decode_meta(entry.meta).principal == "me"
        (receipt,) = receipts(await append(log, "s"))
        meta = decode_meta((await log.read_entry(receipt.offset)).meta)
        assert (meta.definition_version, meta.definition_topics) == (2, b'["a.b"]')
        assert [found.name for found in log.list_streams()] == ["s"]


async def test_definitions_that_are_refused(rig: Rig) -> None:
    """The node's own names, bad names, confirmation without a chain, and what the config file owns."""
    async with rig.open() as log:
        head = log.head
        with pytest.raises(Forbidden):
            await log.define_stream("overlayd.audit", Definition())
        with pytest.raises(BadParameter):
            await log.define_stream("Not A Name", Definition())
        with pytest.raises(InvalidDefinition, match="no chain is configured"):
            await log.define_stream("s", Definition(confirm=ConfirmRule(commit="packet")))
        assert log.head == head
        await log.define_stream("c", Definition(), owner="config")
        with pytest.raises(OwnedByConfig):
            await log.define_stream("c", Definition(title="mine"))
        with pytest.raises(OwnedByConfig):
            await log.delete_stream("c")
        with pytest.raises(UnknownStream):
            await log.set_stream_state("nobody", "paused")
        with pytest.raises(UnknownStream):
            await log.delete_stream("nobody")


async def test_states_and_owners_survive_a_restart(rig: Rig) -> None:
    """A paused stream stays paused, a stream of the config file stays its own."""
    async with rig.open() as log:
        await log.define_stream("a", Definition())
        await log.set_stream_state("a", "paused")
        await log.define_stream("b", Definition())
        await log.define_stream("b", Definition(), owner="config")
    async with rig.open() as log:
        assert {stream.name: (stream.state, stream.owner) for stream in log.list_streams()} == {
            "a": ("paused", "api"), "b": ("active", "config"),
        }  # fmt: skip


async def test_proofs_hold(rig: Rig) -> None:
    """Paths from the log verify against its roots, at every size of a small log."""
    from overlayd.model.merkle import verify_consistency, verify_inclusion

    async with rig.open() as log:
        await append(log, "s", [draft() for _ in range(300)])
        root = await log.root_at(log.head)
        for offset in (1, 2, 255, 256, 257, log.head):
            entry = await log.read_entry(offset)
            path = await log.inclusion_path(offset - 1, log.head)
            verify_inclusion(entry.leaf, offset - 1, log.head, path, root)
        for size in (1, 2, 256, 300):
            path = await log.consistency_path(size, log.head)
            verify_consistency(size, await log.root_at(size), log.head, root, path)
        for index, size in ((0, 0), (5, 5), (0, log.head + 1), (-1, 3)):
            with pytest.raises(BadParameter):
                await log.inclusion_path(index, size)
        with pytest.raises(BadParameter):
            await log.consistency_path(0, log.head + 1)
        with pytest.raises(BadParameter):
            await log.root_at(log.head + 1)


async def test_tiles_and_entry_bundles(rig: Rig) -> None:
    """Level 0 holds the leaves; a bundle holds each E behind its length."""
    async with rig.open() as log:
        await append(log, "s", [draft() for _ in range(300)])
        entries = []
        while len(entries) < 256:
            entries += (await log.read_page(len(entries))).entries
        assert await log.read_tile(0, 0, 256) == b"".join(entry.leaf for entry in entries[:256])
        bundle = await log.read_entry_tile(0, 3)
        assert bundle == b"".join(b"\x00\x92" + entry.raw for entry in entries[:3])
        for index, width in ((0, 257), (1, 200), (-1, 1), (0, 0)):
            with pytest.raises(NotFound):
                await log.read_entry_tile(index, width)


async def test_write_runs_in_the_writer(rig: Rig) -> None:
    """A feature's statements are durable when it returns; a failing one undoes itself and nothing else."""
    async with rig.open() as log:
        await log.write(lambda c: c.execute("CREATE TABLE own (n INTEGER)"))

        def fail(connection: object) -> None:
            connection.execute("INSERT INTO own VALUES (1)")  # type: ignore[attr-defined]
            raise ValueError("no")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(append, log, "s")
            with pytest.raises(ValueError, match="no"):
                await log.write(fail)
        assert await log.write(lambda c: c.execute("INSERT INTO own VALUES (2)").rowcount) == 1
        assert await log.read(lambda c: c.execute("SELECT n FROM own").fetchall()) == [(2,)]
        assert log.find_stream("s") is not None


async def test_node_entries(rig: Rig) -> None:
    """Node entries take their offset like any other, and a wrong member appends nothing."""
    async with rig.open() as log:
        offset = await log.append_node({"type": "cut", "minimum_index": 256})
        assert (await log.read_entry(offset)).body == b'{"type":"cut","minimum_index":256}'
        with pytest.raises(ValueError, match="nonsense"):
            await log.append_node({"type": "nonsense"})
        assert log.head == offset


async def test_epoch_type(rig: Rig) -> None:
    """Entries carry the log's epoch."""
    async with rig.open() as log:
        assert (await log.read_entry(1)).epoch == log.epoch == Epoch(log.epoch)
        assert StreamName("s") == "s"
        assert isinstance(log, Log)
        assert "head=2" in repr(log)
