"""The consumer loop over a log in memory: what comes, in which order, where it resumes, what is announced as gone."""

from typing import Any

import msgspec
import pytest
import trio
from delivery_fakes import EPOCH, FakeLog, make_delivery, query_of

from overlayd.delivery.delivery import Delivery, OpenReader
from overlayd.delivery.frames import encode_message
from overlayd.delivery.reader import refuse_gaps
from overlayd.model.cursor import Cursor, make_epoch
from overlayd.model.errors import (
    BadCursor,
    BadParameter,
    CursorExpired,
    ForkDetected,
    FutureCursor,
    UnknownEpoch,
)


async def open_reader(delivery: Delivery, **query: Any) -> OpenReader:
    """A reader for URL arguments."""
    return await delivery.open_reader(query_of(**query), "test")


async def drain(opened: OpenReader) -> list[dict[str, Any]]:
    """All messages up to the head, decoded."""
    found = []
    while True:
        batch = await opened.reader.read()
        found += [msgspec.json.decode(encode_message(message, "packet")) for message in batch.messages]
        if batch.is_at_head:
            return found


async def read_all(delivery: Delivery, **query: Any) -> list[dict[str, Any]]:
    """Everything from the beginning, or from where the query says."""
    with await open_reader(delivery, **{"from": "beginning"} | query) as opened:
        return await drain(opened)


def sequences(messages: list[dict[str, Any]]) -> list[tuple[str, int]]:
    """Stream and sequence of each packet."""
    return [(m["stream_id"], m["packet"]["packet_sequence"]) for m in messages if m["type"] == "packet"]


def gaps(messages: list[dict[str, Any]]) -> list[tuple[int, int, str]]:
    """Offsets and reason of each gap."""
    return [
        (Cursor.parse(m["from"]).offset, Cursor.parse(m["to"]).offset, m["reason"])
        for m in messages
        if m["type"] == "gap"
    ]


async def test_pattern_picks_streams() -> None:
    """Only packets of streams under the patterns come, in the log's order, whatever the page size."""
    for size in (1, 2, 3, 200):
        log = FakeLog(page_entries=size)
        for number in range(4):
            log.add("weather.a", number)
            log.add("traffic", number)
            log.add("weather.b", number)
            log.add_other()
        delivery = make_delivery(log)
        assert sequences(await read_all(delivery, stream="weather.*")) == [
            (name, number) for number in range(1, 5) for name in ("weather.a", "weather.b")
        ]
        assert sequences(await read_all(delivery, stream=["traffic", "weather.b"])) == [
            (name, number) for number in range(1, 5) for name in ("traffic", "weather.b")
        ]
        assert len(sequences(await read_all(delivery))) == 12


async def test_type_key_and_topic_narrow() -> None:
    """Types and keys are compared, topics are matched as patterns over the definition's and the packet's own."""
    log = FakeLog()
    log.add("s", 1, type="reading", key="k1", definition_topics=b'["plant.a"]')
    log.add("s", 2, type="reading", key="k2", topics=b'["plant.a.x","Odd Topic/7"]')
    log.add("s", 3, type="alarm", key="k1")
    delivery = make_delivery(log)

    async def found(**query: Any) -> list[int]:
        return [number for _, number in sequences(await read_all(delivery, **query))]

    assert await found(type="reading") == [1, 2]
    assert await found(type=["alarm", "other"]) == [3]
    assert await found(key="k1") == [1, 3]
    assert await found(key="k1", type="reading") == [1]
    assert await found(topic="plant.a") == [1]
    assert await found(topic="plant.>") == [1, 2]
    assert await found(topic="plant.*") == [1]
    assert await found(topic="Odd Topic/7") == [2]
    assert await found(topic="nothing") == []


async def test_now_then_live() -> None:
    """from=now gives nothing of what was there; a waiting reader gets what is appended next, once."""
    log = FakeLog()
    log.add("s", "old")
    delivery = make_delivery(log)
    with await open_reader(delivery, stream="s") as opened:
        assert await drain(opened) == []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(opened.reader.wait)
            await trio.testing.wait_all_tasks_blocked()
            log.add("s", "new")
        (message,) = await drain(opened)
        assert message["packet"]["data_payload"] == "new"
        assert message["cursor"] == log.cursor(2)
        assert await drain(opened) == []


async def test_resume_at_every_cursor() -> None:
    """Resuming behind any message gives exactly the rest, and every batch's cursor does too."""
    log = FakeLog(page_entries=3)
    for number in range(10):
        log.add("a", number)
        log.add("b", number)
        log.add_other(number % 3)
    log.remove("a", 5, 9, "retention")
    delivery = make_delivery(log)
    whole = await read_all(delivery, stream="a")
    for place, message in enumerate(whole):
        cursor = message.get("cursor") or message["to"]
        assert await read_all_after(delivery, cursor, stream="a") == whole[place + 1 :]
    with await open_reader(delivery, stream="a", **{"from": "beginning"}) as opened:
        seen = 0
        while True:
            batch = await opened.reader.read()
            seen += len(batch.messages)
            assert await read_all_after(delivery, str(batch.cursor), stream="a") == whole[seen:]
            if batch.is_at_head:
                break


