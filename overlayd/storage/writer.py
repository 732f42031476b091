"""The one task that changes the log. It drains what queued while the last commit ran, judges it, and hands one
plain function to one thread; producers are answered after the COMMIT.
"""

import math
import sqlite3
from collections.abc import Callable
from typing import Any, TypeVar

import structlog
import trio

from overlayd.model.clock import Clock
from overlayd.model.errors import CommitFailed, OverlaydError, StorageFull
from overlayd.model.limits import Limits
from overlayd.model.metrics import COUNTS, Metrics
from overlayd.storage.commit import Call, commit_group
from overlayd.storage.errors import is_fatal, translate_sqlite
from overlayd.storage.group import Group, LogState
from overlayd.storage.intake import Intake, Job
from overlayd.storage.jobs import AppendJob, ChangeJob, CutWalJob, GiveBackJob, PingJob, WriteJob
from overlayd.storage.lookup import Lookups, find_wanted, prepare, prepare_single, read_wanted
from overlayd.storage.maintenance import Maintenance
from overlayd.storage.pace import Pace
from overlayd.storage.settings import StorageSettings
from overlayd.storage.space import PAGES_PER_SLICE, give_back_pages
from overlayd.storage.wal import WalMeter, checkpoint_passive, checkpoint_truncate
from overlayd.storage.writer_thread import WriterThread

T = TypeVar("T")

IDLE_S = 0.5
"""With nothing to write for so long, merges go on and the WAL is cut."""

_log = structlog.get_logger("storage.writer")


