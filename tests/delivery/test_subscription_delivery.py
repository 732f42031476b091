"""Webhook subscriptions over a log in memory: what is delivered, when, in which order, how often."""

import trio
from subscription_rig import FAILED, OK, FakeOutlet, MemoryLog, killed, running

from overlayd.model.outlet import AttemptResult


async def settle() -> None:
    """Until everybody waits."""
    await trio.testing.wait_all_tasks_blocked(0.001)


async def test_packets_are_delivered_under_their_ids(autojump_clock: trio.testing.MockClock) -> None:
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
