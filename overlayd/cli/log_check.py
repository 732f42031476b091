"""A whole log, checked from its first entry to its last, with nothing but the files and the public key.

Every entry's hash, seal and place in its stream; every stored tile; every signed checkpoint against the root
recomputed from the entries; every missing content against the removal that took it. Blocking.
"""

import bisect
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import click
import msgspec

from overlayd.cli.check_pace import CheckPace, Progress
from overlayd.cli.checked_tree import CheckedTree, kept_root
from overlayd.cli.log_report import LogReport
from overlayd.cli.own_keys import OwnKeys, read_own_keys
from overlayd.model.bodies import Genesis, KeyChange, decode_node_body
from overlayd.model.cursor import Epoch, epoch_counter, format_epoch
from overlayd.model.entry import Kind, StoredEntry
from overlayd.model.errors import DirectoryInUse, VerificationFailed
from overlayd.model.merkle import TILE_WIDTH
from overlayd.model.meta import decode_meta
from overlayd.model.note import VerifierKey, log_id_of, parse_origin
from overlayd.model.proof import TrustedKeys, verify_checkpoint
from overlayd.storage import queries
from overlayd.storage.damage.known_loss import LOST_FACT, is_in_runs, read_runs
from overlayd.storage.files import DATABASE_NAME, DirectoryLock, HighWater, read_high_water
from overlayd.storage.log_keys import read_key_rows
from overlayd.storage.tail import Page
from overlayd.storage.tree import HASH_BYTES

PAGE_ROWS = 500
PAGE_BYTES = 4 << 20
DAMAGED_PAGE_ROWS = 32
SEQUENCE_BITS = 40
"""In epoch c sequences start above (c - 1) << 40 (docs/log-format.md)."""

CheckpointRow = tuple[int, int, bytes, str]
_LOST = f"SELECT value FROM state WHERE key = '{LOST_FACT}'"  # noqa: S608 - a constant
_CHECKPOINTS = """
SELECT epoch, size, root, note FROM checkpoint WHERE epoch = ? AND size BETWEEN ? AND ? ORDER BY size LIMIT ?"""


class CutMeanwhile(Exception):
    """A running node cut the part that is being read."""


def check_log(directory: Path, trusted: TrustedKeys, pace: CheckPace = CheckPace()) -> LogReport:  # noqa: B008 - it keeps nothing
    """Checks everything there is. Without keys in `trusted`, those of the directory are. `pace`: how fast, and from where.

    Raises VerificationFailed where there is no log to check.
    """
    with opened_log(directory) as (connection, read_as):
        own = read_own_keys(connection, directory)
        if not trusted.log_keys:
            trusted = msgspec.structs.replace(
                trusted, log_keys=own.trusted.log_keys, log_id=own.trusted.log_id, spans=own.trusted.spans
            )
        while True:
            try:
                return _Check(connection, trusted, own, LogReport(str(directory), read_as)).run(directory, pace)
            except CutMeanwhile:
                continue


def check_copy(
    database: Path, keys_directory: Path, pinned: Sequence[VerifierKey] = ()
) -> tuple[LogReport, TrustedKeys]:
    """Checks a database that nobody writes to, such as a backup's; gives the log's keys too.

    One of the keys in `keys_directory`/keys, if there are any, and one of the pinned ones must be the log's.
    Raises VerificationFailed where there is no log to check, or the keys aren't the log's.
    """
    with _connected(f"{database.absolute().as_uri()}?immutable=1") as connection:
        own = read_own_keys(connection, keys_directory)
        known = {key.public_key for key in own.trusted.log_keys}
        if pinned and not any(key.public_key in known for key in pinned):
            raise VerificationFailed("the log is another one: none of its keys is the one given", subject="--log-key")
        report = _Check(connection, own.trusted, own, LogReport(str(database), "a copy")).run(
            database.parent, CheckPace()
        )
        return report, own.trusted


