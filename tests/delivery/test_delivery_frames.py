"""Frames: both formats, the payload verbatim, status messages and ranges out of status entries."""

from typing import Any

import msgspec
import pytest
from delivery_fakes import FakeLog, make_delivery, octets
from test_delivery_reader import open_reader, read_all, read_all_after

from overlayd.delivery.delivery import Delivery
from overlayd.delivery.frames import encode_message, tag_frame
from overlayd.model.confirmation import AGAIN


async def events(delivery: Delivery, **query: Any) -> list[dict[str, Any]]:
    """Everything from the beginning as CloudEvents."""
    found = []
    with await open_reader(delivery, **{"from": "beginning"} | query) as opened:
        while True:
            batch = await opened.reader.read()
            found += [msgspec.json.decode(encode_message(message, "cloudevents")) for message in batch.messages]
            if batch.is_at_head:
                return found


async def test_all_members() -> None:
    """A packet shows all that its producer gave, and leaves out what wasn't given."""
    log = FakeLog()
    log.add("s", {"t": 1})
    log.add(
        "s", {"t": 2}, id="p", type="t", time="2024-01-15T10:30:00+01:00", source="/x", key="k", metadata=b'{"m":1}',
        topics=b'["b","a"]', definition_topics=b'["a","c"]', hops=2, traceparent="00-x", txid=bytes(range(32)),
    )  # fmt: skip
    bare, full = [m["packet"] for m in await read_all(make_delivery(log))]
    assert set(bare) == {
        "stream_id", "packet_sequence", "packet_id", "offset", "appended_at", "topics", "data_payload", "content_hash",
        "leaf_hash", "confirmation_status",
    }  # fmt: skip
    assert bare["packet_id"] == "1aebagbaf-1"
    assert full | {"content_hash": "", "leaf_hash": ""} == {
        "stream_id": "s", "packet_sequence": 2, "packet_id": "p", "offset": 2, "type": "t", "key": "k",
        "timestamp": "2024-01-15T10:30:00+01:00", "appended_at": "2023-11-14T22:13:20.002000Z", "source": "/x",
        "topics": ["a", "c", "b"], "metadata": {"m": 1}, "data_payload": {"t": 2}, "content_hash": "", "leaf_hash": "",
        "hops": 2, "traceparent": "00-x", "txid": bytes(range(32)).hex(), "confirmation_status": "none",
    }  # fmt: skip


async def test_octets() -> None:
    """Octets come as base64 that says so, in the data_base64 of a CloudEvent."""
    log = FakeLog()
    log.add("s", body=octets(b"\x00\xff"), is_octets=True)
    delivery = make_delivery(log)
    (message,) = await read_all(delivery)
    assert (message["packet"]["data_payload"], message["packet"]["data_encoding"]) == ("AP8=", "base64")
    (event,) = await events(delivery)
    assert (event["data_base64"], event["datacontenttype"]) == ("AP8=", "application/octet-stream")
    assert "data" not in event


async def test_frames_are_pure() -> None:
    """The same trigger gives the same bytes, live, replayed and to a reader of another selection."""
    log = FakeLog()
    log.define("s", commit="packet")
    log.add("s", 1)
    first, again = [await read_all(make_delivery(log), stream=stream) for stream in ("s", "*")]
    assert first == again
    assert first[0]["packet"]["confirmation_status"] == "pending"


async def test_sub_is_added_to_the_shared_text() -> None:
    """The frame of a named subscription is the shared one with its name in front."""
    assert msgspec.json.decode(tag_frame(b'{"type":"packet","n":1}', 'a"b')) == {"sub": 'a"b', "type": "packet", "n": 1}


async def test_single_status_entries() -> None:
    """status=true brings every change of a packet; its fields are those of the entry, not of today."""
    log = FakeLog()
    log.define("s", commit="packet")
    log.add("s", 1)
    log.add("other", 1)
    log.add_status(1, 1, "mined", stream="s", depth=1, txid="aa" * 32, height=850_000, block="bb" * 32)
    log.add_status(1, 1, "pending", stream="s", reason="reorg")
    found = await read_all(make_delivery(log), stream="s", status="true")
    assert found[1:] == [
        {
            "type": "status", "stream_id": "s", "cursor": log.cursor(3), "packet_sequence": 1,
            "confirmation_status": "mined", "confirmations": 1, "block_height": 850_000, "block_hash": "bb" * 32,
            "txid": "aa" * 32,
        },
        {
            "type": "status", "stream_id": "s", "cursor": log.cursor(4), "packet_sequence": 1,
            "confirmation_status": "pending", "reason": "reorg",
        },
    ]  # fmt: skip
    assert len(await read_all(make_delivery(log), stream="s")) == 1


