"""What is measured of confirmations: what waits and for how long, and how long each step took."""

import sqlite3
from collections.abc import Iterable, Sequence
from functools import partial

from overlayd.chain.item_tables import Telling
from overlayd.chain.watch_tables import WatchedTx
from overlayd.model.clock import Clock
from overlayd.model.metrics import Metrics

AGES_S = (60, 600, 3600, 21_600, 86_400)
"""Bounds of the ages by which waiting transactions are counted."""
_STEPS_S = (1.0, 10.0, 60.0, 300.0, 600.0, 1200.0, 3600.0, 10_800.0, 86_400.0)
_COUNT = (
    f"SELECT count(*), {', '.join(['coalesce(sum(created_us <= ?), 0)'] * len(AGES_S))}"  # noqa: S608 - constants
    " FROM chain_tx WHERE is_open AND height IS NULL AND verdict = ''"
)


class WatchMetrics:
    """Counted now and then by the watcher; scraped without asking the disk."""

    def __init__(self, metrics: Metrics, clock: Clock) -> None:
        self._clock = clock
        self._counts = [0] * (len(AGES_S) + 1)
        self._unfunded = 0
        pending = metrics.gauge(
            "overlayd_chain_pending_transactions", "Watched transactions that no block holds, older than so many seconds",
            "older_than",
        )  # fmt: skip
        for place, age_s in enumerate((0, *AGES_S)):
            pending.labels(str(age_s)).set_function(partial(self._read_count, place))
        metrics.gauge(
            "overlayd_chain_unfunded_items", "Packets and ranges that wait for a transaction of the wallet's"
        ).set_function(lambda: self._unfunded)
        self._seconds = metrics.histogram(
            "overlayd_chain_seconds", "From a transaction's taking to the step", "step", buckets=_STEPS_S
        )
        self._told = metrics.counter("overlayd_chain_entries", "Status entries that were appended, by state", "state")

    def _read_count(self, place: int) -> int:
        return self._counts[place]

    @property
    def pending(self) -> int:
        """Watched transactions that no block holds."""
        return self._counts[0]

    @property
    def unfunded(self) -> int:
        """Packets and ranges without a transaction."""
        return self._unfunded

    def read(self, c: sqlite3.Connection) -> tuple[list[int], int]:
        """What is waiting now."""
        now_us = self._clock.now_us()
        row = c.execute(_COUNT, [now_us - age_s * 1_000_000 for age_s in AGES_S]).fetchone()
        unfunded = c.execute("SELECT count(*) FROM chain_item WHERE tx_id IS NULL").fetchone()[0]
        return list(row), int(unfunded)

    def count(self, found: tuple[list[int], int]) -> None:
        """Takes over what `read` gave."""
        self._counts, self._unfunded = found

    def note_seen(self, txs: Iterable[WatchedTx]) -> None:
        """A source saw them on the network."""
        self._observe("seen", (tx.created_us for tx in txs))

    def note_mined(self, txs: Iterable[WatchedTx]) -> None:
        """Their proofs were checked."""
        self._observe("mined", (tx.created_us for tx in txs))

    def note_told(self, tellings: Sequence[Telling]) -> None:
        """Entries were appended."""
        for one in tellings:
            self._told.labels(one.state).inc()
        confirmed = (one.item.tx_us for one in tellings if one.state == "confirmed" and one.item.state != "confirmed")
        self._observe("confirmed", (us for us in confirmed if us is not None))

    def _observe(self, step: str, taken_us: Iterable[int]) -> None:
        now_us, seconds = self._clock.now_us(), self._seconds.labels(step)
        for us in taken_us:
            seconds.observe((now_us - us) / 1e6)
