"""What was made from a packet: packets that the node made from it, and the status entries that are about it alone.

Erasure follows them. A row is written in the transaction of the entry that it leads to. A database that is older than
the table holds rows only above `linked_to`; what lies below is looked through once (`Relinker`).
"""

import json
import sqlite3
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial

import structlog
import trio

from overlayd.model.entry import Kind, StoredEntry
from overlayd.model.errors import VerificationFailed
from overlayd.model.meta import decode_meta
from overlayd.storage.packed import insert_rows
from overlayd.storage.tail import Page

MADE, STATUS = 1, 2
"""Kinds of links: a packet made from the target, a status about the target alone."""

TABLES = """
CREATE TABLE entry_link (
    target INTEGER NOT NULL,
    kind INTEGER NOT NULL,  -- 1 a packet made from it, 2 a status entry about it alone
    offset INTEGER NOT NULL,
    PRIMARY KEY (target, kind, offset)
) STRICT, WITHOUT ROWID;
INSERT INTO state (key, value) SELECT 'linked_to', coalesce(max(offset), 0) FROM entry;
INSERT INTO state (key, value) VALUES ('linked_from', 0);
"""

_INSERT = "INSERT OR IGNORE INTO entry_link (target, kind, offset) VALUES"
_FOLLOW = """
    SELECT DISTINCT offset FROM entry_link WHERE kind = ? AND target IN (SELECT value FROM json_each(?)) ORDER BY offset
"""
_FOLLOW_PAGE = """
    SELECT DISTINCT offset FROM entry_link
    WHERE kind = ? AND target IN (SELECT value FROM json_each(?)) AND offset > ? ORDER BY offset LIMIT ?
"""
_REDUCE = f"UPDATE entry SET sealed = NULL WHERE sealed IS NOT NULL AND offset IN ({_FOLLOW.replace('DISTINCT', '')})"  # noqa: S608 - constants
Link = tuple[int, int, int]
_log = structlog.get_logger("storage.links")


def write(connection: sqlite3.Connection, links: Sequence[Link]) -> None:
    """Adds links (target, kind, offset)."""
    insert_rows(connection, _INSERT, links)


def follow(connection: sqlite3.Connection, targets: Iterable[int], kind: int, after: int, limit: int) -> list[int]:
    """The first offsets behind one that links of a kind lead to, ascending."""
    values = (kind, json.dumps(list(targets)), after, limit)
    return [offset for (offset,) in connection.execute(_FOLLOW_PAGE, values)]


def reduce_statuses(connection: sqlite3.Connection, targets: Sequence[int]) -> list[int]:
    """Takes the content of the targets' own status entries away; gives their offsets. Writes."""
    text = json.dumps(list(targets))
    offsets = [offset for (offset,) in connection.execute(_FOLLOW, (STATUS, text))]
    if offsets:
        connection.execute(_REDUCE, (STATUS, text))
    return offsets


def links_of(entry: StoredEntry) -> list[Link]:
    """The links that lead to an entry."""
    if entry.is_reduced:
        return []
    if entry.kind == Kind.STATUS and entry.target_from and entry.target_from == entry.target_to:
        return [(entry.target_from, STATUS, entry.offset)]
    if entry.kind != Kind.PACKET:
        return []
    try:
        sources = decode_meta(entry.meta).derived_from
    except VerificationFailed:
        return []
    return [(source, MADE, entry.offset) for source in sources]


class Relinker:
    """Makes the links of entries that are older than the table, in slices that hold nobody up."""

    def __init__(
        self, read: Callable[[Callable[[sqlite3.Connection], tuple[int, int]]], Awaitable[tuple[int, int]]],
        write: Callable[[Callable[[sqlite3.Connection], None]], Awaitable[None]],
        read_page: Callable[[int], Awaitable[Page]],
    ) -> None:  # fmt: skip
        """`read`, `write`, `read_page`: the log's."""
        self._read = read
        self._write = write
        self._read_page = read_page
        self._lock = trio.Lock()
        self._asked = trio.Event()

    async def keep(self) -> None:
        """Links what is to be linked, now and whenever it was begun anew, until cancelled."""
        while True:
            asked = self._asked
            await self.run()
            await asked.wait()

    async def run(self) -> None:
        """Returns once every entry is linked; where it was stopped it goes on. Checkpoint."""
        async with self._lock:
            position, upto = await self._read(read_progress)
            if position < upto:
                _log.info("linking older entries with what they were made from", entries=upto - position)
            while position < upto:
                page = await self._read_page(position)
                links = [link for entry in page.entries if entry.offset <= upto for link in links_of(entry)]
                position = min(upto, max(page.after, position + 1))
                await self._write(partial(_note_progress, links=links, position=position))

    async def begin_anew(self, upto: int) -> None:
        """Has every entry up to an offset looked through again, by `keep` or the next `run`, over restarts. Returns once
        that is durable. Checkpoint."""
        async with self._lock:
            await self._write(partial(_restart, upto=upto))
        self._asked.set()
        self._asked = trio.Event()

    async def count_behind(self) -> int:
        """Entries that are still to be looked through. Checkpoint."""
        position, upto = await self._read(read_progress)
        return max(0, upto - position)


def read_progress(connection: sqlite3.Connection) -> tuple[int, int]:
    """How far older entries were looked through, and how far they reach."""
    facts = dict(connection.execute("SELECT key, value FROM state WHERE key IN ('linked_from', 'linked_to')"))
    return facts["linked_from"], facts["linked_to"]


def _note_progress(connection: sqlite3.Connection, links: Sequence[Link], position: int) -> None:
    write(connection, links)
    connection.execute("UPDATE state SET value = ? WHERE key = 'linked_from'", (position,))


def _restart(connection: sqlite3.Connection, upto: int) -> None:
    connection.execute("UPDATE state SET value = 0 WHERE key = 'linked_from'")
    connection.execute("UPDATE state SET value = ? WHERE key = 'linked_to'", (upto,))
