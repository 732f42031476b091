"""When failed deliveries are tried again, when a subscription is given up, and what becomes of dead letters."""

from itertools import pairwise

import pytest
import trio
from subscription_rig import FAILED, OK, FakeOutlet, MemoryLog, Node, killed, running
from trio.testing import MockClock

from overlayd.delivery.frames import Message
from overlayd.delivery.subscriptions.retry import ORDERED_SCHEDULE_S, STANDARD_SCHEDULE_S
from overlayd.model.errors import SubscriptionConflict, UnknownDeadLetter
from overlayd.model.outlet import AttemptResult, Delivery

DAY_S = 86_400.0


def pauses(node: Node, name: str = "s") -> list[float]:
    """Seconds between one attempt and the next."""
    times = node.outlet.times(name)
    return [after - before for before, after in pairwise(times)]


async def test_default_schedule_is_the_standard_one(autojump_clock: MockClock) -> None:
    """Without order and without a rule: ten attempts over about three days, each pause up to a tenth longer."""
    async with running() as node:
        node.outlet.answer("s", FAILED)
        one = await node.add()
        node.log.add("a", 1)
        await trio.sleep(5 * DAY_S)
        assert len(pauses(node)) == len(STANDARD_SCHEDULE_S)
        for pause, asked in zip(pauses(node), STANDARD_SCHEDULE_S, strict=True):
            assert asked <= pause <= asked * 1.1 + 1
        assert one.dead_letters == 1
        assert one.ledger.is_empty
        assert node.count("SELECT count(*) FROM subscription_unit") == 0


async def test_default_with_order_ends_within_an_hour(autojump_clock: MockClock) -> None:
    """With order: eight attempts within an hour, although each takes its whole timeout."""
    async with running() as node:
        node.outlet.answer("s", FAILED, after_s=15.0)
        one = await node.add(ordering="stream")
        node.log.add("a", 1)
        await trio.sleep(3600)
        assert len(node.outlet.attempts) == len(ORDERED_SCHEDULE_S) + 1 == 8
        assert one.dead_letters == 1


async def test_exponential_pauses_double_up_to_the_longest(autojump_clock: MockClock) -> None:
    """Without jitter the pauses are exactly backoff times powers of two."""
    async with running() as node:
        node.outlet.answer("s", FAILED)
        rule = {"max_retries": 5, "backoff": "10s", "max_backoff": "60s", "jitter": "none"}
        await node.add(retry=rule)
        node.log.add("a", 1)
        await trio.sleep(1000)
        assert pauses(node) == [pytest.approx(pause, abs=0.4) for pause in (10, 20, 40, 60, 60)]


async def test_full_jitter_stays_below_the_ceiling(autojump_clock: MockClock) -> None:
    """With jitter each pause is anything up to what it would be without."""
    async with running() as node:
        node.outlet.answer("s", FAILED)
        await node.add(retry={"max_retries": 50, "backoff": "1s", "max_backoff": "8s"}, concurrency=1)
        node.log.add("a", 1)
        await trio.sleep(1000)
        ceilings = [min(8.0, 2.0**number) for number in range(50)]
        assert all(pause <= ceiling + 0.4 for pause, ceiling in zip(pauses(node), ceilings, strict=True))
        assert len({round(pause, 3) for pause in pauses(node)}) > 40


async def test_schedule_of_ones_own(autojump_clock: MockClock) -> None:
    """A list of pauses is followed, then the delivery is a dead letter."""
    async with running() as node:
        node.outlet.answer("s", FAILED)
        one = await node.add(retry={"schedule": ["2s", "0s", "1m"]})
        node.log.add("a", 1)
        await trio.sleep(500)
        for pause, asked in zip(pauses(node), (2, 0, 60), strict=True):
            assert asked <= pause <= asked * 1.1 + 0.01
        assert one.dead_letters == 1


async def test_retry_after_holds_the_whole_subscription(autojump_clock: MockClock) -> None:
    """A receiver that asks for time gets it: nothing else is sent meanwhile, also after a restart."""
    log, outlet = MemoryLog(), FakeOutlet()
    busy = AttemptResult("retry", "429", status=429, retry_after_s=120.0)
    async with killed(log, outlet) as node:
        clock = node.clock
        outlet.answer("s", busy, OK)
        await node.add()
        log.add("a", 1)
        await trio.sleep(1)
        log.add("a", 2)
        await trio.sleep(50)
        assert len(outlet.attempts) == 1
    async with running(log, outlet, clock=clock) as node:
        await trio.sleep(60)
        assert len(outlet.attempts) == 1
        await trio.sleep(60)
        assert sorted(node.delivered()) == ["1", "2"]
        assert outlet.times("s")[1] - outlet.times("s")[0] >= 120


async def test_absurd_retry_after_is_cut(autojump_clock: MockClock) -> None:
    """Nobody can put a delivery off for longer than a day at a time."""
    async with running() as node:
        node.outlet.answer("s", AttemptResult("retry", "503", status=503, retry_after_s=1e12), OK)
        await node.add()
        node.log.add("a", 1)
        await trio.sleep(1.2 * DAY_S)
        assert node.delivered() == ["1"]


