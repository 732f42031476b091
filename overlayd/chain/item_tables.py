"""Packets and ranges that are to be confirmed: whose turn it is, what was told, how they stand. Tables: watch_tables.py.

An item is one packet, or a range of offsets that an anchor covers. A range's stream is Z32: it belongs to all.
"""

import sqlite3
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from overlayd.model.bodies import StatusBody, StatusState
from overlayd.model.confirmation import AGAIN, ConfirmationState, check_move
from overlayd.model.entry import Z32
from overlayd.model.txid import BlockHash, TxId, format_hash

REORG_REASON = "its block left the best chain"
CONFLICT_REASON = "its anchor was conflicted"
_COLUMNS = (
    "i.is_range, i.offset, i.to_offset, i.stream_hash, i.tx_id, i.vout, i.height, i.state, i.verdict, i.told, i.ever,"
    " i.next_depth, i.is_late, t.txid, t.block, coalesce(nullif(i.reason, ''), t.reason), a.size, t.created_us"
)
_FROM = "FROM chain_item i LEFT JOIN chain_tx t ON t.id = i.tx_id LEFT JOIN chain_anchor a ON a.tx_id = i.tx_id"


class NewItem(msgspec.Struct, frozen=True):
    """A packet (`to_offset` = `offset`), or a range."""

    offset: int
    to_offset: int
    stream_hash: bytes
    commitment: bytes
    tx_id: int | None
    vout: int | None
    state: ConfirmationState
    first_depth: int
    is_range: bool = False


class Item(msgspec.Struct, frozen=True):
    """An item with what its entries say about its transaction."""

    is_range: int
    offset: int
    to_offset: int
    stream_hash: bytes
    tx_id: int | None
    vout: int | None
    height: int | None
    state: ConfirmationState
    verdict: str
    told: str
    ever: str
    next_depth: int
    is_late: int
    txid: TxId | None
    block: BlockHash | None
    reason: str | None
    anchor_size: int | None
    tx_us: int | None


class Telling(msgspec.Struct, frozen=True):
    """An entry to be appended about an item, and how its row stands afterwards."""

    item: Item
    body: StatusBody
    state: ConfirmationState
    told: str
    ever: str
    next_depth: int


def insert_item(c: sqlite3.Connection, new: NewItem) -> None:
    """A packet or range that is to be confirmed."""
    c.execute(
        "INSERT INTO chain_item (is_range, offset, to_offset, stream_hash, commitment, tx_id, vout, state, next_depth)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            new.is_range, new.offset, new.to_offset, new.stream_hash, new.commitment, new.tx_id, new.vout, new.state,
            new.first_depth,
        ),
    )  # fmt: skip


# What is to be told.


def tell_first(item: Item) -> Telling:
    """A verbose stream's packet begins to wait."""
    return Telling(item, StatusBody("pending", txid=_txid(item)), "pending", item.told, item.ever, item.next_depth)


def tell_seen(item: Item) -> Telling:
    """A verbose stream's packet was seen by a source. The row says so already."""
    return Telling(
        item, StatusBody("seen", txid=_txid(item), vout=item.vout), "seen", item.told, item.ever, item.next_depth
    )


def tell_mined(item: Item) -> Telling:
    """A proof came, but no depth is reached or it isn't its turn."""
    return Telling(item, _in_block(item, "mined", None, ""), "mined", item.told, item.ever, item.next_depth)


def tell_confirmed(item: Item, depths: Sequence[int]) -> Telling:
    """Its next depth is reached. `depths`: its stream's, ascending."""
    depth = item.next_depth
    again = AGAIN if f",{depth}," in item.ever else ""
    told, ever = f"{item.told}{depth},", item.ever if again else f"{item.ever}{depth},"
    body = _in_block(item, "confirmed", depth, again)
    return Telling(item, body, "confirmed", told, ever, next_untold(told, depths))


