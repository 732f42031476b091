"""Erasures in a real log: whoever was given a packet gets one notice, over every way."""

import json
from pathlib import Path
from typing import Any

import chaos_sink as chaos
import msgspec
import trio
from socket_harness import Node as Sockets
from trio.testing import MockClock
from webhook_node import WebhookNode, open_node

from overlayd.delivery.frames import Erased
from overlayd.delivery.subscriptions.definition import parse_new
from overlayd.delivery.subscriptions.subscription import Reading, Subscription


async def subscribe(node: WebhookNode, **body: Any) -> Subscription:
    """Any kind of subscription to the stream."""
    text = msgspec.json.encode({"streams": ["a"]} | body)
    asked = parse_new(text, node.parts.book.parse_query, node.webhooks.judge.check)
    return (await node.parts.book.create(asked, Reading("tester"))).subscription


async def erase(node: WebhookNode, low: int, high: int) -> dict[str, list[int]]:
    """As an erasure does it; who had what."""
    stream = node.log.find_stream("a")
    assert stream is not None
    found = await node.parts.before_erasure(stream, low, high)
    await node.log.reduce(stream, low, high, "erased")
    node.parts.engine.delivery.forget()
    node.parts.forget()
    return {one.subscription.name: one.offsets for one in found if one.offsets}


async def bodies(sink: chaos.ChaosSink) -> list[dict[str, Any]]:
    """What arrived, in order."""
    return [json.loads(await turn.body()) for turn in sink.turns]


async def test_everybody_who_had_it_is_told_once(tmp_path: Path, patient_clock: MockClock) -> None:
    """Webhook, agent by webhook, pull and live, each by its own means; who wanted another type hears nothing."""
    async with (
        open_node(tmp_path) as node, chaos.open_sink() as hook, chaos.open_sink() as brain, chaos.open_sink() as other,
    ):  # fmt: skip
        await node.publish(0)
        await node.subscribe(hook.url)
        await subscribe(node, name="typed", kind="webhook", types=["x"], webhook={"url": other.url})
        await subscribe(node, name="brain", kind="agent", agent={}, webhook={"url": brain.url})
        await subscribe(node, name="work", kind="pull")
        await subscribe(node, name="live", kind="live")
        desk = node.parts.engine.desk(node.parts.book.find("work"))
        sockets = Sockets(node.log, attach_named=node.parts.live.attach)  # type: ignore[arg-type] # reads are alike
        async with sockets.connect() as client:
            await client.expect("welcome")
            await client.send(type="subscribe", id="s", name="live")
            await client.expect("subscribed")
            first = node.log.head + 1
            await node.publish(1, 2, 3)
            fetched = await desk.fetch(10, 5)
            assert len(fetched.messages) == 3
            await desk.ack([message.lease for message in fetched.messages])
            assert len(await client.receive_until("packet", 3)) == 3
            await trio.sleep(2)
            had = await erase(node, first + 1, first + 1)
            second = [first + 1]
            assert had == {"hook": second, "brain": second, "work": second, "live": second}
            (notice,) = [one async for one in _fetch_all(desk)]
            assert isinstance(notice, Erased)
            assert (notice.stream, notice.sequence) == ("a", 3)
            told = await client.expect("erased")
            assert (told["stream_id"], told["packet_sequence"], told["sub"]) == ("a", 3, "s")
            await trio.sleep(60)
            for sink in (hook, brain):
                kinds = [(one.get("type", "packet"), one.get("packet_sequence")) for one in await bodies(sink)]
                assert sorted(kinds, key=str) == [("erased", 3), ("packet", None), ("packet", None), ("packet", None)]
            assert not other.turns


async def _fetch_all(desk: Any) -> Any:
    """What a worker gets until there is nothing left."""
    while (fetched := await desk.fetch(10, 5)).messages:
        for message in fetched.messages:
            yield message.message.subject
        await desk.ack([message.lease for message in fetched.messages])


async def test_notices_survive_a_restart_and_a_receiver_that_is_away(tmp_path: Path, patient_clock: MockClock) -> None:
    """The notice is a delivery like others: tried again, over a restart too, under one id."""
    async with open_node(tmp_path) as node, chaos.open_sink() as sink:
        await node.publish(0)
        await node.subscribe(sink.url, retry={"schedule": ["1s"] * 50})
        first = node.log.head + 1
        await node.publish(1)
        await trio.sleep(2)
        sink.play(*[chaos.answer(500)] * 30)
        await erase(node, first, first)
        await trio.sleep(2)
    seen = [turn.headers["webhook-id"] for turn in sink.turns[1:]]
    async with open_node(tmp_path) as node, chaos.open_sink() as sink:
        found = node.parts.book.find("hook")
        assert found.definition.webhook
        webhook = msgspec.structs.replace(found.definition.webhook, url=sink.url)
        definition = msgspec.structs.replace(found.definition, webhook=webhook)
        await node.parts.book.patch(found, node.parts.book.judge(definition, found.ledger.floor))
        await trio.sleep(10)
        (notice,) = await bodies(sink)
        assert notice["type"] == "erased"
        assert {sink.turns[0].headers["webhook-id"], *seen} == {seen[0]}


async def test_what_was_passed_over_and_is_given_later_is_told(tmp_path: Path, patient_clock: MockClock) -> None:
    """Sought forward and back again, a subscription is given what it had passed over, and told when it is erased."""
    async with open_node(tmp_path) as node, chaos.open_sink() as sink:
        await node.publish(0)
        one, _ = await node.subscribe(sink.url)
        start = one.ledger.floor
        await node.parts.book.set_state(one, "paused")
        first = node.log.head + 1
        await node.publish(1, 2)
        await node.parts.book.seek(one, start.__class__(start.epoch, node.log.head))
        assert one.was_told(first)
        await node.parts.book.seek(one, start)
        await node.parts.book.set_state(one, "active")
        await trio.sleep(5)
        assert len(sink.turns) == 2
        assert await erase(node, first, first) == {"hook": [first]}
        await trio.sleep(5)
        assert [one.get("type") for one in await bodies(sink)][2:] == ["erased"]
