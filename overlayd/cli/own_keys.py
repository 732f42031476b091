"""The keys of a log on this machine, from its directory. Blocking."""

import sqlite3
from collections.abc import Sequence
from pathlib import Path

import msgspec

from overlayd.model.errors import VerificationFailed
from overlayd.model.key_chain import open_key_note
from overlayd.model.note import VerifierKey, log_id_of
from overlayd.model.proof import KeySpan, SignedTree, TrustedKeys, verify_checkpoint
from overlayd.storage import files
from overlayd.storage.key_files import FIRST_NAME, SEED_BYTES, SeedKey
from overlayd.storage.log_keys import KeyRow, read_key_rows

_ANY_EPOCH = "1aaaaaaaa"
"""Verifiers know a key by its log; only the name in it changes with the epoch."""


class OwnKeys(msgspec.Struct, frozen=True):
    """A log's keys as its database lists them, checked step by step. `takeovers`: the checkpoints that two keys signed."""

    trusted: TrustedKeys
    rows: tuple[KeyRow, ...]
    takeovers: tuple[SignedTree, ...]


def read_own_keys(connection: sqlite3.Connection, directory: Path) -> OwnKeys:
    """Believes the key files of the directory and, where there are none, the log's own list.

    Raises VerificationFailed when the list doesn't hold, or leads over none of the files' keys.
    """
    held = _held_keys(directory)
    try:
        rows = read_key_rows(connection)
    except sqlite3.OperationalError:  # a database that no start has brought up to date
        rows = []
    if not rows and not held:
        raise VerificationFailed("there is no key of the log here", subject=FIRST_NAME, hint="give --log-key")
    first = rows[0].public_key if rows else held[0]
    name = f"overlayd/{log_id_of(first)}/{_ANY_EPOCH}"
    keys, spans, takeovers = [VerifierKey(name, first)], [KeySpan(first)], []
    for row in rows[1:]:
        note = open_key_note(row.note)
        if row.from_size is None:
            continue
        old, new = keys[-1], VerifierKey(name, row.public_key)
        if (note.old.public_key, note.new.public_key) != (old.public_key, new.public_key):
            raise VerificationFailed(f"the note at offset {row.offset} is about other keys", subject="key")
        verify_checkpoint(row.checkpoint, TrustedKeys((old,)))
        tree = verify_checkpoint(row.checkpoint, TrustedKeys((new,)))
        if tree.checkpoint.size != row.from_size or row.from_size < row.offset:
            raise VerificationFailed(f"the key of offset {row.offset} took over at another size", subject="key")
        takeovers.append(tree)
        spans[-1] = KeySpan(old.public_key, spans[-1].from_size, row.from_size)
        keys.append(new)
        spans.append(KeySpan(new.public_key, row.from_size))
    if held and not any(key.public_key in held for key in keys):
        raise VerificationFailed("none of the key files here is a key of this log", subject=FIRST_NAME)
    trusted = TrustedKeys(tuple(keys), log_id=log_id_of(first), spans=tuple(spans))
    return OwnKeys(trusted, tuple(rows), tuple(takeovers))


def _held_keys(directory: Path) -> Sequence[bytes]:
    place = directory / "keys"
    paths = [place / FIRST_NAME, *sorted(place.glob("log-*.ed25519"))]
    try:
        return [SeedKey(files.read_file(path)).public_key for path in paths if path.exists()]
    except OSError as error:
        raise VerificationFailed(f"{error.filename}: {error.strerror}", subject=str(place)) from error
    except ValueError as error:
        raise VerificationFailed(
            f"a key file in {place} doesn't hold {SEED_BYTES} bytes", subject=str(place)
        ) from error
