"""When the write-ahead log is copied into the database: between groups about each MiB, and wholly when idle."""

import sqlite3
from collections.abc import Sequence
from typing import Any

FRAME_BYTES = 4096 + 24
_ROW_BYTES = 220
"""About what a row costs beside its sealed part."""
_COMMIT_FRAMES = 3
"""Pages that a commit writes whatever it holds: the table's last leaf, its parent, another table's."""


class WalMeter:
    """Estimates what was written to the WAL since it was last copied; the file's length doesn't tell."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self.written_bytes = 0
        self.is_truncated = False

    def note_commit(self, row_values: Sequence[Any], tiles: int) -> None:
        sealed = sum(map(len, row_values[3::4])) + _ROW_BYTES * (len(row_values) // 4)
        self.written_bytes += sealed + sealed // 16 + (2 * tiles + _COMMIT_FRAMES) * FRAME_BYTES
        self.is_truncated = False

    def note_pages(self, pages: int) -> None:
        self.written_bytes += pages * FRAME_BYTES
        self.is_truncated = False

    @property
    def is_due(self) -> bool:
        return self.written_bytes >= self._bytes_max

    def note_checkpoint(self, truncated: bool) -> None:
        self.written_bytes = 0
        self.is_truncated = truncated


def checkpoint_passive(connection: sqlite3.Connection) -> None:
    """Copies what no reader holds back."""
    connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()


def checkpoint_truncate(connection: sqlite3.Connection) -> bool:
    """Copies everything and cuts the file; whether no reader stood in the way."""
    ((busy, _frames, _copied),) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    return not busy
