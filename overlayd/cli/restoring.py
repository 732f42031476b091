"""Putting a backup in place of a log: everything is checked first, nothing of the old log is deleted. Blocking."""

import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import msgspec
from blake3 import blake3

from overlayd.cli.features import known_features
from overlayd.cli.log_check import check_copy
from overlayd.cli.log_report import LogReport
from overlayd.model.clock import Clock
from overlayd.model.cursor import Epoch, epoch_counter, format_epoch, parse_epoch
from overlayd.model.errors import BackupDamaged, RestoreRefused
from overlayd.model.note import VerifierKey
from overlayd.model.proof import TrustedKeys, verify_checkpoint
from overlayd.storage import files
from overlayd.storage.backup.catalogue import backup_id
from overlayd.storage.backup.copying import sync_file
from overlayd.storage.backup.manifest import Manifest, check_files, pieces_of, read_manifest
from overlayd.storage.damage.known_loss import RESTORED_FACT
from overlayd.storage.damage.mending import forget_mending
from overlayd.storage.migrations import check_versions

_SIDES = ("", "-wal", "-shm")
_NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC


class Inspected(msgspec.Struct, frozen=True):
    """A backup whose every byte and entry was looked at."""

    manifest: Manifest
    report: LogReport
    trusted: TrustedKeys


class Known(msgspec.Struct):
    """What is known here of the log beyond the backup: the newest signed and the newest anchored size, and epochs."""

    signed: int = 0
    anchored: int = 0
    epoch: int = 0
    head: int = 0
    is_unreadable: bool = False


class Restored(msgspec.Struct, frozen=True):
    """What a restore did: how much of the log it takes up again, what it loses, where the old files are now."""

    entries: int
    known: Known
    moved_to: str

    @property
    def lost(self) -> int:
        """Entries that are known to have been in the log and aren't in the backup; at least so many."""
        return max(0, max(self.known.head, self.known.signed, self.known.anchored) - self.entries)


def inspect_backup(backup: Path, log_keys: Sequence[str] = (), keys_directory: Path | None = None) -> Inspected:
    """Checks a backup as a stranger would: bytes, entries, tiles, roots, signatures.

    `log_keys`: the log's keys as somebody else knows them. `keys_directory`: a data directory whose key files must be the
    log's, should it have any. Without either, the log's own list is believed.
    Raises BackupDamaged, VerificationFailed.
    """
    manifest = read_manifest(backup)
    check_files(backup, manifest)
    pinned = [VerifierKey.parse(text) for text in log_keys]
    report, trusted = check_copy(backup / files.DATABASE_NAME, keys_directory or backup, pinned)
    stated = (manifest.log, manifest.epoch, manifest.entries, manifest.root)
    found = (report.log_id, report.epoch, report.entries, report.root)
    if stated != found:
        raise BackupDamaged(
            f"{backup}: the manifest speaks of another log: {stated}, not {found}", subject=str(backup),
            hint="take another backup; this one isn't used",
        )  # fmt: skip
    return Inspected(manifest, report, trusted)


def look_at_old(directory: Path, checkpoints: Sequence[str], trusted: TrustedKeys) -> Known:
    """What the directory, and notes of checkpoints that were kept elsewhere, tell of the log that is to be replaced.

    Raises VerificationFailed for a note that the log's keys didn't sign.
    """
    known = Known()
    mark = files.read_high_water(directory)
    if mark is not None:
        known.signed, known.epoch = mark.size, mark.epoch
    database = directory / files.DATABASE_NAME
    if database.exists():
        _look_at_database(database, known)
    for note in checkpoints:
        tree = verify_checkpoint(note, trusted)
        known.anchored = max(known.anchored, tree.checkpoint.size)
        known.epoch = _later(known.epoch, tree.epoch)
    return known


