"""What one commit will change. Nothing of it counts before the COMMIT came back; then `adopt` makes it so."""

import base64
import sqlite3
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import msgspec

from overlayd.model.bodies import (
    DefinitionChange,
    NodeBody,
    StatusEntry,
    encode_node_body,
    encode_removal_body,
    encode_status_body,
)
from overlayd.model.clock import Entropy
from overlayd.model.confirmation import Confirmations, NewPacket
from overlayd.model.cursor import Epoch, epoch_counter
from overlayd.model.definition import Definition, encode_definition
from overlayd.model.draft import Draft, StreamStateName
from overlayd.model.entry import (
    SALT_BYTES,
    Z32,
    Kind,
    StoredEntry,
    commitment_of,
    content_hash_of,
    encode_header,
    leaf_hash,
    seal_of,
    stream_hash_of,
)
from overlayd.model.limits import Limits
from overlayd.model.meta import (
    COMMITMENT_CLOSED,
    COMMITMENT_NODE,
    COMMITMENT_NONE,
    COMMITMENT_OPEN,
    Meta,
    encode_meta,
)
from overlayd.model.metrics import Metrics
from overlayd.model.usage import GroupMeter, GroupWriting
from overlayd.storage import links
from overlayd.storage.fingerprint import fingerprint_of
from overlayd.storage.hashindex import HashIndex
from overlayd.storage.hold_book import HoldBook
from overlayd.storage.pace import PACKETS_PER_SLICE, Pace, slices_of
from overlayd.storage.packet_meta import meta_of
from overlayd.storage.positions import Positions
from overlayd.storage.record import encode_sealed, reduce_entry
from overlayd.storage.removals import Removal, Removals
from overlayd.storage.streams import Owner, Stream, StreamBook, StreamHead
from overlayd.storage.tail import Head, Tail
from overlayd.storage.tree import Tree, TreePlan

SEQUENCE_BITS = 40
"""In epoch c the sequences of a stream lie above (c - 1) * 2^40, so that none is ever used twice."""

MINUTE_US = 60_000_000
"""Rates are counted in minutes of the wall clock."""


class LogState:
    """Everything about the log that lives in memory. The writer alone changes it, between two awaits."""

    def __init__(
        self, *, epoch: Epoch, ancestry: list[tuple[Epoch, int]], limits: Limits, defaults: Definition, entropy: Entropy, metrics: Metrics,
        ids: HashIndex, commitments: HashIndex, keys: HashIndex, positions: Positions, tree: Tree,
    ) -> None:  # fmt: skip
        self.epoch = epoch
        self.ancestry = ancestry
        self.limits = limits
        self.defaults = defaults
        self.entropy = entropy
        self.metrics = metrics
        self.ids = ids
        self.commitments = commitments
        self.keys = keys
        self.positions = positions
        self.tree = tree
        self.head = Head()
        self.last_us = 0
        self.indexed = 0
        self.minimum_index = 0
        self.tail = Tail(limits.tail_bytes)
        self.book = StreamBook()
        self.removals = Removals()
        self.holds = HoldBook()
        self.creation_minute = 0
        self.creations = 0
        self.changed: set[Stream] = set()
        self.meter: GroupMeter | None = None
        self.confirmations: Confirmations | None = None

    @property
    def indexes(self) -> tuple[HashIndex, HashIndex, HashIndex, Positions]:
        """What follows the writer's transactions with `adopt` and `roll_back`."""
        return self.ids, self.commitments, self.keys, self.positions

    @property
    def sequence_base(self) -> int:
        return (epoch_counter(self.epoch) - 1) << SEQUENCE_BITS


class PreparedDraft(msgspec.Struct, gc=False):
    """A draft with the hashes that judging and storing it need. 0 and Z32 where it has no id or salt."""

    draft: Draft
    id_key: int
    commitment: bytes
    commitment_key: int


class Prepared(msgspec.Struct):
    """A request's drafts, prepared for a stream as it was found; None for one that doesn't exist yet."""

    stream: Stream | None
    drafts: list[PreparedDraft]


