"""The node's side of backups: one at a time, what a process may answer, what is told of it."""

import json
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from storage_rig import Rig, append

from overlayd.model.errors import BackupRefused
from overlayd.model.units import Duration
from overlayd.storage.backup.catalogue import BackupRecord
from overlayd.storage.backup.runner import BackupRunner
from overlayd.storage.backup.settings import BackupSettings
from overlayd.storage.log import Log

ANSWER = """
import json, sys
arguments = sys.argv[1:]
value = lambda name: arguments[arguments.index(name) + 1]
record = {"id": "made", "made_us": int(value("--at")), "path": value("--to") + "/made", "bytes": 5, "log": "l", "epoch": "e",
          "entries": 3, "root": "r", "verified": True}
"""
TELLS = ANSWER + "print(json.dumps(record))"
DAMAGED = ANSWER + "record['verified'] = False; print(json.dumps(record))"
REFUSES = "import sys; sys.exit('overlayd: there is no room for the copy')"
WAL = "import sys; sys.exit('overlayd: the write-ahead log grew (backup.wal_bytes)')"
BABBLES = "print('done!')"
SLEEPS = "import time; time.sleep(60)"


class Told:
    """Gets what the node's events are told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.told = trio.Event()

    async def __call__(self, type: str, data: dict[str, object]) -> None:
        self.events.append((type, data))
        self.told.set()


def runner_of(rig: Rig, log: Log, script: str, told: Told, **settings: Any) -> BackupRunner:
    """One whose process is a script."""
    return BackupRunner(
        log, rig.directory, msgspec.structs.replace(BackupSettings(), **settings), clock=rig.clock, metrics=rig.metrics,
        announce=told, command=[sys.executable, "-c", script],
    )  # fmt: skip


async def outcome(rig: Rig, script: str, **settings: Any) -> tuple[BackupRunner, Told, list[BackupRecord]]:
    """One backup, asked for and ended."""
    told = Told()
    async with rig.open() as log, trio.open_nursery() as nursery:
        await append(log, "a")
        runner = runner_of(rig, log, script, told, **settings)
        nursery.start_soon(runner.run)
        await runner.ask()
        with pytest.raises(BackupRefused, match="being made"):
            await runner.ask()
        await told.told.wait()
        records = list(await runner.read_list())
        nursery.cancel_scope.cancel()
    return runner, told, records


async def test_made(rig: Rig) -> None:
    """It is listed, counted, told, and a checkpoint covers what it holds."""
    runner, told, records = await outcome(rig, TELLS)
    assert runner.last is not None
    assert runner.last.state == "done"
    assert [record.id for record in records if record.verified] == ["made"]
    assert told.events == [("backup.made", {"id": "made", "path": f"{rig.directory}/backups/made", "bytes": 5, "entries": 3,
                                            "verified": True})]  # fmt: skip
    assert rig.metrics.registry.get_sample_value("overlayd_backups_total", {"result": "ok"}) == 1
    assert rig.metrics.registry.get_sample_value("overlayd_backup_last_seconds") == pytest.approx(rig.clock.us / 1e6)


async def test_copy_with_damage_is_kept_but_not_counted(rig: Rig) -> None:
    """It may be the best there is; it takes no verified one's place."""
    runner, _, records = await outcome(rig, DAMAGED)
    assert runner.last is not None
    assert runner.last.state == "done"
    assert not any(record.verified for record in records)
    assert rig.metrics.registry.get_sample_value("overlayd_backups_total", {"result": "damaged"}) == 1
    assert rig.metrics.registry.get_sample_value("overlayd_backup_last_seconds") == 0


@pytest.mark.parametrize(
    ("script", "reason", "limit"),
    [(REFUSES, "no room", ""), (BABBLES, "told nothing", ""), (WAL, "write-ahead", "backup.wal_bytes")],
)
async def test_failures_are_told(rig: Rig, script: str, reason: str, limit: str) -> None:
    """Why there is none; nothing is listed as if it were there; the node goes on."""
    runner, told, records = await outcome(rig, script)
    assert runner.last is not None
    assert runner.last.state == "failed"
    assert reason in runner.last.error
    assert all(record.removed_us for record in records)
    assert [type for type, _ in told.events] == ["backup.failed"]
    assert rig.metrics.registry.get_sample_value("overlayd_backups_total", {"result": "failed"}) == 1
    assert rig.limit_hits(limit) == bool(limit)


async def test_timeout(rig: Rig) -> None:
    """`timeout`: one that doesn't end is ended."""
    runner, _, _ = await outcome(rig, SLEEPS, timeout=Duration(0.05))
    assert runner.last is not None
    assert "longer than" in runner.last.error
    assert rig.limit_hits("backup.timeout") == 1


async def test_begun_backup_is_on_record_before_it_is_made(rig: Rig) -> None:
    """A node that dies while one is made leaves a line about it, for whoever erases later."""
    async with rig.open() as log:
        runner = runner_of(rig, log, TELLS, Told())
        run = await runner.ask()
        listed = json.loads((rig.directory / "backups.json").read_bytes())
        assert [(record["id"], record["verified"]) for record in listed] == [(run.record.id, False)]
        assert Path(listed[0]["path"]).parent == rig.directory / "backups"


async def test_unreadable_list_keeps_nobody_from_starting(rig: Rig) -> None:
    """The node says so and goes on; asking for a backup is what fails."""
    async with rig.open() as log, trio.open_nursery() as nursery:
        (rig.directory / "backups.json").write_bytes(b"{")
        runner = runner_of(rig, log, TELLS, Told())
        nursery.start_soon(runner.run)
        await trio.testing.wait_all_tasks_blocked(0.01)
        with pytest.raises(Exception, match="can't be read"):
            await runner.ask()
        assert not runner.is_running
        nursery.cancel_scope.cancel()
