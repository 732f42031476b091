"""Making an evidence export from a data directory: one pass over the range, then the proofs (docs/export.md). Blocking.

Reads beside a running node in short transactions, so that the node's write-ahead log isn't held back. The checkpoint is
chosen last, because it must cover whatever took packets away meanwhile.
"""

import base64
import os
import sqlite3
import sys
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import click
import msgspec

from overlayd.chain.anchored_checkpoints import OwnTransactions, read_anchored
from overlayd.cli.export_check import rows_name
from overlayd.cli.export_keys import read_key_list
from overlayd.cli.export_parquet import ParquetWriter
from overlayd.model.bodies import RemovalCause, decode_removal_body
from overlayd.model.cursor import Epoch
from overlayd.model.entry import ENTRY_BYTES, Z32, EntryHeader, Kind, StoredEntry, leaf_hash
from overlayd.model.errors import BadParameter, DamagedEntry, VerificationFailed
from overlayd.model.export_file import (
    ANCHORS_MAX,
    ENTRIES_NAME,
    EVIDENCE_NAME,
    FORMAT,
    OPENED_MAX,
    REMOVED_NAME,
    TRANSACTIONS_NAME,
    VERSION,
    Evidence,
    ExportedAnchor,
    ExportedStream,
    OffsetRange,
    PacketTransaction,
    RemovedEntry,
    RowFormat,
    RowsFile,
    TransactionsFile,
    encode_evidence,
    encode_removed,
    encode_transaction,
    opened_of,
)
from overlayd.model.export_rows import CsvWriter, NdjsonWriter, RowWriter, row_of
from overlayd.model.hash_text import format_sha256
from overlayd.model.merkle import verify_consistency
from overlayd.model.meta import decode_meta
from overlayd.model.multiproof import join_indexes, multiproof_nodes, multiproof_root
from overlayd.model.names import Pattern, is_node_name
from overlayd.model.note import CheckpointText, parse_origin
from overlayd.storage import queries
from overlayd.storage.checkpoint import Checkpoint
from overlayd.storage.epochs import EpochRow, ancestry_of
from overlayd.storage.nodes import read_consistency_path, read_spans

PAGE_ROWS = 500
PAGE_BYTES = 4 << 20
SIGN_LOOKS, SIGN_PAUSE_S = 50, 0.2
"""Ten seconds; a running node signs every second."""
_WRITERS: dict[RowFormat, Callable[[BinaryIO], RowWriter]] = {
    "ndjson": NdjsonWriter,
    "csv": CsvWriter,
    "parquet": ParquetWriter,
}
_STRENGTHS: dict[RemovalCause, int] = {"erased": 0, "deleted": 1, "retention": 2}
_REMOVALS = """
SELECT offset, stream_hash, from_offset, to_offset, cause FROM removal
WHERE to_offset >= ? AND from_offset <= ? ORDER BY from_offset"""
_Run = tuple[int, int, int, RemovalCause]


class Exported(msgspec.Struct, frozen=True, kw_only=True):
    """What was written."""

    directory: str
    first: int
    last: int
    rows: int
    removed: int
    streams: int
    checkpoint_size: int
    anchors: int
    transactions: int
    keys_missing: bool


def write_export(
    connection: sqlite3.Connection, out: Path, span: tuple[int | None, int | None], patterns: Sequence[str],
    form: RowFormat, *, is_live: bool,
) -> Exported:  # fmt: skip
    """Writes an export into a new directory `out`, whole or not at all. `is_live`: a node is running, which goes on signing.

    Raises BadParameter for a range that can't be had, DamagedEntry, VerificationFailed, OSError.
    """
    place = out.with_name(out.name + ".partial")
    place.mkdir(mode=0o700)
    try:
        made = _Export(connection, place, span, patterns, form, is_live=is_live).run(out)
        os.rename(place, out)
    except BaseException:
        for path in place.iterdir():
            path.unlink()
        place.rmdir()
        raise
    return made