async def test_confirmed_delivery_by_ranges() -> None:
    """deliver=confirmed gives a range entry's packets one by one, each at its own place to resume from."""
    for size in (1, 2, 200):
        log = FakeLog(page_entries=size)
        log.define("a", commit="batch")
        log.define("b", commit="batch")
        for number in range(3):
            log.add("a", number)
            log.add("b", number)
            log.add("plain", number)
        trigger = log.add_status(1, 9, "confirmed", depth=1, txid="aa" * 32, height=7, block="bb" * 32)
        delivery = make_delivery(log)
        found = await read_all(delivery, stream=["a", "b"], deliver="confirmed")
        assert [(m["stream_id"], m["packet"]["packet_sequence"]) for m in found] == [
            (name, number) for number in (1, 2, 3) for name in ("a", "b")
        ]
        assert {m["packet"]["confirmation_status"] for m in found} == {"confirmed"}
        assert found[0]["packet"]["block_height"] == 7
        assert found[0]["cursor"] == log.cursor(trigger.offset, 1)
        for place, message in enumerate(found):
            rest = await read_all_after(delivery, message["cursor"], stream=["a", "b"], deliver="confirmed")
            assert rest == found[place + 1 :]
        assert {e["id"] for e in await events(delivery, stream="a", deliver="confirmed")} == {
            f"1aebagbaf-{offset}/confirmed-1" for offset in (1, 4, 7)
        }


async def test_both_and_depths() -> None:
    """deliver=both gives two frames, told apart by their status; the depth that was asked for decides."""
    log = FakeLog()
    log.define("s", commit="packet", depths=(1, 6))
    log.add("s", 1)
    log.add_status(1, 1, "confirmed", stream="s", depth=1)
    log.add_status(1, 1, "confirmed", stream="s", depth=6)
    delivery = make_delivery(log)

    async def found(**query: str) -> list[tuple[str, int]]:
        messages = await read_all(delivery, stream="s", **query)
        return [(m["packet"]["confirmation_status"], offset_in(m["cursor"])) for m in messages]

    assert await found(deliver="both") == [("pending", 1), ("confirmed", 2)]
    assert await found(deliver="confirmed", min_confirmations="6") == [("confirmed", 3)]
    assert await found(deliver="both", min_confirmations="6") == [("pending", 1), ("confirmed", 3)]


def offset_in(text: str) -> int:
    """The offset in a cursor."""
    return int(text.rsplit("-", 1)[1].split(".")[0])


async def test_runs_of_status() -> None:
    """A range entry gives one status message per stream and run of its packets."""
    log = FakeLog()
    log.define("a", commit="batch")
    log.define("b", commit="batch")
    for name in ("a", "a", "b", "a", "b"):
        log.add(name, 1)
    log.add("a", 1, type="other")
    log.add("a", 1)
    log.add_status(1, 7, "mined", height=5)
    found = await read_all_after(make_delivery(log), log.cursor(7), status="true", stream=["a", "b"])
    assert [(m["stream_id"], m["from"], m["to"]) for m in found] == [("a", 1, 5), ("b", 1, 2)]
    typed = await read_all_after(make_delivery(log), log.cursor(7), status="true", type="other")
    assert [(m["stream_id"], m["packet_sequence"]) for m in typed] == [("a", 4)]


async def test_taken_back_is_told_unasked() -> None:
    """Readers of confirmed packets hear of what a reorg took back and of what failed, without asking for status."""
    log = FakeLog()
    log.define("s", commit="packet")
    log.add("s", 1)
    log.add_status(1, 1, "mined", stream="s", depth=1)
    log.add_status(1, 1, "confirmed", stream="s", depth=1)
    log.add_status(1, 1, "pending", stream="s", reason="reorg", depth=1)
    log.add_status(1, 1, "failed", stream="s")
    found = await read_all(make_delivery(log), stream="s", deliver="confirmed")
    assert [m.get("confirmation_status") or m["type"] for m in found] == ["packet", "pending", "failed"]
    assert "confirmations" not in found[1]


