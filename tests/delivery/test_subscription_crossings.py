"""What comes between a delivery and its end: 410, a seek, a deletion, another definition, a namesake, a stream that goes."""

import pytest
import trio
from subscription_rig import FAILED, OK, FakeOutlet, MemoryLog, Node, killed, patch, running
from trio.testing import MockClock

from overlayd.delivery.frames import Message
from overlayd.delivery.query import Beginning, Now
from overlayd.delivery.subscriptions.pull import Fetched
from overlayd.delivery.subscriptions.subscription import Subscription
from overlayd.model.cursor import make_epoch
from overlayd.model.errors import SubscriptionConflict
from overlayd.model.limits import Limits
from overlayd.model.outlet import AttemptResult, Delivery

GONE = AttemptResult("disable", "the endpoint answered 410", status=410)


def tokens(fetched: Fetched) -> list[str]:
    """The leases, in order."""
    return [leased.lease for leased in fetched.messages]


async def test_gone_while_others_are_in_flight(autojump_clock: MockClock) -> None:
    """Many answers of 410 disable once and are told once; what another one delivered stays delivered, and a resumption
    delivers the rest, each under its id."""
    async with running() as node:
        one = await node.add(concurrency=8)
        for number in range(20):
            node.log.add("a", number)
        await trio.sleep(1)
        assert len(node.delivered()) == 20

        async def give(delivery: Delivery[Message]) -> AttemptResult:
            await trio.sleep(1)
            return OK if delivery.delivery_id.endswith("2") else GONE

        node.outlet.answers["s"] = give
        for number in range(20, 40):
            node.log.add("a", number)
        await trio.sleep(3600)
        assert len(node.outlet.attempts) == 28
        assert (one.rest.state, len(node.events)) == ("disabled", 1)
        assert "21" in node.delivered()
        assert one.ledger.unsettled == 19
        node.outlet.answers.clear()
        await node.book.set_state(one, "active")
        await trio.sleep(60)
        assert sorted(map(int, node.delivered())) == list(range(40))
        assert len(set(node.outlet.ids("s"))) == 40


@pytest.mark.parametrize("ordering", ["none", "stream"])
async def test_seek_while_deliveries_are_in_flight(ordering: str, autojump_clock: MockClock) -> None:
    """Forwards what was in flight is forgotten; back it is made again, under its ids, and is settled once."""
    async with running() as node:
        node.outlet.answer("s", OK, after_s=5.0)
        one = await node.add(ordering=ordering, streams=["*"])
        for number in range(10):
            node.log.add("abc"[number % 3], number)
        await trio.sleep(7)
        assert node.outlet.flying["s"] >= 1
        await node.book.seek(one, Now())
        assert node.outlet.flying["s"] == 0
        delivered = len(node.delivered())
        await trio.sleep(60)
        assert len(node.delivered()) == delivered
        assert one.is_idle
        await node.book.seek(one, Beginning())
        await trio.sleep(7)
        await node.book.seek(one, Beginning())
        await trio.sleep(3600)
        assert set(node.delivered()) == set(map(str, range(10)))
        assert len(set(node.outlet.ids("s"))) == 10
        assert one.is_idle
        assert node.count("SELECT count(*) FROM subscription_unit") == 0


async def test_deletion_while_deliveries_are_in_flight(autojump_clock: MockClock) -> None:
    """Nothing is sent any more, nothing is written any more, and those who wait for a message are told."""
    async with running() as node:
        node.outlet.answer("s", FAILED, FAILED, OK, after_s=2.0)
        node.log.write_s = 0.5
        one = await node.add(concurrency=8, retry={"schedule": ["1s"] * 9})
        pull = await node.add("p", "pull")
        desk = node.engine.desk(pull)
        for number in range(50):
            node.log.add("a", number)
        fetched = await desk.fetch(50, 0)
        await trio.sleep(7.3)
        assert node.outlet.flying["s"] >= 1
        async with trio.open_nursery() as nursery:

            async def wait_for_more() -> None:
                with pytest.raises(SubscriptionConflict, match="deleted"):
                    await desk.fetch(1, 1000)

            nursery.start_soon(wait_for_more)
            await trio.sleep(0.1)
            await node.book.delete(one)
            await node.book.delete(pull)
        count = len(node.outlet.attempts)
        with pytest.raises(SubscriptionConflict, match="deleted"):
            await desk.ack(tokens(fetched))
        await trio.sleep(3600)
        assert len(node.outlet.attempts) == count
        for table in ("", "_state", "_unit", "_attempt", "_dead"):
            assert node.count(f"SELECT count(*) FROM subscription{table}") == 0
        assert node.engine.rounds.busy == {}


