"""The embedded chain's own file: blocks, transactions, coins, and what was refused.

A file of its own rather than tables of the log: it stands for a network, which knows what the node did just before it
was killed even where the node itself doesn't. In one transaction with the log, that difference could never be seen.
"""

import sqlite3
from pathlib import Path

import msgspec

from overlayd.bsv.header import BlockHeader, parse_header
from overlayd.bsv.tx import OutPoint, TxOutput
from overlayd.model.txid import BlockHash, TxId
from overlayd.storage.migrations import Feature, migrate, prepare_database

FILE_NAME = "regtest.sqlite3"

_FEATURE = Feature(
    "regtest",
    (
        """
CREATE TABLE miner (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    secret BLOB NOT NULL,
    script BLOB NOT NULL,  -- that its key unlocks
    made INTEGER NOT NULL  -- blocks, also those that were taken back
) STRICT;
CREATE TABLE block (
    hash BLOB PRIMARY KEY,
    height INTEGER NOT NULL,
    raw BLOB NOT NULL,
    txids BLOB NOT NULL,  -- 32 bytes each, in order
    is_best INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX block_best ON block (height) WHERE is_best;
CREATE TABLE tx (
    seq INTEGER PRIMARY KEY,  -- in order of arrival, so parents come before children
    txid BLOB NOT NULL UNIQUE,
    raw BLOB NOT NULL,
    is_coinbase INTEGER NOT NULL,
    fee_sat INTEGER NOT NULL,
    height INTEGER  -- NULL: in the mempool
) STRICT;
CREATE INDEX tx_waiting ON tx (seq) WHERE height IS NULL;
CREATE TABLE coin (
    txid BLOB NOT NULL,
    place INTEGER NOT NULL,
    satoshis INTEGER NOT NULL,
    script BLOB NOT NULL,
    is_miners INTEGER NOT NULL,
    spent_by BLOB,  -- txid, in the mempool or in a block
    PRIMARY KEY (txid, place)
) STRICT, WITHOUT ROWID;
CREATE INDEX coin_miners ON coin (satoshis) WHERE is_miners AND spent_by IS NULL;
CREATE INDEX coin_spent ON coin (spent_by) WHERE spent_by IS NOT NULL;
CREATE TABLE refused (
    seq INTEGER PRIMARY KEY,
    txid BLOB NOT NULL UNIQUE,
    reason TEXT NOT NULL,
    competing BLOB NOT NULL  -- txids, 32 bytes each
) STRICT;
""",
    ),
)


class StoredTx(msgspec.Struct, frozen=True):
    """A transaction that the chain knows; `height` is None in the mempool."""

    txid: TxId
    raw: bytes
    is_coinbase: bool
    fee_sat: int
    height: int | None


class Coin(msgspec.Struct, frozen=True):
    """An output, and who spends it."""

    outpoint: OutPoint
    output: TxOutput
    spent_by: TxId | None


class StoredBlock(msgspec.Struct, frozen=True):
    """A block of the best chain."""

    header: BlockHeader
    height: int
    txids: tuple[TxId, ...]


def open_chain_file(path: Path) -> sqlite3.Connection:
    """The file, made when there is none. Survives kill -9; after power loss it may be a few blocks older."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    prepare_database(connection)
    connection.execute("PRAGMA synchronous = NORMAL")
    migrate(connection, (_FEATURE,))
    return connection


def read_miner(c: sqlite3.Connection) -> bytes | None:
    """The secret of the key that coinbases pay."""
    row = c.execute("SELECT secret FROM miner").fetchone()
    return row[0] if row else None


def next_made(c: sqlite3.Connection) -> int:
    """A number that no other block's coinbase has, so that branches differ."""
    made: int = c.execute("UPDATE miner SET made = made + 1 RETURNING made").fetchone()[0]
    return made


def read_tip(c: sqlite3.Connection) -> tuple[int, BlockHash]:
    """Height and hash of the best chain's newest block."""
    height, block_hash = c.execute(
        "SELECT height, hash FROM block WHERE is_best ORDER BY height DESC LIMIT 1"
    ).fetchone()
    return height, BlockHash(block_hash)


