"""Agents by webhook over a real log: what wakes them, what they are told, and that a reply is there once."""

import json
from functools import partial
from pathlib import Path

import chaos_sink as chaos
import msgspec
import pytest
import trio
from agent_rig import REPLY, open_agents, reply_with
from test_webhook_dispatch import until
from trio.testing import MockClock

from overlayd.delivery.subscriptions.tables import clear_excerpts, read_attempts
from overlayd.model.cursor import Cursor
from overlayd.model.definition import Definition
from overlayd.model.draft import AppendRequest, Draft
from overlayd.model.limits import HOPS_MAX, Limits
from overlayd.model.names import StreamName


async def test_a_reply_is_linked_to_what_it_answers(tmp_path: Path, patient_clock: MockClock) -> None:
    """Ids, correlation, causation, hops and the offset it was made from; and the delivery is settled."""
    async with open_agents(tmp_path) as agents, chaos.open_sink() as sink:
        subscription = await agents.agent(sink.url)
        sink.play(reply_with(REPLY))
        await agents.node.publish("hello")
        asked = agents.node.log.head
        await agents.settled(subscription)
        (first, mood), (second, two) = await agents.packets()
        epoch = str(subscription.ledger.floor).split("-")[0].removeprefix("e")
        cause = f"{epoch}-{asked}"
        assert (mood, two) == ({"mood": "fine"}, 2)
        assert [first.id, second.id] == [f"reply:{subscription.id}:e{epoch}-{asked}:{n}" for n in (1, 2)]
        assert first.hops == second.hops == 1
        assert first.derived_from == second.derived_from == (asked,)
        assert (first.type, first.principal) == ("mood", "tester")
        assert json.loads(first.metadata) == {"correlation_id": cause, "causation_id": cause}
        assert json.loads(second.metadata) == {"own": 1, "correlation_id": cause, "causation_id": cause}
        assert subscription.rest.delivered == 1
        assert subscription.rest.runs.replies == 1


async def test_an_agent_is_told_who_a_packet_is_from(tmp_path: Path, patient_clock: MockClock) -> None:
    """In the packet format and in the agents' own, with the state of the producer's signature."""
    async with open_agents(tmp_path) as agents, chaos.open_sink() as sink:
        plain = await agents.agent(sink.url)
        await agents.intake.publish("a", [b'{"data": 7}'], principal="key:k1", may_create=True, atomic=True)
        await agents.settled(plain)
        packet = json.loads(await sink.turns[0].body())["packet"]
        assert packet["producer"] == {"principal": "key:k1", "signature": "none"}
        own = await agents.agent(sink.url, "own", mode="batch", webhook={"format": "agent", "batch_wait": "1s"})
        for value in (b"1", b"2"):
            await agents.intake.publish("a", [b'{"data": %s}' % value], principal="me", may_create=True, atomic=True)
        await until(lambda: len(sink.turns) == 4)
        told = [json.loads(await turn.body()) for turn in sink.turns]
        body = next(one for one in told if one.get("type") == "realtime_packet_notification")
        assert (body["agent_id"], body["stream_id"], body["processing_mode"]) == (own.id, "a", "batch")
        assert [one["data"] for one in body["packets"]] == [1, 2]
        assert body["packets"][0]["producer"] == {"principal": "me", "signature": "none"}
        assert body["packets"][0]["size_bytes"] == 1
        assert body["packets"][0]["version_id"] == "1"


