"""Taking away what the tables of the chain hold of packets that are gone: erased ones at once, others once nothing can
happen to their confirmations any more (sweeping.py). In the writer's transaction.

What stays: anchors with their notes and proofs, for they cover what is kept and what was handed out; deposits and the coins
that they brought, so that one that is told twice isn't taken for new money; and what the wallet still has coins of.
"""

import json
import sqlite3
from collections.abc import Iterable, Sequence

from overlayd.chain.watch_tables import BLANK

_BROUGHT = """
    SELECT DISTINCT t.id FROM chain_item i JOIN chain_tx t ON t.id = i.tx_id
    WHERE t.role = 'brought' AND i.is_range = 0 AND i.offset IN (SELECT value FROM json_each(?))
"""
_DELETE_ITEMS = "DELETE FROM chain_item WHERE is_range = 0 AND offset IN (SELECT value FROM json_each(?))"
_NEEDED = """
    SELECT EXISTS (SELECT 1 FROM chain_item WHERE tx_id = ?1) OR EXISTS (SELECT 1 FROM chain_coin WHERE tx_id = ?1)
    OR EXISTS (SELECT 1 FROM chain_coin WHERE spent_by = ?1)
"""
_BLANK = f"""
    UPDATE chain_tx SET txid = randomblob(32), raw = NULL, extended = NULL, beef = NULL, bump = NULL, height = NULL,
    block = NULL, to_send = 0, is_open = 0, verdict = 'dropped', reason = 'erased', timeout_blocks = {BLANK} WHERE id = ?
"""  # noqa: S608 - constants
_SPENT = """
    DELETE FROM chain_coin WHERE spent_by = ?1 AND NOT is_lost
    AND EXISTS (SELECT 1 FROM chain_tx t WHERE t.id = chain_coin.tx_id AND NOT (t.role = 'wallet' AND t.fee_sat = 0))
    RETURNING tx_id
"""
"""Coins of the wallet's own making; those of deposits stay."""


def forget_packets(connection: sqlite3.Connection, offsets: Sequence[int]) -> None:
    """Of erased packets. A transaction that a producer brought and that other packets share, or that pays the wallet, stays;
    the row of any other stays without anything that leads to it, for whoever works on it at this moment. What the node's own
    wallet paid for stays: it is on the public chain, the wallet spends what it gave back, and a commitment alone says
    nothing once the salt is gone.
    """
    text = json.dumps(list(offsets))
    brought = [id for (id,) in connection.execute(_BROUGHT, (text,))]
    connection.execute(_DELETE_ITEMS, (text,))
    for id in brought:
        if not _is_needed(connection, id):
            connection.execute("DELETE FROM chain_orphan WHERE tx_id = ?", (id,))
            connection.execute(_BLANK, (id,))


def forget_ended(connection: sqlite3.Connection, offsets: Sequence[int], tx_ids: Iterable[int], deep: int) -> None:
    """Of packets that are gone and whose confirmations have ended, with the transactions that confirmed them, as far as
    nothing else needs these. `deep`: blocks up to this height stay. Only the watcher calls it: nobody else works on rows of
    transactions between two of its own.
    """
    connection.execute(_DELETE_ITEMS, (json.dumps(list(offsets)),))
    waiting = list(tx_ids)
    while waiting:
        waiting += _let_go(connection, waiting.pop(), deep)


def has_blank(connection: sqlite3.Connection) -> bool:
    """Whether there are rows that erasures left."""
    return bool(connection.execute("SELECT EXISTS (SELECT 1 FROM chain_tx WHERE timeout_blocks < 0)").fetchone()[0])


def forget_blank(connection: sqlite3.Connection, limit: int) -> None:
    """The rows that erasures left. Only the watcher calls it."""
    connection.execute(
        "DELETE FROM chain_tx WHERE id IN (SELECT id FROM chain_tx WHERE timeout_blocks < 0 LIMIT ?)", (limit,)
    )


def _let_go(c: sqlite3.Connection, id: int, deep: int) -> list[int]:
    """One transaction; gives those whose coins it spent, which may go too."""
    row = c.execute(
        "SELECT role, height, fee_sat, id = (SELECT max(id) FROM chain_tx) FROM chain_tx WHERE id = ?", (id,)
    )
    role, height, fee_sat, is_newest = row.fetchone() or ("", None, 0, 0)
    if role == "brought":
        if not _is_needed(c, id):
            _delete_tx(c, id)
        return []
    if role not in ("funded", "wallet") or height is None or height > deep:
        return []
    spent = [tx_id for (tx_id,) in c.execute(_SPENT, (id,)).fetchall()]
    # The newest row's number would be given to the next one, while a payment may be in the making.
    if not (role == "wallet" and fee_sat == 0) and not is_newest and not _is_needed(c, id):
        _delete_tx(c, id)
    return spent


def _is_needed(c: sqlite3.Connection, id: int) -> bool:
    """Whether a packet is confirmed by it, or a coin is its or spent by it."""
    return bool(c.execute(_NEEDED, (id,)).fetchone()[0])


def _delete_tx(c: sqlite3.Connection, id: int) -> None:
    c.execute("DELETE FROM chain_orphan WHERE tx_id = ?", (id,))
    c.execute("DELETE FROM chain_tx WHERE id = ?", (id,))
