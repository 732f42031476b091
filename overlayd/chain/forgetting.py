"""Taking away what the tables of the chain hold of erased packets: their commitments, and transactions that producers
brought for them.

The row of such a transaction stays, without anything that leads to it, for whoever works on it at this moment. What the
node's own wallet paid for stays: it is on the public chain, the wallet spends what it gave back, and a commitment alone
says nothing once the salt is gone.
"""

import json
import sqlite3
from collections.abc import Sequence

_BROUGHT = """
    SELECT DISTINCT t.id FROM chain_item i JOIN chain_tx t ON t.id = i.tx_id
    WHERE t.role = 'brought' AND i.is_range = 0 AND i.offset IN (SELECT value FROM json_each(?))
"""
_SHARED = "SELECT 1 FROM chain_item WHERE tx_id = ? LIMIT 1"
_BLANK = """
    UPDATE chain_tx SET txid = randomblob(32), raw = NULL, extended = NULL, beef = NULL, bump = NULL, height = NULL,
    block = NULL, to_send = 0, is_open = 0, verdict = 'dropped', reason = 'erased' WHERE id = ?
"""


def forget_packets(connection: sqlite3.Connection, offsets: Sequence[int]) -> None:
    """In the writer's transaction. A transaction that other packets share stays until the last of them goes."""
    text = json.dumps(list(offsets))
    brought = [id for (id,) in connection.execute(_BROUGHT, (text,))]
    connection.execute(
        "DELETE FROM chain_item WHERE is_range = 0 AND offset IN (SELECT value FROM json_each(?))", (text,)
    )
    for id in brought:
        if connection.execute(_SHARED, (id,)).fetchone() is None:
            connection.execute("DELETE FROM chain_orphan WHERE tx_id = ?", (id,))
            connection.execute(_BLANK, (id,))
