"""Finds the offsets of what can't be kept in order: packet ids, commitments, keys. No B-tree over random values.

A name (a packet id in its stream, say) becomes a 64-bit hash, keyed by a secret that lies outside the database, so
that a stolen database doesn't give erased names back. Newest pairs (hash, offset) are in a dict. A flush writes them
to a run in hash order (`hashrun`), and runs of one size are merged eight at a time, so that a pair is rewritten once
per power of eight. Every run has a filter in memory, so that a new id hardly ever asks the disk. A hit is a hint:
hashes may collide, and the caller compares with the entry.

All work on the disk comes in steps of bounded size: after each group commit, or in idle moments, the writer calls
`merge_step` in a transaction. To keep up it must move a pair for each pair added, and one and a quarter more for each
power of eight that there are: five for some hundred millions.

Changes follow the writer's transaction. `add` and `discard` show in memory at once and are undone by `roll_back`;
what a step, flush or drop does to memory happens in `adopt`, after the COMMIT. One of the two ends each transaction.
All of this belongs to one thread at a time; only `read_stored` and `read_stored_like` may run beside it.

Costs, measured by benchmarks/hash_index.py with a million random UUIDs: 1.3 µs to hash an id, 1.0 µs to look for it
in memory, 0.3 µs to add it, 1.6 µs for its flush and merges; the disk is asked for 0.1 % of new ids, at 15 µs each. 2 to
4 bytes of memory and 24 on disk a pair. Slices of 1,024 rows take about 1 ms. Every run more is 0.1 to 0.3 µs an id.
"""

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from operator import attrgetter
from typing import TypeAlias

from overlayd.model.errors import LogInconsistent
from overlayd.storage import hashrun, held
from overlayd.storage.hashrun import PREFIX_END, Build, Run
from overlayd.storage.name_hash import Family, NameHasher

__all__ = ["STEPS", "Family", "HashIndex"]

TABLES = (
    hashrun.TABLES
    + """
CREATE TABLE hash_family (
    family INTEGER PRIMARY KEY,
    stored_to INTEGER NOT NULL,  -- runs hold every pair of an offset up to this one
    secret_mark BLOB             -- a hash by the secret that keyed them
) STRICT;
INSERT INTO hash_family (family, stored_to) VALUES (1, 0), (2, 0), (3, 0);
"""
)
STEPS = (TABLES, held.TABLES)

FAN_OUT = 8
SLICE_ROWS = 4_096
FILTER_BYTES_MAX = 80 << 20
_TIER_PAIRS = 4_096
_DELETE_FACTOR = 4
"""Pairs that are deleted in the time that it takes to move one, being whole blocks."""
_BUILDING, _LIVE, _DEAD = 0, 1, 2
_FLUSH_TIER = -1
_MARK = "UPDATE hash_family SET secret_mark = ? WHERE family = ?"

_SHIFT = attrgetter("shift")
_TOGETHER_MIN = 4
"""Fewer hashes are sooner looked for one by one."""

Offsets: TypeAlias = int | tuple[int, ...]


