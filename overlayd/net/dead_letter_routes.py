"""A subscription's attempts and dead letters over HTTP."""

from collections.abc import Callable

from msgspec import UNSET
from quart import Response, request
from quart_trio import QuartTrio

from overlayd.delivery.subscriptions.letter_box import TellCount
from overlayd.delivery.subscriptions.parts import DurableSubscriptions
from overlayd.delivery.subscriptions.showing import attempt_body, letter_body, packets_of
from overlayd.delivery.subscriptions.subscription import Subscription
from overlayd.delivery.subscriptions.tables import DeadRow
from overlayd.model.errors import BadParameter, UnknownDeadLetter
from overlayd.model.wire import encode_wire
from overlayd.model.wire_subscriptions import AttemptList, CountBody, DeadLetterBody, DeadLetterList, RangeIn
from overlayd.net.app import answer
from overlayd.net.json_body import JsonBodies
from overlayd.net.lane import Lane
from overlayd.net.parameters import Parameters
from overlayd.net.path_parts import know_exceptions

TellDeletion = Callable[[Subscription], TellCount]
"""Of whose dead letters; makes what the audit is told when some are thrown away."""

ONE = "/v1/subscriptions/<subscription>"
LIST_LIMIT = 100
LIST_LIMIT_MAX = 1000
LAST = (1 << 63) - 1


def add_dead_letter_routes(
    app: QuartTrio,
    *,
    durable: DurableSubscriptions,
    find: Callable[[str], Subscription],
    bodies: JsonBodies,
    lane: Lane,
    tell: TellDeletion,
) -> None:
    """Adds `attempts` and `dead-letters` below `/v1/subscriptions/{subscription}`. `find`: for the caller. `tell`: for
    what is thrown away."""
    routes = _LetterRoutes(durable, find, bodies, lane, tell)
    letters = f"{ONE}/dead-letters"
    know_exceptions(app)
    app.add_url_rule(f"{ONE}/attempts", "subscriptions.attempts", routes.attempts, methods=["GET"])
    app.add_url_rule(letters, "dead_letters.list", routes.show_all, methods=["GET"])
    app.add_url_rule(letters, "dead_letters.clear", routes.clear, methods=["DELETE"])
    app.add_url_rule(f"{letters}/redeliver", "dead_letters.redeliver", routes.redeliver, methods=["POST"])
    app.add_url_rule(f"{letters}/<unless('redeliver'):number>", "dead_letters.show", routes.show, methods=["GET"])
    app.add_url_rule(
        f"{letters}/<unless('redeliver'):number>", "dead_letters.delete", routes.delete, methods=["DELETE"]
    )
    app.add_url_rule(
        f"{letters}/<number>/redeliver", "dead_letters.redeliver_one", routes.redeliver_one, methods=["POST"]
    )


class _LetterRoutes:
    """The routes with what they need."""

    def __init__(
        self, durable: DurableSubscriptions, find: Callable[[str], Subscription], bodies: JsonBodies, lane: Lane,
        tell: TellDeletion,
    ) -> None:  # fmt: skip
        self._durable = durable
        self._letters = durable.letters
        self._find = find
        self._bodies = bodies
        self._lane = lane
        self._tell = tell

    async def attempts(self, subscription: str) -> Response:
        """The last attempts, newest first."""
        found = self._find(subscription)
        Parameters(request, ())
        attempts = [attempt_body(stored) for stored in await self._letters.attempts(found)]
        return answer(encode_wire(AttemptList(attempts=attempts)))

    async def show_all(self, subscription: str) -> Response:
        """Dead letters by number, a page at a time."""
        found = self._find(subscription)
        parameters = Parameters(request, ("limit", "after"))
        limit = parameters.number("limit", minimum=1, maximum=LIST_LIMIT_MAX) or LIST_LIMIT
        letters = await self._letters.read(found, parameters.number("after") or 0, limit + 1)
        page = DeadLetterList(
            dead_letters=[self._body(found, letter) for letter in letters[:limit]],
            next_after=letters[limit - 1].id if len(letters) > limit else UNSET,
        )
        return answer(encode_wire(page))

    async def show(self, subscription: str, number: str) -> Response:
        """One dead letter with its packets, as far as they are kept."""
        found = self._find(subscription)
        Parameters(request, ())
        letter = await self._letters.show(found, _number_of(number))
        packets = None
        if letter.body.kind == "packets":
            packets = await packets_of(letter, found, self._durable.engine.shop.contents)
        is_queued = letter.is_queued or letter.id in found.dead_queued
        return answer(encode_wire(letter_body(letter, is_queued=is_queued, packets=packets)))

    async def redeliver_one(self, subscription: str, number: str) -> Response:
        """Has one tried again."""
        found, wanted = self._find(subscription), _number_of(number)
        Parameters(request, ())
        await self._letters.show(found, wanted)
        return await self._redeliver(found, wanted, wanted)

    async def redeliver(self, subscription: str) -> Response:
        """Has a range of them tried again, or all."""
        found = self._find(subscription)
        Parameters(request, ())
        body = await self._bodies.read_or(request, RangeIn, "the range can't be used", RangeIn())
        first = 0 if body.from_ is UNSET else body.from_
        return await self._redeliver(found, first, LAST if body.to is UNSET else min(body.to, LAST))

    async def delete(self, subscription: str, number: str) -> Response:
        """Throws one away."""
        found, wanted = self._find(subscription), _number_of(number)
        Parameters(request, ())
        async with self._lane.step_out():
            count = await self._letters.delete(found, wanted, wanted, tell=self._tell(found))
        if not count:
            raise UnknownDeadLetter(f"{found.name} has no dead letter {wanted} that is parked", subject=str(wanted))
        return answer(b"", 204)

    async def clear(self, subscription: str) -> Response:
        """Throws a range of them away, or all that are parked."""
        found = self._find(subscription)
        parameters = Parameters(request, ("from", "to"))
        first, last = parameters.number("from"), parameters.number("to")
        async with self._lane.step_out():
            count = await self._letters.delete(
                found, first or 0, LAST if last is None else last, tell=self._tell(found)
            )
        return answer(encode_wire(CountBody(count=count)))

    async def _redeliver(self, found: Subscription, first: int, last: int) -> Response:
        async with self._lane.step_out():
            count = await self._letters.redeliver(found, first, last)
        return answer(encode_wire(CountBody(count=count)), 202)

    def _body(self, found: Subscription, letter: DeadRow) -> DeadLetterBody:
        return letter_body(letter, is_queued=letter.is_queued or letter.id in found.dead_queued)


def _number_of(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18 or int(text) < 1:
        raise BadParameter(f"not the number of a dead letter: {text[:40]!r}", subject="number")
    return int(text)
