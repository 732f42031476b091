"""Erasures: what goes, in which order, and that they are carried out whatever comes in between."""

import sqlite3

import msgspec
import pytest
import trio
from privacy_rig import Office, PrivacyRig, define, made, put
from storage_rig import append, draft, forget_tail

from overlayd.model.bodies import StatusBody, StatusEntry, decode_removal_body
from overlayd.model.definition import RetentionRule
from overlayd.model.entry import Kind
from overlayd.model.errors import BadParameter, BatchTooLarge, Forbidden, UnderHold, UnknownErasure
from overlayd.model.units import Duration
from overlayd.privacy.recipients import Recipient
from overlayd.storage.hold_book import Hold
from overlayd.storage.intake import Job
from overlayd.storage.wal import checkpoint_truncate

SECRET = "planted-99d1"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept back is looked at all the time."""
    monkeypatch.setattr("overlayd.privacy.erasures.RETRY_S", 0)


async def fill(office: Office, count: int = 10) -> None:
    """Packets of two people, taking turns, with another stream's between them."""
    await define(office.log, "a", subject="/data/w")
    await define(office.log, "b")
    for number in range(count):
        await put(office.log, "a", {"w": "xy"[number % 2], "text": f"{SECRET}-{number}"})
        await put(office.log, "b", number)


async def erase(office: Office, stream: str, low: int, high: int) -> str:
    """Erases a range; gives the id once it is carried out."""
    id = await office.begin(await office.plan(stream, low, high))
    await office.erasures.wait(id)
    return id


async def kept(office: Office, stream: str) -> list[int]:
    """Sequences that are still there, as read from the disk."""
    forget_tail(office.log)
    found = office.log.find_stream(stream)
    assert found is not None
    return [entry.sequence for entry in await office.log.read_packets(found, 0, 1000) if not entry.is_reduced]


async def test_a_range_is_erased(rig: PrivacyRig) -> None:
    """The packets go, each trace in its turn, and the report says who had them."""
    async with rig.office() as office:
        await fill(office)
        office.recipients = [Recipient("sub_1", "reader", "pull")]
        id = await erase(office, "a", 3, 5)
        assert await kept(office, "a") == [1, 2, 6, 7, 8, 9, 10]
        assert office.calls == ["clear", "forget", "clear", "follow", "forget"]
        report = await office.erasures.show(id)
        assert (report.state, report.packets, report.derived) == ("done", 3, 0)
        assert [(one.stream, one.first_sequence, one.last_sequence) for one in report.streams] == [("a", 3, 5)]
        assert [one.name for one in report.recipients] == ["reader"]
        assert report.backups == ["/backups/one"]
        assert await office.audited() == ["ok", "ok"]
        for number in (2, 3, 4):
            assert not rig.file_holds(f"{SECRET}-{number}".encode())
        assert rig.file_holds(f"{SECRET}-5".encode())


async def test_a_subject_is_erased(rig: PrivacyRig) -> None:
    """Scattered packets, one removal entry for each run of sequences, and nobody else's."""
    async with rig.office() as office:
        await fill(office)
        plan = await office.planner.of_subject("x", lambda name: None)
        id = await office.begin(plan)
        await office.erasures.wait(id)
        assert await kept(office, "a") == [2, 4, 6, 8, 10]
        removals = [
            await office.log.read_entry(offset)
            for offset in range(1, office.log.head + 1)
            if (await office.log.read_entry(offset)).kind == Kind.REMOVAL
        ]
        assert [decode_removal_body(entry.body).count for entry in removals] == [1] * 5
        assert [entry.target_from for entry in removals] == [entry.target_to for entry in removals]
        assert await office.find("x") == {}
        stream = office.log.find_stream("a")
        assert stream is not None
        assert (stream.packets, stream.oldest_sequence) == (5, 2)


