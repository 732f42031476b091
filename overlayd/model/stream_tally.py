"""What happens to each stream's packets, added up in memory where it happens.

Only the event loop's thread counts. Counting is a look-up and a few additions; whoever keeps the sums reads and stores
them now and then. Packets that come in aren't counted here: their sequences say how many there were.
"""

from collections.abc import Callable

SEQUENCE_BITS = 40
"""In each epoch the sequences of a stream count from a multiple of 2^40 (docs/log-format.md, Epoch and cursor)."""
_IN_EPOCH = (1 << SEQUENCE_BITS) - 1


class StreamTotals:
    """The sums of one stream. `received` stands for the packets up to the sequence `received_up_to`.

    `sent`: messages about its packets, to whomever. `refused`: packets that were not appended. `failed`: attempts to
    deliver that failed. `latency_us` sums `latencies` measurements.
    """

    __slots__ = (
        "failed", "latencies", "latency_us", "received", "received_up_to", "refused", "sent", "stream_id",
    )  # fmt: skip

    def __init__(
        self, stream_id: int, received: int = 0, received_up_to: int = 0, sent: int = 0, refused: int = 0,
        failed: int = 0, latency_us: int = 0, latencies: int = 0,
    ) -> None:  # fmt: skip
        self.stream_id = stream_id
        self.received = received
        self.received_up_to = received_up_to
        self.sent = sent
        self.refused = refused
        self.failed = failed
        self.latency_us = latency_us
        self.latencies = latencies

    def received_by(self, head_sequence: int) -> int:
        """Packets that came in, when the stream's newest one has this sequence."""
        return self.received + count_sequences(self.received_up_to, head_sequence)


class StreamTally:
    """The sums of all streams that something happened to, by name."""

    def __init__(self, find_id: Callable[[str], int | None]) -> None:
        """`find_id`: the row key of a stream that exists; what is about others isn't counted."""
        self._find_id = find_id
        self._by_name: dict[str, StreamTotals] = {}
        self._changed: dict[str, StreamTotals] = {}

    def __len__(self) -> int:
        return len(self._by_name)

    def put(self, name: str, totals: StreamTotals, *, is_changed: bool = False) -> None:
        """Sums that were stored; before anything is counted."""
        self._by_name[name] = totals
        if is_changed:
            self._changed[name] = totals

    def find(self, name: str, stream_id: int) -> StreamTotals | None:
        """The sums of the stream that has the name now."""
        found = self._by_name.get(name)
        return found if found is not None and found.stream_id == stream_id else None

    def count_sent(self, name: str, messages: int, latency_us: int = 0, latencies: int = 0) -> None:
        """So many messages about the stream's packets went out."""
        found = self._changed.get(name) or self._change(name)
        if found is not None:
            found.sent += messages
            found.latency_us += latency_us
            found.latencies += latencies

    def count_refused(self, name: str, packets: int) -> None:
        """So many packets weren't taken."""
        found = self._changed.get(name) or self._change(name)
        if found is not None:
            found.refused += packets

    def count_failed(self, name: str) -> None:
        """An attempt to deliver failed."""
        found = self._changed.get(name) or self._change(name)
        if found is not None:
            found.failed += 1

    def take_changed(self) -> dict[str, StreamTotals]:
        """The sums that changed since the last call, by name."""
        changed, self._changed = self._changed, {}
        return changed

    def put_back(self, changed: dict[str, StreamTotals]) -> None:
        """They couldn't be stored."""
        self._changed = changed | self._changed

    def drop(self, name: str) -> None:
        """The stream is gone; one that gets its name begins anew."""
        self._by_name.pop(name, None)
        self._changed.pop(name, None)

    def _change(self, name: str) -> StreamTotals | None:
        found = self._by_name.get(name)
        if found is None:
            stream_id = self._find_id(name)
            if stream_id is None:
                return None
            found = self._by_name[name] = StreamTotals(stream_id)
        self._changed[name] = found
        return found


def count_sequences(after: int, up_to: int) -> int:
    """How many packets have sequences in (after, up_to]. Sequences jump to a new range with each epoch; of the ranges
    between the two there is nothing to tell."""
    if up_to >> SEQUENCE_BITS == after >> SEQUENCE_BITS:
        return up_to - after
    return up_to & _IN_EPOCH


NO_TALLY = StreamTally(lambda name: None)
"""Counts nothing."""
