"""Pull subscriptions: workers that share, leases that end, fences that hold, also over restarts."""

import msgspec
import pytest
import trio
from subscription_rig import FakeOutlet, MemoryLog, Node, killed, running
from trio.testing import MockClock

from overlayd.delivery.matching import PacketView
from overlayd.delivery.subscriptions.leases import Lease
from overlayd.delivery.subscriptions.pull import Desk, Fetched
from overlayd.model.errors import StorageFull, SubscriptionConflict, Unauthorized
from overlayd.model.limits import Limits


def bodies(fetched: Fetched) -> list[str]:
    """The payloads, in order."""
    return [
        leased.message.subject.entry.body.decode()
        for leased in fetched.messages
        if isinstance(leased.message.subject, PacketView)
    ]


def tokens(fetched: Fetched) -> list[str]:
    """The leases, in order."""
    return [leased.lease for leased in fetched.messages]


async def pull_node(node: Node, **members: object) -> Desk:
    """A pull subscription's desk."""
    return node.engine.desk(await node.add("p", "pull", **members))


async def test_fetch_and_ack(autojump_clock: MockClock) -> None:
    """What is acknowledged is settled; the floor moves, no row stays."""
    async with running() as node:
        desk = await pull_node(node)
        for number in range(5):
            node.log.add("a", number)
        fetched = await desk.fetch(3, 0)
        assert bodies(fetched) == ["0", "1", "2"]
        assert [leased.deliveries for leased in fetched.messages] == [1, 1, 1]
        assert fetched.cursor.offset == 0
        assert node.count("SELECT count(*) FROM subscription_unit WHERE state = 'leased'") == 3
        assert await desk.ack(tokens(fetched)) == ["ok"] * 3
        rest = await desk.fetch(100, 0)
        assert bodies(rest) == ["3", "4"]
        assert rest.cursor.offset == 3
        await desk.ack(tokens(rest))
        assert node.count("SELECT count(*) FROM subscription_unit") == 0
        assert bodies(await desk.fetch(1, 0)) == []


async def test_fetch_waits_for_a_first_message(autojump_clock: MockClock) -> None:
    """`wait` holds until something comes, or its time is over."""
    async with running() as node:
        desk = await pull_node(node)
        started = trio.current_time()
        assert bodies(await desk.fetch(1, 20)) == []
        assert trio.current_time() - started == pytest.approx(20, abs=0.1)

        async def publish() -> None:
            await trio.sleep(5)
            node.log.add("b", 0)
            node.log.add("a", 1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish)
            started = trio.current_time()
            assert bodies(await desk.fetch(10, 30)) == ["1"]
            assert trio.current_time() - started == pytest.approx(5, abs=0.1)