async def test_what_was_made_goes_too(rig: PrivacyRig) -> None:
    """Over several steps and into other streams; what was made of others stays."""
    async with rig.office() as office:
        await fill(office, 3)
        log = office.log
        stream = log.find_stream("a")
        assert stream is not None
        first, second = [entry.offset for entry in await log.read_packets(stream, 0, 2)]
        await append(log, "made", [made('"of one"', first)])
        of_one = log.head
        await append(log, "made", [made('"of another"', second)])
        await append(log, "made", [made('"of both"', first, second)])
        await append(log, "again", [made('"of what was made"', of_one)])
        id = await erase(office, "a", 1, 1)
        report = await office.erasures.show(id)
        assert (report.packets, report.derived) == (4, 3)
        assert await kept(office, "made") == [2]
        assert await kept(office, "again") == []
        assert await kept(office, "a") == [2, 3]
        assert not rig.file_holds(b"of what was made")


async def test_statuses_of_a_packet_go_with_it(rig: PrivacyRig) -> None:
    """What an entry says about one erased packet is gone, also what came late; what is about a range stays."""
    async with rig.office() as office:
        await fill(office, 2)
        log = office.log
        stream = log.find_stream("a")
        assert stream is not None
        first, last = [entry.offset for entry in await log.read_packets(stream, 0, 2)]
        told = StatusBody("mined", txid="ab" * 32)
        wanted: list[StatusEntry] = [(told, stream.stream_hash, first, first), (told, bytes(32), first, last)]
        offsets = await log.append_statuses(wanted, lambda connection: None)
        await erase(office, "a", 1, 1)
        for cold in (False, True):
            if cold:
                forget_tail(log)
            one, both = [await log.read_entry(offset) for offset in offsets]
            assert (one.is_reduced, both.is_reduced) == (True, False)
            assert log.removal_cause(one) == "erased"
        (late,) = await log.append_statuses(wanted[:1], lambda connection: None)
        await log.erasing.take_statuses([first])
        assert (await log.read_entry(late)).is_reduced


async def test_it_is_carried_out_after_a_restart(rig: PrivacyRig) -> None:
    """An erasure that was only written down is done before anybody is served."""
    async with rig.office(runs=False) as office:
        await fill(office)
        id = await office.begin(await office.plan("a", 1, 10))
        assert await kept(office, "a") == list(range(1, 11))
        assert (await office.erasures.show(id)).state == "working"
    async with rig.office(runs=False) as office:
        await office.erasures.resume()
        assert await kept(office, "a") == []
        assert (await office.erasures.show(id)).state == "done"
        rows = await office.log.read(lambda c: c.execute("SELECT targets FROM privacy_erasure").fetchall())
        assert rows == [(b"",)]
    assert not rig.file_holds(SECRET.encode())


@pytest.mark.parametrize("step", range(1, 9))
async def test_it_can_stop_at_every_step(rig: PrivacyRig, step: int) -> None:
    """Whatever step it is cut short at, carrying it out again completes it."""
    async with rig.office(runs=False) as office:
        await fill(office)
        id = await office.begin(await office.plan("a", 2, 9))
        count, put_job = 0, office.log._intake.put

        async def stop_at(job: Job) -> None:
            nonlocal count
            count += 1
            if count >= step:
                await trio.sleep_forever()
            await put_job(job)

        office.log._intake.put = stop_at  # type: ignore[method-assign]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(office.erasures.resume)
            while count < step and "done" not in (await office.erasures.show(id)).state:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        office.log._intake.put = put_job  # type: ignore[method-assign]
    async with rig.office() as office:
        await office.erasures.wait(id)
        assert (await office.erasures.show(id)).state == "done"
        assert await kept(office, "a") == [1, 10]


async def hold(office: Office, stream: str, low: int, high: int) -> Hold:
    """Places one."""
    found = office.log.find_stream(stream)
    assert found is not None
    return await office.log.holds.place(found, low, high, reason="case", principal="judge")


async def lift(office: Office, stream: str, placed: Hold) -> None:
    """Takes it away."""
    found = office.log.find_stream(stream)
    assert found is not None
    await office.log.holds.lift(found, placed.id)


