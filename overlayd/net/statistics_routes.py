"""`/v1/stats` and `/v1/streams/{stream}/stats`: what came in, went out and was refused."""

from bisect import bisect_right
from collections.abc import Callable
from heapq import nlargest

import msgspec
import trio
from msgspec import UNSET
from quart import Response, request
from quart_trio import QuartTrio

from overlayd.access import require
from overlayd.access.stream_guard import StreamGuard
from overlayd.model.clock import Clock, format_time_us
from overlayd.model.errors import BadParameter
from overlayd.model.wire import encode_wire
from overlayd.model.wire_statistics import SessionStats, StatsBody, StorageStatsBody, StreamStats, SubscriptionStats
from overlayd.net.app import answer, principal_of
from overlayd.net.parameters import Parameters
from overlayd.net.stream_routes import LIST_LIMIT, LIST_LIMIT_MAX, known_stream
from overlayd.storage import Log, Stream
from overlayd.telemetry.stream_statistics import StreamFigures, StreamStatistics

STREAMS_PER_TURN = 500


def add_statistics_routes(
    app: QuartTrio, *, log: Log, node: str, statistics: StreamStatistics, streams: StreamGuard, clock: Clock,
    count_subscribers: Callable[[str], int], show_sessions: Callable[[], SessionStats],
    show_subscriptions: Callable[[], SubscriptionStats],
) -> None:  # fmt: skip
    """Adds both. `count_subscribers`: live sessions of a stream."""
    routes = _StatisticsRoutes(
        log, node, statistics, streams, clock, count_subscribers, show_sessions, show_subscriptions
    )
    app.add_url_rule("/v1/stats", "stats", routes.show_node, methods=["GET"])
    app.add_url_rule("/v1/streams/<stream>/stats", "streams.stats", routes.show_stream, methods=["GET"])


class _StatisticsRoutes:
    """The routes with what they need."""

    def __init__(
        self, log: Log, node: str, statistics: StreamStatistics, streams: StreamGuard, clock: Clock,
        count_subscribers: Callable[[str], int], show_sessions: Callable[[], SessionStats],
        show_subscriptions: Callable[[], SubscriptionStats],
    ) -> None:  # fmt: skip
        self._log = log
        self._node = node
        self._statistics = statistics
        self._streams = streams
        self._clock = clock
        self._count_subscribers = count_subscribers
        self._show_sessions = show_sessions
        self._show_subscriptions = show_subscriptions
        self._started_us = clock.now_us()

    async def show_stream(self, stream: str) -> Response:
        """One stream's."""
        self._streams.require(principal_of(request), "read", stream)
        Parameters(request, ())
        return answer(encode_wire(self._stream_body(known_stream(self._log, stream))))

    async def show_node(self) -> Response:
        """The node's, and a page of its streams: by name, or those that got a packet last."""
        require(principal_of(request), "manage")
        parameters = Parameters(request, ("limit", "after", "order"))
        limit = parameters.number("limit", minimum=1, maximum=LIST_LIMIT_MAX) or LIST_LIMIT
        order, after = parameters.choice("order", ("name", "recent")) or "name", parameters.text("after")
        if after and order == "recent":
            raise BadParameter("after goes with order=name", subject="after")
        everything = self._log.list_streams()
        sums = await self._add_up(everything)
        if order == "recent":
            found, is_more = nlargest(limit, everything, key=lambda stream: stream.last_packet_us), False
        else:
            first = bisect_right(everything, after, key=lambda stream: stream.name)
            found, is_more = everything[first : first + limit], len(everything) > first + limit
        storage = self._log.stats()
        body = StatsBody(
            node=self._node, at=format_time_us(self._clock.now_us()), started_at=format_time_us(self._started_us),
            head=self._log.head, messages_in=sums.received, messages_out=sums.sent, refused=sums.refused,
            failed=sums.failed, error_rate=_share(sums), sessions=self._show_sessions(),
            subscriptions=self._show_subscriptions(),
            storage=StorageStatsBody(
                database_bytes=storage.database_bytes, wal_bytes=storage.wal_bytes,
                disk_free_bytes=storage.disk_free_bytes, full=storage.is_full, intake_packets=storage.intake_packets,
                intake_bytes=storage.intake_bytes,
            ),
            stream_count=len(everything), streams=[self._stream_body(stream) for stream in found],
            next_after=found[-1].name if is_more else UNSET,
        )  # fmt: skip
        return answer(encode_wire(body))

    async def _add_up(self, streams: list[Stream]) -> StreamFigures:
        """The sums of all of them. Checkpoint."""
        sums = StreamFigures(0, 0, 0, 0, None)
        for first in range(0, len(streams), STREAMS_PER_TURN):
            await trio.lowlevel.checkpoint()
            for stream in streams[first : first + STREAMS_PER_TURN]:
                one = self._statistics.of(stream)
                sums = msgspec.structs.replace(
                    sums, received=sums.received + one.received, sent=sums.sent + one.sent,
                    refused=sums.refused + one.refused, failed=sums.failed + one.failed,
                )  # fmt: skip
        return sums

    def _stream_body(self, stream: Stream) -> StreamStats:
        found = self._statistics.of(stream)
        return StreamStats(
            stream=stream.name, state=stream.state, messages_in=found.received, messages_out=found.sent,
            refused=found.refused, failed=found.failed, error_rate=_share(found),
            latency_ms_mean=UNSET if found.latency_ms_mean is None else found.latency_ms_mean,
            last_packet_at=format_time_us(stream.last_packet_us) if stream.last_packet_us else UNSET,
            packets=stream.packets, bytes=stream.bytes, subscribers=self._count_subscribers(stream.name),
        )  # fmt: skip


def _share(found: StreamFigures) -> float | msgspec.UnsetType:
    return UNSET if found.error_rate is None else round(found.error_rate, 6)