@contextmanager
def opened_log(directory: Path) -> Iterator[tuple[sqlite3.Connection, str]]:
    """The database to read from, without changing a byte of it.

    A running node's is read beside it, in short transactions. At rest nobody may start a node meanwhile, and what an
    unclean stop left in the write-ahead log is replayed in a private copy.
    """
    database = directory / DATABASE_NAME
    if not database.exists():
        raise VerificationFailed(f"there is no log in {directory}", subject=str(directory))
    lock: DirectoryLock | None = None
    try:
        lock = DirectoryLock(directory)
    except DirectoryInUse:
        with _connected(f"{database.absolute().as_uri()}?mode=ro") as connection:
            yield connection, "beside the running node"
        return
    try:
        wal = database.with_name(database.name + "-wal")
        if wal.exists() and wal.stat().st_size:
            with tempfile.TemporaryDirectory(prefix="overlayd-verify-") as place:
                for file in (database, wal):
                    shutil.copy(file, place)
                with _connected((Path(place) / database.name).as_uri()) as connection:
                    yield connection, "a private copy, because a write-ahead log was left"
        else:
            with _connected(f"{database.absolute().as_uri()}?immutable=1") as connection:
                yield connection, "at rest"
    finally:
        lock.release()


@contextmanager
def _connected(uri: str) -> Iterator[sqlite3.Connection]:
    try:
        connection = sqlite3.connect(uri, uri=True, isolation_level=None)
    except sqlite3.Error as error:
        raise _unreadable(f"the database can't be opened: {error}") from error
    try:
        yield connection
    except sqlite3.DatabaseError as error:
        raise _unreadable(f"the database can't be read: {error}") from error
    finally:
        connection.close()


def _unreadable(detail: str) -> VerificationFailed:
    return VerificationFailed(
        detail, subject=DATABASE_NAME,
        hint="overlayd salvage TARGET --data DIR lists what is lost and saves the rest; a node's start mends it",
    )  # fmt: skip