async def test_leases_of_a_namesake(autojump_clock: MockClock) -> None:
    """A worker whose subscription was deleted can't settle what another one under the same name gave to somebody else;
    nor can the lease of one subscription settle a message of another."""
    async with running() as node:
        first = await node.add("p", "pull")
        other = node.engine.desk(await node.add("q", "pull"))
        node.log.add("a", 1)
        before = await node.engine.desk(first).fetch(1, 0)
        elsewhere = await other.fetch(1, 0)
        await node.book.delete(first)
        desk = node.engine.desk(await node.add("p", "pull", from_="beginning"))
        now = await desk.fetch(1, 0)
        assert len(now.messages) == 1
        assert await desk.ack(tokens(before)) == ["expired"]
        assert await desk.nack(tokens(elsewhere), 0.0) == ["expired"]
        assert await desk.ack(tokens(now)) == ["ok"]
        assert await other.ack(tokens(now)) == ["expired"]
        assert await other.ack(tokens(elsewhere)) == ["ok"]


async def test_leases_of_before_a_restore(autojump_clock: MockClock) -> None:
    """After a restore another packet may stand at the offset of one that was out: its lease doesn't settle that."""
    log = MemoryLog()
    async with killed(log, FakeOutlet()) as node:
        desk = node.engine.desk(await node.add("p", "pull"))
        log.add("a", "old")
        before = await desk.fetch(1, 0)
    restored = MemoryLog(log.connection, epoch=make_epoch(2, b"other"))
    restored.ancestry = [(log.epoch, 0)]
    async with running(restored) as node:
        desk = node.engine.desk(node.book.find("p"))
        restored.add("a", "new")
        fetched = await desk.fetch(10, 0)
        assert len(fetched.messages) >= 1
        assert await desk.ack(tokens(before)) == ["expired"]
        assert await desk.ack(tokens(fetched)) == ["ok"] * len(fetched.messages)


async def test_dead_letters_go_where_the_subscription_points_now(autojump_clock: MockClock) -> None:
    """Tried again after another URL was given, a letter goes there, under its id and with the packets it had, though the
    subscription wouldn't select them any more; of a stream that is gone there is nothing to send, and it goes."""
    async with running() as node:
        node.outlet.answer("s", FAILED)
        one = await node.add(streams=["a", "b"], retry={"max_retries": 0}, batch_size=3, batch_wait="1s")
        for number in range(3):
            node.log.add("a", number)
        node.log.add("b", 9)
        await trio.sleep(60)
        dead = await node.parts.letters.read(one, 0, 10)
        assert len(dead) == 2
        node.outlet.answers.clear()
        await patch(node, one, streams=["c"], webhook={"url": "http://other/"})
        node.log.delete("b")
        assert await node.parts.letters.redeliver(one, 0, 1 << 60) == 2
        await trio.sleep(60)
        ((_, sent),) = node.outlet.attempts[2:]
        webhook = sent.definition.webhook
        assert getattr(webhook, "url", "") == "http://other/"
        assert sent.delivery_id == next(letter.body.delivery_id for letter in dead if letter.body.stream == "a")
        assert node.delivered() == ["0", "1", "2"]
        assert one.dead_letters == node.count("SELECT count(*) FROM subscription_dead") == 0
        assert [body.outcome for body in await node.parts.letters.attempts(one)].count("gap") == 1


@pytest.mark.parametrize("way", ["patch", "seek"])
async def test_a_letter_that_waits_goes_on_waiting(way: str, autojump_clock: MockClock) -> None:
    """Neither a change nor a seek has a dead letter tried before its time, or more often than it would be."""
    async with running() as node:
        node.outlet.answer("s", FAILED)
        one = await node.add(retry={"schedule": ["1h", "1h"]})
        node.log.add("a", 1)
        await trio.sleep(3 * 3600)
        await node.parts.letters.redeliver(one, 1, 1)
        await trio.sleep(60)
        assert len(node.outlet.attempts) == 4
        if way == "patch":
            await patch(node, one, types=["t"])
        else:
            await node.book.seek(one, Now())
        await trio.sleep(1800)
        assert len(node.outlet.attempts) == 4
        await trio.sleep(10 * 3600)
        assert [delivery.attempt for _, delivery in node.outlet.attempts] == [1, 2, 3, 4, 5, 6]
        assert (one.dead_letters, one.dead_queued) == (1, {})


