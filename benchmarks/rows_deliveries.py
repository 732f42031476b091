"""Rows of durable subscriptions: signed deliveries to webhooks, settled on disk, a restart, and bad endpoints."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

from benchmarks import deliveries
from benchmarks.samples import Contender, Row, Sample


def delivery_rows(
    stack: ExitStack, directory: Path, packets: int, undelivered: int, subscriptions: int
) -> Iterator[Row]:
    """`packets`: deliveries of a turn; `undelivered`: before the restart; `subscriptions`: of which most are bad.

    A turn is so much work, however long it takes; each is on a node and a log of its own.
    """
    receiver = stack.enter_context(closing(deliveries.Receiver(subscriptions)))
    for title, goal, measure in (
        (f"webhooks, {deliveries.SUBSCRIPTIONS} subscriptions", "to reach: 3,000",
         partial(deliveries.measure_fan, receiver=receiver, packets=packets)),
        ("webhooks, one subscription, unordered", "to reach: 1,500",
         partial(deliveries.measure_single, receiver=receiver, packets=packets)),
        ("webhooks, one subscription, in order", "each waits for the commit of the one before",
         partial(deliveries.measure_single, receiver=receiver, packets=packets // 4, ordering="stream")),
    ):  # fmt: skip
        yield Row("deliveries", title, "rate", (Contender("overlayd", partial(_paced, directory, measure)),),
                  f"signed, answered 204, settled on disk; {goal}")  # fmt: skip
    restart = partial(deliveries.measure_restart, receiver=receiver, undelivered=undelivered)
    yield Row("deliveries", f"restart with {undelivered:,} undelivered after kill -9", "p50_ms",
              (Contender("first delivery", partial(_restarted, directory, restart)),),
              "from the start of the process; to reach: 2,000")  # fmt: skip
    yield Row("deliveries", f"bad endpoints among {subscriptions:,}", "p99_ms", tuple(
        Contender(name, partial(_beside, directory, partial(
            deliveries.measure_beside, receiver=receiver, everybody=subscriptions, is_rough=is_rough)))
        for name, is_rough in (("beside 30 % that hang, 30 % that fail, 1 % that trickle", True), ("undisturbed", False))
    ), "the good ones' slowest hundredth; rate: one producer beside them; to reach: at most twice and 90 %")  # fmt: skip


def _paced(directory: Path, measure: Callable[[Path], deliveries.Pace], seconds: float) -> Sample:
    with tempfile.TemporaryDirectory(dir=directory) as place:
        pace = measure(Path(place) / "data")
    return Sample({"rate": pace.rate}, server_share=pace.rate * pace.cpu_us / 1e6, note=f"{pace.cpu_us:.0f} us each")


def _restarted(directory: Path, measure: Callable[[Path], tuple[float, float]], seconds: float) -> Sample:
    with tempfile.TemporaryDirectory(dir=directory) as place:
        ready_s, first_s = measure(Path(place) / "data")
    return Sample({"p50_ms": first_s * 1000}, note=f"listening after {ready_s * 1000:.0f} ms")


def _beside(directory: Path, measure: Callable[[Path], deliveries.Beside], seconds: float) -> Sample:
    with tempfile.TemporaryDirectory(dir=directory) as place:
        found = measure(Path(place) / "data")
    note = f"{found.good} good ones, {found.memory_mib:.0f} MiB"
    return Sample({"p99_ms": found.slowest_ms, "rate": found.publish_rate}, note=note)
