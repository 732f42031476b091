"""What the position index costs: a hundred streams beside each other, and ten thousand slow ones.

Run: python3 -m benchmarks.positions
"""

import random
import sqlite3
import tempfile
import time
from pathlib import Path

from overlayd.storage.positions import TABLES, Positions, find_stored

PACKETS = 400_000
FLUSH = 65_536
SLICE_ROWS = 2_048


def measure(path: Path, streams: int) -> None:
    """Prints costs for packets that fall on so many streams by chance."""
    connection = sqlite3.connect(path, isolation_level=None)
    for pragma in ("auto_vacuum = INCREMENTAL", "journal_mode = WAL", "secure_delete = ON", "cache_size = -16384"):
        connection.execute(f"PRAGMA {pragma}")
    connection.executescript(TABLES)
    chance = random.Random(3)  # noqa: S311 - no secret
    rows, heads = [], [0] * streams
    for offset in range(1, PACKETS + 1):
        stream = chance.randrange(streams)
        heads[stream] += 1
        rows.append((stream, heads[stream], offset))
    positions, spent, flushed, top = Positions(), 0.0, 0.0, 0.0
    for at in range(0, PACKETS, FLUSH):
        began = time.perf_counter()
        for row in rows[at : at + FLUSH]:
            positions.add(*row)
        positions.adopt()
        spent += time.perf_counter() - began
        positions.begin_flush(min(PACKETS, at + FLUSH))
        is_more = True
        while is_more:
            began = time.perf_counter()
            connection.execute("BEGIN")
            is_more = positions.flush_step(connection, SLICE_ROWS)
            connection.execute("COMMIT")
            positions.adopt()
            took = time.perf_counter() - began
            flushed, top = flushed + took, max(top, took)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    sample = chance.sample(rows, 5_000)
    began = time.perf_counter()
    assert all(find_stored(connection, stream, sequence) == offset for stream, sequence, offset in sample)
    found = time.perf_counter() - began
    (blocks,) = connection.execute("SELECT count(*) FROM position_block").fetchone()
    print(
        f"{streams:6} streams: add {spent / PACKETS * 1e6:.2f} µs, flush {flushed / PACKETS * 1e6:.2f} µs a position"
        f" (a slice at most {top * 1e3:.1f} ms), find {found / len(sample) * 1e6:.1f} µs on disk,"
        f" {path.stat().st_size / PACKETS:.1f} bytes a position in {blocks} blocks"
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        for count in (1, 100, 10_000):
            measure(Path(directory) / f"{count}.sqlite3", count)
