"""A log in memory with the interface that delivery reads, for tests that need restores, damage or odd pages."""

import base64
import json
from collections.abc import Sequence
from typing import Any

import trio

from overlayd.delivery.delivery import Delivery, LeaseFilter
from overlayd.delivery.frames import packet_body
from overlayd.delivery.query import LiveQuery, parse_arguments
from overlayd.delivery.settings import DeliverySettings
from overlayd.model.bodies import StatusBody, encode_removal_body, encode_status_body
from overlayd.model.cursor import Cursor, Epoch, make_epoch
from overlayd.model.definition import ConfirmRule, Definition
from overlayd.model.entry import (
    Z32,
    Kind,
    StoredEntry,
    content_hash_of,
    encode_header,
    entry_of_row,
    leaf_hash,
    seal_of,
    stream_hash_of,
)
from overlayd.model.errors import DamagedEntry, UnknownPacket
from overlayd.model.limits import Limits
from overlayd.model.merkle import consistency_nodes, hash_spans, root_of
from overlayd.model.meta import Meta, encode_meta
from overlayd.model.metrics import Metrics
from overlayd.pipeline.filters import FilterBook
from overlayd.storage import Checkpoint, Page, Stream
from overlayd.storage.streams import StreamHead

EPOCH = make_epoch(1, b"\x01\x02\x03\x04\x05")
START_US = 1_700_000_000_000_000