class _Export:
    """One export."""

    def __init__(
        self, connection: sqlite3.Connection, place: Path, span: tuple[int | None, int | None],
        patterns: Sequence[str], form: RowFormat, *, is_live: bool,
    ) -> None:  # fmt: skip
        self._connection, self._place, self._form, self._is_live = connection, place, form, is_live
        self._patterns = [Pattern(text) for text in patterns]
        self._epochs = [
            EpochRow(Epoch(epoch), first)
            for epoch, first in connection.execute("SELECT epoch, first_offset FROM epoch ORDER BY epoch")
        ]
        self._first, self._last = self._judge_range(*span)
        self._removals = _Removals(connection, self._first, self._last)
        self._names: dict[bytes, tuple[str, bytes]] = {}
        self._read_names()
        self._packets: Counter[bytes] = Counter()
        self._removed: Counter[bytes] = Counter()
        self._causes: dict[int, str] = {}
        self._rows = 0
        self._transactions = _Transactions(OwnTransactions(connection), place / TRANSACTIONS_NAME)

    def run(self, out: Path) -> Exported:
        """The pass, then the evidence."""
        with ExitStack() as stack:
            entries, removed, rows = (
                stack.enter_context(_create(self._place / name))
                for name in (ENTRIES_NAME, REMOVED_NAME, rows_name(self._form))
            )
            writer = _WRITERS[self._form](rows)
            stack.callback(self._transactions.close)
            for entry in self._read_entries():
                entries.write(entry.raw)
                if entry.kind == Kind.PACKET:
                    self._take_packet(entry, writer, removed)
            writer.close()
            for file in (entries, removed, rows):
                file.flush()
                os.fsync(file.fileno())
        evidence, size = self._make_evidence()
        with _create(self._place / EVIDENCE_NAME) as file:
            file.write(encode_evidence(evidence))
            file.flush()
            os.fsync(file.fileno())
        ((keys,),) = self._connection.execute("SELECT count(*) FROM log_key WHERE from_size IS NOT NULL").fetchall()
        return Exported(
            directory=str(out), first=self._first, last=self._last, rows=self._rows,
            removed=sum(self._removed.values()), streams=sum(stream.is_shown for stream in evidence.streams),
            checkpoint_size=size, anchors=len(evidence.anchors),
            transactions=0 if evidence.transactions is None else evidence.transactions.count, keys_missing=keys > 1 and evidence.keys is None,
        )  # fmt: skip

    def _judge_range(self, first: int | None, last: int | None) -> tuple[int, int]:
        """The range in numbers: from what is kept up to what is signed, unless it says otherwise."""
        newest = self._newest_checkpoint()
        minimum = self._read_minimum()
        first, last = first or minimum + 1, last or newest.size
        if first <= minimum:
            raise BadParameter(f"entries up to {minimum} were cut from the log", subject="--range",
                               hint=f"--range {minimum + 1}..")  # fmt: skip
        if not first <= last:
            raise BadParameter(f"the newest checkpoint covers {newest.size} entries", subject="--range")
        ((head,),) = self._connection.execute("SELECT coalesce(max(offset), 0) FROM entry").fetchall()
        if last > head:
            raise BadParameter(f"the log has {head} entries", subject="--range")
        return first, last

    def _read_minimum(self) -> int:
        ((minimum,),) = self._connection.execute("SELECT value FROM state WHERE key = 'minimum_index'").fetchall()
        return int(minimum)

    def _newest_checkpoint(self) -> Checkpoint:
        found = queries.read_newest_checkpoint(self._connection, self._epochs[-1].epoch) if self._epochs else None
        if found is None:
            raise BadParameter(
                "the log has no checkpoint yet", subject="--range", hint="start the node, so that it signs"
            )
        return found

    def _read_entries(self) -> Iterator[StoredEntry]:
        """Each entry of the range, verified. Raises DamagedEntry, BadParameter for what was cut meanwhile."""
        after = self._first - 1
        label = "exporting"
        with click.progressbar(
            length=self._last - after, label=label, file=sys.stderr, hidden=not sys.stderr.isatty()
        ) as bar:
            while after < self._last:
                blob = queries.read_page_blob(self._connection, after, self._last, PAGE_ROWS, PAGE_BYTES)
                page = queries.open_page(blob, after, self._last)
                if page is None:
                    self._tell_damage(after)
                else:
                    yield from page.entries
                    bar.update(page.after - after)
                    after = page.after

    def _tell_damage(self, after: int) -> None:
        if after < self._read_minimum():
            raise BadParameter("a part of the range was cut from the log meanwhile", subject="--range")
        upto = min(after + PAGE_ROWS, self._last)
        page = queries.open_rows(queries.read_rows(self._connection, after, upto), after, upto)
        low, high = page.damaged[0] if page.damaged else (after + 1, upto)
        raise DamagedEntry(
            f"entries {low} to {high} are missing or damaged", subject=f"offset {low}",
            hint="export the ranges before and after them; overlayd verify names every damaged entry",
        )  # fmt: skip

    def _take_packet(self, entry: StoredEntry, writer: RowWriter, removed: BinaryIO) -> None:
        key = entry.stream_hash
        self._packets[key] += 1
        if key not in self._names:
            self._read_names()
            self._names.setdefault(key, ("", b""))
        name = self._names[key][0]
        if not self._is_shown(name):
            return
        if entry.is_reduced:
            by, cause = self._find_removal(entry)
            line = RemovedEntry(offset=entry.offset, stream=name, sequence=entry.sequence, cause=cause, removal=by)
            removed.write(encode_removed(line))
            self._removed[key] += 1
            return
        if not name:
            raise DamagedEntry("a packet whose stream isn't known", subject=f"offset {entry.offset}")
        opening = (entry.salt, entry.commitment, entry.meta)
        row = row_of(
            EntryHeader.decode(entry.raw), name, opening, decode_meta(entry.meta), entry.body, entry.content_hash
        )
        writer.write(row)
        self._transactions.take(entry)
        self._rows += 1

    def _is_shown(self, name: str) -> bool:
        """What is asked for; without patterns everything but the node's own streams."""
        if self._patterns:
            return any(pattern.is_match(name) for pattern in self._patterns)
        return not is_node_name(name)

    def _read_names(self) -> None:
        """Those known already stay, though their stream may have been deleted since."""
        query = "SELECT stream_hash, name, ssalt FROM stream WHERE name IS NOT NULL"
        for key, name, ssalt in self._connection.execute(query).fetchall():
            if self._names.get(key, ("", b""))[0] == "":
                self._names[key] = name, ssalt

    def _find_removal(self, entry: StoredEntry) -> tuple[int, RemovalCause]:
        by, cause = self._removals.find(entry.stream_hash, entry.offset)
        if by not in self._causes and len(self._causes) >= OPENED_MAX:
            raise BadParameter(f"more than {OPENED_MAX} removals took packets of the range", subject="--range",
                               hint="export it in several parts")  # fmt: skip
        self._causes[by] = cause
        return by, cause

    def _make_evidence(self) -> tuple[Evidence, int]:
        checkpoint = self._wait_signed(max([self._last, *self._causes]))
        opened = [self._read_opened(offset) for offset in sorted({*self._causes, *self._restores(checkpoint.size)})]
        beyond = [entry for entry in opened if entry.offset > self._last]
        wanted = join_indexes((entry.offset - 1 for entry in beyond), [(self._first - 1, self._last)])
        hashes = read_spans(self._connection, multiproof_nodes(wanted, checkpoint.size))
        self._try_proof(wanted, checkpoint, beyond, hashes)
        evidence = Evidence(
            format=FORMAT, version=VERSION, log=parse_origin(checkpoint.note.partition("\n")[0])[0],
            range=OffsetRange(self._first, self._last),
            rows=RowsFile(file=rows_name(self._form), format=self._form, count=self._rows), streams=self._list_streams(),
            checkpoint=checkpoint.note, hashes=tuple(map(format_sha256, hashes)),
            opened=tuple(map(opened_of, opened)), anchors=self._read_anchors(checkpoint),
            keys=read_key_list(self._connection, self._epochs), transactions=self._transactions.listed,
        )  # fmt: skip
        return evidence, checkpoint.size

    def _wait_signed(self, size: int) -> Checkpoint:
        """The newest checkpoint, once it covers so many entries."""
        newest = self._newest_checkpoint()
        for _ in range(SIGN_LOOKS if self._is_live else 0):
            if newest.size >= size:
                break
            time.sleep(SIGN_PAUSE_S)
            newest = self._newest_checkpoint()
        if newest.size < size:
            raise BadParameter(f"the newest checkpoint covers {newest.size} entries, not {size}", subject="--range",
                               hint="start the node, so that it signs them")  # fmt: skip
        return newest

    def _restores(self, size: int) -> set[int]:
        """Where the epochs began that lie between the range's first entry and the checkpoint."""
        return {common + 1 for _, common in ancestry_of(self._epochs) if self._first < common + 1 <= size}

    def _read_opened(self, offset: int) -> StoredEntry:
        blob = queries.read_page_blob(self._connection, offset - 1, offset, 1, PAGE_BYTES)
        page = queries.open_page(blob, offset - 1, offset)
        if page is None:
            raise DamagedEntry("an entry that the evidence needs is damaged", subject=f"offset {offset}")
        entry = page.entries[0]
        if not entry.is_reduced and entry.kind == Kind.REMOVAL:
            decode_removal_body(entry.body)
        return entry

    def _try_proof(
        self, wanted: Sequence[tuple[int, int]], checkpoint: Checkpoint, beyond: Sequence[StoredEntry],
        hashes: Sequence[bytes],
    ) -> None:  # fmt: skip
        """A damaged tile would make a proof that convinces nobody. Raises DamagedEntry."""
        rest = [leaf_hash(entry.raw) for entry in beyond]
        with (self._place / ENTRIES_NAME).open("rb") as file:

            def take(count: int) -> list[bytes]:
                octets = file.read(count * ENTRY_BYTES)
                leaves = [leaf_hash(octets[at : at + ENTRY_BYTES]) for at in range(0, len(octets), ENTRY_BYTES)]
                missing = count - len(leaves)
                leaves += rest[:missing]
                del rest[:missing]
                return leaves

            root = multiproof_root(wanted, checkpoint.size, take, hashes)
        if root != checkpoint.root:
            raise DamagedEntry("the log's stored hashes don't lead to the signed root", subject="tile",
                               hint="overlayd verify names every damaged tile")  # fmt: skip

    def _list_streams(self) -> tuple[ExportedStream, ...]:
        """Those with packets in the range, and those that were asked for by name."""
        keys = set(self._packets)
        if self._patterns:
            keys = {key for key in keys if self._is_shown(self._names[key][0])}
            keys |= {key for key, (name, _) in self._names.items() if name and self._is_shown(name)}
        return tuple(
            ExportedStream(
                stream=self._names[key][0], ssalt=base64.b64encode(self._names[key][1]).decode(),
                stream_hash=format_sha256(key), is_shown=self._is_shown(self._names[key][0]),
                packets=self._packets[key], removed=self._removed[key],
            )
            for key in sorted(keys, key=lambda key: (self._names[key][0], key))
        )  # fmt: skip

    def _read_anchors(self, checkpoint: Checkpoint) -> tuple[ExportedAnchor, ...]:
        """Those of the range, up to the first that covers all of it."""
        found: deque[ExportedAnchor] = deque(maxlen=ANCHORS_MAX)
        for anchored in read_anchored(self._connection, self._first, checkpoint.size):
            text = CheckpointText.parse("".join(f"{line}\n" for line in anchored.note.split("\n", 3)[:3]))
            path = read_consistency_path(self._connection, text.size, checkpoint.size)
            try:
                verify_consistency(text.size, text.root, checkpoint.size, checkpoint.root, path)
            except VerificationFailed:
                continue  # of a history that a restore lost
            hashes = tuple(map(format_sha256, path))
            found.append(
                ExportedAnchor(checkpoint=anchored.note, consistency_path=hashes, anchor=anchored.anchor)
            )  # fmt: skip
            if anchored.size >= self._last:
                break
        return tuple(found)


