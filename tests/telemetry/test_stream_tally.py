"""What is counted of streams in memory."""

from hypothesis import given
from hypothesis import strategies as st

from overlayd.model.stream_tally import NO_TALLY, SEQUENCE_BITS, StreamTally, StreamTotals, count_sequences
from overlayd.storage import group

KNOWN = {"a": 1, "b": 2}


def test_sequences_count_as_the_log_gives_them() -> None:
    """The log and the tally agree on where the sequences of an epoch begin."""
    assert SEQUENCE_BITS == group.SEQUENCE_BITS


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1000)), max_size=20))
def test_each_packet_is_counted_once_however_often_one_looks(steps: list[tuple[int, int]]) -> None:
    """Over epochs, when somebody looks at the end of each: every packet counts, none twice."""
    totals, epoch, inside, published = StreamTotals(1), 0, 0, 0
    head = 0
    for epochs, packets in steps:
        totals.received, totals.received_up_to = totals.received_by(head), head  # what a start does
        if epochs:
            epoch, inside = epoch + epochs, 0
        inside += packets
        published += packets
        if packets:
            head = (epoch << SEQUENCE_BITS) + inside
    assert totals.received_by(head) == published


def test_what_lies_between_sequences() -> None:
    """In one epoch their distance, over a jump what is in the new one."""
    jump = 3 << SEQUENCE_BITS
    assert count_sequences(0, 0) == 0
    assert count_sequences(5, 9) == 4
    assert count_sequences(5, jump + 2) == 2


def test_only_streams_that_exist_are_counted() -> None:
    """What clients make up takes no memory."""
    tally = StreamTally(KNOWN.get)
    for number in range(100):
        tally.count_refused(f"made-up-{number}", 1)
        tally.count_sent(f"made-up-{number}", 1)
        tally.count_failed(f"made-up-{number}")
    assert len(tally) == 0
    NO_TALLY.count_sent("a", 1)
    assert len(NO_TALLY) == 0


def test_changed_sums_are_taken_once_and_can_be_put_back() -> None:
    """What was counted since the last call; what couldn't be stored comes again, with what was counted meanwhile."""
    tally = StreamTally(KNOWN.get)
    tally.count_sent("a", 3, 600, 3)
    changed = tally.take_changed()
    assert set(changed) == {"a"}
    assert tally.take_changed() == {}
    tally.count_refused("b", 2)
    tally.count_sent("a", 1)
    tally.put_back(changed)
    again = tally.take_changed()
    assert set(again) == {"a", "b"}
    assert (again["a"].sent, again["a"].latency_us, again["b"].refused) == (4, 600, 2)


def test_a_stream_that_gets_an_old_name_begins_anew() -> None:
    """The sums belong to the stream, not to its name."""
    tally = StreamTally(KNOWN.get)
    tally.count_failed("a")
    assert tally.find("a", 1) is not None
    assert tally.find("a", 7) is None
    tally.drop("a")
    assert tally.find("a", 1) is None
    assert tally.take_changed() == {}