async def test_a_hold_that_comes_in_between(rig: PrivacyRig) -> None:
    """What is held by then stays, with all that tables have of it; the rest goes, and the report tells both."""
    async with rig.office(runs=False) as office:
        await fill(office)
        id = await office.begin(await office.plan("a", 1, 10))
        await hold(office, "a", 5, 6)
        places = await places_of(office, "a")
        await office.erasures.resume()
        report = await office.erasures.show(id)
        assert (report.state, report.packets, report.held) == ("held", 8, 2)
        assert [(one.stream, one.packets) for one in report.streams] == [("a", 8)]
        assert await kept(office, "a") == [5, 6]
        held = {places[5], places[6]}
        assert not held & {*office.cleared, *office.forgotten}
        assert set(office.cleared) == set(places.values()) - held
        assert (await office.audited())[-1] == "failed"


async def places_of(office: Office, stream: str) -> dict[int, int]:
    """Offsets by sequence."""
    found = office.log.find_stream(stream)
    assert found is not None
    return dict(await office.log.erasing.read_positions(found, 1, 1000))


async def test_it_goes_on_once_the_hold_is_lifted(rig: PrivacyRig, quick: None) -> None:
    """Also after a restart; what was erased before isn't counted twice, and what waits is written down."""
    async with rig.office(runs=False) as office:
        await fill(office)
        id = await office.begin(await office.plan("a", 1, 10))
        placed = await hold(office, "a", 5, 6)
        await office.erasures.resume()
    async with rig.office() as office:
        assert (await office.erasures.show(id)).state == "held"
        acts = len(await office.audited())
        other = await hold(office, "a", 1, 1)
        while office.erasures._kept_back[id].marks != office.erasures._marks():
            await trio.lowlevel.checkpoint()
        assert await kept(office, "a") == [5, 6]
        assert len(await office.audited()) == acts
        await lift(office, "a", placed)
        while (await office.erasures.show(id)).state != "done":
            await trio.lowlevel.checkpoint()
        report = await office.erasures.show(id)
        assert (report.packets, report.held, [one.packets for one in report.streams]) == (10, 0, [10])
        assert await kept(office, "a") == []
        assert (await office.audited())[-1] == "ok"
        await lift(office, "a", other)
    assert not rig.file_holds(SECRET.encode())