def tell_verdict(item: Item) -> Telling:
    """It failed or was dropped, and it is its turn to say so."""
    state: StatusState = "failed" if item.verdict == "failed" else "dropped"
    body = StatusBody(state, txid=_txid(item), vout=item.vout, reason=item.reason or "")
    return Telling(item, body, state, item.told, item.ever, -item.next_depth)


def tell_back(item: Item, reason: str, depths: Sequence[int]) -> Telling:
    """It is taken back. The entry keeps the deepest depth that was told, so that those who heard it hear of this."""
    deepest = max((int(depth) for depth in item.told.split(",") if depth), default=None)
    body = _in_block(item, "pending", deepest, reason)
    return Telling(item, body, "pending", ",", item.ever, depths[0])


def _in_block(item: Item, state: StatusState, depth: int | None, reason: str) -> StatusBody:
    return StatusBody(
        state, depth, _txid(item), item.vout, item.height, "" if item.block is None else format_hash(item.block),
        item.anchor_size, reason, bool(item.is_late),
    )  # fmt: skip


def _txid(item: Item) -> str:
    return "" if item.txid is None else format_hash(item.txid)


def next_untold(told: str, depths: Iterable[int]) -> int:
    """The lowest listed depth that isn't told; 0 when all are."""
    return min((depth for depth in depths if f",{depth}," not in told), default=0)


def write_tellings(c: sqlite3.Connection, tellings: Iterable[Telling]) -> None:
    """The rows, in the transaction of their entries."""
    rows = []
    for telling in tellings:
        item = telling.item
        if not (telling.state == item.state == "mined" or telling.state == item.state == "seen"):
            check_move(item.state, telling.state)
        is_back = telling.state == "pending"
        rows.append((
            telling.state, telling.told, telling.ever, telling.next_depth, telling.state in ("mined", "confirmed"),
            is_back, telling.state in ("failed", "dropped"), item.is_range, item.offset,
        ))  # fmt: skip
    c.executemany(
        "UPDATE chain_item SET state = ?1, told = ?2, ever = ?3, next_depth = ?4, is_mined_told = ?5,"
        " height = CASE WHEN ?6 THEN NULL ELSE height END, verdict = CASE WHEN ?7 THEN '' ELSE verdict END"
        " WHERE is_range = ?8 AND offset = ?9",
        rows,
    )


# Whose turn it is.


def read_turns(c: sqlite3.Connection, stream_hash: bytes, depth: int, limit: int) -> list[Item]:
    """A stream's items that wait for a depth next, in order, but none behind one that waits for a lower depth."""
    ceiling = c.execute(
        "SELECT min(offset) FROM chain_item WHERE stream_hash = ? AND next_depth > 0 AND next_depth < ?",
        (stream_hash, depth),
    ).fetchone()[0]
    return _select(
        c, "i.stream_hash = ?1 AND i.next_depth = ?2 AND i.next_depth > 0 AND (?3 IS NULL OR i.offset < ?3) ORDER BY i.offset LIMIT ?4",
        stream_hash, depth, ceiling, limit,
    )  # fmt: skip


def read_ready(c: sqlite3.Connection, stream_hash: bytes, depth: int, height_max: int, limit: int) -> list[Item]:
    """A stream's items that wait for a depth and have it, as they were mined."""
    return _select(
        c, "i.stream_hash = ? AND i.next_depth = ? AND i.next_depth > 0 AND i.height <= ? ORDER BY i.height, i.offset LIMIT ?",
        stream_hash, depth, height_max, limit,
    )  # fmt: skip


def read_judged(c: sqlite3.Connection, stream_hash: bytes, limit: int) -> list[Item]:
    """A stream's items whose failure isn't told."""
    return _select(c, "i.verdict <> '' AND i.stream_hash = ? ORDER BY i.offset LIMIT ?", stream_hash, limit)


def read_untold(c: sqlite3.Connection, after: int, limit: int) -> list[Item]:
    """Items that are mined, of which nobody heard."""
    return _select(
        c, "i.state = 'mined' AND NOT i.is_mined_told AND i.offset > ? ORDER BY i.offset LIMIT ?", after, limit
    )


