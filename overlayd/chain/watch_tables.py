"""Where transactions are kept that confirm packets: what they are, what became of them, what must be done next.

Nothing here depends on how many there were: what is open, unsent or mined at a height is found through an index.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from overlayd.model.txid import BlockHash, TxId
from overlayd.storage import Feature

Role = Literal["brought", "funded", "anchor", "wallet"]
"""Who made it and for what: a producer for its packet, the wallet for a packet or for a checkpoint, or for itself."""

ORPHANS_KEPT = 5
"""Proofs of one transaction that led to blocks which left the best chain."""

WATCH_FEATURE = Feature(
    "chain_watch",
    (
        """
CREATE TABLE chain_tx (
    id INTEGER PRIMARY KEY,
    txid BLOB NOT NULL UNIQUE CHECK (length(txid) = 32),  -- internal order
    role TEXT NOT NULL,
    raw BLOB,  -- NULL: only its name is known
    extended BLOB,
    beef BLOB,
    height INTEGER,  -- of the block that a checked proof leads to, while that is in our best chain
    block BLOB,
    bump BLOB,
    is_seen INTEGER NOT NULL DEFAULT 0,
    to_send INTEGER NOT NULL,  -- is to be broadcast, or once more
    is_open INTEGER NOT NULL DEFAULT 1,  -- is asked about
    verdict TEXT NOT NULL DEFAULT '',  -- failed, dropped
    reason TEXT NOT NULL DEFAULT '',
    timeout_blocks INTEGER NOT NULL,
    unknown_since INTEGER,  -- our tip when sources ceased to know it, or when it was given up
    refused_since INTEGER,  -- our tip when they began to refuse it
    fee_sat INTEGER NOT NULL DEFAULT 0,
    created_us INTEGER NOT NULL,
    seen_us INTEGER,
    mined_us INTEGER
) STRICT;
CREATE INDEX chain_tx_open ON chain_tx (id) WHERE is_open;
CREATE INDEX chain_tx_to_send ON chain_tx (id) WHERE to_send;
CREATE INDEX chain_tx_height ON chain_tx (height) WHERE height IS NOT NULL;
CREATE INDEX chain_tx_own ON chain_tx (id) WHERE role <> 'brought';
CREATE TABLE chain_orphan (
    tx_id INTEGER NOT NULL,
    at_us INTEGER NOT NULL,
    height INTEGER NOT NULL,
    block BLOB NOT NULL,
    bump BLOB NOT NULL,
    PRIMARY KEY (tx_id, at_us, block)
) STRICT, WITHOUT ROWID;

CREATE TABLE chain_item (
    is_range INTEGER NOT NULL,
    offset INTEGER NOT NULL,  -- the packet's, or a range's first
    to_offset INTEGER NOT NULL,
    stream_hash BLOB NOT NULL,  -- Z32 of a range
    commitment BLOB NOT NULL,
    tx_id INTEGER,  -- NULL: waits for the wallet, a range for the next anchor
    vout INTEGER,
    height INTEGER,  -- its transaction's
    state TEXT NOT NULL,
    is_mined_told INTEGER NOT NULL DEFAULT 0,
    verdict TEXT NOT NULL DEFAULT '',  -- its transaction's, until it is told in its turn
    told TEXT NOT NULL DEFAULT ',',  -- depths told since it was pending last: ,1,6,
    ever TEXT NOT NULL DEFAULT ',',  -- depths ever told
    next_depth INTEGER NOT NULL,  -- the lowest listed one untold; 0: all are told; below 0: it was when it failed
    is_late INTEGER NOT NULL DEFAULT 0,
    reason TEXT NOT NULL DEFAULT '',  -- why it can't be confirmed by its transaction
    PRIMARY KEY (is_range, offset)
) STRICT, WITHOUT ROWID;
CREATE INDEX chain_item_turn ON chain_item (stream_hash, next_depth, offset) WHERE next_depth > 0;
CREATE INDEX chain_item_ready ON chain_item (stream_hash, next_depth, height) WHERE next_depth > 0 AND height IS NOT NULL;
CREATE INDEX chain_item_judged ON chain_item (stream_hash, offset) WHERE verdict <> '';
CREATE INDEX chain_item_untold ON chain_item (offset) WHERE state = 'mined' AND NOT is_mined_told;
CREATE INDEX chain_item_unsaid ON chain_item (offset) WHERE state = 'none';
CREATE INDEX chain_item_unfunded ON chain_item (is_range, offset) WHERE tx_id IS NULL;
CREATE INDEX chain_item_tx ON chain_item (tx_id) WHERE tx_id IS NOT NULL;
CREATE TRIGGER chain_item_move BEFORE UPDATE OF state ON chain_item
WHEN NEW.state <> OLD.state AND (OLD.state || '>' || NEW.state) NOT IN (
    'none>pending', 'pending>seen', 'pending>mined', 'pending>failed', 'pending>dropped',
    'seen>pending', 'seen>mined', 'seen>failed', 'seen>dropped',
    'mined>confirmed', 'mined>pending', 'confirmed>pending', 'failed>mined', 'dropped>mined'
)
BEGIN SELECT RAISE(ABORT, 'no such move of a packet''s state'); END;

