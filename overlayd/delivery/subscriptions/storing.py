"""How a subscription's definition gets into the database and out of it: values of headers may be secrets, so they lie
beside it, sealed."""

import sqlite3
from collections.abc import Mapping

import msgspec
from msgspec import UNSET

from overlayd.delivery.agents.definition import effective_filter
from overlayd.delivery.query import Selection
from overlayd.delivery.subscriptions import tables
from overlayd.delivery.subscriptions.subscription import Reading, Subscription
from overlayd.delivery.subscriptions.tables import Rest, StateRow
from overlayd.model.cursor import Cursor
from overlayd.model.outlet import HeaderKeeper, Statements
from overlayd.model.subscription import SubscriptionDefinition, WebhookRule, encode_subscription

_NO_HEADERS: Mapping[str, str] = {}


def put_statements(
    subscription: Subscription, definition: SubscriptionDefinition, headers: HeaderKeeper, *, owner: str = "",
    reading: Reading | None = None,
) -> Statements:  # fmt: skip
    """What writes the definition down, its headers' values sealed. `owner`, `reading`: other ones than it has."""
    text = encode_subscription(_without_values(definition))
    seal = headers.seal(subscription.id, _headers_of(definition))

    def write(connection: sqlite3.Connection) -> None:
        tables.insert_subscription(
            connection, subscription.number, subscription.id, subscription.name,
            owner or subscription.owner, msgspec.json.encode(reading or subscription.reading), subscription.created_us, text,
        )  # fmt: skip
        seal(connection)

    return write


def insert_statements(
    subscription: Subscription, floor: Cursor, headers: HeaderKeeper, secret: Statements | None
) -> Statements:
    """What makes a new subscription stand."""
    put = put_statements(subscription, subscription.definition, headers)

    def write(connection: sqlite3.Connection) -> None:
        put(connection)
        round = tables.Round()
        round.add_state(StateRow(subscription.number, floor, False, subscription.rest))
        round.write(connection)
        if secret is not None:
            secret(connection)

    return write


def place_statements(
    subscription: Subscription, floor: Cursor, rest: Rest, *, is_anew: bool = False
) -> Statements:  # fmt: skip
    """Where it stands from now on, and what goes with that. `is_anew`: nothing is outstanding."""
    round = tables.Round()
    round.add_state(StateRow(subscription.number, floor, subscription.shared_row and not is_anew, rest))

    def write(connection: sqlite3.Connection) -> None:
        if is_anew:
            tables.clear_units(connection, subscription.number)
        round.write(connection)

    return write


def joined(*parts: Statements | None) -> Statements:
    """One after the other."""

    def write(connection: sqlite3.Connection) -> None:
        for part in parts:
            if part is not None:
                part(connection)

    return write


class Deletion:
    """Takes a subscription away: its dead letters, a slice in each transaction, and with the last ones all the rest.

    `letters`: ids of those that the last transaction took.
    """

    def __init__(self, subscription: Subscription, headers: HeaderKeeper, forget: Statements | None) -> None:
        self._number = subscription.number
        self._unseal = headers.seal(subscription.id, _NO_HEADERS)
        self._forget = forget
        self.letters: list[int] = []
        self.is_over = False

    def write(self, connection: sqlite3.Connection) -> None:
        """One transaction's part."""
        self.letters = tables.delete_dead(connection, self._number)
        self.is_over = len(self.letters) < tables.ROWS_PER_DELETE
        if not self.is_over:
            return
        tables.delete_subscription(connection, self._number)
        self._unseal(connection)
        if self._forget is not None:
            self._forget(connection)


def with_values(definition: SubscriptionDefinition, found: Mapping[str, str]) -> SubscriptionDefinition:
    """A definition as it was stored, with its headers' values put back."""
    webhook = definition.webhook
    if not isinstance(webhook, WebhookRule) or not found:
        return definition
    values = {name: found.get(name, value) for name, value in webhook.headers.items()}
    return msgspec.structs.replace(definition, webhook=msgspec.structs.replace(webhook, headers=values))


def has_plain_values(definition: SubscriptionDefinition) -> bool:
    """Whether values of headers stand in a stored definition, as earlier versions wrote them."""
    return any(_headers_of(definition).values())


def stored_selection(definition: SubscriptionDefinition) -> Selection:
    """The selection of a definition that was judged when it was stored."""
    return Selection(
        streams=tuple(sorted(set(definition.streams))), topics=tuple(sorted(set(definition.topics))),
        types=frozenset(definition.types), keys=frozenset(definition.keys), deliver=definition.deliver,
        min_confirmations=None if definition.min_confirmations is UNSET else definition.min_confirmations,
        filter=effective_filter(definition),
    )  # fmt: skip


def _headers_of(definition: SubscriptionDefinition) -> Mapping[str, str]:
    return definition.webhook.headers if isinstance(definition.webhook, WebhookRule) else _NO_HEADERS


def _without_values(definition: SubscriptionDefinition) -> SubscriptionDefinition:
    """The names alone."""
    webhook = definition.webhook
    if not isinstance(webhook, WebhookRule) or not webhook.headers:
        return definition
    bare = msgspec.structs.replace(webhook, headers=dict.fromkeys(webhook.headers, ""))
    return msgspec.structs.replace(definition, webhook=bare)
