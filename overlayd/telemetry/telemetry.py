"""What leaves the node about itself, put together: traces and reports of faults, each only if the settings say where to."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from overlayd.model.clock import Clock, Entropy
from overlayd.model.errors import ConfigInvalid, DirectoryInUse, NewerSchema
from overlayd.model.logs import watch_faults
from overlayd.model.metrics import Metrics
from overlayd.model.supervise import supervise
from overlayd.model.traces import SpanBook
from overlayd.outbound import Outbound
from overlayd.telemetry.fault_reports import FaultReports
from overlayd.telemetry.otlp import TraceExporter
from overlayd.telemetry.settings import SentrySettings, TracesSettings


class Telemetry:
    """`spans`: None where no traces are wanted. `run` beside the rest."""

    def __init__(self, chance: random.Random) -> None:
        self.spans: SpanBook | None = None
        self.exporter: TraceExporter | None = None
        self.reports: FaultReports | None = None
        self._chance = chance

    async def run(self) -> None:
        """Sends what there is to tell. Returns at once where nothing is wanted."""
        async with trio.open_nursery() as nursery:
            for name, task in (("traces", self.exporter), ("reports", self.reports)):
                if task is not None:
                    nursery.start_soon(_keep, name, task, self._chance)


@asynccontextmanager
async def open_telemetry(
    traces: TracesSettings, sentry: SentrySettings, outbound: Outbound, *, node: str, clock: Clock, entropy: Entropy,
    metrics: Metrics,
) -> AsyncIterator[Telemetry]:  # fmt: skip
    """Around the node's life: an error that ends it is reported, and what waits is sent, before it is gone."""
    found = Telemetry(random.Random(entropy.draw(8)))  # noqa: S311 - spreads restarts, keeps no secret
    if traces.endpoint:
        found.spans = SpanBook(
            sample=traces.sample, spans_max=traces.spans_max, packets_max=traces.packets_max, clock=clock,
            entropy=entropy, chance=random.Random(entropy.draw(8)), metrics=metrics,  # noqa: S311 - samples
        )  # fmt: skip
        found.exporter = TraceExporter(found.spans, traces, outbound, metrics, node=node)
    if sentry.dsn:
        found.reports = FaultReports(sentry, outbound, node=node, clock=clock, entropy=entropy, metrics=metrics)
        watch_faults(found.reports.note)
    try:
        yield found
    except BaseException as error:
        if found.reports is not None and _is_fault(error):
            found.reports.note(error, "the node ended", "daemon")
        raise
    finally:
        watch_faults(None)
        if found.exporter is not None:
            await found.exporter.stop()
        if found.reports is not None:
            await found.reports.stop()


def _is_fault(error: BaseException) -> bool:
    """Not what an admin is told at the start anyway, nor being cancelled or interrupted."""
    if isinstance(error, BaseExceptionGroup):
        return any(_is_fault(one) for one in error.exceptions)
    return isinstance(error, Exception) and not isinstance(error, ConfigInvalid | DirectoryInUse | NewerSchema)


async def _keep(name: str, task: TraceExporter | FaultReports, chance: random.Random) -> None:
    await supervise(name, task.run, chance=chance)
