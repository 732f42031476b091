"""The limit of the machine: SQLite alone, given the very rows that a node wrote, in groups of the size it wrote them in."""

import re
import sqlite3
import time
import urllib.request
from pathlib import Path

from benchmarks.samples import Sample, percentile
from benchmarks.servers import Server

ROWS = 20_000
_TABLE = "CREATE TABLE entry (offset INTEGER PRIMARY KEY, e BLOB, leaf BLOB, sealed BLOB) STRICT"

Counts = tuple[float, float]
"""Entries and commits so far."""


def count_commits(server: Server) -> Counts:
    """What the node says of itself."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found = [
        re.search(rf"^overlayd_commit_group_packets_{what} (\S+)", text, re.MULTILINE) for what in ("sum", "count")
    ]
    entries, commits = (float(match[1]) if match else 0.0 for match in found)
    return entries, commits


def group_size(before: Counts, after: Counts) -> int:
    """Entries in a commit on average, in between."""
    commits = after[1] - before[1]
    return max(1, round((after[0] - before[0]) / commits)) if commits else 1


class SqliteLimit:
    """A database of its own, in WAL mode with synchronous=FULL, beside a node's."""

    name = "SQLite alone, same rows and groups"

    def __init__(self, node: Server, directory: Path) -> None:
        directory.mkdir(parents=True)
        self._source = node.directory / "data" / "log.sqlite3"
        self._connection = sqlite3.connect(directory / "limit.sqlite3", isolation_level=None)
        self._connection.execute("PRAGMA page_size = 4096")
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute(_TABLE)
        self._next = 1
        self.group = 1

    def _newest_rows(self) -> list[tuple[bytes, bytes, bytes]]:
        source = sqlite3.connect(f"file:{self._source}?mode=ro", uri=True)
        try:
            found = source.execute("SELECT e, leaf, sealed FROM entry ORDER BY offset DESC LIMIT ?", (ROWS,))
            return found.fetchall()
        finally:
            source.close()

    def insert(self, seconds: float) -> Sample:
        """Inserts groups one after the other for so long; needs a node that has rows."""
        rows = self._newest_rows()
        waits: list[float] = []
        count, began = 0, time.perf_counter()
        cpu_before = time.process_time()
        while (now := time.perf_counter()) - began < seconds:
            group = [(self._next + n, *rows[(count + n) % len(rows)]) for n in range(self.group)]
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany("INSERT INTO entry VALUES (?, ?, ?, ?)", group)
            self._connection.execute("COMMIT")
            self._next += len(group)
            count += len(group)
            waits.append(time.perf_counter() - now)
        elapsed = time.perf_counter() - began
        waits.sort()
        values = {
            "rate": count / elapsed,
            "p50_ms": percentile(waits, 0.5) * 1e3,
            "p99_ms": percentile(waits, 0.99) * 1e3,
        }
        share = (time.process_time() - cpu_before) / elapsed
        return Sample(values, None, share, note=f"groups of {self.group}")  # type: ignore[arg-type]

    def read(self) -> Sample:
        """Reads all rows of the node's log in their order, dropping them."""
        source = sqlite3.connect(f"file:{self._source}?mode=ro", uri=True)
        try:
            count, began = 0, time.perf_counter()
            for _ in source.execute("SELECT offset, e, leaf, sealed FROM entry ORDER BY offset"):
                count += 1
            return Sample({"rate": count / (time.perf_counter() - began)}, note="rows read, nothing sent")
        finally:
            source.close()

    def close(self) -> None:
        """Closes the database."""
        self._connection.close()
