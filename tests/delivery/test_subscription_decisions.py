"""What is asked for about a subscription counts once it is durable: a disk that fills leaves memory and database the same."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
import trio
from subscription_rig import FAILED, FakeOutlet, MemoryLog, Node, patch, running
from trio.testing import MockClock

from overlayd.delivery.query import Beginning, Now
from overlayd.delivery.subscriptions import tables
from overlayd.delivery.subscriptions.subscription import Subscription
from overlayd.model.errors import ShuttingDown, StorageFull
from overlayd.model.limits import Limits
from overlayd.model.outlet import AttemptResult, Delivery
from overlayd.storage.own import OwnPacket, Rows

Act = Callable[[Node, Subscription], Awaitable[object]]
NEVER = {"schedule": ["20h"]}


class FillingLog(MemoryLog):
    """Its disk is full for the write with the number `full_at`, counted down, and for some more behind it. `told` is
    what the node appended to its own streams."""

    def __init__(self) -> None:
        super().__init__()
        self.full_at: int | None = None
        self.refused = 0
        self.told: list[OwnPacket] = []

    async def write(self, job: Callable[..., Any]) -> Any:
        if self.full_at is not None:
            self.full_at -= 1
            if self.full_at < 0:
                await trio.lowlevel.checkpoint()
                self.refused += 1
                raise StorageFull("full")
        return await super().write(job)

    async def append_own(self, packets: Sequence[OwnPacket], *, along: Rows) -> None:
        await self.write(along)
        self.told += packets


def looks(node: Node) -> list[Any]:
    """Everything about the subscriptions that must be the same in memory and behind a restart."""
    found: list[Any] = []
    for one in node.book.all():
        rows = {row.key: row for row, _ in one.ledger.export()}
        found.append(
            (
                one.id, one.definition, one.owner, one.reading, one.rest, one.floor(node.engine.dispatcher.position),
                rows, sorted(one.dead_queued), one.dead_letters,
            )
        )  # fmt: skip
    return found


async def after_restart(node: Node) -> list[Any]:
    """What another node would find that begins with what is written now."""
    other = Node(node.log, FakeOutlet(), clock=node.clock)
    await other.book.load()
    other.engine.dispatcher.reached = node.engine.dispatcher.reached
    return looks(other)


async def make(node: Node) -> Subscription:
    """One that stands still in the middle of everything: two dead letters, one of them being tried again, some packets
    wait for a retry, some were settled out of order, others are outstanding."""

    async def give(delivery: Delivery[Any]) -> AttemptResult:
        await trio.lowlevel.checkpoint()
        offset = int(delivery.delivery_id.rpartition("_")[2])
        if offset <= 3:
            return AttemptResult("undeliverable", "no") if delivery.attempt == 1 else FAILED
        return FAILED if offset in (5, 6, 9) else AttemptResult("delivered", status=200)

    node.outlet.answers["s"] = give
    one = await node.add(retry=NEVER, types=["t", "u"])
    for number in range(20):
        node.log.add("a", number, type="t")
    await trio.sleep(5)
    await node.parts.letters.redeliver(one, 2, 2)
    await trio.sleep(2)
    assert (one.dead_letters, len(one.dead_queued)) == (3, 1)
    assert one.ledger.unsettled == 3
    return one


def tell(one: Subscription) -> OwnPacket:
    """A word about it."""
    return OwnPacket("overlayd.audit", None, "x", b"{}")  # type: ignore[arg-type]


async def pause(node: Node, one: Subscription) -> None:
    """Nothing more begins."""
    await node.book.set_state(one, "paused", tell=tell)


async def resume(node: Node, one: Subscription) -> None:
    """Begins again."""
    await node.book.set_state(one, "active", tell=tell)


async def seek_back(node: Node, one: Subscription) -> None:
    """Everything once more."""
    await node.book.seek(one, Beginning(), tell=tell)


async def seek_on(node: Node, one: Subscription) -> None:
    """Passes over what is outstanding."""
    await node.book.seek(one, Now(), tell=tell)


async def change(node: Node, one: Subscription) -> None:
    """Another selection, another order."""
    await patch(node, one, types=["t"], webhook={"ordering": "stream"})


async def change_filter(node: Node, one: Subscription) -> None:
    """A filter, which takes a place."""
    await patch(node, one, filter="data >= 0")


async def redeliver(node: Node, one: Subscription) -> None:
    """All dead letters again."""
    await node.parts.letters.redeliver(one, 1, 1 << 60)


async def throw_away(node: Node, one: Subscription) -> None:
    """All but the one that is being tried again."""
    await node.parts.letters.delete(one, 1, 1 << 60, tell=lambda count: tell(one))


async def delete(node: Node, one: Subscription) -> None:
    """Nothing is left of it."""
    await node.book.delete(one, tell=tell)


ACTS: list[Act] = [pause, resume, seek_back, seek_on, change, change_filter, redeliver, throw_away, delete]


@pytest.mark.parametrize("act", ACTS)
async def test_a_disk_that_fills_at_any_write(act: Act, autojump_clock: MockClock) -> None:
    """Refused at whichever of its writes, nothing has happened, in memory or behind a restart, and nothing was told of
    it; asked for again with room on the disk it happens."""
    for full_at in range(10):
        log = FillingLog()
        async with running(log, limits=Limits(filters_per_principal=2)) as node:
            one = await make(node)
            if act is resume:
                await pause(node, one)
                log.told.clear()
            assert await after_restart(node) == looks(node)
            before, count = looks(node), len(node.outlet.attempts)
            log.full_at = full_at
            try:
                await act(node, one)
            except StorageFull:
                assert log.refused == 1
                assert looks(node) == await after_restart(node)
                log.full_at = None
                await trio.sleep(2)
                assert looks(node) == await after_restart(node) == before
                assert not log.told
                assert len(node.outlet.attempts) == count
                await act(node, one)
            was_refused, log.full_at = log.refused > 0, None
            assert looks(node) == await after_restart(node)
            assert looks(node) != before
            assert log.told or act in (change, change_filter, redeliver)
        if not was_refused:
            assert full_at > 0
            return
    raise AssertionError("it never got through")


async def test_a_disk_that_fills_in_the_middle_of_a_deletion(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many dead letters go in several transactions. What was taken stays taken, in memory and behind a restart, the one
    that was being tried again too; the rest goes on, and can be deleted again."""
    monkeypatch.setattr(tables, "ROWS_PER_DELETE", 2)
    log = FillingLog()
    async with running(log) as node:
        one = await make(node)
        log.full_at = 2  # the round before it, and two of the three letters
        with pytest.raises(StorageFull):
            await delete(node, one)
        log.full_at = None
        await trio.sleep(2)
        assert looks(node) == await after_restart(node)
        assert (one.dead_letters, list(one.dead_queued)) == (1, [])
        assert one.ledger.unsettled == 3
        await trio.sleep(80_000)
        assert looks(node) == await after_restart(node)
        assert one.dead_letters == 4
        await delete(node, one)
        assert looks(node) == await after_restart(node) == []
        assert node.count("SELECT count(*) FROM subscription_dead") == 0


@pytest.mark.parametrize("act", [pause, seek_on, change])
async def test_nobody_waits_for_a_node_that_stops(act: Act, autojump_clock: MockClock) -> None:
    """Asked for while the node stops, it is refused at once, and isn't found at the next start."""
    log = FillingLog()
    async with running(log) as node:
        one = await make(node)
        before = looks(node)
    started = trio.current_time()
    with pytest.raises(ShuttingDown):
        await act(node, one)
    assert trio.current_time() == started
    assert await after_restart(node) == before
