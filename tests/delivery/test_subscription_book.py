"""Making, changing and moving subscriptions; what a restart finds; who may not stand in whose way."""

import sqlite3
from collections.abc import Callable
from typing import TypeVar

import msgspec
import pytest
import trio
from subscription_rig import FAILED, OK, FakeOutlet, MemoryLog, killed, patch, running
from trio.testing import MockClock

from overlayd.delivery.frames import Message
from overlayd.delivery.query import At, Beginning, Now
from overlayd.delivery.subscriptions import tables
from overlayd.delivery.subscriptions.definition import parse_new
from overlayd.delivery.subscriptions.subscription import Reading
from overlayd.model.cursor import Cursor
from overlayd.model.errors import (
    FutureCursor,
    InvalidFilter,
    InvalidSubscription,
    LimitReached,
    OwnedByConfig,
    SubscriptionConflict,
    UnknownSubscription,
)
from overlayd.model.limits import Limits
from overlayd.model.outlet import AttemptResult, Delivery
from overlayd.model.subscription import decode_subscription

T = TypeVar("T")


async def test_a_change_whose_caller_leaves_is_whole(autojump_clock: MockClock) -> None:
    """Once the log has it, it counts: what is written and what is served stay the same."""
    async with running() as node:
        one = await node.add()
        write = node.log.write

        with trio.CancelScope() as scope:

            async def write_and_be_left(job: Callable[[sqlite3.Connection], T]) -> T:
                given = await write(job)
                scope.cancel()
                await trio.lowlevel.checkpoint()
                return given

            node.log.write = write_and_be_left  # type: ignore[method-assign]
            await patch(node, one, types=["t"])
        node.log.write = write  # type: ignore[method-assign]
        assert scope.cancel_called
        (stored,) = (await node.log.read(tables.load)).subscriptions
        assert decode_subscription(stored.definition).types == one.definition.types == ("t",)
        node.log.add("a", 1, type="t")
        node.log.add("a", 2, type="u")
        await trio.sleep(2)
        assert len(node.outlet.taken["s"]) == 1


async def test_seek_back_delivers_again_under_the_same_ids(autojump_clock: MockClock) -> None:
    """A replay repeats deliveries, and receivers can tell that they are repeats."""
    async with running() as node:
        one = await node.add()
        for number in range(5):
            node.log.add("a", number)
        await trio.sleep(2)
        first = list(node.outlet.taken["s"])
        floor = await node.book.seek(one, Cursor(node.log.epoch, 2))
        assert floor.offset == 2
        await trio.sleep(2)
        assert sorted(node.outlet.taken["s"][5:]) == sorted(first)[2:]


async def test_seek_forward_passes_over(autojump_clock: MockClock) -> None:
    """What lies between isn't delivered; what was outstanding is forgotten, in the database too."""
    async with running() as node:
        node.outlet.answer("s", FAILED)
        one = await node.add()
        for number in range(20):
            node.log.add("a", number)
        await trio.sleep(1)
        assert node.count("SELECT count(*) FROM subscription_unit") >= 1
        await node.book.seek(one, Now())
        assert node.count("SELECT count(*) FROM subscription_unit") == 0
        count = len(node.outlet.attempts)
        node.outlet.answer("s", OK)
        node.log.add("a", 99)
        await trio.sleep(1000)
        assert node.delivered() == ["99"]
        assert len(node.outlet.attempts) == count + 1


async def test_seek_to_a_time_and_to_nonsense(autojump_clock: MockClock) -> None:
    """A time is a place; a cursor beyond the head is none, and changes nothing."""
    async with running() as node:
        one = await node.add()
        for number in range(5):
            node.log.add("a", number)
        await trio.sleep(1)
        await node.book.seek(one, At(node.log._entries[3].appended_us))
        await trio.sleep(1)
        assert sorted(node.delivered()[5:]) == ["3", "4"]
        with pytest.raises(FutureCursor):
            await node.book.seek(one, Cursor(node.log.epoch, 999))
        assert one.is_idle


async def test_seek_outlives_a_kill(autojump_clock: MockClock) -> None:
    """Where a seek went is where the next start goes on."""
    log, outlet = MemoryLog(), FakeOutlet()
    async with killed(log, outlet) as node:
        one = await node.add()
        for number in range(5):
            log.add("a", number)
        await trio.sleep(10)
        await node.book.set_state(one, "paused")
        await node.book.seek(one, Beginning())
    async with running(log, outlet) as node:
        await node.book.set_state(node.book.find("s"), "active")
        await trio.sleep(2)
        assert len(outlet.taken["s"]) == 10


