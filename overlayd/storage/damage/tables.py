"""Rows brought over from a damaged database's pages into a new one. Blocking."""

import sqlite3
from collections.abc import Iterable, Iterator

import msgspec

from overlayd.model.entry import ENTRY_BYTES, EntryHeader, leaf_hash, verify_entry
from overlayd.model.errors import OverlaydError, VerificationFailed
from overlayd.storage.damage.known_loss import HOLLOW
from overlayd.storage.damage.pages import (
    LEAF_TABLE,
    BadPage,
    Cell,
    PageImage,
    Value,
    count_cells,
    decode_record,
    find_leaves,
    read_cells,
)
from overlayd.storage.damage.schema import SchemaRow
from overlayd.storage.migrations import RowCheck
from overlayd.storage.record import LEAF_BYTES, decode_row
from overlayd.storage.tree import TILE_BYTES

_ENTRY_HEAD = b"\x00\x82\x30\x4c"
"""How a record's head begins that holds a NULL for the rowid, 146 bytes and 32 bytes."""
_TILE_HEAD = b"\x05\x00\x81\x80\x0c"
"""The whole head of a record that holds a NULL for the rowid and 8,192 bytes."""
_ENTRY_INSERT = (
    "INSERT INTO entry (offset, e, leaf, sealed) VALUES (?, ?, ?, ?) ON CONFLICT (offset) DO UPDATE"
    " SET sealed = excluded.sealed WHERE length(entry.sealed) = 0 AND entry.e = excluded.e"
)
BATCH_ROWS = 512

EntryRow = tuple[int, bytes, bytes, bytes | None]


class TableReport(msgspec.Struct):
    """What came over of a table. `bad_pages`: pages that couldn't be read; `bad_rows`: rows that weren't usable."""

    rows: int = 0
    bad_pages: int = 0
    bad_rows: int = 0

    @property
    def is_whole(self) -> bool:
        return not (self.bad_pages or self.bad_rows)


def make_tables(target: sqlite3.Connection, schema: Iterable[SchemaRow]) -> list[SchemaRow]:
    """The tables of a schema, made empty; gives those that could be made."""
    made = []
    for row in schema:
        if row.kind != "table" or row.name.startswith("sqlite_"):
            continue
        try:
            target.execute(row.sql)
            made.append(row)
        except sqlite3.Error:
            continue
    return made


def finish_tables(target: sqlite3.Connection, schema: Iterable[SchemaRow]) -> None:
    """Indexes and triggers, which would have been in the way before."""
    for row in schema:
        if row.kind == "table":
            continue
        try:
            target.execute(row.sql)
        except sqlite3.Error:  # an index over rows that contradict each other; a later start's own tables show it
            continue


def copy_entries(image: PageImage, target: sqlite3.Connection, root: int) -> tuple[TableReport, int]:
    """Every entry whose own hash holds, wherever in the file its page is; and the highest offset among those that the
    table's tree leads to. Those that no way leads to any more come last, and never over one that was reached."""
    report, seen = TableReport(), set[int]()
    rows = _reached_entries(image, root, seen, report)
    _insert_entries(target, rows, report)
    reached = _highest(target)
    _insert_entries(target, _stray_entries(image, seen), report)
    return report, reached


def copy_stray_tiles(image: PageImage, target: sqlite3.Connection) -> int:
    """Full tiles on pages that nothing leads to, told by their shape; they prove themselves by the root, or not at all."""
    found = 0
    for number in image.pages:
        try:
            if image.read(number)[0] != LEAF_TABLE:
                continue
            for cell in read_cells(image, number):
                if cell.is_whole and cell.payload[:5] == _TILE_HEAD and len(cell.payload) == 5 + TILE_BYTES:
                    row = (cell.rowid, cell.payload[5:])
                    found += target.execute("INSERT OR IGNORE INTO tile (id, hashes) VALUES (?, ?)", row).rowcount
        except BadPage:
            continue
    return found


def copy_table(
    image: PageImage, target: sqlite3.Connection, row: SchemaRow, check: RowCheck | None = None
) -> TableReport:  # fmt: skip
    """The rows of any other table. `row` names one that the target has. Those that `check` doesn't like stay behind."""
    report = TableReport()
    columns = [(name, key) for _, name, _, _, _, key, hidden in target.execute(f"PRAGMA table_xinfo({_quote(row.name)})")
               if not hidden]  # fmt: skip
    is_keyed = "WITHOUT ROWID" in row.sql.upper()
    order = _stored_order(columns) if is_keyed else [name for name, _ in columns]
    rowid = None if is_keyed else _rowid_column(columns, row.sql)
    places = ", ".join("?" * len(order))
    insert = f"INSERT OR IGNORE INTO {_quote(row.name)} ({', '.join(map(_quote, order))}) VALUES ({places})"  # noqa: S608 - names from the schema
    for cell in _cells(image, row.root, set(), report):
        values = _values_of(cell, len(order))
        if values is None:
            report.bad_rows += 1
            continue
        if rowid is not None and values[rowid] is None:
            values[rowid] = cell.rowid
        if check is not None and not _is_sound(check, dict(zip(order, values, strict=True))):
            report.bad_rows += 1
            continue
        try:
            report.rows += target.execute(insert, values).rowcount
        except (sqlite3.Error, OverflowError):
            report.bad_rows += 1
    return report


