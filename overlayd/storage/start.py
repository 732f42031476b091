"""Bringing a log back into memory: what the database says, checked against what was signed. Blocking: in a thread."""

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from overlayd import __version__
from overlayd.model.bodies import Boot, Genesis, NodeBody, Restore, SeenHead
from overlayd.model.clock import Entropy
from overlayd.model.cursor import Epoch, format_epoch
from overlayd.model.definition import Definition, decode_definition
from overlayd.model.entry import StoredEntry, leaf_hash, verify_entry
from overlayd.model.errors import LogDamaged, VerificationFailed
from overlayd.model.limits import Limits
from overlayd.model.merkle import TILE_WIDTH
from overlayd.model.metrics import Metrics
from overlayd.model.signer import CheckpointKeys
from overlayd.storage import queries
from overlayd.storage.commit import STATEMENTS_KEPT, commit_group
from overlayd.storage.damage.known_loss import LOST_FACT, NO_ENTRY, RESTORED_FACT, is_stream_row, read_runs
from overlayd.storage.damage.tail_check import check_tail
from overlayd.storage.epochs import EpochRow, Loss, ancestry_of, check_root, judge_high_water, judge_restore, next_epoch
from overlayd.storage.files import HighWater
from overlayd.storage.group import Group, LogState
from overlayd.storage.hashindex import Family, HashIndex
from overlayd.storage.log_keys import KeyRing, load_ring
from overlayd.storage.machine import read_machine
from overlayd.storage.migrations import FEATURES, Feature, is_migration_due, migrate, prepare_database
from overlayd.storage.positions import Positions, find_newest_stored
from overlayd.storage.record import decode_row, reduce_entry
from overlayd.storage.removals import SELECT_REMOVALS
from overlayd.storage.replay import replay_entry
from overlayd.storage.streams import Stream, StreamHead
from overlayd.storage.tree import Tree

REPLAY_ROWS = 1000
REPLAY_BYTES = 8 << 20
CHECKED_TILES = 4
"""Full tiles at the log's end that a start after an unclean stop compares with their entries."""
JOURNAL_BYTES_MAX = 64 << 20
BUSY_TIMEOUT_S = 0.2
"""Also how long cutting the WAL waits for readers, and every publisher with it."""
KEY_OFFSETS_MAX = 4
"""Newest offsets kept per stream and key, so that taking away the very newest packet leaves one to be found."""

_log = structlog.get_logger("storage.start")


def open_database(
    path: Path, sync: str, features: tuple[Feature, ...], keep: Callable[[sqlite3.Connection], None] | None = None
) -> sqlite3.Connection:  # fmt: skip
    """The writing connection, its schema up to date. `keep`: called before a schema that is in use is changed.

    Raises NewerSchema, sqlite3.Error, and what `keep` raises.
    """
    connection = sqlite3.connect(
        path, isolation_level=None, check_same_thread=False, timeout=BUSY_TIMEOUT_S, cached_statements=STATEMENTS_KEPT
    )  # fmt: skip
    try:
        prepare_database(connection)
        for pragma in (
            f"synchronous = {sync.upper()}", "wal_autocheckpoint = 0", "mmap_size = 0", "secure_delete = ON",
            "recursive_triggers = ON", "foreign_keys = ON", "cache_size = -16384", "temp_store = MEMORY",
            f"journal_size_limit = {JOURNAL_BYTES_MAX}",
        ):  # fmt: skip
            connection.execute(f"PRAGMA {pragma}").fetchall()
        if keep is not None and is_migration_due(connection, (*FEATURES, *features)):
            keep(connection)
        migrate(connection, (*FEATURES, *features))
    except BaseException:
        connection.close()
        raise
    return connection


