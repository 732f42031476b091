"""Retention on a real log: what goes, what stays, that proofs hold, and that room comes back."""

import sqlite3
from functools import partial

import pytest
import trio
import trio.lowlevel
from storage_rig import Rig, append, draft, drafts, forget_tail, receipts

from overlayd.model.bodies import RemovalCause, decode_removal_body
from overlayd.model.definition import DedupRule, Definition, RetentionRule
from overlayd.model.entry import Kind, StoredEntry, verify_entry
from overlayd.model.errors import LimitReached, UnderHold, UnknownHold
from overlayd.model.merkle import verify_consistency, verify_inclusion
from overlayd.model.units import Duration, Size
from overlayd.storage import Log, Stream, links
from overlayd.storage.hold_book import NO_END
from overlayd.storage.retention import RetentionSettings

DAY_S = 86_400.0
SETTINGS = RetentionSettings(trust_clock=True, slice_packets=7, share=1.0, cut_entries=256)


def rule(**fields: object) -> Definition:
    """A definition with a retention rule; ages in days."""
    for name in ("max_age", "min_age", "hold_max"):
        if name in fields:
            fields[name] = Duration(fields[name] * DAY_S)  # type: ignore[operator]
    values = {"max_age": Duration(0), "max_bytes": Size(0), "hold_max": Duration(0), **fields}
    return Definition(retention=RetentionRule(**values), dedup=DedupRule(window=Duration(0)))  # type: ignore[arg-type]


async def fill(log: Log, rig: Rig, days: int, name: str = "s", per_day: int = 10) -> Stream:
    """So many packets a day; the clock ends behind the last day."""
    for _ in range(days):
        await append(log, name, [draft(id=f"{name}-{rig.clock.us}-{at}") for at in range(per_day)])
        rig.clock.advance(DAY_S)
    stream = log.find_stream(name)
    assert stream is not None
    return stream


async def kept_of(log: Log, stream: Stream) -> list[int]:
    """The sequences that are whole, read from the disk; the counts must say the same."""
    forget_tail(log)
    entries, after = [], 0
    while True:
        page = await log.read_packets(stream, after, 100)
        if not page:
            break
        entries += page
        after = page[-1].sequence
    kept = [entry.sequence for entry in entries if not entry.is_reduced]
    assert stream.packets == len(kept)
    assert stream.oldest_sequence == (kept[0] if kept else 0)
    for entry in entries:
        verify_entry(entry, None)
        assert not entry.is_reduced or log.removal_cause(entry) == "retention"
    return kept


async def test_age(rig: Rig) -> None:
    """What is older than max_age goes; the rest stays, whatever it weighs."""
    async with rig.open(retention=SETTINGS) as log:
        await log.define_stream("s", rule(max_age=3))
        stream = await fill(log, rig, 10)
        assert await log.retention.look() == 70
        assert await kept_of(log, stream) == list(range(71, 101))
        assert await log.retention.look() == 0
        rig.clock.advance(2 * DAY_S)
        assert await log.retention.look() == 20


