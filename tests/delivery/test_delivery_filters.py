"""Filters on the way to readers: who matches, what is shared, what happens when one is disabled, and when it is given back."""

from typing import Any

import pytest
import trio
from delivery_fakes import FakeLog, make_delivery, query_of
from test_delivery_reader import gaps, open_reader, read_all, sequences

from overlayd.delivery.frames import PacketState, packet_body
from overlayd.delivery.matching import PacketView
from overlayd.model.errors import InvalidFilter, LimitReached
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.model.units import Duration, Size
from overlayd.pipeline.filters import FilterBook


class FailingLease:
    """A filter that is disabled after so many packets."""

    def __init__(self, packets: int) -> None:
        self.packets = packets
        self.releases = 0

    async def judge(self, view: PacketView, state: PacketState) -> bool | None:
        await trio.lowlevel.checkpoint()
        self.packets -= 1
        return True if self.packets >= 0 else None

    def release(self) -> None:
        self.releases += 1


async def test_filter_over_data_and_packet() -> None:
    """A filter sees the payload and the packet as consumers see it; what is missing doesn't match."""
    log = FakeLog()
    log.add("s", {"t": 10}, type="reading")
    log.add("s", {"t": 40}, type="reading")
    log.add("s", {"other": True}, type="alarm")
    delivery = make_delivery(log)

    async def found(text: str) -> list[int]:
        return [number for _, number in sequences(await read_all(delivery, stream="s", filter=text))]

    assert await found("data.t > 20") == [2]
    assert await found('packet.type == "alarm" || data.t == 10') == [1, 3]
    assert await found("packet.packet_sequence >= 2") == [2, 3]


async def test_filter_comes_after_cheaper_checks() -> None:
    """A filter is asked only about packets of the right stream, type and key."""
    asked = []
    log = FakeLog()
    for number in range(4):
        log.add("s" if number % 2 else "t", number, type="x" if number < 2 else "y")

    class Counting(FailingLease):
        async def judge(self, view: PacketView, state: PacketState) -> bool | None:
            asked.append(view.entry.offset)
            return True

    delivery = make_delivery(log, lease=lambda text, principal: Counting(0))
    await read_all(delivery, stream="s", type="y", filter="true")
    assert asked == [4]


async def test_bad_filters_are_refused() -> None:
    """What isn't an expression is refused when the reader is opened, and nothing stays leased."""
    delivery = make_delivery(FakeLog())
    with pytest.raises(InvalidFilter):
        await open_reader(delivery, filter="data.t >")
    assert delivery.metrics.registry.get_sample_value("overlayd_filters") == 0


async def test_filters_are_given_back() -> None:
    """Closing the reader gives its filter back, once; so does an opening that fails behind it."""
    log = FakeLog()
    limits, metrics = Limits(filters_per_principal=1), Metrics()
    book: FilterBook[PacketView, PacketState] = FilterBook(limits=limits, metrics=metrics, describe=packet_body)
    delivery = make_delivery(log, limits=limits, lease=book.lease)
    opened = await open_reader(delivery, filter="data.t > 1")
    again = await open_reader(delivery, filter="data.t > 1")
    with pytest.raises(LimitReached):
        await open_reader(delivery, filter="data.t > 2")
    for one in (opened, opened, again):
        one.close()
    with pytest.raises(Exception, match="beyond the head"):
        await open_reader(delivery, filter="data.t > 2", after=log.cursor(9))
    (await open_reader(delivery, filter="data.t > 3")).close()
    assert metrics.registry.get_sample_value("overlayd_filters") == 0


async def test_disabled_filter_is_a_gap() -> None:
    """What a disabled filter can't judge any more is announced as a gap with that reason."""
    log = FakeLog(page_entries=3)
    for number in range(8):
        log.add("s", number)
        log.add("t", number)
    lease = FailingLease(3)
    delivery = make_delivery(log, lease=lambda text, principal: lease)
    found = await read_all(delivery, stream="s", filter="true")
    assert sequences(found) == [("s", 1), ("s", 2), ("s", 3)]
    assert gaps(found) == [(7, 15, "filter_disabled")]
    assert lease.releases == 1


async def test_large_packets_are_judged_in_a_thread() -> None:
    """A packet over the inline bound is filtered in a thread, with the same outcome."""
    log = FakeLog()
    log.add("s", {"t": 1, "pad": "x" * 2000})
    log.add("s", {"t": 2, "pad": "x" * 2000})
    limits = Limits(filter_inline_bytes=Size(100), filter_timeout=Duration(5))
    delivery = make_delivery(log, limits=limits)
    assert sequences(await read_all(delivery, filter="data.t == 2")) == [("s", 2)]


async def test_equal_filters_are_evaluated_once() -> None:
    """Readers with equal selections share a filter's verdicts with the scan they share."""
    asked = 0
    log = FakeLog()
    for number in range(10):
        log.add("s", number)

    class Counting(FailingLease):
        async def judge(self, view: PacketView, state: PacketState) -> bool | None:
            nonlocal asked
            asked += 1
            return True

    delivery = make_delivery(log, lease=lambda text, principal: Counting(0))

    async def one() -> None:
        with await delivery.open_reader(query_of(filter="true", **{"from": "beginning"}), "p") as opened:
            assert len((await opened.reader.read()).messages) == 10

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(one)
    assert asked == 10


async def test_confirmed_readers_filter_by_the_confirmed_packet() -> None:
    """A filter of a confirmed reader sees the packet with the state that its trigger gives it."""
    log = FakeLog()
    log.define("s", commit="packet")
    log.add("s", {"t": 1})
    log.add_status(1, 1, "confirmed", stream="s", depth=1, height=9)
    text = 'packet.confirmation_status == "confirmed" && packet.block_height == 9'
    found: list[dict[str, Any]] = await read_all(make_delivery(log), stream="s", deliver="confirmed", filter=text)
    assert len(found) == 1
