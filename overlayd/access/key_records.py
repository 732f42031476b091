"""API keys as they are stored, and the table that they stand in. No secret among it, only hashes."""

import sqlite3

import msgspec

from overlayd.access.secret_text import KeyKind
from overlayd.storage.migrations import Feature
from overlayd.storage.own import Statement

ACCESS_FEATURE = Feature(
    "access",
    (
        """
CREATE TABLE access_key (
    id TEXT PRIMARY KEY,
    body BLOB NOT NULL  -- JSON
) STRICT, WITHOUT ROWID;
CREATE TABLE access_key_use (
    id TEXT PRIMARY KEY,  -- of config keys, too
    used_us INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE stream_owner (
    name TEXT PRIMARY KEY,
    owner TEXT NOT NULL
) STRICT, WITHOUT ROWID;
""",
    ),
    on_loss=(
        """INSERT OR IGNORE INTO access_key (id, body) VALUES ('lost-to-damage', CAST('{"id":"lost-to-damage","kind":"ovl",
"owner":"node","title":"Keys may be lost: this one, which nobody has, keeps the node from being open without any",
"scopes":[],"created_us":0,"secrets":[{"digest":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","prefix":"","created_us":0}]}' AS BLOB))""",
    ),
    sound={"access_key": lambda row: msgspec.json.decode(row["body"], type=KeyRecord).id == row["id"]},
)


class SecretRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """One secret of a key. `expires_us`: 0 as long as the key itself, else the end of a rotation's grace."""

    digest: bytes
    prefix: str
    created_us: int
    expires_us: int = 0


class KeyRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """An API key. `secrets`: newest first; `expires_us`: 0 for never."""

    id: str
    kind: KeyKind
    owner: str
    scopes: tuple[str, ...]
    created_us: int
    secrets: tuple[SecretRecord, ...]
    roles: tuple[str, ...] = ()
    title: str = ""
    created_by: str = ""
    expires_us: int = 0
    policy: str = ""


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(KeyRecord).decode


def store_key(record: KeyRecord) -> Statement:
    """Writes the key, in the place of an earlier form of it."""
    return "INSERT OR REPLACE INTO access_key (id, body) VALUES (?, ?)", (record.id, _encode(record))


def drop_key(key: str) -> tuple[Statement, Statement]:
    """Takes the key and its last use away."""
    return ("DELETE FROM access_key WHERE id = ?", (key,)), ("DELETE FROM access_key_use WHERE id = ?", (key,))


def store_uses(connection: sqlite3.Connection, uses: dict[str, int]) -> None:
    """Notes when keys were used last, in microseconds."""
    connection.executemany("INSERT OR REPLACE INTO access_key_use (id, used_us) VALUES (?, ?)", uses.items())


def read_keys(connection: sqlite3.Connection) -> tuple[list[KeyRecord], dict[str, int]]:
    """All stored keys, and when each was used last."""
    records = [_decode(body) for (body,) in connection.execute("SELECT body FROM access_key ORDER BY id")]
    return records, dict(connection.execute("SELECT id, used_us FROM access_key_use"))


def read_key(connection: sqlite3.Connection, id: str) -> KeyRecord | None:
    """A stored key."""
    row = connection.execute("SELECT body FROM access_key WHERE id = ?", (id,)).fetchone()
    return None if row is None else _decode(row[0])


def store_owner(stream: str, owner: str) -> Statement:
    """Whose stream it is."""
    return "INSERT OR REPLACE INTO stream_owner (name, owner) VALUES (?, ?)", (stream, owner)


def drop_owner(stream: str) -> Statement:
    """The stream is nobody's any more."""
    return "DELETE FROM stream_owner WHERE name = ?", (stream,)


def read_owners(connection: sqlite3.Connection) -> dict[str, str]:
    """Owners by stream."""
    return dict(connection.execute("SELECT name, owner FROM stream_owner"))