class _Check:
    """One pass over the log."""

    def __init__(self, connection: sqlite3.Connection, trusted: TrustedKeys, own: OwnKeys, report: LogReport) -> None:
        self._connection = connection
        self._trusted = trusted
        self._key_rows = {row.offset: row for row in own.rows if row.note}
        self._takeovers = {tree.checkpoint.size: tree for tree in own.takeovers}
        self._report = report
        self._tree: CheckedTree | None = CheckedTree()
        self._streams: dict[bytes, tuple[int, bytes]] = {}
        self._last_us = 0
        self._epochs: list[tuple[int, int]] = connection.execute("SELECT epoch, first_offset FROM epoch").fetchall()
        self._epochs.sort(key=lambda row: row[1])
        self._minimum = 0
        self._first_key = own.trusted.log_keys[0].public_key
        self._lost = read_runs(next(iter(connection.execute(_LOST).fetchall()), ("",))[0])
        self._lost_so_far = 0
        self._lost_before: dict[bytes, int] = {}
        self._removals = _read_removals(connection)
        self._checkpoints: Iterator[CheckpointRow] = iter(())
        self._checkpoint: CheckpointRow | None = None

    def run(self, directory: Path, pace: CheckPace) -> LogReport:
        """The whole pass. Raises VerificationFailed where there is nothing to check."""
        connection = self._connection
        mark = read_high_water(directory)  # before the head, which a running node moves on
        ((head,),) = connection.execute("SELECT coalesce(max(offset), 0) FROM entry").fetchall()
        minimum_index = self._read_minimum()
        if not head or not self._epochs:
            raise VerificationFailed("the log has no entries", subject=DATABASE_NAME)
        epoch = self._epochs[-1][0]
        self._report.epoch = format_epoch(Epoch(epoch))
        self._checkpoints = self._read_checkpoints(head)
        self._checkpoint = next(self._checkpoints, None)
        self._begin(minimum_index)
        after = max(minimum_index, self._resume(pace))
        with click.progressbar(length=head, label="checking", file=sys.stderr, hidden=not sys.stderr.isatty()) as bar:
            while after < head:
                page = self._read_page(after, head)
                if page.damaged and self._read_minimum() > minimum_index:
                    raise CutMeanwhile
                self._take_page(page, mark if mark is not None and mark.epoch == epoch else None)
                bar.update(page.after - after)
                pace.note_page(page.after - after, partial(self._progress, page.after))
                after = page.after
        pace.forget()
        if mark is not None and mark.epoch == epoch and mark.size > head:
            self._report.note(f"the high-water mark speaks of {mark.size} entries, the log has {head}")
        return self._end(head, epoch)

    def _take_page(self, page: Page, mark: HighWater | None) -> None:
        """Entries and damage in the order in which they stand."""
        damaged = list(page.damaged)
        for entry in page.entries:
            while damaged and damaged[0][0] < entry.offset:
                self._note_damage(*damaged.pop(0))
            self._take(entry)
            if mark is not None and mark.size == entry.offset:
                self._compare("the high-water mark", mark.root)
        for low, high in damaged:
            self._note_damage(low, high)

    def _end(self, head: int, epoch: int) -> LogReport:
        report, connection = self._report, self._connection
        ((signed,),) = connection.execute("SELECT max(size) FROM checkpoint WHERE epoch = ?", (epoch,)).fetchall()
        ((now,),) = connection.execute("SELECT max(offset) FROM entry").fetchall()
        if (signed or 0) > now:
            report.note(f"a checkpoint was signed over {signed} entries, the log has {now}")
        self._note_missing_keys(head)
        report.entries, report.streams = head, len(self._streams)
        report.root = "" if self._tree is None else self._tree.root().hex()
        return report

    def _progress(self, after: int) -> Progress:
        """Everything that the rest of the pass needs to know of the entries so far."""
        streams = [(name, *at, self._lost_before.get(name, 0)) for name, at in self._streams.items()]
        tree = None if self._tree is None else self._tree.rows
        return Progress(self._first_key, after, tree, streams, self._last_us, self._lost_so_far, self._report)

    def _resume(self, pace: CheckPace) -> int:
        """Where an earlier pass of the same log got to; 0 for none."""
        found = pace.load(self._first_key)
        if found is None or found.after < self._minimum:
            return 0
        self._tree = None if found.tree is None else CheckedTree.of(found.after, found.tree)
        for name, sequence, leaf, lost in found.streams:
            self._streams[name], self._lost_before[name] = (sequence, leaf), lost
        self._last_us, self._lost_so_far = found.last_us, found.lost_so_far
        self._report = msgspec.structs.replace(
            found.report, directory=self._report.directory, read_as=self._report.read_as, epoch=self._report.epoch
        )
        self._key_rows = {offset: row for offset, row in self._key_rows.items() if offset > found.after}
        while self._checkpoint is not None and self._checkpoint[1] <= found.after:
            self._checkpoint = next(self._checkpoints, None)
        return found.after

    def _read_minimum(self) -> int:
        ((minimum,),) = self._connection.execute("SELECT value FROM state WHERE key = 'minimum_index'").fetchall()
        return int(minimum)

    def _begin(self, minimum: int) -> None:
        """What is left of the part that was cut: the tree over it, and the checkpoints that lie in it."""
        self._minimum = self._report.cut = minimum
        if not minimum:
            return
        self._report.log_id = log_id_of(self._first_key)
        self._key_rows = {offset: row for offset, row in self._key_rows.items() if offset > minimum}
        try:
            self._tree = CheckedTree.behind_cut(self._connection, minimum)
        except LookupError as error:
            self._tree = None
            self._report.note(f"of what was cut: {error.args[0]}; no root could be compared")
        while self._checkpoint is not None and self._checkpoint[1] <= minimum:
            epoch, size, root, note = self._checkpoint
            self._checkpoint = next(self._checkpoints, None)
            known = kept_root(self._connection, size)
            if known is None:
                self._report.cut_checkpoints += 1
                continue
            self._take_checkpoint(epoch, size, root, note, known)

    def _read_checkpoints(self, head: int) -> Iterator[CheckpointRow]:
        """Those of each epoch's own entries, by size, a page at a time; the rest were lost by a restore."""
        for number, (epoch, first) in enumerate(self._epochs):
            last = self._epochs[number + 1][1] - 1 if number + 1 < len(self._epochs) else head
            if last < head:
                rows = self._connection.execute(
                    "SELECT count(*) FROM checkpoint WHERE epoch = ? AND size > ?", (epoch, last)
                )
                self._report.lost_checkpoints += rows.fetchall()[0][0]
            page: list[CheckpointRow] | None = None
            while page is None or page:
                page = self._connection.execute(_CHECKPOINTS, (epoch, first, last, PAGE_ROWS)).fetchall()
                yield from page
                first = page[-1][1] + 1 if page else first

    def _read_page(self, after: int, head: int) -> Page:
        blob = queries.read_page_blob(self._connection, after, head, PAGE_ROWS, PAGE_BYTES)
        page = queries.open_page(blob, after, head)
        if page is None:
            upto = min(after + DAMAGED_PAGE_ROWS, head)
            page = queries.open_rows(queries.read_rows(self._connection, after, upto), after, upto)
        return page

    def _note_damage(self, low: int, high: int) -> None:
        """Entries that can't be taken. A loss that the log itself has on record is no fault of it."""
        is_known = all(is_in_runs(self._lost, offset) for offset in range(low, high + 1))
        where = f"entry {low}" if low == high else f"entries {low} to {high}"
        self._lost_so_far += high - low + 1
        if is_known:
            self._report.lost += high - low + 1
        else:
            self._report.note(f"{where}: missing, or not what was hashed")
        for offset in range(low, high + 1):
            leaf = self._leaf_of(offset)
            if self._tree is None or leaf is None:
                break
            self._grow(self._tree, offset, leaf)
        else:
            return
        if self._tree is not None:
            self._tree, self._report.compared_to = None, low - 1
            if not is_known:
                self._report.note(f"from entry {low} on no root could be compared")

    def _leaf_of(self, offset: int) -> bytes | None:
        """Of an entry that is lost: what its row or its tile still says."""
        rows = self._connection.execute("SELECT leaf FROM entry WHERE offset = ?", (offset,)).fetchall()
        (tile,) = queries.read_tiles(self._connection, [(0, (offset - 1) // TILE_WIDTH)])
        at = (offset - 1) % TILE_WIDTH * HASH_BYTES
        return tile[at : at + HASH_BYTES] or (rows[0][0] if rows else None)

    def _take(self, entry: StoredEntry) -> None:
        """One entry whose own hash and seal hold."""
        if entry.appended_us < self._last_us:
            self._report.note(f"entry {entry.offset}: appended before the one before it")
        self._last_us = entry.appended_us
        if entry.epoch != self._epoch_at(entry.offset):
            self._report.note(f"entry {entry.offset}: of another epoch than the log says")
        if entry.offset == 1:
            self._take_genesis(entry)
        if entry.kind == Kind.PACKET:
            self._take_packet(entry)
        if entry.kind == Kind.NODE:
            self._take_node(entry)
        if entry.is_reduced and not self._is_removed(entry):
            self._report.note(f"entry {entry.offset}: its content is gone and no removal says so")
        if self._tree is not None:
            self._grow(self._tree, entry.offset, entry.leaf)

    def _grow(self, tree: CheckedTree, offset: int, leaf: bytes) -> None:
        """The tree with a leaf more, compared with everything that was stored or signed over exactly so many."""
        for level, index, hashes in tree.append(leaf):
            self._compare_tile(level, index, hashes)
        self._take_checkpoints()
        takeover = self._takeovers.get(offset)
        if takeover is not None:
            self._compare(f"the checkpoint over {offset} entries that two keys signed", takeover.checkpoint.root)

    def _take_genesis(self, entry: StoredEntry) -> None:
        try:
            body = decode_node_body(entry.body)
            keys = body.keys if isinstance(body, Genesis) else ()
            self._report.log_id = parse_origin(VerifierKey.parse(keys[0]).name)[0] if keys else ""
        except VerificationFailed as error:
            self._report.note(f"entry 1: {error.detail}")
        if self._report.log_id == "":
            self._report.note("entry 1: not a genesis entry that names the log's key")

    def _take_node(self, entry: StoredEntry) -> None:
        """A `key` entry is one of the keys that the log lists, word for word."""
        row = self._key_rows.pop(entry.offset, None)
        if row is None and b'"type":"key"' not in entry.body:
            return
        if row is None:  # a running node may have added it just now
            row = next((row for row in read_key_rows(self._connection) if row.offset == entry.offset), None)
        body = decode_node_body(entry.body)
        if isinstance(body, KeyChange) and (row is None or row.note != body.note):
            self._report.note(f"entry {entry.offset}: a change of the log's key that the list of keys doesn't have")
        elif row is not None and not isinstance(body, KeyChange):
            self._report.note(f"entry {entry.offset}: the list of keys names it, but it isn't a change of the key")

    def _note_missing_keys(self, head: int) -> None:
        for offset in self._key_rows:
            if offset <= head:
                self._report.note(f"entry {offset}: the list of keys names it, but it isn't there")

    def _take_packet(self, entry: StoredEntry) -> None:
        self._report.packets += 1
        self._report.reduced += entry.is_reduced
        if self._minimum and entry.stream_hash not in self._streams:  # those before it may have been cut
            self._streams[entry.stream_hash] = (entry.sequence - 1, entry.prev)
        last, leaf = self._streams.get(entry.stream_hash, (0, bytes(32)))
        expected = max(last, epoch_counter(Epoch(entry.epoch)) - 1 << SEQUENCE_BITS) + 1
        lost = self._lost_so_far - self._lost_before.get(entry.stream_hash, 0)  # of whichever streams, since then
        if (entry.sequence != expected or entry.prev != leaf) and not (
            lost and expected <= entry.sequence <= expected + lost
        ):
            self._report.note(
                f"entry {entry.offset}: sequence {entry.sequence} doesn't follow sequence {last} of its stream"
            )
        self._streams[entry.stream_hash] = (entry.sequence, entry.leaf)
        self._lost_before[entry.stream_hash] = self._lost_so_far
        if not entry.is_reduced:
            try:
                decode_meta(entry.meta)
            except VerificationFailed as error:
                self._report.note(f"entry {entry.offset}: {error.detail}")

    def _is_removed(self, entry: StoredEntry) -> bool:
        at = entry.target_from or entry.offset  # what is about one packet goes with it
        if at <= self._minimum:
            return True
        if not _is_in_runs(self._removals.get(entry.stream_hash, []), at):
            self._removals = _read_removals(self._connection)  # a running node may have taken it just now
        return _is_in_runs(self._removals.get(entry.stream_hash, []), at)

    def _epoch_at(self, offset: int) -> int:
        at = bisect.bisect_right(self._epochs, offset, key=lambda row: row[1])
        return self._epochs[at - 1][0] if at else 0

    def _compare_tile(self, level: int, index: int, hashes: bytes) -> None:
        (stored,) = queries.read_tiles(self._connection, [(level, index)])
        if stored != hashes:
            self._report.note(f"tile {level}/{index}: {'not what the entries hash to' if stored else 'missing'}")

    def _take_checkpoints(self) -> None:
        """Those over exactly the entries so far."""
        assert self._tree is not None
        while self._checkpoint is not None and self._checkpoint[1] == self._tree.size:
            epoch, size, root, note = self._checkpoint
            self._checkpoint = next(self._checkpoints, None)
            self._take_checkpoint(epoch, size, root, note, self._tree.root())

    def _take_checkpoint(self, epoch: int, size: int, root: bytes, note: str, known: bytes) -> None:
        """`known`: the root that the entries have."""
        try:
            signed = verify_checkpoint(note, self._trusted)
        except VerificationFailed as error:
            self._report.note(f"the checkpoint over {size} entries: {error.detail}")
            return
        if (signed.epoch, signed.checkpoint.size, signed.checkpoint.root) != (epoch, size, root):
            self._report.note(f"the checkpoint over {size} entries says something else than its note")
        if signed.checkpoint.root != known:
            self._report.note(f"the checkpoint over {size} entries: another root than the entries have")
        self._report.checkpoints += 1
        self._report.signed_size = size

    def _compare(self, what: str, root: bytes) -> None:
        if self._tree is not None and self._tree.root() != root:
            self._report.note(f"{what}: another root than the entries have")


def _is_in_runs(runs: list[tuple[int, int]], offset: int) -> bool:
    at = bisect.bisect_right(runs, (offset, 1 << 63))
    return at > 0 and runs[at - 1][0] <= offset <= runs[at - 1][1]


def _read_removals(connection: sqlite3.Connection) -> dict[bytes, list[tuple[int, int]]]:
    """Runs that were taken away, by stream, ascending and joined where they touch or overlap."""
    found: dict[bytes, list[tuple[int, int]]] = {}
    rows = connection.execute("SELECT stream_hash, from_offset, to_offset FROM removal ORDER BY from_offset")
    for stream_hash, low, high in rows:
        runs = found.setdefault(stream_hash, [])
        if runs and low <= runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], max(runs[-1][1], high))
        else:
            runs.append((low, high))
    return found
