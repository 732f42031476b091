"""Durable subscriptions over HTTP: made, shown, changed, moved, deleted. Fetching and dead letters stand beside this."""

from collections.abc import Callable
from typing import TypeVar

import msgspec
from msgspec import UNSET
from quart import Response, request
from quart_trio import QuartTrio

from overlayd.access.audit import PackAudit
from overlayd.access.principal import check_standing, require_some
from overlayd.delivery.subscriptions.book import Tell
from overlayd.delivery.subscriptions.definition import parse_new, parse_patch, parse_place
from overlayd.delivery.subscriptions.letter_box import TellCount
from overlayd.delivery.subscriptions.parts import DurableSubscriptions
from overlayd.delivery.subscriptions.showing import subscription_body
from overlayd.delivery.subscriptions.subscription import Subscription
from overlayd.model.errors import SubscriptionConflict, UnknownStream
from overlayd.model.subscription import AgentRule, SubscriptionDefinition
from overlayd.model.wire import encode_wire
from overlayd.model.wire_subscriptions import (
    SecretBody,
    SecretIn,
    SeekIn,
    SubscriptionBody,
    SubscriptionList,
    TestBody,
)
from overlayd.net.app import answer, author_of, principal_of
from overlayd.net.conditions import wanted_tags
from overlayd.net.dead_letter_routes import add_dead_letter_routes
from overlayd.net.json_body import JsonBodies
from overlayd.net.lane import Lane
from overlayd.net.parameters import Parameters
from overlayd.net.pull_routes import add_pull_routes

LIST_LIMIT = 100
LIST_LIMIT_MAX = 1000
ONE = "/v1/subscriptions/<subscription>"
STATES = ("active", "paused", "disabled")
KINDS = ("webhook", "agent", "pull", "live", "forward")

T = TypeVar("T")


def add_subscription_routes(
    app: QuartTrio, *, durable: DurableSubscriptions, bodies: JsonBodies, lane: Lane, audit: PackAudit
) -> None:
    """Adds `/v1/subscriptions` and everything below it. `audit` makes packets of records, for the transaction of what they
    tell."""
    access = SubscriptionAccess(durable)
    routes = _SubscriptionRoutes(durable, access, bodies, lane, audit)
    app.add_url_rule("/v1/subscriptions", "subscriptions.list", routes.show_all, methods=["GET"])
    app.add_url_rule("/v1/subscriptions", "subscriptions.create", routes.create, methods=["POST"])
    app.add_url_rule(ONE, "subscriptions.show", routes.show, methods=["GET"])
    app.add_url_rule(ONE, "subscriptions.patch", routes.patch, methods=["PATCH"])
    app.add_url_rule(ONE, "subscriptions.delete", routes.delete, methods=["DELETE"])
    for name, view in (
        ("pause", routes.pause), ("resume", routes.resume), ("test", routes.test), ("seek", routes.seek),
        ("rotate-secret", routes.rotate_secret),
    ):  # fmt: skip
        app.add_url_rule(f"{ONE}/{name}", f"subscriptions.{name}", view, methods=["POST"])
    add_dead_letter_routes(app, durable=durable, find=access.find, bodies=bodies, lane=lane, tell=routes.tell_deletion)
    add_pull_routes(app, durable=durable, find=access.find, bodies=bodies, lane=lane)


Find = Callable[[str], Subscription]
"""The subscription of a path, for whoever sent the present request."""


class SubscriptionAccess:
    """Finds subscriptions for those who may use them."""

    def __init__(self, durable: DurableSubscriptions) -> None:
        self._durable = durable

    def find(self, text: str) -> Subscription:
        """By id or name. Raises UnknownSubscription, also for one that isn't the caller's."""
        principal = principal_of(request)
        require_some(principal, "subscribe")
        found = self._durable.book.find(text)
        self._durable.owners.require_use(principal, found)
        return found


