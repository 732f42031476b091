"""The index of subjects: which packets are about whom, whenever the stream came to say where that stands."""

from collections.abc import Sequence

import pytest
import trio
import trio.testing
from privacy_rig import Office, PrivacyRig, define, put
from storage_rig import append, draft

from overlayd.model.entry import StoredEntry
from overlayd.model.privacy import RedactRule
from overlayd.privacy import subjects
from overlayd.storage import Stream


async def found(office: Office, subject: str) -> dict[str, list[int]]:
    """Sequences by stream."""
    return await office.find(subject)


async def test_packets_are_found_by_their_subject(rig: PrivacyRig) -> None:
    """In data, metadata, key or source, across streams; numbers by their digits."""
    async with rig.office() as office:
        await define(office.log, "a", subject="/data/who/id")
        await define(office.log, "b", subject="/key")
        await define(office.log, "c", subject="/metadata/who")
        await define(office.log, "d")
        await put(office.log, "a", {"who": {"id": 7}}, {"who": {"id": "8"}}, {"n": 1}, {"who": {"id": "7"}})
        await put(office.log, "b", 1, key="7")
        await put(office.log, "c", 1, metadata=b'{"who":"7"}')
        await put(office.log, "d", {"who": {"id": 7}})
        assert await found(office, "7") == {"a": [1, 4], "b": [1], "c": [1]}
        assert await found(office, "nobody") == {}


async def test_older_packets_are_entered_when_it_is_declared(rig: PrivacyRig) -> None:
    """In slices; and anew when the place changes; and none when there is none any more."""
    subjects.SLICE_PACKETS, before = 3, subjects.SLICE_PACKETS
    try:
        async with rig.office() as office:
            log = office.log
            await define(log, "a")
            await put(log, "a", *({"who": f"p{number % 4}", "other": "x"} for number in range(20)))
            assert await found(office, "p1") == {}
            await define(log, "a", subject="/data/who")
            assert await found(office, "p1") == {"a": [2, 6, 10, 14, 18]}
            await define(log, "a", subject="/data/other")
            assert await found(office, "p1") == {}
            assert len((await found(office, "x"))["a"]) == 20
            await define(log, "a")
            await put(log, "a", 1)
            await trio.testing.wait_all_tasks_blocked()
            assert await found(office, "x") == {}
    finally:
        subjects.SLICE_PACKETS = before


async def test_it_goes_on_where_it_stopped(rig: PrivacyRig) -> None:
    """After a restart only what is new is looked at."""
    async with rig.office() as office:
        await define(office.log, "a", subject="/data/w")
        await put(office.log, "a", {"w": "x"}, {"w": "y"})
        await office.people.subjects.wait()
    async with rig.office(runs=False) as office:
        await put(office.log, "a", {"w": "x"})
        assert office.people.subjects.behind == 1
    async with rig.office() as office:
        assert await found(office, "x") == {"a": [1, 3]}


async def test_a_pseudonymised_subject_is_found_by_its_name(rig: PrivacyRig) -> None:
    """Who asks needn't know the pseudonym."""
    rule = RedactRule("/data/who", "pseudonymise")
    async with rig.office() as office:
        await define(office.log, "a", subject="/data/who", redact=(rule,))
        await put(office.log, "a", {"who": office.people.pseudonym("a", "alice")}, {"who": "alice"})
        assert await found(office, "alice") == {"a": [1, 2]}
        assert office.people.pseudonym("a", "alice") != office.people.pseudonym("b", "alice")


async def test_what_is_gone_leaves_the_index(rig: PrivacyRig) -> None:
    """Deleted streams, and packets that their stream's retention took."""
    async with rig.office() as office:
        log = office.log
        stream = await define(log, "a", subject="/data/w")
        await define(log, "b", subject="/data/w")
        await put(log, "a", {"w": "x"}, {"w": "x"}, {"w": "x"})
        await put(log, "b", {"w": "x"})
        await office.people.subjects.wait()
        first = (await log.read_packets(stream, 0, 1))[0].offset
        await log.reduce(stream, first, first + 1, "retention")
        await log.delete_stream("b")
        await put(log, "a", {"w": "y"})
        await office.people.subjects.wait()
        await trio.testing.wait_all_tasks_blocked()
        rows = await log.read(lambda c: c.execute("SELECT stream_id, sequence FROM privacy_subject").fetchall())
        assert sorted(rows) == [(stream.id, 3), (stream.id, 4)]


async def test_rebuilding_makes_the_same_index(rig: PrivacyRig) -> None:
    """From nothing, and what doesn't belong into it is gone."""
    async with rig.office() as office:
        await define(office.log, "a", subject="/data/w")
        await put(office.log, "a", {"w": "x"}, {"w": "y"}, {"w": "x"})
        before = await found(office, "x")
        wrong = office.people.hashes.of_subject("x")
        await office.log.write(
            lambda c: c.execute("UPDATE privacy_subject SET subject = ? WHERE sequence = 2", (wrong,))
        )
        assert await found(office, "x") != before
        await office.people.subjects.rebuild()
        assert await found(office, "x") == before