def read_untold_streams(c: sqlite3.Connection) -> set[bytes]:
    """Streams of which something is mined that nobody heard of."""
    return {
        row[0] for row in c.execute("SELECT stream_hash FROM chain_item WHERE state = 'mined' AND NOT is_mined_told")
    }


def read_unsaid(c: sqlite3.Connection, limit: int) -> list[Item]:
    """Items of verbose streams that nobody was told of yet."""
    return _select(c, "i.state = 'none' ORDER BY i.offset LIMIT ?", limit)


def read_open_streams(c: sqlite3.Connection) -> list[bytes]:
    """Streams with items that wait for a depth; found by steps through the index."""
    found: list[bytes] = []
    while True:
        row = c.execute(
            "SELECT min(stream_hash) FROM chain_item WHERE next_depth > 0 AND stream_hash > ?",
            (found[-1] if found else b"",),
        ).fetchone()
        if row[0] is None:
            return found
        found.append(row[0])


def read_items_of(c: sqlite3.Connection, tx_ids: Iterable[int]) -> list[Item]:
    """All that is confirmed by transactions."""
    return [item for tx_id in tx_ids for item in _select(c, "i.tx_id = ? ORDER BY i.offset", tx_id)]


def note_seen(c: sqlite3.Connection, tx_ids: Iterable[int]) -> None:
    """A source saw them."""
    c.executemany(
        "UPDATE chain_item SET state = 'seen' WHERE tx_id = ? AND state = 'pending'", [(one,) for one in tx_ids]
    )


def note_unseen(c: sqlite3.Connection, tx_ids: Iterable[int]) -> None:
    """No source knows them any more."""
    c.executemany(
        "UPDATE chain_item SET state = 'pending' WHERE tx_id = ? AND state = 'seen'", [(one,) for one in tx_ids]
    )


def close_stream(c: sqlite3.Connection, stream_hash: bytes, limit: int) -> int:
    """Waits for nothing of a stream any more, which was deleted; gives how many items that were, at most `limit`."""
    return c.execute(
        "UPDATE chain_item SET next_depth = 0, verdict = '' WHERE is_range = 0 AND offset IN (SELECT offset FROM chain_item"
        " WHERE stream_hash = ? AND next_depth > 0 LIMIT ?)",
        (stream_hash, limit),
    ).rowcount


# What ended, of packets that are gone.


class Ended(msgspec.Struct, frozen=True):
    """A packet whose confirmation waits for nothing. `is_over`: nor can it change any more."""

    offset: int
    tx_id: int | None
    is_over: bool


def read_ended(
    c: sqlite3.Connection, stream_hash: bytes, after: int, below: int, deep: int, limit: int
) -> list[Ended]:  # fmt: skip
    """A stream's packets between two offsets whose confirmations have ended, in order. `deep`: blocks up to this height
    stay."""
    rows = c.execute(
        "SELECT i.offset, i.tx_id, CASE WHEN t.id IS NULL THEN 1 WHEN t.height IS NULL THEN NOT t.is_open"
        " ELSE t.height <= ? END FROM chain_item i LEFT JOIN chain_tx t ON t.id = i.tx_id WHERE i.stream_hash = ?"
        " AND i.next_depth <= 0 AND i.is_range = 0 AND i.offset > ? AND i.offset < ? ORDER BY i.offset LIMIT ?",
        (deep, stream_hash, after, below, limit),
    )
    return [Ended(offset, tx_id, bool(is_over)) for offset, tx_id, is_over in rows]


def read_unpaid(c: sqlite3.Connection, stream_hash: bytes, below: int, limit: int) -> list[Ended]:
    """A stream's packets below an offset that wait for a transaction of the wallet's."""
    rows = c.execute(
        "SELECT offset FROM chain_item WHERE stream_hash = ? AND next_depth > 0 AND offset < ? AND tx_id IS NULL"
        " AND is_range = 0 LIMIT ?",
        (stream_hash, below, limit),
    )
    return [Ended(offset, None, True) for (offset,) in rows]


