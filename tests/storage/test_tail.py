"""The ring of newest entries and the head that readers wait for."""

import pytest
import trio
import trio.testing

from overlayd.model.entry import Z32, Kind, StoredEntry, encode_header, entry_of_row, leaf_hash
from overlayd.storage.record import entry_cost
from overlayd.storage.tail import Head, Tail


def entry(offset: int, size: int = 10) -> StoredEntry:
    """A packet with a body of a size, appended at `offset` microseconds."""
    raw = encode_header(Kind.PACKET, 1 << 40, offset, offset, b"s" * 32, offset, Z32, 0, 0, Z32)
    return entry_of_row(raw, leaf_hash(raw), b"", b"", b"", b"", b"x" * size)


def test_keeps_the_newest_within_its_bound() -> None:
    """Old entries leave, what stays has no holes, and the bound holds."""
    cost = entry_cost(entry(1))
    tail = Tail(10 * cost)
    for offset in range(1, 101):
        tail.extend([entry(offset)])
        assert tail._size <= 10 * cost
        assert tail._size == len(tail) * cost
    assert tail.first == 101 - len(tail)
    assert len(tail) >= 8
    assert tail.find(tail.first - 1) is None
    assert [found.offset for at in range(tail.first, 101) if (found := tail.find(at))] == list(range(tail.first, 101))
    assert tail.find(101) is None
    assert tail.read(tail.first - 2, 5, 1000) is None


def test_an_entry_larger_than_the_bound() -> None:
    """It doesn't stay, and what follows it does."""
    tail = Tail(5000)
    tail.extend([entry(1), entry(2, 10_000)])
    assert (tail.first, len(tail), tail._size) == (3, 0, 0)
    tail.extend([entry(3)])
    page = tail.read(2, 10, 1000)
    assert page is not None
    assert [found.offset for found in page.entries] == [3]


def test_pages_are_bounded() -> None:
    """By count and bytes, at least one entry, none beyond the head."""
    tail = Tail(1 << 20)
    tail.extend([entry(offset, 100) for offset in range(1, 11)])

    def offsets(after: int, limit: int, size: int) -> list[int]:
        page = tail.read(after, limit, size)
        assert page is not None
        assert page.after == (page.entries[-1].offset if page.entries else after)
        return [found.offset for found in page.entries]

    assert offsets(0, 3, 1000) == [1, 2, 3]
    assert offsets(0, 100, 250) == [1, 2]
    assert offsets(0, 100, 1) == [1]
    assert offsets(8, 100, 1000) == [9, 10]
    assert offsets(10, 100, 1000) == []


def test_holes_are_a_bug() -> None:
    """Entries come in order."""
    tail = Tail(1000)
    with pytest.raises(AssertionError):
        tail.extend([entry(2)])
    tail.reset(41)
    tail.extend([entry(42)])
    assert "first=42" in repr(tail)


def test_finds_by_time() -> None:
    """The first entry at or after a time."""
    tail = Tail(1 << 20)
    tail.extend([entry(offset) for offset in range(1, 11)])
    assert [tail.find_at(time_us) for time_us in (0, 1, 5, 10, 11)] == [1, 1, 5, 10, 11]


def test_replacing_keeps_count_of_bytes() -> None:
    """What is left of a reduced entry takes less; one that left the ring is passed over."""
    tail = Tail(1 << 20)
    tail.extend([entry(1, 1000), entry(2, 1000)])
    tail.replace(entry(2, 0))
    tail.replace(entry(9, 0))
    assert tail._size == entry_cost(entry(1, 1000)) + entry_cost(entry(2, 0))


async def test_waiting_for_the_head() -> None:
    """Level-triggered, and always a checkpoint."""
    head = Head()
    head.advance(3)
    with trio.testing.assert_checkpoints():
        await head.wait_beyond(2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(head.wait_beyond, 4)
        await trio.testing.wait_all_tasks_blocked()
        head.advance(4)
        await trio.testing.wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 1
        head.advance(5)
