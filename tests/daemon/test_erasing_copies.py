"""Which copies of the log an erasure reports."""

from pathlib import Path

import msgspec

from overlayd.daemon.erasing import copies_before
from overlayd.storage.backup.catalogue import BackupCatalogue, begin_record


def test_copies_that_may_hold_what_was_there(tmp_path: Path) -> None:
    """Backups from before, one that a person deleted among them, and damaged files; not what rotation deleted."""
    catalogue, place = BackupCatalogue(tmp_path), tmp_path / "elsewhere"
    for made_us in (10, 20, 30):
        catalogue.add(msgspec.structs.replace(begin_record(made_us, place), verified=True))
    catalogue.note_removed(frozenset({begin_record(10, place).id}), 99)
    aside = tmp_path / "damaged-20260102T030405Z"
    aside.mkdir()
    (tmp_path / "damaged-note.txt").write_text("a file of somebody's")
    assert copies_before(tmp_path, 30) == [begin_record(20, place).path, str(aside)]
