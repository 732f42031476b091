"""After an unclean stop: do the last entries hash to their leaves, and these to their tiles? Blocking."""

import sqlite3

from overlayd.model.entry import leaf_hash
from overlayd.model.errors import LogDamaged
from overlayd.model.merkle import TILE_WIDTH
from overlayd.storage import queries
from overlayd.storage.damage.known_loss import NO_ENTRY, Runs, is_in_runs

CHECKED_TILES = 4
"""Full tiles at the log's end that are compared with their entries."""
_HASH_BYTES = 32
_ROWS = "SELECT offset, e, leaf FROM entry WHERE offset > ? AND offset <= ? ORDER BY offset"


def check_tail(connection: sqlite3.Connection, size: int, lost: Runs) -> None:
    """`lost`: offsets (runs) whose loss is on record. Raises LogDamaged at any other difference."""
    last = size // TILE_WIDTH
    for index in range(max(0, last - CHECKED_TILES), last):
        first = index * TILE_WIDTH
        leaves = _read_leaves(connection, first, TILE_WIDTH)
        (tile,) = queries.read_tiles(connection, [(0, index)])
        if not leaves or (not tile and any(is_in_runs(lost, first + at + 1) for at in range(TILE_WIDTH))):
            continue
        for at in range(TILE_WIDTH):
            offset, stored = first + at + 1, tile[at * _HASH_BYTES : (at + 1) * _HASH_BYTES]
            if leaves.get(offset, b"") != stored and not is_in_runs(lost, offset):
                raise LogDamaged(
                    f"tile 0/{index} isn't what its entries hash to", subject="log.sqlite3",
                    hint="overlayd verify says what else is wrong",
                )  # fmt: skip
    _read_leaves(connection, last * TILE_WIDTH, size - last * TILE_WIDTH)


def _read_leaves(connection: sqlite3.Connection, first: int, count: int) -> dict[int, bytes]:
    leaves = {}
    for offset, raw, leaf in connection.execute(_ROWS, (first, first + count)):
        if raw != NO_ENTRY and leaf_hash(raw) != leaf:
            raise LogDamaged(
                f"the entry at offset {offset} doesn't hash to its leaf", subject="log.sqlite3",
                hint="overlayd verify says what else is wrong",
            )  # fmt: skip
        leaves[offset] = leaf
    return leaves