class Writer:
    """Owns the writing connection and, as long as it runs, the log's state in memory."""

    def __init__(
        self, connection: sqlite3.Connection, state: LogState, intake: Intake, clock: Clock, *,
        settings: StorageSettings, limits: Limits, metrics: Metrics, on_full: Callable[[], None],
    ) -> None:  # fmt: skip
        self._connection = connection
        self._state = state
        self._intake = intake
        self._clock = clock
        self._linger_s = float(settings.linger)
        self._limits = limits
        self._on_full = on_full
        self._thread = WriterThread("writer")
        self._current: list[Job] = []
        self._maintenance = Maintenance(state, settings.flush_entries)
        self._wal = WalMeter(settings.wal_bytes)
        self._commit_seconds = metrics.loop_histogram(
            "overlayd_commit_seconds", "One group commit, from BEGIN to the COMMIT's return"
        )
        self._group_packets = metrics.loop_histogram(
            "overlayd_commit_group_packets", "Entries in one group commit", buckets=COUNTS
        )
        self._build_seconds = metrics.loop_histogram(
            "overlayd_group_build_seconds", "Judging and hashing one group, before its commit"
        )
        self._wal_seconds = metrics.loop_histogram(
            "overlayd_wal_checkpoint_seconds", "Copying the write-ahead log into the database"
        )

    async def run(self) -> None:
        """Works until the intake is closed and empty. Cancellation doesn't reach it; closing the intake ends it.

        Raises CommitFailed when the disk refused in a way that can't be gone on from; everybody who waits has
        been told by then.
        """
        with trio.CancelScope(shield=True):
            try:
                await self._run()
            except BaseException as err:
                error = err if isinstance(err, OverlaydError) else CommitFailed("the writer failed")
                _log.error("the writer ends", error=error.detail)
                self._intake.close(error)
                for job in (*self._current, *self._intake.take(1 << 62, 1 << 62)):
                    if not job.ticket.is_settled:
                        job.ticket.fail(_copy(error))
                raise

    async def _run(self) -> None:
        while await self._work_until_idle():
            await self._use_idle_moment()

    async def _work_until_idle(self) -> bool:
        """Commits what comes. True when nothing has come for a while, False once the intake is closed and empty."""
        # One scope for all these waits: a scope each costs as much as judging a packet.
        with trio.CancelScope(deadline=self._idle_deadline()) as waiting:
            while True:
                await self._intake.wait_arrival()
                waiting.deadline = math.inf
                if waiting.cancel_called:  # the time was over when a job came: nothing can be awaited in here now
                    break
                if not len(self._intake):
                    return False
                if self._linger_s and not self._intake.is_closed:
                    await trio.sleep(self._linger_s)
                self._current = self._intake.take(self._limits.group_packets, self._limits.group_bytes)
                await self._run_group(self._current)
                self._current = []
                self._maintenance.begin()
                if self._wal.is_due:
                    await self._checkpoint_wal(truncate=False)
                waiting.deadline = self._idle_deadline()
        return True

    def _idle_deadline(self) -> float:
        """Until when to wait for work before what waits for an idle moment is done; for ever where nothing does."""
        is_wanted = self._maintenance.is_due or not self._wal.is_truncated
        return trio.current_time() + IDLE_S if is_wanted else math.inf

    async def _use_idle_moment(self) -> None:
        """Goes on with merges, or cuts the WAL."""
        if len(self._intake):
            return
        if self._maintenance.is_due:
            await self._maintain()
            return
        while not len(self._intake) and await self._give_back():
            pass
        await self._checkpoint_wal(truncate=True)

    async def stop(self) -> None:
        """After `run` has ended and every reader is closed: writes everything out and cuts the WAL.

        Raises CommitFailed.
        """
        with trio.CancelScope(shield=True):
            await self._stop()

    async def _stop(self) -> None:
        if not await self._finish_flush():
            return
        self._maintenance.begin_flush()
        if not await self._finish_flush():
            return
        clean = Call(lambda connection: connection.execute(_SET_CLEAN))
        await self._commit(Group(self._state, self._clock.now_us()), [clean], [], trio.current_time())
        await self._checkpoint_wal(truncate=True)

    async def _finish_flush(self) -> bool:
        """Whether nothing of a flush is left to do."""
        while self._maintenance.is_flushing:
            if not await self._maintain():
                return False
        return True

    async def _maintain(self) -> bool:
        """A transaction of nothing but maintenance; whether it was committed."""
        return await self._commit(Group(self._state, self._clock.now_us()), [], [], trio.current_time(), is_idle=True)

    async def _give_back(self) -> bool:
        """Whether a slice of free pages went back to the disk; there may be more."""
        try:
            is_more = await self.in_thread(give_back_pages)
        except sqlite3.Error as err:
            self._fail([], translate_sqlite(err))
            return False
        if is_more:
            self._wal.note_pages(PAGES_PER_SLICE)
            if self._wal.is_due:
                await self._checkpoint_wal(truncate=False)
        return is_more

    async def _checkpoint_wal(self, *, truncate: bool) -> bool:
        """Whether all of it was copied, and the file cut, where that was asked for."""
        started, is_done = trio.current_time(), True
        try:
            if truncate:
                is_done = await self.in_thread(checkpoint_truncate)
            else:
                await self.in_thread(checkpoint_passive)
        except sqlite3.Error as err:
            self._fail([], translate_sqlite(err))
            is_done = False
        self._wal.note_checkpoint(truncate)
        self._wal_seconds.observe(trio.current_time() - started)
        return is_done

    async def _answer_pings(self, jobs: list[Job]) -> list[Job]:
        """By way of the thread, which may be stuck; gives the other jobs."""
        pings = [job for job in jobs if isinstance(job, PingJob)]
        if pings:
            await self.in_thread(lambda connection: None)
        for job in pings:
            job.ticket.settle(None)
        return [job for job in jobs if not isinstance(job, PingJob)]

    async def _give_back_asked(self, jobs: list[Job]) -> list[Job]:
        """Gives pages back for those who ask for it; gives the other jobs."""
        asked = [job for job in jobs if isinstance(job, GiveBackJob)]
        is_more = bool(asked) and await self._give_back()
        for job in asked:
            job.ticket.settle(is_more)
        return [job for job in jobs if not isinstance(job, GiveBackJob)]

    async def _cut_wal(self, jobs: list[Job]) -> list[Job]:
        """Cuts the write-ahead log for those who ask for it; gives the other jobs."""
        if not any(isinstance(job, CutWalJob) for job in jobs):
            return jobs
        is_done = await self._checkpoint_wal(truncate=True)
        for job in jobs:
            if isinstance(job, CutWalJob):
                job.ticket.settle(is_done)
        return [job for job in jobs if not isinstance(job, CutWalJob)]

    async def in_thread(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Runs a function over the writing connection. For `run` and `stop`, which are shielded."""
        connection = self._connection
        return await self._thread.run_in_shield(lambda: function(connection))

    def close(self) -> None:
        """After `stop`, or when nothing runs any more: ends the thread."""
        self._thread.close()

    async def _run_group(self, jobs: list[Job]) -> None:
        started, pace = trio.current_time(), Pace()
        if any(isinstance(job, CutWalJob | PingJob | GiveBackJob) for job in jobs):
            jobs = await self._cut_wal(await self._give_back_asked(await self._answer_pings(jobs)))
        group = Group(self._state, self._clock.now_us())
        lookups = await self._look_up(jobs, pace)
        if lookups is None:
            return
        answers: list[tuple[Job, Any]] = []
        calls: list[WriteJob] = []
        for job in jobs:
            if isinstance(job, WriteJob):
                calls.append(job)
                continue
            assert isinstance(job, AppendJob | ChangeJob)
            try:
                answers.append((job, await job.judge(group, lookups, pace)))
            except OverlaydError as err:
                job.ticket.fail(err)
        if not group.is_empty or calls:
            waiting: list[Job] = [*(job for job, _ in answers), *calls]
            if not await self._commit(group, [job.call for job in calls], waiting, started):
                return
        for job, answer in answers:
            job.ticket.settle(answer)
            await pace.spend(1)  # whom it tells may write an answer to a socket
        for job in calls:
            job.answer()

    async def _commit(
        self, group: Group, calls: list[Call], waiting: list[Job], started: float, *,
        is_idle: bool = False,
    ) -> bool:  # fmt: skip
        """Whether it is durable and in memory. If not, everybody who waits has been told."""
        group.seal()
        assert group.plan is not None
        tiles, step = group.plan.tiles, self._maintenance.step(group, is_idle)
        actions = [*group.actions, step.run] if step is not None else group.actions
        began = trio.current_time()
        self._build_seconds.observe(began - started)
        try:
            await self.in_thread(
                lambda connection: commit_group(
                    connection, group.row_values, tiles, group.statements, calls, actions
                )
            )  # fmt: skip
        except (sqlite3.Error, OverflowError) as err:
            group.roll_back()
            self._fail(waiting, translate_sqlite(err))
            return False
        self._commit_seconds.observe(trio.current_time() - began)
        self._wal.note_commit(group.row_values, len(tiles))
        self._wal.note_pages(group.pages_changed)
        if group.entries:
            self._group_packets.observe(len(group.entries))
        await group.adopt_indexes(Pace())
        group.adopt()
        if step is not None:
            self._maintenance.adopt(step)
        return True

    async def _look_up(self, jobs: list[Job], pace: Pace) -> Lookups | None:
        """What the judgement needs from the disk, usually nothing; None when that failed and everybody was told."""
        requests = []
        for job in jobs:
            if isinstance(job, AppendJob):
                stream = self._state.book.find(job.request.stream)
                if job.packets == 1:
                    job.prepared = prepare_single(self._state, job.request, stream)
                    await pace.spend(0.5)
                else:
                    job.prepared = await prepare(self._state, job.request, stream, pace)
                requests.append(job.prepared)
        wanted = await find_wanted(self._state, requests, pace)
        if not wanted:
            return Lookups()
        try:
            return await self.in_thread(lambda connection: read_wanted(connection, self._state, wanted))
        except sqlite3.Error as err:
            self._fail(jobs, translate_sqlite(err))
            return None

    def _fail(self, waiting: list[Job], error: OverlaydError) -> None:
        """Tells those whose work was undone; raises the error when the writer can't go on after it."""
        if is_fatal(error):
            raise error
        _log.warning("commit refused", error=error.detail, jobs=len(waiting))
        if isinstance(error, StorageFull):
            self._on_full()
        for job in waiting:
            job.ticket.fail(_copy(error))


def _copy(error: OverlaydError) -> OverlaydError:
    """One object per waiter, so that tracebacks don't grow into each other."""
    return type(error)(error.detail, subject=error.subject, hint=error.hint, retry_after_s=error.retry_after_s)


_SET_CLEAN = "INSERT OR REPLACE INTO state (key, value) VALUES ('is_clean', 1)"
