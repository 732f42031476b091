"""Webhook subscriptions over a log in memory: what is delivered, in which order, how often, and after a kill."""

import pytest
import trio
from subscription_rig import FAILED, OK, FakeOutlet, MemoryLog, Node, killed, running
from trio.testing import MockClock

from overlayd.delivery.frames import Message
from overlayd.model.errors import StorageFull
from overlayd.model.limits import Limits
from overlayd.model.outlet import AttemptResult, Delivery
from overlayd.model.units import Size


def offsets(ids: list[str]) -> list[int]:
    """The last part of delivery ids."""
    return [int(id.rpartition("_")[2]) for id in ids]


async def test_packets_are_delivered_under_their_ids(autojump_clock: MockClock) -> None:
    """Each packet is one delivery, named after the subscription and its place in the log."""
    async with running() as node:
        node.log.add("a", 0)
        one = await node.add()
        for number in (1, 2, 3):
            node.log.add("a", number)
        node.log.add("b", 9)
        await trio.sleep(1)
        assert sorted(node.delivered()) == ["1", "2", "3"]
        epoch = node.log.cursor(0)[1:-2]
        assert sorted(node.outlet.ids("s")) == [f"msg_{one.id}_{epoch}_{offset}" for offset in (2, 3, 4)]
        assert one.ledger.is_empty
        assert one.rest.delivered == 3


async def test_start_at_the_beginning_delivers_what_was_there(autojump_clock: MockClock) -> None:
    """`from: beginning` gives the packets of before, page by page."""
    async with running() as node:
        for number in range(1000):
            node.log.add("a", number)
        await node.add(from_="beginning", concurrency=50)
        await trio.sleep(5)
        assert sorted(map(int, node.delivered())) == list(range(1000))
        assert node.count("SELECT count(*) FROM subscription_unit") == 0


async def test_selection_narrows_what_is_delivered(autojump_clock: MockClock) -> None:
    """Streams, types, keys, topics and filters are heeded, live and behind."""
    async with running() as node:
        node.log.add("a", 1, type="x", key="k")
        for name, member in (
            ("t", {"types": ["x"]}), ("k", {"keys": ["k"]}), ("f", {"filter": "data > 1"}), ("w", {"streams": [">"]}),
        ):  # fmt: skip
            await node.add(name, from_="beginning", **member)
        await trio.sleep(1)
        node.log.add("a", 2, type="y", key="k")
        node.log.add("a", 3, type="x")
        node.log.add("b", 4, type="x", key="k")
        await trio.sleep(1)
        assert [sorted(node.delivered(name)) for name in "tkfw"] == [
            ["1", "3"],
            ["1", "2"],
            ["2", "3"],
            ["1", "2", "3", "4"],
        ]


async def test_order_none_keeps_as_many_in_flight_as_allowed(autojump_clock: MockClock) -> None:
    """Without order, up to `concurrency` deliveries fly, the first ones carefully."""
    async with running() as node:
        node.outlet.answer("s", OK, after_s=1.0)
        await node.add(concurrency=4)
        for number in range(40):
            node.log.add("a", number)
        await trio.sleep(30)
        assert len(node.delivered()) == 40
        assert node.outlet.flying_max["s"] == 4
        first, second, *_ = node.outlet.times("s")
        assert second - first == pytest.approx(1.0, abs=0.1)


async def test_order_stream_has_one_in_flight_per_stream(autojump_clock: MockClock) -> None:
    """With order, each stream's packets arrive one after the other, several streams side by side."""
    async with running() as node:
        seen: list[int] = []

        async def look(delivery: Delivery[Message]) -> AttemptResult:
            at = sum(delivery.stream == other for other in busy)
            seen.append(at)
            busy.append(delivery.stream)
            await trio.sleep(0.5)
            busy.remove(delivery.stream)
            return OK

        busy: list[str] = []
        node.outlet.answers["s"] = look
        await node.add(streams=["*"], ordering="stream", concurrency=8)
        for number in range(30):
            node.log.add("abc"[number % 3], number)
        await trio.sleep(30)
        assert max(seen) == 0
        numbers = [int(text) for text in node.delivered()]
        for rest in range(3):
            own = [number for number in numbers if number % 3 == rest]
            assert own == sorted(own)
        assert len(numbers) == 30
        assert node.outlet.flying_max["s"] == 3