async def test_a_worker_keeps_a_letter_over_a_change(autojump_clock: MockClock) -> None:
    """A dead letter that a worker has on lease stays theirs when the subscription is changed; a seek ends the lease."""
    async with running() as node:
        one = await node.add("p", "pull", max_deliveries=1, lease="60s")
        desk = node.engine.desk(one)
        node.log.add("a", 1)
        await desk.nack(tokens(await desk.fetch(1, 0)), 0.0)
        await node.parts.letters.redeliver(one, 1, 1)
        fetched = await desk.fetch(1, 0)
        await patch(node, one, types=["t"])
        assert (await desk.fetch(1, 0)).messages == []
        await node.book.seek(one, Now())
        assert await desk.ack(tokens(fetched)) == ["expired"]
        again = await desk.fetch(1, 0)
        await patch(node, one, types=["u"])
        assert await desk.ack(tokens(again)) == ["ok"]
        await trio.sleep(1)
        assert one.dead_letters == node.count("SELECT count(*) FROM subscription_dead") == 0
        assert one.rest.delivered == 1


async def test_acknowledgements_while_a_change_is_written(autojump_clock: MockClock) -> None:
    """What workers do while a change is on its way to the disk counts behind it, and behind a kill: in or out of order,
    acknowledged, given back, extended, or fetched."""
    log = MemoryLog()
    async with killed(log, FakeOutlet()) as node:
        one = await node.add("p", "pull", lease="60s")
        desk = node.engine.desk(one)
        for number in range(9):
            log.add("a", number)
        held = tokens(await desk.fetch(7, 0))
        log.write_s = 1.0
        async with trio.open_nursery() as nursery:
            for delay in (0.0, 0.3, 0.6):  # one after the other, at different moments of the writes
                nursery.start_soon(patch_later, node, one, delay)
            await trio.sleep(0.5)
            assert await desk.ack([held[3], held[0]]) == ["ok", "ok"]
            assert await desk.nack([held[1]], 500.0) == ["ok"]
            assert (await desk.extend([held[2]], 900.0))[0] == ["ok"]
            assert await desk.ack([held[5]]) == ["ok"]
            late = await desk.fetch(1, 0)
            assert await desk.ack([held[6], *tokens(late)]) == ["ok", "ok"]
        assert one.rest.delivered == 5
    log.write_s = 0.0
    async with running(log) as node:
        desk = node.engine.desk(node.book.find("p"))
        await trio.sleep(100)
        found = [*(await desk.fetch(10, 0)).messages, *(await desk.fetch(10, 0)).messages]
        assert sorted(str(one.message.cursor) for one in found) == [log.cursor(5), log.cursor(9)]
        assert await desk.ack([held[2], *(one.lease for one in found)]) == ["ok"] * 3
        await trio.sleep(500)
        assert [str(one.message.cursor) for one in (await desk.fetch(1, 0)).messages] == [log.cursor(2)]


async def test_a_batch_keeps_its_name_whatever_is_left_of_it(autojump_clock: MockClock) -> None:
    """Fixed at its first attempt, a batch of which another definition wants fewer packets is tried again with those under
    its name, over restarts too: no packet comes under two names. What is wanted no more is given up."""
    log, outlet = MemoryLog(), FakeOutlet()
    outlet.answer("s", FAILED)
    async with killed(log, outlet) as node:
        one = await node.add(batch_size=4, batch_wait="1s", retry={"schedule": ["60s"] * 9}, streams=["a", "b"])
        for number in range(8):
            log.add("a", number, type=f"t{number % 2}")
        log.add("b", 9, type="t0")
        await trio.sleep(30)
        names = set(outlet.ids("s"))
        await patch(node, one, types=["t1"], webhook={"batch_size": 1, "batch_wait": "0s"})
        await trio.sleep(60)
        await patch(node, one, webhook={"ordering": "stream"})
        await trio.sleep(60)
    outlet.answer("s", OK)
    async with running(log, outlet) as node:
        await trio.sleep(200)
        assert node.delivered() == ["1", "3", "5", "7"]
        assert set(outlet.ids("s")) == names
        assert len(names) == 3
        assert node.book.find("s").is_idle
        assert node.count("SELECT count(*) FROM subscription_unit") == 0


async def test_what_waited_without_order_goes_in_order(autojump_clock: MockClock) -> None:
    """A subscription that is to keep order from now on gives what waits for a retry, and what comes behind it, one at a
    time and in the stream's order, whenever each would have been due."""
    async with running() as node:
        until: dict[str, int] = {"2": 1, "5": 2, "3": 1}
        flying: list[str] = []

        async def give(delivery: Delivery[Message]) -> AttemptResult:
            await trio.sleep(0.5)
            place = delivery.delivery_id.rpartition("_")[2]
            return FAILED if delivery.attempt <= until.get(place, 0) else OK

        async def give_in_order(delivery: Delivery[Message]) -> AttemptResult:
            assert delivery.stream not in flying
            flying.append(delivery.stream)
            try:
                return await give(delivery)
            finally:
                flying.remove(delivery.stream)

        node.outlet.answers["s"] = give
        one = await node.add(retry={"schedule": ["100s", "50s", "1h"]})
        for number in range(1, 9):
            node.log.add("a", number)
        await trio.sleep(95)
        assert one.ledger.unsettled == 3
        taken = len(node.delivered())
        node.outlet.answers["s"] = give_in_order
        await patch(node, one, webhook={"ordering": "stream"})
        for number in range(9, 12):
            node.log.add("a", number)
        await trio.sleep(2 * 3600)
        assert node.delivered()[taken:] == ["2", "3", "5", "9", "10", "11"]
        assert one.is_idle


