"""The statistics of streams on the disk: one row for each stream that something happened to."""

import sqlite3
from collections.abc import Iterable

from overlayd.model.stream_tally import StreamTotals
from overlayd.storage.migrations import Feature

STATISTICS_FEATURE = Feature(
    "stream_statistics",
    (
        """
CREATE TABLE stream_statistics (
    stream_id INTEGER PRIMARY KEY,
    received INTEGER NOT NULL,
    received_up_to INTEGER NOT NULL,  -- the sequence that `received` includes
    sent INTEGER NOT NULL,
    refused INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    latency_us INTEGER NOT NULL,
    latencies INTEGER NOT NULL
) STRICT;
""",
    ),
)


def read_totals(connection: sqlite3.Connection) -> list[StreamTotals]:
    """All of them."""
    rows = connection.execute(
        "SELECT stream_id, received, received_up_to, sent, refused, failed, latency_us, latencies FROM stream_statistics"
    )
    return [StreamTotals(*row) for row in rows]


def store_totals(connection: sqlite3.Connection, rows: Iterable[tuple[int, ...]]) -> None:
    """Rows as `read_totals` reads them; those of streams that are gone by now aren't kept."""
    connection.executemany(
        "INSERT OR REPLACE INTO stream_statistics (stream_id, received, received_up_to, sent, refused, failed,"
        " latency_us, latencies) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        rows,
    )
    connection.execute(
        "DELETE FROM stream_statistics WHERE stream_id IN (SELECT id FROM stream WHERE name IS NULL)"
    )  # fmt: skip
