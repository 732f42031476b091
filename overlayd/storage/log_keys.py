"""The keys of a log over its life: the first one, those that took over, and one that is about to.

A rotation is a `key` entry, then a checkpoint over it that the old and the new key sign; from then on the new one signs.
Each step is durable before the next begins, and a start goes on with whichever was reached.
"""

import itertools
import sqlite3
from collections.abc import Sequence

import msgspec
import structlog

from overlayd.model.bodies import Genesis, KeyChange, decode_node_body
from overlayd.model.errors import LogInconsistent, SignerUnavailable, VerificationFailed
from overlayd.model.key_chain import KeyState, sign_key_note
from overlayd.model.note import NoteSigner, Signer, VerifierKey, log_id_of, origin_of, sign_note
from overlayd.model.signer import CheckpointKey, CheckpointKeys
from overlayd.storage import queries
from overlayd.storage.group import Group, LogState
from overlayd.storage.own import Statement
from overlayd.storage.record import decode_row

TABLES = """
CREATE TABLE log_key (
    number INTEGER PRIMARY KEY,  -- 1 is the key that the log is named after
    public_key BLOB NOT NULL CHECK (length(public_key) = 32),
    offset INTEGER NOT NULL,  -- of the entry that introduces it
    note TEXT NOT NULL,  -- signed by the key before it and by itself; empty for the first
    from_size INTEGER,  -- of the first checkpoint over the entry that both signed; NULL until then
    checkpoint TEXT NOT NULL  -- that one's note; empty until then, and for the first
) STRICT;
"""
_INSERT = "INSERT INTO log_key (number, public_key, offset, note, from_size, checkpoint) VALUES (?, ?, ?, ?, ?, '')"

_log = structlog.get_logger("storage.log_keys")


class KeyRow(msgspec.Struct, frozen=True):
    """A key of the log, as the database holds it."""

    number: int
    public_key: bytes
    offset: int
    note: str
    from_size: int | None
    checkpoint: str


class LogKeyFacts(msgspec.Struct, frozen=True):
    """A key of the log, as it stands now. `to_size` is inclusive."""

    row: KeyRow
    state: KeyState
    to_size: int | None


