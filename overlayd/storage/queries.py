"""What is read from the database, as functions for a reader's thread. Each is one read transaction.

A page comes back as one value of one row, because every step of a statement gives the interpreter lock up and takes
it back. Rows are self-delimiting (record.py); that concatenation is exact, NUL bytes included, is tested.
"""

import json
import sqlite3
from collections.abc import Sequence

from overlayd.model.cursor import Epoch
from overlayd.model.entry import EntryHeader, StoredEntry, leaf_hash, verify_entry
from overlayd.model.errors import VerificationFailed
from overlayd.model.merkle import Node
from overlayd.storage.checkpoint import Checkpoint
from overlayd.storage.record import HEAD_BYTES, REDUCED, decode_page, decode_row, decode_stub, stub_bytes
from overlayd.storage.tail import Page
from overlayd.storage.tree import tile_id

_ROW = f"e || leaf || coalesce(sealed, x'{REDUCED.hex()}')"

_PAGE = f"""
SELECT CAST(group_concat({_ROW}, '') AS BLOB) FROM (
    SELECT e, leaf, sealed FROM entry WHERE offset > ?1 AND offset <= (
        SELECT max(offset) FROM (
            SELECT offset, sum(bytes) OVER (ORDER BY offset ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
            FROM (SELECT offset, length(sealed) AS bytes FROM entry WHERE offset > ?1 AND offset <= ?2
                  ORDER BY offset LIMIT ?3)
        ) WHERE coalesce(before, 0) < ?4
    ) ORDER BY offset
)"""  # noqa: S608 - constants only
"""Entries after ?1 up to ?2, at most ?3 and as many as begin within ?4 bytes. The lengths alone are looked at first:
SQLite finds them without reading the bodies."""

_MANY = f"""
SELECT CAST(group_concat({_ROW}, '') AS BLOB) FROM (
    SELECT e, leaf, sealed FROM entry WHERE offset IN (SELECT value FROM json_each(?1)) AND offset <= (
        SELECT max(offset) FROM (
            SELECT offset, sum(bytes) OVER (ORDER BY offset ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
            FROM (SELECT offset, length(sealed) AS bytes FROM entry
                  WHERE offset IN (SELECT value FROM json_each(?1)) ORDER BY offset)
        ) WHERE coalesce(before, 0) < ?2
    ) ORDER BY offset
)"""  # noqa: S608 - constants only

_STUBS = """
SELECT offset, e, leaf, sealed IS NULL FROM entry
WHERE offset IN (SELECT value FROM json_each(?1)) ORDER BY offset"""

_NEWEST_KEPT = "SELECT max(offset) FROM entry WHERE offset IN (SELECT value FROM json_each(?)) AND sealed IS NOT NULL"

_OLDEST_KEPT = _NEWEST_KEPT.replace("max(", "min(")

_TIMES = "SELECT offset, substr(e, 19, 8) FROM entry WHERE offset IN (SELECT value FROM json_each(?))"
_REDUCED = """
SELECT offset FROM entry
WHERE offset IN (SELECT value FROM json_each(?)) AND sealed IS NULL AND substr(e, 1, 1) <> x'00'"""

_HEADER_FROM = """
SELECT offset, e, leaf FROM entry WHERE offset >= ? AND substr(e, 1, 1) <> x'00' ORDER BY offset LIMIT 1"""
"""Past rows that only hold the place of an entry that is lost."""
_HEADER_BACK = """
SELECT offset, e, leaf FROM entry WHERE offset <= ? AND substr(e, 1, 1) <> x'00' ORDER BY offset DESC LIMIT 1"""
_SEALED_START = "SELECT substr(sealed, 1, ?) FROM entry WHERE offset = ?"
STUB_GUESS_BYTES = 1024
"""Nearly every row's head and meta are shorter."""
_ROW_AT = "SELECT offset, e, leaf, sealed FROM entry WHERE offset = ?"
_ROWS = "SELECT offset, e, leaf, sealed FROM entry WHERE offset > ? AND offset <= ? ORDER BY offset"


