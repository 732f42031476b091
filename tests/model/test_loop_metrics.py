"""Metrics of the event loop's thread: the same pages as prometheus_client's own."""

import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest

from overlayd.model.metrics import SECONDS, Metrics


def _page(metrics: Metrics) -> list[str]:
    """The page's lines, without the times of creation that prometheus_client adds."""
    lines = generate_latest(metrics.registry).decode().splitlines()
    return [line for line in lines if not re.search(r"_created\b", line)]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 20))), st.lists(st.floats(0, 20)))
def test_pages_are_the_same(labelled: Sequence[tuple[str, float]], plain: Sequence[float]) -> None:
    """Whatever is counted and measured, both say the same about it, bounds included."""
    theirs, ours = Metrics(), Metrics()
    counter, loop_counter = theirs.counter("c", "C", "x"), ours.loop_counter("c", "C", "x")
    total, loop_total = theirs.counter("t", "T"), ours.loop_counter("t", "T")
    histogram, loop_histogram = theirs.histogram("h", "H", "x"), ours.loop_histogram("h", "H", "x")
    seconds, loop_seconds = theirs.histogram("s", "S"), ours.loop_histogram("s", "S")
    for label, amount in labelled:
        counter.labels(label).inc(amount)
        loop_counter.labels(label).inc(amount)
        histogram.labels(label).observe(amount)
        loop_histogram.labels(label).observe(amount)
    for amount in (*plain, *SECONDS):
        total.inc()
        loop_total.inc()
        seconds.observe(amount)
        loop_seconds.observe(amount)
    assert _page(theirs) == _page(ours)


def test_a_name_is_declared_once() -> None:
    """Two metrics of one name are refused, as of the other kind."""
    metrics = Metrics()
    metrics.loop_counter("a", "A")
    with pytest.raises(ValueError, match="Duplicated"):
        metrics.loop_counter("a", "A")
    with pytest.raises(ValueError, match="Duplicated"):
        metrics.counter("a", "A")