def read_block(c: sqlite3.Connection, height: int) -> StoredBlock | None:
    """The best chain's block at a height."""
    row = c.execute("SELECT raw, txids FROM block WHERE is_best AND height = ?", (height,)).fetchone()
    return StoredBlock(parse_header(row[0]), height, split_txids(row[1])) if row else None


def read_block_hash(c: sqlite3.Connection, height: int) -> BlockHash:
    """The name of the best chain's block at a height that it has."""
    return BlockHash(c.execute("SELECT hash FROM block WHERE is_best AND height = ?", (height,)).fetchone()[0])


def read_raw_headers(c: sqlite3.Connection, from_height: int, count: int) -> list[bytes]:
    """Headers of the best chain, ascending."""
    query = "SELECT raw FROM block WHERE is_best AND height >= ? ORDER BY height LIMIT ?"
    return [raw for (raw,) in c.execute(query, (from_height, count))]


def read_tx(c: sqlite3.Connection, txid: TxId) -> StoredTx | None:
    """A transaction in the mempool or in the best chain."""
    row = c.execute("SELECT raw, is_coinbase, fee_sat, height FROM tx WHERE txid = ?", (txid,)).fetchone()
    return StoredTx(txid, row[0], bool(row[1]), row[2], row[3]) if row else None


def read_waiting(c: sqlite3.Connection, count: int) -> list[StoredTx]:
    """The mempool, in order of arrival."""
    rows = c.execute("SELECT txid, raw, fee_sat FROM tx WHERE height IS NULL ORDER BY seq LIMIT ?", (count,))
    return [StoredTx(TxId(txid), raw, False, fee_sat, None) for txid, raw, fee_sat in rows]


def count_waiting(c: sqlite3.Connection) -> int:
    """Transactions in the mempool."""
    count: int = c.execute("SELECT count(*) FROM tx WHERE height IS NULL").fetchone()[0]
    return count


def read_coin(c: sqlite3.Connection, outpoint: OutPoint) -> Coin | None:
    """An output of a known transaction; those that can't be spent aren't kept."""
    query = "SELECT satoshis, script, spent_by FROM coin WHERE txid = ? AND place = ?"
    row = c.execute(query, (outpoint.txid, outpoint.index)).fetchone()
    return Coin(outpoint, TxOutput(row[0], row[1]), row[2]) if row else None


def read_miners_coins(c: sqlite3.Connection, mined_until: int, count: int) -> list[Coin]:
    """Coins that the miner may spend, the largest first; of coinbases those up to a height."""
    rows = c.execute(
        "SELECT coin.txid, place, satoshis, script FROM coin JOIN tx ON tx.txid = coin.txid "
        "WHERE is_miners AND spent_by IS NULL AND (NOT tx.is_coinbase OR tx.height <= ?) ORDER BY satoshis DESC LIMIT ?",
        (mined_until, count),
    )
    return [Coin(OutPoint(TxId(txid), place), TxOutput(value, script), None) for txid, place, value, script in rows]


def read_spenders(c: sqlite3.Connection, txid: TxId) -> list[TxId]:
    """Transactions that spend outputs of one."""
    query = "SELECT DISTINCT spent_by FROM coin WHERE txid = ? AND spent_by IS NOT NULL"
    return [TxId(spender) for (spender,) in c.execute(query, (txid,))]


def read_refusal(c: sqlite3.Connection, txid: TxId) -> tuple[str, tuple[TxId, ...]] | None:
    """Why a transaction was refused last, and for which others."""
    row = c.execute("SELECT reason, competing FROM refused WHERE txid = ?", (txid,)).fetchone()
    return (row[0], split_txids(row[1])) if row else None


def write_refusal(c: sqlite3.Connection, txid: TxId, reason: str, competing: tuple[TxId, ...], keep: int) -> None:
    """Remembers a refusal, the newest `keep` of them."""
    c.execute(
        "INSERT OR REPLACE INTO refused (seq, txid, reason, competing) "
        "VALUES ((SELECT coalesce(max(seq), 0) + 1 FROM refused), ?, ?, ?)",
        (txid, reason, b"".join(competing)),
    )
    c.execute("DELETE FROM refused WHERE seq <= (SELECT max(seq) FROM refused) - ?", (keep,))


def split_txids(joined: bytes) -> tuple[TxId, ...]:
    """Txids out of their concatenation."""
    return tuple(TxId(joined[at : at + 32]) for at in range(0, len(joined), 32))
