"""The tables about people. Subjects stand in them as keyed hashes, and nothing of any packet does."""

import json
import sqlite3
from collections.abc import Sequence

import msgspec

from overlayd.storage import Feature
from overlayd.storage.packed import insert_rows

_TABLES = """
CREATE TABLE privacy_consent (
    subject BLOB NOT NULL,
    purpose TEXT NOT NULL,
    is_granted INTEGER NOT NULL,
    changed_us INTEGER NOT NULL,
    until_us INTEGER NOT NULL,  -- 0: no end
    reference TEXT NOT NULL,  -- of the document or act by which it was given
    principal TEXT NOT NULL,
    PRIMARY KEY (subject, purpose)
) STRICT, WITHOUT ROWID;

CREATE TABLE privacy_subject (
    stream_id INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    offset INTEGER NOT NULL,
    subject BLOB NOT NULL,
    PRIMARY KEY (stream_id, sequence)
) STRICT, WITHOUT ROWID;
CREATE INDEX privacy_subject_of ON privacy_subject (subject, stream_id, sequence);
CREATE TABLE privacy_indexed (
    stream_id INTEGER PRIMARY KEY,
    pointer TEXT NOT NULL,
    sequence INTEGER NOT NULL  -- packets up to it are in the index
) STRICT;

CREATE TABLE privacy_erasure (
    id TEXT PRIMARY KEY,
    asked_us INTEGER NOT NULL,
    done_us INTEGER NOT NULL,  -- 0: still to be carried out
    targets BLOB NOT NULL,  -- JSON; empty once it is done
    report BLOB NOT NULL  -- JSON
) STRICT, WITHOUT ROWID;
CREATE INDEX privacy_erasure_open ON privacy_erasure (asked_us) WHERE done_us = 0;
CREATE INDEX privacy_erasure_time ON privacy_erasure (asked_us);
"""

_BY_OFFSET = """
DROP INDEX privacy_subject_of;
CREATE INDEX privacy_subject_at ON privacy_subject (subject, offset);
"""
"""So that a subject's packets are read page by page, in the order in which they came."""

PRIVACY_FEATURE = Feature("privacy", (_TABLES, _BY_OFFSET))
_INDEX = "INSERT OR REPLACE INTO privacy_subject (stream_id, sequence, offset, subject) VALUES"

Place = tuple[int, int]
"""Sequence and offset of a packet."""


class ConsentRow(msgspec.Struct, frozen=True):
    """Whether a subject agreed to a purpose. Times are Unix microseconds."""

    purpose: str
    is_granted: bool
    changed_us: int
    until_us: int
    reference: str
    principal: str

    def holds_at(self, now_us: int) -> bool:
        """Whether packets may be taken for it."""
        return self.is_granted and (not self.until_us or now_us < self.until_us)


_CONSENT = (
    "SELECT purpose, is_granted, changed_us, until_us, reference, principal FROM privacy_consent WHERE subject = ?"
)
PUT_CONSENT = "INSERT OR REPLACE INTO privacy_consent VALUES (?, ?, ?, ?, ?, ?, ?)"


def read_consents(c: sqlite3.Connection, subject: bytes) -> list[ConsentRow]:
    """All of a subject, by purpose."""
    return [_consent(row) for row in c.execute(f"{_CONSENT} ORDER BY purpose", (subject,))]


def read_consents_of(
    c: sqlite3.Connection, subjects: Sequence[bytes], purpose: str
) -> dict[bytes, ConsentRow]:  # fmt: skip
    """Of several subjects, to one purpose."""
    found = {}
    for subject in subjects:
        row = c.execute(f"{_CONSENT} AND purpose = ?", (subject, purpose)).fetchone()
        if row is not None:
            found[subject] = _consent(row)
    return found


def count_consents(c: sqlite3.Connection) -> int:
    """Records in all."""
    return int(c.execute("SELECT count(*) FROM privacy_consent").fetchone()[0])


def _consent(row: tuple[str, int, int, int, str, str]) -> ConsentRow:
    purpose, is_granted, changed_us, until_us, reference, principal = row
    return ConsentRow(purpose, bool(is_granted), changed_us, until_us, reference, principal)


# The index of subjects.


def read_indexed(c: sqlite3.Connection) -> dict[int, tuple[str, int]]:
    """By stream: the pointer that its packets were looked at by, and how far."""
    return {id: (pointer, sequence) for id, pointer, sequence in c.execute("SELECT * FROM privacy_indexed")}


def index_packets(
    c: sqlite3.Connection, stream_id: int, pointer: str, sequence: int, packets: Sequence[tuple[int, int, bytes]]
) -> int:
    """Adds (sequence, offset, subject) of a stream's packets, and notes how far it was looked at; gives how many it added.
    Packets that were taken away since they were read aren't entered."""
    kept = _kept(c, [offset for _, offset, _ in packets])
    entered = [(stream_id, *packet) for packet in packets if packet[1] in kept]
    insert_rows(c, _INDEX, entered)
    c.execute("INSERT OR REPLACE INTO privacy_indexed VALUES (?, ?, ?)", (stream_id, pointer, sequence))
    return len(entered)


def drop_index(c: sqlite3.Connection, stream_id: int, before: int, limit: int) -> int:
    """Takes rows of a stream below a sequence away, at most so many; gives how many."""
    return c.execute(
        "DELETE FROM privacy_subject WHERE stream_id = ?1 AND sequence IN (SELECT sequence FROM privacy_subject"
        " WHERE stream_id = ?1 AND sequence < ?2 ORDER BY sequence LIMIT ?3)",
        (stream_id, before, limit),
    ).rowcount


