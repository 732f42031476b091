"""The index of subjects: which packets are about whom, whenever the stream came to say where that stands."""

import trio
import trio.testing
from privacy_rig import Office, PrivacyRig, define, put

from overlayd.model.privacy import RedactRule
from overlayd.privacy import subjects


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