async def test_a_damaged_packet_stops_nobody(rig: PrivacyRig) -> None:
    """Those around it are entered."""
    async with rig.office(runs=False) as office:
        stream = await define(office.log, "a", subject="/data/w")
        await put(office.log, "a", {"w": "x"}, {"w": "x"}, {"w": "x"})
        second = (await office.log.read_packets(stream, 1, 1))[0].offset
    with rig.connect() as connection:
        connection.execute("DROP TRIGGER entry_update_guard")
        connection.execute("UPDATE entry SET sealed = zeroblob(length(sealed)) WHERE offset = ?", (second,))
    rig.set_settings(flush_entries=8)
    async with rig.office() as office:
        office.log._state.tail.reset(office.log.head)
        assert await found(office, "x") == {"a": [1, 3]}


async def test_a_page_of_somebody_is_a_bounded_step(rig: PrivacyRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many packets there are: counting and exporting read a few rows at a time."""
    monkeypatch.setattr("overlayd.privacy.places.PLACES_PER_STEP", 10)
    async with rig.office() as office:
        await define(office.log, "a", subject="/data/w")
        await define(office.log, "b", subject="/data/w")
        for stream in ("a", "b", "a"):
            await append(office.log, stream, [draft('{"w":"x"}') for _ in range(33)])
        await office.people.subjects.wait()
        steps = rig.count_rows(office.log, monkeypatch)
        counts, is_complete = await office.people.count_packets("x")
        assert [(one.stream.name, one.packets, one.first_sequence, one.last_sequence) for one in counts] == [
            ("a", 66, 1, 66), ("b", 33, 1, 33)
        ]  # fmt: skip
        assert is_complete
        found, after = list[int](), 0
        while True:
            packets, goes_on = await office.people.read_packets("x", after, 7)
            assert len(packets) <= 7
            found += [entry.offset for _, entry in packets]
            if goes_on is None:
                break
            after = goes_on
        assert found == sorted(found)
        assert len(found) == 99
        assert max(steps["read"]) <= 10


async def test_a_pseudonym_and_a_name_are_one_list(rig: PrivacyRig) -> None:
    """Packets under several names come in the order of their offsets, none twice."""
    rule = RedactRule("/data/who", "pseudonymise")
    async with rig.office() as office:
        await define(office.log, "a", subject="/data/who", redact=(rule,))
        await define(office.log, "b", subject="/data/who", redact=(rule,))
        for number in range(12):
            stream = "ab"[number % 2]
            who = office.people.pseudonym(stream, "alice") if number % 3 else "alice"
            await put(office.log, stream, {"who": who})
        found, after = list[int](), 0
        while True:
            packets, goes_on = await office.people.read_packets("alice", after, 5)
            found += [entry.offset for _, entry in packets]
            if goes_on is None:
                break
            after = goes_on
        assert len(found) == len(set(found)) == 12
        assert found == sorted(found)
        assert sum(len(some) for some in (await office.find("alice")).values()) == 12


async def test_counting_has_a_limit(rig: PrivacyRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is beyond isn't counted, and the answer says so."""
    monkeypatch.setattr("overlayd.privacy.places.PLACES_PER_STEP", 4)
    rig.set_limits(subject_packets_max=8)
    async with rig.office() as office:
        await define(office.log, "a", subject="/data/w")
        await put(office.log, "a", *({"w": "x"} for _ in range(8)))
        counts, is_complete = await office.people.count_packets("x")
        assert (counts[0].packets, is_complete) == (8, True)
        assert rig.limit_hits("subject_packets_max") == 0
        await put(office.log, "a", {"w": "x"})
        counts, is_complete = await office.people.count_packets("x")
        assert (counts[0].packets, is_complete) == (8, False)
        assert rig.limit_hits("subject_packets_max") == 1


async def test_long_packets_make_short_pages(rig: PrivacyRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page of an export ends with the packet that reaches its bytes."""
    monkeypatch.setattr("overlayd.privacy.people.EXPORT_BYTES", 100)
    async with rig.office() as office:
        await define(office.log, "a", subject="/data/w")
        await put(office.log, "a", *({"w": "x", "text": "y" * 60} for _ in range(5)))
        first, after = await office.people.read_packets("x", 0, 100)
        assert len(first) == 2
        assert after is not None
        rest, _ = await office.people.read_packets("x", after, 100)
        assert rest[0][1].sequence == 3


async def test_what_goes_while_it_is_looked_at_isn_t_entered(rig: PrivacyRig) -> None:
    """A packet that is erased between being read and being entered under its subject leaves no row."""
    async with rig.office(runs=False) as office:
        stream = await define(office.log, "a", subject="/data/w")
        await put(office.log, "a", {"w": "x"}, {"w": "x"})
        index = office.people.subjects
        read = index._read

        async def erase_then(stream: Stream, after: int) -> tuple[Sequence[StoredEntry], int]:
            entries, upto = await read(stream, after)
            await office.log.erasing.take(stream, [(1, entries[0].offset)])
            return entries, upto

        index._read = erase_then  # type: ignore[method-assign]
        await index._follow(stream, index.declared()[stream.id][1])
        rows = await office.log.read(lambda c: c.execute("SELECT sequence FROM privacy_subject").fetchall())
        assert rows == [(2,)]
