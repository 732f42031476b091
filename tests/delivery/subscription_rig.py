"""Durable subscriptions over a log in memory, on a clock that jumps, with an outlet that does what a test says."""

import random
import sqlite3
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import msgspec
import trio
from delivery_fakes import START_US, FakeLog, make_delivery

from overlayd.access.principal import Principal
from overlayd.delivery.frames import Message
from overlayd.delivery.matching import PacketView
from overlayd.delivery.subscriptions.definition import parse_new, parse_patch
from overlayd.delivery.subscriptions.owners import Owners
from overlayd.delivery.subscriptions.parts import DurableSubscriptions
from overlayd.delivery.subscriptions.subscription import Reading, Subscription
from overlayd.delivery.subscriptions.tables import FEATURE
from overlayd.model.clock import Entropy
from overlayd.model.errors import SealBroken
from overlayd.model.outlet import AttemptResult, Delivery, Statements
from overlayd.model.usage import UsageSink
from overlayd.storage import Stream
from overlayd.storage.migrations import migrate

T = TypeVar("T")
OK = AttemptResult("delivered", status=200)
FAILED = AttemptResult("retry", "the endpoint answered 500", status=500)
Answer = Callable[[Delivery[Message]], Awaitable[AttemptResult]]


class MemoryLog(FakeLog):
    """A log in memory with a database for features' tables beside it. `writes` counts transactions; `trouble` is
    raised by the next ones."""

    def __init__(self, connection: sqlite3.Connection | None = None, **rest: Any) -> None:
        super().__init__(**rest)
        self.connection = connection or sqlite3.connect(":memory:", isolation_level=None)
        migrate(self.connection, (FEATURE,))
        self.writes = 0
        self.trouble: list[Exception] = []
        self.write_s = 0.0

    async def write(self, job: Callable[[sqlite3.Connection], T]) -> T:
        if self.trouble:
            await trio.lowlevel.checkpoint()
            raise self.trouble.pop(0)
        await trio.sleep(self.write_s)
        self.writes += 1
        self.connection.execute("BEGIN")
        try:
            result = job(self.connection)
        except BaseException:
            self.connection.execute("ROLLBACK")
            raise
        self.connection.execute("COMMIT")
        return result

    async def read(self, function: Callable[[sqlite3.Connection], T]) -> T:
        await trio.lowlevel.checkpoint()
        return function(self.connection)


class MovingClock:
    """Wall time that goes with trio's, and jumps when a test says so."""

    def __init__(self) -> None:
        self.jump_us = 0

    def now_us(self) -> int:
        return START_US + 86_400_000_000 + round(trio.current_time() * 1e6) + self.jump_us


class FakeOutlet:
    """Notes every attempt; answers as told, by subscription's name."""

    def __init__(self) -> None:
        self.attempts: list[tuple[float, Delivery[Message]]] = []
        self.taken: dict[str, list[str]] = defaultdict(list)
        self.payloads: dict[str, list[str]] = defaultdict(list)
        self.answers: dict[str, Answer] = {}
        self.fits: dict[str, int] = {}
        self.flying: dict[str, int] = defaultdict(int)
        self.flying_max: dict[str, int] = defaultdict(int)
        self.flying_in_all_max = 0

    def answer(self, name: str, *results: AttemptResult, after_s: float = 0.0) -> None:
        """These results one after the other, the last one for ever."""
        left = list(results)

        async def give(delivery: Delivery[Message]) -> AttemptResult:
            await trio.sleep(after_s)
            return left.pop(0) if len(left) > 1 else left[0]

        self.answers[name] = give

    async def attempt(self, delivery: Delivery[Message]) -> AttemptResult:
        name = delivery.definition.name
        self.attempts.append((trio.current_time(), delivery))
        self.flying[name] += 1
        self.flying_max[name] = max(self.flying_max[name], self.flying[name])
        self.flying_in_all_max = max(self.flying_in_all_max, sum(self.flying.values()))
        try:
            give = self.answers.get(name)
            if give is None:
                await trio.lowlevel.checkpoint()
                result = OK
            else:
                result = await give(delivery)
        finally:
            self.flying[name] -= 1
        if result.outcome == "delivered":
            self.taken[name].append(delivery.delivery_id)
            self.payloads[name] += [
                message.subject.entry.body.decode()
                for message in delivery.messages
                if isinstance(message.subject, PacketView)
            ]
        return result

    async def fit(self, delivery: Delivery[Message]) -> int:
        """As many as a test says."""
        await trio.lowlevel.checkpoint()
        return min(len(delivery.messages), self.fits.get(delivery.definition.name, len(delivery.messages)))

    def times(self, name: str) -> list[float]:
        return [at for at, delivery in self.attempts if delivery.definition.name == name]

    def ids(self, name: str) -> list[str]:
        return [delivery.delivery_id for _, delivery in self.attempts if delivery.definition.name == name]