async def test_patch_changes_what_is_delivered_and_loses_nothing(autojump_clock: MockClock) -> None:
    """A new definition holds from where the subscription stands; what waits for a retry goes on waiting."""
    async with running() as node:
        node.outlet.answer("s", FAILED, OK)
        one = await node.add(filter="data < 10")
        node.log.add("a", 1)
        await trio.sleep(1)
        await patch(node, one, filter="data >= 0", streams=["a", "b"], webhook={"ordering": "stream"})
        node.log.add("b", 20)
        await trio.sleep(1)
        assert node.delivered() == ["20"]
        await trio.sleep(10)
        assert node.delivered() == ["20", "1"]
        assert node.count("SELECT count(*) FROM subscription_unit") == 0
        assert node.outlet.attempts[-1][1].attempt == 2
        assert one.rules.ordering == "stream"


async def test_patch_refuses_what_stays(autojump_clock: MockClock) -> None:
    """Name, kind, place and secret aren't changed by a patch."""
    async with running() as node:
        one = await node.add()
        for members, pointer in (
            ({"name": "other"}, "/name"), ({"kind": "pull"}, "/kind"), ({"from": "now"}, "/from"),
            ({"webhook": {"secret": "x"}}, "/webhook/secret"), ({"webhook": {"concurrency": 0}}, "/webhook/concurrency"),
            ({"streams": ["NOT"]}, "/streams"), ({"no_such": 1}, "/no_such"),
        ):  # fmt: skip
            with pytest.raises(InvalidSubscription) as caught:
                await patch(node, one, **members)
            assert [flaw.pointer for flaw in caught.value.violations] == [pointer]


async def test_names_and_numbers_are_bounded(autojump_clock: MockClock) -> None:
    """A name is given once; more subscriptions than allowed are refused, with the limit's name."""
    async with running(limits=Limits(subscriptions_max=3, subscriptions_per_principal=2)) as node:
        await node.add("one")
        with pytest.raises(SubscriptionConflict, match="taken"):
            await node.add("one")
        await node.add("two")
        with pytest.raises(LimitReached) as caught:
            await node.add("three")
        assert caught.value.subject == "subscriptions_per_principal"
        raw = b'{"name":"three","kind":"live"}'
        asked = parse_new(raw, node.book.parse_query, node.book.check_webhook)
        await node.book.create(asked, Reading("other"))
        asked = parse_new(raw.replace(b"three", b"four"), node.book.parse_query, node.book.check_webhook)
        with pytest.raises(LimitReached) as caught:
            await node.book.create(asked, Reading("third"))
        assert caught.value.subject == "subscriptions_max"
        assert node.book.find(node.book.find("two").id) is node.book.find("two")
        with pytest.raises(UnknownSubscription):
            node.book.find("three-and-a-half")


async def test_filter_that_cannot_be_used(autojump_clock: MockClock) -> None:
    """A filter is judged before anything is stored, and gives its place back with the subscription."""
    async with running(limits=Limits(filters_per_principal=1)) as node:
        with pytest.raises(InvalidFilter):
            await node.add("bad", filter="data >")
        one = await node.add("one", filter="data > 1")
        with pytest.raises(LimitReached):
            await node.add("two", filter="data > 2")
        await node.book.delete(one)
        await node.add("two", filter="data > 2")
        assert [found.name for found in node.book.all()] == ["two"]


async def test_confirmations_that_never_come(autojump_clock: MockClock) -> None:
    """Asking a stream that commits nothing for confirmed packets is refused by name; in a pattern it is listed."""
    async with running() as node:
        node.log.define("a")
        with pytest.raises(InvalidSubscription, match="confirm"):
            await node.add(deliver="confirmed")
        raw = b'{"name":"s","kind":"pull","streams":["*"],"deliver":"confirmed"}'
        asked = parse_new(raw, node.book.parse_query, node.book.check_webhook)
        assert (await node.book.create(asked, Reading("tester"))).never == ["a"]