def restore(
    inspected: Inspected, backup: Path, directory: Path, known: Known, clock: Clock, *, may_lose: bool, may_replace: bool
) -> Restored:  # fmt: skip
    """Puts the backup in the directory, which this process holds. The next start begins a new epoch.

    Raises RestoreRefused, NewerSchema for one that no start of this version would open, BackupDamaged when the copy
    isn't what was inspected, OSError.
    """
    manifest = inspected.manifest
    check_versions(manifest.schema, known_features())
    _check_loss(manifest, known, may_lose)
    database = directory / files.DATABASE_NAME
    old = [path for side in _SIDES if (path := database.with_name(database.name + side)).exists()]
    if old and not may_replace:
        raise RestoreRefused(
            f"there is a log in {directory}", subject=str(directory),
            hint="--replace moves it aside; nothing of it is deleted",
        )  # fmt: skip
    fresh = {file.name: _bring(backup, directory, file.name, file.blake3) for file in manifest.files}
    _mark_restored(fresh[files.DATABASE_NAME], _later(known.epoch, parse_epoch(manifest.epoch)))
    forget_mending(directory)
    moved_to = ""
    if old:
        aside = directory / f"replaced-{backup_id(clock.now_us())}"
        aside.mkdir(mode=0o700)
        for path in old:
            path.rename(aside / path.name)
        files.sync_directory(aside)
        moved_to = str(aside)
    for name, path in fresh.items():
        if (directory / name).exists():  # the embedded chain's, say
            (directory / name).rename(Path(moved_to or directory) / f"{name}.replaced")
        path.rename(directory / name)
    files.sync_directory(directory)
    return Restored(manifest.entries, known, moved_to)


def _check_loss(manifest: Manifest, known: Known, may_lose: bool) -> None:
    if may_lose:
        return
    if known.anchored > manifest.entries:
        raise RestoreRefused(
            f"the last anchored checkpoint covers {known.anchored} entries, the backup has {manifest.entries}: the proofs of "
            f"{known.anchored - manifest.entries} anchored entries would speak of a history that this node lost",
            subject="checkpoint", hint="--accept-loss restores it all the same, and the loss is put on record",
        )  # fmt: skip
    if max(known.signed, known.head) > manifest.entries:
        lost = max(known.signed, known.head) - manifest.entries
        raise RestoreRefused(
            f"the log had at least {lost} entries more than the backup's {manifest.entries}; they would be lost",
            subject="entries", hint="--accept-loss restores it all the same, and the loss is put on record; "
            "overlayd salvage may save more of the old log",
        )  # fmt: skip


def _look_at_database(database: Path, known: Known) -> None:
    """Best effort: it may be damaged, which is why it is replaced."""
    try:
        connection = sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)
    except sqlite3.Error:
        known.is_unreadable = True
        return
    for statement, take in (
        ("SELECT max(offset) FROM entry", "head"), ("SELECT max(size) FROM checkpoint WHERE epoch = (SELECT max(epoch) FROM epoch)", "signed"),
        ("SELECT max(size) FROM chain_anchor", "anchored"),
        ("SELECT max(epoch) FROM epoch", "epoch"),
    ):  # fmt: skip
        try:
            (value,) = connection.execute(statement).fetchone()
        except sqlite3.Error:
            known.is_unreadable = True
            continue
        if value is None:
            continue
        value = _later(known.epoch, value) if take == "epoch" else max(getattr(known, take), value)
        setattr(known, take, value)
    connection.close()


def _later(one: int, other: int) -> int:
    return max(one, other, key=lambda epoch: epoch_counter(Epoch(epoch)) if epoch else -1)


def _bring(backup: Path, directory: Path, name: str, blake3_text: str) -> Path:
    """A copy beside its place, whose bytes are those that were inspected."""
    target = directory / f"{name}{files.RESTORED_SUFFIX}"
    hasher = blake3()
    with open(files.open_file(target, _NEW), "wb") as file:
        for piece in pieces_of(backup / name):
            hasher.update(piece)
            file.write(piece)
    if f"blake3:{hasher.hexdigest()}" != blake3_text:
        target.unlink()
        raise BackupDamaged(f"{backup / name} changed while it was read", subject=str(backup))
    sync_file(target)
    return target


def _mark_restored(database: Path, epoch: int) -> None:
    """Has the next start begin an epoch above every one that is known, whatever the high-water mark says."""
    connection = sqlite3.connect(database, isolation_level=None)
    try:
        connection.execute("PRAGMA synchronous = EXTRA")
        connection.execute("INSERT OR REPLACE INTO state (key, value) VALUES (?, ?)", (RESTORED_FACT, epoch))
    finally:
        connection.close()


def describe_epoch(known: Known) -> str:
    """For a person; "" when none is known."""
    return format_epoch(Epoch(known.epoch)) if known.epoch else ""
