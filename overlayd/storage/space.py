"""Giving pages that removals freed back to the disk, a slice at a time and only when nobody waits."""

import sqlite3

PAGES_PER_SLICE = 256
PAGES_KEPT = 1024
"""Free pages that stay in the file for what is appended next: 4 MiB."""


def give_back_pages(connection: sqlite3.Connection) -> bool:
    """Shortens the file by a slice; whether it did. A transaction of its own. Blocking."""
    (free,) = connection.execute("PRAGMA freelist_count").fetchone()
    if free <= PAGES_KEPT:
        return False
    # The pragma frees one page a step and gives rows without columns, at the first of which `execute` stops.
    connection.executescript(f"PRAGMA incremental_vacuum({min(PAGES_PER_SLICE, free - PAGES_KEPT)})")
    return True
