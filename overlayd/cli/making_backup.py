"""Making one backup: copy, check the copy as a stranger would, describe it, put it under its name. Blocking.

It runs in a process of its own, beside the node or in its absence, so that neither the copying nor the checking takes
anything from those who publish but what the disk has to give.
"""

import os
import sqlite3
from contextlib import ExitStack, suppress
from pathlib import Path

import msgspec

from overlayd import __version__
from overlayd.cli.log_check import check_copy, opened_log
from overlayd.cli.log_report import LogReport
from overlayd.cli.own_keys import read_own_keys
from overlayd.model.clock import format_time_us
from overlayd.model.cursor import format_epoch
from overlayd.model.errors import VerificationFailed
from overlayd.model.proof import TrustedKeys
from overlayd.storage import files, queries
from overlayd.storage.backup.catalogue import BackupRecord, backup_id
from overlayd.storage.backup.copying import CopyWatch, copy_database
from overlayd.storage.backup.manifest import (
    FORMAT,
    MANIFEST_NAME,
    REGTEST_NAME,
    Manifest,
    describe_file,
    encode_manifest,
)
from overlayd.storage.backup.partials import partial_directory
from overlayd.storage.backup.settings import BackupSettings


class MadeBackup(msgspec.Struct, frozen=True):
    """A finished backup: its directory, its manifest, and what checking the copy showed."""

    path: str
    manifest: Manifest
    faults: tuple[str, ...]

    @property
    def record(self) -> BackupRecord:
        """As the catalogue lists it."""
        of = self.manifest
        return BackupRecord(
            of.id, of.made_us, self.path, of.bytes, of.log, of.epoch, of.entries, of.root, not self.faults
        )


def default_place(directory: Path) -> Path:
    """Where backups go when nobody says: beside the log, which is no place for the only ones."""
    return directory / "backups"


def make_backup(directory: Path, place: Path, made_us: int, settings: BackupSettings) -> MadeBackup:
    """Copies the log of a directory to `place`/<id>. The copy is checked before it gets its name.

    Raises BackupRefused, VerificationFailed where there is no log, OSError.
    """
    name, place = backup_id(made_us), place.absolute()
    with ExitStack() as stack:
        with opened_log(directory) as (connection, _):
            trusted = read_own_keys(connection, directory).trusted
            partial = stack.enter_context(partial_directory(place, name, trusted.log_id))
            target = partial / files.DATABASE_NAME
            database = directory / files.DATABASE_NAME
            wal = database.with_name(database.name + "-wal")
            copy_database(connection, target, CopyWatch(target, wal, settings))
        _copy_regtest(directory / REGTEST_NAME, partial / REGTEST_NAME, settings)
        report, _ = check_copy(target, directory)
        manifest = _describe(partial, made_us, trusted, report)
        files.replace_file(partial / MANIFEST_NAME, encode_manifest(manifest))
        files.sync_directory(partial)
        partial.rename(place / name)
        files.sync_directory(place)
    return MadeBackup(str(place / name), manifest, tuple(report.faults))


def _copy_regtest(source: Path, target: Path, settings: BackupSettings) -> None:
    if not source.exists():
        return
    connection = sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=5.0)
    try:
        copy_database(connection, target, CopyWatch(target, source.with_name(source.name + "-wal"), settings))
    finally:
        connection.close()


def _describe(partial: Path, made_us: int, trusted: TrustedKeys, report: LogReport) -> Manifest:
    facts = tuple(describe_file(path) for path in sorted(partial.iterdir()))
    connection = sqlite3.connect(f"{(partial / files.DATABASE_NAME).as_uri()}?immutable=1", uri=True)
    try:
        (epoch,) = connection.execute("SELECT max(epoch) FROM epoch").fetchone()
        checkpoint = queries.read_newest_checkpoint(connection, epoch)
        schema = dict(connection.execute("SELECT feature, version FROM schema_version ORDER BY feature"))
    except sqlite3.Error as error:
        raise VerificationFailed(f"the copy can't be read: {error}", subject=files.DATABASE_NAME) from error
    finally:
        connection.close()
    return Manifest(
        FORMAT, backup_id(made_us), made_us, format_time_us(made_us), __version__, sqlite3.sqlite_version, report.log_id,
        format_epoch(epoch), report.entries, report.root, checkpoint.note if checkpoint else "",
        checkpoint.size if checkpoint else 0, tuple(map(str, trusted.log_keys)), schema, facts,
    )  # fmt: skip


def be_gentle() -> None:
    """This process gives way to every other: the least share of processors; the disk's scheduler follows it."""
    with suppress(OSError):  # the node's sandbox may not let it; then it asks for no less than others
        os.nice(19)