async def read_all_after(delivery: Delivery, after: str, **query: Any) -> list[dict[str, Any]]:
    """Everything behind a cursor."""
    with await open_reader(delivery, after=after, **query) as opened:
        return await drain(opened)


async def test_from_time() -> None:
    """from=<time> begins with the first entry at or after it; a time to come is now, one before all the beginning."""
    log = FakeLog()
    for number in range(5):
        log.add("s", number)
    delivery = make_delivery(log)
    assert len(await read_all(delivery, **{"from": "2000-01-01T00:00:00Z"})) == 5
    assert len(await read_all(delivery, **{"from": "2023-11-14T22:13:20.003Z"})) == 3
    assert len(await read_all(delivery, **{"from": "2999-01-01T00:00:00Z"})) == 0


async def test_last_then_live_without_gap_or_repeat() -> None:
    """from=last gives each stream's newest packet, oldest first, then everything after the head it was asked at."""
    log = FakeLog()
    for name in ("b", "a", "b", "c"):
        log.add(name, name)
    log.add("other", 0)
    delivery = make_delivery(log)
    with await open_reader(delivery, stream=["a", "b", "c"], **{"from": "last"}) as opened:
        assert opened.reader.cursor == Cursor(EPOCH, 1)
        log.add("a", "live")
        assert sequences(await drain(opened)) == [("a", 1), ("b", 2), ("c", 1), ("a", 2)]


async def test_last_per_key() -> None:
    """With keys, from=last gives the newest packet of each key."""
    log = FakeLog()
    for key in ("x", "y", "x", "z"):
        log.add("s", key, key=key)
    delivery = make_delivery(log)
    with await open_reader(delivery, stream="s", key=["x", "y"], **{"from": "last"}) as opened:
        assert sequences(await drain(opened)) == [("s", 2), ("s", 3)]


async def test_resume_between_the_last_packets() -> None:
    """Resuming behind any of the last packets misses none of the following ones."""
    log = FakeLog()
    for name in ("a", "b", "c"):
        log.add(name, name)
    delivery = make_delivery(log)
    with await open_reader(delivery, **{"from": "last"}) as opened:
        messages = await drain(opened)
    assert sequences(await read_all_after(delivery, messages[0]["cursor"])) == [("b", 1), ("c", 1)]


async def test_cursor_rules() -> None:
    """A future cursor and a cursor of another log are refused by their own errors, and so is a place in no range."""
    log = FakeLog()
    log.add("s", 1)
    delivery = make_delivery(log)
    with pytest.raises(FutureCursor):
        await open_reader(delivery, after=log.cursor(2))
    with pytest.raises(UnknownEpoch):
        await open_reader(delivery, after=str(Cursor(make_epoch(7, b"other"), 1)))
    with pytest.raises(BadCursor):
        await open_reader(delivery, after=log.cursor(1, 3))
    with await open_reader(delivery, after=log.cursor(1)) as opened:
        assert await drain(opened) == []


async def test_restored_log() -> None:
    """An ancestor's cursor goes on without a word up to the common offset, and with one gap from there on above it."""
    older, oldest = make_epoch(2, b"older"), make_epoch(1, b"eldst")
    log = FakeLog(epoch=make_epoch(3, b"newer"))
    for number in range(6):
        log.add("s", number)
    log.ancestry = [(oldest, 5), (older, 3)]
    delivery = make_delivery(log)
    assert sequences(await read_all_after(delivery, str(Cursor(older, 3)))) == [("s", n) for n in (4, 5, 6)]
    for epoch in (older, oldest):
        first, *rest = await read_all_after(delivery, str(Cursor(epoch, 5)))
        assert first == {
            "type": "gap", "from": str(Cursor(epoch, 4)), "to": str(Cursor(epoch, 5)), "reason": "restored",
            "cursor": log.cursor(3),
        }  # fmt: skip
        assert sequences(rest) == [("s", n) for n in (4, 5, 6)]


async def test_reduced_runs_become_one_gap_each() -> None:
    """What retention took is one gap per run, over pages, and only where the reader would have got it."""
    for size in (1, 3, 200):
        log = FakeLog(page_entries=size)
        for number in range(8):
            log.add("a", number)
            log.add("b", number)
        log.remove("a", 1, 5, "retention")
        log.remove("a", 9, 13, "erased")
        delivery = make_delivery(log)
        found = await read_all(delivery, stream="a")
        assert gaps(found) == [(1, 5, "retention"), (9, 13, "erased")]
        assert sequences(found) == [("a", 4), ("a", 8)]
        assert [m["type"] for m in found] == ["gap", "packet", "gap", "packet"]
        assert gaps(await read_all(delivery, stream="b")) == []


