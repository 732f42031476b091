"""Live answers over HTTP: server-sent events and lines, pulled piece by piece."""

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from delivery_fakes import FakeLog, FixedClock, make_delivery, query_of
from httpx_sse._decoders import SSEDecoder
from trio.testing import MockClock, wait_all_tasks_blocked

from overlayd.delivery.delivery import Delivery
from overlayd.delivery.event_stream import LiveStream, StreamForm, StreamTransport, encode_line, encode_sse
from overlayd.delivery.session import Ending, Registry
from overlayd.model.clock import Entropy
from overlayd.model.cursor import Cursor
from overlayd.model.errors import CursorExpired
from overlayd.model.limits import Limits


class Rig:
    """A delivery with a registry over a log in memory."""

    def __init__(self, log: FakeLog, **settings: Any) -> None:
        self.log = log
        self.delivery: Delivery = make_delivery(log, **settings)
        self.registry = Registry(limits=Limits(), clock=FixedClock(), entropy=Entropy(), metrics=self.delivery.metrics)

    async def open(self, transport: StreamTransport, **query: Any) -> LiveStream:
        """A stream for URL arguments."""
        opened = await self.delivery.open_reader(query_of(**query), "test")
        session = self.registry.enter(transport, "test", "127.0.0.1")
        self.registry.add_reader(session, "", opened)
        return LiveStream(
            StreamForm(transport), session, opened, delivery=self.delivery, registry=self.registry, node="test-node"
        )


async def events_of(stream: LiveStream) -> AsyncIterator[tuple[str, str, str]]:
    """What an EventSource would make of it: event, data and last event id of each event it dispatches."""
    decoder = SSEDecoder()
    async for piece in stream:
        for line in piece.decode().split("\n")[:-1]:
            event = decoder.decode(line)
            if event is not None and event.data:
                yield event.event, event.data, event.id


async def take(stream: LiveStream, count: int) -> list[tuple[str, dict[str, Any], str]]:
    """So many events."""
    found = []
    async with contextlib.aclosing(events_of(stream)) as events:
        async for event, data, place in events:
            found.append((event, json.loads(data), place))
            if len(found) == count:
                break
    return found


async def test_sse_from_beginning(autojump_clock: MockClock) -> None:
    """Events carry the cursor as their id and the message's type as their name; a reconnecting client begins right."""
    log = FakeLog()
    for number in range(3):
        log.add("s", number)
    stream = await Rig(log).open("sse", **{"from": "beginning"})
    first = await anext(stream)
    assert first.startswith(b"retry: 3000\n\nevent: welcome\ndata: {")
    assert b"id: %s\nevent: subscribed\n" % log.cursor(0).encode() in first
    events = await take(stream, 3)
    assert [(event, place) for event, _, place in events] == [("packet", log.cursor(n)) for n in (1, 2, 3)]
    assert [data["packet"]["data_payload"] for _, data, _ in events] == [0, 1, 2]
    await stream.aclose()


async def test_sse_ticks_move_the_id(autojump_clock: MockClock) -> None:
    """A heartbeat is a comment and an id without data, which no listener hears and a reconnection uses."""
    log = FakeLog()
    stream = await Rig(log).open("sse", stream="s", heartbeat="5s")
    await anext(stream)
    log.add("other", 1)
    assert await anext(stream) == b": heartbeat\nid: %s\n\n" % log.cursor(1).encode()
    assert trio.current_time() == pytest.approx(5.0, abs=0.01)
    decoder = SSEDecoder()
    assert [decoder.decode(line) for line in (": heartbeat", f"id: {log.cursor(1)}")] == [None, None]


async def test_sse_payload_with_line_ends(autojump_clock: MockClock) -> None:
    """A payload over several lines arrives as the same JSON; its line feeds survive."""
    log = FakeLog()
    log.add("s", body=b'{\n "a": [1,\n\n  2]\n}')
    stream = await Rig(log).open("sse", **{"from": "beginning"})
    async with contextlib.aclosing(events_of(stream)) as events:
        found = [(await anext(events))[1] for _ in range(3)]
    assert '{\n "a": [1,\n\n  2]\n}' in found[2]
    await stream.aclose()


