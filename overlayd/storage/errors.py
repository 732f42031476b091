"""Which SQLite errors are refusals and which end the process. The one table."""

import sqlite3

from overlayd.model.errors import CommitFailed, IntakeBusy, OverlaydError, PacketTooLarge, StorageFull

FULL_RETRY_AFTER_S = 30.0
BUSY_RETRY_AFTER_S = 1.0

_REFUSALS: dict[int, type[OverlaydError]] = {
    sqlite3.SQLITE_FULL: StorageFull,
    sqlite3.SQLITE_IOERR_SHMSIZE: StorageFull,  # the WAL index could not grow: a full disk too
    sqlite3.SQLITE_BUSY: IntakeBusy,
    sqlite3.SQLITE_LOCKED: IntakeBusy,
    sqlite3.SQLITE_TOOBIG: PacketTooLarge,
}
"""Extended or primary result code -> what the producer is told. The transaction was rolled back; the writer goes on.
Every other code is fatal: I/O errors (a failed fsync is one), corruption, not a database, and any that can't occur."""

_WORDS: dict[type[OverlaydError], str] = {
    StorageFull: "there is no room left on the disk; nothing of this request was stored",
    IntakeBusy: "another process holds the database; nothing of this request was stored",
    PacketTooLarge: "the packet is larger than the database can take in one row",
}
_RETRY_AFTER_S: dict[type[OverlaydError], float] = {
    StorageFull: FULL_RETRY_AFTER_S,
    IntakeBusy: BUSY_RETRY_AFTER_S,
}


def translate_sqlite(error: Exception) -> OverlaydError:
    """What a failed transaction means to the one who waits for it. CommitFailed = fatal."""
    code = getattr(error, "sqlite_errorcode", None)
    if isinstance(error, sqlite3.Error) and code is not None:
        refusal = _REFUSALS.get(code) or _REFUSALS.get(code & 0xFF)
        if refusal is not None:
            return refusal(_WORDS[refusal], retry_after_s=_RETRY_AFTER_S.get(refusal))
    elif isinstance(error, sqlite3.DataError):
        return PacketTooLarge(_WORDS[PacketTooLarge])
    name = getattr(error, "sqlite_errorname", None) or type(error).__name__
    return CommitFailed(
        f"the disk refused a commit: {name}: {error}", subject="log.sqlite3",
        hint="the process ends so that the next start can recover from what is on the disk",
    )  # fmt: skip


def is_fatal(error: OverlaydError) -> bool:
    """Whether the writer must not go on after it."""
    return isinstance(error, CommitFailed)


def says_damage(error: BaseException | None) -> bool:
    """Whether it comes from pages that aren't what SQLite wrote, or that the disk can't read any more."""
    while error is not None:
        code = getattr(error, "sqlite_errorcode", None) or 0
        if isinstance(error, sqlite3.OperationalError) and "Could not decode to UTF-8" in str(error):
            return True
        if code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or code in _UNREADABLE:
            return True
        error = error.__cause__ or error.__context__
    return False


_UNREADABLE = (sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ)


def is_of_the_database(error: BaseException) -> bool:
    """Whether it says something about the disk or the file, and not merely about one statement."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF not in _OF_ONE_STATEMENT


_OF_ONE_STATEMENT = {
    sqlite3.SQLITE_ERROR, sqlite3.SQLITE_ABORT, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH,
    sqlite3.SQLITE_RANGE, sqlite3.SQLITE_TOOBIG,
}  # fmt: skip