async def test_confirmed_packets_are_delivered_by_their_status(autojump_clock: MockClock) -> None:
    """`deliver: confirmed` gives a range's packets one by one, named by trigger and index, and their retraction."""
    log, outlet = MemoryLog(), FakeOutlet()
    log.define("a", commit="batch")
    async with killed(log, outlet) as node:
        one = await node.add(deliver="confirmed")
        for number in range(4):
            log.add("a", number)
        await trio.sleep(2)
        assert node.delivered() == []
        outlet.answer("s", OK, FAILED)
        log.add_status(1, 3, "confirmed", depth=1, txid="ab" * 32, height=7, block="cd" * 32)
        await trio.sleep(2)
        ends = [id.split("_", 3)[3] for id in outlet.ids("s")]
        assert sorted(set(ends)) == ["5_1", "5_2", "5_3"]
        assert one.ledger.floor.offset in (4, 5)
    outlet.answer("s", OK)
    async with running(log, outlet) as node:
        await trio.sleep(60)
        assert sorted(node.delivered()) == ["0", "1", "2"]
        assert {message.state.status for _, d in outlet.attempts for message in d.messages} == {"confirmed"}
        log.add_status(4, 4, "confirmed", depth=1, txid="ab" * 32, height=8, block="cd" * 32)
        log.add_status(2, 2, "pending", stream="a", depth=1)
        await trio.sleep(60)
        assert sorted(node.delivered()) == ["0", "1", "2", "3"]
        (status,) = [delivery for _, delivery in outlet.attempts if delivery.kind == "status"]
        assert status.delivery_id.endswith("_status")
        assert status.stream == "a"
        assert node.count("SELECT count(*) FROM subscription_unit") == 0


async def test_configuration_owns_what_it_declares(autojump_clock: MockClock) -> None:
    """What a file declares is made or brought in line, can't be changed otherwise, and is let go with its block."""
    async with running() as node:
        from overlayd.delivery.subscriptions.declaring import DeclaredSubscription, declare_subscriptions

        body = {"name": "c", "kind": "webhook", "streams": ["a"], "from": "beginning", "webhook": {"url": "http://x/"}}
        declared = [DeclaredSubscription("c", msgspec.json.encode(body), "overlayd.toml:7")]
        node.log.add("a", 0)
        await declare_subscriptions(node.book, declared)
        await trio.sleep(1)
        assert node.delivered("c") == ["0"]
        one = node.book.find("c")
        with pytest.raises(OwnedByConfig, match=r"overlayd\.toml:7"):
            await patch(node, one, streams=["b"])
        with pytest.raises(OwnedByConfig):
            await node.book.delete(one)
        await declare_subscriptions(node.book, declared)
        node.log.add("a", 1)
        await trio.sleep(1)
        assert node.delivered("c") == ["0", "1"]
        body["streams"] = ["b"]
        await declare_subscriptions(
            node.book, [DeclaredSubscription("c", msgspec.json.encode(body), "overlayd.toml:9")]
        )
        assert one.definition.streams == ("b",)
        assert one.owner == "overlayd.toml:9"
        await declare_subscriptions(node.book, [])
        await patch(node, one, streams=["a"])


async def test_restart_finds_everything_as_it_was(autojump_clock: MockClock) -> None:
    """Definitions, states, counts and places outlive a kill."""
    log, outlet = MemoryLog(), FakeOutlet()
    async with killed(log, outlet) as node:
        one = await node.add("one", filter="data > 1", rate_per_second=5)
        two = await node.add("two", "pull", lease="7s")
        await node.book.set_state(two, "paused")
        for number in range(6):
            log.add("a", number)
        await trio.sleep(10)
        before = [(s.id, s.definition, s.rest, s.reading, s.created_us) for s in (one, two)]
    async with running(log, outlet) as node:
        found = [node.book.find("one"), node.book.find("two")]
        assert [(s.id, s.definition, s.rest, s.reading, s.created_us) for s in found] == before
        assert found[0].is_idle
        await trio.sleep(10)
        assert len(outlet.attempts) == 4