class _Transactions:
    """Writes the file of packets' own transactions, which is there only if it has a line."""

    def __init__(self, own: OwnTransactions, path: Path) -> None:
        self._own, self._path = own, path
        self._file: BinaryIO | None = None
        self._count = self._lowest = 0

    @property
    def listed(self) -> TransactionsFile | None:
        """What the evidence says of it."""
        return TransactionsFile(count=self._count, lowest=self._lowest) if self._count else None

    def take(self, entry: StoredEntry) -> None:
        """The packet of a row."""
        anchor = None if entry.commitment == Z32 else self._own.find(entry.offset, entry.commitment)
        if anchor is None:
            return
        if self._file is None:
            self._file = _create(self._path)
        self._file.write(encode_transaction(PacketTransaction(offset=entry.offset, anchor=anchor)))
        self._lowest = min(self._lowest, anchor.height) if self._count else anchor.height
        self._count += 1

    def close(self) -> None:
        """Onto the disk."""
        if self._file is not None:
            with self._file as file:
                file.flush()
                os.fsync(file.fileno())


class _Removals:
    """The removals of a range, found by walking along it."""

    def __init__(self, connection: sqlite3.Connection, first: int, last: int) -> None:
        self._connection, self._last = connection, last
        self._load(first)

    def _load(self, first: int) -> None:
        self._waiting: defaultdict[bytes, deque[_Run]] = defaultdict(deque)
        self._open: defaultdict[bytes, list[_Run]] = defaultdict(list)
        for by, key, low, high, cause in self._connection.execute(_REMOVALS, (first, self._last)).fetchall():
            self._waiting[key].append((low, high, by, cause))

    def find(self, key: bytes, offset: int) -> tuple[int, RemovalCause]:
        """Which entry took a packet away, and why: of several the one that says most. Offsets ascend from call to call.
        Raises DamagedEntry."""
        found = self._find(key, offset)
        if found is None:  # a running node may have taken it just now
            self._load(offset)
            found = self._find(key, offset)
        if found is None:
            raise DamagedEntry("its content is gone, and no removal on record took it", subject=f"offset {offset}")
        return found

    def _find(self, key: bytes, offset: int) -> tuple[int, RemovalCause] | None:
        waiting = self._waiting[key]
        runs = [run for run in self._open[key] if run[1] >= offset]
        while waiting and waiting[0][0] <= offset:
            run = waiting.popleft()
            if run[1] >= offset:
                runs.append(run)
        self._open[key] = runs
        best = min(runs, key=lambda run: (_STRENGTHS[run[3]], run[2]), default=None)
        return None if best is None else (best[2], best[3])


def _create(path: Path) -> BinaryIO:
    """A new file that its owner alone can read: it holds contents and salts."""
    return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")