def forget_indexed(c: sqlite3.Connection, stream_id: int) -> None:
    """The stream's packets say no more whom they are about."""
    c.execute("DELETE FROM privacy_indexed WHERE stream_id = ?", (stream_id,))


def forget_packets(c: sqlite3.Connection, stream_id: int, sequences: Sequence[int]) -> None:
    """Packets are erased."""
    c.execute(
        "DELETE FROM privacy_subject WHERE stream_id = ? AND sequence IN (SELECT value FROM json_each(?))",
        (stream_id, json.dumps(list(sequences))),
    )


def only_gone(c: sqlite3.Connection, places: Sequence[Place]) -> list[Place]:
    """Those of some packets whose content was taken away."""
    kept = _kept(c, [offset for _, offset in places])
    return [place for place in places if place[1] not in kept]


def _kept(c: sqlite3.Connection, offsets: Sequence[int]) -> set[int]:
    rows = c.execute(
        "SELECT offset FROM entry WHERE sealed IS NOT NULL AND offset IN (SELECT value FROM json_each(?))",
        (json.dumps(list(offsets)),),
    )
    return {offset for (offset,) in rows}


def restart_index(c: sqlite3.Connection) -> None:
    """Has every stream looked at anew."""
    c.execute("UPDATE privacy_indexed SET pointer = '', sequence = 0")


def read_known(c: sqlite3.Connection, subjects: Sequence[bytes]) -> set[bytes]:
    """Those of some hundred subjects that packets are about."""
    asked = ",".join(["(?)"] * len(subjects))
    rows = c.execute(
        f"WITH asked (subject) AS (VALUES {asked}) SELECT subject FROM asked"  # noqa: S608 - placeholders alone
        " WHERE EXISTS (SELECT 1 FROM privacy_subject p WHERE p.subject = asked.subject)",
        tuple(subjects),
    )
    return {subject for (subject,) in rows}


Asked = tuple[bytes, int | None]
"""A subject's hash, and the number of the only stream where it stands for them; None: in every stream."""
_OF_SUBJECT = "FROM privacy_subject WHERE subject = ?1 AND (?2 IS NULL OR stream_id = ?2) AND offset > ?3"


def read_places(
    c: sqlite3.Connection, asked: Asked, after: int, limit: int, upto: int = (1 << 63) - 1
) -> list[tuple[int, Place]]:
    """(stream, place) of the first packets about a subject behind an offset, up to another, by offset."""
    rows = c.execute(
        f"SELECT stream_id, sequence, offset {_OF_SUBJECT} AND offset <= ?4 ORDER BY offset LIMIT ?5",
        (*asked, after, upto, limit),
    )
    return [(id, (sequence, offset)) for id, sequence, offset in rows]


class CountRow(msgspec.Struct, frozen=True):
    """What one page says of one stream: rows, the last one's offset, and how many packets of them are still there, from
    which sequence to which."""

    stream_id: int
    rows: int
    last_offset: int
    kept: int
    first_sequence: int
    last_sequence: int


_COUNT = f"""
WITH page AS (SELECT stream_id, sequence, offset {_OF_SUBJECT} ORDER BY offset LIMIT ?4)
SELECT page.stream_id, count(*), max(page.offset), count(entry.offset),
    coalesce(min(iif(entry.offset IS NULL, NULL, sequence)), 0),
    coalesce(max(iif(entry.offset IS NULL, NULL, sequence)), 0)
FROM page LEFT JOIN entry ON entry.offset = page.offset AND entry.sealed IS NOT NULL GROUP BY page.stream_id
"""  # noqa: S608 - constants


def count_places(c: sqlite3.Connection, asked: Asked, after: int, limit: int) -> list[CountRow]:
    """The first packets about a subject behind an offset, counted by stream."""
    return [CountRow(*row) for row in c.execute(_COUNT, (*asked, after, limit))]


# Erasures.


class ErasureRow(msgspec.Struct, frozen=True):
    """An erasure that is to be carried out. `targets`: what is left of it to do."""

    id: str
    asked_us: int
    targets: bytes
    report: bytes


BEGIN_ERASURE = "INSERT INTO privacy_erasure VALUES (?, ?, 0, ?, ?)"
GO_ON_WITH_ERASURE = "UPDATE privacy_erasure SET targets = ?, report = ? WHERE id = ?"
END_ERASURE = "UPDATE privacy_erasure SET done_us = ?, targets = x'', report = ? WHERE id = ?"


def read_open_erasures(c: sqlite3.Connection) -> list[ErasureRow]:
    """Those that are to be carried out, in the order in which they were asked for."""
    rows = c.execute(
        "SELECT id, asked_us, targets, report FROM privacy_erasure WHERE done_us = 0 ORDER BY asked_us, id"
    )
    return [ErasureRow(*row) for row in rows]


def read_report(c: sqlite3.Connection, id: str) -> bytes | None:
    """Of one erasure, as JSON."""
    row = c.execute("SELECT report FROM privacy_erasure WHERE id = ?", (id,)).fetchone()
    return None if row is None else bytes(row[0])


def read_reports(c: sqlite3.Connection, before: str, limit: int) -> list[bytes]:
    """The newest first, before one of them. Ids ascend with time."""
    rows = c.execute(
        "SELECT report FROM privacy_erasure WHERE ?1 = '' OR id < ?1 ORDER BY id DESC LIMIT ?2", (before, limit)
    )
    return [report for (report,) in rows]
