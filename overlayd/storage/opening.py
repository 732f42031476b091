"""Opening a log: the directory is locked, the database brought up to date and read, the store's tasks started."""

import errno
import sqlite3
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import structlog
import trio
import trio_asyncio  # type: ignore[import-untyped]

from overlayd.model.bodies import ClockStep
from overlayd.model.clock import Clock, Entropy
from overlayd.model.definition import Definition
from overlayd.model.errors import CommitFailed, ConfigInvalid, LogDamaged, LogInconsistent, OverlaydError, StorageFull
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.model.signer import CheckpointKeys
from overlayd.storage import files, queries
from overlayd.storage.backup.before_migration import keep_before_migration
from overlayd.storage.checkpoints import CheckpointSigner
from overlayd.storage.damage.book import DamageBook
from overlayd.storage.damage.keys_again import find_broken_keys
from overlayd.storage.damage.known_loss import LOST_FACT, Runs, read_runs
from overlayd.storage.damage.mending import Mender, Mending, ask_for_mending
from overlayd.storage.damage.schema import save_schema
from overlayd.storage.epochs import Loss
from overlayd.storage.errors import is_fatal, says_damage, translate_sqlite
from overlayd.storage.group import LogState
from overlayd.storage.housekeeping import ClockWatch, DiskWatch, keep_house
from overlayd.storage.intake import Intake
from overlayd.storage.jobs import ChangeJob, WriteJob, node_job
from overlayd.storage.key_files import KeyFiles
from overlayd.storage.log import Log
from overlayd.storage.log_keys import KeyRing
from overlayd.storage.machine import read_machine
from overlayd.storage.migrations import Feature
from overlayd.storage.readers import ReaderPool
from overlayd.storage.removing import Remover
from overlayd.storage.retention import Retention, RetentionSettings
from overlayd.storage.retention.clock_trust import ClockTrust
from overlayd.storage.retention.cutting import Cutter
from overlayd.storage.retention.figures import RetentionFigures
from overlayd.storage.settings import StorageSettings
from overlayd.storage.start import append_start, load_state, load_tree, open_database
from overlayd.storage.writer import Writer

STOP_GRACE_S = 60.0
"""Longest wait for the last commits when the log is closed."""
_UNUSABLE_PLACE = frozenset(
    (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP,
     errno.ENAMETOOLONG)
)  # fmt: skip
"""What the system says of directories and files that aren't what the settings take them for."""

_RETENTION = RetentionSettings()
_UNREADABLE = (ValueError, TypeError, LookupError, AssertionError, struct.error, msgspec.MsgspecError)
"""What rows with flipped bits are answered with by those who take them apart."""

_log = structlog.get_logger("storage")


class _Opened(msgspec.Struct):
    """What a start made of the directory."""

    lock: files.DirectoryLock
    connection: sqlite3.Connection
    state: LogState
    keys: KeyRing
    has_reserve: bool
    mending: Mending | None
    lost: Runs


@asynccontextmanager
async def open_log(
    directory: Path, *, settings: StorageSettings, limits: Limits, defaults: Definition, clock: Clock,
    entropy: Entropy, metrics: Metrics, features: tuple[Feature, ...] = (), keys: CheckpointKeys | None = None,
    retention: RetentionSettings = _RETENTION,
) -> AsyncIterator[Log]:  # fmt: skip
    """The log in a directory, created if there is none, for the life of the block.

    Leaving the block commits what is queued, signs a last checkpoint and truncates the WAL; by then nobody may read
    any more. When the disk fails, the block is cancelled and CommitFailed is raised out of it. `features` register
    the tables of higher floors. `keys`: where those that sign are found, instead of in files of the directory.

    Raises ConfigInvalid, DirectoryInUse, NewerSchema, LogInconsistent, DamagedEntry, StorageFull, SignerUnavailable.
    """
    keys = keys if keys is not None else KeyFiles(directory, entropy)
    started_us = clock.now_us()
    try:
        opened = await trio.to_thread.run_sync(
            partial(_open, directory, settings, limits, defaults, entropy, metrics, started_us, features, keys)
        )
    except OSError as err:
        if err.errno not in _UNUSABLE_PLACE:
            raise
        raise ConfigInvalid(
            f"{err.filename or directory}: {err.strerror}", subject="storage.dir",
            hint="the data directory must be one, or be made by the node, and belong to it",
        ) from err  # fmt: skip
    failure: Exception | None = None
    try:
        async with trio_asyncio.open_loop() as loop:
            store = _Store(opened, directory, loop, settings, retention, limits, clock, metrics, started_us)
            try:
                async with trio.open_nursery() as nursery:
                    store.start(nursery)
                    try:
                        yield store.log
                    except Exception as err:  # raised again below, outside the nurseries that would wrap it
                        failure = err
                    finally:
                        await store.close_intake()
                        nursery.cancel_scope.cancel()
                await store.close()
            finally:
                store.end_thread()
    finally:
        opened.connection.close()
        opened.lock.release()
    if store.failure is not None:
        if says_damage(store.failure):
            ask_for_mending(directory, str(store.failure))
        raise store.failure
    if failure is not None and store.log.damage.is_told_by(failure):
        ask_for_mending(directory, f"a start failed over what it read: {failure}")
    if failure is not None:
        raise failure


