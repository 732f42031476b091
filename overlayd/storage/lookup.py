"""What judging a group needs to know beforehand: hashes of names, and what the disk has stored under them."""

import sqlite3
from collections.abc import Sequence

import msgspec

from overlayd.model.draft import AppendRequest, Draft
from overlayd.model.entry import Z32, StoredEntry, commitment_of
from overlayd.storage.group import LogState, Prepared, PreparedDraft, id_key
from overlayd.storage.pace import PACKETS_PER_SLICE, Pace, slices_of
from overlayd.storage.queries import read_stubs
from overlayd.storage.streams import Stream

IDS_PER_SLICE = 512
"""Ids looked for in one go: about 1 ms with ten million stored."""


class Wanted(msgspec.Struct):
    """Hashes that the filters couldn't rule out, and offsets of entries that aren't in memory."""

    ids: list[int] = []
    commitments: list[int] = []
    offsets: set[int] = set()

    def __bool__(self) -> bool:
        return bool(self.ids or self.commitments or self.offsets)


class Lookups(msgspec.Struct):
    """What the disk said: offsets by hash of an id or commitment, entries by offset (without their bodies)."""

    ids: dict[int, list[int]] = {}
    commitments: dict[int, list[int]] = {}
    entries: dict[int, StoredEntry] = {}


async def prepare(state: LogState, request: AppendRequest, stream: Stream | None, pace: Pace) -> Prepared:
    """Hashes the names in a request. Without a stream its ids wait until there is one."""
    drafts: list[PreparedDraft] = []
    for part in slices_of(request.drafts, PACKETS_PER_SLICE):
        keys = [0] * len(part)
        if stream is not None:
            keys = state.ids.names.id_keys([draft.id.encode() for draft in part], stream.stream_hash)
        for draft, key in zip(part, keys, strict=True):
            commitment = draft_commitment(request.stream, draft) if draft.csalt else Z32
            hashed = state.commitments.key(commitment) if draft.csalt else 0
            drafts.append(PreparedDraft(draft, key, commitment, hashed))
        await pace.spend(len(part) / 4)
    return Prepared(stream, drafts)


def prepare_single(state: LogState, request: AppendRequest, stream: Stream | None) -> Prepared:
    """The same for a request of a single draft, at once."""
    draft = request.drafts[0]
    key = id_key(state.ids, stream.stream_hash, draft.id) if draft.id and stream is not None else 0
    if not draft.csalt:
        return Prepared(stream, [PreparedDraft(draft, key, Z32, 0)])
    commitment = draft_commitment(request.stream, draft)
    return Prepared(stream, [PreparedDraft(draft, key, commitment, state.commitments.key(commitment))])


async def find_wanted(state: LogState, requests: Sequence[Prepared], pace: Pace) -> Wanted:
    """What memory can't answer, which is rare. Asked for a whole group: one id at a time takes four times as long."""
    wanted = Wanted()
    items = [item for prepared in requests for item in prepared.drafts]
    for part in slices_of([item.id_key for item in items if item.id_key], IDS_PER_SLICE):
        for key in state.ids.find_known(part):
            wanted.offsets.update(at for at in state.ids.recent(key) if state.tail.find(at) is None)
            if state.ids.maybe_stored(key):
                wanted.ids.append(key)
        await pace.spend(len(part) / 8)
    for item in items:
        if item.commitment_key and state.commitments.maybe_stored(item.commitment_key):
            wanted.commitments.append(item.commitment_key)
    return wanted


def read_wanted(connection: sqlite3.Connection, state: LogState, wanted: Wanted) -> Lookups:
    """For the writer's thread. Entries come without their bodies: a repeat is told by its fingerprint."""
    ids = state.ids.read_stored(connection, wanted.ids) if wanted.ids else {}
    commitments = state.commitments.read_stored(connection, wanted.commitments) if wanted.commitments else {}
    offsets = sorted(wanted.offsets.union(*ids.values()))
    stubs = read_stubs(connection, offsets) if offsets else []
    return Lookups(ids, commitments, {stub.offset: stub for stub in stubs})


def draft_commitment(stream: str, draft: Draft) -> bytes:
    """The producer's commitment, over what it sent."""
    return commitment_of(
        draft.csalt, stream, draft.id, draft.type, draft.time, draft.source_sent, draft.key_sent, draft.topics,
        draft.metadata_sent, draft.sent,
    )  # fmt: skip
