"""What holds agents back: runs, bytes, coalescing, the switch; and replying to what was fetched."""

from pathlib import Path
from typing import Any

import chaos_sink as chaos
import msgspec
import pytest
import trio
from agent_rig import REPLY, AgentNode, open_agents, reply_with
from test_webhook_dispatch import until
from trio.testing import MockClock

from overlayd.delivery.agents.brakes import DAY_US, HOUR_US, Brakes, RunCount
from overlayd.delivery.agents.switch import FEATURE, AgentSwitch
from overlayd.delivery.subscriptions.definition import parse_new
from overlayd.delivery.subscriptions.pull import Desk
from overlayd.delivery.subscriptions.subscription import Reading, Subscription
from overlayd.model.definition import Definition
from overlayd.model.errors import InvalidReply, InvalidSubscription, SubscriptionConflict
from overlayd.model.limits import Limits
from overlayd.model.subscription import AgentRule
from overlayd.model.units import Size


def hits(agents: AgentNode, limit: str) -> float:
    """How often it was hit."""
    registry = agents.node.parts.engine.delivery.metrics.registry
    return registry.get_sample_value("overlayd_limit_hits_total", {"limit": limit}) or 0.0


def test_the_smaller_bound_counts_and_windows_end() -> None:
    """Hours and days of the calendar, each for itself, within the node's limits."""
    brakes = Brakes(AgentRule(runs_per_hour=2, bytes_per_day=Size(100)), Limits(agent_runs_per_day=3))
    start = 1000 * DAY_US + 23 * HOUR_US
    runs = RunCount().with_run(start).with_run(start)
    hold = brakes.hold(runs, start + HOUR_US // 2)
    assert hold is not None
    assert (hold.brake, hold.wait_s) == ("runs_per_hour", 1800.0)
    runs = RunCount(day=1000).with_run(start - HOUR_US).with_run(start - HOUR_US).with_run(start)
    hold = brakes.hold(runs, start)
    assert hold is not None
    assert (hold.brake, hold.wait_s) == ("runs_per_day", 3600.0)
    assert brakes.hold(runs, start + HOUR_US) is None
    fed = RunCount().with_bytes(start, 99)
    assert brakes.hold(fed, start) is None
    hold = brakes.hold(fed.with_bytes(start, 1), start)
    assert hold is not None
    assert hold.brake == "bytes_per_day"


async def test_runs_per_hour_hold_the_rest_until_the_next_hour(tmp_path: Path, patient_clock: MockClock) -> None:
    """What is over the brake waits in the log; the hit is counted and shown."""
    async with open_agents(tmp_path) as agents, chaos.open_sink() as sink:
        clock = agents.node.clock
        clock.us += HOUR_US - clock.us % HOUR_US - 20_000_000  # 20 s before the hour ends
        subscription = await agents.agent(sink.url, runs_per_hour=2)
        await agents.node.publish(*range(5))
        await until(lambda: len(sink.turns) == 2)
        await trio.sleep(5)
        assert len(sink.turns) == 2
        assert subscription.ledger.unsettled == 3
        assert hits(agents, "agent_runs_per_hour") >= 1
        hold = subscription.hold(clock.now_us())
        assert hold is not None
        assert hold.wait_s == 20.0
        clock.us += 20_000_000
        await trio.sleep(15)
        await until(lambda: len(sink.turns) == 4)


async def test_bytes_per_day_count_what_is_given_and_replied(tmp_path: Path, patient_clock: MockClock) -> None:
    """Both together are the budget."""
    async with open_agents(tmp_path) as agents, chaos.open_sink() as sink:
        subscription = await agents.agent(sink.url, bytes_per_day="1KiB")
        sink.play(*[reply_with({"packets": [{"data": "x" * 1000}]})] * 3)
        await agents.node.publish("one", "two")
        await until(lambda: subscription.rest.delivered == 1)
        await trio.sleep(5)
        assert len(sink.turns) == 1
        assert subscription.rest.runs.day_bytes > 1024
        assert hits(agents, "agent_bytes_per_day") >= 1


async def test_the_newest_of_a_key_counts_while_they_wait(tmp_path: Path, patient_clock: MockClock) -> None:
    """Older ones are settled as coalesced and counted; packets without a key aren't."""
    async with open_agents(tmp_path) as agents, chaos.open_sink() as sink:
        subscription = await agents.agent(sink.url, coalesce="key")
        gate = trio.Event()

        async def wait(turn: chaos.Turn) -> None:
            await gate.wait()
            await chaos.answer(204)(turn)

        sink.play(wait)
        objects = [b'{"data": %d, "key": "%s"}' % (n, b"ab"[n % 2 : n % 2 + 1]) for n in range(8)] + [
            b'{"data": 8}'
        ] * 2
        await agents.intake.publish("a", [b'{"data": "first"}'], principal="p", may_create=True, atomic=True)
        await until(lambda: len(sink.turns) == 1)
        await agents.intake.publish("a", objects, principal="p", may_create=True, atomic=True)
        await until(lambda: subscription.ledger.position.offset >= agents.node.log.head)
        gate.set()
        await agents.settled(subscription)
        values = [msgspec.json.decode(await turn.body())["packet"]["data_payload"] for turn in sink.turns]
        assert values == ["first", 6, 7, 8, 8]
        assert subscription.rest.runs.coalesced == 6
        assert subscription.rest.delivered == 5


async def test_all_agents_pause_and_go_on(tmp_path: Path, patient_clock: MockClock) -> None:
    """Nothing is begun while they are paused, and nothing is lost; after a restart they are still paused."""
    async with open_agents(tmp_path, features=(FEATURE,)) as agents, chaos.open_sink() as sink:
        switch = AgentSwitch(agents.node.log, agents.node.parts, agents.node.clock)
        await switch.load()
        subscription = await agents.agent(sink.url)
        other, _ = await agents.node.subscribe(sink.url, name="plain")
        await switch.put(True, "me")
        await agents.node.publish("x")
        await until(lambda: other.rest.delivered == 1)
        await trio.sleep(60)
        assert len(sink.turns) == 1
        late = await agents.agent(sink.url, "late", output="out2")
        assert late.is_held
        again = AgentSwitch(agents.node.log, agents.node.parts, agents.node.clock)
        await again.load()
        assert (again.state.is_paused, again.state.principal, again.agents) == (True, "me", 2)
        await switch.put(False, "me")
        await agents.settled(subscription)
        assert subscription.rest.delivered == 1


async def fetched_agent(agents: AgentNode, **rest: Any) -> tuple[Subscription, Desk]:
    """An agent that fetches."""
    await agents.node.log.define_stream("out", Definition())
    body = {
        "name": "puller", "kind": "agent", "streams": ["a"], "pull": {"max_deliveries": 3},
        "agent": {"attach": "pull", "output": "out"} | rest,
    }  # fmt: skip
    book = agents.node.parts.book
    asked = parse_new(msgspec.json.encode(body), book.parse_query, agents.node.webhooks.judge.check)
    subscription = (await book.create(asked, Reading("tester"))).subscription
    return subscription, agents.node.parts.engine.desk(subscription)


async def test_a_fetched_message_is_settled_with_its_reply(tmp_path: Path, patient_clock: MockClock) -> None:
    """Once; a reply that can't be taken leaves the lease as it is; the brake holds the next fetch."""
    async with open_agents(tmp_path) as agents:
        subscription, desk = await fetched_agent(agents, runs_per_day=2)
        await agents.node.publish("x", "y", "z")
        found = await desk.fetch(5, 1.0)
        assert len(found.messages) == 2
        assert (await desk.fetch(5, 1.0)).messages == []
        assert hits(agents, "agent_runs_per_day") >= 1
        lease = found.messages[0].lease
        with pytest.raises(InvalidReply):
            await desk.reply(lease, b'{"packets": 5}')
        assert await desk.reply(lease, msgspec.json.encode(REPLY)) == "ok"
        assert await desk.reply(lease, msgspec.json.encode(REPLY)) == "expired"
        assert await desk.ack([found.messages[1].lease]) == ["ok"]
        packets = await agents.packets()
        assert [value for _, value in packets] == [{"mood": "fine"}, 2]
        assert packets[0][0].hops == 1
        assert subscription.rest.delivered == 2
    async with open_agents(tmp_path) as again:
        revived = again.node.parts.book.find("puller")
        assert revived.ledger.floor.offset == subscription.ledger.floor.offset
        assert revived.rest.runs.hour_runs == 2


async def test_paused_agents_fetch_nothing(tmp_path: Path, patient_clock: MockClock) -> None:
    """They are told why; what they hold they may still settle."""
    async with open_agents(tmp_path, features=(FEATURE,)) as agents:
        _, desk = await fetched_agent(agents)
        await agents.node.publish("x")
        found = await desk.fetch(1, 1.0)
        await AgentSwitch(agents.node.log, agents.node.parts, agents.node.clock).put(True, "me")
        with pytest.raises(SubscriptionConflict, match="paused"):
            await desk.fetch(1, 0.0)
        assert await desk.reply(found.messages[0].lease, msgspec.json.encode(REPLY)) == "ok"


@pytest.mark.parametrize(
    ("agent", "other", "pointer"),
    [
        ({"trigger": {"gt": ["a"]}}, {}, "/agent/trigger/gt"),
        ({"output": "overlayd.events"}, {}, "/agent/output"),
        ({"output": "No Name"}, {}, "/agent/output"),
        ({}, {"webhook": {"url": "https://x.example/", "batch_size": 5}}, "/webhook/batch_size"),
        ({}, {"webhook": {"url": "https://x.example/", "format": "cloudevents"}}, "/webhook/format"),
        ({"attach": "pull"}, {"webhook": {"url": "https://x.example/"}}, "/webhook"),
        ({"attach": "live", "runs_per_hour": 5}, {}, "/agent/runs_per_hour"),
        ({"attach": "live", "coalesce": "key"}, {}, "/agent/coalesce"),
        ({"attach": "live", "mode": "batch"}, {}, "/agent/mode"),
        ({}, {}, "/webhook"),
        ({}, {"kind": "pull"}, "/agent"),
    ],
)
async def test_refusals_name_the_place(
    tmp_path: Path, agent: dict[str, Any], other: dict[str, Any], pointer: str
) -> None:
    """What doesn't go together, or doesn't mean anything."""
    async with open_agents(tmp_path) as agents:
        body = {"name": "x", "kind": "agent", "agent": agent} | other
        with pytest.raises(InvalidSubscription) as caught:
            parse_new(msgspec.json.encode(body), agents.node.parts.book.parse_query, lambda rule: [])
        assert pointer in [flaw.pointer for flaw in caught.value.violations]