class FakeLog:
    """Entries in a list. What appends here is synchronous and moves the head at once."""

    def __init__(self, *, epoch: Epoch = EPOCH, page_entries: int = 200) -> None:
        self.epoch = epoch
        self.ancestry: list[tuple[Epoch, int]] = []
        self.minimum_index = 0
        self.log_id = "fakelog"
        self.origin = "overlayd/fakelog/1abc"
        self.vkey = "vkey"
        self.started_us = START_US
        self.streams_generation = 0
        self.pages_read = 0
        self._page_entries = page_entries
        self._entries: list[StoredEntry] = []
        self._streams: dict[str, Stream] = {}
        self._by_hash: dict[bytes, Stream] = {}
        self._damaged: set[int] = set()
        self._causes: dict[int, str] = {}
        self._waiting = trio.lowlevel.ParkingLot()

    @property
    def head(self) -> int:
        return len(self._entries)

    # What tests do to it

    def define(self, name: str, *, commit: str = "none", depths: Sequence[int] = (1,)) -> Stream:
        """The stream of the name, made if it isn't there."""
        if name in self._streams:
            return self._streams[name]
        ssalt = bytes([len(self._by_hash)]) * 16
        stream = Stream(
            id=len(self._by_hash), name=name, stream_hash=stream_hash_of(ssalt, name), ssalt=ssalt,
            definition=Definition(confirm=ConfirmRule(commit=commit, depths=tuple(depths))),  # type: ignore[arg-type]
            definition_version=1, state="active", owner="api", created_us=START_US,
        )  # fmt: skip
        self._streams[name] = self._by_hash[stream.stream_hash] = stream
        self.streams_generation += 1
        return stream

    def add(
        self, name: str, data: Any = None, *, body: bytes | None = None, commitment: bytes = Z32, **meta: Any
    ) -> StoredEntry:
        """Appends one packet."""
        stream = self.define(name)
        sent = json.dumps(data, separators=(",", ":")).encode() if body is None else body
        head = stream.head
        stream.adopt(StreamHead(sequence=head.sequence + 1, oldest_sequence=1, packets=head.packets + 1))
        return self._append(
            Kind.PACKET, sent, stream_hash=stream.stream_hash, sequence=head.sequence + 1,
            meta=encode_meta(Meta(definition_version=1, **meta)), commitment=commitment,
        )  # fmt: skip

    def add_status(self, low: int, high: int, state: str, *, stream: str | None = None, **body: Any) -> StoredEntry:
        """Appends a status entry about a run of offsets."""
        stream_hash = Z32 if stream is None else self._streams[stream].stream_hash
        text = encode_status_body(StatusBody(state=state, **body))  # type: ignore[arg-type]
        return self._append(Kind.STATUS, text, stream_hash=stream_hash, target=(low, high))

    def add_other(self, count: int = 1) -> None:
        """Appends entries that nobody gets."""
        for _ in range(count):
            self._append(Kind.NODE, b'{"type":"boot","version":"test"}')

    def remove(self, name: str, low: int, high: int, cause: str) -> StoredEntry:
        """Reduces the stream's packets in a run of offsets and appends the removal."""
        stream = self._streams[name]
        count = self.count_kept(name, low, high)
        for entry in self._entries[low - 1 : high]:
            if self._is_kept(entry, stream):
                reduced = entry_of_row(entry.raw, entry.leaf, b"", b"", b"", b"", b"", b"", True)
                self._entries[entry.offset - 1] = reduced
                self._causes[entry.offset] = cause
        body = encode_removal_body(cause, count)  # type: ignore[arg-type]
        return self._append(Kind.REMOVAL, body, stream_hash=stream.stream_hash, target=(low, high))

    def count_kept(self, name: str, low: int, high: int) -> int:
        """The stream's packets in a run of offsets that are still there."""
        stream = self._streams[name]
        return sum(self._is_kept(entry, stream) for entry in self._entries[low - 1 : high])

    def _is_kept(self, entry: StoredEntry, stream: Stream) -> bool:
        return entry.kind == Kind.PACKET and entry.stream_hash == stream.stream_hash and not entry.is_reduced

    def delete(self, name: str) -> StoredEntry:
        """Deletes a stream: everything of it reduced, the name free."""
        stream = self._streams[name]
        offsets = [entry.offset for entry in self._entries if entry.stream_hash == stream.stream_hash]
        removal = self.remove(name, offsets[0], offsets[-1], "deleted")
        del self._streams[name]
        stream.is_deleted = True
        return removal

    def damage(self, *offsets: int) -> None:
        """Makes entries unreadable."""
        self._damaged |= set(offsets)

    def cursor(self, offset: int, index: int | None = None) -> str:
        return str(Cursor(self.epoch, offset, index))

    def _append(
        self, kind: int, body: bytes, *, stream_hash: bytes = Z32, sequence: int = 0, meta: bytes = b"",
        target: tuple[int, int] = (0, 0), commitment: bytes = Z32,
    ) -> StoredEntry:  # fmt: skip
        offset = self.head + 1
        salt, content_hash = bytes(16), content_hash_of(body)
        seal = seal_of(salt, commitment, content_hash, body, meta)
        raw = encode_header(
            kind, self.epoch, offset, START_US + offset * 1000, stream_hash, sequence, Z32, target[0], target[1], seal
        )
        entry = entry_of_row(raw, leaf_hash(raw), salt, commitment, content_hash, meta, body)
        self._entries.append(entry)
        self._waiting.unpark_all()
        return entry

    # What delivery does with it

    def find_stream(self, name: str) -> Stream | None:
        return self._streams.get(name)

    def find_stream_by_hash(self, stream_hash: bytes) -> Stream | None:
        return self._by_hash.get(stream_hash)

    def list_streams(self) -> list[Stream]:
        return list(self._streams.values())

    async def wait_beyond(self, offset: int) -> None:
        if self.head > offset:
            await trio.lowlevel.checkpoint()
        while self.head <= offset:
            await self._waiting.park()

    async def read_page(self, after: int, *, limit: int | None = None) -> Page:
        await trio.lowlevel.checkpoint()
        self.pages_read += 1
        assert after >= self.minimum_index
        last = min(self.head, after + (limit or self._page_entries))
        entries, damaged = [], []
        for offset in range(after + 1, last + 1):
            if offset not in self._damaged:
                entries.append(self._entries[offset - 1])
            elif damaged and damaged[-1][1] == offset - 1:
                damaged[-1] = (damaged[-1][0], offset)
            else:
                damaged.append((offset, offset))
        return Page(entries, max(after, last), damaged)

    async def read_entry(self, offset: int) -> StoredEntry:
        await trio.lowlevel.checkpoint()
        if not 1 <= offset <= self.head:
            raise UnknownPacket("no such entry")
        if offset in self._damaged:
            raise DamagedEntry("damaged")
        return self._entries[offset - 1]

    async def find_last(self, stream: Stream, key: str | None = None) -> StoredEntry | None:
        await trio.lowlevel.checkpoint()
        wanted = b"" if key is None else b"\x05" + len(key).to_bytes(4, "big") + key.encode()
        for entry in reversed(self._entries):
            if self._is_kept(entry, stream) and wanted in entry.meta:
                return entry
        return None

    async def find_offset_at(self, time_us: int) -> int:
        await trio.lowlevel.checkpoint()
        return next((entry.offset for entry in self._entries if entry.appended_us >= time_us), self.head + 1)

    async def checkpoint(self, min_size: int = 0) -> Checkpoint:
        size = self.head
        return Checkpoint(epoch=self.epoch, size=size, root=await self.root_at(size), note="note")

    async def root_at(self, size: int) -> bytes:
        await trio.lowlevel.checkpoint()
        return root_of([entry.leaf for entry in self._entries[:size]])

    async def consistency_path(self, old: int, new: int) -> list[bytes]:
        await trio.lowlevel.checkpoint()
        leaves = [entry.leaf for entry in self._entries]
        return hash_spans(
            consistency_nodes(old, new), lambda node: root_of(leaves[node[1] << node[0] : (node[1] + 1) << node[0]])
        )

    def removal_cause(self, entry: StoredEntry) -> str:
        return self._causes.get(entry.offset, "retention")


def octets(value: bytes) -> bytes:
    """The stored body of octets."""
    return json.dumps(base64.b64encode(value).decode()).encode()


class FixedClock:
    """Wall time that tests move."""

    def __init__(self) -> None:
        self.time_us = START_US + 3_600_000_000

    def now_us(self) -> int:
        return self.time_us


def make_delivery(
    log: Any, *, limits: Limits | None = None, lease: LeaseFilter | None = None, **settings: Any
) -> Delivery:
    """The shared parts over a log."""
    limits, metrics = limits or Limits(), Metrics()
    if lease is None:
        lease = FilterBook(limits=limits, metrics=metrics, describe=packet_body).lease
    return Delivery(
        log=log, limits=limits, settings=DeliverySettings(**settings), clock=FixedClock(), metrics=metrics,
        lease_filter=lease,
    )  # fmt: skip


def query_of(**arguments: Any) -> LiveQuery:
    """A query from URL arguments; lists repeat."""
    pairs = [(name, v) for name, value in arguments.items() for v in (value if isinstance(value, list) else [value])]
    return parse_arguments(pairs, Limits(), heartbeat_s=15.0)