# Listed depths.


def read_depths(c: sqlite3.Connection) -> dict[bytes, tuple[int, ...]]:
    """The depths that each stream's items were last brought in line with."""
    rows = c.execute("SELECT stream_hash, depths FROM chain_depths")
    return {stream_hash: tuple(map(int, depths.split(","))) for stream_hash, depths in rows}


def begin_depths(c: sqlite3.Connection, stream_hash: bytes, depths: Sequence[int]) -> None:
    """A stream's first items wait for these."""
    c.execute("INSERT OR IGNORE INTO chain_depths VALUES (?, ?)", (stream_hash, ",".join(map(str, depths))))


def write_depths(c: sqlite3.Connection, stream_hash: bytes, depths: Sequence[int]) -> None:
    """They are in line."""
    c.execute("INSERT OR REPLACE INTO chain_depths VALUES (?, ?)", (stream_hash, ",".join(map(str, depths))))


def align_depths(
    c: sqlite3.Connection, stream_hash: bytes, depths: Sequence[int], after: int, limit: int
) -> int | None:
    """Brings items in line with other depths, a slice behind an offset; the last one's offset, None when all are.

    Depths that were added are told of older packets too, which is harmless for who had them at another depth.
    """
    is_range = stream_hash == Z32
    rows = c.execute(
        "SELECT offset, stream_hash, told, next_depth FROM chain_item WHERE is_range = ? AND offset > ?"
        " ORDER BY offset LIMIT ?",
        (is_range, after, limit),
    ).fetchall()
    changes = []
    for offset, found, told, next_depth in rows:
        wanted = depths[0] * -1 if next_depth < 0 else next_untold(told, depths)
        if found == stream_hash and wanted != next_depth:
            changes.append((wanted, is_range, offset))
    c.executemany("UPDATE chain_item SET next_depth = ? WHERE is_range = ? AND offset = ?", changes)
    return rows[-1][0] if len(rows) == limit else None


# How things stand.


def find_items(c: sqlite3.Connection, offsets: Iterable[int]) -> dict[int, Item]:
    """The packets that have a transaction of their own, by offset."""
    return {item.offset: item for offset in offsets for item in _select(c, "i.is_range = 0 AND i.offset = ?", offset)}


def find_offsets(c: sqlite3.Connection, txid: TxId, limit: int) -> list[int]:
    """The packets whose own transaction it is."""
    rows = c.execute(
        "SELECT i.offset FROM chain_tx t JOIN chain_item i ON i.tx_id = t.id WHERE t.txid = ? AND i.is_range = 0"
        " ORDER BY i.offset LIMIT ?",
        (txid, limit),
    )
    return [row[0] for row in rows]


def find_range(c: sqlite3.Connection, offset: int) -> Item | None:
    """The range that covers an offset."""
    found = _select(c, "i.is_range = 1 AND i.offset <= ? ORDER BY i.offset DESC LIMIT 1", offset)
    return found[0] if found and found[0].to_offset >= offset else None


def find_mined_range(c: sqlite3.Connection, offset: int) -> Item | None:
    """The first range in a block whose anchor covers an offset: the one that holds it, or else a later one."""
    covering = find_range(c, offset)
    if covering is None or covering.height is not None:
        return covering
    found = _select(
        c, "i.is_range = 1 AND i.offset > ? AND i.height IS NOT NULL ORDER BY i.offset LIMIT 1", covering.offset
    )
    return found[0] if found else None


def read_anchored_to(c: sqlite3.Connection) -> int:
    """The last offset of all ranges; 0 before the first."""
    row = c.execute("SELECT to_offset FROM chain_item WHERE is_range = 1 ORDER BY offset DESC LIMIT 1").fetchone()
    return 0 if row is None else int(row[0])