async def test_who_may_no_longer_fetch_gets_nothing_after_a_wait(autojump_clock: MockClock) -> None:
    """A credential that ended while it waited; what came goes to the next one, as if it had never been asked for."""
    async with running() as node:
        desk = await pull_node(node)
        ended: list[bool] = []

        def check() -> None:
            if ended:
                raise Unauthorized("it was revoked")

        async def revoke() -> None:
            await trio.sleep(5)
            ended.append(True)
            node.log.add("a", 1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(revoke)
            with pytest.raises(Unauthorized):
                await desk.fetch(10, 30, check)
        fetched = await desk.fetch(10, 0)
        assert bodies(fetched) == ["1"]
        assert [leased.deliveries for leased in fetched.messages] == [1]


async def test_lease_that_ran_out(autojump_clock: MockClock) -> None:
    """After its time a lease counts no more, and the message goes to the next worker."""
    async with running() as node:
        desk = await pull_node(node, lease="10s")
        node.log.add("a", 1)
        first = await desk.fetch(1, 0)
        assert bodies(await desk.fetch(1, 5)) == []
        second = await desk.fetch(1, 30)
        assert second.messages[0].deliveries == 2
        assert await desk.ack(tokens(first)) == ["expired"]
        assert await desk.ack(tokens(second)) == ["ok"]
        assert await desk.ack(tokens(second)) == ["expired"]


async def test_extend_keeps_a_lease(autojump_clock: MockClock) -> None:
    """An extended lease lasts from then on."""
    async with running() as node:
        desk = await pull_node(node, lease="10s")
        node.log.add("a", 1)
        fetched = await desk.fetch(1, 0)
        for _ in range(5):
            await trio.sleep(8)
            verdicts, until_us = await desk.extend(tokens(fetched), None)
            assert verdicts == ["ok"]
            assert until_us == node.clock.now_us() + 10_000_000
        assert await desk.extend(tokens(fetched), 100.0) == (["ok"], node.clock.now_us() + 100_000_000)
        await trio.sleep(90)
        assert bodies(await desk.fetch(1, 0)) == []
        assert await desk.ack(tokens(fetched)) == ["ok"]


async def test_nack_with_delay(autojump_clock: MockClock) -> None:
    """A message that was given back comes again after the delay, not before."""
    async with running() as node:
        desk = await pull_node(node)
        node.log.add("a", 1)
        fetched = await desk.fetch(1, 0)
        assert await desk.nack(tokens(fetched), 30.0) == ["ok"]
        assert await desk.ack(tokens(fetched)) == ["expired"]
        started = trio.current_time()
        again = await desk.fetch(1, 50)
        assert trio.current_time() - started == pytest.approx(30, abs=0.5)
        assert again.messages[0].deliveries == 2


async def test_too_many_deliveries_make_a_dead_letter(autojump_clock: MockClock) -> None:
    """After `max_deliveries` leases without an acknowledgement the message is parked, and can be tried again."""
    async with running() as node:
        desk = await pull_node(node, lease="1s", max_deliveries=3)
        one = node.book.find("p")
        node.log.add("a", 1)
        node.log.add("a", 2)
        for _ in range(2):
            await desk.nack(tokens(await desk.fetch(1, 1)), 0)
        assert bodies(await desk.fetch(1, 1)) == ["1"]
        await trio.sleep(100)
        (letter,) = await node.parts.letters.read(one, 0, 10)
        assert "3 deliveries" in letter.body.reason
        assert "lease ran out" in letter.body.reason
        assert bodies(await desk.fetch(1, 0)) == ["2"]
        await node.parts.letters.redeliver(one, letter.id, letter.id)
        again = await desk.fetch(1, 0)
        assert bodies(again) == ["1"]
        assert again.messages[0].deliveries == 4
        assert await desk.ack(tokens(again)) == ["ok"]
        assert node.count("SELECT count(*) FROM subscription_dead") == one.dead_letters == 0


async def test_workers_share_and_never_get_the_same(autojump_clock: MockClock) -> None:
    """Several workers at once get each message once."""
    async with running() as node:
        desk = await pull_node(node)
        got: list[str] = []

        async def work() -> None:
            while True:
                fetched = await desk.fetch(7, 10)
                if not fetched.messages:
                    return
                got.extend(bodies(fetched))
                await trio.sleep(0.1)
                assert set(await desk.ack(tokens(fetched))) == {"ok"}

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(work)
            for number in range(400):
                node.log.add("a", number)
                if number % 50 == 0:
                    await trio.sleep(0.3)
        assert sorted(map(int, got)) == list(range(400))


async def test_leases_outlive_a_kill(autojump_clock: MockClock) -> None:
    """After a kill a lease still counts until its time is over; what was settled stays settled."""
    log, outlet = MemoryLog(), FakeOutlet()
    async with killed(log, outlet) as node:
        desk = await pull_node(node, lease="60s")
        for number in range(6):
            log.add("a", number)
        fetched = await desk.fetch(4, 0)
        await desk.ack(tokens(fetched)[1:2])
        clock = node.clock
    async with running(log, outlet, clock=clock) as node:
        desk = node.engine.desk(node.book.find("p"))
        assert bodies(await desk.fetch(10, 0)) == ["4", "5"]
        assert await desk.ack(tokens(fetched)) == ["ok", "expired", "ok", "ok"]
        await trio.sleep(120)
        assert bodies(await desk.fetch(10, 0)) == ["4", "5"]


async def test_lease_of_before_a_kill_ends(autojump_clock: MockClock) -> None:
    """A worker that died with the node blocks its message until the lease ends, no longer, however the clock jumps."""
    log, outlet = MemoryLog(), FakeOutlet()
    async with killed(log, outlet) as node:
        desk = await pull_node(node, lease="60s")
        log.add("a", 1)
        old = await desk.fetch(1, 0)
        clock = node.clock
    clock.jump_us -= 1 << 50
    async with running(log, outlet, clock=clock) as node:
        desk = node.engine.desk(node.book.find("p"))
        assert bodies(await desk.fetch(1, 0)) == []
        await trio.sleep(12.1 * 3600)
        again = await desk.fetch(1, 0)
        assert bodies(again) == ["1"]
        assert await desk.ack(tokens(old)) == ["expired"]
        assert await desk.ack(tokens(again)) == ["ok"]


async def test_order_by_stream(autojump_clock: MockClock) -> None:
    """With order, one message of a stream is out at a time."""
    async with running() as node:
        desk = await pull_node(node, ordering="stream", streams=["a", "b"])
        for number in range(6):
            node.log.add("ab"[number % 2], number)
        first = await desk.fetch(10, 0)
        assert bodies(first) == ["0", "1"]
        assert bodies(await desk.fetch(10, 0)) == []
        await desk.nack(tokens(first)[:1], 0)
        await desk.ack(tokens(first)[1:])
        assert sorted(bodies(await desk.fetch(10, 1))) == ["0", "3"]


async def test_seek_fences_leases(autojump_clock: MockClock) -> None:
    """Leases of before a seek don't count any more."""
    async with running() as node:
        desk = await pull_node(node)
        for number in range(3):
            node.log.add("a", number)
        old = await desk.fetch(3, 0)
        from overlayd.delivery.query import Beginning

        await node.book.seek(node.book.find("p"), Beginning())
        assert await desk.ack(tokens(old)) == ["expired"] * 3
        again = await desk.fetch(3, 0)
        assert bodies(again) == ["0", "1", "2"]
        assert [leased.deliveries for leased in again.messages] == [1, 1, 1]
        assert await desk.ack(tokens(old)) == ["expired"] * 3
        assert await desk.ack(tokens(again)) == ["ok"] * 3


async def test_gap_is_leased_like_a_message(autojump_clock: MockClock) -> None:
    """What was taken away comes as a gap; what is taken away while it is out becomes one."""
    async with running() as node:
        desk = await pull_node(node, lease="5s")
        for number in range(4):
            node.log.add("a", number)
        await desk.fetch(1, 0)
        node.log.remove("a", 1, 2, "erased")
        await trio.sleep(10)
        fetched = await desk.fetch(10, 0)
        kinds = [(leased.message.kind, leased.deliveries) for leased in fetched.messages]
        assert kinds.count(("packet", 1)) == 2
        assert ("gap", 2) in kinds
        assert ("gap", 1) in kinds
        assert ("erased", 1) in kinds
        assert set(await desk.ack(tokens(fetched))) == {"ok"}


async def test_foreign_leases_expire(autojump_clock: MockClock) -> None:
    """What was never given out is expired; one lease named twice counts once."""
    async with running() as node:
        desk = await pull_node(node)
        node.log.add("a", 1)
        fetched = await desk.fetch(1, 0)
        given = Lease.decode(tokens(fetched)[0])
        assert given is not None
        made_up = msgspec.structs.replace(given, delivery=2).encode()
        assert await desk.ack(["", "nonsense!", made_up, *tokens(fetched) * 2]) == [*["expired"] * 3, "ok", "expired"]


async def test_full_disk_is_told(autojump_clock: MockClock) -> None:
    """An acknowledgement that can't be written is refused in words; it counts once there is room again."""
    async with running() as node:
        desk = await pull_node(node)
        node.log.add("a", 1)
        fetched = await desk.fetch(1, 0)
        node.log.trouble.append(StorageFull("full"))
        with pytest.raises(StorageFull):
            await desk.ack(tokens(fetched))
        await trio.sleep(5)
        assert node.count("SELECT count(*) FROM subscription_unit") == 0
        assert bodies(await desk.fetch(1, 100)) == []


async def test_outstanding_is_bounded(autojump_clock: MockClock) -> None:
    """At `outstanding_max` nothing more is read: it waits in the log."""
    async with running(limits=Limits(outstanding_max=100)) as node:
        desk = await pull_node(node)
        for number in range(1000):
            node.log.add("a", number)
        taken = 0
        while fetched := (await desk.fetch(50, 0)).messages:
            taken += len(fetched)
        assert 100 <= taken <= 300
        one = node.book.find("p")
        assert one.ledger.outstanding == taken
        hits = node.delivery.metrics.registry.get_sample_value(
            "overlayd_limit_hits_total", {"limit": "outstanding_max"}
        )
        assert hits


async def test_paused_subscription_refuses_to_give(autojump_clock: MockClock) -> None:
    """While it is paused nothing is fetched, but what is out can be acknowledged."""
    async with running() as node:
        desk = await pull_node(node)
        node.log.add("a", 1)
        fetched = await desk.fetch(1, 0)
        await node.book.set_state(node.book.find("p"), "paused")
        with pytest.raises(SubscriptionConflict, match="paused"):
            await desk.fetch(1, 0)
        assert await desk.ack(tokens(fetched)) == ["ok"]


async def test_cancelled_fetch_gives_back(autojump_clock: MockClock) -> None:
    """A worker that hangs up while it waits takes nothing along."""
    async with running() as node:
        desk = await pull_node(node)
        with trio.move_on_after(5):
            await desk.fetch(1, 60)
        node.log.add("a", 1)
        assert bodies(await desk.fetch(1, 1)) == ["1"]
