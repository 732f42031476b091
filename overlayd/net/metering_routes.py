"""Everything over HTTP that has to do with rates, quotas and usage, put together for the daemon."""

from collections.abc import Callable

from quart_trio import QuartTrio

from overlayd.access.audit import PackAudit
from overlayd.access.metering import Metering
from overlayd.access.streaming_sessions import StreamingSessions
from overlayd.model.clock import Clock
from overlayd.model.limits import Limits
from overlayd.net.content import Bodies
from overlayd.net.json_body import JsonBodies
from overlayd.net.lane import Lane
from overlayd.net.metered import meter_reads
from overlayd.net.quota_routes import add_quota_routes
from overlayd.net.streaming_routes import add_streaming_routes
from overlayd.net.usage_routes import add_usage_routes


def add_metering_routes(
    app: QuartTrio, *, metering: Metering, sessions: StreamingSessions, clock: Clock, lane: Lane, bodies: Bodies,
    limits: Limits, count_sessions: Callable[[str], int], audit: PackAudit,
) -> None:  # fmt: skip
    """Adds `/v1/usage`, `/v1/quotas`, `/v1/streaming` and `/v1/agent/streaming`, and meters read requests.
    `count_sessions`: live connections of a principal."""
    json_bodies = JsonBodies(bodies, limits)
    meter_reads(app, metering)
    add_usage_routes(app, metering=metering, clock=clock, lane=lane)
    put_policy = add_quota_routes(
        app, metering=metering, clock=clock, lane=lane, bodies=json_bodies, count_sessions=count_sessions, audit=audit
    )
    add_streaming_routes(
        app, sessions=sessions, clock=clock, lane=lane, bodies=json_bodies, put_policy=put_policy
    )  # fmt: skip