async def test_count_and_bytes(rig: Rig) -> None:
    """A stream never keeps more packets than max_packets, nor more bytes than max_bytes, once it was looked at."""
    async with rig.open(retention=SETTINGS) as log:
        await log.define_stream("s", rule(max_packets=12))
        stream = await fill(log, rig, 5)
        await log.retention.look()
        assert await kept_of(log, stream) == list(range(39, 51))
        await log.define_stream("s", rule(max_bytes=Size(stream.bytes // 2)))
        await log.retention.look()
        kept = await kept_of(log, stream)
        assert stream.bytes <= stream.definition.retention.max_bytes
        assert kept == list(range(51 - len(kept), 51))
        assert 4 <= len(kept) <= 6


async def test_slices_are_bounded(rig: Rig) -> None:
    """Each transaction takes at most slice_packets packets, or those up to slice_bytes; each says so in its entry."""
    async with rig.open(retention=SETTINGS) as log:
        await log.define_stream("s", rule(max_packets=1))
        await append(log, "s", [draft() for _ in range(20)])
        await log.retention.look()
        counts = [decode_removal_body(entry.body).count for entry in await removals_of(log)]
        assert counts == [7, 7, 5]
    settings = RetentionSettings(trust_clock=True, slice_bytes=Size(5000), share=1.0)
    async with rig.open(retention=settings) as log:
        await append(log, "s", [draft('"' + "x" * 2000 + '"') for _ in range(10)])
        await log.retention.look()
        counts = [decode_removal_body(entry.body).count for entry in await removals_of(log)][3:]
        assert counts == [4, 3, 3]


async def removals_of(log: Log) -> list[StoredEntry]:
    """The removal entries."""
    entries: list[StoredEntry] = []
    while len(entries) < log.head:
        entries += (await log.read_page(len(entries))).entries
    return [entry for entry in entries if entry.kind == Kind.REMOVAL]


async def test_holds_beat_bounds(rig: Rig) -> None:
    """What a legal hold covers stays while everything around it goes, and goes once the hold is lifted."""
    async with rig.open(retention=SETTINGS) as log:
        await log.define_stream("s", rule(max_packets=3))
        stream = await fill(log, rig, 4)
        hold = await log.holds.place(stream, 5, 9, reason="case 7", principal="ada")
        await log.retention.look()
        assert await kept_of(log, stream) == [5, 6, 7, 8, 9]
        with pytest.raises(UnderHold) as caught:
            await log.reduce(stream, 1, log.head, "erased")
        assert caught.value.extra == {"hold": hold.id}
        with pytest.raises(UnderHold):
            await log.delete_stream("s")
        assert stream.state == "active"
    async with rig.open(retention=SETTINGS) as log:
        found = log.find_stream("s")
        assert found is not None
        (again,) = log.holds.book.list_of(found)
        assert again == hold
        await log.retention.look()
        assert await kept_of(log, found) == [5, 6, 7, 8, 9]
        assert await log.holds.lift(found, hold.id) == hold
        with pytest.raises(UnknownHold):
            await log.holds.lift(found, hold.id)
        await log.retention.look()
        assert await kept_of(log, found) == [7, 8, 9]


async def test_open_hold_covers_what_comes(rig: Rig) -> None:
    """A hold without an end keeps later packets too."""
    async with rig.open(retention=SETTINGS) as log:
        await log.define_stream("s", rule(max_packets=2))
        stream = await fill(log, rig, 1)
        await log.holds.place(stream, 11, NO_END, reason="from now on", principal="ada")
        await fill(log, rig, 2)
        await log.retention.look()
        assert await kept_of(log, stream) == list(range(11, 31))


async def test_min_age_beats_bounds(rig: Rig) -> None:
    """No bound, erasure or deletion takes a packet that is younger than min_age."""
    async with rig.open(retention=SETTINGS) as log:
        await log.define_stream("s", rule(max_packets=1, min_age=4))
        stream = await fill(log, rig, 10)
        await log.retention.look()
        assert await kept_of(log, stream) == list(range(71, 101))
        with pytest.raises(UnderHold) as caught:
            await log.holds.refuse_if_held(stream, 60, 75)
        assert "until" in caught.value.extra
        with pytest.raises(UnderHold):
            await log.reduce(stream, 1, log.head, "erased")
        with pytest.raises(UnderHold):
            await log.delete_stream("s")
        rig.clock.advance(4 * DAY_S)
        assert await log.delete_stream("s") == 30


async def test_waits_for_who_needs_it(rig: Rig) -> None:
    """Packets that somebody still needs stay until they are older than hold_max."""
    async with rig.open(retention=SETTINGS) as log:
        await log.define_stream("s", rule(max_age=1, hold_max=6))
        stream = await fill(log, rig, 5)
        offset = await log.find_offset(stream, 21)
        assert offset is not None

        async def needed_from(asked: Stream) -> int:
            assert asked is stream
            return offset

        log.retention.wait_for(needed_from)
        await log.retention.look()
        assert await kept_of(log, stream) == list(range(21, 51))
        rig.clock.advance(5 * DAY_S)
        await log.retention.look()
        assert await kept_of(log, stream) == list(range(41, 51))


async def test_untrusted_clock(rig: Rig) -> None:
    """While the clock isn't trusted nothing ages; counts still bind; an admin settles it, over restarts."""
    settings = RetentionSettings(slice_packets=7, share=1.0)
    async with rig.open(retention=settings) as log:
        await log.define_stream("s", rule(max_age=1))
        await log.define_stream("t", rule(max_packets=3))
        stream = await fill(log, rig, 3)
        await fill(log, rig, 1, "t")
        log.retention.trust.has_doubt = True
        await log.write(log.retention.trust.store)
        assert await log.retention.look() == 7
        assert await kept_of(log, stream) == list(range(1, 31))
    async with rig.open(retention=settings) as log:
        assert log.retention.trust.trouble
        assert await log.retention.look() == 0
        log.retention.trust._synced = True
        await log.retention.trust.settle(log.write)
        assert await log.retention.look() == 30


async def test_duplicates_and_causes_survive(rig: Rig) -> None:
    """After retention and a restart a repeat is still a duplicate, and what went is still said to be retention's."""
    rig.defaults = Definition()
    async with rig.open(retention=SETTINGS) as log:
        definition = Definition(retention=RetentionRule(max_packets=1))
        await log.define_stream("s", definition)
        await append(log, "s", drafts("a", "b", "c"))
        await log.retention.look()
    async with rig.open(retention=SETTINGS) as log:
        (receipt,) = receipts(await append(log, "s", drafts("a")))
        assert (receipt.duplicate, receipt.sequence) == (True, 1)
        entry = (await log.read_packets(log.find_stream("s"), 0, 1))[0]  # type: ignore[arg-type]
        cause: RemovalCause = log.removal_cause(entry)
        assert cause == "retention"


async def fill_for_cut(log: Log, rig: Rig) -> Stream:
    """About 4,000 entries of which the first 3,500 are old."""
    stream = await fill(log, rig, 35, per_day=100)
    await log.checkpoint(log.head)
    return stream


CUT = RetentionSettings(trust_clock=True, share=1.0, cut_entries=256)


async def test_cut(rig: Rig) -> None:
    """The log's beginning goes, rows and level-0 tiles; what is kept still proves, also from checkpoints of what went."""
    rig.set_settings(flush_entries=256)
    async with rig.open(retention=CUT) as log:
        await log.define_stream("s", rule(max_age=10))
        early = await fill(log, rig, 5, per_day=99)
        old = await log.checkpoint(log.head)
        proofs = {}
        stream = await fill_for_cut(log, rig)
        size, root = log.head, await log.root_at(log.head)
        for sequence in (early.head_sequence, stream.head_sequence - 5):
            offset = await log.find_offset(stream, sequence)
            assert offset is not None
            leaf = (await log.read_entry(offset)).leaf
            proofs[offset] = (leaf, await log.inclusion_path(offset - 1, size))
        await log.write(partial(links.write, links=[(1, links.MADE, 3), (size, links.MADE, size + 1)]))
        assert await log.retention.look() == 35 * 100 + 5 * 99 - 10 * 100
        minimum = log.minimum_index
        assert await log.read(lambda c: c.execute("SELECT target FROM entry_link").fetchall()) == [(size,)]
        assert minimum % 256 == 0
        assert 1500 < minimum < 3000
        await check_cut(log, minimum)
        for offset, (leaf, path) in proofs.items():
            verify_inclusion(leaf, offset - 1, size, path, root)
        await check_proofs(log, old.size, old.root)
        kept = await kept_of(log, stream)
        assert kept == list(range(stream.head_sequence - 999, stream.head_sequence + 1))
    for is_clean in (1, 0):
        with rig.connect() as connection:
            connection.execute("UPDATE state SET value = ? WHERE key = 'is_clean'", (is_clean,))
        async with rig.open(retention=CUT) as log:
            assert log.minimum_index == minimum
            await check_cut(log, minimum)
            await check_proofs(log, old.size, old.root)
            found = log.find_stream("s")
            assert found is not None
            assert (found.head_sequence, await kept_of(log, found)) == (stream.head_sequence, kept)
            assert await log.find_offset(found, 1) is None
            await append(log, "s", [draft() for _ in range(300)])
            kept += range(kept[-1] + 1, kept[-1] + 301)
            stream = found


async def check_cut(log: Log, minimum: int) -> None:
    """No row and no level-0 tile is left below, everything above is there."""

    def read(connection: sqlite3.Connection) -> tuple[int, int]:
        (first,) = connection.execute("SELECT min(offset) FROM entry").fetchone()
        (tile,) = connection.execute("SELECT min(id & ((1 << 55) - 1)) FROM tile WHERE id >= 7 << 55").fetchone()
        return first, tile

    assert await log.read(read) == (minimum + 1, minimum // 256)
    after = minimum
    while after < log.head:
        page = await log.read_page(after)
        assert not page.damaged
        after = page.after


async def check_proofs(log: Log, old_size: int, old_root: bytes) -> None:
    """Paths of what is kept, and from a checkpoint of what isn't."""
    size, root = log.head, await log.root_at(log.head)
    for offset in range(log.minimum_index + 1, size, 97):
        entry = await log.read_entry(offset)
        verify_inclusion(entry.leaf, offset - 1, size, await log.inclusion_path(offset - 1, size), root)
    assert await log.root_at(old_size) == old_root
    verify_consistency(old_size, old_root, size, root, await log.consistency_path(old_size, size))


async def test_nothing_is_cut_that_is_kept(rig: Rig) -> None:
    """One old packet that stays, under a hold or in a quiet stream, keeps everything behind it from being cut."""
    rig.set_settings(flush_entries=256)
    async with rig.open(retention=CUT) as log:
        await log.define_stream("s", rule(max_age=10))
        await log.define_stream("quiet", rule())
        await append(log, "quiet")
        await fill_for_cut(log, rig)
        await log.retention.look()
        assert log.minimum_index == 0
        await log.delete_stream("quiet")
        await log.retention.look()
        assert log.minimum_index > 1000


async def test_cut_goes_on_after_a_crash(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cut whose rows are still there is finished by the next start's first look."""
    rig.set_settings(flush_entries=256)

    async def stop(*_args: object) -> bool:
        return False

    async with rig.open(retention=CUT) as log:
        await log.define_stream("s", rule(max_age=10))
        await fill_for_cut(log, rig)
        with monkeypatch.context() as patch:
            patch.setattr(log.retention.cutter, "delete_slice", stop)
            await log.retention.look()
        minimum = log.minimum_index
        assert minimum
    async with rig.open(retention=CUT) as log:
        await log.retention.look()
        assert log.minimum_index == minimum
        await check_cut(log, minimum)


async def test_file_shrinks(rig: Rig) -> None:
    """Room that packets took goes back to the disk, without waiting for an idle moment."""
    settings = RetentionSettings(trust_clock=True, share=1.0)
    async with rig.open(retention=settings) as log:
        await log.define_stream("s", rule(max_packets=10))
        for _ in range(20):
            await append(log, "s", [draft('"' + "x" * 20_000 + '"') for _ in range(50)])
        before = log.stats().database_bytes
        await log.retention.look()
        await trio.lowlevel.checkpoint()
        await log.write(lambda connection: None)
        after = log.stats().database_bytes
        assert before > 15_000_000
        assert after < 10_000_000  # some free pages stay for what comes next


async def test_holds_are_bounded(rig: Rig) -> None:
    """A stream has at most holds_per_stream holds."""
    rig.set_limits(holds_per_stream=2)
    async with rig.open(retention=SETTINGS) as log:
        stream = await fill(log, rig, 1)
        for _ in range(2):
            await log.holds.place(stream, 1, 2, reason="r", principal="ada")
        with pytest.raises(LimitReached):
            await log.holds.place(stream, 1, 2, reason="r", principal="ada")
        assert rig.limit_hits("holds_per_stream") == 1
        await log.holds.lift(stream, 1)
        assert (await log.holds.place(stream, 1, 2, reason="r", principal="ada")).id > 2


async def test_the_disk_is_told(rig: Rig) -> None:
    """Each change of the disk's state is an event, once, with what is free."""
    told: list[tuple[str, bool]] = []

    async def announce(type: str, data: dict[str, object]) -> None:
        told.append((type, "free_bytes" in data))

    async with rig.open(retention=SETTINGS) as log:
        retention, disk = log.retention, log._disk
        retention.announce_with(announce)
        state = await retention._tell_disk("")
        for disk.is_low, disk.is_full in ((True, False), (True, False), (True, True), (False, False)):
            state = await retention._tell_disk(state)
        disk.is_full = False
    assert told == [("disk.low", True), ("disk.full", True), ("disk.ok", True)]
