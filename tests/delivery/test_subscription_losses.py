"""What a subscription can't have any more, or has to forget: gaps, erasures, deletions, restores."""

import trio
from subscription_rig import FAILED, OK, FakeOutlet, MemoryLog, Node, killed, running
from trio.testing import MockClock

from overlayd.delivery.frames import Erased, Gap, Message
from overlayd.delivery.subscriptions.finding import subtract
from overlayd.model.cursor import make_epoch
from overlayd.model.outlet import AttemptResult, Delivery


def told(node: Node, name: str = "s") -> list[str]:
    """Every delivery that was taken, in words."""
    words = []
    for _, delivery in node.outlet.attempts:
        if delivery.definition.name != name or delivery.delivery_id not in node.outlet.taken[name]:
            continue
        for message in delivery.messages:
            subject = message.subject
            if isinstance(subject, Gap):
                words.append(f"gap {subject.from_offset}-{subject.to_offset} {subject.reason}")
            elif isinstance(subject, Erased):
                words.append(f"erased {subject.stream}/{subject.sequence}")
            else:
                words.append(f"packet {message.cursor.offset}")
    return words


async def test_gap_is_a_delivery_where_it_is_asked_for(autojump_clock: MockClock) -> None:
    """What was taken away before it was delivered comes as one delivery of kind gap, under an id of its own."""
    async with running() as node:
        for number in range(5):
            node.log.add("a", number)
        node.log.remove("a", 2, 4, "retention")
        await node.add(from_="beginning", gaps=True)
        await trio.sleep(1)
        assert sorted(told(node)) == ["gap 2-4 retention", "packet 1", "packet 5"]
        (gap,) = [delivery for _, delivery in node.outlet.attempts if delivery.kind == "gap"]
        assert gap.delivery_id.endswith("_2-4_gap")
        assert gap.stream == ""


async def test_gap_stands_among_the_attempts_otherwise(autojump_clock: MockClock) -> None:
    """Without `gaps` nothing is sent, but the attempts say what was missing."""
    async with running() as node:
        for number in range(5):
            node.log.add("a", number)
        node.log.remove("a", 2, 4, "retention")
        one = await node.add(from_="beginning")
        await trio.sleep(1)
        assert sorted(told(node)) == ["packet 1", "packet 5"]
        (gap,) = [body for body in await node.parts.letters.attempts(one) if body.outcome == "gap"]
        assert gap.reason.startswith("retention: ")
        assert node.delivery.metrics.registry.get_sample_value("overlayd_delivery_gaps_untold_total") == 1


async def test_erased_packet_is_told_once_to_who_had_it(autojump_clock: MockClock) -> None:
    """One `erased` notice for what was given; none for what came before the subscription or was never given."""
    async with running() as node:
        node.log.add("a", 0)
        await node.add(gaps=True)
        node.log.add("a", 1)
        node.log.add("a", 2)
        await trio.sleep(1)
        late = await node.add("late", gaps=True)
        removal = node.log.remove("a", 1, 2, "erased")
        await trio.sleep(1)
        assert told(node)[2:] == ["erased a/2"]
        assert told(node, "late") == []
        assert late.ledger.is_empty
        (notice,) = [delivery for _, delivery in node.outlet.attempts if delivery.kind == "erased"]
        assert notice.delivery_id.endswith(f"_{removal.offset}_2")


async def test_erased_before_its_delivery_is_a_gap_alone(autojump_clock: MockClock) -> None:
    """A packet that was never sent is told as a gap, and not as erased after that, also over a restart."""
    log, outlet = MemoryLog(), FakeOutlet()
    async with running(log, outlet) as node:
        one = await node.add(gaps=True)
        await node.book.set_state(one, "paused")
        for number in range(3):
            log.add("a", number)
        log.remove("a", 2, 2, "erased")
    async with running(log, outlet) as node:
        await node.book.set_state(node.book.find("s"), "active")
        await trio.sleep(1)
        assert sorted(told(node)) == ["gap 2-2 erased", "packet 1", "packet 3"]


async def test_erased_while_it_waits_is_never_sent_again(autojump_clock: MockClock) -> None:
    """A packet that is erased between two attempts isn't delivered from memory: a gap and, since the receiver may have
    it, the notice."""
    async with running() as node:
        node.outlet.answer("s", FAILED)
        await node.add(gaps=True)
        node.log.add("a", 1)
        await trio.sleep(1)
        node.outlet.answer("s", OK)
        node.log.remove("a", 1, 1, "erased")
        await trio.sleep(100)
        assert sorted(told(node)) == ["erased a/1", "gap 1-1 erased"]


