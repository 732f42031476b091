"""Pairs of a hash index that can't be worked out again: their packets were reduced before a flush wrote them out.

A start rebuilds an index's newest pairs from the entries, and a reduced entry has no names any more. So whoever takes
the names away writes their pairs here in the same transaction; the flush that puts them in a run clears them.
"""

import sqlite3
from collections.abc import Sequence

from overlayd.storage.packed import insert_rows

TABLES = """
CREATE TABLE hash_held (
    family INTEGER NOT NULL,
    offset INTEGER NOT NULL,
    hash BLOB NOT NULL,  -- u64, big-endian
    PRIMARY KEY (family, offset, hash)
) STRICT, WITHOUT ROWID;
"""

_INSERT = "INSERT OR IGNORE INTO hash_held (family, offset, hash) VALUES"


def hold(connection: sqlite3.Connection, family: int, pairs: Sequence[tuple[int, int]]) -> None:
    """Keeps (hash, offset) pairs for the next start."""
    insert_rows(connection, _INSERT, [(family, offset, key.to_bytes(8, "big")) for key, offset in pairs])


def read_held(connection: sqlite3.Connection, family: int) -> list[tuple[int, int]]:
    """The (hash, offset) pairs of a family, by offset."""
    rows = connection.execute("SELECT hash, offset FROM hash_held WHERE family = ? ORDER BY offset", (family,))
    return [(int.from_bytes(key, "big"), offset) for key, offset in rows]


def let_go(connection: sqlite3.Connection, family: int, up_to_offset: int) -> None:
    """Runs hold every pair up to this offset."""
    connection.execute("DELETE FROM hash_held WHERE family = ? AND offset <= ?", (family, up_to_offset))
