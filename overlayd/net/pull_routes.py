"""Fetching from pull subscriptions over HTTP: messages, their leases, and what becomes of them."""

from collections.abc import Callable
from functools import partial

import msgspec
from msgspec import UNSET
from quart import Response, request
from quart_trio import QuartTrio

from overlayd.delivery.subscriptions.definition import LEASE_MAX_S
from overlayd.delivery.subscriptions.parts import DurableSubscriptions
from overlayd.delivery.subscriptions.pull import Desk, Fetched, Leased
from overlayd.delivery.subscriptions.subscription import Subscription
from overlayd.model.clock import format_time_us
from overlayd.model.errors import BadParameter, LimitReached, SubscriptionConflict
from overlayd.model.units import Duration
from overlayd.model.wire import encode_wire
from overlayd.model.wire_agents import Reply
from overlayd.model.wire_subscriptions import FetchIn, LeasesBody, LeasesIn
from overlayd.net.app import answer, principal_of
from overlayd.net.json_body import JsonBodies
from overlayd.net.lane import Lane
from overlayd.net.parameters import Parameters

ONE = "/v1/subscriptions/<subscription>"


def add_pull_routes(
    app: QuartTrio,
    *,
    durable: DurableSubscriptions,
    find: Callable[[str], Subscription],
    bodies: JsonBodies,
    lane: Lane,
) -> None:
    """Adds `fetch`, `ack`, `nack` and `extend` below `/v1/subscriptions/{subscription}`. `find`: for the caller."""
    routes = _PullRoutes(durable, find, bodies, lane)
    for name, view in (
        ("fetch", routes.fetch), ("ack", routes.ack), ("nack", routes.nack), ("extend", routes.extend),
    ):  # fmt: skip
        app.add_url_rule(f"{ONE}/{name}", f"subscriptions.{name}", view, methods=["POST"])


class _PullRoutes:
    """The routes with what they need."""

    def __init__(
        self, durable: DurableSubscriptions, find: Callable[[str], Subscription], bodies: JsonBodies, lane: Lane
    ) -> None:
        self._durable = durable
        self._find = find
        self._bodies = bodies
        self._lane = lane
        self._limits = durable.engine.delivery.limits

    async def fetch(self, subscription: str) -> Response:
        """Leases messages, waiting for a first one if asked to."""
        desk = self._desk(subscription)
        Parameters(request, ())
        body = await self._bodies.read_or(request, FetchIn, "the request can't be used", FetchIn())
        wait_s = min(_duration(body.wait, "wait"), float(self._limits.wait_max))
        if body.max > self._limits.fetch_max:
            self._durable.engine.delivery.metrics.count_limit_hit("fetch_max")
            raise BadParameter(f"max is {self._limits.fetch_max} at most, not {body.max}", subject="fetch_max")
        async with self._lane.step_out():
            fetched = await desk.fetch(
                body.max, wait_s, partial(self._find, subscription), principal_of(request).address
            )  # fmt: skip
        is_agent = desk.is_agent
        return answer(self._encode(fetched, is_agent=is_agent), cache_control="no-store")

    async def ack(self, subscription: str) -> Response:
        """Settles what the leases stand for."""
        desk = self._desk(subscription)
        body = await self._leases()
        if body.delay is not UNSET:
            raise BadParameter("ack takes no delay", subject="delay")
        if body.reply is not UNSET:
            return await self._reply(self._find(subscription), desk, body, body.reply)
        async with self._lane.step_out():
            results = await desk.ack(body.leases)
        return answer(encode_wire(LeasesBody(results=results)))

    async def _reply(self, found: Subscription, desk: Desk, body: LeasesIn, reply: Reply) -> Response:
        self._durable.owners.require_reply(principal_of(request), found)
        if len(body.leases) != 1:
            raise BadParameter("a reply goes with one lease", subject="leases")
        async with self._lane.step_out():
            verdict = await desk.reply(body.leases[0], encode_wire(reply))
        return answer(encode_wire(LeasesBody(results=[verdict])))

    async def nack(self, subscription: str) -> Response:
        """Gives back what the leases stand for."""
        desk = self._desk(subscription)
        body = await self._leases(may_reply=False)
        delay_s = 0.0 if body.delay is UNSET else _duration(body.delay, "delay")
        async with self._lane.step_out():
            results = await desk.nack(body.leases, delay_s)
        return answer(encode_wire(LeasesBody(results=results)))

    async def extend(self, subscription: str) -> Response:
        """Makes leases last longer, from now on."""
        desk = self._desk(subscription)
        body = await self._leases(may_reply=False)
        duration_s = None if body.delay is UNSET else _duration(body.delay, "delay")
        async with self._lane.step_out():
            results, until_us = await desk.extend(body.leases, duration_s)
        return answer(encode_wire(LeasesBody(results=results, lease_until=format_time_us(until_us))))

    def _desk(self, text: str) -> Desk:
        found = self._find(text)
        if found.definition.reached_by != "pull":
            raise SubscriptionConflict(
                f"{found.name} is of kind {found.definition.reached_by}; only kind pull is fetched from",
                subject=found.id,
            )
        return self._durable.engine.desk(found)

    async def _leases(self, *, may_reply: bool = True) -> LeasesIn:
        Parameters(request, ())
        body = await self._bodies.read(request, LeasesIn, "the leases can't be used", limit="agent_reply_bytes")
        if body.reply is not UNSET and not may_reply:
            raise BadParameter("a reply goes with ack", subject="reply")
        if len(body.leases) > self._limits.leases_per_request:
            self._durable.engine.delivery.metrics.count_limit_hit("leases_per_request")
            raise LimitReached(
                f"a request names at most {self._limits.leases_per_request} leases", subject="leases_per_request"
            )
        return body

    def _encode(self, fetched: Fetched, *, is_agent: bool) -> bytes:
        texts = b",".join(self._message(leased, is_agent=is_agent) for leased in fetched.messages)
        until = b""
        if fetched.messages:
            until = b',"lease_until":' + msgspec.json.encode(format_time_us(fetched.lease_until_us))
        return b'{"messages":[%s]%s,"cursor":%s}' % (texts, until, msgspec.json.encode(str(fetched.cursor)))

    def _message(self, leased: Leased, *, is_agent: bool) -> bytes:
        text = self._durable.engine.delivery.frames.text(leased.message, "agent" if is_agent else "packet")
        return b'{"lease":%s,"deliveries":%d,' % (msgspec.json.encode(leased.lease), leased.deliveries) + text[1:]


def _duration(text: str, name: str) -> float:
    try:
        seconds = float(Duration.parse(text))
    except ValueError as err:
        raise BadParameter(f"{name}: {err}", subject=name) from err
    if not 0 <= seconds <= LEASE_MAX_S:
        raise BadParameter(f"{name} is from 0s to {Duration(LEASE_MAX_S)}", subject=name)
    return seconds
