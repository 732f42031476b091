"""A consistent, compact copy of the database, made beside a node that goes on writing. Blocking.

`VACUUM INTO` on a read-only connection: one read transaction, so that the copy is the log as it was at one moment; the
interpreter lock isn't held; no free page is copied, and with them nothing that was taken away. The writer waits for none
of it, but the write-ahead log can't be cut meanwhile: its length is watched, and a copy that would let it grow without
bound is given up. SQLite's backup interface in steps isn't used: every commit of another connection starts it anew.
"""

import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

from overlayd.model.errors import BackupRefused
from overlayd.storage import files
from overlayd.storage.backup.settings import BackupSettings

LOOK_OPCODES = 2000
"""Steps of SQLite's machine, about 400 rows, after which the copy looks around."""
SYNC_BYTES = 16 << 20
"""So much is written before it is synced, so that a publisher's small sync never waits behind gigabytes."""


class CopyWatch:
    """Looks at a copy while it is made: how long the write-ahead log got, how much was written, whether to stop."""

    def __init__(
        self, target: Path, wal: Path, settings: BackupSettings, *, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        """`sleep`: takes seconds; replaced in tests."""
        self._target = target
        self._wal = wal
        self._settings = settings
        self._sleep = sleep
        self._seen = 0
        self.refusal: BackupRefused | None = None

    def look(self) -> bool:
        """Whether the copy has to be given up; `refusal` says why. SQLite's progress handler."""
        wal_bytes = files.file_bytes(self._wal)
        if wal_bytes > self._settings.wal_bytes:
            self.refusal = BackupRefused(
                f"the write-ahead log grew to {wal_bytes} bytes while the log was copied", subject="backup.wal_bytes",
                hint="back up when less is published, or allow more in [backup] wal_bytes",
            )  # fmt: skip
            return True
        written = files.file_bytes(self._target)
        if written - self._seen >= SYNC_BYTES:
            sync_file(self._target)
            if self._settings.rate:
                self._sleep((written - self._seen) / self._settings.rate)
            self._seen = written
        return False


def copy_database(source: sqlite3.Connection, target: Path, watch: CopyWatch) -> None:
    """All of a database into a new file, synced. `source`: a connection that may only read.

    The file is the owner's alone, wherever it is moved or copied to.
    Raises BackupRefused when the watch gives it up, when there is no room, or when the source is damaged.
    """
    os.close(files.open_file(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL))  # SQLite fills an empty one
    source.set_progress_handler(watch.look, LOOK_OPCODES)
    try:
        source.execute("VACUUM INTO ?", (str(target),))
    except sqlite3.Error as error:
        target.unlink(missing_ok=True)
        raise watch.refusal or _refusal_of(error) from error
    finally:
        source.set_progress_handler(None, 0)
    sync_file(target)


def sync_file(path: Path) -> None:
    """Makes a file's bytes durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refusal_of(error: sqlite3.Error) -> BackupRefused:
    code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return BackupRefused(
            f"the database is damaged and can't be copied whole: {error}", subject=files.DATABASE_NAME,
            hint="overlayd salvage saves what can be saved; older backups are kept",
        )  # fmt: skip
    if code == sqlite3.SQLITE_FULL:
        return BackupRefused("there is no room for the copy", subject="disk", hint="give [backup] dir more room")
    return BackupRefused(f"the copy failed: {error}", subject=files.DATABASE_NAME)