async def test_rate_is_kept(autojump_clock: MockClock) -> None:
    """At most `rate_per_second` attempts begin in a second."""
    async with running() as node:
        await node.add(rate_per_second=20, concurrency=50)
        for number in range(200):
            node.log.add("a", number)
        await trio.sleep(5)
        assert 90 <= len(node.outlet.attempts) <= 103
        await trio.sleep(6)
        assert len(node.outlet.attempts) == 200


async def test_nothing_but_failures_disables(autojump_clock: MockClock) -> None:
    """After five days without one success the subscription is disabled, and the node's events say so."""
    async with running() as node:
        node.outlet.answer("s", FAILED)
        one = await node.add(retry={"max_retries": 1, "backoff": "1s"})
        for _ in range(4 * 24):
            node.log.add("a", 1)
            await trio.sleep(3600)
        assert one.rest.state == "active"
        for _ in range(2 * 24):
            node.log.add("a", 1)
            await trio.sleep(3600)
        assert one.rest.state == "disabled"
        assert "nothing but failures for 5d" in one.rest.reason
        assert [name for name, _ in node.events] == ["subscription.disabled"]
        assert node.events[0][1]["subscription"] == one.id
        count = len(node.outlet.attempts)
        node.log.add("a", 2)
        await trio.sleep(DAY_S)
        assert len(node.outlet.attempts) == count
        node.outlet.answer("s", OK)
        await node.book.set_state(one, "active")
        await trio.sleep(10)
        assert "2" in node.delivered()


async def test_one_success_starts_the_count_anew(autojump_clock: MockClock) -> None:
    """A subscription that sometimes succeeds is never disabled."""
    async with running() as node:
        node.outlet.answer("s", *([FAILED] * 80 + [OK]) * 5)
        one = await node.add(retry={"max_retries": 0})
        for _ in range(12 * 24):
            node.log.add("a", 1)
            await trio.sleep(3600)
        assert one.rest.state == "active"


async def test_clock_that_jumps_disables_nobody_and_loses_nothing(autojump_clock: MockClock) -> None:
    """Wall time that leaps a year ahead, or back, changes no pause and ends no subscription."""
    async with running() as node:
        node.outlet.answer("s", FAILED)
        one = await node.add(retry={"schedule": ["1m", "1m", "1m", "1m"]})
        node.log.add("a", 1)
        await trio.sleep(30)
        for jump_s in (366 * DAY_S, -700 * DAY_S, 366 * DAY_S):
            node.clock.jump_us += round(jump_s * 1e6)
            await trio.sleep(62)
        assert one.rest.state == "active"
        assert all(60 <= pause <= 66.1 for pause in pauses(node))
        node.outlet.answer("s", OK)
        await trio.sleep(120)
        assert node.delivered() == ["1"]


async def test_clock_that_jumped_during_a_restart_delays_no_longer_than_the_rule(autojump_clock: MockClock) -> None:
    """A next attempt that a wrong clock put into the far future is made a day later at most."""
    log, outlet = MemoryLog(), FakeOutlet()
    outlet.answer("s", FAILED)
    async with killed(log, outlet) as node:
        await node.add()
        log.add("a", 1)
        await trio.sleep(10)
        clock = node.clock
    clock.jump_us -= round(3650 * DAY_S * 1e6)
    outlet.answer("s", OK)
    async with running(log, outlet, clock=clock) as node:
        await trio.sleep(1.1 * DAY_S)
        assert node.delivered() == ["1"]


async def test_gone_disables_at_once(autojump_clock: MockClock) -> None:
    """An endpoint that wants nothing more is left alone; what it didn't take isn't lost."""
    async with running() as node:
        node.outlet.answer("s", AttemptResult("disable", "410 Gone", status=410), OK)
        one = await node.add()
        node.log.add("a", 1)
        await trio.sleep(1)
        assert one.rest.state == "disabled"
        assert one.rest.reason == "410 Gone"
        assert len(node.events) == 1
        assert one.dead_letters == 0
        await node.book.set_state(one, "active")
        await trio.sleep(1)
        assert node.delivered() == ["1"]


async def test_dead_letters_are_told_redelivered_and_deleted(autojump_clock: MockClock) -> None:
    """A dead letter holds reason, answer and cursor; it is tried again under its id, one or a range, or thrown away."""
    async with running() as node:
        node.outlet.answer("s", AttemptResult("retry", "said no", status=500, response_excerpt=b"oops"))
        one = await node.add(retry={"max_retries": 0})
        for number in range(5):
            node.log.add("a", number)
        await trio.sleep(10)
        letters = await node.parts.letters.read(one, 0, 100)
        first = letters[0]
        assert (len(letters), one.dead_letters) == (5, 5)
        assert (first.body.reason, first.body.status, first.body.excerpt) == ("said no", 500, "oops")
        assert first.body.cursors[1] == node.log.cursor(1)
        node.outlet.answer("s", OK)
        assert await node.parts.letters.redeliver(one, first.id, first.id) == 1
        await trio.sleep(1)
        assert node.outlet.taken["s"] == [first.body.delivery_id]
        assert one.dead_letters == 4
        with pytest.raises(UnknownDeadLetter):
            await node.parts.letters.show(one, first.id)
        assert await node.parts.letters.redeliver(one, letters[1].id, letters[2].id) == 2
        await trio.sleep(1)
        assert await node.parts.letters.delete(one, 0, 1 << 60) == 2
        assert node.count("SELECT count(*) FROM subscription_dead") == one.dead_letters == 0
        assert one.is_idle
        assert one.ledger.unsettled == 0


