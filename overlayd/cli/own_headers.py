"""The block headers in a node's data directory, for checking a proof against them."""

import sqlite3

from overlayd.bsv.known_headers import KnownHeaders, split_headers

HEADERS_READ_MAX = 2016
"""From a proof's block on; how deep it is follows from the newest one's height."""


def read_own_headers(connection: sqlite3.Connection, height: int) -> KnownHeaders | None:
    """Those of the best chain from a height on; None where the node follows no chain, or holds none so old or so new."""
    if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'chain_network'").fetchone() is None:
        return None
    named = connection.execute("SELECT name FROM chain_network").fetchone()
    raws = connection.execute(
        "SELECT raw, height FROM chain_header WHERE is_best AND height >= ? ORDER BY height LIMIT ?",
        (height, HEADERS_READ_MAX),
    ).fetchall()
    if named is None or not raws or raws[0][1] != height:
        return None
    (tip_height,) = connection.execute("SELECT max(height) FROM chain_header WHERE is_best").fetchone()
    return KnownHeaders(split_headers(b"".join(raw for raw, _ in raws)), height, tip_height, named[0])
