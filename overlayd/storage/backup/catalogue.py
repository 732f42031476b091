"""Which backups were made: `DIR/backups.json`, outside the database, so that restoring an older one forgets none.

Whoever erases something asks it which copies were made before. One that rotation took away stays listed, as gone, and is no
copy any more. One that a person took away counts as there: nobody knows where it was moved to. Blocking.
"""

import shutil
from pathlib import Path
from typing import Final

import msgspec

from overlayd.model.clock import format_time_us
from overlayd.model.errors import BackupDamaged, LogInconsistent
from overlayd.storage import files
from overlayd.storage.backup.manifest import read_manifest

CATALOGUE_NAME: Final = "backups.json"
RECORDS_MAX = 4096
"""Beyond it the oldest of those that are gone are forgotten."""


class BackupRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A backup: when it was begun (Unix µs), where it was put, how long its files are, and the log's head in it.

    `removed_us`: when rotation took it away; 0 while it should be there.
    """

    id: str
    made_us: int
    path: str
    bytes: int
    log: str
    epoch: str
    entries: int
    root: str
    verified: bool
    removed_us: int = 0

    @property
    def is_there(self) -> bool:
        """Whether its manifest can be seen from here."""
        return (Path(self.path) / "manifest.json").exists()


_DECODER = msgspec.json.Decoder(list[BackupRecord])


def backup_id(made_us: int) -> str:
    """A name that sorts by time: `20260102T030405.678901Z`."""
    return format_time_us(made_us).replace("-", "").replace(":", "")


def begin_record(made_us: int, place: Path) -> BackupRecord:
    """What is listed before the first byte is copied: a crash leaves no copy that nobody knows of."""
    name = backup_id(made_us)
    return BackupRecord(name, made_us, str(place / name), 0, log="", epoch="", entries=0, root="", verified=False)


class BackupCatalogue:
    """The list, read when it is asked for. One writer: the node, or a command while no node runs."""

    def __init__(self, directory: Path) -> None:
        """`directory`: the data directory."""
        self._path = directory / CATALOGUE_NAME

    def __repr__(self) -> str:
        return f"BackupCatalogue({str(self._path)!r})"

    def all(self) -> list[BackupRecord]:
        """Oldest first. Raises LogInconsistent when something else wrote the file."""
        try:
            return _DECODER.decode(files.read_file(self._path))
        except FileNotFoundError:
            return []
        except msgspec.DecodeError as error:
            raise LogInconsistent(
                f"{self._path} can't be read: {error}", subject=str(self._path),
                hint="it only lists the backups that were made; move it away to begin a new list",
            ) from error  # fmt: skip

    def backups_before(self, time_us: int) -> list[BackupRecord]:
        """Those begun before a time that rotation didn't take away, oldest first: what may hold what was there then."""
        return [record for record in self.all() if record.made_us < time_us and not record.removed_us]

    def add(self, record: BackupRecord) -> None:
        """Durable when it returns. One of the same id is replaced."""
        records = [known for known in self.all() if known.id != record.id]
        self._write([*records, record])

    def note_removed(self, ids: frozenset[str], time_us: int) -> None:
        """These were taken away."""
        self._write([
            msgspec.structs.replace(record, removed_us=time_us) if record.id in ids else record for record in self.all()
        ])  # fmt: skip

    def beyond(self, keep: int, place: Path) -> list[BackupRecord]:
        """Those in a place that rotation may take away: what is there, but for the `keep` newest verified ones."""
        there = [record for record in self.all() if not record.removed_us and Path(record.path).parent == place]
        kept = [record.id for record in there if record.verified][-keep:]
        return [record for record in there if record.id not in kept and record.verified and kept]

    def _write(self, records: list[BackupRecord]) -> None:
        records.sort(key=lambda record: record.made_us)
        excess = len(records) - RECORDS_MAX
        if excess > 0:
            gone = [record.id for record in records if record.removed_us][:excess]
            records = [record for record in records if record.id not in gone]
        files.replace_file(self._path, msgspec.json.format(msgspec.json.encode(records), indent=1))


def rotate_backups(catalogue: BackupCatalogue, place: Path, keep: int, now_us: int) -> list[str]:
    """Takes the oldest backups of a place away, as many as are beyond `keep`; gives their ids. A backup that isn't
    whole is never counted, and never taken away; nor is what another node put there."""
    gone = take_away(catalogue.beyond(keep, place))
    catalogue.note_removed(frozenset(gone), now_us)
    return gone


def take_away(records: list[BackupRecord]) -> list[str]:
    """Deletes the files of backups; gives the ids of those of which nothing is left where they were.

    What stands at a backup's path is deleted only if its manifest says that it is this backup of this log: nodes may
    share a place, and a person may have put something else there.
    """
    gone = []
    for record in records:
        path = Path(record.path)
        try:
            manifest = read_manifest(path) if path.exists() else None
        except BackupDamaged:
            continue  # nobody can tell what it is
        if manifest is not None and (manifest.id, manifest.log) == (record.id, record.log):
            shutil.rmtree(path, ignore_errors=True)
            if path.exists():
                continue  # what can't be deleted is still a copy
        gone.append(record.id)
    return gone
