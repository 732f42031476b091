"""What is stored about signed requests, so that none of them can be sent again after a restart."""

import sqlite3
from collections.abc import Mapping

from overlayd.storage.migrations import Feature

IDENTITY_FEATURE = Feature(
    "identity",
    (
        """
CREATE TABLE identity_horizon (
    key BLOB PRIMARY KEY,  -- 33 bytes
    until_us INTEGER NOT NULL  -- no nonce with a later time was taken
) STRICT, WITHOUT ROWID;
CREATE TABLE identity_nonce (
    mark BLOB PRIMARY KEY  -- of key and nonce
) STRICT, WITHOUT ROWID;
CREATE TABLE identity_nonce_count (
    key BLOB PRIMARY KEY,
    nonces INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
""",
    ),
)


def read_horizons(connection: sqlite3.Connection) -> dict[bytes, int]:
    """Until when nonces of each identity may have been taken, Unix microseconds."""
    return dict(connection.execute("SELECT key, until_us FROM identity_horizon"))


def write_horizons(connection: sqlite3.Connection, horizons: Mapping[bytes, int], before_us: int) -> None:
    """Stores some, and drops those that lie before a time."""
    connection.execute("DELETE FROM identity_horizon WHERE until_us < ?", (before_us,))
    connection.executemany("INSERT OR REPLACE INTO identity_horizon (key, until_us) VALUES (?, ?)", horizons.items())


def take_nonce(connection: sqlite3.Connection, key: bytes, marks: tuple[bytes, ...], most: int) -> bool | None:
    """Stores a nonce's marks for good. Whether all of them are new; None when the identity has `most` already."""
    row = connection.execute("SELECT nonces FROM identity_nonce_count WHERE key = ?", (key,)).fetchone()
    count = row[0] if row else 0
    if any(connection.execute("SELECT 1 FROM identity_nonce WHERE mark = ?", (mark,)).fetchone() for mark in marks):
        return False
    if count >= most:
        return None
    connection.executemany("INSERT INTO identity_nonce (mark) VALUES (?)", [(mark,) for mark in marks])
    connection.execute("INSERT OR REPLACE INTO identity_nonce_count (key, nonces) VALUES (?, ?)", (key, count + 1))
    return True
