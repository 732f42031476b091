"""A damaged database is mended before the log is opened: made anew beside the old one, checked, and put in its place.

Nothing is deleted: the damaged files go to `DIR/damaged-<time>`, with a report. Each step can be cut off and taken up again
by the next start. Blocking.
"""

import os
import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import msgspec
import structlog

from overlayd.model.clock import format_time_us
from overlayd.model.errors import DamagedEntry, LogDamaged, LogInconsistent, OverlaydError
from overlayd.storage import files
from overlayd.storage.damage.indexes_again import fill_indexes
from overlayd.storage.damage.rebuild import NothingLeft, Rebuilt, rebuild
from overlayd.storage.damage.structure import find_broken_structure
from overlayd.storage.damage.tables import TableReport
from overlayd.storage.migrations import Feature
from overlayd.storage.start import load_streams

MARKER_NAME = "mend"
"""Why the next start has to mend; or, while the files are exchanged, where the old ones go."""
ASIDE = "damaged-"
"""Directories of damaged files begin so; the time follows."""
MENDED_NAME = "log.sqlite3.mended"
REPORT_NAME = "report.json"
MENDINGS_MAX = 16
"""So many `damaged-*` directories: then the disk is to be replaced, and not to be filled with copies."""
RUNS_SHOWN = 100
_SIDES = ("", "-wal", "-shm")
_SWAP = "swap "
_log = structlog.get_logger("storage.damage")
T = TypeVar("T")


class Mending(msgspec.Struct, frozen=True):
    """What a mending found and lost, as its report says. Runs of offsets are inclusive."""

    at: str
    reason: str
    kept_in: str
    entries: int
    size: int
    known_size: int
    missing: list[tuple[int, int]]
    hollow: list[tuple[int, int]]
    new_epoch: bool
    damaged_tables: list[str]
    tables: dict[str, TableReport]

    @property
    def lost_count(self) -> int:
        """Entries that can't be served, those cut off at the end included."""
        runs = [*self.missing, *self.hollow]
        return sum(high - low + 1 for low, high in runs) + self.known_size - self.size


