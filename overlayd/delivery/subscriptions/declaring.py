"""Brings the subscriptions that the configuration declares into the book."""

from collections.abc import Sequence

import msgspec

from overlayd.delivery.subscriptions.book import API, SubscriptionBook
from overlayd.delivery.subscriptions.definition import Asked, parse_new
from overlayd.delivery.subscriptions.owners import CONFIG
from overlayd.model.errors import ConfigInvalid, OverlaydError


class DeclaredSubscription(msgspec.Struct, frozen=True):
    """One `[[subscriptions]]`: the body that the API would take, and file and line."""

    name: str
    body: bytes
    declared_in: str

    def __repr__(self) -> str:
        return f"DeclaredSubscription({self.name!r}, {self.declared_in!r})"


async def declare_subscriptions(book: SubscriptionBook, declared: Sequence[DeclaredSubscription]) -> None:
    """Makes each, or brings it in line; where one stands is its own. One that is declared no more stays as it is, and
    may be changed through the API again. Raises ConfigInvalid."""
    for one, asked in zip(declared, check_declared(book, declared), strict=True):
        try:
            await book.declare(asked, CONFIG, one.declared_in)
        except OverlaydError as err:
            if err.status >= 500:
                raise
            raise _refusal(one, err) from err
    names = {one.name for one in declared}
    for subscription in book.all():
        if subscription.owner != API and subscription.name not in names:
            await book.release(subscription)


def check_declared(book: SubscriptionBook, declared: Sequence[DeclaredSubscription]) -> list[Asked]:
    """What each asks for. Raises ConfigInvalid."""
    found = []
    for one in declared:
        try:
            found.append(parse_new(one.body, book.parse_query, book.check_webhook))
        except OverlaydError as err:
            raise _refusal(one, err) from err
    return found


def _refusal(one: DeclaredSubscription, err: OverlaydError) -> ConfigInvalid:
    words = "; ".join(f"{flaw.pointer}: {flaw.detail}" for flaw in err.violations) or err.detail
    return ConfigInvalid(
        f"{one.declared_in}: subscriptions.{one.name}: {words}", subject=one.declared_in, hint=err.hint
    )
