"""The way to the writer: a queue bounded in packets and bytes, and the ticket on which a job's sender waits."""

from collections import deque
from typing import Any, Generic, Protocol, TypeVar

import trio

from overlayd.model.errors import IntakeBusy, OverlaydError, ShuttingDown
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics

T = TypeVar("T")

RETRY_AFTER_S = 1.0


class Ticket(Generic[T]):
    """A promise of the writer's answer. Settled exactly once, by the writer."""

    __slots__ = ("_answer", "_error", "_event")

    def __init__(self) -> None:
        self._event = trio.Event()
        self._answer: T | None = None
        self._error: BaseException | None = None

    @property
    def is_settled(self) -> bool:
        return self._event.is_set()

    def settle(self, answer: T) -> None:
        assert not self._event.is_set()
        self._answer = answer
        self._event.set()

    def fail(self, error: BaseException) -> None:
        assert not self._event.is_set()
        self._error = error
        self._event.set()

    async def wait(self) -> T:
        """The answer. Checkpoint; cancelling it doesn't take the job back. Raises what the writer refused with."""
        await self._event.wait()
        if self._error is not None:
            raise self._error
        return self._answer  # type: ignore[return-value]


class AnyTicket(Protocol):
    """Whom the writer tells: once, in its own task, which must not fail or wait there."""

    @property
    def is_settled(self) -> bool: ...

    def settle(self, answer: Any) -> None: ...

    def fail(self, error: BaseException) -> None: ...


class Job(Protocol):
    """Something for the writer: how heavy it is, and whom to tell."""

    packets: int
    bytes: int

    @property
    def ticket(self) -> AnyTicket: ...


class _Waiter:
    """A sender in front of a full intake."""

    __slots__ = ("event", "is_admitted", "job")

    def __init__(self, job: Job) -> None:
        self.job = job
        self.event = trio.Event()
        self.is_admitted = False


class Intake:
    """Jobs on their way to the writer, first come first served.

    A job that is larger than the bounds on its own is let in when nothing else waits.
    """

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self._limits = limits
        self._metrics = metrics
        self._jobs: deque[Job] = deque()
        self._waiting: deque[_Waiter] = deque()
        self._arrival = trio.Event()
        self._refusal: OverlaydError | None = None
        self.packets = 0
        self.bytes = 0
        metrics.gauge("overlayd_intake_packets", "Packets waiting for the writer").set_function(lambda: self.packets)
        metrics.gauge("overlayd_intake_bytes", "Bytes waiting for the writer").set_function(lambda: self.bytes)

    async def put(self, job: Job) -> None:
        """Queues the job, waiting at most `admit_timeout` for room. Can be cancelled, but lets others run only when it
        waits: whoever puts a job then waits for its ticket. Once it returned the job will be judged, whatever
        becomes of the caller. Raises IntakeBusy, or what the intake was closed with."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._refusal is not None:
            await trio.lowlevel.checkpoint()
            raise self._fresh_refusal()
        if not self._waiting and self._has_room(job):
            self._push(job)
            return
        waiter = _Waiter(job)
        self._waiting.append(waiter)
        try:
            with trio.move_on_after(self._limits.admit_timeout):
                await waiter.event.wait()
        finally:
            if not waiter.is_admitted and waiter in self._waiting:
                self._waiting.remove(waiter)
        if waiter.is_admitted:
            return
        if self._refusal is not None:
            raise self._fresh_refusal()
        is_packets = self.packets + job.packets > self._limits.intake_packets
        self._metrics.count_limit_hit("intake_packets" if is_packets else "intake_bytes")
        self._metrics.count_limit_hit("admit_timeout")
        raise IntakeBusy(
            f"the intake was full for {self._limits.admit_timeout}", subject="intake",
            hint="send less at once, or again in a moment", retry_after_s=RETRY_AFTER_S,
        )  # fmt: skip

    def try_put(self, job: Job) -> bool:
        """Queues the job if that needs no wait and nothing refuses it: `put` would say what does."""
        if self._refusal is not None or self._waiting or not self._has_room(job):
            return False
        self._push(job)
        return True

    def put_nowait(self, job: Job) -> None:
        """Queues one of the node's own jobs past the bounds; there are never more than a handful of them."""
        if self._refusal is not None:
            raise self._fresh_refusal()
        self._push(job)

    async def wait_arrival(self) -> None:
        """Returns once there is a job, or the intake was closed. A checkpoint."""
        if self._jobs or self._refusal is not None:
            await trio.lowlevel.checkpoint()
            return
        self._arrival = trio.Event()
        await self._arrival.wait()

    def take(self, packets: int, size: int) -> list[Job]:
        """The next jobs in order, up to the bounds but at least one if there is any."""
        taken: list[Job] = []
        while self._jobs:
            job = self._jobs[0]
            packets -= job.packets
            size -= job.bytes
            if taken and (packets < 0 or size < 0):
                self._metrics.count_limit_hit("group_packets" if packets < 0 else "group_bytes")
                break
            self._jobs.popleft()
            self.packets -= job.packets
            self.bytes -= job.bytes
            taken.append(job)
        while self._waiting and self._has_room(self._waiting[0].job):
            waiter = self._waiting.popleft()
            waiter.is_admitted = True
            self._push(waiter.job)
            waiter.event.set()
        return taken

    def close(self, refusal: OverlaydError | None = None) -> None:
        """Lets nothing more in; what is queued stays for the writer to take."""
        self._refusal = refusal or ShuttingDown("the node is stopping", retry_after_s=5.0)
        self._arrival.set()
        for waiter in self._waiting:
            waiter.event.set()
        self._waiting.clear()

    @property
    def is_closed(self) -> bool:
        return self._refusal is not None

    def __len__(self) -> int:
        return len(self._jobs)

    def __repr__(self) -> str:
        return (
            f"Intake(jobs={len(self._jobs)}, packets={self.packets}, bytes={self.bytes}, waiting={len(self._waiting)})"
        )

    def _push(self, job: Job) -> None:
        self._jobs.append(job)
        self.packets += job.packets
        self.bytes += job.bytes
        self._arrival.set()

    def _has_room(self, job: Job) -> bool:
        if not self._jobs:
            return True
        return (
            self.packets + job.packets <= self._limits.intake_packets
            and self.bytes + job.bytes <= self._limits.intake_bytes
        )

    def _fresh_refusal(self) -> OverlaydError:
        """A new object each time: one exception raised by many tasks would grow one traceback for all."""
        first = self._refusal
        assert first is not None
        return type(first)(
            first.detail, subject=first.subject, hint=first.hint, retry_after_s=first.retry_after_s, extra=first.extra
        )