def load_state(
    connection: sqlite3.Connection, *, secret: bytes, limits: Limits, defaults: Definition, entropy: Entropy,
    metrics: Metrics, mark: HighWater | None,
) -> tuple[LogState, Loss | None]:  # fmt: skip
    """The log as the database holds it, before this start's own entries. Raises LogInconsistent, DamagedEntry."""
    rows = [EpochRow(Epoch(epoch), first) for epoch, first in connection.execute("SELECT * FROM epoch ORDER BY epoch")]
    (size,) = connection.execute("SELECT coalesce(max(offset), 0) FROM entry").fetchone()
    if bool(rows) != bool(size):
        raise LogDamaged("the log has entries without an epoch, or the reverse", subject="log.sqlite3")
    tree = load_tree(connection, size)
    judged = judge_high_water(rows, mark, size)
    if isinstance(judged, int) and mark is not None:
        check_root(mark, _root_at(connection, tree, judged))
    facts = dict(connection.execute("SELECT key, value FROM state"))
    loss = judge_restore(judged if isinstance(judged, Loss) else None, facts.get(RESTORED_FACT), rows)
    state = LogState(
        epoch=rows[-1].epoch if rows else Epoch(0), ancestry=ancestry_of(rows), limits=limits, defaults=defaults,
        entropy=entropy, metrics=metrics, ids=HashIndex(Family.ID, secret), commitments=HashIndex(Family.COMMITMENT, secret),
        keys=HashIndex(Family.KEY, secret, newest_max=KEY_OFFSETS_MAX), positions=Positions(), tree=tree,
    )  # fmt: skip
    state.minimum_index = facts["minimum_index"]
    state.indexed = facts.get("indexed", 0)
    _check_facts(connection, state.minimum_index, size, rows)
    check_marks(connection, state.indexes[:3])
    if size and not facts.get("is_clean", 0):
        check_tail(connection, size, read_runs(facts.get(LOST_FACT)))
    load_streams(connection, state)
    state.holds.load(connection)
    state.removals.load(connection.execute(SELECT_REMOVALS))
    _replay(connection, state, size)
    _check_heads(connection, state)
    return state, loss


def append_start(
    connection: sqlite3.Connection, state: LogState, loss: Loss | None, keys: CheckpointKeys, now_us: int
) -> KeyRing:
    """Appends what every start appends: the boot entry, before it genesis for a new log and restore for a new epoch.

    The log counts as unclean from here until `overlayd` stops in order. Raises LogInconsistent where none of the keys is
    the log's, before anything is changed.
    """
    is_new = state.head.offset == 0
    bodies: list[NodeBody] = []
    statements: list[tuple[str, tuple[object, ...]]] = []
    size, root = state.tree.size, state.tree.root()
    if is_new or loss is not None:
        known = [epoch for epoch, _ in state.ancestry] + ([] if is_new else [state.epoch])
        if loss is not None:
            known.append(loss.from_epoch)
        if not is_new:
            state.ancestry = [*state.ancestry, (state.epoch, size)]
        state.epoch = next_epoch(known, state.entropy)
        statements.append(("INSERT INTO epoch (epoch, first_offset) VALUES (?, ?)", (state.epoch, size + 1)))
        statements.append(("DELETE FROM state WHERE key = ?", (RESTORED_FACT,)))
    ring, key_statements = load_ring(connection, state, keys, is_new=is_new)
    statements += key_statements
    if loss is not None:
        _log.warning("the log is shorter than what was signed: new epoch", size=size, epoch=format_epoch(state.epoch))
        seen = None if loss.seen is None else SeenHead(loss.seen.size, f"sha256:{loss.seen.root.hex()}")
        bodies.append(Restore(format_epoch(loss.from_epoch), size, f"sha256:{root.hex()}", seen))
    if is_new:
        bodies.insert(0, Genesis((ring.vkey,)))
    machine = read_machine()
    bodies.append(Boot(__version__, machine.boot_id, machine.uptime_ms, machine.clock_synced))
    statements.append(("INSERT OR REPLACE INTO state (key, value) VALUES ('is_clean', 0)", ()))
    group = Group(state, now_us)
    for body in bodies:
        group.add_node(body)
    group.seal()
    assert group.plan is not None
    commit_group(connection, group.row_values, group.plan.tiles, statements, ())
    group.adopt()
    return ring


def check_marks(connection: sqlite3.Connection, indexes: Sequence[HashIndex]) -> None:
    """A wrong secret is wrong for all three families of names; what is wrong for one is a damaged row. Raises LogDamaged."""
    marks = dict(connection.execute("SELECT family, secret_mark FROM hash_family"))
    agree = {marks.get(index.family) == index.names.mark for index in indexes if marks.get(index.family) is not None}
    if len(agree) > 1 or len(marks) != len(indexes):
        raise LogDamaged("the marks of the hash index contradict each other", subject="log.sqlite3")


def load_tree(connection: sqlite3.Connection, size: int) -> Tree:
    """The tree over the first entries. Raises DamagedEntry."""

    def read_tile(level: int, index: int) -> bytes:
        return queries.read_tiles(connection, [(level, index)])[0]

    def read_leaves(first: int, count: int) -> list[bytes]:
        rows = connection.execute(
            "SELECT leaf FROM entry WHERE offset > ? AND offset <= ? ORDER BY offset", (first, first + count)
        )
        return [leaf for (leaf,) in rows]

    return Tree.load(size, read_tile, read_leaves)


def _root_at(connection: sqlite3.Connection, tree: Tree, size: int) -> bytes:
    """The root over the first leaves, read without a loop; only a start needs it so."""

    async def read_tiles(wanted: list[tuple[int, int]]) -> list[bytes]:
        return queries.read_tiles(connection, wanted)

    coroutine = tree.root_at(size, read_tiles)
    try:
        coroutine.send(None)
    except StopIteration as done:
        root: bytes = done.value
        return root
    raise AssertionError("reading tiles here never waits")