CREATE TABLE chain_anchor (
    tx_id INTEGER PRIMARY KEY,
    epoch INTEGER NOT NULL,
    size INTEGER NOT NULL,
    root BLOB NOT NULL,
    note TEXT NOT NULL,  -- kept for ever
    created_us INTEGER NOT NULL
) STRICT;
CREATE TABLE chain_depths (
    stream_hash BLOB PRIMARY KEY,
    depths TEXT NOT NULL  -- that its items were last brought in line with
) STRICT, WITHOUT ROWID;
CREATE TABLE chain_mark (key TEXT PRIMARY KEY, number INTEGER NOT NULL, octets BLOB) STRICT, WITHOUT ROWID;
""",
        """
CREATE INDEX chain_item_ended ON chain_item (stream_hash, offset) WHERE next_depth <= 0;
CREATE INDEX chain_tx_blank ON chain_tx (id) WHERE timeout_blocks < 0;
""",
    ),
)
BLANK = -1
"""`timeout_blocks` of a row whose transaction was erased: nothing is written to it any more, and it goes with the next look
of the watcher's, which may be at work on it."""


LATE_BLOCKS = 1008
"""A transaction that failed or was dropped is asked about for so many more blocks, about a week."""


class NewTx(msgspec.Struct, frozen=True):
    """A transaction to be watched; it is broadcast where its bytes are known. `fee_sat`: of our own ones."""

    txid: TxId
    role: Role
    raw: bytes | None
    timeout_blocks: int
    extended: bytes | None = None
    beef: bytes | None = None
    fee_sat: int = 0


class WatchedTx(msgspec.Struct, frozen=True):
    """A watched transaction as it stands."""

    id: int
    txid: TxId
    role: Role
    raw: bytes | None
    extended: bytes | None
    beef: bytes | None
    height: int | None
    block: BlockHash | None
    is_seen: bool
    verdict: str
    reason: str
    timeout_blocks: int
    unknown_since: int | None
    refused_since: int | None
    created_us: int


class Mined(msgspec.Struct, frozen=True):
    """A checked proof of a watched transaction."""

    tx_id: int
    height: int
    block: BlockHash
    bump: bytes


_COLUMNS = (
    "id, txid, role, raw, extended, beef, height, block, is_seen, verdict, reason, timeout_blocks, unknown_since,"
    " refused_since, created_us"
)
_SELECT = f"SELECT {_COLUMNS} FROM chain_tx WHERE "  # noqa: S608 - constants


def insert_tx(c: sqlite3.Connection, new: NewTx, now_us: int) -> int:
    """Its row; that of an earlier one by the same name, whose missing bytes are filled in."""
    has_raw = new.raw is not None
    row: tuple[int] = c.execute(
        "INSERT INTO chain_tx (txid, role, raw, extended, beef, to_send, timeout_blocks, fee_sat, created_us)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (txid) DO UPDATE SET raw = coalesce(raw, excluded.raw),"
        " extended = coalesce(extended, excluded.extended), beef = coalesce(beef, excluded.beef),"
        " to_send = to_send OR (raw IS NULL AND excluded.raw IS NOT NULL AND height IS NULL),"
        " timeout_blocks = max(timeout_blocks, excluded.timeout_blocks) RETURNING id",
        (new.txid, new.role, new.raw, new.extended, new.beef, has_raw, new.timeout_blocks, new.fee_sat, now_us),
    ).fetchone()
    return row[0]


def read_to_send(c: sqlite3.Connection, after: int, limit: int) -> list[WatchedTx]:
    """What is to be broadcast, parents before children."""
    return _select(c, "to_send AND id > ? ORDER BY id LIMIT ?", after, limit)


