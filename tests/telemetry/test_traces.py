"""Spans as they are written down, before anybody is told of them."""

import random
from collections.abc import Callable

import pytest

from overlayd.model.clock import Entropy
from overlayd.model.metrics import Metrics
from overlayd.model.traces import Followed, Span, SpanBook, append_span, hand_on, is_sampled

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
WANTED = f"00-{TRACE}-{PARENT}-01"
NOW_US = 1_767_323_000_000_000


class Wall:
    """A clock that stands still."""

    def now_us(self) -> int:
        return NOW_US


class Rig:
    """A book, and its figures."""

    def __init__(self, sample: float = 0.0, spans_max: int = 100, packets_max: int = 10) -> None:
        self.metrics = Metrics()
        self.book = SpanBook(
            sample=sample, spans_max=spans_max, packets_max=packets_max, clock=Wall(), entropy=Entropy(),
            chance=random.Random(1), metrics=self.metrics,
        )  # fmt: skip

    def figure(self, name: str, **labels: str) -> float:
        """A metric's value."""
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


def followed(offset: int = 5, traceparent: str = WANTED, *, is_root: bool = False) -> Followed:
    """A packet of a trace."""
    return Followed(traceparent, "s", 1 << 40, offset, offset - 1, NOW_US - 3000, is_root)


@pytest.mark.parametrize(
    ("traceparent", "is_wanted"), [(WANTED, True), (WANTED[:-2] + "03", True), (WANTED[:-2] + "00", False), ("", False)]
)
def test_whoever_began_a_trace_decides(traceparent: str, is_wanted: bool) -> None:
    """By the flag of W3C Trace Context."""
    assert is_sampled(traceparent) == is_wanted


def test_the_append_has_the_same_id_for_everybody() -> None:
    """It follows from the entry's place, so it can be named long after."""
    assert append_span(7, 9) == append_span(7, 9)
    assert len({append_span(epoch, offset) for epoch in (1, 2) for offset in (1, 2)}) == 4
    assert len(append_span(7, 9)) == 16


async def test_a_publish_and_its_append() -> None:
    """The request's span stands below the client's, each packet's below the request's."""
    rig = Rig()
    rig.book.published("s", [followed(5), followed(6)], 0.0)
    publish, *appends = rig.book.take(10)
    assert (publish.trace, publish.parent, publish.kind, publish.name) == (TRACE, PARENT, "server", "publish s")
    assert ("messaging.batch.message_count", 2) in publish.attributes
    assert [one.parent for one in appends] == [publish.id] * 2
    assert [one.id for one in appends] == [append_span(1 << 40, 5), append_span(1 << 40, 6)]
    assert (appends[0].start_us, appends[0].end_us) == (NOW_US - 3000, NOW_US)


async def test_a_trace_of_the_node_s_own_has_a_root() -> None:
    """What its packets hand on names the publish span, which has no parent."""
    rig = Rig(sample=1.0)
    begun = rig.book.begin()
    assert is_sampled(begun)
    rig.book.published("s", [followed(5, begun, is_root=True)], 0.0)
    publish, append = rig.book.take(10)
    assert (publish.parent, publish.id) == ("", begun[36:52])
    assert append.parent == publish.id


def test_a_share_of_requests_begins_a_trace() -> None:
    """About as many as the settings say, none at 0."""
    rig = Rig(sample=0.25)
    begun = [rig.book.begin() for _ in range(2000)]
    assert 400 < sum(map(bool, begun)) < 600
    assert not any(Rig().book.begin() for _ in range(100))


def deliver(rig: Rig) -> None:
    """Many packets at once to a reader."""
    rig.book.delivered([followed(number) for number in range(25)], (), is_live=True)


def publish(rig: Rig) -> None:
    """Many packets in one request."""
    rig.book.published("s", [followed(number) for number in range(25)], 0.0)


def push(rig: Rig) -> None:
    """A batch of many traces."""
    rig.book.to_push(followed(number, f"00-{number:032x}-{PARENT}-01") for number in range(25))


@pytest.mark.parametrize("act", [deliver, publish, push])
async def test_only_some_of_many_packets_are_followed(act: Callable[[Rig], None]) -> None:
    """`packets_max` bounds what one request or write costs, and is counted."""
    rig = Rig(packets_max=10)
    act(rig)
    assert len(rig.book) <= 11
    assert rig.figure("overlayd_limit_hits_total", limit="packets_max") == 1


async def test_what_finds_no_room_is_dropped_and_counted() -> None:
    """Nobody waits for a collector."""
    rig = Rig(spans_max=3)
    for number in range(5):
        rig.book.add(Span(TRACE, f"{number:016x}", "", "n", "internal", 0, 0))
    assert [span.id[-1] for span in rig.book.take(10)] == ["0", "1", "2"]
    assert rig.figure("overlayd_trace_spans_dropped_total") == 2
    assert rig.figure("overlayd_limit_hits_total", limit="spans_max") == 2


def test_an_attempt_hands_its_own_span_on() -> None:
    """What the receiver does stands below the attempt; one span for each trace of a batch."""
    rig = Rig()
    steps = rig.book.to_push([followed(5), followed(6)])
    ((packet, id),) = steps
    assert hand_on(packet, id) == f"00-{TRACE}-{id}-01"
    rig.book.attempted(steps, NOW_US - 10, (("overlayd.attempt", 1),), "retry")
    (span,) = rig.book.take(10)
    assert (span.id, span.parent, span.kind, span.error) == (id, append_span(1 << 40, 5), "client", "retry")


def test_catching_up_takes_no_time_from_the_append() -> None:
    """A packet that is read again after days wasn't on its way for days."""
    rig = Rig()
    rig.book.delivered([followed()], (), is_live=False)
    rig.book.delivered([followed()], (), is_live=True)
    late, live = rig.book.take(10)
    assert late.start_us == late.end_us
    assert live.end_us - live.start_us == 3000


async def test_a_refused_request_is_told_with_its_code() -> None:
    """So that a producer's trace ends with why."""
    rig = Rig()
    rig.book.refused("s", WANTED, "packet.invalid", 0.0)
    (span,) = rig.book.take(10)
    assert (span.name, span.parent, span.error) == ("publish s", PARENT, "packet.invalid")