@pytest.mark.parametrize("deliver", ["confirmed", "both"])
@pytest.mark.parametrize(("depth", "heard"), [(1, "packet pending confirmed pending"), (6, "packet pending confirmed")])
async def test_confirmed_again_is_no_second_packet(deliver: str, depth: int, heard: str) -> None:
    """A reader gets a packet once at its depth; what happens later it hears as status, and nothing of what happened to
    a packet that it hadn't got yet."""
    log = FakeLog()
    log.define("s", commit="packet", depths=(1, 6))
    log.add("s", 1)
    log.add_status(1, 1, "pending", stream="s")  # the first one of a verbose stream
    for told, again in ((1, False), (6, False), (None, True), (1, True), (None, False), (1, True), (6, True)):
        if told is None:
            deepest = 6 if again else 1
            log.add_status(1, 1, "pending", stream="s", reason="reorg", depth=deepest)
        else:
            log.add_status(1, 1, "confirmed", stream="s", depth=told, reason=AGAIN if again else "")
    found = await read_all(make_delivery(log), stream="s", deliver=deliver, min_confirmations=str(depth))
    if deliver == "both":
        assert found.pop(0)["packet"]["confirmation_status"] == "pending"
    words = heard if depth == 6 else f"{heard} confirmed"
    assert [m.get("confirmation_status") or m["type"] for m in found] == words.split()


async def test_an_anchor_delivers_nothing_that_is_confirmed_by_itself() -> None:
    """A range covers every packet between two anchors; only those of streams that commit in batches are told by it."""
    log = FakeLog()
    for name, commit in (("batch", "batch"), ("packet", "packet"), ("none", "none")):
        log.define(name, commit=commit)
    log.add("packet", 1, commitment=b"\1" * 32)
    log.add("none", 1)
    log.add("batch", 1)
    log.add_status(1, 3, "confirmed", depth=1)
    log.add_status(1, 1, "confirmed", stream="packet", depth=1)
    found = await read_all(make_delivery(log), deliver="confirmed")
    assert [m["stream_id"] for m in found] == ["batch", "packet"]


async def test_gap_for_what_would_have_been_confirmed() -> None:
    """A confirmed packet whose body was taken away is a gap to those who waited for its confirmation."""
    log = FakeLog()
    log.define("s", commit="batch")
    for number in range(4):
        log.add("s", number)
    log.remove("s", 2, 3, "erased")
    log.add_status(1, 4, "confirmed", depth=1)
    found = await read_all_after(make_delivery(log), log.cursor(5), stream="s", deliver="confirmed")
    assert [m["type"] for m in found] == ["packet", "gap", "packet"]
    assert (found[1]["from"], found[1]["to"], found[1]["reason"]) == (log.cursor(2), log.cursor(3), "erased")


async def test_a_page_of_confirmations_is_one_read() -> None:
    """Statuses of single packets are told page by page, not one by one; each frame has its own place to resume from."""
    log = FakeLog(page_entries=100)
    log.define("s", commit="packet")
    for number in range(150):
        log.add("s", number)
    for offset in range(1, 151):
        log.add_status(offset, offset, "confirmed", stream="s", depth=1)
    delivery = make_delivery(log)
    with await open_reader(delivery, stream="s", deliver="confirmed", after=log.cursor(150)) as opened:
        batches = [await opened.reader.read() for _ in range(2)]
        assert opened.reader.is_at_head
    assert [len(batch.messages) for batch in batches] == [100, 50]
    assert [message.cursor.offset for batch in batches for message in batch.messages] == list(range(151, 301))
    again = await read_all_after(delivery, log.cursor(250), stream="s", deliver="confirmed")
    assert [m["packet"]["data_payload"] for m in again] == list(range(100, 150))


async def test_large_confirmed_packets_are_told_in_parts() -> None:
    """A page of statuses may stand for much more than a page: a batch ends once it holds a megabyte."""
    log = FakeLog()
    log.define("s", commit="packet")
    for _ in range(5):
        log.add("s", "x" * 400_000)
    for offset in range(1, 6):
        log.add_status(offset, offset, "confirmed", stream="s", depth=1)
    with await open_reader(make_delivery(log), stream="s", deliver="confirmed", after=log.cursor(5)) as opened:
        assert [len((await opened.reader.read()).messages) for _ in range(2)] == [3, 2]
