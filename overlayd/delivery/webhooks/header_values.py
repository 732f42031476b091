"""Keeps the values of webhooks' headers sealed: they may be secrets, and the database alone gives none away."""

import sqlite3
from collections.abc import Mapping

import msgspec

from overlayd.delivery.webhooks import tables
from overlayd.model.errors import SealBroken
from overlayd.model.outlet import Statements
from overlayd.storage import Log
from overlayd.storage.sealing import Sealer

PURPOSE = "webhook-headers"
_decode_values = msgspec.json.Decoder(dict[str, str]).decode


class HeaderValues:
    """`model.outlet.HeaderKeeper` for webhooks."""

    def __init__(self, log: Log, sealer: Sealer) -> None:
        self._log = log
        self._sealer = sealer
        self._closed: set[str] = set()
        """Whose values couldn't be opened: they stay as they are until others are given."""

    def seal(self, subscription_id: str, headers: Mapping[str, str]) -> Statements:
        """What makes these the subscription's values; without any, its row goes."""
        if subscription_id in self._closed and headers and not any(headers.values()):
            return lambda connection: None
        self._closed.discard(subscription_id)
        sealed = self._sealer.seal(msgspec.json.encode(headers), subscription_id) if headers else None

        def statements(connection: sqlite3.Connection) -> None:
            tables.put_headers(connection, subscription_id, sealed)

        return statements

    async def open_all(self) -> dict[str, dict[str, str] | SealBroken]:
        """The values of all subscriptions, by id and name, or why they can't be opened. Checkpoint."""
        return {id: self._open(id, sealed) for id, sealed in await self._log.read(tables.read_headers)}

    def _open(self, subscription_id: str, sealed: bytes) -> dict[str, str] | SealBroken:
        try:
            return _decode_values(self._sealer.open(sealed, subscription_id))
        except SealBroken as err:
            self._closed.add(subscription_id)
            return err