class Mender:
    """Opens a directory's database, and mends it first where that is needed."""

    def __init__(self, directory: Path, features: Iterable[Feature], secret: bytes, now_us: int) -> None:
        """`secret`: of the hash index."""
        self._directory = directory
        self._features = tuple(features)
        self._secret = secret
        self._now_us = now_us
        self._database = directory / files.DATABASE_NAME
        self.mending: Mending | None = None

    def open(self, opened: Callable[[], T], check: Callable[[sqlite3.Connection], object]) -> T:
        """What `opened` gives. `check`: compares a database with what was signed, and raises where it contradicts.

        Raises what `opened` raises, LogDamaged where mending doesn't help either.
        """
        reason = self._finish_swap() or find_broken_structure(self._database, self._directory)
        if not reason or not self._database.exists():
            try:
                return opened()
            except (LogDamaged, DamagedEntry) as error:
                reason = error.detail
                if not self._database.exists():
                    raise
        _log.error("the database is damaged; it is made anew from what is left", reason=reason)
        self.mending = self._mend(reason, check)
        return opened()

    def _mend(self, reason: str, check: Callable[[sqlite3.Connection], object]) -> Mending:
        directory, mended = self._directory, self._directory / MENDED_NAME
        self._check_room(reason)
        aside = directory / f"{ASIDE}{format_time_us(self._now_us).replace('-', '').replace(':', '')}"
        try:
            try:
                rebuilt = self._make(mended, check, trusts_tiles=True)
            except LogDamaged:  # a stored tile may be wrong that nothing else contradicts but the signed root
                rebuilt = self._make(mended, check, trusts_tiles=False)
        except (OverlaydError, NothingLeft, sqlite3.Error, OSError) as error:
            mended.unlink(missing_ok=True)
            if isinstance(error, LogInconsistent):
                raise
            raise LogDamaged(
                f"{reason}; {self._database} can't be mended: {error}", subject=str(self._database),
                hint="restore it from a backup, or move it away to begin a new log",
            ) from error  # fmt: skip
        _sync(mended)
        mending = _describe(rebuilt, reason, aside, self._now_us)
        aside.mkdir(mode=0o700, exist_ok=True)
        files.replace_file(aside / REPORT_NAME, msgspec.json.format(msgspec.json.encode(mending), indent=1))
        files.replace_file(directory / MARKER_NAME, f"{_SWAP}{aside.name}".encode())
        self._swap(aside)
        _log.error(
            "the database was mended", lost=mending.lost_count, missing=mending.missing[:RUNS_SHOWN],
            content_lost=mending.hollow[:RUNS_SHOWN], tables=mending.damaged_tables, kept_in=str(aside),
        )  # fmt: skip
        return mending

    def _make(self, mended: Path, check: Callable[[sqlite3.Connection], object], *, trusts_tiles: bool) -> Rebuilt:
        rebuilt = rebuild(
            self._database, mended, directory=self._directory, mark=files.read_high_water(self._directory),
            features=self._features, trusts_tiles=trusts_tiles,
        )  # fmt: skip
        connection = sqlite3.connect(mended, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode = OFF")
            connection.execute("PRAGMA synchronous = OFF")
            fill_indexes(connection, self._secret, load_streams)
            check(connection)
        finally:
            connection.close()
        return rebuilt

    def _check_room(self, reason: str) -> None:
        found = sorted(self._directory.glob(f"{ASIDE}*"))
        if len(found) >= MENDINGS_MAX:
            raise LogDamaged(
                f"{self._database} is damaged again ({reason}), for the {len(found) + 1}th time", subject=str(self._database),
                hint=f"replace the disk; then move {self._directory}/damaged-* away",
            )  # fmt: skip
        needed = sum(files.file_bytes(self._database.with_name(self._database.name + side)) for side in _SIDES[:2])
        free = files.free_bytes(self._directory)
        if free < needed:
            raise LogDamaged(
                f"{self._database} is damaged ({reason}), and mending it takes {needed} bytes; {free} are free",
                subject=str(self._database), hint="make room on the disk, and start again",
            )  # fmt: skip

    def _finish_swap(self) -> str:
        """Takes up what an earlier start was cut off in; gives why this one has to mend, "" for no reason."""
        marker = self._directory / MARKER_NAME
        try:
            text = files.read_file(marker).decode("utf-8", "replace")
        except FileNotFoundError:
            return ""
        if not text.startswith(_SWAP):
            return text or "it was found damaged while it was used"
        if (self._directory / MENDED_NAME).exists():
            self._swap(self._directory / text.removeprefix(_SWAP))
        else:
            marker.unlink()
        return ""

    def _swap(self, aside: Path) -> None:
        aside.mkdir(mode=0o700, exist_ok=True)
        for side in reversed(_SIDES):  # the database last: without it a start would begin a new log
            old = self._database.with_name(self._database.name + side)
            if old.exists() and not (aside / old.name).exists():
                old.rename(aside / old.name)
        files.sync_directory(aside)
        (self._directory / MENDED_NAME).rename(self._database)
        files.sync_directory(self._directory)
        (self._directory / MARKER_NAME).unlink()
        files.sync_directory(self._directory)


def ask_for_mending(directory: Path, reason: str) -> None:
    """Has the next start mend the database, whatever it looks like then. Raises OSError."""
    if not (directory / MARKER_NAME).exists():
        files.replace_file(directory / MARKER_NAME, reason.encode())


def forget_mending(directory: Path) -> None:
    """Gives up a mending that was asked for or cut off, before another log takes the damaged one's place: what was made of
    that one would go over it. Raises OSError."""
    (directory / MARKER_NAME).unlink(missing_ok=True)
    files.sync_directory(directory)
    (directory / MENDED_NAME).unlink(missing_ok=True)


def read_mendings(directory: Path) -> list[Mending]:
    """Every mending that there is a report of, oldest first."""
    found = []
    for path in sorted(directory.glob(f"{ASIDE}*/{REPORT_NAME}")):
        try:
            found.append(msgspec.json.decode(files.read_file(path), type=Mending))
        except (OSError, msgspec.DecodeError, OverlaydError):
            continue
    return found


def _describe(rebuilt: Rebuilt, reason: str, aside: Path, now_us: int) -> Mending:
    return Mending(
        format_time_us(now_us), reason, str(aside), rebuilt.entries, rebuilt.size, rebuilt.known_size, rebuilt.missing,
        rebuilt.hollow, rebuilt.needs_epoch, rebuilt.damaged_tables,
        {name: report for name, report in rebuilt.tables.items() if not report.is_whole},
    )  # fmt: skip


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
