"""Reads `[[subscriptions]]`: durable subscriptions that are declared in files, in the words of the API."""

from collections.abc import Mapping
from typing import Any

import msgspec

from overlayd.config.convert import Origin, Problems, show
from overlayd.config.files import Document
from overlayd.delivery.query import LiveQuery, parse_message
from overlayd.delivery.subscriptions.declaring import DeclaredSubscription
from overlayd.delivery.subscriptions.definition import parse_new
from overlayd.model.errors import InvalidSubscription
from overlayd.model.limits import Limits

TABLE = "subscriptions"


def read_subscriptions(
    document: Document, declared: list[DeclaredSubscription], limits: Limits, problems: Problems
) -> None:
    """Adds those of a document, each judged as far as that goes without the node: URLs and secrets are judged when it
    starts."""
    tables = document.data.get(TABLE, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        detail = "expected an array of tables, each under its own [[subscriptions]] header"
        problems.add(Origin("file", document.place((TABLE,))), TABLE, "type", detail)
        return
    for index, table in enumerate(tables):
        origin = Origin("file", document.place((TABLE, index)))
        _read_one(table, origin, declared, limits, problems)


def _read_one(
    table: dict[str, Any], origin: Origin, declared: list[DeclaredSubscription], limits: Limits, problems: Problems
) -> None:
    name = table.get("name")
    where = f"{TABLE}.{name}" if isinstance(name, str) else TABLE
    try:
        raw = msgspec.json.encode(table)
    except TypeError as err:  # dates, which TOML has and JSON hasn't
        problems.add(origin, where, "type", f"expected texts, numbers, lists and tables: {err}")
        return

    def parse(members: Mapping[str, Any]) -> LiveQuery:
        return parse_message(members, limits, heartbeat_s=15.0)

    try:
        asked = parse_new(raw, parse, lambda rule: [])
    except InvalidSubscription as err:
        for flaw in err.violations:
            key = flaw.pointer.strip("/").replace("/", ".")
            problems.add(origin, f"{where}.{key}" if key else where, "value", flaw.detail)
        return
    if first := next((one for one in declared if one.name == asked.definition.name), None):
        detail = f"the subscription {show(name)} is declared at {first.declared_in} too"
        problems.add(origin, where, "duplicate", detail)
        return
    declared.append(DeclaredSubscription(asked.definition.name, raw, str(origin)))
