"""A model of leases: random workers fetch, acknowledge, give back, extend, fall asleep and die, and so does the node."""

from contextlib import AsyncExitStack
from typing import Any

import msgspec
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from patient_clock import patient_clock
from subscription_rig import FakeOutlet, MemoryLog, MovingClock, killed, patch

from overlayd.delivery.matching import PacketView
from overlayd.delivery.subscriptions.leases import Lease
from overlayd.delivery.subscriptions.pull import Desk

LEASE_S = 10.0
DELIVERIES_MAX = 4


class Held(msgspec.Struct):
    """What the model knows about a message. `token` and `due`: of the lease that counts; "" for none. `ready_at`: not
    given out before then."""

    token: str = ""
    due: float = 0.0
    deliveries: int = 0
    ready_at: float = 0.0
    fate: str = ""


class Model:
    """Workers, the node, and what must be true of them."""

    def __init__(self) -> None:
        self.log = MemoryLog()
        self.clock = MovingClock()
        self.messages: dict[str, Held] = {}
        self.tokens: list[tuple[str, str]] = []
        self.stack = AsyncExitStack()
        self.desk: Desk | None = None

    async def start(self) -> None:
        node = await self.stack.enter_async_context(killed(self.log, FakeOutlet(), clock=self.clock))
        if not len(node.book):
            await node.add("p", "pull", lease=f"{LEASE_S}s", max_deliveries=DELIVERIES_MAX)
        self.node = node
        self.desk = node.engine.desk(node.book.find("p"))

    async def kill(self) -> None:
        await self.stack.aclose()
        self.stack = AsyncExitStack()
        await self.start()

    async def publish(self) -> None:
        self.messages[str(len(self.messages))] = Held()
        self.log.add("a", len(self.messages) - 1)

    async def change(self) -> None:
        """Another definition that selects the same: leases stay with who has them."""
        one = self.node.book.find("p")
        await patch(self.node, one, streams=["a"] if len(one.definition.streams) > 1 else ["a", "b"])

    async def wait(self, seconds: float) -> None:
        await trio.sleep(seconds)

    async def fetch(self, count: int) -> None:
        assert self.desk is not None
        await self.expire()
        fetched = await self.desk.fetch(count, 0)
        now = trio.current_time()
        able = [name for name, held in self.messages.items() if self.is_free(held, now)]
        assert len(fetched.messages) == min(count, len(able))
        for leased in fetched.messages:
            assert isinstance(leased.message.subject, PacketView)
            name = leased.message.subject.entry.body.decode()
            held = self.messages[name]
            assert name in able
            assert leased.deliveries == held.deliveries + 1
            held.deliveries += 1
            held.token, held.due = leased.lease, now + LEASE_S
            self.tokens.append((name, leased.lease))

    async def ack(self, index: int) -> None:
        await self.use(index, "ack", 0)

    async def nack(self, index: int, delay: int) -> None:
        await self.use(index, "nack", delay)

    async def extend(self, index: int, duration: int) -> None:
        await self.use(index, "extend", duration)

    async def use(self, index: int, verb: str, number: int) -> None:
        if not self.tokens:
            return
        assert self.desk is not None
        await self.expire()
        name, token = self.tokens[index % len(self.tokens)]
        held, now = self.messages[name], trio.current_time()
        expected = "ok" if held.token == token else "expired"
        if verb == "ack":
            assert await self.desk.ack([token]) == [expected]
        elif verb == "nack":
            assert await self.desk.nack([token], float(number)) == [expected]
        else:
            assert (await self.desk.extend([token], float(number) + 1))[0] == [expected]
        if expected == "expired":
            return
        if verb == "extend":
            held.due = now + number + 1
            return
        held.token = ""
        if verb == "ack":
            assert held.fate == ""
            held.fate = "settled"
        else:
            self.give_up(held, now + number)

    async def expire(self) -> None:
        """What time has done meanwhile."""
        now = trio.current_time()
        for held in self.messages.values():
            if held.token and held.due <= now:
                held.token = ""
                self.give_up(held, now)

    def give_up(self, held: Held, ready_at: float) -> None:
        held.ready_at = ready_at
        if held.deliveries >= DELIVERIES_MAX:
            held.fate = "dead"

    def is_free(self, held: Held, now: float) -> bool:
        return not held.token and not held.fate and held.ready_at <= now

    async def finish(self) -> None:
        """In the end nothing is lost: everything is settled or a dead letter, once, and no row is left."""
        assert self.desk is not None
        for _ in range(DELIVERIES_MAX + 1):
            await trio.sleep(200)
            await self.expire()
            fetched = await self.desk.fetch(1000, 0)
            for leased in fetched.messages:
                assert isinstance(leased.message.subject, PacketView)
                held = self.messages[leased.message.subject.entry.body.decode()]
                assert held.fate == ""
                held.fate = "settled"
            await self.desk.ack([leased.lease for leased in fetched.messages])
        one = self.node.book.find("p")
        fates = [held.fate for held in self.messages.values()]
        assert "" not in fates
        assert one.rest.delivered == fates.count("settled")
        assert one.dead_letters == fates.count("dead")
        assert one.ledger.is_empty
        await trio.sleep(10)
        assert self.node.count("SELECT count(*) FROM subscription_unit") == 0
        assert self.node.count("SELECT count(*) FROM subscription_dead") == fates.count("dead")


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("publish")),
        st.tuples(st.just("publish")),
        st.tuples(st.just("fetch"), st.integers(1, 3)),
        st.tuples(st.just("fetch"), st.integers(1, 3)),
        st.tuples(st.just("ack"), st.integers(0, 30)),
        st.tuples(st.just("nack"), st.integers(0, 30), st.integers(0, 20)),
        st.tuples(st.just("extend"), st.integers(0, 30), st.integers(0, 30)),
        st.tuples(st.just("wait"), st.sampled_from([0.5, 3.0, 9.9, 11.0])),
        st.tuples(st.just("change")),
        st.tuples(st.just("kill")),
    ),
    max_size=40,
)


@given(steps=STEPS)
@settings(max_examples=60, deadline=None)
def test_leases(steps: list[tuple[Any, ...]]) -> None:
    """No message is lost, none is settled twice, and only the newest lease that hasn't run out can settle one."""

    async def main() -> None:
        model = Model()
        await model.start()
        try:
            for name, *arguments in steps:
                await getattr(model, name)(*arguments)
            await model.finish()
        finally:
            await model.stack.aclose()

    with patient_clock(0) as clock:
        trio.run(main, clock=clock)


@given(
    scope=st.integers(0, 2**32 - 1), generation=st.integers(0, 2**32 - 1), offset=st.integers(0, 2**63 - 1), index=st.integers(-(2**62), 2**62),
    part=st.integers(0, 2**16 - 1), delivery=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_tokens_round_trip(scope: int, generation: int, offset: int, index: int, part: int, delivery: int) -> None:
    """A lease is read back as it was written."""
    lease = Lease(scope, generation, (offset, index, part), delivery)
    assert Lease.decode(lease.encode()) == lease


@given(text=st.text(max_size=60))
def test_tokens_of_others(text: str) -> None:
    """Any text is a lease or none; nothing is raised."""
    found = Lease.decode(text)
    assert found is None or found.encode().rstrip("=") == text.rstrip("=")
