"""A whole database made from a damaged one's pages: every entry that proves itself, its tree, and what else can be read.

The damaged file is only read. What the log derives from its entries is made anew; the tables of features are brought over
row by row. Nothing is believed that an entry's hash or the signed root contradicts. Blocking.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import msgspec
import structlog

from overlayd.model.bodies import DefinitionChange, decode_node_body
from overlayd.model.entry import Kind, StoredEntry, stream_hash_of
from overlayd.model.errors import VerificationFailed
from overlayd.model.merkle import TILE_WIDTH
from overlayd.storage import queries
from overlayd.storage.damage.edges import read_edges
from overlayd.storage.damage.keys_again import is_checkpoint_row, mend_keys
from overlayd.storage.damage.known_loss import LOST_FACT, RESTORED_FACT, is_stream_row, join_runs, read_runs
from overlayd.storage.damage.pages import PageImage
from overlayd.storage.damage.schema import SavedSchema, SchemaRow, cookie_of, follows_on, load_schema, read_schema
from overlayd.storage.damage.tables import (
    TableReport,
    copy_entries,
    copy_stray_tiles,
    copy_table,
    finish_tables,
    make_tables,
)
from overlayd.storage.damage.tree_again import MadeTree, TreeMaker
from overlayd.storage.files import HighWater
from overlayd.storage.migrations import FEATURES, Feature, prepare_database, split_statements

RUNS_MAX = 10_000
_DERIVED = frozenset({
    "position_block", "position_state", "hash_run", "hash_block", "hash_filter", "hash_family", "hash_held", "epoch",
})  # fmt: skip
"""Tables that are made anew and not brought over; of the hash index, what entries can't give back is."""
_log = structlog.get_logger("storage.damage")


class NothingLeft(Exception):
    """The file holds no entry. Never leaves this package."""


class Rebuilt(msgspec.Struct):
    """What came out: how long the log is, which offsets lost their entry or its content, what tables lost."""

    size: int
    known_size: int
    missing: list[tuple[int, int]]
    hollow: list[tuple[int, int]]
    tables: dict[str, TableReport]
    entries: int

    @property
    def lost(self) -> list[tuple[int, int]]:
        """Offsets (runs, inclusive) that can't be served."""
        return join_runs([*self.missing, *self.hollow])

    @property
    def needs_epoch(self) -> bool:
        """Whether sequences may have been given that nobody knows of now."""
        return bool(self.missing) or self.size < self.known_size

    @property
    def damaged_tables(self) -> list[str]:
        """Tables, but for the entries' own and derived ones, of which something couldn't be read."""
        ours = _DERIVED | {"entry", "tile", "stream_head"}
        return sorted(name for name, report in self.tables.items() if not report.is_whole and name not in ours)


def rebuild(
    database: Path, target: Path, *, directory: Path, mark: HighWater | None, features: Iterable[Feature],
    trusts_tiles: bool = True,
) -> Rebuilt:  # fmt: skip
    """Makes `target` from `database`. `directory`: where schema and edge are kept. `trusts_tiles`: a leaf whose entry is
    lost is taken from the stored tile.

    What is left out for the next start: indexes of names and positions (`fill_indexes`). Raises NothingLeft when there is
    no entry to begin with, OSError, sqlite3.Error.
    """
    target.unlink(missing_ok=True)
    connection = sqlite3.connect(target, isolation_level=None)
    try:
        prepare_database(connection)
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("BEGIN")
        with PageImage(database) as image:
            saved = load_schema(directory)
            work = _Rebuilding(connection, image, read_schema(image, saved), tuple(features))
            work.saved, work.is_saved = saved, bool(saved.rows) and saved.cookie == cookie_of(image)
            made = work.run(directory, mark, trusts_tiles=trusts_tiles)
        connection.execute("COMMIT")
    finally:
        connection.close()
    return made


