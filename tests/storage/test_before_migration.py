"""Before a schema that is in use is changed, the log as it was is kept; and every released schema can be brought up to date."""

import gzip
import hashlib
import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from storage_rig import Rig, append, draft, drafts, receipts

from overlayd.cli.log_check import check_log
from overlayd.cli.restoring import inspect_backup
from overlayd.config.dialects import AgentPipeSettings, agentpipe_features
from overlayd.daemon.serving import FEATURES
from overlayd.model.errors import BackupRefused, NewerSchema
from overlayd.model.proof import TrustedKeys
from overlayd.storage.backup import before_migration
from overlayd.storage.backup.catalogue import BackupCatalogue
from overlayd.storage.backup.manifest import read_manifest
from overlayd.storage.migrations import Feature

SCHEMAS = sorted((Path(__file__).parents[1] / "data" / "schemas").iterdir())
ALL_FEATURES = (*FEATURES, *agentpipe_features(AgentPipeSettings(enabled=True)))


def feature(steps: int) -> Feature:
    """A feature that has learned so much."""
    scripts = (
        "CREATE TABLE guests (name TEXT) STRICT;",
        *(f"ALTER TABLE guests ADD COLUMN c{n} TEXT;" for n in range(1, steps)),
    )
    return Feature("guests", scripts)


async def grown(rig: Rig, steps: int) -> None:
    """Opens the log with the feature, and appends something."""
    async with rig.open(features=(feature(steps),)) as log:
        await append(log, "s", drafts(*[""] * 10))


async def test_the_log_as_it_was_is_kept(rig: Rig) -> None:
    """A backup like any other, that can be checked and restored; only when tables that were there are changed."""
    async with rig.open() as log:
        await append(log, "s")
    await grown(rig, 1)  # a new feature changes nothing that was there
    assert not (rig.directory / "backups").exists()
    await grown(rig, 1)
    await grown(rig, 2)
    (record,) = BackupCatalogue(rig.directory).all()
    assert record.id.endswith("-before-migration")
    manifest = read_manifest(Path(record.path))
    assert manifest.schema["guests"] == 1
    assert (manifest.entries, manifest.log) == (record.entries, record.log)
    assert inspect_backup(Path(record.path), (), rig.directory).report.is_intact
    with sqlite3.connect(Path(record.path) / "log.sqlite3") as old:
        assert [row[1] for row in old.execute("PRAGMA table_info(guests)")] == ["name"]
    old.close()


async def test_only_the_newest_stay(rig: Rig) -> None:
    """The space that they take is bounded; those that went are still on record."""
    for steps in range(1, 6):
        rig.clock.advance(1)
        await grown(rig, steps)
    records = BackupCatalogue(rig.directory).all()
    assert [record.is_there for record in records] == [False, False, True, True]
    assert [bool(record.removed_us) for record in records] == [True, True, False, False]


async def test_no_room_for_it(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new version doesn't begin what there is no way back from; the log is left to the old one."""
    await grown(rig, 1)
    with monkeypatch.context() as patch:
        patch.setattr(before_migration.files, "free_bytes", lambda directory: 100)
        with pytest.raises(BackupRefused, match="100 are free"):
            await grown(rig, 2)
    await grown(rig, 1)


async def test_newer_database_is_refused_untouched(rig: Rig) -> None:
    """By the feature's name, and with what to do; not a byte of it is changed, and no copy made."""
    await grown(rig, 2)
    before = rig.connect().execute("SELECT * FROM sqlite_schema, schema_version").fetchall()
    with pytest.raises(NewerSchema, match="'guests' have version 2, this program knows 1") as refused:
        await grown(rig, 1)
    assert "restore an older backup" in refused.value.hint
    assert rig.connect().execute("SELECT * FROM sqlite_schema, schema_version").fetchall() == before
    assert not (rig.directory / "backups").exists()


def unpacked(schema: Path, target: Path) -> dict[str, Any]:
    """A released version's log in a directory; the facts about it."""
    facts: dict[str, Any] = json.loads((schema / "facts.json").read_text())
    shutil.copytree(schema / "keys", target / "keys")
    for path in (target / "keys").iterdir():
        path.chmod(0o600)
    for name in ("high-water", "edge", "schema.json"):
        shutil.copy(schema / name, target / name)
    raw = gzip.decompress((schema / "log.sqlite3.gz").read_bytes())
    assert hashlib.sha256(raw).hexdigest() == facts["sha256"]
    (target / "log.sqlite3").write_bytes(raw)
    return facts


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda path: path.name)
async def test_released_schemas(schema: Path, rig: Rig) -> None:
    """A log that a released version wrote is opened with everything in it, and goes on."""
    facts = unpacked(schema, rig.directory)
    rig.clock.us = facts["made_us"]
    async with rig.open(features=ALL_FEATURES) as log:
        assert log.log_id == facts["log"]
        assert (await log.root_at(facts["entries"])).hex() == facts["root"]
        for name, count in facts["streams"].items():
            stream = log.find_stream(name)
            assert stream is not None
            assert stream.packets == stream.head_sequence == count
            (kept,) = await log.read_packets(stream, 6, 1)
            repeat = draft(kept.body.decode(), id="0-6", key="k0")
            (known,) = receipts(await append(log, name, [repeat]))
            assert (known.duplicate, known.sequence) == (True, 7)
        assert log.find_stream("gone") is None
        assert not log.damage.runs
    assert not list(rig.directory.glob("damaged-*"))
    assert check_log(rig.directory, TrustedKeys(())).is_intact
