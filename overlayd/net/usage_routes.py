"""`/v1/usage`: what was published, read and delivered, by hour, principal, stream and method."""

import base64
import binascii

import msgspec
from msgspec import UNSET
from quart import Response, request
from quart_trio import QuartTrio

from overlayd.access import Principal, require
from overlayd.access.metering import Metering
from overlayd.access.principal import may
from overlayd.access.usage_tables import UsageAsk, UsageRow
from overlayd.model.clock import Clock, format_time_us, parse_time_us
from overlayd.model.errors import BadParameter
from overlayd.model.quota import HOUR_US
from overlayd.model.wire import encode_wire
from overlayd.model.wire_usage import DeliveryBody, DeliveryList, UsageBody, UsageCounts
from overlayd.net.app import answer, principal_of
from overlayd.net.lane import Lane
from overlayd.net.parameters import Parameters

LIMIT = 100
LIMIT_MAX = 1000
METHODS = ("publish", "read", "websocket", "sse", "ndjson", "pull", "webhook", "agent")
DEFAULT_HOURS = 24
_SPANS = {"hour": 1, "day": 24}
_ID_MAX = (1 << 63) - 1
_LAST_HOUR = parse_time_us("9999-12-31T00:00:00Z") // HOUR_US
"""The end of the last day whose end can be written down as a time."""
_After = tuple[int, str, str, str]


def add_usage_routes(app: QuartTrio, *, metering: Metering, clock: Clock, lane: Lane) -> None:
    """Adds `/v1/usage` and `/v1/usage/deliveries`."""
    routes = _UsageRoutes(metering, clock, lane)
    app.add_url_rule("/v1/usage", "usage", routes.usage, methods=["GET"])
    app.add_url_rule("/v1/usage/deliveries", "usage.deliveries", routes.deliveries, methods=["GET"])


class _UsageRoutes:
    """The routes with what they need."""

    def __init__(self, metering: Metering, clock: Clock, lane: Lane) -> None:
        self._metering = metering
        self._clock = clock
        self._lane = lane

    async def usage(self) -> Response:
        """Counts of whole hours, days or the whole span."""
        principal = principal_of(request)
        parameters = Parameters(
            request, ("principal", "stream", "method", "from", "to", "by", "limit", "after")
        )  # fmt: skip
        whose = whose_usage(principal, parameters)
        by = parameters.choice("by", (*_SPANS, "total")) or "hour"
        from_hour, to_hour = self._hours(parameters, by)
        limit = parameters.number("limit", minimum=1, maximum=LIMIT_MAX) or LIMIT
        ask = UsageAsk(
            from_hour, to_hour, _SPANS.get(by, max(1, to_hour - from_hour)), whose, parameters.text("stream"),
            parameters.choice("method", METHODS), _after(parameters.text("after")), limit + 1,
        )  # fmt: skip
        async with self._lane.step_out():
            rows = await self._metering.usage.read(ask)
        is_more = len(rows) > limit
        del rows[limit:]
        body = UsageBody(
            from_=format_time_us(from_hour * HOUR_US), to=format_time_us(to_hour * HOUR_US), by=by,  # type: ignore[arg-type]  # one of the choices
            usage=[_counts_body(row) for row in rows], next_after=_next_after(rows[-1]) if is_more else UNSET,
        )  # fmt: skip
        return answer(encode_wire(body))

    async def deliveries(self) -> Response:
        """Deliveries that are over, the newest first."""
        parameters = Parameters(request, ("principal", "stream", "limit", "before"))
        whose = whose_usage(principal_of(request), parameters)
        limit = parameters.number("limit", minimum=1, maximum=LIMIT_MAX) or LIMIT
        before = parameters.number("before", minimum=1, maximum=_ID_MAX) or _ID_MAX
        async with self._lane.step_out():
            rows = await self._metering.usage.read_deliveries(whose, parameters.text("stream"), before, limit + 1)
        is_more = len(rows) > limit
        found = [
            DeliveryBody(
                id=row[0], session=row[1], stream=row[2], principal=row[3], method=row[4], address_hash=row[5],
                started_at=format_time_us(row[6]), ended_at=format_time_us(row[7]), packets=row[8], bytes=row[9],
                errors=row[10], completed_percent=row[11] / 10_000, reason=row[12],
                latency_ms_mean=row[13] / 1000 if row[13] else UNSET,
            )
            for row in rows[:limit]
        ]  # fmt: skip
        return answer(encode_wire(DeliveryList(deliveries=found, next_before=found[-1].id if is_more else UNSET)))

    def _hours(self, parameters: Parameters, by: str) -> tuple[int, int]:
        """The first hour, and the one behind the last. Raises BadParameter."""
        now_hour = self._clock.now_us() // HOUR_US
        to_hour = _hour_of(parameters, "to", now_hour + 1, is_end=True)
        from_hour = _hour_of(parameters, "from", to_hour - DEFAULT_HOURS, is_end=False)
        if by == "day":
            from_hour, to_hour = from_hour // 24 * 24, -(-to_hour // 24) * 24
        if from_hour >= to_hour:
            raise BadParameter("from must lie before to", subject="from")
        return from_hour, to_hour


def whose_usage(principal: Principal, parameters: Parameters) -> str:
    """The principal that is asked about, "" for all. Everybody may ask about themselves, others need `manage`.
    Raises Forbidden."""
    asked = parameters.text("principal")
    if asked != principal.name and (asked or not may(principal, "manage")):
        if asked:
            require(principal, "manage")
        return asked or principal.name
    return asked


def _hour_of(parameters: Parameters, name: str, default: int, *, is_end: bool) -> int:
    text = parameters.text(name)
    if not text and not parameters.has(name):
        return _within(default)
    try:
        time_us = parse_time_us(text)
    except ValueError as err:
        raise BadParameter(f"{name}: {err}", subject=name, hint="2026-01-02T03:00:00Z") from err
    return _within(-(-time_us // HOUR_US) if is_end else time_us // HOUR_US)


def _within(hour: int) -> int:
    return min(max(hour, 0), _LAST_HOUR)


def _counts_body(row: UsageRow) -> UsageCounts:
    key, counts = row.key, row.counts
    return UsageCounts(
        start=format_time_us(row.hour * HOUR_US), principal=key.principal, stream=key.stream, method=key.method,
        requests=counts.requests, packets=counts.packets, bytes=counts.bytes, errors=counts.errors,
        latency_ms_mean=round(counts.latency_us / counts.latencies / 1000, 3) if counts.latencies else UNSET,
        latency_ms_max=counts.latency_max_us / 1000 if counts.latencies else UNSET, ended=counts.completions,
        completed_percent=round(counts.completed_ppm / counts.completions / 10_000, 2) if counts.completions else UNSET,
    )  # fmt: skip


def _next_after(row: UsageRow) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode((row.hour, *row.key))).decode().rstrip("=")


def _after(text: str) -> _After | None:
    """Raises BadParameter."""
    if not text:
        return None
    try:
        found: _After = msgspec.json.decode(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), type=_After)
    except (binascii.Error, ValueError, msgspec.DecodeError) as err:
        raise BadParameter("after isn't what next_after said", subject="after") from err
    if not 0 <= found[0] <= _LAST_HOUR:
        raise BadParameter("after isn't what next_after said", subject="after")
    return found
