"""Counters and histograms for the event loop's thread alone.

What is counted with every request or packet is counted without a lock and without walking the buckets; the pages read
the same. Anything that another thread counts takes prometheus_client's own.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class LoopCount:
    """One number that grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1) -> None:
        self.value += amount


class LoopCounter(Collector):
    """Counts by labels."""

    def __init__(self, name: str, description: str, labels: Sequence[str]) -> None:
        self._name, self._description, self._labels = name, description, tuple(labels)
        self._counts: dict[tuple[str, ...], LoopCount] = {}
        if not labels:
            self._counts[()] = LoopCount()

    def labels(self, *values: str) -> LoopCount:
        """The count of these values; to be kept by who counts often."""
        assert len(values) == len(self._labels)
        count = self._counts.get(values)
        if count is None:
            count = self._counts[values] = LoopCount()
        return count

    def inc(self, amount: float = 1) -> None:
        """Only without labels."""
        self._counts[()].value += amount

    def describe(self) -> Iterable[CounterMetricFamily]:
        return [CounterMetricFamily(self._name, self._description, labels=self._labels)]

    def collect(self) -> Iterable[CounterMetricFamily]:
        family = CounterMetricFamily(self._name, self._description, labels=self._labels)
        for values, count in self._counts.items():
            family.add_metric(values, count.value)
        return [family]


class LoopBuckets:
    """How often something was measured, by size, and the sum of it all."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, amount: float) -> None:
        self.counts[bisect_left(self._bounds, amount)] += 1
        self.total += amount


class LoopHistogram(Collector):
    """Buckets by labels. `bounds` ascend; what is larger than the last one counts, too."""

    def __init__(self, name: str, description: str, labels: Sequence[str], bounds: Sequence[float]) -> None:
        self._name, self._description, self._labels = name, description, tuple(labels)
        self._bounds = tuple(bounds)
        self._texts = (*map(floatToGoString, bounds), "+Inf")
        self._buckets: dict[tuple[str, ...], LoopBuckets] = {}
        self._plain = LoopBuckets(self._bounds)
        if not labels:
            self._buckets[()] = self._plain

    def labels(self, *values: str) -> LoopBuckets:
        """The buckets of these values; to be kept by who measures often."""
        assert len(values) == len(self._labels)
        buckets = self._buckets.get(values)
        if buckets is None:
            buckets = self._buckets[values] = LoopBuckets(self._bounds)
        return buckets

    def observe(self, amount: float) -> None:
        """Only without labels."""
        self._plain.observe(amount)

    def describe(self) -> Iterable[HistogramMetricFamily]:
        return [HistogramMetricFamily(self._name, self._description, labels=self._labels)]

    def collect(self) -> Iterable[HistogramMetricFamily]:
        family = HistogramMetricFamily(self._name, self._description, labels=self._labels)
        for values, buckets in self._buckets.items():
            sums, so_far = [], 0
            for text, count in zip(self._texts, buckets.counts, strict=True):
                so_far += count
                sums.append((text, so_far))
            family.add_metric(values, sums, sum_value=buckets.total)
        return [family]