class PendingStream(msgspec.Struct, eq=False):
    """A stream as the group will leave it. A struct, because with many streams there is one for nearly each packet."""

    stream: Stream
    head: StreamHead
    definition: Definition
    version: int
    topics: bytes
    state: StreamStateName
    is_new: bool = False
    is_deleted: bool = False


def pending_stream(stream: Stream, *, is_new: bool = False) -> PendingStream:
    """The stream as it stands before the group."""
    return PendingStream(
        stream, msgspec.structs.replace(stream.head), stream.definition, stream.definition_version,
        stream.definition_topics, stream.state, is_new,
    )  # fmt: skip


class Group:
    """Entries, statements and memory changes of one transaction, built request by request.

    A request is judged completely before it adds anything, so a refused one leaves no trace.
    """

    def __init__(self, state: LogState, now_us: int) -> None:
        self.state = state
        self.appended_us = max(now_us, state.last_us)
        self.entries: list[StoredEntry] = []
        self.row_values: list[Any] = []
        self.statements: list[tuple[str, tuple[Any, ...]]] = []
        self.actions: list[Callable[[sqlite3.Connection], None]] = []
        self.positions: list[tuple[int, int, int]] = []
        self.ids: dict[int, list[StoredEntry]] = {}
        self.commitments: dict[int, int] = {}
        self.keys: dict[int, int] = {}
        self.reduced: list[StoredEntry] = []
        self.removals: list[Removal] = []
        self.plan: TreePlan | None = None
        self._pending: dict[int, PendingStream] = {}
        self._names: dict[str, PendingStream | None] = {}
        self._next_id = state.book.next_id
        self._is_renamed = False
        self._stream_change = 0
        self.creations = 0
        self._metered: dict[tuple[str, str], tuple[int, int]] = {}
        self.pages_changed = 0
        self._to_confirm: list[NewPacket] = []
        self._links: list[links.Link] = []
        self._writings: list[GroupWriting] = []
        self._adoptions: list[Callable[[], None]] = []
        self._salts: list[bytes] = []
        self._salts_drawn = 0

    @property
    def head(self) -> int:
        """The newest offset, the group's own entries included."""
        return self.state.head.offset + len(self.entries)

    @property
    def is_empty(self) -> bool:
        return not (self.entries or self.statements or self.actions)

    def find(self, name: str) -> PendingStream | None:
        """The stream of that name as the group leaves it so far."""
        if name in self._names:
            return self._names[name]
        stream = self.state.book.find(name)
        return None if stream is None else self.touch(stream)

    def touch(self, stream: Stream) -> PendingStream:
        """The stream as the group leaves it so far."""
        pending = self._pending.get(stream.id)
        if pending is None:
            pending = self._pending[stream.id] = pending_stream(stream)
        return pending

    def count_streams(self) -> int:
        """Streams that exist, those that the group creates included."""
        return len(self.state.book) + self._stream_change

    def list_streams(self) -> list[Stream]:
        """Every stream that there was, those that the group creates included."""
        return [*self.state.book.list_all(), *(one.stream for one in self._pending.values() if one.is_new)]

    def head_of(self, stream: Stream) -> StreamHead:
        """Where the stream stands once the group is committed."""
        pending = self._pending.get(stream.id)
        return stream.head if pending is None else pending.head

    def find_entry(self, offset: int) -> StoredEntry | None:
        """An entry of this group."""
        at = offset - self.state.head.offset - 1
        return self.entries[at] if 0 <= at < len(self.entries) else None

    def create_stream(self, name: str, definition: Definition, owner: Owner, principal: str) -> PendingStream:
        """A new stream and its definition entry."""
        ssalt = self.state.entropy.draw(SALT_BYTES)
        stream = Stream(
            id=self._next_id, name=name, stream_hash=stream_hash_of(ssalt, name), ssalt=ssalt, definition=definition,
            definition_version=1, state="active", owner=owner, created_us=self.appended_us,
        )  # fmt: skip
        self._next_id += 1
        self._stream_change += 1
        pending = pending_stream(stream, is_new=True)
        self._pending[stream.id] = self._names[name] = pending
        offset = self._add_definition(pending, principal)
        encoded = encode_definition(definition)
        self.statements += (
            (
                "INSERT INTO stream (id, name, stream_hash, ssalt, state, owner, created_us, version, definition)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (stream.id, name, stream.stream_hash, ssalt, "active", owner, self.appended_us, 1, encoded),
            ),
            ("INSERT INTO definition (stream_id, version, offset) VALUES (?, 1, ?)", (stream.id, offset)),
        )
        self._is_renamed = True
        return pending

    def redefine(self, pending: PendingStream, definition: Definition, owner: Owner, principal: str) -> None:
        """Another definition, and the entry that says so."""
        pending.definition = definition
        pending.version += 1
        pending.topics = msgspec.json.encode(definition.topics) if definition.topics else b""
        stream_id = pending.stream.id
        offset = self._add_definition(pending, principal)
        self.statements += (
            (
                "UPDATE stream SET version = ?, definition = ?, owner = ? WHERE id = ?",
                (pending.version, encode_definition(definition), owner, stream_id),
            ),
            (
                "INSERT INTO definition (stream_id, version, offset) VALUES (?, ?, ?)",
                (stream_id, pending.version, offset),
            ),
        )
        self.on_adopt(lambda: setattr(pending.stream, "owner", owner))
        self._is_renamed = True

    def set_owner(self, pending: PendingStream, owner: Owner) -> None:
        """The same definition, declared by somebody else."""
        self.statements.append(("UPDATE stream SET owner = ? WHERE id = ?", (owner, pending.stream.id)))
        self.on_adopt(lambda: setattr(pending.stream, "owner", owner))

    def set_state(self, pending: PendingStream, state: StreamStateName) -> None:
        """The stream takes packets or doesn't."""
        pending.state = state
        self.statements.append(("UPDATE stream SET state = ? WHERE id = ?", (state, pending.stream.id)))
        self._is_renamed = True

    def free_name(self, pending: PendingStream) -> None:
        """The stream is deleted and gives its name back."""
        pending.is_deleted = True
        self._stream_change -= 1
        self._names[pending.stream.name] = None
        self.statements.append(
            ("UPDATE stream SET name = NULL, former_name = ? WHERE id = ?", (pending.stream.name, pending.stream.id))
        )

    def add_packets(self, pending: PendingStream, prepared: list[PreparedDraft]) -> list[StoredEntry]:
        """Entries for drafts that were judged; they can't be refused any more."""
        salts = self.state.entropy.draw(SALT_BYTES * len(prepared))
        return [
            self._add_packet(pending, item, salts[at : at + SALT_BYTES])
            for item, at in zip(prepared, range(0, len(salts), SALT_BYTES), strict=True)
        ]

    def add_packet(self, pending: PendingStream, prepared: PreparedDraft) -> StoredEntry:
        """The entry of a single draft."""
        if not self._salts:
            # Salts are drawn for a group at once, twice as many each time: nobody knows how many more will come.
            self._salts_drawn = min(2 * self._salts_drawn, PACKETS_PER_SLICE) or 1
            drawn = self.state.entropy.draw(SALT_BYTES * self._salts_drawn)
            self._salts = [drawn[at : at + SALT_BYTES] for at in range(0, len(drawn), SALT_BYTES)]
        return self._add_packet(pending, prepared, self._salts.pop())

    def add_node(self, body: NodeBody | dict[str, Any], stream_hash: bytes = Z32, meta: bytes = b"") -> StoredEntry:
        """An entry of the node itself. Raises ValueError for a body with wrong members, before anything is added."""
        return self._add(Kind.NODE, encode_node_body(body), stream_hash, meta)

    def add_removal(self, removal: Removal, count: int) -> StoredEntry:
        """The entry that says that a run of a stream's packets was taken away, and its row."""
        body = encode_removal_body(removal.cause, count)
        entry = self._add(Kind.REMOVAL, body, removal.stream_hash, b"", removal.from_offset, removal.to_offset)
        self.statements.append(
            (
                "INSERT INTO removal (offset, stream_hash, from_offset, to_offset, cause) VALUES (?, ?, ?, ?, ?)",
                (entry.offset, removal.stream_hash, removal.from_offset, removal.to_offset, removal.cause),
            )
        )
        self.removals.append(removal)
        return entry

    def add_statuses(self, statuses: Iterable[StatusEntry], along: Callable[[sqlite3.Connection], None]) -> list[int]:
        """Entries that say what became of packets, and the rows that go with them."""
        self.actions.append(along)
        added = [
            self._add(Kind.STATUS, encode_status_body(body), stream_hash, b"", from_offset, to_offset)
            for body, stream_hash, from_offset, to_offset in statuses
        ]
        self._links += [link for entry in added for link in links.links_of(entry)]
        return [entry.offset for entry in added]

    def on_adopt(self, change: Callable[[], None]) -> None:
        """Something else in memory that counts from the COMMIT on."""
        self._adoptions.append(change)

    def count(self, principal: str, stream: str, packets: int, size: int) -> None:
        """Packets of a metered principal, counted in the transaction that they are part of."""
        earlier = self._metered.get((principal, stream), (0, 0))
        self._metered[principal, stream] = (earlier[0] + packets, earlier[1] + size)

    def seal(self) -> None:
        """Works out the tree with the group's leaves. Nothing can be added afterwards."""
        if self._metered and self.state.meter is not None:
            self._write_along(self.state.meter.begin(self.appended_us, self._metered))
        if self._to_confirm and self.state.confirmations is not None:
            self._write_along(self.state.confirmations.begin(self.appended_us, self._to_confirm))
        if self._links:
            self.actions.insert(0, partial(links.write, links=self._links))
        self.plan = self.state.tree.extend([entry.leaf for entry in self.entries])

    async def adopt_indexes(self, pace: Pace) -> None:
        """After the COMMIT: positions, ids and keys, which nobody looks at above the head. Yields now and then."""
        state = self.state
        for part in slices_of(self.positions, PACKETS_PER_SLICE):
            state.positions.add_each(part)
            await pace.spend(len(part) / 16)
        for pairs in slices_of(list(self.ids.items()), PACKETS_PER_SLICE):
            state.ids.add_each([(key, entry.offset) for key, entries in pairs for entry in entries])
            await pace.spend(len(pairs) / 16)
        for key, offset in self.keys.items():
            state.keys.add(key, offset)
        for key, offset in self.commitments.items():
            state.commitments.add(key, offset)

    def adopt(self) -> None:
        """Takes everything else into memory. Doesn't yield: other tasks see all of it or nothing."""
        state = self.state
        assert self.plan is not None
        for pending in self._pending.values():
            self._adopt_stream(pending)
        for index in state.indexes:
            index.adopt()
        for change in self._adoptions:
            change()
        for removal in self.removals:
            state.removals.add(removal)
        for entry in self.reduced:
            state.tail.replace(reduce_entry(entry))
        if self.creations:
            minute = self.appended_us // MINUTE_US
            state.creations = self.creations + (state.creations if state.creation_minute == minute else 0)
            state.creation_minute = minute
        state.last_us = self.appended_us if self.entries else state.last_us
        state.tree.adopt(self.plan)
        state.tail.extend(self.entries)
        state.head.advance(self.head if not self.entries else self.entries[-1].offset)

    def roll_back(self) -> None:
        """The transaction left no trace."""
        for index in self.state.indexes:
            index.roll_back()
        for writing in self._writings:
            writing.roll_back()

    def _write_along(self, writing: GroupWriting) -> None:
        self._writings.append(writing)
        self.actions.append(writing.write)
        self.on_adopt(writing.adopt)

    def _adopt_stream(self, pending: PendingStream) -> None:
        stream, book = pending.stream, self.state.book
        self.state.changed.add(stream)
        stream.adopt(pending.head)
        stream.state = pending.state
        if pending.version != stream.definition_version:
            stream.define(pending.definition, pending.version)
        if pending.is_new:
            book.add(stream)
        if pending.is_deleted:
            book.free_name(stream)
        elif self._is_renamed:
            book.generation += 1

    def _add_definition(self, pending: PendingStream, principal: str) -> int:
        stream = pending.stream
        body = DefinitionChange(
            stream.name, base64.b64encode(stream.ssalt).decode(), pending.version,
            msgspec.Raw(encode_definition(pending.definition)),
        )  # fmt: skip
        meta = encode_meta(Meta(principal=principal)) if principal else b""
        return self.add_node(body, stream.stream_hash, meta).offset

    def _add(
        self, kind: int, body: bytes, stream_hash: bytes, meta: bytes, target_from: int = 0, target_to: int = 0
    ) -> StoredEntry:
        salt = self.state.entropy.draw(SALT_BYTES)
        content_hash = content_hash_of(body)
        seal = seal_of(salt, Z32, content_hash, body, meta)
        offset = self.head + 1
        raw = encode_header(
            kind, self.state.epoch, offset, self.appended_us, stream_hash, 0, Z32, target_from, target_to, seal
        )
        entry = StoredEntry(
            raw, leaf_hash(raw), int(kind), self.state.epoch, offset, self.appended_us, stream_hash, 0, Z32,
            target_from, target_to, salt, Z32, content_hash, meta, body,
        )  # fmt: skip
        self.entries.append(entry)
        self.row_values += (offset, raw, entry.leaf, encode_sealed(salt, Z32, content_hash, meta, body, b""))
        return entry

    def _add_packet(self, pending: PendingStream, prepared: PreparedDraft, salt: bytes) -> StoredEntry:
        state, head, stream = self.state, pending.head, pending.stream
        draft, commitment, form, csalt = prepared.draft, prepared.commitment, COMMITMENT_NONE, b""
        if draft.csalt:
            is_open = draft.body == draft.sent and not (draft.is_key_derived or draft.is_redacted)
            form, csalt = (COMMITMENT_OPEN, draft.csalt) if is_open else (COMMITMENT_CLOSED, b"")
        elif pending.definition.confirm.commit == "packet":
            form = COMMITMENT_NODE
            commitment = commitment_of(
                salt, stream.name, draft.id, draft.type, draft.time, draft.source, draft.key, draft.topics,
                draft.metadata, draft.body,
            )  # fmt: skip
        body, brought = draft.body, draft.brought
        meta = meta_of(draft, pending.version, pending.topics, form, csalt)
        content_hash = content_hash_of(body)
        seal = seal_of(salt, commitment, content_hash, body, meta)
        offset = self.head + 1
        sequence = max(head.sequence, state.sequence_base) + 1
        raw = encode_header(
            1, state.epoch, offset, self.appended_us, stream.stream_hash, sequence, head.leaf, 0, 0, seal
        )
        leaf = leaf_hash(raw)
        fingerprint = fingerprint_of(draft, salt) if draft.id else b""
        entry = StoredEntry(
            raw, leaf, 1, state.epoch, offset, self.appended_us, stream.stream_hash, sequence, head.leaf, 0, 0,
            salt, commitment, content_hash, meta, body, fingerprint,
        )  # fmt: skip
        self.entries.append(entry)
        sealed = encode_sealed(salt, commitment, content_hash, meta, body, fingerprint)
        self.row_values += (offset, raw, leaf, sealed)
        head.sequence, head.leaf, head.last_packet_us = sequence, leaf, self.appended_us
        head.oldest_sequence = head.oldest_sequence or sequence
        head.packets += 1
        head.bytes += len(sealed)
        self.positions.append((stream.id, sequence, offset))
        if draft.id:
            self.ids.setdefault(prepared.id_key, []).append(entry)
        if draft.key:
            self.keys[state.keys.key(draft.key.encode(), stream.stream_hash)] = offset
        if draft.derived_from:
            self._links += [(source, links.MADE, offset) for source in draft.derived_from]
        if draft.csalt:
            self.commitments[prepared.commitment_key] = offset
        if pending.definition.confirm.commit != "none":
            self._to_confirm.append(
                NewPacket(offset, stream.stream_hash, sequence, commitment, pending.definition.confirm, brought)
            )
        return entry


def producers_commitment(entry: StoredEntry, meta: Meta) -> bytes:
    """The commitment that a producer brought, which its log takes once; b"" where there is none, or the node's own."""
    return entry.commitment if meta.commitment_form in (COMMITMENT_OPEN, COMMITMENT_CLOSED) else b""


def id_key(ids: HashIndex, stream_hash: bytes, packet_id: str) -> int:
    """Where a stream's packet id stands in the index: H(id) above H(stream, id), so that an id can be found alone."""
    return ids.key(packet_id.encode(), stream_hash)
