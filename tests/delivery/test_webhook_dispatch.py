"""From the log to the receiver and back: the dispatcher and the webhooks together, over real sockets."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chaos_sink as chaos
import msgspec
import pytest
import trio
from standardwebhooks.webhooks import Webhook
from trio.testing import MockClock
from webhook_node import open_node
from webhook_rig import StillClock

from overlayd.model.errors import StorageFull


async def until(condition: Callable[[], bool], *, step_s: float = 0.25, tries: int = 400) -> None:
    """Waits, in virtual time, until something holds."""
    for _ in range(tries):
        if condition():
            return
        await trio.sleep(step_s)
    raise AssertionError("it never came about")


async def values_of(sink: chaos.ChaosSink) -> list[Any]:
    """What arrived, in order."""
    return [json.loads(await turn.body())["packet"]["data_payload"] for turn in sink.turns]


async def test_packets_arrive_in_order_signed_and_once(tmp_path: Path, patient_clock: MockClock) -> None:
    """Ordered by stream: every packet, in the order of the log, verified with its subscription's secret."""
    async with open_node(tmp_path) as node, chaos.open_sink() as sink:
        subscription, secret = await node.subscribe(sink.url, ordering="stream")
        await node.publish(*range(20))
        await until(lambda: len(sink.turns) == 20)
        assert await values_of(sink) == list(range(20))
        for turn in sink.turns:
            Webhook(secret).verify(await turn.body(), turn.headers)
            assert turn.headers["webhook-id"].startswith(f"msg_{subscription.id}_")
        assert len({turn.headers["webhook-id"] for turn in sink.turns}) == 20
        assert sink.connections == 1


async def test_a_failing_receiver_gets_each_packet_again_under_its_id(tmp_path: Path, patient_clock: MockClock) -> None:
    """Reset, silence, rubbish, then well: nothing is lost, and the id stays while time and signature change."""
    async with open_node(tmp_path) as node, chaos.open_sink() as sink:
        _, secret = await node.subscribe(
            sink.url, ordering="stream", timeout="2s", retry={"schedule": ["1s", "1s", "1s", "1s"]}
        )
        sink.play(chaos.reset, chaos.hang, chaos.raw(b"rubbish"), chaos.answer(500), chaos.answer(204))
        await node.publish("first", "second")
        await until(lambda: len(sink.turns) == 6)
        assert await values_of(sink) == ["first"] * 5 + ["second"]
        assert len({turn.headers["webhook-id"] for turn in sink.turns}) == 2
        for turn in sink.turns:
            Webhook(secret).verify(await turn.body(), turn.headers)


async def test_retry_after_holds_the_subscription_back(tmp_path: Path, patient_clock: MockClock) -> None:
    """Nothing is sent before the receiver's time is over."""
    async with open_node(tmp_path) as node, chaos.open_sink() as sink:
        await node.subscribe(sink.url, retry={"schedule": ["1s", "1s"]})
        sink.play(chaos.answer(429, retry_after="10"), chaos.answer(200))
        await node.publish("only")
        await until(lambda: len(sink.turns) == 2, step_s=2)
        assert sink.turns[1].at_s - sink.turns[0].at_s >= 9.9


async def test_410_disables_the_subscription(tmp_path: Path, patient_clock: MockClock) -> None:
    """With its reason, and told to the node's own events; nothing more is sent."""
    async with open_node(tmp_path) as node, chaos.open_sink() as sink:
        subscription, _ = await node.subscribe(sink.url)
        sink.play(chaos.answer(410))
        await node.publish("first")
        await until(lambda: bool(node.events))
        assert subscription.rest.state == "disabled"
        await node.publish("second")
        await trio.sleep(20)
        assert len(sink.turns) == 1


async def test_batches_and_filters_reach_their_receivers(tmp_path: Path, patient_clock: MockClock) -> None:
    """A batch holds packets of one stream in order; whoever is attached to another stream gets nothing of it."""
    async with open_node(tmp_path) as node, chaos.open_sink() as sink, chaos.open_sink() as other:
        await node.subscribe(sink.url, batch_size=10, batch_wait="1s", ordering="stream")
        await node.subscribe(other.url, name="other", stream="b")
        await node.publish(*range(25))
        await until(lambda: len(sink.turns) == 3)
        bodies = [json.loads(await turn.body()) for turn in sink.turns]
        assert [len(body["packets"]) for body in bodies] == [10, 10, 5]
        assert [packet["data_payload"] for body in bodies for packet in body["packets"]] == list(range(25))
        assert not other.turns


