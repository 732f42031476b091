"""What judging a group needs to know beforehand: hashes of names, and what the disk has stored under them."""

import sqlite3

import msgspec

from overlayd.model.draft import AppendRequest, Draft
from overlayd.model.entry import Z32, StoredEntry, commitment_of, verify_entry
from overlayd.model.errors import VerificationFailed
from overlayd.storage.group import LogState, Prepared, PreparedDraft, id_key
from overlayd.storage.pace import Pace
from overlayd.storage.queries import read_many_rows
from overlayd.storage.record import decode_row, reduce_entry
from overlayd.storage.streams import Stream


class Wanted(msgspec.Struct):
    """Hashes that the filters couldn't rule out, and offsets of entries that aren't in memory."""

    ids: list[int] = []
    commitments: list[int] = []
    offsets: set[int] = set()

    def __bool__(self) -> bool:
        return bool(self.ids or self.commitments or self.offsets)


class Lookups(msgspec.Struct):
    """What the disk said: offsets by hash of an id or commitment, entries by offset."""

    ids: dict[int, list[int]] = {}
    commitments: dict[int, list[int]] = {}
    entries: dict[int, StoredEntry] = {}


async def prepare(state: LogState, request: AppendRequest, stream: Stream | None, pace: Pace) -> Prepared:
    """Hashes the names in a request. Without a stream its ids wait until there is one."""
    drafts = []
    for draft in request.drafts:
        key = id_key(state.ids, stream.stream_hash, draft.id) if draft.id and stream is not None else 0
        commitment = draft_commitment(request.stream, draft) if draft.csalt else Z32
        drafts.append(PreparedDraft(draft, key, commitment, state.commitments.key(commitment) if draft.csalt else 0))
        await pace.spend(0.5)
    return Prepared(stream, drafts)


def note_wanted(state: LogState, prepared: Prepared, wanted: Wanted) -> None:
    """Adds what memory can't answer, which is rare."""
    for item in prepared.drafts:
        if item.id_key:
            wanted.offsets.update(at for at in state.ids.recent(item.id_key) if state.tail.find(at) is None)
            if state.ids.maybe_stored(item.id_key):
                wanted.ids.append(item.id_key)
        if item.commitment_key and state.commitments.maybe_stored(item.commitment_key):
            wanted.commitments.append(item.commitment_key)


def read_wanted(connection: sqlite3.Connection, state: LogState, wanted: Wanted) -> Lookups:
    """For the writer's thread."""
    ids = state.ids.read_stored(connection, wanted.ids) if wanted.ids else {}
    commitments = state.commitments.read_stored(connection, wanted.commitments) if wanted.commitments else {}
    offsets = sorted(wanted.offsets.union(*ids.values()))
    entries = {}
    for offset, raw, leaf, sealed in read_many_rows(connection, offsets) if offsets else ():
        try:
            entries[offset] = decode_row(raw, leaf, sealed)
            verify_entry(entries[offset], None)
        except VerificationFailed:  # a damaged row still has its E; a repeat of it counts as one, uncompared
            entries[offset] = reduce_entry(decode_row(raw, leaf, None))
    return Lookups(ids, commitments, entries)


def draft_commitment(stream: str, draft: Draft) -> bytes:
    """The producer's commitment, over what it sent."""
    return commitment_of(
        draft.csalt, stream, draft.id, draft.type, draft.time, draft.source, draft.key_sent, draft.topics,
        draft.metadata, draft.sent,
    )  # fmt: skip