async def test_a_trigger_wakes_for_what_it_names(tmp_path: Path, patient_clock: MockClock) -> None:
    """A predicate and the filter hold together."""
    async with open_agents(tmp_path) as agents, chaos.open_sink() as sink:
        subscription = await agents.agent(
            sink.url, trigger={"and": [{"gt": ["n", 1]}, {"not": {"includes": ["tags", "SKIP"]}}]}
        )
        await agents.node.publish({"n": 1}, {"n": 2}, {"n": 3, "tags": ["skip"]}, {"n": 4, "tags": ["x"]}, "text")
        await agents.settled(subscription)
        values = [json.loads(await turn.body())["packet"]["data_payload"]["n"] for turn in sink.turns]
        assert values == [2, 4]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{", "json.malformed"),
        (b"[]", "reply.invalid"),
        (b'{"packets": 5}', "reply.invalid"),
        (b'{"packets": [{"data": 1, "id": "mine"}]}', "reply.invalid"),
        (b'{"packets": [{"data": 1, "metadata": 5}]}', "reply.invalid"),
        (b'{"packets": [{"type": "nothing"}]}', "packet.invalid"),
        (msgspec.json.encode({"packets": [{"data": 1}] * 3}), "reply.invalid"),
        (b'{"packets": [{"data": "' + b"x" * 600 + b'"}]}', "body.too_large"),
    ],
)
async def test_a_reply_that_cant_be_taken_fails_the_attempt(
    tmp_path: Path, patient_clock: MockClock, body: bytes, reason: str
) -> None:
    """With a plain reason, and nothing is appended; the next try may do better."""
    limits = Limits(agent_reply_packets=2)
    async with open_agents(tmp_path, limits) as agents, chaos.open_sink() as sink:
        agents.node.webhooks.outlet._limits = Limits(agent_reply_bytes=type(limits.agent_reply_bytes)(500))
        subscription = await agents.agent(sink.url)
        sink.play(chaos.answer(200, body, **{"content-type": "application/json"}), reply_with({"ok": True}))
        await agents.node.publish("x")
        await agents.settled(subscription)
        assert reason in subscription.rest.last_error, subscription.rest.last_error
        assert subscription.rest.failed == 1
        assert await agents.packets() == []
        hit = {"body.too_large": "agent_reply_bytes", "reply.invalid": "agent_reply_packets"}.get(reason)
        if hit == "agent_reply_bytes" or body.count(b'"data"') == 3:
            assert agents.count("overlayd_limit_hits_total", limit=hit or "") == 1


async def test_what_was_wrong_with_a_reply_goes_with_the_packet(tmp_path: Path, patient_clock: MockClock) -> None:
    """A refusal quotes the reply, which repeats the packet: only where an erasure takes it away, not in the reason."""
    async with open_agents(tmp_path) as agents, chaos.open_sink() as sink:
        subscription = await agents.agent(sink.url)
        await agents.node.log.define_stream("out", Definition(schema={"type": "number"}))
        sink.play(reply_with({"packets": [{"data": "planted"}]}), reply_with({"ok": True}))
        await agents.node.publish("planted")
        await agents.settled(subscription)
        assert subscription.rest.last_error == "the reply wasn't taken: packet.schema"
        box = agents.node.parts.letters
        said = [one for one in await box.attempts(subscription) if one.excerpt]
        assert "planted" in said[-1].excerpt
        assert said[-1].first_offset == said[-1].last_offset == agents.node.log.head
        for offsets, count in (([1], 1), ([agents.node.log.head], 0)):
            await agents.node.log.write(partial(clear_excerpts, offsets=offsets))
            stored = await agents.node.log.read(partial(read_attempts, number=subscription.number))
            assert sum("planted" in one.excerpt for one in stored) == count


async def test_a_reply_needs_the_grant_and_the_stream_at_that_time(tmp_path: Path, patient_clock: MockClock) -> None:
    """Revoked meanwhile: refused until it is given again. A paused stream: the same."""
    async with open_agents(tmp_path) as agents, chaos.open_sink() as sink:
        subscription = await agents.agent(sink.url)
        agents.allowed = False
        sink.play(*[reply_with(REPLY)] * 3)
        await agents.node.publish("x")
        await until(lambda: subscription.rest.failed == 1)
        assert "forbidden" in subscription.rest.last_error
        agents.allowed = True
        await agents.node.log.set_stream_state("out", "paused")
        await until(lambda: subscription.rest.failed == 2)
        assert "paused" in subscription.rest.last_error
        await agents.node.log.set_stream_state("out", "active")
        await agents.settled(subscription)
        assert len(await agents.packets()) == 2


