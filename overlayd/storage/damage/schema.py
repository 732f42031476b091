"""What tables a database has: read from its first page, and from `DIR/schema.json` where that page can't be believed.

The file is written whenever the schema has changed; a table's root page stays where it is after that. Blocking.
"""

import sqlite3
from collections.abc import Mapping
from pathlib import Path

import msgspec

from overlayd.storage import files
from overlayd.storage.damage.pages import BadPage, PageImage, count_cells, decode_record, find_leaves, read_cells

SCHEMA_NAME = "schema.json"
_ROWS = (
    "SELECT type, name, tbl_name, coalesce(rootpage, 0), sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY rowid"
)


class SchemaRow(msgspec.Struct, frozen=True):
    """A table, index or trigger; `root`: its first page, 0 where it has none."""

    kind: str
    name: str
    table: str
    root: int
    sql: str


class SavedSchema(msgspec.Struct, frozen=True):
    """The schema as it was kept outside. `cookie`: the database's own count of its changes then; `versions`: by feature."""

    cookie: int = 0
    rows: tuple[SchemaRow, ...] = ()
    versions: dict[str, int] = {}


_DECODER = msgspec.json.Decoder(SavedSchema)
_COOKIE_AT = 40


def save_schema(connection: sqlite3.Connection, directory: Path) -> None:
    """Keeps the schema outside of the database, unless the file says the same already."""
    (cookie,) = connection.execute("PRAGMA schema_version").fetchone()
    versions = dict(connection.execute("SELECT feature, version FROM schema_version ORDER BY feature"))
    saved = SavedSchema(cookie, tuple(SchemaRow(*row) for row in connection.execute(_ROWS)), versions)
    if saved != load_schema(directory):
        files.replace_file(directory / SCHEMA_NAME, msgspec.json.format(msgspec.json.encode(saved), indent=1))


def load_schema(directory: Path) -> SavedSchema:
    """What the file says; nothing when it isn't there or can't be read."""
    try:
        return _DECODER.decode(files.read_file(directory / SCHEMA_NAME))
    except (OSError, msgspec.DecodeError):
        return SavedSchema()


def read_schema(image: PageImage, saved: SavedSchema) -> tuple[SchemaRow, ...]:
    """Every table, index and trigger: as saved, unless the database can be read and says that it changed since."""
    own, is_whole = _read_own(image)
    if saved.rows and (not is_whole or cookie_of(image) == saved.cookie):
        return saved.rows
    return tuple(own)


def follows_on(versions: Mapping[object, object], saved: SavedSchema) -> bool:
    """Whether a database's versions are those that were saved, or later ones, which only a newer program writes."""
    return versions.keys() >= saved.versions.keys() and all(
        isinstance(found, int) and found >= saved.versions.get(str(feature), 0) for feature, found in versions.items()
    )


def _read_own(image: PageImage) -> tuple[list[SchemaRow], bool]:
    """The rows of the first page's table, and whether all of them could be read."""
    rows, is_whole = list[SchemaRow](), True
    for number, error in find_leaves(image, 1):
        is_whole = is_whole and error is None
        if error is not None:
            continue
        try:
            cells = list(read_cells(image, number))
            is_whole = is_whole and len(cells) == count_cells(image, number)
        except BadPage:
            is_whole = False
            continue
        read = [_row_of(cell.payload) for cell in cells]
        rows += [row for row in read if row is not None]
    return rows, is_whole


def cookie_of(image: PageImage) -> int:
    """The database's own count of its schema's changes; -1 when it can't be read."""
    try:
        return int.from_bytes(image.read(1)[_COOKIE_AT : _COOKIE_AT + 4], "big")
    except BadPage:
        return -1


def _row_of(payload: bytes) -> SchemaRow | None:
    try:
        values = decode_record(payload)
    except BadPage:
        return None
    if len(values) != 5:
        return None
    kind, name, table, root, sql = values
    if not (isinstance(kind, str) and isinstance(name, str) and isinstance(table, str) and isinstance(sql, str)):
        return None
    if kind not in ("table", "index", "trigger") or not sql.startswith("CREATE "):
        return None
    return SchemaRow(kind, name, table, root if isinstance(root, int) else 0, sql)