class HashIndex:
    """The pairs of one family.

    `newest_max` bounds the offsets kept of one hash to the newest ones in each run (0: all are kept); a family whose
    names repeat for ever, such as keys, needs it. `filter_bytes_max`: beyond it filters get coarser.
    """

    def __init__(
        self, family: Family, secret: bytes, *, newest_max: int = 0, filter_bytes_max: int = FILTER_BYTES_MAX
    ) -> None:
        self.family = family
        self.names = NameHasher(family, secret)
        self._newest_max = newest_max
        self._filter_bytes_max = filter_bytes_max
        self._recent: dict[int, Offsets] = {}
        self._frozen: dict[int, Offsets] = {}
        self._undo: list[tuple[dict[int, Offsets], int, Offsets | None]] = []
        self._staged: list[Callable[[], None]] = []
        self._runs: tuple[Run, ...] = ()
        self._dead: list[Run] = []
        self._builds: list[Build] = []
        self._fresh: Run | None = None
        self._flush_to: int | None = None
        self._stored_to = 0
        self._floor = 0
        self._pin_lock = threading.Lock()

    def __repr__(self) -> str:
        return f"HashIndex({self.family.name}, recent={len(self._recent)}, runs={len(self._runs)})"

    def load(self, connection: sqlite3.Connection) -> int:
        """Read what the database holds; gives the offset above which the caller adds the entries' pairs again, all
        but those of `hold`, then calls `adopt`.

        Reads all filters: 2 to 4 bytes a pair. Raises LogInconsistent when the secret isn't the one of old, because
        every stored name would be taken for a new one.
        """
        self._stored_to, mark = connection.execute(
            "SELECT stored_to, secret_mark FROM hash_family WHERE family = ?", (self.family,)
        ).fetchone()
        if mark is not None and mark != self.names.mark:
            raise LogInconsistent(
                "the secret of the duplicate detection isn't the one that its stored hashes were made with",
                subject="index.key", hint="put the data directory's own key file back",
            )  # fmt: skip
        rows = connection.execute(
            "SELECT run, filter_bits, pairs, oldest, newest, state, done, sources FROM hash_run WHERE family = ?"
            " ORDER BY run",
            (self.family,),
        ).fetchall()
        runs = {row[0]: Run(*row[:5]) for row in rows}
        states = {row[0]: row[5] for row in rows}
        for number, run in runs.items():
            hashrun.read_run_filter(connection, run)
            if states[number] == _LIVE:
                self._runs += (run,)
        for number, _bits, _pairs, _oldest, _newest, state, done, sources in rows:
            if state == _BUILDING and sources != "[]":
                self._resume(runs[number], tuple(runs[source] for source in json.loads(sources)), done)
            elif state != _LIVE:
                self._dead.append(runs[number])
        for key, offset in held.read_held(connection, self.family):
            self.add(key, offset)
        return self._stored_to

    @property
    def stored_to(self) -> int:
        """The offset up to which nothing needs to be added at a start."""
        return self._stored_to

    @property
    def is_flushing(self) -> bool:
        """Whether a flush is under way."""
        return self._flush_to is not None

    @property
    def recent_count(self) -> int:
        """Hashes in memory that no flush has taken up yet."""
        return len(self._recent)

    @property
    def filter_bytes(self) -> int:
        """Memory that filters take."""
        runs = (*self._runs, *self._dead, *(build.run for build in self._builds))
        return sum(len(run.bits) for run in runs)

    # Names to hashes.

    def key(self, name: bytes, scope: bytes = b"") -> int:
        """The hash of a name in a scope, as `NameHasher.key`."""
        return self.names.key(name, scope)

    def prefix(self, name: bytes) -> int:
        """The high 32 bits of the hash of an id."""
        return self.names.prefix(name)

    # Looking.

    def recent(self, key: int) -> tuple[int, ...]:
        """The offsets that memory has, oldest first. Look here before `read_stored`, never after."""
        newer = self._recent.get(key)
        older = self._frozen.get(key) if self._frozen else None
        return () if newer is None and older is None else (*_as_tuple(older), *_as_tuple(newer))

    def is_recent(self, key: int) -> bool:
        """Whether memory has an offset."""
        return key in self._recent or key in self._frozen

    def find_known(self, keys: Sequence[int]) -> set[int]:
        """Those of the hashes that memory has, or that `maybe_stored`. Hardly any, of new names."""
        recent, frozen = self._recent, self._frozen
        known = {key for key in keys if key in recent or key in frozen}
        if len(keys) < _TOGETHER_MIN:
            known.update([key for key in keys if self.maybe_stored(key)])
            return known
        for shift, runs in groupby(sorted(self._runs, key=_SHIFT), _SHIFT):
            known.update(hashrun.find_held(runs, shift, keys))
        return known

    def recent_like(self, prefix: int) -> list[tuple[int, int]]:
        """The pairs in memory whose hashes have these high 32 bits. Looks at all: 2 ms at 65,536."""
        tables = (list(self._frozen.items()), list(self._recent.items()))
        found = [(key, offsets) for table in tables for key, offsets in table if key >> 32 == prefix]
        return [(key, offset) for key, offsets in found for offset in _as_tuple(offsets)]

    def maybe_stored(self, key: int) -> bool:
        """False: no run has the hash. True: ask `read_stored`. Never touches the disk."""
        for run in self._runs:  # Run.may_hold, written out: this is asked of every packet and every run
            at = key >> run.shift
            if run.bits[at >> 3] >> (at & 7) & 1 and run.may_hold(key):
                return True
        return False

    def read_stored(self, connection: sqlite3.Connection, keys: Sequence[int]) -> dict[int, list[int]]:
        """The offsets that runs have for each hash, ascending; [] where there are none.

        Blocks the thread, which may be any. The connection must not be inside an older read transaction.
        """
        found: dict[int, list[int]] = {key: [] for key in keys}
        with self._pinned() as runs:
            probes = [(run.number, key) for key in found for run in runs if run.may_hold(key)]
            blocks = hashrun.read_blocks(connection, [(number, key >> 32) for number, key in probes])
        for (_number, key), block in zip(probes, blocks, strict=True):
            found[key].extend(hashrun.offsets_of(block, key))
        for offsets in found.values():
            offsets.sort()
        return found

    def read_stored_like(self, connection: sqlite3.Connection, prefix: int) -> list[tuple[int, int]]:
        """The pairs in runs whose hashes have these high 32 bits, as `read_stored`."""
        with self._pinned() as runs:
            numbers = [run.number for run in runs if run.may_hold_prefix(prefix)]
            blocks = hashrun.read_blocks(connection, [(number, prefix) for number in numbers])
        pairs = [pair for block in blocks if block for pair in hashrun.decode_pairs(block)]
        return sorted(pair for pair in pairs if pair[0] >> 32 == prefix)

    @contextmanager
    def _pinned(self) -> Iterator[tuple[Run, ...]]:
        """The runs, which aren't deleted meanwhile even if a merge replaces them."""
        with self._pin_lock:
            runs = self._runs
            for run in runs:
                run.pins += 1
        try:
            yield runs
        finally:
            with self._pin_lock:
                for run in runs:
                    run.pins -= 1

    # Changing.

    def add(self, key: int, offset: int) -> None:
        """Note a pair. Ignores what is stored already (a start reads entries again)."""
        if offset <= self._stored_to:
            return
        before = self._recent.get(key)
        self._undo.append((self._recent, key, before))
        if before is None or self._newest_max == 1:
            self._recent[key] = offset
        else:
            self._recent[key] = (*_as_tuple(before), offset)[-self._newest_max :]

    def add_each(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Note (hash, offset) pairs, as `add`."""
        recent, undo, stored_to, is_one = self._recent, self._undo, self._stored_to, self._newest_max == 1
        for key, offset in pairs:
            if key in recent and not is_one:
                self.add(key, offset)
            elif offset > stored_to:
                undo.append((recent, key, recent.get(key)))
                recent[key] = offset

    def hold(self, connection: sqlite3.Connection, pairs: Sequence[tuple[int, int]]) -> None:
        """Keep (hash, offset) pairs that were added, and whose entries lose the names, for a start before the flush."""
        unwritten = [pair for pair in pairs if pair[1] > self._stored_to]
        if unwritten:
            held.hold(connection, self.family, unwritten)
            connection.execute(_MARK, (self.names.mark, self.family))

    def discard(self, connection: sqlite3.Connection, key: int, offset: int) -> None:
        """Remove a pair everywhere, as `discard_all`."""
        self.discard_all(connection, [(key, offset)])

    def discard_all(self, connection: sqlite3.Connection, pairs: Sequence[tuple[int, int]]) -> None:
        """Remove (hash, offset) pairs from memory and from every run's rows. Filters may keep their bits."""
        for key, offset in pairs:
            for table in (self._recent, self._frozen):
                before = table.get(key)
                kept = tuple(at for at in _as_tuple(before) if at != offset)
                if before is not None and len(kept) < len(_as_tuple(before)):
                    self._undo.append((table, key, before))
                    if kept:
                        table[key] = kept
                    else:
                        del table[key]
        fresh = () if self._fresh is None else (self._fresh,)
        for run in (*self._runs, *self._dead, *(build.run for build in self._builds), *fresh):
            hashrun.remove_pairs(connection, run, pairs)

    def adopt(self) -> None:
        """The transaction is committed: memory follows it."""
        self._undo.clear()
        for change in self._staged:
            change()
        self._staged.clear()
        self._fresh = None

    def roll_back(self) -> None:
        """The transaction left no trace: neither does memory."""
        for table, key, before in reversed(self._undo):
            if before is None:
                del table[key]
            else:
                table[key] = before
        self._undo.clear()
        self._staged.clear()
        self._fresh = None

    # From memory to runs, from runs to larger ones.

    def begin_flush(self, up_to_offset: int) -> None:
        """Between transactions: decide that all pairs go to a new run; `merge_step` does it.

        Every entry up to this offset, and none above it, was added. One flush at a time.
        """
        assert not self.is_flushing
        assert not self._undo, "between transactions only"
        self._flush_to = max(up_to_offset, self._stored_to)
        self._frozen, self._recent = self._recent, {}

    def flush(self, connection: sqlite3.Connection, up_to_offset: int) -> None:
        """A whole flush in one transaction (65,536 pairs: 100 ms). Finishes one that is under way instead."""
        if not self.is_flushing:
            self.begin_flush(up_to_offset)
        self._step(connection, 1 << 62, self._flush_build())

    def merge_step(self, connection: sqlite3.Connection, rows_max: int = SLICE_ROWS) -> bool:
        """Move about `rows_max` pairs towards where they belong; whether there may be more to do.

        Once per transaction, as `flush` and `drop_before`: one of the three. Goes on with a flush, else begins the
        smallest merge that is due, else deletes what merges left, else goes on with the smallest merge.
        """
        if self.is_flushing:
            self._step(connection, rows_max, self._flush_build())
            return True
        build = min(self._builds, key=lambda build: build.tier, default=None)
        due = self._due_merge()
        if due is not None and (build is None or due[0] < build.tier):
            self._step(connection, rows_max, self._merge_build(*due))
            return True
        if self._delete_some(connection, rows_max):
            return True
        if build is None:
            return False
        self._step(connection, rows_max, build)
        return True

    def has_run_before(self, offset: int) -> bool:
        """Whether `drop_before` has a whole run to forget, unless that is being merged."""
        return any(run.newest < offset for run in self._runs)

    def drop_before(self, connection: sqlite3.Connection, offset: int) -> None:
        """Forget runs whose newest pair is older. Older pairs of other runs go when those are merged."""
        assert not self._staged, "one flush, step or drop per transaction"
        busy = {run.number for build in self._builds for run in build.sources}
        old = [run for run in self._runs if run.newest < offset and run.number not in busy]
        for run in old:
            connection.execute("UPDATE hash_run SET state = ? WHERE run = ?", (_DEAD, run.number))

        def change() -> None:
            self._floor = max(self._floor, offset)
            self._runs = tuple(run for run in self._runs if run not in old)
            self._dead.extend(old)

        self._staged.append(change)

    def _resume(self, run: Run, sources: tuple[Run, ...], done: int) -> None:
        total = sum(source.pairs for source in sources)
        self._builds.append(Build(run, sources, min(map(_tier_of, sources)), total, done))

    def _flush_build(self) -> Build:
        for build in self._builds:
            if build.tier == _FLUSH_TIER:
                return build
        build = Build(self._new_run(len(self._frozen), 0), (), _FLUSH_TIER, len(self._frozen))
        build.buckets = [[] for _ in range(256)]
        for key in self._frozen:
            build.buckets[key >> 56].append(key)
        return build

    def _due_merge(self) -> tuple[int, list[Run]] | None:
        """The lowest tier that has eight runs to merge, and the oldest of these; maybe being merged already."""
        tiers: dict[int, list[Run]] = {}
        for run in self._runs:
            tiers.setdefault(_tier_of(run), []).append(run)
        due = [(tier, runs[:FAN_OUT]) for tier, runs in tiers.items() if len(runs) >= FAN_OUT]
        return min(due, key=lambda item: item[0], default=None)

    def _merge_build(self, tier: int, sources: list[Run]) -> Build:
        total = sum(run.pairs for run in sources)
        return Build(self._new_run(total, sum(len(run.bits) for run in sources)), tuple(sources), tier, total)

    def _new_run(self, pairs: int, freed_bytes: int) -> Run:
        """A run without number; its filter as fine as the memory for filters allows."""
        bits = hashrun.filter_bits_for(pairs)
        free = self._filter_bytes_max - self.filter_bytes + freed_bytes
        while bits > hashrun.FILTER_BITS_MIN and 1 << bits - 3 > free:
            bits -= 1
        return Run(0, bits)

    def _step(self, connection: sqlite3.Connection, rows_max: int, build: Build) -> None:
        """One slice of a build, which is known to memory only once a transaction with its run is committed."""
        assert not self._staged, "one flush, step or drop per transaction"
        run, start = build.run, build.done
        if not build.total:
            self._finish(connection, build)
            return
        if run.number == 0:
            self._fresh = run
            sources = json.dumps([source.number for source in build.sources])
            run.number = (
                connection.execute(
                    "INSERT INTO hash_run (family, state, pairs, oldest, newest, filter_bits, done, sources)"
                    " VALUES (?, ?, 0, 0, 0, ?, 0, ?)",
                    (self.family, _BUILDING, run.filter_bits, sources),
                ).lastrowid
                or 0
            )
        end = min(PREFIX_END, start + max(1, PREFIX_END * rows_max // build.total))
        if build.sources:
            pairs = hashrun.read_slice(connection, [source.number for source in build.sources], start, end)
            pairs.sort()
            pairs = hashrun.worth_keeping(pairs, self._floor, self._newest_max)
        else:
            end = min(PREFIX_END, end + (1 << 24) - 1 & ~((1 << 24) - 1))
            pairs = self._frozen_pairs(build, start, end)
        hashrun.write_pairs(connection, run, pairs, start, end)
        oldest, newest = build.bounds_of(pairs)
        oldest, count = max(oldest, self._floor), run.pairs + len(pairs)
        connection.execute(
            "UPDATE hash_run SET pairs = ?, oldest = ?, newest = ?, done = ? WHERE run = ?",
            (count, oldest, newest, end, run.number),
        )

        def change() -> None:
            run.pairs, run.oldest, run.newest, build.done = count, oldest, newest, end
            if build not in self._builds:
                self._builds.append(build)

        self._staged.append(change)
        if end == PREFIX_END:
            self._finish(connection, build)

    def _finish(self, connection: sqlite3.Connection, build: Build) -> None:
        """The run takes the place of its sources."""
        connection.execute("UPDATE hash_run SET state = ? WHERE run = ?", (_LIVE, build.run.number))
        for source in build.sources:
            connection.execute("UPDATE hash_run SET state = ? WHERE run = ?", (_DEAD, source.number))
        flush_to = self._flush_to if build.tier == _FLUSH_TIER else None
        if flush_to is not None:
            connection.execute(
                "UPDATE hash_family SET stored_to = ?, secret_mark = ? WHERE family = ?",
                (flush_to, self.names.mark, self.family),
            )
            held.let_go(connection, self.family, flush_to)

        def change() -> None:
            self._builds = [other for other in self._builds if other is not build]
            kept = tuple(run for run in self._runs if run not in build.sources)
            self._runs = (*kept, build.run) if build.run.number else kept
            self._dead.extend(build.sources)
            if flush_to is not None:
                self._frozen, self._stored_to, self._flush_to = {}, flush_to, None

        self._staged.append(change)

    def _frozen_pairs(self, build: Build, start: int, end: int) -> list[bytes]:
        pairs: list[tuple[int, int]] = []
        for bucket in build.buckets[start >> 24 : end >> 24]:
            for key in sorted(bucket):
                offsets = self._frozen.get(key)
                if isinstance(offsets, int):
                    pairs.append((key, offsets))
                elif offsets is not None:
                    pairs.extend((key, offset) for offset in sorted(offsets))
        return hashrun.encode_pairs(pairs)

    def _delete_some(self, connection: sqlite3.Connection, rows_max: int) -> bool:
        """Delete rows of a dead run that nobody reads any more; whether there was one."""
        with self._pin_lock:
            run = next((run for run in self._dead if run.pins == 0), None)
        if run is None:
            return False
        if hashrun.delete_rows(connection, run.number, max(1, rows_max * _DELETE_FACTOR // hashrun.BLOCK_PAIRS)):
            self._staged.append(lambda: self._dead.remove(run))
        return True


def _tier_of(run: Run) -> int:
    """0 up to 4,096 pairs, then one more per power of eight."""
    return max(0, (run.pairs // _TIER_PAIRS).bit_length() + 2) // 3


def _as_tuple(offsets: Offsets | None) -> tuple[int, ...]:
    if offsets is None:
        return ()
    return (offsets,) if isinstance(offsets, int) else offsets
