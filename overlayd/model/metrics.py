"""The node's metrics: one registry, made at start and passed down. No global state.

Components declare their own metrics where they measure; docs/metrics.md lists every one (a test compares).
Names follow Prometheus: base units, `_total` for counters.
"""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from overlayd.model.loop_metrics import LoopCounter, LoopHistogram

SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


class Metrics:
    """Declares metrics in one registry. Declaring a name twice raises ValueError."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._limit_hits = self.counter("overlayd_limit_hits", "Times a limit was hit, by its name", "limit")

    def counter(self, name: str, description: str, *labels: str) -> Counter:
        return Counter(name, description, labels, registry=self.registry)

    def gauge(self, name: str, description: str, *labels: str) -> Gauge:
        return Gauge(name, description, labels, registry=self.registry)

    def histogram(self, name: str, description: str, *labels: str, buckets: Sequence[float] = SECONDS) -> Histogram:
        return Histogram(name, description, labels, registry=self.registry, buckets=buckets)

    def loop_counter(self, name: str, description: str, *labels: str) -> LoopCounter:
        """A counter that only the event loop's thread counts on."""
        counter = LoopCounter(name, description, labels)
        self.registry.register(counter)
        return counter

    def loop_histogram(
        self, name: str, description: str, *labels: str, buckets: Sequence[float] = SECONDS
    ) -> LoopHistogram:
        """A histogram that only the event loop's thread measures for."""
        histogram = LoopHistogram(name, description, labels, buckets)
        self.registry.register(histogram)
        return histogram

    def count_limit_hit(self, limit: str) -> None:
        """`limit` is the field's name in `Limits`."""
        self._limit_hits.labels(limit).inc()