async def test_failing_packet_holds_its_stream_only(autojump_clock: MockClock) -> None:
    """With order, what follows in the stream waits for the retry; another stream goes on."""
    async with running() as node:

        async def refuse_first(delivery: Delivery[Message]) -> AttemptResult:
            await trio.lowlevel.checkpoint()
            return FAILED if delivery.stream == "a" and delivery.attempt < 4 else OK

        node.outlet.answers["s"] = refuse_first
        await node.add(streams=["a", "b"], ordering="stream")
        for number in range(6):
            node.log.add("ab"[number % 2], number)
        await trio.sleep(0.5)
        assert node.delivered() == ["1", "3", "5"]
        await trio.sleep(100)
        assert node.delivered() == ["1", "3", "5", "0", "2", "4"]


async def test_crash_repeats_what_was_in_flight_alone(autojump_clock: MockClock) -> None:
    """After a kill the packets that were in flight come again, under the same ids; nothing else does."""
    log, outlet = MemoryLog(), FakeOutlet()
    async with killed(log, outlet) as node:
        outlet.answer("s", OK, after_s=1.0)
        await node.add(concurrency=4, from_="beginning")
        for number in range(30):
            log.add("a", number)
        await trio.sleep(5.5)
        flying = outlet.flying["s"]
        before = list(outlet.ids("s"))
    assert 1 <= flying <= 4
    async with running(log, outlet):
        await trio.sleep(60)
    repeated = [id for id in set(outlet.ids("s")) if outlet.ids("s").count(id) > 1]
    assert sorted(offsets(list(outlet.taken["s"]))) == list(range(1, 31))
    assert set(repeated) <= set(before)
    assert len(repeated) == flying


async def test_ended_node_repeats_nothing(autojump_clock: MockClock) -> None:
    """A node that is stopped waits for what is in flight and writes everything down."""
    log, outlet = MemoryLog(), FakeOutlet()
    async with running(log, outlet) as node:
        outlet.answer("s", OK, after_s=1.0)
        await node.add(concurrency=4)
        for number in range(30):
            log.add("a", number)
        await trio.sleep(5.5)
    async with running(log, outlet):
        await trio.sleep(60)
    assert sorted(offsets(outlet.ids("s"))) == list(range(1, 31))


async def test_retry_is_durable(autojump_clock: MockClock) -> None:
    """What waits for its next attempt waits on after a kill, with its attempts counted."""
    log, outlet = MemoryLog(), FakeOutlet()
    clock = None
    async with killed(log, outlet) as node:
        clock = node.clock
        outlet.answer("s", FAILED)
        await node.add()
        log.add("a", 1)
        await trio.sleep(60)
        assert len(outlet.attempts) == 2
    async with running(log, outlet, clock=clock):
        outlet.answer("s", OK)
        await trio.sleep(100)
        assert len(outlet.attempts) == 2
        await trio.sleep(300)
    assert [delivery.attempt for _, delivery in outlet.attempts] == [1, 2, 3]
    assert len(set(outlet.ids("s"))) == 1


async def test_settled_above_the_floor_stays_settled_after_a_kill(autojump_clock: MockClock) -> None:
    """Behind a packet that keeps failing, those that arrived aren't sent again by a restart."""
    log, outlet = MemoryLog(), FakeOutlet()

    async def refuse_one(delivery: Delivery[Message]) -> AttemptResult:
        await trio.lowlevel.checkpoint()
        return FAILED if delivery.delivery_id.endswith("_1") else OK

    outlet.answers["s"] = refuse_one
    async with killed(log, outlet) as node:
        one = await node.add()
        for number in range(20):
            log.add("a", number)
        await trio.sleep(2)
        assert one.ledger.floor.offset == 0
        assert node.count("SELECT count(*) FROM subscription_unit") == 20
    async with running(log, outlet) as node:
        log.add("a", 20)
        await trio.sleep(2)
        assert sorted(offsets(outlet.taken["s"])) == list(range(2, 22))
        assert len(outlet.taken["s"]) == 20


async def test_batches_hold_packets_of_one_stream(autojump_clock: MockClock) -> None:
    """A delivery holds up to `batch_size` packets of a stream, named by the first and the last."""
    async with running() as node:
        await node.add(streams=["a", "b"], batch_size=3, batch_wait="2s")
        for number in range(7):
            node.log.add("a" if number != 3 else "b", number)
        await trio.sleep(0.5)
        assert [len(delivery.messages) for _, delivery in node.outlet.attempts] == [3, 3]
        await trio.sleep(3)
        bodies = [(delivery.stream, len(delivery.messages)) for _, delivery in node.outlet.attempts]
        assert sorted(bodies) == [("a", 3), ("a", 3), ("b", 1)]
        ends = [id.rpartition("_")[2] for id in node.outlet.ids("s")]
        assert sorted(ends) == ["1-3", "4", "5-7"]