def read_page_blob(connection: sqlite3.Connection, after: int, upto: int, limit: int, size: int) -> bytes:
    """The rows of a page, to be taken apart on the loop."""
    (page,) = connection.execute(_PAGE, (after, upto, limit, size)).fetchone()
    return page or b""


def read_many_blob(connection: sqlite3.Connection, offsets: Sequence[int], size: int) -> bytes:
    """The rows of some offsets, ascending: as many as begin within `size` bytes, at least one."""
    (page,) = connection.execute(_MANY, (json.dumps(list(offsets)), size)).fetchone()
    return page or b""


def read_rows(connection: sqlite3.Connection, after: int, upto: int) -> list[tuple[int, bytes, bytes, bytes | None]]:
    """Row by row, for a page that doesn't come apart: offset, E, leaf, sealed."""
    return connection.execute(_ROWS, (after, upto)).fetchall()


def read_rows_singly(
    connection: sqlite3.Connection, after: int, upto: int
) -> list[tuple[int, bytes, bytes, bytes | None]]:
    """Those rows of a run that can be read at all, where a page of the file is broken; as `read_rows`."""
    rows = []
    for offset in range(after + 1, upto + 1):
        try:
            rows += connection.execute(_ROW_AT, (offset,)).fetchall()
        except sqlite3.DatabaseError:
            continue
    return rows


def read_stubs(connection: sqlite3.Connection, offsets: Sequence[int]) -> list[StoredEntry]:
    """Entries without their bodies, however long these are; only E is verified. A row that doesn't come apart is
    given as reduced. Several reads: inside a transaction, or where rows don't change."""
    stubs = []
    for offset, raw, leaf, is_reduced in connection.execute(_STUBS, (json.dumps(list(offsets)),)).fetchall():
        reduced = decode_row(raw, leaf, None)
        try:
            verify_entry(reduced, None)
            stub = reduced if is_reduced else decode_stub(raw, leaf, _read_stub(connection, offset))
        except VerificationFailed:
            stub = reduced
        stubs.append(stub)
    return stubs


def find_kept(connection: sqlite3.Connection, offsets: Sequence[int]) -> int | None:
    """The newest of some offsets whose entry isn't reduced."""
    (offset,) = connection.execute(_NEWEST_KEPT, (json.dumps(list(offsets)),)).fetchone()
    found: int | None = offset
    return found


def find_oldest_kept(connection: sqlite3.Connection, offsets: Sequence[int]) -> int | None:
    """The oldest of some offsets whose entry isn't reduced."""
    (offset,) = connection.execute(_OLDEST_KEPT, (json.dumps(offsets),)).fetchone()
    found: int | None = offset
    return found


def find_reduced(connection: sqlite3.Connection, offsets: Sequence[int]) -> list[int]:
    """Those of some offsets whose entry was taken away; what is damaged isn't."""
    return [offset for (offset,) in connection.execute(_REDUCED, (json.dumps(offsets),))]


def _read_stub(connection: sqlite3.Connection, offset: int) -> bytes:
    """The start of a row's sealed part. Not by `blobopen`, which would spare reading long bodies: Python 3.11 keeps a
    reference to every blob that was ever opened for as long as the connection lives."""
    (start,) = connection.execute(_SEALED_START, (STUB_GUESS_BYTES, offset)).fetchone()
    needed = stub_bytes(start[:HEAD_BYTES])
    if needed > len(start):
        (start,) = connection.execute(_SEALED_START, (needed, offset)).fetchone()
    return bytes(start[:needed])


def read_tiles(connection: sqlite3.Connection, wanted: Sequence[tuple[int, int]]) -> list[bytes]:
    """Full tiles by (level, index), b"" for one that isn't there."""
    ids = [tile_id(level, index) for level, index in wanted]
    rows = dict(
        connection.execute(
            "SELECT id, hashes FROM tile WHERE id IN (SELECT value FROM json_each(?))", (json.dumps(ids),)
        )
    )
    return [rows.get(key, b"") for key in ids]