class _Store:
    """The parts of an open log, and their start and end in order."""

    def __init__(
        self, opened: _Opened, directory: Path, loop: trio_asyncio.TrioEventLoop, settings: StorageSettings,
        retention: RetentionSettings, limits: Limits, clock: Clock, metrics: Metrics, started_us: int,
    ) -> None:  # fmt: skip
        state = opened.state
        self.failure: Exception | None = None
        self._connection, self._state = opened.connection, state
        self._clock_watch = ClockWatch(clock, settings.clock_step)
        self._disk = DiskWatch(directory, settings, metrics, has_reserve=opened.has_reserve)
        self._disk.look()
        self._intake = Intake(limits, metrics)
        self._readers = ReaderPool(loop, directory / files.DATABASE_NAME, limits, metrics)
        self._writer = Writer(
            opened.connection, state, self._intake, clock, settings=settings, limits=limits, metrics=metrics,
            on_full=self._disk.note_refusal,
        )  # fmt: skip
        self._signer = CheckpointSigner(
            state, directory, opened.keys, clock, pause_s=settings.checkpoint, metrics=metrics,
            write=self._write, change=self._change, newest=queries.read_newest_checkpoint(opened.connection, state.epoch),
        )  # fmt: skip
        damage = DamageBook(opened.lost, opened.mending, metrics)
        self.log = Log(
            damage=damage, directory=directory, state=state, keys=opened.keys, intake=self._intake, readers=self._readers,
            signer=self._signer, disk=self._disk, clock=clock, started_us=started_us,
            make_retention=partial(self._make_retention, retention, clock, metrics),
        )  # fmt: skip
        self._add_gauges(metrics)

    def _make_retention(
        self, settings: RetentionSettings, clock: Clock, metrics: Metrics, log: Log, remover: Remover
    ) -> Retention:
        trust = ClockTrust(is_always=settings.trust_clock, synced=read_machine().clock_synced)
        trust.load(self._connection)
        cutter = Cutter(
            self._state, self._readers, change=self._change, write=log.write, cut_entries=settings.cut_entries
        )
        return Retention(
            self._state, self._intake, self._readers, remover, log.holds, disk=self._disk, clock=clock,
            settings=settings, figures=RetentionFigures(metrics), trust=trust, cutter=cutter,
        )  # fmt: skip

    def start(self, nursery: trio.Nursery) -> None:
        house = partial(keep_house, self._disk, self._clock_watch, self._append_node)
        for run in (self._writer.run, self._signer.run, house):
            nursery.start_soon(self._guard, run, nursery.cancel_scope)

    async def close_intake(self) -> None:
        """A last checkpoint, then nothing is taken in any more; the writer ends with what is queued."""
        if self.failure is None:
            with trio.move_on_after(STOP_GRACE_S, shield=True):
                try:
                    await self._signer.sign()
                except OverlaydError as err:
                    self.failure = self.failure or err
        self._signer.stop()
        self._intake.close()

    async def close(self) -> None:
        """Readers first, the writer last."""
        with trio.move_on_after(STOP_GRACE_S, shield=True):
            await self._readers.close()
            if self.failure is None:
                try:
                    await self._writer.stop()
                except OverlaydError as err:
                    self.failure = err

    def end_thread(self) -> None:
        """Once nobody writes any more."""
        self._writer.close()

    async def _guard(self, run: Callable[[], Awaitable[None]], scope: trio.CancelScope) -> None:
        """Keeps the error that ends the store in its plain form, and ends everything else."""
        try:
            await run()
        except Exception as err:
            if self.failure is None or isinstance(self.failure, CommitFailed):
                self.failure = err  # a bug in the writer is worth more than those who were told of it
            scope.cancel()

    async def _write(self, job: Callable[[sqlite3.Connection], None]) -> None:
        write_job = WriteJob(job)
        self._intake.put_nowait(write_job)
        await write_job.ticket.wait()

    async def _change(self, job: ChangeJob) -> Any:
        await self._intake.put(job)
        return await job.ticket.wait()

    async def _append_node(self, body: object) -> None:
        if isinstance(body, ClockStep) and self.log.retention.trust.note(body):
            await self._write(self.log.retention.trust.store)
        job = node_job(body)  # type: ignore[arg-type]
        self._intake.put_nowait(job)
        try:
            await job.ticket.wait()
        except OverlaydError as err:
            _log.warning("node entry not recorded", error=err.detail)

    def _add_gauges(self, metrics: Metrics) -> None:
        log = self.log
        metrics.gauge("overlayd_entries", "Offset of the newest entry").set_function(lambda: log.head)
        metrics.gauge("overlayd_streams", "Streams that aren't deleted").set_function(lambda: len(log.list_streams()))
        metrics.gauge("overlayd_database_bytes", "Length of the database file").set_function(
            lambda: log.stats().database_bytes
        )
        metrics.gauge("overlayd_wal_bytes", "Length of the write-ahead log's file").set_function(
            lambda: log.stats().wal_bytes
        )