class _SubscriptionRoutes:
    """The routes with what they need."""

    def __init__(
        self, durable: DurableSubscriptions, access: SubscriptionAccess, bodies: JsonBodies, lane: Lane,
        audit: PackAudit,
    ) -> None:  # fmt: skip
        self._durable = durable
        self._book = durable.book
        self._owners = durable.owners
        self._find = access.find
        self._bodies = bodies
        self._lane = lane
        self._audit = audit

    async def show_all(self) -> Response:
        """The caller's subscriptions by name, a page at a time; everybody's for those who manage."""
        principal = principal_of(request)
        check_standing(principal)
        require_some(principal, "subscribe")
        parameters = Parameters(request, ("kind", "state", "limit", "after"))
        limit = parameters.number("limit", minimum=1, maximum=LIST_LIMIT_MAX) or LIST_LIMIT
        kind, state = parameters.choice("kind", KINDS), parameters.choice("state", STATES)
        after = parameters.text("after")
        found = [
            one
            for one in self._book.all()
            if one.name > after
            and (not kind or one.definition.kind == kind)
            and (not state or one.rest.state == state)
            and self._owners.may_use(principal, one)
        ]
        page = SubscriptionList(
            subscriptions=[self._body(one) for one in found[:limit]],
            next_after=found[limit - 1].name if len(found) > limit else UNSET,
        )
        return answer(encode_wire(page))

    async def create(self) -> Response:
        """Makes a subscription; it is active at once."""
        principal = principal_of(request)
        require_some(principal, "subscribe")
        Parameters(request, ())
        raw = bytes(await self._bodies.read(request, msgspec.Raw, "the subscription can't be used"))
        book = self._book
        asked = parse_new(raw, book.parse_query, book.check_webhook)
        reading = self._owners.require_create(principal, asked.definition.streams)
        self._require_agent(asked.definition)
        async with self._lane.step_out():
            created = await book.create(asked, reading, tell=self._tell("subscription.create"))
        body = self._body(created.subscription, secret=created.secret, never=created.never)
        return answer(encode_wire(body), 201)

    async def show(self, subscription: str) -> Response:
        """A subscription and where it stands."""
        Parameters(request, ())
        return self._answer(self._find(subscription))

    async def patch(self, subscription: str) -> Response:
        """Changes a subscription's definition by a JSON merge patch."""
        found, principal = self._find(subscription), principal_of(request)
        Parameters(request, ())
        raw = bytes(await self._bodies.read(request, msgspec.Raw, "the patch can't be used"))
        asked = parse_patch(raw, found.definition, self._book.parse_query, self._book.check_webhook)
        if asked.definition.streams != found.definition.streams:
            self._owners.require_create(principal, asked.definition.streams)
        self._require_agent(asked.definition)
        async with self._lane.step_out():
            await self._book.patch(found, asked, tell=self._tell("subscription.change"), if_match=wanted_tags(request))
        return self._answer(found)

    async def delete(self, subscription: str) -> Response:
        """Deletes a subscription with its dead letters."""
        found = self._find(subscription)
        Parameters(request, ())
        async with self._lane.step_out():
            await self._book.delete(found, tell=self._tell("subscription.delete"), if_match=wanted_tags(request))
            self._durable.live.withdraw(found)
        return answer(b"", 204)

    async def pause(self, subscription: str) -> Response:
        """Begins nothing more until it is resumed; nothing is lost."""
        return await self._set_state(subscription, "paused")

    async def resume(self, subscription: str) -> Response:
        """Goes on where it stands; also for one that was disabled."""
        return await self._set_state(subscription, "active")

    async def seek(self, subscription: str) -> Response:
        """Goes on from another place, forwards or back."""
        found = self._find(subscription)
        Parameters(request, ())
        body = await self._bodies.read(request, SeekIn, "the place can't be used")
        place = parse_place(body.cursor or None, body.time or None)
        if self._durable.live.is_attached(found):
            raise SubscriptionConflict(
                f"a connection reads {found.name} now", subject=found.id, hint="let it unsubscribe first"
            )
        async with self._lane.step_out():
            await self._book.seek(found, place, tell=self._tell("subscription.seek"))
        return self._answer(found)

    async def rotate_secret(self, subscription: str) -> Response:
        """Another secret to sign with."""
        found = self._find(subscription)
        Parameters(request, ())
        if found.rest.declared:
            self._book.check_ours(found)
        body = await self._bodies.read_or(request, SecretIn, "the secret can't be used", SecretIn())
        async with self._lane.step_out():
            tell = self._tell("subscription.rotate_secret")
            secret = await self._book.rotate_secret(found, body.secret or None, tell=tell)
        return answer(encode_wire(SecretBody(secret=secret)), cache_control="no-store")

    async def test(self, subscription: str) -> Response:
        """Sends one delivery without packets and says what came of it."""
        found = self._find(subscription)
        Parameters(request, ())
        async with self._lane.step_out():
            delivery_id, result = await self._durable.test(found)
        body = TestBody(
            delivery_id=delivery_id,
            outcome=result.outcome,
            reason=result.reason or UNSET,
            status=UNSET if result.status is None else result.status,
            duration_ms=result.duration_us / 1000,
            response=result.response_excerpt.decode("utf-8", "replace") or UNSET,
        )
        return answer(encode_wire(body))

    def _require_agent(self, definition: SubscriptionDefinition) -> None:
        """Raises Forbidden, and UnknownStream for an output that isn't there."""
        if not isinstance(definition.agent, AgentRule):
            return
        output = definition.agent.output or ""
        self._owners.require_agent(principal_of(request), output)
        if output and self._durable.engine.delivery.log.find_stream(output) is None:
            raise UnknownStream(f"there is no stream {output} to reply to", subject=output, hint="create it first")

    async def _set_state(self, subscription: str, state: str) -> Response:
        found = self._find(subscription)
        Parameters(request, ())
        if state == "paused" and found.rest.state == "disabled":
            raise SubscriptionConflict(f"{found.name} is disabled already", subject=found.id)
        async with self._lane.step_out():
            if state == "paused":
                await self._book.set_state(found, "paused", tell=self._tell("subscription.pause"))
                self._durable.live.withdraw(found)
            else:
                await self._book.set_state(found, "active", tell=self._tell("subscription.resume"))
        return self._answer(found)

    def _body(self, found: Subscription, *, secret: str = "", never: list[str] | None = None) -> SubscriptionBody:
        engine = self._durable.engine
        return subscription_body(
            found,
            engine.dispatcher.position,
            engine.delivery.log.head,
            now_us=engine.delivery.clock.now_us(),
            secret=secret,
            never=never,
        )

    def _answer(self, found: Subscription) -> Response:
        return answer(encode_wire(self._body(found)), etag=self._book.tags.of(found))

    def tell_deletion(self, found: Subscription) -> TellCount:
        """As `TellDeletion` of the dead letters' routes."""
        author = author_of(request)
        return lambda count: self._audit(
            author.record("dead_letters.delete", found.id, name=found.name, count=count)
        )  # fmt: skip

    def _tell(self, action: str) -> Tell:
        """What the audit is told of an act of the present request."""
        author = author_of(request)
        return lambda found: self._audit(author.record(action, found.id, name=found.name))