def read_kept_nodes(connection: sqlite3.Connection, nodes: Sequence[Node]) -> dict[Node, bytes]:
    """Those of the nodes (level, index) that stayed when their tiles were cut."""
    query = "SELECT hash FROM kept_node WHERE level = ? AND node_index = ?"
    found = {node: connection.execute(query, node).fetchone() for node in nodes}
    return {node: row[0] for node, row in found.items() if row is not None}


def read_appended_times(connection: sqlite3.Connection, offsets: Sequence[int]) -> dict[int, int]:
    """When entries were appended (Unix µs), by offset, as their rows say."""
    rows = connection.execute(_TIMES, (json.dumps(list(offsets)),))
    return {offset: int.from_bytes(appended, "big") for offset, appended in rows}


def read_appended_us(connection: sqlite3.Connection, offset: int, *, is_back: bool = False) -> int | None:
    """When the first entry at or after an offset was appended; with `is_back` the last one at or before it."""
    while True:
        row = connection.execute(_HEADER_BACK if is_back else _HEADER_FROM, (offset,)).fetchone()
        if row is None:
            return None
        found, raw, leaf = row
        if leaf_hash(raw) == leaf:
            return EntryHeader.decode(raw).appended_us
        offset = found - 1 if is_back else found + 1  # a damaged one says nothing about time


def find_offset_at(connection: sqlite3.Connection, low: int, high: int, time_us: int) -> int:
    """The first offset in [low, high] appended at or after a time; high + 1 if there is none."""
    while low <= high:
        middle = (low + high) // 2
        appended_us = read_appended_us(connection, middle)
        if appended_us is None or appended_us >= time_us:
            high = middle - 1
        else:
            low = middle + 1
    return low


def open_page(blob: bytes, after: int, upto: int) -> Page | None:
    """A page whose every row verifies and follows the one before; None where one doesn't (read it row by row)."""
    try:
        entries = decode_page(blob)
        expected = after
        for entry in entries:
            expected += 1
            if entry.offset != expected:
                return None
            verify_entry(entry, None)
    except VerificationFailed:
        return None
    if not entries:
        return None if after < upto else Page([], after)
    return Page(entries, entries[-1].offset)


def open_rows(rows: Sequence[tuple[int, bytes, bytes, bytes | None]], after: int, upto: int) -> Page:
    """A page over (after, upto] in which what is missing or doesn't verify stands as damage."""
    page = Page([], upto)
    expected = after + 1
    for offset, raw, leaf, sealed in rows:
        if offset > expected:
            _note_damage(page, expected, offset - 1)
        expected = offset + 1
        try:
            entry = decode_row(raw, leaf, sealed)
            verify_entry(entry, None)
            if entry.offset != offset:
                raise VerificationFailed("the row stands at another offset than it says")
        except VerificationFailed:
            _note_damage(page, offset, offset)
        else:
            page.entries.append(entry)
    if expected <= upto:
        _note_damage(page, expected, upto)
    return page


def open_many(blob: bytes) -> list[StoredEntry]:
    """Entries that verify, in order. Raises VerificationFailed."""
    entries = decode_page(blob)
    for entry in entries:
        verify_entry(entry, None)
    return entries


def _note_damage(page: Page, low: int, high: int) -> None:
    if page.damaged and page.damaged[-1][1] == low - 1:
        page.damaged[-1] = (page.damaged[-1][0], high)
    else:
        page.damaged.append((low, high))


def read_newest_checkpoint(connection: sqlite3.Connection, epoch: Epoch) -> Checkpoint | None:
    """The newest stored one of an epoch."""
    row = connection.execute(
        "SELECT epoch, size, root, note FROM checkpoint WHERE epoch = ? ORDER BY size DESC LIMIT 1", (epoch,)
    ).fetchone()
    return None if row is None else Checkpoint(*row)