async def test_erased_while_it_is_loose_is_never_sent(autojump_clock: MockClock) -> None:
    """Packets that were read ahead of their turn are read again when something was taken away."""
    async with running() as node:
        node.outlet.answer("s", OK, after_s=5.0)
        await node.add(gaps=True, concurrency=1)
        for number in range(4):
            node.log.add("a", number)
        await trio.sleep(1)
        node.log.remove("a", 3, 3, "erased")
        await trio.sleep(60)
        assert sorted(told(node)) == ["gap 3-3 erased", "packet 1", "packet 2", "packet 4"]


async def test_deleted_stream_is_a_gap(autojump_clock: MockClock) -> None:
    """Deleting a stream tells its subscribers once what they can't have any more."""
    async with running() as node:
        await node.add(gaps=True)
        node.log.add("a", 0)
        node.log.add("b", 1)
        await trio.sleep(1)
        node.log.delete("a")
        await trio.sleep(1)
        assert told(node) == ["packet 1", "gap 1-1 deleted"]


async def test_damage_is_told_to_everybody(autojump_clock: MockClock) -> None:
    """What can't be read might have been for anybody."""
    async with running() as node:
        await node.add("x", streams=["x"], gaps=True)
        node.log.damage(1)
        node.log.add("a", 0)
        node.log.add("x", 1)
        await trio.sleep(1)
        assert told(node, "x") == ["gap 1-1 damaged", "packet 2"]


async def test_restore_is_told_and_what_is_new_is_delivered(autojump_clock: MockClock) -> None:
    """After a restore that lost the end of the log, the loss is a gap, and offsets that mean something else now aren't
    taken for settled ones."""
    log, outlet = MemoryLog(), FakeOutlet()

    async def refuse_third(delivery: Delivery[Message]) -> AttemptResult:
        await trio.lowlevel.checkpoint()
        return FAILED if delivery.delivery_id.endswith("_3") else OK

    outlet.answers["s"] = refuse_third
    async with running(log, outlet) as node:
        await node.add(gaps=True)
        for number in range(8):
            log.add("a", number)
        await trio.sleep(2)
        assert len(outlet.taken["s"]) == 7
    restored = MemoryLog(log.connection, epoch=make_epoch(2, b"\x09\x02\x03\x04\x05"))
    restored.ancestry = [(log.epoch, 4)]
    restored._entries = log._entries[:4]
    restored._streams, restored._by_hash = log._streams, log._by_hash
    outlet.answer("s", OK)
    for number in range(100, 104):
        restored.add("a", number)
    outlet.attempts.clear()
    async with running(restored, outlet) as node:
        await trio.sleep(100)
        assert sorted(told(node)) == [f"packet {offset}" for offset in (3, 5, 6, 7, 8)]


async def test_restore_below_the_floor_tells_the_loss(autojump_clock: MockClock) -> None:
    """A subscription that had taken what a restore lost hears of it as a gap, then gets what is new."""
    log, outlet = MemoryLog(), FakeOutlet()
    async with running(log, outlet) as node:
        await node.add(gaps=True)
        for number in range(8):
            log.add("a", number)
        await trio.sleep(20)
    restored = MemoryLog(log.connection, epoch=make_epoch(2, b"\x09\x02\x03\x04\x05"))
    restored.ancestry = [(log.epoch, 4)]
    restored._entries = log._entries[:4]
    restored._streams, restored._by_hash = log._streams, log._by_hash
    restored.add("a", 100)
    outlet.attempts.clear()
    async with running(restored, outlet) as node:
        await trio.sleep(10)
        assert told(node) == ["gap 5-8 restored", "packet 5"]


async def test_gap_over_settled_packets_leaves_them_out(autojump_clock: MockClock) -> None:
    """After a kill, packets above the floor that arrived and were taken away since are no gap."""
    log, outlet = MemoryLog(), FakeOutlet()

    async def refuse_first(delivery: Delivery[Message]) -> AttemptResult:
        await trio.lowlevel.checkpoint()
        return FAILED if delivery.delivery_id.endswith("_1") else OK

    outlet.answers["s"] = refuse_first
    async with killed(log, outlet) as node:
        await node.add(gaps=True)
        for number in range(4):
            log.add("a", number)
        await trio.sleep(2)
        assert len(outlet.taken["s"]) == 3
    log.remove("a", 1, 3, "retention")
    outlet.answer("s", OK)
    async with running(log, outlet) as node:
        await trio.sleep(100)
        assert sorted(told(node)) == ["gap 1-1 retention", "packet 2", "packet 3", "packet 4"]


def test_subtract() -> None:
    """Runs without other runs, ends inclusive."""
    assert list(subtract(1, 10, [])) == [(1, 10)]
    assert list(subtract(1, 10, [(3, 4), (7, 7)])) == [(1, 2), (5, 6), (8, 10)]
    assert list(subtract(5, 6, [(0, 9)])) == []
    assert list(subtract(5, 8, [(8, 20), (0, 5)])) == [(6, 7)]