async def test_dead_letter_that_fails_again_stays_dead(autojump_clock: MockClock) -> None:
    """A second death keeps the letter's number, moves no floor and counts once."""
    async with running() as node:
        node.outlet.answer("s", FAILED)
        one = await node.add(retry={"max_retries": 1, "backoff": "1s", "jitter": "none"})
        node.log.add("a", 1)
        await trio.sleep(10)
        (letter,) = await node.parts.letters.read(one, 0, 10)
        await node.parts.letters.redeliver(one, letter.id, letter.id)
        await trio.sleep(10)
        (again,) = await node.parts.letters.read(one, 0, 10)
        assert (again.id, again.is_queued, again.body.attempts) == (letter.id, False, 4)
        assert one.dead_letters == 1
        assert len(node.outlet.attempts) == 4
        assert len(set(node.outlet.ids("s"))) == 1


async def test_redelivery_outlives_a_kill(autojump_clock: MockClock) -> None:
    """A letter that is being tried again is tried again by the next start."""
    log, outlet = MemoryLog(), FakeOutlet()
    outlet.answer("s", FAILED)
    async with killed(log, outlet) as node:
        one = await node.add(retry={"schedule": ["1h"]})
        log.add("a", 1)
        await trio.sleep(2 * 3600)
        (letter,) = await node.parts.letters.read(one, 0, 10)
        await node.parts.letters.redeliver(one, letter.id, letter.id)
        await trio.sleep(60)
    outlet.answer("s", OK)
    async with running(log, outlet) as node:
        await trio.sleep(60)
        assert outlet.taken["s"] == [letter.body.delivery_id]
        assert node.count("SELECT count(*) FROM subscription_dead") == 0


async def test_dead_letters_go_after_their_time(autojump_clock: MockClock) -> None:
    """After 168 hours a parked dead letter is taken away."""
    async with running() as node:
        node.outlet.answer("s", FAILED)
        one = await node.add(retry={"max_retries": 0})
        node.log.add("a", 1)
        await trio.sleep(167 * 3600)
        assert one.dead_letters == 1
        await trio.sleep(2 * 3600)
        assert one.dead_letters == node.count("SELECT count(*) FROM subscription_dead") == 0


async def test_redelivery_waits_until_the_subscription_is_active(autojump_clock: MockClock) -> None:
    """A paused subscription redelivers nothing and says so."""
    async with running() as node:
        one = await node.add()
        await node.book.set_state(one, "paused")
        with pytest.raises(SubscriptionConflict, match="paused"):
            await node.parts.letters.redeliver(one, 1, 1)


async def test_too_many_dead_letters_lose_the_oldest(autojump_clock: MockClock) -> None:
    """Over `dead_letters_per_subscription` the oldest go, counted."""
    from overlayd.model.limits import Limits

    async with running(limits=Limits(dead_letters_per_subscription=10)) as node:
        node.outlet.answer("s", FAILED)
        one = await node.add(retry={"max_retries": 0})
        for number in range(25):
            node.log.add("a", number)
        await trio.sleep(30)
        letters = await node.parts.letters.read(one, 0, 100)
        assert len(letters) == one.dead_letters == 10
        assert letters[-1].body.members[0][1] == 25
        hits = node.delivery.metrics.registry.get_sample_value(
            "overlayd_limit_hits_total", {"limit": "dead_letters_per_subscription"}
        )
        assert hits


async def test_dead_redelivery_keeps_the_order_of_its_stream(autojump_clock: MockClock) -> None:
    """With order, a letter that is tried again flies by itself: nothing else of its stream is in flight."""
    async with running() as node:
        flying: list[str] = []

        async def look(delivery: Delivery[Message]) -> AttemptResult:
            assert delivery.stream not in flying
            flying.append(delivery.stream)
            await trio.sleep(1)
            flying.remove(delivery.stream)
            return FAILED if delivery.delivery_id.endswith("_1") and delivery.attempt < 2 else OK

        node.outlet.answers["s"] = look
        one = await node.add(ordering="stream", retry={"max_retries": 0})
        node.log.add("a", 0)
        await trio.sleep(5)
        for number in range(1, 6):
            node.log.add("a", number)
        await node.parts.letters.redeliver(one, 0, 1 << 60)
        await trio.sleep(30)
        assert sorted(node.delivered()) == list("012345")