class KeyRing:
    """Which key signs, and which one is about to. Changed on the event loop only, after the change is durable."""

    def __init__(self, rows: Sequence[KeyRow], log_id: str, origin: str, keys: CheckpointKeys) -> None:
        """Opens the keys. Blocking. Raises LogInconsistent when none is the log's, ConfigInvalid."""
        self.rows = list(rows)
        self.log_id = log_id
        self.origin = origin
        self.keys = keys
        current = max((row for row in rows if row.from_size is not None), key=lambda row: row.number)
        self.current: CheckpointKey = keys.find(current.public_key)
        self.pending: CheckpointKey | None = self._open_pending(rows[-1])

    def __repr__(self) -> str:
        return f"KeyRing({self.origin!r}, keys={len(self.rows)}, pending={self.pending is not None})"

    @property
    def vkey(self) -> str:
        """What verifies the checkpoints that are signed now."""
        return str(VerifierKey(self.origin, self.current.public_key))

    @property
    def known(self) -> frozenset[bytes]:
        """Every public key that the log ever named."""
        return frozenset(row.public_key for row in self.rows)

    @property
    def is_quick(self) -> bool:
        """Whether signing never waits for a device."""
        return self.current.is_quick and (self.pending is None or self.pending.is_quick)

    def facts(self) -> list[LogKeyFacts]:
        """Every key, the first one first."""
        counted = [row for row in self.rows if row.from_size is not None]
        until = {old.number: new.from_size for old, new in itertools.pairwise(counted)}
        return [
            LogKeyFacts(row, self._state_of(row, counted[-1]), until.get(row.number)) for row in self.rows
        ]  # fmt: skip

    def sign(self, text: str, size: int) -> tuple[str, bool]:
        """A checkpoint's note, and whether the key that is about to take over signed it too. May block.

        While that one can't be reached the present key goes on alone. Raises SignerUnavailable.
        """
        signers: list[Signer] = [NoteSigner(self.origin, self.current)]
        pending = self.pending
        if pending is not None and size >= self.rows[-1].offset:
            try:
                return sign_note(text, [*signers, NoteSigner(self.origin, pending)]), True
            except SignerUnavailable as err:
                _log.warning("the new key can't be reached; the old one signs alone", error=err.detail)
        return sign_note(text, signers), False

    def make_note(self, new: CheckpointKey) -> str:
        """The note of a rotation to a key. May block. Raises SignerUnavailable."""
        return sign_key_note(NoteSigner(self.origin, self.current), NoteSigner(self.origin, new))

    def introduce(self, group: Group, new: CheckpointKey, note: str) -> int:
        """Adds the entry and the row of a new key to a group; gives the offset. The key counts as pending when committed."""
        offset = group.add_node(KeyChange(note)).offset
        row = KeyRow(len(self.rows) + 1, new.public_key, offset, note, None, "")
        group.statements.append((_INSERT, (row.number, row.public_key, offset, note, None)))

        def adopt() -> None:
            self.rows.append(row)
            self.pending = new

        group.on_adopt(adopt)
        return offset

    def store_takeover(self, connection: sqlite3.Connection, size: int, note: str) -> None:
        """In the transaction that stores the first checkpoint that both signed."""
        connection.execute(
            "UPDATE log_key SET from_size = ?, checkpoint = ? WHERE number = ?", (size, note, self.rows[-1].number)
        )

    def take_over(self, size: int, note: str) -> None:
        """That transaction is durable: the new key signs alone from here on."""
        assert self.pending is not None
        self.rows[-1] = msgspec.structs.replace(self.rows[-1], from_size=size, checkpoint=note)
        self.current, self.pending = self.pending, None
        _log.info("the log's key was rotated", key=self.vkey, from_size=size)

    def _state_of(self, row: KeyRow, current: KeyRow) -> KeyState:
        if row.from_size is not None:
            return "current" if row.number == current.number else "retired"
        return "pending" if row.number == self.rows[-1].number else "abandoned"

    def _open_pending(self, row: KeyRow) -> CheckpointKey | None:
        if row.from_size is not None:
            return None
        try:
            return self.keys.find(row.public_key)
        except LogInconsistent:
            _log.warning("the key that was about to take over is gone; rotate again", key=row.public_key.hex())
            return None


def load_ring(
    connection: sqlite3.Connection, state: LogState, keys: CheckpointKeys, *, is_new: bool
) -> tuple[KeyRing, list[Statement]]:
    """The log's keys, and what must be stored with the start's own entries. `state.epoch` is the one that begins.

    Raises LogInconsistent, ConfigInvalid, SignerUnavailable for a new log whose first key can't be reached.
    """
    rows = read_key_rows(connection)
    statements: list[Statement] = []
    if not rows:
        first = None if is_new else read_genesis_key(connection)
        public_key = first if first is not None else keys.first().public_key
        rows = [KeyRow(1, public_key, 1, "", 0, "")]
        statements.append((_INSERT, (1, public_key, 1, "", 0)))
    log_id = log_id_of(rows[0].public_key)
    return KeyRing(rows, log_id, origin_of(log_id, state.epoch), keys), statements


def read_key_rows(connection: sqlite3.Connection) -> list[KeyRow]:
    """Every key that the log ever named, the first one first. Raises sqlite3.OperationalError without the table."""
    rows = connection.execute(
        "SELECT number, public_key, offset, note, from_size, checkpoint FROM log_key ORDER BY number"
    )
    return [KeyRow(*row) for row in rows]


def read_genesis_key(connection: sqlite3.Connection) -> bytes | None:
    """The key that the log began with, for databases that are older than the table; None when the entry is damaged."""
    for _offset, raw, leaf, sealed in queries.read_rows(connection, 0, 1):
        try:
            genesis = decode_node_body(decode_row(raw, leaf, sealed).body)
            return VerifierKey.parse(genesis.keys[0]).public_key if isinstance(genesis, Genesis) else None
        except VerificationFailed:
            return None  # told elsewhere
    return None