class HidingOwners(Owners):
    """Lets everybody use everything; hides the streams that a test names."""

    def __init__(self, hidden: set[str]) -> None:
        self._hidden = hidden

    def may_read(self, reading: Reading, stream: Stream) -> bool:
        return stream.name not in self._hidden

    def may_use(self, principal: Principal, subscription: Subscription) -> bool:
        return True


class NoHeaders:
    """Keeps no values of headers."""

    def seal(self, subscription_id: str, headers: Mapping[str, str]) -> Statements:
        return lambda connection: None

    async def open_all(self) -> dict[str, dict[str, str] | SealBroken]:
        await trio.lowlevel.checkpoint()
        return {}


class Node:
    """A log, an outlet, and the durable subscriptions between them."""

    def __init__(self, log: MemoryLog, outlet: FakeOutlet, **options: Any) -> None:
        self.log = log
        self.outlet = outlet
        self.clock = options.pop("clock", None) or MovingClock()
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.hidden: set[str] = set()
        self.usage: UsageSink | None = options.pop("usage", None)
        self.delivery = make_delivery(log, **options)
        self.delivery.clock = self.clock
        self.parts = DurableSubscriptions(
            self.delivery, entropy=Entropy(), lease_filter=self.delivery._lease_filter, outlets={"webhook": outlet},
            secrets={}, headers=NoHeaders(), check_webhook=lambda rule: [], owners=HidingOwners(self.hidden),
            announce=self._announce, chance=random.Random(7), usage=lambda: self.usage,
        )  # fmt: skip
        self.book = self.parts.book
        self.engine = self.parts.engine

    async def _announce(self, type: str, data: dict[str, Any]) -> None:
        self.events.append((type, data))

    async def add(self, name: str = "s", kind: str = "webhook", **members: Any) -> Subscription:
        """A new subscription; keywords that belong to its table go there."""
        body: dict[str, Any] = {"name": name, "kind": kind, "streams": members.pop("streams", ["a"])}
        for member in ("topics", "types", "keys", "filter", "deliver", "min_confirmations", "from"):
            key = "from_" if member == "from" else member
            if key in members:
                body[member] = members.pop(key)
        if kind == "webhook":
            body["webhook"] = {"url": "http://sink/", **members}
        elif members:
            body[kind] = members
        asked = parse_new(msgspec.json.encode(body), self.delivery.parse_message, lambda rule: [])
        return (await self.book.create(asked, Reading("tester"))).subscription

    def delivered(self, name: str = "s") -> list[str]:
        """The payloads that arrived, in order."""
        return self.outlet.payloads[name]

    def count(self, sql: str) -> int:
        """A number out of the database."""
        (number,) = self.log.connection.execute(sql).fetchone()
        return int(number)


async def patch(node: Node, one: Subscription, **members: object) -> None:
    """As PATCH does."""
    raw = msgspec.json.encode(members)
    await node.book.patch(one, parse_patch(raw, one.definition, node.book.parse_query, node.book.check_webhook))


@asynccontextmanager
async def running(
    log: MemoryLog | None = None, outlet: FakeOutlet | None = None, **options: Any
) -> AsyncIterator[Node]:
    """A node that runs for the length of the block, then drains."""
    node = Node(log or MemoryLog(), outlet or FakeOutlet(), **options)
    async with trio.open_nursery() as nursery:
        await nursery.start(node.parts.run)
        yield node
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def killed(log: MemoryLog, outlet: FakeOutlet, **options: Any) -> AsyncIterator[Node]:
    """A node that is killed at the end of the block: nothing is drained, what isn't written is lost."""
    node = Node(log, outlet, **options)
    async with trio.open_nursery() as nursery:
        await nursery.start(node.parts.run)
        yield node
        node.parts._is_working = False
        nursery.cancel_scope.cancel()
