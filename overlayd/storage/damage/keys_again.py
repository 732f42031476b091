"""The list of the log's keys, held against what the keys themselves signed; and rows of checkpoints that aren't any."""

import sqlite3
from collections.abc import Mapping
from typing import Any

from overlayd.model.errors import VerificationFailed
from overlayd.model.key_chain import open_key_note
from overlayd.model.note import CheckpointText
from overlayd.storage.damage.tables import TableReport
from overlayd.storage.log_keys import read_genesis_key, read_key_rows


def is_checkpoint_row(row: Mapping[str, Any]) -> bool:
    """Whether the note says what the row says. Raises VerificationFailed for none. Its signature is looked at elsewhere."""
    text = CheckpointText.parse(row["note"].partition("\n\n")[0] + "\n")
    return (text.size, text.root) == (row["size"], row["root"])


def find_broken_keys(connection: sqlite3.Connection) -> list[int]:
    """Numbers of rows that aren't the keys that genesis and the notes of rotations name."""
    broken = []
    for row in read_key_rows(connection):
        try:
            named = open_key_note(row.note).new.public_key if row.note else read_genesis_key(connection)
        except VerificationFailed:
            named = b""
        if named is not None and named != row.public_key:
            broken.append(row.number)
    return broken


def mend_keys(target: sqlite3.Connection, tables: dict[str, TableReport]) -> None:
    """Puts right what can be: the first key stands in genesis, each later one in the note of its rotation."""
    for number in find_broken_keys(target):
        tables.setdefault("log_key", TableReport()).bad_rows += 1
        (note,) = target.execute("SELECT note FROM log_key WHERE number = ?", (number,)).fetchone()
        try:
            named = open_key_note(note).new.public_key if note else read_genesis_key(target)
        except VerificationFailed:
            named = None
        if named is None:
            target.execute("DELETE FROM log_key WHERE number = ?", (number,))
        else:
            target.execute("UPDATE log_key SET public_key = ? WHERE number = ?", (named, number))
