"""Both clients against a real node: what the scripted one promised holds."""

import msgspec
import pytest
import trio
from node_process import Node

from overlayd.client import Client, LogView, SyncClient
from overlayd.model.errors import BadParameter, Forbidden, SchemaViolation, UnknownStream
from overlayd.model.wire import GapMessage, PacketMessage


def unix(node: Node) -> str:
    """The address of the node's socket, over which it may be managed."""
    return f"unix:{node.directory}/overlayd.sock"


async def test_a_packets_whole_way(node: Node) -> None:
    """Published over TCP, received live and read back over the Unix socket, its proof verified, repeated."""
    async with Client(node.url, verify=True) as client, Client(unix(node), verify=True) as other:
        async with other.live("whole.*") as live:
            receipt = await client.publish("whole.way", {"t": 21, "é": "ü"}, id="a", type="x", key="k", topics=["t"])
            message = await live.receive()
        assert isinstance(message, PacketMessage)
        packet = message.packet
        assert bytes(packet.data_payload) == '{"t":21,"é":"ü"}'.encode()
        assert (packet.leaf_hash, packet.content_hash) == (receipt.leaf_hash, receipt.content_hash)
        assert (await other.read_last("whole.way", "k")).packet_id == "a"
        assert [found.offset for found in await other.find_packets("a")] == [receipt.offset]
        verdict = await other.verify_proof("whole.way", 1, LogView(), subject=packet)
        assert verdict.offset == receipt.offset
        again = await client.publish("whole.way", {"t": 21, "é": "ü"}, id="a", type="x", key="k", topics=["t"])
        assert again.duplicate
        assert await client.read_data("whole.way", 1) == bytes(packet.data_payload)


async def test_many_packets_with_rejections_and_repeats(node: Node) -> None:
    """Counts, places and duplicates over several requests."""
    packets = [{"id": f"n-{n}", "data": {"n": n}} for n in range(2500)]
    packets[1700] = {"id": "", "data": 1}
    async with Client(node.url) as client:
        outcome = await client.publish_many("many", packets)
        assert (outcome.accepted, outcome.rejected) == (2499, 1)
        assert outcome.errors[0].line == 1701
        outcome = await client.publish_many("many", packets)
        assert (outcome.accepted, outcome.duplicates, outcome.rejected) == (0, 2499, 1)
        page = [item async for item in client.packets("many")]
    assert len(page) == 2499


async def test_all_rejected_is_an_answer(node: Node) -> None:
    """A request of nothing but bad packets lists them."""
    async with Client(node.url) as client:
        outcome = await client.publish_many("bad", ['{"data":', "null"])
    assert (outcome.accepted, outcome.rejected) == (0, 2)
    assert [violation.line for violation in outcome.errors] == [1, 2]


async def test_streams_are_defined_paused_and_deleted(node: Node) -> None:
    """The definition comes back as it was given; a schema refuses; a reader is told of the deletion."""
    async with Client(unix(node)) as client:
        defined = await client.define(
            "managed", {"title": "T", "schema": {"type": "integer"}, "retention": {"max_age": "1h"}}
        )
        assert (defined.title, defined.retention.max_age, defined.definition_version) == ("T", 3600, 1)
        with pytest.raises(SchemaViolation):
            await client.publish("managed", "text")
        await client.publish("managed", 1)
        assert (await client.set_state("managed", "paused")).state == "paused"
        assert (await client.set_state("managed", "active")).state == "active"
        assert [stream.stream for stream in await client.streams(q="managed")] == ["managed"]
        removed = await client.delete("managed")
        assert removed.packets_removed == 1
        with pytest.raises(UnknownStream):
            await client.stream("managed")
        async with client.live("managed", start="beginning") as live:
            message = await live.receive()
        assert isinstance(message, GapMessage)
        assert message.reason == "deleted"


async def test_loopback_may_not_manage(node: Node) -> None:
    """The node's refusal arrives as the error it is."""
    async with Client(node.url) as client:
        with pytest.raises(Forbidden):
            await client.define("mine", {})


async def test_a_bad_live_query_is_told(node: Node) -> None:
    """Over WebSocket and over NDJSON alike."""
    async with Client(node.url) as client:
        with pytest.raises(BadParameter):
            await client.live("not a pattern").receive()

    def over_lines() -> None:
        with SyncClient(node.url) as sync, pytest.raises(BadParameter):
            next(sync.live("not a pattern"))

    await trio.to_thread.run_sync(over_lines)


async def test_a_resumed_reading_skips_and_doubles_nothing(node: Node) -> None:
    """The cursor of one reading is the start of the next."""
    async with Client(node.url) as client:
        for n in range(6):
            await client.publish("resume", n)
        async with client.live("resume", start="beginning") as live:
            first = [await live.receive() for _ in range(3)]
        async with client.live("resume", after=live.cursor) as live:
            second = [await live.receive() for _ in range(3)]
    payloads = [bytes(message.packet.data_payload) for message in first + second if isinstance(message, PacketMessage)]
    assert payloads == [b"0", b"1", b"2", b"3", b"4", b"5"]


async def test_a_view_follows_the_log(node: Node) -> None:
    """The node proves on reconnection that its log extends what was seen."""
    view = LogView()
    async with Client(node.url) as client:
        await client.check_log(view)
        size = view.known.size
        await client.publish("seen", 1)
        async with client.live("seen", start="beginning", view=view) as live:
            await live.receive()
        await client.verify_proof("seen", 1, view)
        await client.check_log(view)
    assert view.known.size > size


async def test_sessions_are_listed_and_ended(node: Node) -> None:
    """Ending one doesn't end its reading: the client comes back, or is told."""
    async with Client(unix(node)) as client, client.live("sessions.x") as live:
        assert live.welcome is not None
        (session,) = [item for item in await client.sessions() if item.id == live.welcome.session]
        assert session.transport == "websocket"
        assert session.subscriptions[0].query.streams == ["sessions.x"]
        await client.end_session(session.id)


def test_the_blocking_client(node: Node) -> None:
    """Publish, read, live over NDJSON with a payload of several lines, and a proof."""
    with SyncClient(node.url, verify=True) as client:
        pretty = msgspec.Raw(b'{\n  "t": 21\n}')
        receipt = client.publish("blocking", pretty, id="a")
        assert client.read_data("blocking", 1) == bytes(pretty)
        with client.live("blocking", start="beginning") as live:
            message = next(live)
        assert isinstance(message, PacketMessage)
        assert bytes(message.packet.data_payload) == bytes(pretty)
        assert client.verify_proof("blocking", 1, LogView(), subject=receipt).offset == receipt.offset
        page = client.read_log("blocking", start="beginning")
        assert len(page.messages) == 1
        outcome = client.publish_many("blocking", [{"data": n} for n in range(3)])
        assert outcome.accepted == 3
        assert len(list(client.packets("blocking"))) == 4