def _open(
    directory: Path, settings: StorageSettings, limits: Limits, defaults: Definition, entropy: Entropy, metrics: Metrics,
    now_us: int, features: tuple[Feature, ...], keys: CheckpointKeys,
) -> _Opened:  # fmt: skip
    """In a thread: everything up to the boot entry's commit."""
    files.make_directory(directory)
    lock = files.DirectoryLock(directory)
    try:
        _refuse_half_restored(directory)
        secret, _ = files.read_or_make_secret(directory / "keys" / "index.key", 32, entropy)
        mark = files.read_high_water(directory)
        has_reserve = files.take_reserve(directory, settings.reserve)
        load = partial(
            load_state, secret=secret, limits=limits, defaults=defaults, entropy=entropy, metrics=metrics, mark=mark
        )
        opened = partial(_open_database, directory / files.DATABASE_NAME, settings.sync, features, load, keys, now_us)
        mender = Mender(directory, features, secret, now_us)
        try:
            parts = mender.open(opened, load)
        except StorageFull:
            if not files.release_reserve(directory):
                raise
            has_reserve = False
            parts = mender.open(opened, load)
    except BaseException:
        lock.release()
        raise
    return _Opened(lock, *parts, has_reserve, mender.mending, _read_lost(parts[0]))


def _keep_copy(connection: sqlite3.Connection, directory: Path, now_us: int) -> None:
    """Before the schema of a log is changed. Raises BackupRefused, DamagedEntry."""
    (size,) = connection.execute("SELECT coalesce(max(offset), 0) FROM entry").fetchone()
    if size:
        keep_before_migration(connection, directory, load_tree(connection, size).root(), now_us)


def _read_lost(connection: sqlite3.Connection) -> Runs:
    row = connection.execute("SELECT value FROM state WHERE key = ?", (LOST_FACT,)).fetchone()
    return read_runs(row[0]) if row is not None else []


def _refuse_half_restored(directory: Path) -> None:
    """Raises LogInconsistent where a restore was cut off after it had moved the old log aside: another log would begin
    here, empty, in place of both."""
    database = directory / files.DATABASE_NAME
    restored = database.with_name(database.name + files.RESTORED_SUFFIX)
    if restored.exists() and not database.exists():
        raise LogInconsistent(
            f"a restore into {directory} was cut off", subject=str(restored),
            hint="run overlayd restore again; the log that was there before is in replaced-*",
        )  # fmt: skip


def _open_database(
    path: Path, sync: str, features: tuple[Feature, ...],
    load: Callable[[sqlite3.Connection], tuple[LogState, Loss | None]], keys: CheckpointKeys, now_us: int,
) -> tuple[sqlite3.Connection, LogState, KeyRing]:  # fmt: skip
    """Raises StorageFull, which a start can do something about, and LogInconsistent for SQLite's other errors."""
    connection: sqlite3.Connection | None = None
    try:
        connection = open_database(path, sync, features, lambda c: _keep_copy(c, path.parent, now_us))
        state, loss = load(connection)
        if find_broken_keys(connection):
            raise LogDamaged("the list of the log's keys isn't what was stored", subject="log_key")
        queries.read_newest_checkpoint(connection, state.epoch)  # it is read again later, where damage has no remedy
        save_schema(connection, path.parent)
        return connection, state, append_start(connection, state, loss, keys, now_us)
    except BaseException as err:
        if connection is not None:
            connection.close()
        if isinstance(err, _UNREADABLE):  # a row that isn't what was stored, found where nobody thought of it
            raise LogDamaged(f"{path} holds what can't be: {type(err).__name__}: {err}", subject=str(path)) from err
        if not isinstance(err, sqlite3.Error):
            raise
        refusal = translate_sqlite(err)
        if not is_fatal(refusal):
            raise refusal from err
        raise (LogDamaged if says_damage(err) else LogInconsistent)(
            f"{path} can't be opened: {err}", subject=str(path),
            hint="restore it from a backup, or move it away to begin a new log",
        ) from err  # fmt: skip
