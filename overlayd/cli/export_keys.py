"""The list of a log's keys, from its database, for an evidence export. Blocking."""

import sqlite3
from collections.abc import Sequence
from itertools import pairwise

from overlayd.model.cursor import Epoch
from overlayd.model.entry import StoredEntry
from overlayd.model.key_chain import LogKeyBody, LogKeysBody
from overlayd.model.note import CheckpointText, VerifierKey, log_id_of, origin_of, parse_origin
from overlayd.model.proof import Proof, build_proof
from overlayd.storage import queries
from overlayd.storage.epochs import EpochRow, ancestry_of
from overlayd.storage.log_keys import KeyRow, read_key_rows
from overlayd.storage.nodes import read_inclusion_path

_ROW_BYTES = 1 << 20


def read_key_list(connection: sqlite3.Connection, epochs: Sequence[EpochRow]) -> LogKeysBody | None:
    """The keys that counted, each with what introduced it; None where there was one only, or what introduced one was cut.

    Raises DamagedEntry.
    """
    rows = [row for row in read_key_rows(connection) if row.from_size is not None]
    if len(rows) < 2:
        return None
    log = log_id_of(rows[0].public_key)
    origin = origin_of(log, epochs[-1].epoch)
    until = {old.number: new.from_size for old, new in pairwise(rows)}
    keys = []
    for row in rows:
        introduced = _prove(connection, epochs, row) if row.checkpoint else None
        if row.checkpoint and introduced is None:
            return None
        keys.append(
            LogKeyBody(
                key=str(VerifierKey(origin, row.public_key)), state="retired" if row.number in until else "current",
                from_size=row.from_size, to_size=until.get(row.number), introduced=introduced,
            )
        )  # fmt: skip
    return LogKeysBody(log=log, origin=origin, keys=tuple(keys))


def _prove(connection: sqlite3.Connection, epochs: Sequence[EpochRow], row: KeyRow) -> Proof | None:
    text = CheckpointText.parse(row.checkpoint.partition("\n\n")[0] + "\n")
    entry = _read_entry(connection, row.offset)
    if entry is None:
        return None
    signed_in = parse_origin(text.origin)[1]
    restores = []
    for epoch, common in reversed(ancestry_of(list(epochs))):
        if Epoch(entry.epoch) <= epoch < signed_in:
            restore = _read_entry(connection, common + 1)
            if restore is None:
                return None
            restores.append((restore, read_inclusion_path(connection, common, text.size)))
    path = read_inclusion_path(connection, row.offset - 1, text.size)
    return build_proof(entry, stream="", ssalt=b"", path=path, checkpoint=row.checkpoint, restores=restores)


def _read_entry(connection: sqlite3.Connection, offset: int) -> StoredEntry | None:
    page = queries.open_page(queries.read_page_blob(connection, offset - 1, offset, 1, _ROW_BYTES), offset - 1, offset)
    return page.entries[0] if page is not None and page.entries else None