@pytest.mark.parametrize("scale", [10, pytest.param(100, marks=pytest.mark.slow)])
async def test_bad_endpoints_move_nobody_else(autojump_clock: MockClock, scale: int) -> None:
    """Of 1,000 subscriptions (CI: 100) 30 % hang, 30 % fail and 1 % trickle: the others get each packet as fast as
    without them, counted in virtual time, and what is held in memory is what they owe."""
    hanging, failing, trickling, everybody = 3 * scale, 6 * scale, 6 * scale + scale // 10, 10 * scale

    async def measure(*, is_rough: bool) -> tuple[list[float], int]:
        slowest: list[float] = []
        async with running() as node:
            for number in range(everybody):
                name = f"s{number}"
                await node.add(name, concurrency=16)
                if is_rough and number < hanging:
                    node.outlet.answer(name, AttemptResult("retry", "timeout"), after_s=15.0)
                elif is_rough and number < failing:
                    node.outlet.answer(name, FAILED, after_s=0.01)
                elif is_rough and number < trickling:
                    node.outlet.answer(name, OK, after_s=14.0)
                else:
                    node.outlet.answer(name, OK, after_s=0.02)
            for _ in range(8):
                started, seen = trio.current_time(), len(node.outlet.attempts)
                node.log.add("a", 1)
                await trio.sleep(0.5)
                last = [at for at, one in node.outlet.attempts[seen:] if int(one.definition.name[1:]) >= trickling]
                assert len(last) == everybody - trickling
                slowest.append(max(last) - started)
            return slowest, sum(one.ledger.outstanding for one in node.book.all())

    calm, _ = await measure(is_rough=False)
    rough, held = await measure(is_rough=True)
    assert max(rough) <= 2 * max(max(calm), 0.005)
    assert held <= trickling * 8


async def test_a_caller_who_leaves_leaves_nothing_half_done(autojump_clock: MockClock) -> None:
    """Cancelled in the middle of creating or deleting, memory and database agree."""
    async with running() as node:
        node.log.write_s = 1.0
        with trio.move_on_after(0.5):
            await node.add("one")
        assert [one.name for one in node.book.all()] == ["one"]
        assert node.count("SELECT count(*) FROM subscription") == 1
        await trio.sleep(10)
        with trio.move_on_after(1.5):
            await node.book.delete(node.book.find("one"))
        assert len(node.book) == node.count("SELECT count(*) FROM subscription")


async def test_retention_is_told_what_is_still_needed(autojump_clock: MockClock) -> None:
    """The lowest floor of the active subscriptions that cover a stream; paused ones hold nothing."""
    async with running() as node:
        slow = await node.add("slow", "pull", streams=["a", "b"])
        for number in range(5):
            node.log.add("a", number)
        await node.add("quick", streams=["b"])
        await trio.sleep(1)
        assert (node.parts.needed_from("a"), node.parts.needed_from("c")) == (1, 6)
        await node.book.set_state(slow, "paused")
        assert (node.parts.needed_from("a"), node.parts.needed_from("b")) == (6, 6)


async def test_places_beyond_one_each_are_shared(autojump_clock: MockClock) -> None:
    """At `deliveries_in_flight` a subscription still has one place of its own."""
    async with running(limits=Limits(deliveries_in_flight=4)) as node:
        for name in ("x", "y"):
            node.outlet.answer(name, OK, after_s=1.0)
            await node.add(name, concurrency=50)
        for number in range(200):
            node.log.add("a", number)
        await trio.sleep(20)
        assert node.outlet.flying_in_all_max == 6
        assert min(node.outlet.flying_max.values()) >= 1
        hits = node.delivery.metrics.registry.get_sample_value(
            "overlayd_limit_hits_total", {"limit": "deliveries_in_flight"}
        )
        assert hits


async def test_outstanding_is_bounded_and_the_rest_waits_in_the_log(autojump_clock: MockClock) -> None:
    """With an endpoint that takes nothing the scan stops at `outstanding_max`, and the lag shows it."""
    async with running(limits=Limits(outstanding_max=300)) as node:

        async def refuse(delivery: Delivery[Message]) -> AttemptResult:
            await trio.lowlevel.checkpoint()
            return FAILED

        node.outlet.answers["s"] = refuse
        one = await node.add(retry={"schedule": ["1h", "1h"]}, concurrency=100)
        for number in range(2000):
            node.log.add("a", number)
        await trio.sleep(600)
        assert 300 <= one.ledger.outstanding <= 500
        assert node.log.head - one.ledger.floor.offset == 2000
        node.outlet.answers.clear()
        await trio.sleep(3 * 3600)
        assert sorted(map(int, node.delivered())) == list(range(2000))