class _Rebuilding:
    """One rebuild."""

    def __init__(
        self, target: sqlite3.Connection, image: PageImage, schema: Sequence[SchemaRow], features: tuple[Feature, ...]
    ) -> None:  # fmt: skip
        self._target = target
        self._image = image
        self._schema = schema
        self._features = features
        self._tables: dict[str, TableReport] = {}
        self.saved = SavedSchema()
        """With the versions of features, should the database's own list be damaged."""
        self.is_saved = False
        """Whether these are surely the database's."""

    def run(self, directory: Path, mark: HighWater | None, *, trusts_tiles: bool) -> Rebuilt:
        made = {row.name: row for row in make_tables(self._target, self._schema)}
        self._make_missing_tables(made)
        root = made["entry"].root if "entry" in made else 0
        report, reached = copy_entries(self._image, self._target, root)
        self._tables["entry"] = report
        (highest,) = self._target.execute("SELECT coalesce(max(offset), 0) FROM entry").fetchone()
        if not highest:
            raise NothingLeft("no entry of a log is in it")
        checks = {"checkpoint": is_checkpoint_row} | {
            name: check for feature in self._features for name, check in feature.sound.items()
        }
        for name, row in made.items():
            if name != "entry" and name not in _DERIVED and row.root:
                self._tables[name] = copy_table(self._image, self._target, row, checks.get(name))
        self._mend_versions()
        mend_keys(self._target, self._tables)
        self._copy_names(made)
        minimum_index = self._mend_minimum_index()
        if not trusts_tiles:
            self._target.execute("DELETE FROM tile")
        elif not self._tables.get("tile", TableReport(bad_pages=1)).is_whole:
            copy_stray_tiles(self._image, self._target)
        known_size = self._known_size(mark, max(reached, 1), highest)
        tree = TreeMaker(self._target, read_edges(directory), minimum_index).make(known_size)
        hollow = self._read_hollow(tree)
        self._mend_epochs()
        self._mend_streams(tree.size)
        self._mend_features()
        rebuilt = Rebuilt(tree.size, known_size, tree.missing, hollow, self._tables, report.rows)
        self._store_facts(rebuilt)
        finish_tables(self._target, self._schema)
        return rebuilt

    def _make_missing_tables(self, made: dict[str, SchemaRow]) -> None:
        """A table that nothing tells of any more is empty, but there: as the features' steps make it."""
        for feature in (*FEATURES, *self._features):
            for step in feature.steps:
                for statement in split_statements(step):
                    words = statement.split()
                    name = words[2].split("(")[0] if words[:2] == ["CREATE", "TABLE"] else ""
                    if name and name not in made:
                        self._target.execute(statement)
                        made[name] = SchemaRow("table", name, name, 0, statement)
                        self._tables[name] = TableReport(bad_pages=1)
        if not any(row.kind == "table" and row.name == "schema_version" for row in made.values()):
            self._target.execute("CREATE TABLE schema_version (feature TEXT PRIMARY KEY, version INTEGER) STRICT")

    def _known_size(self, mark: HighWater | None, reached: int, highest: int) -> int:
        """How many entries the log had: as many as were signed, or are there. Those that no way led to count only if they
        follow on the others: pages of a history that a restore lost may lie about."""
        (signed,) = self._target.execute(
            "SELECT coalesce(max(size), 0) FROM checkpoint WHERE epoch = (SELECT max(epoch) FROM checkpoint)"
        ).fetchone()
        known = max(reached, signed if signed < 1 << 48 else 0, mark.size if mark is not None else 0)
        return max(known, highest) if highest <= known + TILE_WIDTH or mark is None else known

    def _mend_versions(self) -> None:
        is_whole = self._tables.get("schema_version", TableReport(bad_rows=1)).is_whole
        found = dict(self._target.execute("SELECT feature, version FROM schema_version"))
        if not is_whole or (self.is_saved and not follows_on(found, self.saved)):
            known = self.saved.versions or {
                feature.name: len(feature.steps) for feature in (*FEATURES, *self._features)
            }
            self._target.execute("DELETE FROM schema_version")
            put = "INSERT OR REPLACE INTO schema_version (feature, version) VALUES (?, ?)"
            self._target.executemany(put, known.items())

    def _mend_minimum_index(self) -> int:
        """The stored one, if no entry contradicts it."""
        row = self._target.execute("SELECT value FROM state WHERE key = 'minimum_index'").fetchone()
        (lowest,) = self._target.execute("SELECT min(offset) FROM entry").fetchone()
        stored = row[0] if row is not None and isinstance(row[0], int) else -1
        if not (0 <= stored < lowest and stored % TILE_WIDTH == 0 and stored <= lowest):
            stored = (lowest - 1) // TILE_WIDTH * TILE_WIDTH if stored != 0 and not self._has_first() else 0
        self._target.execute("INSERT OR REPLACE INTO state (key, value) VALUES ('minimum_index', ?)", (stored,))
        return stored

    def _has_first(self) -> bool:
        return self._target.execute("SELECT 1 FROM entry WHERE offset <= ?", (TILE_WIDTH,)).fetchone() is not None

    def _read_hollow(self, tree: MadeTree) -> list[tuple[int, int]]:
        rows = self._target.execute("SELECT offset FROM entry WHERE length(sealed) = 0 ORDER BY offset")
        runs = join_runs([(offset, offset) for (offset,) in rows])
        return [run for run in runs if run not in tree.missing]

    def _mend_epochs(self) -> None:
        """As the entries say themselves."""
        self._target.execute("DELETE FROM epoch")
        first: dict[int, int] = {}
        rows = self._target.execute("SELECT e, offset FROM entry WHERE substr(e, 1, 1) = x'01' ORDER BY offset")
        for raw, offset in rows:
            first.setdefault(int.from_bytes(raw[2:10], "big"), offset)
        lowest = min(first, key=lambda epoch: first[epoch])
        rows_made = [(epoch, 1 if epoch == lowest else offset) for epoch, offset in first.items()]
        self._target.executemany("INSERT INTO epoch (epoch, first_offset) VALUES (?, ?)", rows_made)

    def _mend_streams(self, size: int) -> None:
        """Takes rows out that contradict the hash of their name, and adds those that definition entries tell of."""
        for row_id, name, former, stream_hash, ssalt, definition in self._target.execute(
            "SELECT id, name, former_name, stream_hash, ssalt, definition FROM stream"
        ).fetchall():
            if not is_stream_row(name if name is not None else former, stream_hash, ssalt, definition):
                self._target.execute("DELETE FROM stream WHERE id = ?", (row_id,))
                self._tables.setdefault("stream", TableReport()).bad_rows += 1
        known = {row[0] for row in self._target.execute("SELECT stream_hash FROM stream")}
        if self._tables.get("stream", TableReport(bad_rows=1)).is_whole:
            return
        after = 0
        while after < size:
            rows = queries.read_rows(self._target, after, min(after + 1000, size))
            after = min(after + 1000, size)
            for entry in queries.open_rows(rows, after - 1000, after).entries:
                self._take_definition(entry, known)

    def _take_definition(self, entry: StoredEntry, known: set[bytes]) -> None:
        if entry.kind != Kind.NODE or entry.is_reduced or b'"type":"definition"' not in entry.body:
            return
        try:
            body = decode_node_body(entry.body)
        except VerificationFailed:
            return
        assert isinstance(body, DefinitionChange)
        ssalt = msgspec.json.decode(msgspec.json.encode(body.ssalt), type=bytes)
        stream_hash = stream_hash_of(ssalt, body.stream)
        encoded = msgspec.json.encode(body.definition)
        if stream_hash not in known:
            self._target.execute("UPDATE stream SET former_name = name, name = NULL WHERE name = ?", (body.stream,))
            self._target.execute(
                "INSERT INTO stream (name, stream_hash, ssalt, state, owner, created_us, version, definition)"
                " VALUES (?, ?, ?, 'active', 'api', ?, ?, ?)",
                (body.stream, stream_hash, ssalt, entry.appended_us, body.version, encoded),
            )
            known.add(stream_hash)
            return
        self._target.execute(
            "UPDATE stream SET version = ?, definition = ? WHERE stream_hash = ? AND version < ?",
            (body.version, encoded, stream_hash, body.version),
        )

    def _copy_names(self, made: dict[str, SchemaRow]) -> None:
        """Pairs of the hash index that are still there, as such that the next flush takes up: of packets that were taken
        away the entries don't give them back."""
        family = "INSERT OR IGNORE INTO hash_family (family, stored_to, secret_mark) VALUES (?, 0, NULL)"
        self._target.executemany(family, [(1,), (2,), (3,)])
        self._target.execute("INSERT OR IGNORE INTO position_state VALUES (1, 0)")
        side = sqlite3.connect(":memory:", isolation_level=None)
        try:
            rows = [made[name] for name in ("hash_run", "hash_block", "hash_held") if name in made and made[name].root]
            for row in make_tables(side, rows):
                self._tables[row.name] = copy_table(self._image, side, row)
            self._hold_names(side)
        except sqlite3.Error as error:
            _log.error("names of packets that were taken away are lost", error=str(error))
        finally:
            side.close()

    def _hold_names(self, side: sqlite3.Connection) -> None:
        insert = "INSERT OR IGNORE INTO hash_held (family, offset, hash) SELECT ?, ?, ? WHERE EXISTS (SELECT 1 FROM entry WHERE offset = ? AND sealed IS NULL)"
        runs = dict(side.execute("SELECT run, family FROM hash_run WHERE state = 1"))
        for block_id, pairs in side.execute("SELECT id, pairs FROM hash_block"):
            family = runs.get(block_id >> 32)
            if family is None or len(pairs) % 16:
                continue
            for at in range(0, len(pairs), 16):
                offset = int.from_bytes(pairs[at + 8 : at + 16], "big")
                if offset < 1 << 63:
                    self._target.execute(insert, (family, offset, pairs[at : at + 8], offset))
        for family, offset, name in side.execute("SELECT family, offset, hash FROM hash_held"):
            self._target.execute(insert, (family, offset, name, offset))

    def _mend_features(self) -> None:
        """What a feature wants done when rows of its tables are lost, such as not to be open to everybody."""
        for feature in self._features:
            names = {
                statement.split()[2].split("(")[0]
                for step in feature.steps for statement in split_statements(step) if statement.startswith("CREATE TABLE")
            }  # fmt: skip
            if any(not self._tables[name].is_whole for name in names if name in self._tables):
                for statement in feature.on_loss:
                    self._target.execute(statement)

    def _store_facts(self, rebuilt: Rebuilt) -> None:
        put = partial(self._target.execute, "INSERT OR REPLACE INTO state (key, value) VALUES (?, ?)")
        before = self._target.execute("SELECT value FROM state WHERE key = ?", (LOST_FACT,)).fetchone()
        runs = join_runs([*read_runs(before[0] if before is not None else ""), *rebuilt.lost])
        put((LOST_FACT, msgspec.json.encode(runs[:RUNS_MAX]).decode()))
        put(("is_clean", 1))
        put(("indexed", 0))
        if not self._tables.get("entry_link", TableReport(bad_rows=1)).is_whole:
            put(("linked_to", rebuilt.size))
            put(("linked_from", 0))
        if rebuilt.needs_epoch:
            (epoch,) = self._target.execute("SELECT max(epoch) FROM epoch").fetchone()
            put((RESTORED_FACT, epoch))