async def test_batches_are_cut_to_what_can_be_delivered_at_once(autojump_clock: MockClock) -> None:
    """The outlet says how many fit before the bounds are fixed; the rest is a batch of its own, in order, and a crash in
    the first attempt keeps the cut."""
    log, outlet = MemoryLog(), FakeOutlet()
    outlet.fits["s"] = 3
    outlet.answer("s", OK, after_s=100.0)
    async with killed(log, outlet) as node:
        await node.add(batch_size=10, batch_wait="1s", ordering="stream")
        for number in range(8):
            log.add("a", number)
        await trio.sleep(5)
        assert [id.rpartition("_")[2] for id in outlet.ids("s")] == ["1-3"]
        assert node.delivery.metrics.registry.get_sample_value(
            "overlayd_limit_hits_total", {"limit": "webhook_body_bytes"}
        )  # fmt: skip
    outlet.fits["s"] = 10
    outlet.answer("s", OK)
    async with running(log, outlet) as node:
        await trio.sleep(60)
        assert [id.rpartition("_")[2] for id in outlet.ids("s")] == ["1-3", "1-3", "4-8"]
        assert node.delivered() == [str(number) for number in range(8)]


async def test_large_packets_are_not_read_together(autojump_clock: MockClock) -> None:
    """Payload beyond a body's bound is never gathered for one delivery, whatever `batch_size` says."""
    async with running(limits=Limits(webhook_body_bytes=Size(1000))) as node:
        await node.add(batch_size=100, batch_wait="1s")
        for number in range(5):
            node.log.add("a", str(number) * 400)
        await trio.sleep(5)
        assert [id.rpartition("_")[2] for id in node.outlet.ids("s")] == ["1-2", "3-4", "5"]


async def test_what_can_never_be_sent_is_a_dead_letter_at_once(autojump_clock: MockClock) -> None:
    """It isn't tried again, says nothing against the endpoint, and holds nobody up."""
    async with running() as node:
        node.outlet.answer("s", OK, AttemptResult("undeliverable", "body.too_long: 9 bytes, 8 are the most"), OK)
        one = await node.add(ordering="stream")
        for number in range(3):
            node.log.add("a", number)
        await trio.sleep(1)
        assert node.delivered() == ["0", "2"]
        assert len(node.outlet.attempts) == 3
        (letter,) = await node.parts.letters.read(one, 0, 10)
        assert (letter.body.reason, letter.body.attempts) == ("body.too_long: 9 bytes, 8 are the most", 1)
        assert (one.rest.failing_us, one.rest.state, one.ledger.is_empty) == (0, "active", True)


async def test_bounds_of_a_batch_outlive_a_kill(autojump_clock: MockClock) -> None:
    """A batch that was attempted once is the same batch after a restart, although more has come meanwhile."""
    log, outlet = MemoryLog(), FakeOutlet()
    outlet.answer("s", FAILED)
    async with killed(log, outlet) as node:
        await node.add(batch_size=10, batch_wait="1s")
        for number in range(4):
            log.add("a", number)
        await trio.sleep(2)
        assert outlet.ids("s")[0].endswith("_1-4")
    for number in range(4, 9):
        log.add("a", number)
    outlet.answer("s", OK)
    async with running(log, outlet):
        await trio.sleep(30)
    assert sorted(id.rpartition("_")[2] for id in set(outlet.ids("s"))) == ["1-4", "5-9"]


async def test_batch_killed_in_its_first_attempt_keeps_its_bounds(autojump_clock: MockClock) -> None:
    """The bounds are durable before the first attempt begins."""
    log, outlet = MemoryLog(), FakeOutlet()
    outlet.answer("s", OK, after_s=100.0)
    async with killed(log, outlet) as node:
        await node.add(batch_size=10)
        log.add("a", 0)
        await trio.sleep(1)
        assert len(outlet.attempts) == 1
    log.add("a", 1)
    outlet.answer("s", OK)
    async with running(log, outlet):
        await trio.sleep(30)
    assert sorted(id.rpartition("_")[2] for id in set(outlet.ids("s"))) == ["1", "2"]


async def test_pause_and_resume(autojump_clock: MockClock) -> None:
    """A paused subscription gets nothing and loses nothing."""
    async with running() as node:
        one = await node.add()
        await node.book.set_state(one, "paused")
        for number in range(5):
            node.log.add("a", number)
        await trio.sleep(5)
        assert node.outlet.attempts == []
        await node.book.set_state(one, "active")
        await trio.sleep(1)
        assert sorted(node.delivered()) == list("01234")