async def test_a_rotation_reaches_the_next_request(tmp_path: Path, patient_clock: MockClock) -> None:
    """Both secrets verify at once; deliveries don't stop."""
    async with open_node(tmp_path) as node, chaos.open_sink() as sink:
        subscription, old = await node.subscribe(sink.url)
        await node.publish(1)
        await until(lambda: len(sink.turns) == 1)
        new = await node.parts.book.rotate_secret(subscription, None)
        await node.publish(2)
        await until(lambda: len(sink.turns) == 2)
        turn, body = sink.turns[1], await sink.turns[1].body()
        for secret in (old, new):
            Webhook(secret).verify(body, turn.headers)


async def test_a_rotation_during_a_retry(tmp_path: Path, patient_clock: MockClock) -> None:
    """The attempt behind it has the same id and is signed with both; one that couldn't be written changes nothing."""
    async with open_node(tmp_path) as node, chaos.open_sink() as sink:
        subscription, old = await node.subscribe(sink.url, retry={"schedule": ["5s"] * 3})
        sink.play(*[chaos.answer(500)] * 2, chaos.answer(200))
        await node.publish(1)
        await until(lambda: len(sink.turns) == 1)
        write = node.log.write

        async def refuse(job: object) -> None:
            await trio.lowlevel.checkpoint()
            raise StorageFull("full")

        node.log.write = refuse  # type: ignore[assignment, method-assign]
        with pytest.raises(StorageFull):
            await node.parts.book.rotate_secret(subscription, None)
        node.log.write = write  # type: ignore[method-assign]
        await until(lambda: len(sink.turns) == 2)
        new = await node.parts.book.rotate_secret(subscription, None)
        await until(lambda: len(sink.turns) == 3)
        signatures = [turn.headers["webhook-signature"].split() for turn in sink.turns]
        assert [len(found) for found in signatures] == [1, 1, 2]
        for turn, secrets in zip(sink.turns, ([old], [old], [old, new]), strict=True):
            for secret in secrets:
                Webhook(secret).verify(await turn.body(), turn.headers)
        assert len({turn.headers["webhook-id"] for turn in sink.turns}) == 1


async def test_a_restart_goes_on_where_it_was(tmp_path: Path, patient_clock: MockClock) -> None:
    """What was delivered isn't delivered again; what wasn't comes, under the secret from before."""
    clock = StillClock()
    clock.us -= 2 * 3_600_000_000
    async with chaos.open_sink() as sink:
        async with open_node(tmp_path, clock=clock) as node:
            _, secret = await node.subscribe(sink.url, ordering="stream", retry={"schedule": ["1h"]})
            sink.play(chaos.answer(200), chaos.answer(503))
            await node.publish("one", "two")
            await until(lambda: len(sink.turns) == 2)
        sink.play(chaos.answer(200))
        clock.us += 2 * 3_600_000_000
        async with open_node(tmp_path, clock=clock):
            await until(lambda: len(sink.turns) == 3)
        assert await values_of(sink) == ["one", "two", "two"]
        assert sink.turns[1].headers["webhook-id"] == sink.turns[2].headers["webhook-id"]
        Webhook(secret).verify(await sink.turns[2].body(), sink.turns[2].headers)


@pytest.mark.parametrize(
    ("url", "step", "reason"),
    [
        ("http://no-such-host.invalid/hook", None, "dns."),
        ("https{}", None, "tls."),
        ("http://127.0.0.1:3/hook", None, "connect.refused"),
        ("http{}", chaos.endless_head, "answer.head_too_large"),
        ("http{}", chaos.reset, "answer.reset"),
        ("http{}", chaos.close_silently, "answer.closed"),
        ("http{}", chaos.early(413, b"too long"), "the receiver answered 413"),
    ],
)
async def test_whatever_breaks_nothing_is_lost_or_renamed(
    url: str, step: "chaos.Step | None", reason: str, tmp_path: Path, patient_clock: MockClock
) -> None:
    """Each attempt has a plain reason, its retry has the same id, and once the receiver is well everything arrives."""
    async with open_node(tmp_path) as node, chaos.open_sink() as sink:
        if step is not None:
            sink.play(step)
        where = url.format(sink.url.removeprefix("http"))
        one, _ = await node.subscribe(where, ordering="stream", timeout="2s", retry={"schedule": ["1s"] * 90})
        await node.publish("first", "second")
        await until(lambda: one.rest.failed >= 2)
        attempts = await node.parts.letters.attempts(one)
        assert all(one.reason.startswith(reason) for one in attempts), attempts[0]
        assert len({one.delivery_id for one in attempts}) == 1
        sink.turns.clear()
        sink.play(chaos.answer(204))
        rule = one.definition.webhook
        assert rule
        definition = msgspec.structs.replace(one.definition, webhook=msgspec.structs.replace(rule, url=sink.url))
        await node.parts.book.patch(one, node.parts.book.judge(definition, one.ledger.floor))
        await until(lambda: len(sink.turns) == 2)
        assert await values_of(sink) == ["first", "second"]
        assert sink.turns[0].headers["webhook-id"] == attempts[0].delivery_id
        assert not one.dead_letters
