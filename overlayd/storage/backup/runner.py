"""The node's side of backups: one at a time, each made by a process of its own, and all of them remembered."""

import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import msgspec
import structlog
import trio

from overlayd.model.clock import Clock
from overlayd.model.errors import BackupRefused, OverlaydError
from overlayd.model.metrics import Metrics
from overlayd.storage.backup.catalogue import BackupCatalogue, BackupRecord, begin_record, rotate_backups
from overlayd.storage.backup.settings import BackupSettings
from overlayd.storage.log import Log

ERROR_CHARS_MAX = 2000
_log = structlog.get_logger("backup")
_RECORD = msgspec.json.Decoder(BackupRecord)

Announce = Callable[[str, dict[str, object]], Awaitable[None]]
"""Tells the node's own events: type and data."""


class BackupRun(msgspec.Struct, frozen=True):
    """A backup that is being made, or the last one. `state`: running, done or failed, then `error` says why."""

    record: BackupRecord
    state: str
    error: str = ""


class BackupRunner:
    """Makes backups when asked. `run` does the work; `ask` only says that there is some."""

    def __init__(
        self, log: Log, directory: Path, settings: BackupSettings, *, clock: Clock, metrics: Metrics, announce: Announce,
        command: Sequence[str] | None = None,
    ) -> None:  # fmt: skip
        """`command`: what makes one; this program, unless a test says so."""
        self._log = log
        self._directory = directory
        self._settings = settings
        self.place = (Path(settings.dir) if settings.dir else directory / "backups").absolute()
        self.catalogue = BackupCatalogue(directory)
        self._clock = clock
        self._announce = announce
        self._command = list(command or _own_command())
        self._limiter = trio.CapacityLimiter(1)
        self._asked = trio.Event()
        self._metrics = metrics
        self.last: BackupRun | None = None
        self._count = metrics.counter("overlayd_backups", "Backups that were asked for, by how they ended", "result")
        self._seconds = metrics.histogram(
            "overlayd_backup_seconds", "Making and checking one backup", buckets=(1, 5, 15, 60, 300, 900, 3600, 14400)
        )
        self._made_us = 0
        metrics.gauge(
            "overlayd_backup_last_seconds", "Unix time at which the newest verified backup was begun; 0: none"
        ).set_function(lambda: self._made_us / 1e6)

    def __repr__(self) -> str:
        return f"BackupRunner(to={str(self.place)!r}, last={self.last and self.last.state})"

    @property
    def is_running(self) -> bool:
        return self.last is not None and self.last.state == "running"

    async def read_list(self) -> Sequence[BackupRecord]:
        """Every backup that was made, oldest first. Checkpoint. Raises LogInconsistent."""
        return await trio.to_thread.run_sync(self.catalogue.all, limiter=self._limiter)

    async def ask(self) -> BackupRun:
        """Begins one and returns; its record is durable by then. Checkpoint. Raises BackupRefused while one is made."""
        if self.is_running:
            raise BackupRefused("a backup is being made", subject="backup", hint="wait for it: overlayd backup list")
        record = begin_record(self._clock.now_us(), self.place)
        self.last = BackupRun(record, "running")
        try:
            await trio.to_thread.run_sync(self.catalogue.add, record, limiter=self._limiter)
        except BaseException:
            self.last = BackupRun(record, "failed", "its record couldn't be written")
            raise
        self._asked.set()
        return self.last

    async def run(self) -> None:
        """Until cancelled; what is being made then is given up."""
        await self._load()
        while True:
            await self._asked.wait()
            self._asked = trio.Event()
            assert self.last is not None
            await self._make(self.last.record)

    async def _load(self) -> None:
        try:
            self._note_newest(await self.read_list())
        except OverlaydError as error:
            _log.error("the list of backups can't be read", error=error.detail)

    async def _make(self, record: BackupRecord) -> None:
        started = trio.current_time()
        try:
            await self._log.checkpoint(self._log.head)
            made = await self._run_command(record)
            await trio.to_thread.run_sync(self._keep, made, limiter=self._limiter)
            self._note_newest(await self.read_list())
        except (OverlaydError, OSError) as error:
            await self._note_failure(record, error.detail if isinstance(error, OverlaydError) else str(error))
            return
        self._seconds.observe(trio.current_time() - started)
        self._count.labels("ok" if made.verified else "damaged").inc()
        self.last = BackupRun(made, "done")
        told: dict[str, object] = {"id": made.id, "path": made.path, "bytes": made.bytes, "entries": made.entries,
                                   "verified": made.verified}  # fmt: skip
        _log.info("backup made", **told)
        await self._tell("backup.made", told)

    async def _run_command(self, record: BackupRecord) -> BackupRecord:
        settings = self._settings
        arguments = [
            *self._command, "backup", "make-beside", "--data", str(self._directory), "--to", str(self.place), "--at",
            str(record.made_us), "--wal-bytes", str(int(settings.wal_bytes)), "--rate",
            str(int(settings.rate)),
        ]  # fmt: skip
        with trio.move_on_after(float(settings.timeout)) as scope:
            done = await trio.run_process(
                arguments, capture_stdout=True, capture_stderr=True, check=False, stdin=subprocess.DEVNULL,
                env={name: value for name, value in os.environ.items() if name not in _NOT_ITS},
            )  # fmt: skip
        if scope.cancelled_caught:
            self._metrics.count_limit_hit("backup.timeout")
            raise BackupRefused(f"it took longer than {settings.timeout}", subject="backup.timeout")
        if done.returncode:
            error = done.stderr.decode("utf-8", "replace")[-ERROR_CHARS_MAX:].strip()
            if "backup.wal_bytes" in error:
                self._metrics.count_limit_hit("backup.wal_bytes")
            raise BackupRefused(error or f"its process ended with {done.returncode}", subject="backup")
        try:
            return _RECORD.decode(done.stdout)
        except msgspec.DecodeError as error:
            raise BackupRefused("its process told nothing of it", subject="backup") from error

    def _keep(self, made: BackupRecord) -> None:
        """In a thread: it counts from here on, and takes the oldest one's place."""
        self.catalogue.add(made)
        rotate_backups(self.catalogue, self.place, self._settings.keep, self._clock.now_us())

    async def _note_failure(self, record: BackupRecord, reason: str) -> None:
        self._count.labels("failed").inc()
        self.last = BackupRun(record, "failed", reason)
        _log.error("no backup", reason=reason)
        now_us = self._clock.now_us()
        try:
            await trio.to_thread.run_sync(
                lambda: self.catalogue.note_removed(frozenset({record.id}), now_us), limiter=self._limiter
            )
        except (OverlaydError, OSError) as error:
            _log.error("the list of backups can't be written", error=str(error))
        await self._tell("backup.failed", {"id": record.id, "reason": reason})

    async def _tell(self, type: str, data: dict[str, object]) -> None:
        try:
            await self._announce(type, data)
        except OverlaydError as error:
            _log.warning("not told in the node's events", type=type, error=error.detail)

    def _note_newest(self, records: Sequence[BackupRecord]) -> None:
        self._made_us = max((record.made_us for record in records if record.verified), default=0)


_NOT_ITS = frozenset({"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"})
"""What the service manager means for the node alone."""


def _own_command() -> list[str]:
    """How this very program is called again."""
    return [sys.executable] if getattr(sys, "frozen", False) else [sys.executable, "-P", "-m", "overlayd"]
