"""The database's schema, as ordered steps. A feature of a higher floor registers its own tables the same way."""

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import msgspec

from overlayd.model.errors import NewerSchema
from overlayd.storage import hashindex, hold_book, links, log_keys, packing, positions, tree

PAGE_BYTES = 4096


RowCheck = Callable[[Mapping[str, Any]], object]
"""Gets a row by column. Raises, whatever it likes, or gives False for one that can't be what was stored."""


class Feature(msgspec.Struct, frozen=True):
    """A named owner of tables. `steps[n]` brings its schema from version n to n + 1; steps never change once released.

    Each step is a script of statements, executed in the transaction that records the new version.
    """

    name: str
    steps: tuple[str, ...]
    on_loss: tuple[str, ...] = ()
    """Statements for a mended database that lost rows of these tables: whatever keeps the loss from doing harm."""
    sound: Mapping[str, RowCheck] = {}
    """By table: what is asked about each row that a mended database takes over."""


_LOG_TABLES = """
CREATE TABLE state (key TEXT PRIMARY KEY, value ANY) STRICT, WITHOUT ROWID;
INSERT INTO state (key, value) VALUES ('minimum_index', 0);

CREATE TABLE entry (
    offset INTEGER PRIMARY KEY,
    e BLOB NOT NULL CHECK (length(e) = 146),
    leaf BLOB NOT NULL CHECK (length(leaf) = 32),
    sealed BLOB
) STRICT;
CREATE TRIGGER entry_update_guard BEFORE UPDATE ON entry
WHEN NOT (NEW.offset IS OLD.offset AND NEW.e IS OLD.e AND NEW.leaf IS OLD.leaf AND NEW.sealed IS NULL)
BEGIN SELECT RAISE(ABORT, 'an entry can only be reduced'); END;
CREATE TRIGGER entry_delete_guard BEFORE DELETE ON entry
WHEN OLD.offset > (SELECT value FROM state WHERE key = 'minimum_index')
BEGIN SELECT RAISE(ABORT, 'an entry above the minimum index can only be reduced'); END;

CREATE TABLE epoch (epoch INTEGER PRIMARY KEY, first_offset INTEGER NOT NULL) STRICT;

CREATE TABLE stream (
    id INTEGER PRIMARY KEY,
    name TEXT UNIQUE,  -- NULL once deleted
    former_name TEXT,
    stream_hash BLOB NOT NULL UNIQUE,
    ssalt BLOB NOT NULL,
    state TEXT NOT NULL,
    owner TEXT NOT NULL,
    created_us INTEGER NOT NULL,
    version INTEGER NOT NULL,
    definition BLOB NOT NULL
) STRICT;
CREATE TABLE definition (
    stream_id INTEGER NOT NULL,
    version INTEGER NOT NULL,
    offset INTEGER NOT NULL,  -- of the node entry that says so
    PRIMARY KEY (stream_id, version)
) STRICT, WITHOUT ROWID;
CREATE TABLE stream_head (
    stream_id INTEGER PRIMARY KEY,
    sequence INTEGER NOT NULL,
    leaf BLOB NOT NULL,
    oldest_sequence INTEGER NOT NULL,
    packets INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    last_packet_us INTEGER NOT NULL,
    as_of INTEGER NOT NULL  -- entries up to this offset are counted in the row
) STRICT;

CREATE TABLE removal (
    offset INTEGER PRIMARY KEY,
    stream_hash BLOB NOT NULL,
    from_offset INTEGER NOT NULL,
    to_offset INTEGER NOT NULL,
    cause TEXT NOT NULL
) STRICT;

CREATE TABLE checkpoint (
    epoch INTEGER NOT NULL,
    size INTEGER NOT NULL,
    root BLOB NOT NULL,
    note TEXT NOT NULL,
    created_us INTEGER NOT NULL,
    PRIMARY KEY (epoch, size)
) STRICT, WITHOUT ROWID;
"""

LOG_FEATURE = Feature("log", (_LOG_TABLES, hold_book.TABLES, packing.GUARD))
FEATURES = (
    LOG_FEATURE,
    Feature("tree", (tree.TABLES, tree.KEPT_TABLES)),
    Feature("positions", (positions.TABLES,)),
    Feature("hashindex", hashindex.STEPS),
    Feature("log_keys", (log_keys.TABLES,)),
    Feature("links", (links.TABLES,)),
)


def prepare_database(connection: sqlite3.Connection) -> None:
    """Settings that must stand before the first table; without effect on a database that has tables."""
    connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    connection.execute("PRAGMA journal_mode = WAL")


def migrate(connection: sqlite3.Connection, features: Iterable[Feature]) -> None:
    """Brings every feature to its newest version, each step in a transaction of its own.

    Raises NewerSchema, before anything is changed, when the database knows a later version of one of them.
    """
    features = tuple(features)
    versions = read_versions(connection, features)
    connection.execute("CREATE TABLE IF NOT EXISTS schema_version (feature TEXT PRIMARY KEY, version INTEGER) STRICT")
    for feature in features:
        for version in range(versions.get(feature.name, 0), len(feature.steps)):
            connection.execute("BEGIN IMMEDIATE")
            try:
                for statement in split_statements(feature.steps[version]):
                    connection.execute(statement)
                connection.execute(
                    "INSERT INTO schema_version VALUES (?, ?) ON CONFLICT (feature) DO UPDATE SET version = excluded.version",
                    (feature.name, version + 1),
                )
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise


def read_versions(connection: sqlite3.Connection, features: Iterable[Feature]) -> dict[str, int]:
    """The schema's version by feature; nothing in a new database. Changes nothing.

    Raises NewerSchema when the database knows a later version of one of the features.
    """
    if not connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'schema_version'").fetchall():
        return {}
    versions = dict(connection.execute("SELECT feature, version FROM schema_version"))
    check_versions(versions, features)
    return versions


def check_versions(versions: Mapping[str, int], features: Iterable[Feature]) -> None:
    """Raises NewerSchema when a later version of one of the features is among these."""
    for feature in features:
        found = versions.get(feature.name, 0)
        if found > len(feature.steps):
            raise NewerSchema(
                f"the tables of {feature.name!r} have version {found}, this program knows {len(feature.steps)}",
                subject="log.sqlite3", hint="install the newer version again, or restore an older backup",
            )  # fmt: skip


def is_migration_due(connection: sqlite3.Connection, features: Iterable[Feature]) -> bool:
    """Whether `migrate` will change tables that are there; new ones beside them harm nobody. Raises NewerSchema."""
    features = tuple(features)
    versions = read_versions(connection, features)
    return any(0 < versions.get(feature.name, 0) < len(feature.steps) for feature in features)


def split_statements(script: str) -> Iterator[str]:
    """The statements of a script. `executescript` would commit the transaction that they belong in."""
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line
        if line.rstrip().endswith(";") and sqlite3.complete_statement(pending):
            yield pending.strip()
            pending = ""
    if pending.strip():
        yield pending.strip()