def judge_entry(cell: Cell) -> EntryRow | None:
    """The row of an entry, if E hashes to its leaf. What E seals is left out where it isn't what was sealed."""
    payload = cell.payload
    head = payload[0] if payload else 0
    if not 6 <= head <= 14 or payload[1:5] != _ENTRY_HEAD or len(payload) < head + ENTRY_BYTES + LEAF_BYTES:
        return None
    raw = payload[head : head + ENTRY_BYTES]
    leaf = payload[head + ENTRY_BYTES : head + ENTRY_BYTES + LEAF_BYTES]
    if leaf_hash(raw) != leaf:
        return None
    try:
        offset = EntryHeader.decode(raw).offset
    except VerificationFailed:
        return None
    sealed = None if payload[5:head] == b"\x00" else payload[head + ENTRY_BYTES + LEAF_BYTES :]
    if sealed is not None and not _is_sealed_so(raw, leaf, sealed):
        sealed = HOLLOW
    return (offset, raw, leaf, sealed) if offset < 1 << 63 else None


def _is_sealed_so(raw: bytes, leaf: bytes, sealed: bytes) -> bool:
    try:
        verify_entry(decode_row(raw, leaf, sealed), leaf)
    except VerificationFailed:
        return False
    return True


def _reached_entries(image: PageImage, root: int, seen: set[int], report: TableReport) -> Iterator[EntryRow]:
    for cell in _cells(image, root, seen, report):
        row = judge_entry(cell)
        if row is None:
            report.bad_rows += 1
        else:
            yield row


def _stray_entries(image: PageImage, seen: set[int]) -> Iterator[EntryRow]:
    """On pages that look like the table's and that nothing leads to."""
    for number in image.pages:
        if number in seen:
            continue
        try:
            if image.read(number)[0] != LEAF_TABLE:
                continue
            for cell in read_cells(image, number):
                row = judge_entry(cell)
                if row is not None:
                    yield row
        except BadPage:
            continue


def _cells(image: PageImage, root: int, seen: set[int], report: TableReport) -> Iterator[Cell]:
    for number, error in find_leaves(image, root, seen):
        if error is not None:
            report.bad_pages += 1
            continue
        try:
            found = 0
            for cell in read_cells(image, number):
                found += 1
                yield cell
            report.bad_rows += count_cells(image, number) - found
        except BadPage:
            report.bad_pages += 1


def _insert_entries(target: sqlite3.Connection, rows: Iterator[EntryRow], report: TableReport) -> None:
    batch: list[EntryRow] = []
    for row in rows:
        batch.append(row)
        if len(batch) == BATCH_ROWS:
            report.rows += target.executemany(_ENTRY_INSERT, batch).rowcount
            batch.clear()
    report.rows += target.executemany(_ENTRY_INSERT, batch).rowcount


def _highest(target: sqlite3.Connection) -> int:
    (highest,) = target.execute("SELECT coalesce(max(offset), 0) FROM entry").fetchone()
    return int(highest)


def _values_of(cell: Cell, count: int) -> list[Value] | None:
    """None for a record of another shape. Columns that were added later may be missing at its end."""
    if not cell.is_whole:
        return None
    try:
        values = decode_record(cell.payload)
    except BadPage:
        return None
    if len(values) > count:
        return None
    return [*values, *[None] * (count - len(values))]


def _is_sound(check: RowCheck, row: dict[str, Value]) -> bool:
    try:
        return check(row) is not False
    except (OverlaydError, ValueError, TypeError, LookupError, AttributeError, msgspec.MsgspecError):
        return False


def _stored_order(columns: list[tuple[str, int]]) -> list[str]:
    """A table without rowid stores its primary key's columns first."""
    keys = sorted((key, name) for name, key in columns if key)
    return [name for _, name in keys] + [name for name, key in columns if not key]


def _rowid_column(columns: list[tuple[str, int]], sql: str) -> int | None:
    """Which column is the rowid, and is stored as NULL."""
    keys = [at for at, (_, key) in enumerate(columns) if key]
    return keys[0] if len(keys) == 1 and "INTEGER PRIMARY KEY" in sql.upper() else None


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