def read_open(c: sqlite3.Connection, after: int, limit: int) -> list[WatchedTx]:
    """What sources are asked about."""
    return _select(c, "is_open AND id > ? ORDER BY id LIMIT ?", after, limit)


def find_txs(c: sqlite3.Connection, txids: Iterable[TxId]) -> list[WatchedTx]:
    """Those that are watched."""
    return [tx for txid in txids for tx in _select(c, "txid = ?", txid)]


def read_txs(c: sqlite3.Connection, ids: Iterable[int]) -> dict[int, WatchedTx]:
    """By row."""
    return {tx.id: tx for one in set(ids) for tx in _select(c, "id = ?", one)}


def count_open(c: sqlite3.Connection) -> int:
    """How many are asked about."""
    return int(c.execute("SELECT count(*) FROM chain_tx WHERE is_open").fetchone()[0])


def read_bump(c: sqlite3.Connection, tx_id: int) -> bytes | None:
    """The proof that holds now."""
    row = c.execute("SELECT bump FROM chain_tx WHERE id = ?", (tx_id,)).fetchone()
    return None if row is None else row[0]


def read_orphans(c: sqlite3.Connection, tx_id: int) -> list[tuple[int, int, BlockHash, bytes]]:
    """Proofs that held once: when they ceased to (in microseconds), height, block, BUMP; oldest first."""
    return list(
        c.execute("SELECT at_us, height, block, bump FROM chain_orphan WHERE tx_id = ? ORDER BY at_us", (tx_id,))
    )


class Answered(msgspec.Struct, frozen=True):
    """How a source's answer leaves a transaction that no block holds."""

    tx_id: int
    is_seen: bool
    reason: str
    unknown_since: int | None
    refused_since: int | None
    to_send: bool


def note_answers(c: sqlite3.Connection, changes: Iterable[Answered], now_us: int) -> None:
    """What sources said, as far as it counts. A packet becomes `seen` by it, and nothing more."""
    c.executemany(
        "UPDATE chain_tx SET is_seen = ?2, reason = ?3, unknown_since = ?4, refused_since = ?5, to_send = ?6,"
        " seen_us = CASE WHEN ?2 THEN coalesce(seen_us, ?7) ELSE seen_us END WHERE id = ?1 AND timeout_blocks >= 0",
        [
            (one.tx_id, one.is_seen, one.reason, one.unknown_since, one.refused_since, one.to_send, now_us)
            for one in changes
        ],
    )


def note_raw(c: sqlite3.Connection, tx_id: int, raw: bytes) -> None:
    """Its bytes were found."""
    c.execute("UPDATE chain_tx SET raw = ? WHERE id = ? AND timeout_blocks >= 0", (raw, tx_id))


def note_sent(c: sqlite3.Connection, ids: Iterable[int]) -> None:
    """They were broadcast."""
    c.executemany("UPDATE chain_tx SET to_send = 0 WHERE id = ?", [(one,) for one in ids])


def note_mined(c: sqlite3.Connection, mined: Iterable[Mined], now_us: int) -> None:
    """Checked proofs came: their packets are mined. What was failed or dropped comes late."""
    for proof in mined:
        c.execute(
            "UPDATE chain_tx SET height = ?, block = ?, bump = ?, is_open = 0, to_send = 0, verdict = '', reason = '',"
            " mined_us = coalesce(mined_us, ?) WHERE id = ? AND timeout_blocks >= 0",
            (proof.height, proof.block, proof.bump, now_us, proof.tx_id),
        )
        c.execute(
            "UPDATE chain_item SET height = ?1, is_late = is_late OR state IN ('failed', 'dropped'), state = 'mined',"
            " is_mined_told = 0, verdict = '', next_depth = abs(next_depth)"
            " WHERE tx_id = ?2 AND vout IS NOT NULL AND next_depth <> 0"
            " AND state IN ('pending', 'seen', 'failed', 'dropped')",
            (proof.height, proof.tx_id),
        )


def note_verdict(c: sqlite3.Connection, tx_id: int, verdict: str, reason: str, tip_height: int) -> None:
    """Our own judgement; its packets tell it in their turn. It is asked about further, for a proof still counts."""
    c.execute(
        "UPDATE chain_tx SET verdict = ?, reason = ?, to_send = 0, unknown_since = ? WHERE id = ? AND timeout_blocks >= 0",
        (verdict, reason, tip_height, tx_id),
    )
    c.execute("UPDATE chain_item SET verdict = ? WHERE tx_id = ? AND state IN ('pending', 'seen')", (verdict, tx_id))