def read_unfunded(c: sqlite3.Connection, *, is_range: bool, after: int, limit: int) -> list[tuple[int, bytes, bytes]]:
    """Offset, stream and commitment of items without a transaction, in order."""
    return list(
        c.execute(
            "SELECT offset, stream_hash, commitment FROM chain_item WHERE tx_id IS NULL AND is_range = ? AND offset > ?"
            " AND next_depth > 0 ORDER BY offset LIMIT ?",
            (is_range, after, limit),
        )
    )


def read_commitments(c: sqlite3.Connection, tx_id: int) -> list[tuple[int, bytes, int | None]]:
    """Offset, commitment and known output of the packets of a transaction."""
    return list(c.execute("SELECT offset, commitment, vout FROM chain_item WHERE tx_id = ? AND is_range = 0", (tx_id,)))


def follow_txs(c: sqlite3.Connection, tx_ids: Iterable[int]) -> None:
    """Brings packets up to where their transaction is already, which they share with earlier ones."""
    for tx_id in tx_ids:
        height, verdict = c.execute("SELECT height, verdict FROM chain_tx WHERE id = ?", (tx_id,)).fetchone()
        if height is not None:
            c.execute(
                "UPDATE chain_item SET state = 'mined', height = ? WHERE tx_id = ? AND vout IS NOT NULL"
                " AND state = 'pending'",
                (height, tx_id),
            )
        elif verdict:
            c.execute("UPDATE chain_item SET verdict = ? WHERE tx_id = ? AND state = 'pending'", (verdict, tx_id))


def note_outputs(c: sqlite3.Connection, tx_id: int, outputs: Mapping[int, int | None]) -> None:
    """Where a transaction, whose bytes were found, commits to its packets; with None, that it doesn't."""
    for offset, vout in outputs.items():
        if vout is None:
            c.execute(
                "UPDATE chain_item SET verdict = 'failed', reason = 'its transaction does not commit to it'"
                " WHERE is_range = 0 AND offset = ? AND tx_id = ? AND state IN ('pending', 'seen')",
                (offset, tx_id),
            )
        else:
            c.execute(
                "UPDATE chain_item SET vout = ? WHERE is_range = 0 AND offset = ? AND tx_id = ?", (vout, offset, tx_id)
            )


def read_streams_of(c: sqlite3.Connection, tx_ids: Iterable[int]) -> set[bytes]:
    """The streams of what transactions confirm."""
    return {
        row[0] for tx_id in tx_ids for row in c.execute("SELECT stream_hash FROM chain_item WHERE tx_id = ?", (tx_id,))
    }


def assign(c: sqlite3.Connection, *, is_range: bool, offset: int, tx_id: int, vout: int) -> None:
    """An item got its transaction."""
    c.execute(
        "UPDATE chain_item SET tx_id = ?, vout = ?, verdict = '' WHERE is_range = ? AND offset = ?",
        (tx_id, vout, is_range, offset),
    )


def release_items(c: sqlite3.Connection, tx_id: int) -> None:
    """A transaction of our own came to nothing: what it was to confirm waits for another one."""
    c.execute(
        "UPDATE chain_item SET tx_id = NULL, vout = NULL, verdict = '', state = 'pending' WHERE tx_id = ?"
        " AND state IN ('pending', 'seen')",
        (tx_id,),
    )


def find_first_unsettled(c: sqlite3.Connection, stream_hash: bytes, depth: int) -> int | None:
    """The first offset of a stream's items that neither are told at a depth nor ended otherwise."""
    row = c.execute(
        "SELECT min(offset) FROM chain_item WHERE stream_hash = ? AND next_depth > 0 AND next_depth <= ?",
        (stream_hash, depth),
    ).fetchone()
    return None if row[0] is None else int(row[0])


def _select(c: sqlite3.Connection, condition: str, *values: int | bytes | None) -> list[Item]:
    rows = c.execute(f"SELECT {_COLUMNS} {_FROM} WHERE {condition}", values).fetchall()
    return [Item(*row) for row in rows]
