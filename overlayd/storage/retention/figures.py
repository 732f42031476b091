"""What retention tells about itself as metrics."""

from collections.abc import Callable

from overlayd.model.clock import Clock
from overlayd.model.metrics import Metrics
from overlayd.storage.group import LogState
from overlayd.storage.retention.clock_trust import ClockTrust


class RetentionFigures:
    """Counters and gauges, changed by the task alone."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.kept_back = 0
        self.cuts = 0
        self._packets = metrics.counter("overlayd_retention_packets", "Packets that retention took away")
        self._bytes = metrics.counter(
            "overlayd_retention_bytes", "Stored bytes of the packets that retention took away"
        )
        self._slices = metrics.counter("overlayd_retention_slices", "Transactions in which retention took packets away")
        self._seconds = metrics.histogram(
            "overlayd_retention_slice_seconds", "One slice of retention: finding the packets, and their transaction"
        )

    def note_slice(self, packets: int, size: int, seconds: float) -> None:
        """One transaction that took packets away; `size` in bytes."""
        self._packets.inc(packets)
        self._bytes.inc(size)
        self._slices.inc()
        self._seconds.observe(seconds)

    def show(self, state: LogState, trust: ClockTrust, oldest_us: Callable[[], int], clock: Clock) -> None:
        """Adds the gauges. `oldest_us`: when the oldest packet that is kept was appended, 0 where nobody knows."""

        def oldest_s() -> float:
            us = oldest_us()
            return max(0.0, (clock.now_us() - us) / 1e6) if us else 0.0

        metrics = self._metrics
        metrics.gauge("overlayd_retention_oldest_seconds", "Age of the oldest packet that is kept").set_function(
            oldest_s
        )
        metrics.gauge(
            "overlayd_retention_kept_back", "Streams with packets that are due and wait for somebody"
        ).set_function(lambda: self.kept_back)
        metrics.gauge(
            "overlayd_retention_paused", "1 while packets don't age, because the clock isn't trusted"
        ).set_function(lambda: float(not trust.is_trusted))
        metrics.gauge("overlayd_legal_holds", "Legal holds on all streams").set_function(lambda: len(state.holds))
        metrics.gauge("overlayd_minimum_index", "Entries that were cut from the log's beginning").set_function(
            lambda: state.minimum_index
        )
