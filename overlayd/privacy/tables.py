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

PRIVACY_FEATURE = Feature("privacy", (_TABLES,))
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
) -> None:
    """Adds (sequence, offset, subject) of a stream's packets, and notes how far it was looked at."""
    insert_rows(c, _INDEX, [(stream_id, *packet) for packet in packets])
    c.execute("INSERT OR REPLACE INTO privacy_indexed VALUES (?, ?, ?)", (stream_id, pointer, sequence))


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


def restart_index(c: sqlite3.Connection) -> None:
    """Has every stream looked at anew."""
    c.execute("UPDATE privacy_indexed SET pointer = '', sequence = 0")


def find_packets(
    c: sqlite3.Connection, asked: Sequence[tuple[bytes, int | None]], limit: int
) -> list[tuple[int, Place]]:  # fmt: skip
    """(stream, place) of the packets about subjects, each in one stream or in all; at most `limit` of each subject."""
    found = []
    for subject, stream_id in asked:
        rows = c.execute(
            "SELECT stream_id, sequence, offset FROM privacy_subject WHERE subject = ?1"
            " AND (?2 IS NULL OR stream_id = ?2) ORDER BY stream_id, sequence LIMIT ?3",
            (subject, stream_id, limit),
        )
        found += [(id, (sequence, offset)) for id, sequence, offset in rows]
    return found


# Erasures.


class ErasureRow(msgspec.Struct, frozen=True):
    """An erasure. `done_us`: 0 while it is to be carried out."""

    id: str
    asked_us: int
    done_us: int
    targets: bytes
    report: bytes


_ERASURE = "SELECT id, asked_us, done_us, targets, report FROM privacy_erasure"
BEGIN_ERASURE = "INSERT INTO privacy_erasure VALUES (?, ?, 0, ?, ?)"
END_ERASURE = "UPDATE privacy_erasure SET done_us = ?, targets = x'', report = ? WHERE id = ?"


def read_open_erasures(c: sqlite3.Connection) -> list[ErasureRow]:
    """Those that are to be carried out, in the order in which they were asked for."""
    return [ErasureRow(*row) for row in c.execute(f"{_ERASURE} WHERE done_us = 0 ORDER BY asked_us, id")]


def read_erasure(c: sqlite3.Connection, id: str) -> ErasureRow | None:
    """One of them."""
    row = c.execute(f"{_ERASURE} WHERE id = ?", (id,)).fetchone()
    return None if row is None else ErasureRow(*row)


def read_erasures(c: sqlite3.Connection, before: str, limit: int) -> list[ErasureRow]:
    """The newest first, before one of them. Ids ascend with time."""
    rows = c.execute(f"{_ERASURE} WHERE ?1 = '' OR id < ?1 ORDER BY id DESC LIMIT ?2", (before, limit))
    return [ErasureRow(*row) for row in rows]
