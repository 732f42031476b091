"""Where used-up rates outlast a restart, approximately: the time between saving and the end isn't known."""

import heapq
import sqlite3
from array import array
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import trio

from overlayd.access.rates import Buckets, RateBook
from overlayd.model.clock import Clock, Entropy
from overlayd.storage.migrations import Feature

RATES_FEATURE = Feature(
    "rates",
    (
        """
CREATE TABLE rate_state (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    secret BLOB NOT NULL,  -- keys the hashes of addresses and names
    saved_us INTEGER NOT NULL,
    addresses BLOB NOT NULL,  -- 64-bit hashes, then as many seconds until full (float64)
    others BLOB NOT NULL
) STRICT;
""",
    ),
)
SECRET_BYTES = 32
DEBT_MIN_S = 2.0
"""Buckets that are full sooner are full again before anybody is served."""
SAVED_MAX = 16_384
"""Buckets of a kind that are stored, those with the longest wait first."""


class Store(Protocol):
    """The two calls of the log that are needed here."""

    async def write(self, job: Callable[[sqlite3.Connection], Any]) -> Any: ...

    def read(self, function: Callable[[sqlite3.Connection], Any]) -> Awaitable[Any]: ...


class SavedRates:
    """The stored state. `secret` is drawn once for each data directory."""

    def __init__(self, secret: bytes, saved_us: int, addresses: bytes, others: bytes) -> None:
        self.secret = secret
        self._saved_us = saved_us
        self._addresses = addresses
        self._others = others

    def restore(self, book: RateBook, now_us: int) -> None:
        """Puts back what isn't over yet. A wall clock that went back counts as no time passed."""
        passed_s = max(0, now_us - self._saved_us) / 1e6
        now = book.now_s()
        for buckets, blob in ((book.addresses, self._addresses), (book.others, self._others)):
            keys, debts = array("Q"), array("d")
            half = len(blob) // 16 * 8
            keys.frombytes(blob[:half])
            debts.frombytes(blob[half : 2 * half])
            for key, debt_s in zip(keys, debts, strict=True):
                if debt_s > passed_s:
                    buckets.put(key, now + debt_s - passed_s, now)


async def load_rates(store: Store, entropy: Entropy) -> SavedRates:
    """What is stored; a new secret the first time. Checkpoint."""
    row = await store.read(
        lambda connection: connection.execute("SELECT secret, saved_us, addresses, others FROM rate_state").fetchone()
    )
    if row is None:
        row = (entropy.draw(SECRET_BYTES), 0, b"", b"")
        values = tuple(row)
        await store.write(lambda c: c.execute("INSERT INTO rate_state VALUES (1, ?, ?, ?, ?)", values) and None)
    return SavedRates(*row)


async def save_rates(store: Store, book: RateBook, clock: Clock) -> int:
    """Stores the buckets that take longest to be full again; gives how many. Checkpoint.

    Looking through all of them takes milliseconds, so it is done in a thread; one that changes meanwhile is stored as
    it was or as it is."""
    now = book.now_s()
    kinds = (book.addresses, book.others)
    parts = await trio.to_thread.run_sync(lambda: [_pack(buckets, now) for buckets in kinds])
    values = (clock.now_us(), *(blob for blob, _ in parts))
    await store.write(
        lambda c: c.execute("UPDATE rate_state SET saved_us = ?, addresses = ?, others = ?", values) and None
    )
    return sum(count for _, count in parts)


def _pack(buckets: Buckets, now: float) -> tuple[bytes, int]:
    debts = heapq.nlargest(SAVED_MAX, buckets.debts(now, DEBT_MIN_S))
    keys = array("Q", [key for _, key in debts])
    return keys.tobytes() + array("d", [debt for debt, _ in debts]).tobytes(), len(debts)
