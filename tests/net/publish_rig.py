"""An edge on real sockets that publishes into a log of its own, with or without the publish lane."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from net_rig import LOCAL, Edge, add_probe_routes, open_edge
from quart_trio import QuartTrio

from overlayd.access.gate import Gate
from overlayd.model.clock import Entropy, SystemClock
from overlayd.model.definition import Definition
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.model.units import Size
from overlayd.net.access_log import RequestLog
from overlayd.net.content import Bodies
from overlayd.net.lane import Lane
from overlayd.net.publish import Publisher
from overlayd.net.publish_lane import PublishLane
from overlayd.net.publish_routes import add_publish_routes
from overlayd.net.settings import ListenSettings
from overlayd.pipeline.intake import Intake
from overlayd.pipeline.schema import SchemaCache
from overlayd.storage import Log, StorageSettings, open_log

HEAD = b"POST /v1/streams/a/packets HTTP/1.1\r\nHost: localhost\r\n"
UPLOAD = HEAD + b"Content-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"


@asynccontextmanager
async def open_publishing(
    directory: Path, limits: Limits, *, is_fast: bool, is_unix: bool = False, listen: ListenSettings = LOCAL,
    gate: Gate | None = None, metrics: Metrics | None = None, add_more: Callable[[QuartTrio, Bodies], None] = lambda *_: None,
) -> AsyncIterator[tuple[Edge, Log]]:  # fmt: skip
    """The edge and its log; `/healthz`, `/echo` and more probes run on Quart beside, and what `add_more` adds."""
    settings = StorageSettings(reserve=Size(0), disk_high_water=Size(0), disk_low_water=Size(0))
    metrics = metrics or Metrics()
    async with open_log(
        directory, settings=settings, limits=limits, defaults=Definition(), clock=SystemClock(), entropy=Entropy(),
        metrics=metrics,
    ) as log:  # fmt: skip
        intake = Intake(log=log, limits=limits, schemas=SchemaCache(limits, metrics), metrics=metrics)
        publishers: list[Publisher] = []

        def add_routes(app: QuartTrio, lane: Lane) -> None:
            bodies = Bodies(limits, lane, metrics)
            publishers.append(Publisher(intake=intake, log=log, limits=limits, lane=lane, bodies=bodies))
            add_publish_routes(app, publisher=publishers[0], spool_directory=directory)
            add_probe_routes(app, lane)
            add_more(app, bodies)

        def open_lane(request_log: RequestLog) -> PublishLane:
            return PublishLane(publisher=publishers[0], spool_directory=directory, request_log=request_log)

        async with open_edge(
            directory,
            limits=limits,
            add_routes=add_routes,
            open_publish_lane=open_lane if is_fast else None,
            settings=listen,
            gate=gate,
        ) as edge:
            edge.is_unix = is_unix
            yield edge, log


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def packets_in(log: Log) -> int:
    """How many packets stream `a` has."""
    stream = log.find_stream("a")
    return 0 if stream is None else stream.packets
