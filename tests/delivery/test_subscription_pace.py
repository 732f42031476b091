"""What endpoints that keep failing cost everybody else: their turns, and how their failures are written down."""

import random

import trio
from hypothesis import given
from hypothesis import strategies as st
from subscription_rig import FAILED, OK, FakeOutlet, running
from trio.testing import MockClock

from overlayd.delivery.subscriptions.pacing import TOGETHER_S, TROUBLED_FAILURES, TroubledTurns
from overlayd.delivery.subscriptions.rounds import LINGER_S
from overlayd.model.limits import Limits


@given(st.integers(1, 1000), st.lists(st.floats(0, 5), min_size=1, max_size=200))
def test_turns_are_so_many_a_second(per_s: int, pauses: list[float]) -> None:
    """However they are asked for, no turn lies before it was, or further off than those before it and a step ask for,
    and no second has more of them than were allowed, but for what began together."""
    turns, now, drawn = TroubledTurns(per_s), 1000.0, []
    for pause in pauses:
        now += pause / per_s
        at = turns.next_at(now)
        assert now <= at <= now + len(drawn) / per_s + TOGETHER_S + 1e-6
        drawn.append(at)
    for at in drawn:
        within = sum(at <= other < at + 1 for other in drawn)
        assert within <= per_s * (1 + TOGETHER_S) + 2


def test_a_lonely_failure_waits_for_nobody() -> None:
    """Where few endpoints fail, each has its turn at once."""
    turns = TroubledTurns(10)
    assert [turns.next_at(now) for now in (5.0, 5.2, 7.0)] == [5.0, 5.2, 7.0]
    assert turns.next_at(7.0) > 7.0


def _attempts_between(outlet: FakeOutlet, begin: float, end: float) -> int:
    return sum(begin <= at < end for at, _ in outlet.attempts)


async def test_many_that_fail_share_so_many_attempts(autojump_clock: MockClock) -> None:
    """At `troubled_attempts_per_s` all of them together are tried no more often, each of them again and again, and a good
    one beside them gets everything at once."""
    async with running(limits=Limits(troubled_attempts_per_s=20)) as node:
        for number in range(100):
            node.outlet.answer(f"bad{number}", FAILED)
            await node.add(f"bad{number}", retry={"schedule": ["1s"] * 100})
        await node.add("good")
        for number in range(10):
            node.log.add("a", number)
        await trio.sleep(20)
        settled, node.outlet.attempts[:] = len(node.outlet.taken["good"]), []
        began = trio.current_time()
        await trio.sleep(30)
        assert settled == 10
        assert _attempts_between(node.outlet, began, began + 30) <= 20 * (30 + TOGETHER_S) + 2
        assert _attempts_between(node.outlet, began, began + 30) > 20 * 30 / 2
        assert {delivery.definition.name for _, delivery in node.outlet.attempts} == {f"bad{n}" for n in range(100)}
        hits = node.delivery.metrics.registry.get_sample_value(
            "overlayd_limit_hits_total", {"limit": "troubled_attempts_per_s"}
        )
        assert hits


async def test_what_came_meanwhile_is_delivered_once_an_endpoint_is_well(autojump_clock: MockClock) -> None:
    """One that keeps failing reads no further than it needs; with its first success it gets everything that waited."""
    async with running() as node:
        node.outlet.answer("s", FAILED)
        one = await node.add(retry={"schedule": ["1s"] * 100}, concurrency=8)
        for number in range(500):
            node.log.add("a", number)
            if number % 50 == 0:
                await trio.sleep(2)
        assert one.ledger.outstanding < 100
        node.outlet.answer("s", OK)
        await trio.sleep(10)
        assert sorted(map(int, node.delivered())) == list(range(500))


async def test_a_troubled_one_that_is_paused_and_resumed_goes_on_at_once(autojump_clock: MockClock) -> None:
    """Active again it waits for no turn that it drew before."""
    async with running(limits=Limits(troubled_attempts_per_s=1)) as node:
        for number in range(60):
            node.outlet.answer(f"bad{number}", FAILED)
            await node.add(f"bad{number}", retry={"schedule": ["1s"] * 100})
        for number in range(5):
            node.log.add("a", number)
        await trio.sleep(300)
        one = next(one for one in node.parts.engine.subscriptions.values() if one.name == "bad7")
        await node.book.set_state(one, "paused")
        await node.book.set_state(one, "active")
        began = trio.current_time()
        await trio.sleep(1)
        assert any(at >= began for at in node.outlet.times("bad7"))


async def test_failures_linger_for_others(autojump_clock: MockClock) -> None:
    """Forty endpoints that fail one after the other within a fifth of a second are written down together, no later than
    after `LINGER_S`."""
    chance = random.Random(7)
    async with running() as node:
        for number in range(40):
            node.outlet.answer(f"bad{number}", FAILED, after_s=chance.random() * 0.2)
            await node.add(f"bad{number}", retry={"schedule": ["30s"]})
        await trio.sleep(1)
        before = node.log.writes
        node.log.add("a", 1)
        await trio.sleep(0.2 + LINGER_S + 0.05)
        assert before < node.log.writes <= before + 4
        (waiting,) = await node.log.read(
            lambda connection: connection.execute("SELECT count(*) FROM subscription_unit").fetchone()
        )
        assert waiting == 40


def test_three_failures_are_trouble() -> None:
    """What the documents say."""
    assert TROUBLED_FAILURES == 3