async def test_long_run_moves_the_cursor() -> None:
    """A run over more entries than the progress bound is told in pieces, so that the resume point moves."""
    log = FakeLog(page_entries=10)
    for number in range(100):
        log.add("a", number)
    log.remove("a", 1, 100, "retention")
    delivery = make_delivery(log, progress_entries=40)
    assert gaps(await read_all(delivery, stream="a")) == [
        (1, 40, "retention"), (41, 80, "retention"), (81, 100, "retention")
    ]  # fmt: skip


async def test_held_gap_holds_the_cursor() -> None:
    """While a gap is held back because more of it may follow, the cursor stays in front of it."""
    log = FakeLog(page_entries=2)
    for number in range(6):
        log.add("a", number)
    log.remove("a", 2, 6, "retention")
    delivery = make_delivery(log)
    with await open_reader(delivery, **{"from": "beginning"}) as opened:
        first = await opened.reader.read()
        assert (len(first.messages), first.cursor.offset) == (1, 1)
        second = await opened.reader.read()
        assert (second.messages, second.cursor.offset, second.is_at_head) == ([], 1, False)


async def test_damage_and_cut() -> None:
    """Damaged entries are announced to everybody, a cut prefix too; from=beginning begins behind the cut."""
    log = FakeLog(page_entries=2)
    for number in range(8):
        log.add("a", number)
    log.damage(5, 6)
    log.minimum_index = 3
    delivery = make_delivery(log)
    found = await read_all_after(delivery, log.cursor(1), stream="b")
    assert gaps(found) == [(2, 3, "retention"), (5, 6, "damaged")]
    found = await read_all(delivery, stream="a")
    assert gaps(found) == [(5, 6, "damaged")]
    assert sequences(found) == [("a", n) for n in (4, 7, 8)]


async def test_on_gap_error_names_the_oldest() -> None:
    """With on_gap=error the first gap is an error that names where to go on."""
    log = FakeLog()
    for number in range(4):
        log.add("a", number)
    log.remove("a", 1, 2, "retention")
    delivery = make_delivery(log)
    with await open_reader(delivery, on_gap="error", **{"from": "beginning"}) as opened:
        batch = await opened.reader.read()
        with pytest.raises(CursorExpired) as caught:
            refuse_gaps(batch.messages)
    oldest = caught.value.extra["oldest"]
    assert sequences(await read_all_after(delivery, oldest)) == [("a", 3), ("a", 4)]


async def test_erased_notice_for_those_who_had_it() -> None:
    """A reader that was given a packet hears that it was erased; one that only saw the gap doesn't."""
    log = FakeLog()
    for number in range(5):
        log.add("a", number)
        log.add("b", number)
    delivery = make_delivery(log)
    with await open_reader(delivery, stream="a", **{"from": "beginning"}) as opened:
        await drain(opened)
        removal = log.remove("a", 3, 5, "erased")
        notices = await drain(opened)
    assert notices == [
        {"type": "erased", "stream_id": "a", "cursor": log.cursor(removal.offset, 1), "packet_sequence": 2},
        {"type": "erased", "stream_id": "a", "cursor": log.cursor(removal.offset), "packet_sequence": 3},
    ]
    assert await read_all_after(delivery, log.cursor(10), stream="a") == notices
    assert await read_all_after(delivery, notices[0]["cursor"], stream="a") == notices[1:]
    fresh = await read_all(delivery, stream="a")
    assert [m["type"] for m in fresh] == ["packet", "gap", "packet", "packet"]
    assert await read_all_after(delivery, log.cursor(10), stream="b") == []


async def test_notices_are_never_shared() -> None:
    """What one reader hears of a removal depends on what it had, so its frames aren't those of another at its place."""
    log = FakeLog(page_entries=1)
    log.add("a", 1)
    delivery = make_delivery(log)
    log.remove("a", 1, 1, "erased")
    with (
        await open_reader(delivery, after=log.cursor(1)) as had,
        await open_reader(delivery, after=log.cursor(0)) as new,
    ):
        (gap,) = (await new.reader.read()).messages or (await new.reader.read()).messages
        first, second = await had.reader.read(), await new.reader.read()
        assert gap.kind == "gap"
        assert [message.kind for message in first.messages] == ["erased"]
        assert second.messages == []
        assert first.wire is not second.wire


