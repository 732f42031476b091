"""Streams as the node knows them: one object per stream for its whole life, changed only by the writer."""

from typing import Literal

import msgspec

from overlayd.model.definition import Definition
from overlayd.model.draft import StreamStateName
from overlayd.model.entry import Z32

Owner = Literal["api", "config"]


class StreamHead(msgspec.Struct, gc=False):
    """Where a stream stands. What a group does to it becomes the stream's own after the commit.

    `as_of`: entries up to that offset are counted in the stored row (a start adds those above); memory doesn't keep it.
    """

    sequence: int = 0
    leaf: bytes = Z32
    oldest_sequence: int = 0
    packets: int = 0
    bytes: int = 0
    last_packet_us: int = 0
    as_of: int = 0
    minute: int = 0
    minute_packets: int = 0


class Stream:
    """A stream. Owned by storage, read-only for everybody else.

    `head_sequence` and `oldest_sequence` are 0 while there is no packet; `packets` and `bytes` count what is kept.
    A deleted stream keeps its object (`is_deleted`), so that what was taken away can still be told apart, but its
    name is free for another one.
    """

    __slots__ = (
        "_head", "created_us", "definition", "definition_topics", "definition_version", "id", "is_deleted", "name",
        "owner", "ssalt", "state", "stream_hash",
    )  # fmt: skip

    def __init__(
        self, *, id: int, name: str, stream_hash: bytes, ssalt: bytes, definition: Definition,
        definition_version: int, state: StreamStateName, owner: Owner, created_us: int, is_deleted: bool = False,
    ) -> None:  # fmt: skip
        self.id = id
        self.name = name
        self.stream_hash = stream_hash
        self.ssalt = ssalt
        self.state: StreamStateName = state
        self.owner: Owner = owner
        self.created_us = created_us
        self.is_deleted = is_deleted
        self._head = StreamHead()
        self.define(definition, definition_version)

    def define(self, definition: Definition, version: int) -> None:
        """For the writer: the definition that counts from now on."""
        self.definition = definition
        self.definition_version = version
        self.definition_topics = msgspec.json.encode(definition.topics) if definition.topics else b""

    def adopt(self, head: StreamHead) -> None:
        """For the writer: where the stream stands from now on."""
        self._head = head

    @property
    def head(self) -> StreamHead:
        """For the writer, which copies it before it changes anything."""
        return self._head

    @property
    def head_sequence(self) -> int:
        return self._head.sequence

    @property
    def oldest_sequence(self) -> int:
        return self._head.oldest_sequence

    @property
    def packets(self) -> int:
        return self._head.packets

    @property
    def bytes(self) -> int:
        return self._head.bytes

    @property
    def last_packet_us(self) -> int:
        return self._head.last_packet_us

    def __repr__(self) -> str:
        return f"Stream({self.name!r}, version={self.definition_version}, head_sequence={self.head_sequence})"


class StreamBook:
    """All streams by name, hash and row key. `generation` grows whenever one comes, goes or is defined anew."""

    def __init__(self) -> None:
        self._by_name: dict[str, Stream] = {}
        self._by_hash: dict[bytes, Stream] = {}
        self.generation = 0
        self.next_id = 1

    def add(self, stream: Stream) -> None:
        """For the writer and for start-up."""
        if not stream.is_deleted:
            assert stream.name not in self._by_name
            self._by_name[stream.name] = stream
        self._by_hash[stream.stream_hash] = stream
        self.next_id = max(self.next_id, stream.id + 1)
        self.generation += 1

    def free_name(self, stream: Stream) -> None:
        """For the writer: the stream is deleted; another one may take its name."""
        del self._by_name[stream.name]
        stream.is_deleted = True
        self.generation += 1

    def find(self, name: str) -> Stream | None:
        return self._by_name.get(name)

    def find_by_hash(self, stream_hash: bytes) -> Stream | None:
        return self._by_hash.get(stream_hash)

    def list_active(self) -> list[Stream]:
        """Those that aren't deleted, by name."""
        return [self._by_name[name] for name in sorted(self._by_name)]

    def list_all(self) -> list[Stream]:
        """Deleted ones too, in the order of their creation."""
        return sorted(self._by_hash.values(), key=lambda stream: stream.id)

    def __len__(self) -> int:
        return len(self._by_name)