async def test_who_waits_is_told_that_some_is_held(rig: PrivacyRig, quick: None) -> None:
    """Nobody waits for a hold to end; another erasure is carried out meanwhile."""
    async with rig.office(runs=False) as office:
        await fill(office)
        id = await office.begin(await office.plan("a", 1, 2))
        await hold(office, "a", 1, 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(office.erasures.run)
            await office.erasures.wait(id)
            assert (await office.erasures.show(id)).held == 1
            assert rig.gauge("overlayd_erasures_open") == 0
            assert rig.gauge("overlayd_erasures_held") == 1
            other = await office.begin(await office.plan("a", 3, 4))
            await office.erasures.wait(other)
            assert (await office.erasures.show(other)).state == "done"
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("step", range(1, 7))
async def test_a_hold_between_two_steps_keeps_what_tables_have(rig: PrivacyRig, step: int) -> None:
    """In front of whatever job for the writer it comes: all of a packet is there, or nothing."""
    async with rig.office(runs=False) as office:
        await fill(office)
        id = await office.begin(await office.plan("a", 1, 10))
        places = await places_of(office, "a")
        count, put_job = 0, office.log._intake.put

        async def hold_first(job: Job) -> None:
            nonlocal count
            count += 1
            if count == step:
                office.log._intake.put = put_job  # type: ignore[method-assign]
                await hold(office, "a", 5, 5)
            await put_job(job)

        office.log._intake.put = hold_first  # type: ignore[method-assign]
        await office.erasures.resume()
        is_there = 5 in await kept(office, "a")
        assert is_there == (places[5] not in office.cleared)
        assert is_there == (places[5] not in office.forgotten)
        report = await office.erasures.show(id)
        assert (report.held, report.packets) == ((1, 9) if is_there else (0, 10))


async def test_a_least_age_that_comes_in_between(rig: PrivacyRig, quick: None) -> None:
    """What is too young stays until it is old enough; then it goes by itself."""
    async with rig.office(runs=False) as office:
        await fill(office, 4)
        rig.clock.advance(100)
        await put(office.log, "a", {"w": "x"})
        id = await office.begin(await office.plan("a", 1, 5))
        await define(office.log, "a", subject="/data/w", retention=RetentionRule(min_age=Duration(60)))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(office.erasures.run)
            await office.erasures.wait(id)
            assert (await office.erasures.show(id)).held == 1
            assert await kept(office, "a") == [5]
            rig.clock.advance(61)
            while (await office.erasures.show(id)).state != "done":
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        assert await kept(office, "a") == []


async def test_what_is_made_meanwhile_goes_too(rig: PrivacyRig) -> None:
    """A reply to a packet that came after the erasure was asked for; but nothing of streams that nobody was asked about."""
    async with rig.office(runs=False) as office:
        await fill(office, 2)
        first = (await places_of(office, "a"))[1]
        id = await office.begin(await office.plan("a", 1, 1))
        await append(office.log, "a", [made('"late"', first)])
        await append(office.log, "b", [made('"late elsewhere"', first)])
        await office.erasures.resume()
        assert await kept(office, "a") == [2]
        assert await kept(office, "b") == [1, 2, 3]
        report = await office.erasures.show(id)
        assert (report.packets, report.derived) == (2, 1)


async def test_no_step_takes_many_packets(rig: PrivacyRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are, few are planned, read and taken away at once."""
    for module in ("storage.erasing", "privacy.places", "privacy.planning"):
        monkeypatch.setattr(f"overlayd.{module}.PLACES_PER_STEP", 10)
    async with rig.office() as office:
        await define(office.log, "a", subject="/data/w")
        await append(office.log, "a", [draft('{"w":"x"}') for _ in range(95)])
        first = (await places_of(office, "a"))[1]
        await append(office.log, "b", [made("1", first) for _ in range(25)])
        steps = rig.count_rows(office.log, monkeypatch)
        plan = await office.planner.of_subject("x", lambda name: None)
        assert [len(target.places) for target in plan.targets] == [10] * 9 + [5] + [10, 10, 5]
        id = await office.begin(plan)
        await office.erasures.wait(id)
        assert (await office.erasures.show(id)).packets == 120
        assert steps["read"]
        assert max(steps["read"]) <= 10
        assert max(steps["write"]) <= 10
        assert len(office.cleared) == 2 * 120


async def test_what_an_older_version_wrote_down_is_carried_out(
    rig: PrivacyRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It put all of a stream's places together, and didn't say which packets were made from others."""
    monkeypatch.setattr("overlayd.storage.erasing.PLACES_PER_STEP", 3)
    async with rig.office(runs=False) as office:
        await fill(office)
        id = await office.begin(await office.plan("a", 1, 1))
        stream = office.log.find_stream("a")
        assert stream is not None
        old = msgspec.json.encode([(stream.stream_hash, list((await places_of(office, "a")).items()))])
        await office.log.write(lambda c: c.execute("UPDATE privacy_erasure SET targets = ?", (old,)))
    async with rig.office(runs=False) as office:
        await office.erasures.resume()
        assert await kept(office, "a") == []
        assert (await office.erasures.show(id)).packets == 10


async def test_backups_begun_meanwhile_are_named(rig: PrivacyRig) -> None:
    """A backup that began after somebody asked and before the packets went may hold them."""
    async with rig.office(runs=False) as office:
        await fill(office)
        id = await office.begin(await office.plan("a", 1, 3))
        office.backups.append("/backups/two")
        await office.erasures.resume()
        office.backups.append("/backups/three")
        assert (await office.erasures.show(id)).backups == ["/backups/one", "/backups/two"]


async def test_a_hold_refuses_the_whole(rig: PrivacyRig) -> None:
    """Also where only something that was made from it is held."""
    async with rig.office() as office:
        await fill(office, 2)
        source = office.log.find_stream("a")
        assert source is not None
        first = (await office.log.read_packets(source, 0, 1))[0].offset
        await append(office.log, "made", [made("1", first)])
        stream = office.log.find_stream("made")
        assert stream is not None
        await office.log.holds.place(stream, 1, 1, reason="case", principal="judge")
        with pytest.raises(UnderHold):
            await office.plan("a", 1, 1)
        assert await kept(office, "a") == [1, 2]


async def test_what_may_not_be_erased(rig: PrivacyRig) -> None:
    """The right is asked for each stream, those of what was made included; ranges must be ranges."""
    rig.set_limits(erase_packets_max=3)
    async with rig.office() as office:
        await fill(office, 5)
        source = office.log.find_stream("a")
        assert source is not None
        first = (await office.log.read_packets(source, 0, 1))[0].offset
        await append(office.log, "made", [made("1", first)])

        def check(name: str) -> None:
            if name == "made":
                raise Forbidden("no")

        with pytest.raises(Forbidden):
            await office.planner.of_range(source, 1, 1, check)
        with pytest.raises(BadParameter):
            await office.plan("a", 2, 1)
        with pytest.raises(BatchTooLarge):
            await office.plan("a", 1, 5)
        with pytest.raises(UnknownErasure):
            await office.erasures.show("er_nosuch")
        assert rig.limit_hits("erase_packets_max") == 1
        assert (await office.plan("a", 100, 200)).packets == 0


async def test_erasing_again_finds_nothing(rig: PrivacyRig) -> None:
    """What is gone isn't counted twice, but what was made from it later is found."""
    async with rig.office() as office:
        await fill(office, 2)
        source = office.log.find_stream("a")
        assert source is not None
        first = (await office.log.read_packets(source, 0, 1))[0].offset
        await erase(office, "a", 1, 1)
        assert (await office.plan("a", 1, 1)).packets == 0
        await append(office.log, "made", [made("1", first)])
        plan = await office.plan("a", 1, 1)
        assert [(len(target.places), target.is_made) for target in plan.targets] == [(1, True)]


async def test_links_of_an_older_log_are_made(rig: PrivacyRig) -> None:
    """A database from before there were links is looked through, once, and goes on after a stop."""
    async with rig.office() as office:
        await fill(office, 2)
        source = office.log.find_stream("a")
        assert source is not None
        first = (await office.log.read_packets(source, 0, 1))[0].offset
        await append(office.log, "made", [made("1", first)])
        head = office.log.head
        await office.log.write(lambda c: c.execute("DELETE FROM entry_link"))
        assert await office.log.erasing.find_made([first], 10) == []
        await office.log.erasing.older.begin_anew(head)
        await office.log.erasing.older.run()
        assert await office.log.erasing.find_made([first], 10) == [head]


async def test_a_reader_keeps_the_wal_from_being_cut(rig: PrivacyRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is waited for; the erasure isn't said to be done before."""
    results: list[bool] = []

    def cut(connection: sqlite3.Connection) -> bool:
        results.append(checkpoint_truncate(connection))
        return results[-1]

    monkeypatch.setattr("overlayd.storage.writer.checkpoint_truncate", cut)
    monkeypatch.setattr("overlayd.storage.erasing.CUT_PAUSE_S", 0)
    async with rig.office() as office:
        await fill(office)
        reader = sqlite3.connect(f"file:{rig.directory}/log.sqlite3?mode=ro", uri=True, isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM entry").fetchone()
        id = await office.begin(await office.plan("a", 1, 10))
        while False not in results:
            await trio.lowlevel.checkpoint()
        assert (await office.erasures.show(id)).state == "working"
        reader.close()
        await office.erasures.wait(id)
        assert not rig.file_holds(SECRET.encode())


async def test_the_newest_erasures_are_listed(rig: PrivacyRig) -> None:
    """Page by page."""
    async with rig.office() as office:
        await fill(office)
        ids = []
        for number in range(1, 4):
            ids.append(await erase(office, "a", number, number))
            rig.clock.advance(1)
        first, is_more = await office.erasures.list_newest("", 2)
        assert ([one.id for one in first], is_more) == ([ids[2], ids[1]], True)
        rest, is_more = await office.erasures.list_newest(ids[1], 2)
        assert ([one.id for one in rest], is_more) == ([ids[0]], False)