async def test_what_was_in_flight_keeps_its_name_over_a_change(autojump_clock: MockClock) -> None:
    """A first attempt that a change cuts off may have arrived: it is made again by itself, not in a batch with others."""
    async with running() as node:
        arrived: dict[str, str] = {}

        async def give(delivery: Delivery[Message]) -> AttemptResult:
            for message in delivery.messages:
                assert arrived.setdefault(str(message.cursor), delivery.delivery_id) == delivery.delivery_id
            await trio.sleep(5)
            return OK

        node.outlet.answers["s"] = give
        one = await node.add(concurrency=4)
        for number in range(12):
            node.log.add("a", number)
        await trio.sleep(7)
        assert node.outlet.flying["s"] == 2
        await patch(node, one, webhook={"batch_size": 4, "batch_wait": "1s"})
        await trio.sleep(600)
        assert sorted(map(int, node.delivered())) == list(range(12))
        assert one.is_idle
        assert node.count("SELECT count(*) FROM subscription_unit") == 0


async def test_another_endpoint_begins_anew(autojump_clock: MockClock) -> None:
    """How long an endpoint wants to be left alone, and how long it failed, doesn't count for the one that a change names
    instead; any other change leaves it alone. The same behind a kill."""
    log, outlet = MemoryLog(), FakeOutlet()
    outlet.answer("s", AttemptResult("retry", "busy", status=503, retry_after_s=80_000.0))
    async with killed(log, outlet) as node:
        one = await node.add(retry={"schedule": ["1s"] * 50})
        log.add("a", 1)
        await trio.sleep(60)
        await patch(node, one, webhook={"timeout": "3s"})
        log.add("a", 2)
        await trio.sleep(60)
        assert len(outlet.attempts) == 1
        assert one.rest.hold_us
        assert one.rest.failing_us
        await patch(node, one, webhook={"url": "http://other/"})
        assert (one.rest.hold_us, one.rest.failing_us) == (0, 0)
    async with running(log, outlet) as node:
        one = node.book.find("s")
        assert (one.rest.hold_us, one.rest.failing_us) == (0, 0)
        log.add("a", 3)
        await trio.sleep(60)
        assert len(outlet.attempts) > 1


@pytest.mark.parametrize("count", [600, pytest.param(10_000, marks=pytest.mark.slow)])
async def test_ten_thousand_outstanding(count: int, autojump_clock: MockClock) -> None:
    """At its bound a subscription changes, is restarted, settles from the far end, and moves, and nothing is left over."""
    log, limits = MemoryLog(), Limits(outstanding_max=count)
    async with killed(log, FakeOutlet(), limits=limits) as node:
        one = await node.add("p", "pull", lease="1h")
        desk = node.engine.desk(one)
        for number in range(count + 500):
            log.add("a", number)
        held: list[str] = []
        while fetched := tokens(await desk.fetch(500, 0)):
            held += fetched
        assert count <= len(held) == one.ledger.outstanding <= count + 200
        assert await desk.ack(held[:0:-1]) == ["ok"] * (len(held) - 1)
        assert one.ledger.floor.offset == 0
        await patch(node, one, streams=["a", "b"])
        assert one.ledger.unsettled == 0  # not found again yet
        assert (await desk.extend(held[:1], 3600.0))[0] == ["ok"]
        assert one.ledger.unsettled == 1
    async with running(log, limits=limits) as node:
        one = node.book.find("p")
        desk = node.engine.desk(one)
        assert await desk.ack(held[:1]) == ["ok"]
        assert one.ledger.floor.offset >= len(held)
        assert node.count("SELECT count(*) FROM subscription_unit") == 0
        await node.book.seek(one, Beginning())
        assert len(tokens(await desk.fetch(100, 0))) == 100
        await node.book.delete(one)
        assert node.count("SELECT count(*) FROM subscription_unit") == 0


async def patch_later(node: Node, one: Subscription, delay: float) -> None:
    """A change that selects the same."""
    await trio.sleep(delay)
    await patch(node, one, streams=["a", f"b{delay * 10:.0f}"])