async def test_line_ends_never_break_the_frame() -> None:
    """Carriage returns and line feeds in a payload end neither an event nor a line."""
    text = b'{"a":\r\n1,\r"b":\n2}'
    assert encode_line(text) == b'{"a":  1, "b": 2}\n'
    assert encode_sse("packet", text, Cursor(1 << 40, 3)).split(b"\n\n") == [
        b'id: e1aaaaaaaa-3\nevent: packet\ndata: {"a":\ndata: 1,\ndata: "b":\ndata: 2}', b"",
    ]  # fmt: skip


async def test_ndjson(autojump_clock: MockClock) -> None:
    """One message a line, heartbeats included."""
    log = FakeLog()
    log.add("s", 1)
    stream = await Rig(log).open("ndjson", heartbeat="5s", **{"from": "beginning"})
    lines = b"".join([await anext(stream) for _ in range(3)]).splitlines()
    assert [json.loads(line)["type"] for line in lines] == ["welcome", "subscribed", "packet", "heartbeat"]


async def test_cloudevents_over_sse(autojump_clock: MockClock) -> None:
    """With format=cloudevents every event's data is a CloudEvent."""
    log = FakeLog()
    log.add("s", 1)
    stream = await Rig(log).open("sse", format="cloudevents", **{"from": "beginning"})
    events = await take(stream, 3)
    assert [data["type"] for _, data, _ in events] == ["overlayd.welcome", "overlayd.subscribed", "overlayd.packet"]


async def test_bye_at_the_end(autojump_clock: MockClock) -> None:
    """When the node stops, the last event says so and the stream ends; nothing is left in the registry."""
    rig = Rig(FakeLog())
    stream = await rig.open("sse")
    await anext(stream)
    pieces = []
    async with trio.open_nursery() as nursery:

        async def read() -> None:
            async for piece in stream:
                pieces.append(piece)
            await stream.aclose()

        nursery.start_soon(read)
        await wait_all_tasks_blocked()
        await rig.registry.stop(Ending(1001, "shutdown", 2.0))
    assert pieces == [b'event: bye\ndata: {"type":"bye","reason":"shutdown","retry_after":2.0}\n\n']
    assert len(rig.registry) == 0


async def test_gap_as_error(autojump_clock: MockClock) -> None:
    """With on_gap=error a gap at the start is an exception before anything is sent, a later one an error event."""
    log = FakeLog(page_entries=1)
    log.add("s", 1)
    log.add("s", 2)
    log.remove("s", 2, 2, "retention")
    rig = Rig(log)
    stream = await rig.open("sse", on_gap="error", after=log.cursor(1))
    with pytest.raises(CursorExpired):
        await stream.prepare()
    stream = await rig.open("sse", on_gap="error", **{"from": "beginning"})
    await stream.prepare()
    events = [event async for event in events_of(stream)]
    assert [event for event, _, _ in events] == ["welcome", "subscribed", "packet", "error"]
    assert json.loads(events[-1][1])["code"] == "cursor.expired"


async def test_a_dropped_stream_ends_its_session() -> None:
    """A response that is never asked for its body leaves no session behind."""
    rig = Rig(FakeLog())
    stream = await rig.open("sse")
    assert len(rig.registry) == 1
    del stream
    assert len(rig.registry) == 0


async def test_cancelled_stream_ends_its_session(autojump_clock: MockClock) -> None:
    """A client that leaves cancels the waiting iterator; closing it works while cancelled."""
    rig = Rig(FakeLog())
    stream = await rig.open("sse")
    await anext(stream)
    with trio.move_on_after(3):
        try:
            await anext(stream)
        finally:
            await stream.aclose()
    assert len(rig.registry) == 0


async def test_equal_streams_share_pieces(autojump_clock: MockClock) -> None:
    """Streams with equal queries send the very same bytes object, built once."""
    log = FakeLog()
    for number in range(10):
        log.add("s", number)
    rig = Rig(log)
    pieces = []
    for _ in range(5):
        stream = await rig.open("sse", **{"from": "beginning"})
        await anext(stream)
        pieces.append(await anext(stream))
        await stream.aclose()
    assert all(piece is pieces[0] for piece in pieces)
