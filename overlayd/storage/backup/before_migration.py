"""A backup before the schema is changed: the way back to the version before, should the new one not be to somebody's liking.

It is made while nobody uses the log, and lies with the other backups. Blocking.
"""

import sqlite3
from pathlib import Path

import structlog

from overlayd import __version__
from overlayd.model.clock import format_time_us
from overlayd.model.cursor import Epoch, format_epoch
from overlayd.model.errors import BackupRefused
from overlayd.model.note import VerifierKey, log_id_of, origin_of
from overlayd.storage import files, queries
from overlayd.storage.backup.catalogue import BackupCatalogue, BackupRecord, backup_id, begin_record, take_away
from overlayd.storage.backup.copying import CopyWatch, copy_database, sync_file
from overlayd.storage.backup.manifest import FORMAT, MANIFEST_NAME, Manifest, describe_file, encode_manifest
from overlayd.storage.backup.partials import partial_directory
from overlayd.storage.backup.settings import BackupSettings
from overlayd.storage.log_keys import read_key_rows

KEPT = 2
"""So many of these stay; an older one goes when a new one is there."""
SUFFIX = "-before-migration"
_log = structlog.get_logger("storage.backup")


def keep_before_migration(connection: sqlite3.Connection, directory: Path, root: bytes, now_us: int) -> Path:
    """Copies the log of a data directory to `backups/`. `root`: the tree's. Gives where it is.

    Raises BackupRefused, which keeps the new version from starting, and leaves everything to the old one.
    """
    place, name = (directory / "backups").absolute(), f"{backup_id(now_us)}{SUFFIX}"
    needed, free = files.file_bytes(directory / files.DATABASE_NAME), files.free_bytes(directory)
    if free < needed:
        raise BackupRefused(
            f"the schema is to be changed, and the backup before it takes {needed} bytes; {free} are free",
            subject=str(directory), hint="make room, or install the version before again",
        )  # fmt: skip
    catalogue = BackupCatalogue(directory)
    with partial_directory(place, name, _log_id_of(connection)) as partial:
        target = partial / files.DATABASE_NAME
        copy_database(connection, target, CopyWatch(target, directory / "no-wal", BackupSettings()))
        manifest = _describe(connection, target, root, now_us, name)
        (partial / MANIFEST_NAME).write_bytes(encode_manifest(manifest))
        sync_file(partial / MANIFEST_NAME)
        catalogue.add(_record(manifest, place / name))
        partial.rename(place / name)
        files.sync_directory(place)
    _forget_oldest(catalogue, now_us)
    _log.warning("the schema is changed by this version; the log as it was is kept", backup=str(place / name))
    return place / name


def _describe(connection: sqlite3.Connection, target: Path, root: bytes, now_us: int, name: str) -> Manifest:
    (epoch,) = connection.execute("SELECT max(epoch) FROM epoch").fetchone()
    (entries,) = connection.execute("SELECT max(offset) FROM entry").fetchone()
    checkpoint = queries.read_newest_checkpoint(connection, epoch)
    keys = [row.public_key for row in read_key_rows(connection) if row.from_size is not None]
    log_id = _log_id_of(connection)
    vkeys = tuple(str(VerifierKey(origin_of(log_id, Epoch(epoch)), key)) for key in keys)
    schema = dict(connection.execute("SELECT feature, version FROM schema_version ORDER BY feature"))
    return Manifest(
        FORMAT, name, now_us, format_time_us(now_us), f"before {__version__}", sqlite3.sqlite_version, log_id,
        format_epoch(epoch), entries, root.hex(), checkpoint.note if checkpoint else "",
        checkpoint.size if checkpoint else 0, vkeys, schema, (describe_file(target),),
    )  # fmt: skip


def _log_id_of(connection: sqlite3.Connection) -> str:
    """The log's name by its first key; "" while it has none."""
    first = next((row.public_key for row in read_key_rows(connection) if row.from_size is not None), b"")
    return log_id_of(first) if first else ""


def _record(manifest: Manifest, path: Path) -> BackupRecord:
    bare = begin_record(manifest.made_us, path.parent)
    return BackupRecord(
        manifest.id, bare.made_us, str(path), manifest.bytes, manifest.log, manifest.epoch, manifest.entries,
        manifest.root, verified=False,
    )  # fmt: skip


def _forget_oldest(catalogue: BackupCatalogue, now_us: int) -> None:
    there = [record for record in catalogue.all() if record.id.endswith(SUFFIX) and not record.removed_us]
    catalogue.note_removed(frozenset(take_away(there[:-KEPT])), now_us)
