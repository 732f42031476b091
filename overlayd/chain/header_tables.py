"""Where block headers are kept: every one of the best chain, and branches off its newest part."""

import sqlite3
from collections.abc import Iterator
from itertools import pairwise

import msgspec

from overlayd.bsv.header import parse_header
from overlayd.bsv.network import Network
from overlayd.chain.header_chain import Extension, HeldHeader
from overlayd.model.errors import ConfigInvalid, DamagedEntry
from overlayd.model.txid import BlockHash
from overlayd.storage import Feature

HEADERS_FEATURE = Feature(
    "chain_headers",
    (
        """
CREATE TABLE chain_header (
    height INTEGER NOT NULL,
    hash BLOB NOT NULL CHECK (length(hash) = 32),
    raw BLOB NOT NULL CHECK (length(raw) = 80),
    work BLOB NOT NULL CHECK (length(work) = 32),  -- of the whole chain up to it, big-endian
    is_best INTEGER NOT NULL,
    PRIMARY KEY (height, hash)
) STRICT, WITHOUT ROWID;
CREATE INDEX chain_header_branch ON chain_header (height) WHERE NOT is_best;
CREATE TABLE chain_network (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    name TEXT NOT NULL,
    start_height INTEGER NOT NULL
) STRICT;
""",
    ),
)

_COLUMNS = "height, hash, raw, work"


class StoredHeaders(msgspec.Struct):
    """What a start reads: the oldest block, the newest of the best chain ascending, and branches."""

    start: HeldHeader
    best: list[HeldHeader]
    branches: list[HeldHeader]


def read_headers(connection: sqlite3.Connection, network: Network, window: int) -> StoredHeaders | None:
    """The stored chain's newest part; None when nothing is stored.

    Raises ConfigInvalid when it is another network's, DamagedEntry when the rows contradict each other.
    """
    row = connection.execute("SELECT name, start_height FROM chain_network").fetchone()
    if row is None:
        return None
    name, start_height = row
    if name != network.name:
        raise ConfigInvalid(
            f"the directory holds block headers of {name}, not of {network.name}", subject="chain.network",
            hint="use another directory for another network: what was confirmed on one means nothing on the other",
        )  # fmt: skip
    newest = "SELECT height FROM chain_header WHERE is_best ORDER BY height DESC LIMIT 1"
    tip = connection.execute(newest).fetchone()[0]
    best = list(_select(connection, "is_best AND height > ? ORDER BY height", tip - window))
    branches = list(_select(connection, "NOT is_best AND height > ?", tip - window))
    start = list(_select(connection, "is_best AND height = ?", start_height))
    if len(start) != 1 or len(best) != min(window, tip - start_height + 1):
        raise DamagedEntry("stored block headers are missing", subject="chain_header")
    for lower, upper in pairwise(best):
        if upper.header.previous != lower.hash or upper.chain_work != lower.chain_work + upper.header.work:
            raise DamagedEntry("stored block headers don't follow each other", subject=f"block {upper.header}")
    return StoredHeaders(start[0], best, branches)


def read_header_at(connection: sqlite3.Connection, height: int) -> HeldHeader | None:
    """The best chain's block at a height."""
    return next(_select(connection, "is_best AND height = ?", height), None)


def read_headers_from(connection: sqlite3.Connection, height: int, count: int) -> list[HeldHeader]:
    """Blocks of the best chain, ascending from a height."""
    return list(_select(connection, "is_best AND height >= ? ORDER BY height LIMIT ?", height, count))


def write_start(connection: sqlite3.Connection, network: Network, start: HeldHeader) -> None:
    """Begins a chain."""
    connection.execute("INSERT INTO chain_network VALUES (1, ?, ?)", (network.name, start.height))
    connection.execute("INSERT INTO chain_header VALUES (?, ?, ?, ?, 1)", _row(start))


def write_extension(connection: sqlite3.Connection, extension: Extension, keep_from: int) -> None:
    """Stores a change. Branches below `keep_from`, which nothing can fork off any more, go."""
    connection.executemany("INSERT OR IGNORE INTO chain_header VALUES (?, ?, ?, ?, 0)", map(_row, extension.added))
    if extension.joined:
        # Not by `reorg.old` alone: a write whose caller was cancelled may have put blocks there that memory never saw.
        fork_height = extension.joined[0].height - 1
        connection.execute("UPDATE chain_header SET is_best = 0 WHERE is_best AND height > ?", (fork_height,))
        connection.executemany(
            "UPDATE chain_header SET is_best = 1 WHERE height = ? AND hash = ?",
            [(held.height, held.hash) for held in extension.joined],
        )
    connection.execute("DELETE FROM chain_header WHERE NOT is_best AND height < ?", (keep_from,))


def _row(held: HeldHeader) -> tuple[int, BlockHash, bytes, bytes]:
    return held.height, held.hash, held.header.raw, held.chain_work.to_bytes(32, "big")


def _select(connection: sqlite3.Connection, condition: str, *values: int) -> Iterator[HeldHeader]:
    rows = connection.execute(f"SELECT {_COLUMNS} FROM chain_header WHERE {condition}", values)  # noqa: S608 - constants
    for height, block_hash, raw, work in rows:
        header = parse_header(raw)
        if header.hash != block_hash:
            raise DamagedEntry("a stored block header doesn't have its hash", subject=f"height {height}")
        yield HeldHeader(header, height, int.from_bytes(work, "big"))
