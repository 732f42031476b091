"""Packets that are to be confirmed, written down in the transaction that makes them durable."""

import sqlite3
from collections.abc import Callable, Sequence

from overlayd.chain import item_tables as items
from overlayd.chain import watch_tables as txs
from overlayd.chain.rules import turn_rule
from overlayd.model.confirmation import ConfirmationState, NewPacket
from overlayd.model.usage import GroupWriting

NEWEST_BATCH = "newest_batch"
"""The mark with the newest packet's offset whose stream commits in batches."""


class Taker:
    """Hears of new packets. `on_packets` is called once they are durable: how many have or need a transaction of their
    own; `on_batch`: how many wait for an anchor, and the last one's offset."""

    def __init__(self, on_packets: Callable[[int], None], on_batch: Callable[[int, int], None]) -> None:
        self._on_packets = on_packets
        self._on_batch = on_batch

    def begin(self, appended_us: int, packets: Sequence[NewPacket]) -> GroupWriting:
        """As `Confirmations`."""
        return _Taking(appended_us, packets, self._on_packets, self._on_batch)


class _Taking:
    """The rows of one group."""

    def __init__(
        self, appended_us: int, packets: Sequence[NewPacket], on_packets: Callable[[int], None],
        on_batch: Callable[[int, int], None],
    ) -> None:  # fmt: skip
        self._appended_us = appended_us
        self._single = [packet for packet in packets if packet.rule.commit == "packet"]
        self._batched = [packet for packet in packets if packet.rule.commit == "batch"]
        self._on_packets = on_packets
        self._on_batch = on_batch

    def write(self, connection: sqlite3.Connection) -> None:
        """In the writer's thread."""
        for packet in self._single:
            self._write_packet(connection, packet)
        for stream_hash, rule in {packet.stream_hash: packet.rule for packet in self._single}.items():
            items.begin_depths(connection, stream_hash, turn_rule(rule).depths)
        if self._batched:
            txs.write_mark(connection, NEWEST_BATCH, self._batched[-1].offset)

    def _write_packet(self, c: sqlite3.Connection, packet: NewPacket) -> None:
        brought, tx_id, vout = packet.brought, None, None
        if brought is not None:
            new = txs.NewTx(
                brought.txid, "brought", brought.raw or None, packet.rule.timeout_blocks, brought.extended, brought.beef
            )
            tx_id, vout = txs.insert_tx(c, new, self._appended_us), brought.vout
        rule = turn_rule(packet.rule)
        state: ConfirmationState = "none" if rule.is_verbose else "pending"
        items.insert_item(
            c,
            items.NewItem(
                packet.offset, packet.offset, packet.stream_hash, packet.commitment, tx_id, vout, state, rule.depths[0]
            ),
        )  # fmt: skip
        if tx_id is not None:
            items.follow_txs(c, (tx_id,))

    def adopt(self) -> None:
        """They are durable."""
        if self._single:
            self._on_packets(len(self._single))
        if self._batched:
            self._on_batch(len(self._batched), self._batched[-1].offset)

    def roll_back(self) -> None:
        """Nothing is held."""
