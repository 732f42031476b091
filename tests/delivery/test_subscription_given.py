"""Who was given a packet that is to be erased: asked before, so that everybody who had it is told, and nobody else."""

import trio
from subscription_rig import OK, FakeOutlet, MemoryLog, Node, killed, running
from test_subscription_losses import told
from trio.testing import MockClock

from overlayd.delivery.subscriptions.given import Given, joined


async def given(node: Node, low: int, high: int, stream: str = "a") -> dict[str, tuple[list[int], list[int]]]:
    """By name: what was given, and what wasn't wanted."""
    found = node.log.find_stream(stream)
    assert found is not None
    return {one.subscription.name: (one.offsets, one.unwanted) for one in await node.parts.given(found, low, high)}


async def test_what_was_given_is_told_by_name(autojump_clock: MockClock) -> None:
    """By stream, type and filter, and by where each stands: before its start, waiting, ahead and of other streams: no."""
    async with running() as node:
        node.log.add("a", 0)
        await node.add("plain")
        await node.add("typed", types=["x"])
        await node.add("filtered", filter="packet.type == 'x'")
        await node.add("other", streams=["b"])
        paused = await node.add("paused")
        await node.add("pull", "pull")
        await node.add("named", "live")
        await node.book.set_state(paused, "paused")
        node.log.add("a", 1, type="x")
        node.log.add("b", 2)
        node.log.add("a", 3, type="y")
        await trio.sleep(1)
        assert await given(node, 1, 4) == {
            "plain": ([2, 4], []), "typed": ([2], [4]), "filtered": ([2], [4]), "named": ([2, 4], []),
        }  # fmt: skip
        assert await given(node, 4, 9) == {
            "plain": ([4], []), "typed": ([], [4]), "filtered": ([], [4]), "named": ([4], [])
        }  # fmt: skip
        await node.engine.desk(node.book.find("pull")).fetch(1, 0)
        assert (await given(node, 1, 4))["pull"] == ([2], [])
        node.log.remove("a", 4, 4, "erased")
        assert (await given(node, 1, 4))["plain"] == ([2], [])


async def test_notices_reach_those_alone_who_had_it(autojump_clock: MockClock) -> None:
    """With the question before, a subscription that looks into packets hears nothing of those it never got, after a kill
    either; without it, it hears of all of them."""
    log, outlet = MemoryLog(), FakeOutlet()
    async with killed(log, outlet) as node:
        await node.add("typed", types=["x"], gaps=True)
        for number in range(6):
            log.add("a", number, type="xy"[number % 2])
        await trio.sleep(1)
        found = log.find_stream("a")
        assert found is not None
        (one,) = await node.parts.before_erasure(found, 1, 4)
        assert isinstance(one, Given)
        assert (one.offsets, one.unwanted, one.is_certain) == ([1, 3], [2, 4], True)
    log.remove("a", 1, 4, "erased")
    log.remove("a", 5, 6, "erased")
    async with running(log, outlet) as node:
        await trio.sleep(5)
        notices = sorted(words for words in told(node, "typed") if words.startswith("erased"))
        assert notices == ["erased a/1", "erased a/3", "erased a/5", "erased a/6"]


async def test_what_is_in_flight_may_have_arrived(autojump_clock: MockClock) -> None:
    """A packet that is erased while its first attempt is under way was given: the notice follows it."""
    async with running() as node:
        node.outlet.answer("s", OK, after_s=10.0)
        await node.add(gaps=True)
        node.log.add("a", 1)
        await trio.sleep(1)
        assert await given(node, 1, 1) == {"s": ([1], [])}
        node.log.remove("a", 1, 1, "erased")
        await trio.sleep(60)
        assert told(node) == ["packet 1", "erased a/1"]


async def test_what_was_given_before_it_was_sought_back(autojump_clock: MockClock) -> None:
    """It waits to be given again, but somebody had it."""
    async with running() as node:
        one = await node.add(gaps=True)
        for number in range(3):
            node.log.add("a", number)
        await trio.sleep(1)
        node.outlet.answer("s", OK, after_s=0.1)
        await node.book.set_state(one, "paused")
        await node.book.seek(one, one.ledger.floor.__class__(node.log.epoch, 0))
        assert await given(node, 1, 3) == {"s": ([1, 2, 3], [])}
        node.log.remove("a", 2, 2, "erased")
        node.log.add("a", 4)
        await node.book.set_state(one, "active")
        await trio.sleep(100)
        assert "erased a/2" in told(node)
        assert "gap 2-2 erased" in told(node)
        assert told(node).count("erased a/2") == 1


async def test_confirmed_packets_count_as_given_in_doubt(autojump_clock: MockClock) -> None:
    """Their turn came with a status that nobody asks for here; of a stream that confirms nothing none was given."""
    async with running() as node:
        await node.add("sure", deliver="confirmed", streams=["*"])
        node.log.add("a", 1)
        await trio.sleep(1)
        assert await given(node, 1, 1) == {"sure": ([], [1])}


def test_runs_of_offsets() -> None:
    """Neighbors are one run; what stands between two runs may have been given."""
    assert joined([1, 2, 4, 7, 8, 9]) == [(1, 2), (4, 4), (7, 9)]
    assert joined([]) == []