async def test_retention_tells_nobody() -> None:
    """Retention's removal entry is no message to those who had the packets."""
    log = FakeLog()
    log.add("a", 1)
    log.add("a", 2)
    delivery = make_delivery(log)
    log.remove("a", 1, 1, "retention")
    assert await read_all_after(delivery, log.cursor(2), stream="a") == []


async def test_deleted_stream() -> None:
    """Deleting a stream is a gap to its readers, once, and nothing to others; its name starts anew."""
    log = FakeLog()
    log.add("a", 1)
    log.add("b", 1)
    log.add("a", 2)
    delivery = make_delivery(log)
    with await open_reader(delivery, stream="a", **{"from": "beginning"}) as opened:
        assert len(await drain(opened)) == 2
        log.delete("a")
        assert gaps(await drain(opened)) == [(1, 3, "deleted")]
        log.add("a", "new")
        assert sequences(await drain(opened)) == [("a", 1)]
    late = await read_all(delivery, stream="a")
    assert gaps(late) == [(1, 3, "deleted")]
    assert gaps(await read_all(delivery, stream="b")) == []


async def test_deletion_in_slices_is_one_gap() -> None:
    """A large stream is deleted in several transactions; its readers hear of it once."""
    log = FakeLog()
    for number in range(10):
        log.add("a", number)
        log.add("b", number)
    delivery = make_delivery(log)
    with await open_reader(delivery, stream="a", **{"from": "beginning"}) as opened:
        await drain(opened)
        for low in (1, 7, 13):
            log.remove("a", low, low + 5, "deleted")
        last = log.remove("a", 19, 19, "deleted")
        (gap,) = await drain(opened)
    assert gaps([gap]) == [(1, 19, "deleted")]
    assert gap["cursor"] == log.cursor(last.offset)
    found = await read_all(delivery, stream="a")
    assert gaps(found) == [(1, 19, "deleted")]


async def test_equal_readers_share_the_work() -> None:
    """Many readers of one selection at one place read a page once and encode a frame once."""
    log = FakeLog()
    for number in range(10):
        log.add("a", number)
    delivery = make_delivery(log)
    log.pages_read = 0
    for _ in range(20):
        with await open_reader(delivery, stream="a", **{"from": "beginning"}) as opened:
            batch = await opened.reader.read()
            for message in batch.messages:
                delivery.frames.text(message, "packet")
    assert log.pages_read == 1
    encoded = delivery.metrics.registry.get_sample_value("overlayd_frames_encoded_total", {"format": "packet"})
    assert encoded == 10
    for _ in range(3):
        with await open_reader(delivery, stream=["a", "b"], **{"from": "beginning"}) as opened:
            for message in (await opened.reader.read()).messages:
                delivery.frames.text(message, "packet")
    encoded = delivery.metrics.registry.get_sample_value("overlayd_frames_encoded_total", {"format": "packet"})
    assert encoded == 10, "another selection gets the same frames"


async def test_shared_scan_ends_with_the_head() -> None:
    """What was shared at one head isn't given out after an erasure moved it."""
    log = FakeLog()
    log.add("a", "secret")
    delivery = make_delivery(log)
    assert len(sequences(await read_all(delivery, stream="a"))) == 1
    log.remove("a", 1, 1, "erased")
    found = await read_all(delivery, stream="a")
    assert [m["type"] for m in found] == ["gap"]


async def test_seen_is_answered() -> None:
    """What a resuming client saw is proven, or called a fork when root or size contradict the log."""
    log = FakeLog()
    for number in range(7):
        log.add("a", number)
    delivery = make_delivery(log)
    root = (await log.root_at(5)).hex()
    with await open_reader(delivery, seen=f"5:{root}") as opened:
        assert opened.proof is not None
        assert (opened.proof.from_, opened.proof.to) == (5, 7)
    with pytest.raises(ForkDetected):
        await open_reader(delivery, seen=f"6:{root}")
    with pytest.raises(ForkDetected):
        await open_reader(delivery, seen=f"8:{root}")


async def test_confirmed_is_refused_by_name() -> None:
    """deliver=confirmed of a stream that commits nothing is refused by name, and listed as never under a pattern."""
    log = FakeLog()
    log.define("plain")
    log.define("deep", commit="packet", depths=(3, 6))
    log.define("shallow", commit="batch")
    delivery = make_delivery(log)
    with pytest.raises(BadParameter, match="plain commits nothing"):
        await open_reader(delivery, stream="plain", deliver="confirmed")
    with pytest.raises(BadParameter, match="at 3, 6 only"):
        await open_reader(delivery, stream="deep", deliver="confirmed", min_confirmations="1")
    with await open_reader(delivery, stream=">", deliver="confirmed") as opened:
        assert opened.never == ["plain"]
    with await open_reader(delivery, stream="*", deliver="both", min_confirmations="3") as opened:
        assert opened.never == ["plain", "shallow"]
