"""What judging a group needs from the disk: stored ids and commitments that may match, and the entries they name."""

import sqlite3

import msgspec

from overlayd.model.draft import AppendRequest
from overlayd.model.entry import StoredEntry
from overlayd.storage.group import LogState, draft_commitment, id_key
from overlayd.storage.judge import Lookups
from overlayd.storage.queries import open_many, read_many_blob


class Wanted(msgspec.Struct):
    """Hashes that the filters couldn't rule out, and offsets of entries that aren't in memory."""

    ids: list[int]
    commitments: list[int]
    offsets: set[int]


def find_wanted(state: LogState, requests: list[AppendRequest]) -> Wanted | None:
    """None when memory answers everything, which is the rule."""
    wanted = Wanted([], [], set())
    for request in requests:
        stream = state.book.find(request.stream)
        for draft in request.drafts:
            if draft.id and stream is not None:
                key = id_key(state.ids, stream.stream_hash, draft.id)
                wanted.offsets.update(at for at in state.ids.recent(key) if state.tail.find(at) is None)
                if state.ids.maybe_stored(key):
                    wanted.ids.append(key)
            if draft.csalt:
                key = state.commitments.key(draft_commitment(request.stream, draft))
                if state.commitments.maybe_stored(key):
                    wanted.commitments.append(key)
    return wanted if wanted.ids or wanted.commitments or wanted.offsets else None


def read_wanted(connection: sqlite3.Connection, state: LogState, wanted: Wanted) -> Lookups:
    """For the writer's thread. Entries that don't verify raise sqlite3.DatabaseError's cousin: VerificationFailed."""
    ids = state.ids.read_stored(connection, wanted.ids) if wanted.ids else {}
    commitments = state.commitments.read_stored(connection, wanted.commitments) if wanted.commitments else {}
    offsets = wanted.offsets | {at for found in ids.values() for at in found}
    entries: list[StoredEntry] = []
    if offsets:
        entries = open_many(read_many_blob(connection, sorted(offsets)))
    return Lookups(ids, commitments, {entry.offset: entry for entry in entries})