def _check_facts(connection: sqlite3.Connection, minimum_index: object, size: int, rows: list[EpochRow]) -> None:
    """What single rows say about the whole log is compared with the entries. Raises LogDamaged."""
    (lowest,) = connection.execute("SELECT coalesce(min(offset), 1) FROM entry").fetchone()
    if not isinstance(minimum_index, int) or minimum_index % TILE_WIDTH or not 0 <= minimum_index < lowest:
        raise LogDamaged("the log's minimum index isn't one", subject="log.sqlite3")
    for row in rows:
        first = connection.execute("SELECT e FROM entry WHERE offset = ?", (row.first_offset,)).fetchone()
        if first is not None and first[0] != NO_ENTRY and int.from_bytes(first[0][2:10], "big") != row.epoch:
            raise LogDamaged(f"an epoch doesn't begin at offset {row.first_offset}", subject="log.sqlite3")


def load_streams(connection: sqlite3.Connection, state: LogState) -> None:
    """Every stream with its definition and where it stands. Raises LogDamaged."""
    heads = {
        row[0]: StreamHead(*row[1:])
        for row in connection.execute(
            "SELECT stream_id, sequence, leaf, oldest_sequence, packets, bytes, last_packet_us, as_of FROM stream_head"
        )
    }
    for row in connection.execute(
        "SELECT id, name, former_name, stream_hash, ssalt, state, owner, created_us, version, definition FROM stream"
    ):
        stream_id, name, former_name, stream_hash, ssalt, stream_state, owner, created_us, version, definition = row
        called = name if name is not None else former_name
        if not is_stream_row(called, stream_hash, ssalt, definition):
            raise LogDamaged(f"the stream with id {stream_id} isn't what was stored", subject="log.sqlite3")
        stream = Stream(
            id=stream_id, name=called, stream_hash=stream_hash, ssalt=ssalt,
            definition=decode_definition(definition), definition_version=version, state=stream_state, owner=owner,
            created_us=created_us, is_deleted=name is None,
        )  # fmt: skip
        if stream_id in heads:
            stream.adopt(heads[stream_id])
        state.book.add(stream)


def _replay(connection: sqlite3.Connection, state: LogState, size: int) -> None:
    """Rebuilds in memory what isn't written out yet, from the entries above the lowest floor."""
    floors = [state.indexed, *(index.load(connection) for index in state.indexes)]
    after = max(min(floors), state.minimum_index)
    state.tail.reset(after)
    while after < size:
        blob = queries.read_page_blob(connection, after, size, REPLAY_ROWS, REPLAY_BYTES)
        page = queries.open_page(blob, after, size)
        entries = page.entries if page is not None else _salvage(connection, after, min(after + REPLAY_ROWS, size))
        for entry in entries:
            replay_entry(state, entry)
            state.last_us = entry.appended_us
        state.tail.extend(entries)
        after = entries[-1].offset
    for index in state.indexes:
        index.adopt()
    if size and not state.last_us:
        state.last_us = queries.read_appended_us(connection, size, is_back=True) or 0  # the newest may be lost
    state.head.advance(size)


def _check_heads(connection: sqlite3.Connection, state: LogState) -> None:
    """A stream that stood below its own packets would give their sequences to others."""
    streams = state.book.list_active()
    newest = find_newest_stored(connection, [stream.id for stream in streams])
    for stream, sequence in zip(streams, newest, strict=True):
        if stream.head_sequence < sequence:
            raise LogDamaged(
                f"{stream.name} stands at sequence {stream.head_sequence}, but its packets reach {sequence}",
                subject="log.sqlite3", hint="overlayd verify says what else is wrong; restore a backup",
            )  # fmt: skip


def _salvage(connection: sqlite3.Connection, after: int, upto: int) -> list[StoredEntry]:
    """Entries of a damaged page. Where only the body is wrong, the rest still counts; readers are told of it later."""
    entries: list[StoredEntry] = []
    for offset, raw, leaf, sealed in queries.read_rows(connection, after, upto):
        if leaf_hash(raw) != leaf or offset != after + len(entries) + 1:
            break
        try:
            entry = decode_row(raw, leaf, sealed)
            verify_entry(entry, None)
        except VerificationFailed:
            _log.error("damaged entry", offset=offset)
            entry = reduce_entry(decode_row(raw, leaf, None))
        entries.append(entry)
    if len(entries) != upto - after:
        raise LogDamaged(
            f"the entry at offset {after + len(entries) + 1} is missing or damaged", subject="log.sqlite3",
            hint="overlayd verify says what else is wrong",
        )  # fmt: skip
    return entries
