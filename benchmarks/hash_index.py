"""What the hash index costs per packet id, with random UUIDs, next to a B-tree over the same hashes.

Run: python3 -m benchmarks.hash_index [pairs]
"""

import random
import sqlite3
import sys
import tempfile
import time
import uuid
from pathlib import Path

from overlayd.storage.hashindex import STEPS, Family, HashIndex

PAIRS = 2_000_000
GROUP = 100
FLUSH = 65_536
SLICE_ROWS = 1_024
SECRET = bytes(range(32))


def connect(path: Path) -> sqlite3.Connection:
    """A connection with the settings of the log's writer."""
    connection = sqlite3.connect(path, isolation_level=None)
    for pragma in (
        "page_size = 4096", "auto_vacuum = INCREMENTAL", "journal_mode = WAL", "synchronous = FULL",
        "secure_delete = ON", "cache_size = -16384", "wal_autocheckpoint = 256",
    ):  # fmt: skip
        connection.execute(f"PRAGMA {pragma}")
    return connection


class Timer:
    """Sums and largest value of what was timed under a name."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.tops: dict[str, float] = {}
        self._at = time.perf_counter()

    def lap(self, name: str) -> None:
        """Counts the time since the last lap for `name`."""
        took = time.perf_counter() - self._at
        self.sums[name] = self.sums.get(name, 0.0) + took
        self.tops[name] = max(took, self.tops.get(name, 0.0))
        self._at = time.perf_counter()


def measure_index(path: Path, names: list[bytes]) -> None:
    """Adds ids in groups as the writer does: look, add, a slice of upkeep and a commit each."""
    connection = connect(path)
    connection.executescript("".join(STEPS))
    index = HashIndex(Family.ID, SECRET)
    index.load(connection)
    timer, looks, scope = Timer(), 0, bytes(32)
    keys = [index.key(name, scope) for name in names]
    timer.lap("hash a name")
    for at in range(0, len(keys), GROUP):
        group = keys[at : at + GROUP]
        doubtful = [key for key in group if not index.recent(key) and index.maybe_stored(key)]
        timer.lap("look in memory")
        looks += len(doubtful)
        if doubtful:
            index.read_stored(connection, doubtful)
            timer.lap("look on disk")
        connection.execute("BEGIN")
        index.merge_step(connection, SLICE_ROWS)
        timer.lap("flush and merge")
        connection.execute("COMMIT")
        timer.lap("commit")
        for offset, key in enumerate(group, at + 1):
            index.add(key, offset)
        index.adopt()
        timer.lap("add")
        if index.recent_count >= FLUSH and not index.is_flushing:
            index.begin_flush(at + GROUP)
    report(timer, len(keys))
    print(f"  {looks / len(keys):.1%} of new ids were looked for on disk")
    print(
        f"  {index.filter_bytes / len(keys):.1f} bytes of filter a pair, {path.stat().st_size / len(keys):.1f} on disk"
    )
    sample = random.Random(1).sample(keys, len(keys) // 100)  # noqa: S311 - no secret
    wanted = [key for key in sample if not index.recent(key)]
    timer.lap("")
    for at in range(0, len(wanted), GROUP):
        assert all(index.read_stored(connection, wanted[at : at + GROUP]).values())
    timer.lap("repeated id")
    print(f"  {timer.sums['repeated id'] / len(wanted) * 1e6:.1f} µs to find a repeated id on disk")
    HashIndex(Family.ID, SECRET).load(connection)
    timer.lap("load")
    print(f"  {timer.sums['load'] * 1e3:.0f} ms to load at start")


def measure_btree(path: Path, names: list[bytes]) -> None:
    """Adds the same hashes to a B-tree, as an index over them would."""
    connection = connect(path)
    connection.execute("CREATE TABLE id (hash INTEGER PRIMARY KEY, offset INTEGER NOT NULL)")
    index, timer, scope = HashIndex(Family.ID, SECRET), Timer(), bytes(32)
    keys = [index.key(name, scope) - (1 << 63) for name in names]
    timer.lap("hash a name")
    for at in range(0, len(keys), GROUP):
        connection.execute("BEGIN")
        connection.executemany(
            "INSERT INTO id VALUES (?, ?)", zip(keys[at : at + GROUP], range(at, at + GROUP), strict=False)
        )
        timer.lap("look and insert")
        connection.execute("COMMIT")
        timer.lap("commit")
        if timer.sums["commit"] + timer.sums["look and insert"] > 20:
            keys = keys[: at + GROUP]
            break
    report(timer, len(keys))
    print(f"  {len(keys):,} pairs (stops after 20 s), {path.stat().st_size / len(keys):.1f} bytes on disk a pair")


def report(timer: Timer, pairs: int) -> None:
    """Prints the mean per pair and the largest single value of each lap."""
    for name, total in timer.sums.items():
        print(f"  {name:16} {total / pairs * 1e6:6.2f} µs a pair, at most {timer.tops[name] * 1e3:7.2f} ms at once")


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else PAIRS
    chance = random.Random(2)  # noqa: S311 - no secret
    ids = [str(uuid.UUID(int=chance.getrandbits(128))).encode() for _ in range(count)]
    with tempfile.TemporaryDirectory() as directory:
        print(f"hash index, {count:,} random UUIDs in groups of {GROUP}:")
        measure_index(Path(directory) / "index.sqlite3", ids)
        print("B-tree over the hashes:")
        measure_btree(Path(directory) / "btree.sqlite3", ids)