async def test_delete_leaves_nothing(autojump_clock: MockClock) -> None:
    """A deleted subscription gets nothing more, also in the middle of an attempt, and no row stays."""
    async with running() as node:
        node.outlet.answer("s", FAILED, after_s=0.5)
        one = await node.add(concurrency=3)
        for number in range(50):
            node.log.add("a", number)
        await trio.sleep(10)
        await node.book.delete(one)
        count = len(node.outlet.attempts)
        await trio.sleep(600)
        assert len(node.outlet.attempts) == count
        for table in ("subscription", "subscription_state", "subscription_unit", "subscription_attempt"):
            assert node.count(f"SELECT count(*) FROM {table}") == 0
        assert await node.add() is not one


async def test_full_disk_delays_settlements_and_loses_none(autojump_clock: MockClock) -> None:
    """While nothing can be written, nothing more than a window is sent; then it goes on without a repetition."""
    async with running() as node:
        await node.add(concurrency=4)
        await trio.sleep(1)
        node.log.trouble += [StorageFull("full")] * 20
        for number in range(40):
            node.log.add("a", number)
        await trio.sleep(5)
        assert len(node.outlet.attempts) <= 4
        await trio.sleep(60)
        assert len(node.outlet.attempts) == 40
        assert sorted(map(int, node.delivered())) == list(range(40))


async def test_owner_without_the_right_gets_nothing_of_a_stream(autojump_clock: MockClock) -> None:
    """Whether the owner may read is asked when a packet is delivered, not when the subscription is made."""
    async with running() as node:
        one = await node.add(streams=["*"])
        node.log.add("a", 1)
        await trio.sleep(1)
        node.hidden.add("a")
        node.log.add("a", 2)
        node.log.add("b", 3)
        await trio.sleep(1)
        assert sorted(node.delivered()) == ["1", "3"]
        assert one.ledger.is_empty


async def test_outlet_that_breaks_down_counts_as_a_failed_attempt(autojump_clock: MockClock) -> None:
    """A fault of the node itself in one attempt ends neither the subscription nor the packet."""
    async with running() as node:
        left = [1, 1]

        async def break_down(delivery: Delivery[Message]) -> AttemptResult:
            await trio.lowlevel.checkpoint()
            if left:
                left.pop()
                raise RuntimeError("a bug")
            return OK

        node.outlet.answers["s"] = break_down
        one = await node.add()
        node.log.add("a", 1)
        await trio.sleep(1000)
        assert node.delivered() == ["1"]
        assert len(node.outlet.attempts) == 3
        assert one.rest.failed == 2


async def test_idle_subscriptions_cost_nothing_per_packet(autojump_clock: MockClock) -> None:
    """Subscriptions that a packet isn't for are neither looked at nor woken nor written."""
    async with running() as node:
        for number in range(2000):
            await node.add(f"s{number}", streams=[f"own-{number}"])
        await node.add("hit")
        await trio.sleep(20)
        writes, pages = node.log.writes, node.log.pages_read
        judged = _value(node, "overlayd_dispatch_judgements_total")
        for number in range(100):
            node.log.add("a", number)
        await trio.sleep(1)
        assert len(node.delivered("hit")) == 100
        assert _value(node, "overlayd_dispatch_judgements_total") - judged <= 100
        assert node.log.writes - writes <= 110
        assert node.log.pages_read - pages <= 20
        assert _value(node, "overlayd_delivery_workers") <= 1


async def test_idle_subscriptions_share_one_scan_after_a_restart(autojump_clock: MockClock) -> None:
    """A restart reads the log once for everybody who had caught up, from the stored position on."""
    log, outlet = MemoryLog(), FakeOutlet()
    async with running(log, outlet) as node:
        for number in range(300):
            await node.add(f"s{number}", streams=[f"own-{number}", "all"])
        for number in range(3000):
            log.add("nobody", number)
        await trio.sleep(20)
    for number in range(1000):
        log.add("nobody", number)
    log.add("own-7", 1)
    pages = log.pages_read
    async with running(log, outlet) as node:
        await trio.sleep(20)
        assert node.delivered("s7") == ["1"]
        assert log.pages_read - pages <= 1001 / 200 + 4


def _value(node: Node, name: str) -> float:
    return node.delivery.metrics.registry.get_sample_value(name) or 0.0