async def test_a_repeated_delivery_replies_once(tmp_path: Path, patient_clock: MockClock) -> None:
    """After a seek back the agent is run again, and says something else: the first reply stands."""
    async with open_agents(tmp_path) as agents, chaos.open_sink() as sink:
        subscription = await agents.agent(sink.url)
        sink.play(reply_with(REPLY), reply_with({"packets": [{"data": n} for n in range(9)]}))
        start = subscription.ledger.floor
        await agents.node.publish("x")
        await agents.settled(subscription)
        await agents.node.parts.book.seek(subscription, start)
        await until(lambda: len(sink.turns) == 2)
        await agents.settled(subscription)
        assert [value for _, value in await agents.packets()] == [{"mood": "fine"}, 2]
        assert agents.count("overlayd_agent_replies_repeated_total") == 1


@pytest.mark.parametrize("number", [1, 2])
async def test_nobody_takes_a_replys_place(number: int, tmp_path: Path, patient_clock: MockClock) -> None:
    """Ids of replies can be guessed. What a publisher puts there in advance isn't taken for the reply: the attempt fails
    with the reason, is tried again, and becomes a dead letter that says why."""
    async with open_agents(tmp_path) as agents, chaos.open_sink() as sink:
        subscription = await agents.agent(sink.url)
        sink.play(*[reply_with(REPLY)] * 3)
        await agents.node.log.define_stream("a", Definition())
        cursor = Cursor(agents.node.log.epoch, agents.node.log.head + 2)
        squat = Draft(0, b'"squat"', b'"squat"', id=f"reply:{subscription.id}:{cursor}:{number}")
        version = agents.node.log.find_stream("out").definition_version  # type: ignore[union-attr]
        await agents.node.log.append(AppendRequest(StreamName("out"), [squat], definition_version=version))
        await agents.node.publish("x")
        assert agents.node.log.head == cursor.offset
        await agents.settled(subscription)
        assert [value for _, value in await agents.packets()] == ["squat"]
        assert "id" in subscription.rest.last_error
        assert (subscription.rest.failed, subscription.rest.delivered) == (3, 0)
        assert subscription.dead_letters == 1


async def test_a_crash_behind_the_reply_finds_the_delivery_settled(tmp_path: Path, patient_clock: MockClock) -> None:
    """The row that settles is as durable as the reply, though nothing else was written: no second run."""
    async with open_agents(tmp_path) as agents, chaos.open_sink() as sink:
        subscription = await agents.agent(sink.url)
        sink.play(reply_with(REPLY))
        rounds = agents.node.parts.engine.rounds
        await agents.settled(subscription)
        drained = subscription.drain
        subscription.drain = lambda *args: None  # type: ignore[method-assign] # nothing more is written down
        await agents.node.publish("x")
        await until(lambda: len(subscription.attempts_new) == 1)
        await rounds.mark(subscription).wait()
        rows = await agents.node.log.read(
            lambda c: c.execute("SELECT state FROM subscription_unit WHERE number = 1").fetchall()
        )
        assert rows == [("done",)]
        subscription.drain = drained  # type: ignore[method-assign]
    async with open_agents(tmp_path) as again:
        assert len(await again.packets()) == 2


async def test_two_agents_that_answer_each_other_stop(tmp_path: Path, patient_clock: MockClock) -> None:
    """At the eighth hop nothing more is made, and the attempts say why in plain words."""
    async with open_agents(tmp_path) as agents, chaos.open_sink() as sink:
        await agents.node.publish("x", stream="ping")
        ping = await agents.agent(sink.url, "ping", stream="ping", output="pong")
        pong = await agents.agent(sink.url, "pong", stream="pong", output="ping")
        sink.play(*[reply_with({"packets": [{"data": n}]}) for n in range(20)])
        await agents.node.publish("go", stream="ping")
        await trio.sleep(30)
        hops = [meta.hops for name in ("ping", "pong") for meta, _ in await agents.packets(name)]
        assert sorted(hops) == [0, *range(HOPS_MAX + 1)]
        await agents.settled(ping)
        await agents.settled(pong)
        attempts = await agents.node.log.read(
            lambda c: [*read_attempts(c, ping.number), *read_attempts(c, pong.number)]
        )
        (stopped,) = [one for one in attempts if one.outcome == "hops"]
        assert "made from another packet 8 times in a row" in stopped.reason
        assert agents.count("overlayd_agent_hops_exceeded_total") == 1