def close_txs(c: sqlite3.Connection, ids: Iterable[int]) -> None:
    """They are asked about no more; only a hint brings them back."""
    c.executemany("UPDATE chain_tx SET is_open = 0 WHERE id = ?", [(one,) for one in ids])


def read_blocks(c: sqlite3.Connection, from_height: int) -> list[tuple[int, BlockHash]]:
    """The blocks, from a height on, that proofs lead to."""
    return list(
        c.execute("SELECT DISTINCT height, block FROM chain_tx WHERE height >= ? ORDER BY height", (from_height,))
    )


def read_mined_in(c: sqlite3.Connection, height: int, block: BlockHash, limit: int) -> list[int]:
    """Rows of transactions that a block holds."""
    rows = c.execute(
        "SELECT id FROM chain_tx WHERE height = ? AND block = ? ORDER BY id LIMIT ?", (height, block, limit)
    )
    return [row[0] for row in rows]


def note_orphaned(c: sqlite3.Connection, tx_ids: Iterable[int], now_us: int) -> None:
    """Their block left the best chain: the proof becomes history, they are broadcast and asked about again."""
    for tx_id in tx_ids:
        c.execute(
            "INSERT OR REPLACE INTO chain_orphan SELECT id, ?, height, block, bump FROM chain_tx"
            " WHERE id = ? AND bump IS NOT NULL",
            (now_us, tx_id),
        )
        c.execute(
            "DELETE FROM chain_orphan WHERE tx_id = ?1 AND at_us NOT IN"
            " (SELECT at_us FROM chain_orphan WHERE tx_id = ?1 ORDER BY at_us DESC LIMIT ?2)",
            (tx_id, ORPHANS_KEPT),
        )
        c.execute(
            "UPDATE chain_tx SET height = NULL, block = NULL, bump = NULL, is_open = 1, is_seen = 0,"
            " to_send = raw IS NOT NULL, reason = 'its block left the best chain', unknown_since = NULL,"
            " refused_since = NULL WHERE id = ? AND timeout_blocks >= 0",
            (tx_id,),
        )


def insert_anchor(
    c: sqlite3.Connection, tx_id: int, epoch: int, size: int, root: bytes, note: str, now_us: int
) -> None:  # fmt: skip
    """The checkpoint that a transaction anchors."""
    c.execute("INSERT INTO chain_anchor VALUES (?, ?, ?, ?, ?, ?)", (tx_id, epoch, size, root, note, now_us))


def read_anchor(c: sqlite3.Connection, tx_id: int) -> tuple[int, str] | None:
    """The size and the signed note of the checkpoint that a transaction anchors."""
    row = c.execute("SELECT size, note FROM chain_anchor WHERE tx_id = ?", (tx_id,)).fetchone()
    return None if row is None else (row[0], row[1])


def read_anchor_sizes(c: sqlite3.Connection, after: int, upto: int, limit: int) -> list[int]:
    """Sizes of anchored checkpoints in (after, upto], ascending, at most so many."""
    rows = c.execute(
        "SELECT DISTINCT size FROM chain_anchor WHERE size > ? AND size <= ? ORDER BY size LIMIT ?",
        (after, upto, limit),
    )
    return [size for (size,) in rows]


def read_mark(c: sqlite3.Connection, key: str) -> tuple[int, bytes | None] | None:
    """A number and octets that are remembered under a name."""
    row = c.execute("SELECT number, octets FROM chain_mark WHERE key = ?", (key,)).fetchone()
    return None if row is None else (row[0], row[1])


def write_mark(c: sqlite3.Connection, key: str, number: int, octets: bytes | None = None) -> None:
    """Remembers them."""
    c.execute("INSERT OR REPLACE INTO chain_mark VALUES (?, ?, ?)", (key, number, octets))


def _select(c: sqlite3.Connection, condition: str, *values: int | bytes) -> list[WatchedTx]:
    rows: Sequence[tuple[object, ...]] = c.execute(_SELECT + condition, values).fetchall()
    return [WatchedTx(*row) for row in rows]  # type: ignore[arg-type]  # the columns are the fields
