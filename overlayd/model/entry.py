"""What is hashed of an entry: the 146 bytes E, its leaf, the seal behind it (docs/log-format.md).

Integers are unsigned and big-endian, H is SHA-256, LP(x) is a u32 length and x. None of this can change
without a new log.
"""

import hashlib
import struct
from collections.abc import Iterable
from enum import IntEnum

import msgspec
from blake3 import blake3

from overlayd.model.errors import VerificationFailed
from overlayd.model.merkle import root_of

ENTRY_BYTES = 146
ENTRY_VERSION = 1
SALT_BYTES = 16
Z32 = bytes(32)
SIGNATURE_PREFIX = b"overlayd/sign/1\n"
"""What stands before the commitment in what a producer signs."""

_ENTRY = struct.Struct(">BBQQQ32sQ32sQQ32s")
_HEAD_ROW = struct.Struct(">B32sQ32s")
_SEAL_AT = 114
assert _ENTRY.size == ENTRY_BYTES

_sha256 = hashlib.sha256
_pack_entry = _ENTRY.pack
_unpack_entry = _ENTRY.unpack
_pack_length = struct.Struct(">I").pack


class Kind(IntEnum):
    """What an entry is."""

    PACKET = 1
    STATUS = 2
    CERTIFICATE = 3
    NODE = 4
    REMOVAL = 5


class EntryHeader(msgspec.Struct, frozen=True):
    """E, field by field. Times are Unix microseconds; hashes are 32 bytes.

    `stream_hash` is Z32 when the entry belongs to no stream or to several; `sequence` and `prev` (leaf of the
    stream's previous packet) are set in packets alone; `target_from` and `target_to` (offsets, inclusive) in
    status, certificate and removal entries alone.
    """

    kind: int
    epoch: int
    offset: int
    appended_us: int
    stream_hash: bytes = Z32
    sequence: int = 0
    prev: bytes = Z32
    target_from: int = 0
    target_to: int = 0
    seal: bytes = Z32

    def encode(self) -> bytes:
        """The 146 bytes. Raises struct.error for a number that isn't a u64."""
        return encode_header(
            self.kind, self.epoch, self.offset, self.appended_us, self.stream_hash,
            self.sequence, self.prev, self.target_from, self.target_to, self.seal,
        )  # fmt: skip

    @classmethod
    def decode(cls, raw: bytes) -> "EntryHeader":
        """Raises VerificationFailed for a wrong length, an unknown version or kind, or fields the kind can't have."""
        if len(raw) != ENTRY_BYTES:
            raise VerificationFailed(f"an entry has {ENTRY_BYTES} bytes, not {len(raw)}", subject="entry")
        version, *fields = _unpack_entry(raw)
        if version != ENTRY_VERSION:
            raise VerificationFailed(f"unknown entry version {version}", subject="entry")
        header = cls(*fields)
        _check_fields(header)
        return header


class StoredEntry(msgspec.Struct, gc=False):
    """One row of the log as read. Of a reduced entry only what E says is left, the rest is b""."""

    raw: bytes
    leaf: bytes
    kind: int
    epoch: int
    offset: int
    appended_us: int
    stream_hash: bytes
    sequence: int
    prev: bytes
    target_from: int
    target_to: int
    salt: bytes = b""
    commitment: bytes = b""
    content_hash: bytes = b""
    meta: bytes = b""
    body: bytes = b""
    fingerprint: bytes = b""
    is_reduced: bool = False


def encode_header(
    kind: int, epoch: int, offset: int, appended_us: int, stream_hash: bytes,
    sequence: int, prev: bytes, target_from: int, target_to: int, seal: bytes,
) -> bytes:  # fmt: skip
    """E. A plain function beside `EntryHeader.encode`, because it runs once per packet."""
    assert len(stream_hash) == len(prev) == len(seal) == 32
    return _pack_entry(
        ENTRY_VERSION, kind, epoch, offset, appended_us, stream_hash, sequence, prev, target_from, target_to, seal
    )


def entry_of_row(
    raw: bytes, leaf: bytes, salt: bytes, commitment: bytes, content_hash: bytes, meta: bytes, body: bytes,
    fingerprint: bytes = b"", is_reduced: bool = False,
) -> StoredEntry:  # fmt: skip
    """A stored row with E taken apart; nothing is verified beyond E's length. Raises VerificationFailed."""
    if len(raw) != ENTRY_BYTES:
        raise VerificationFailed(f"an entry has {ENTRY_BYTES} bytes, not {len(raw)}", subject="entry")
    _, kind, epoch, offset, appended_us, stream_hash, sequence, prev, target_from, target_to, _ = _unpack_entry(raw)
    return StoredEntry(
        raw, leaf, kind, epoch, offset, appended_us, stream_hash, sequence, prev, target_from, target_to,
        salt, commitment, content_hash, meta, body, fingerprint, is_reduced,
    )  # fmt: skip


def leaf_hash(raw: bytes) -> bytes:
    """The RFC 6962 leaf of an entry, H(0x00 ‖ E)."""
    return _sha256(b"\x00" + raw).digest()


def content_hash_of(body: bytes) -> bytes:
    """BLAKE3 of the stored body: identity, ETag, integrity."""
    return blake3(body).digest()


def seal_of(salt: bytes, commitment: bytes, content_hash: bytes, body: bytes, meta: bytes) -> bytes:
    """What E holds in place of everything that can be erased."""
    return _sha256(
        b"".join((
            b"overlayd/seal/1\n", salt, commitment, content_hash, _sha256(body).digest(), _sha256(meta).digest()
        ))
    ).digest()  # fmt: skip


def seal_of_hashes(
    salt: bytes, commitment: bytes, content_hash: bytes, body_sha256: bytes, meta_sha256: bytes
) -> bytes:
    """The seal where the body itself isn't at hand, only its SHA-256."""
    return _sha256(b"".join((b"overlayd/seal/1\n", salt, commitment, content_hash, body_sha256, meta_sha256))).digest()


def stream_hash_of(ssalt: bytes, stream: str) -> bytes:
    """The stream's pseudonym in E; `ssalt` is drawn when the stream is created."""
    assert len(ssalt) == SALT_BYTES
    name = stream.encode()
    return _sha256(b"".join((b"overlayd/stream/1\n", ssalt, _pack_length(len(name)), name))).digest()


def commitment_of(
    csalt: bytes, stream: str, id: str, type: str, time: str, source: str, key: str,
    topics: bytes, metadata: bytes, sent: bytes,
) -> bytes:  # fmt: skip
    """What a packet's own transaction commits to and its producer signs.

    `topics` and `metadata` are JSON texts cut like `sent`, the JSON text of `data`. Absent = empty.
    """
    sent_sha256 = _sha256(sent).digest()
    return commitment_of_hash(csalt, stream, id, type, time, source, key, topics, metadata, sent_sha256)


def commitment_of_hash(
    csalt: bytes, stream: str, id: str, type: str, time: str, source: str, key: str,
    topics: bytes, metadata: bytes, sent_sha256: bytes,
) -> bytes:  # fmt: skip
    """The commitment where `sent` itself isn't at hand, only its SHA-256."""
    assert len(csalt) == SALT_BYTES
    parts = [b"overlayd/packet/1\n", csalt]
    for text in (stream, id, type, time, source, key):
        value = text.encode()
        parts += (_pack_length(len(value)), value)
    parts += (_pack_length(len(topics)), topics, _pack_length(len(metadata)), metadata, sent_sha256)
    return _sha256(b"".join(parts)).digest()


def heads_root(rows: Iterable[tuple[bytes, int, bytes]]) -> bytes:
    """RFC 6962 root over (stream_hash, sequence, leaf) of each stream's last packet; sorts by stream_hash."""
    return root_of(_sha256(_HEAD_ROW.pack(0, *row)).digest() for row in sorted(rows))


def verify_entry(entry: StoredEntry, expected_leaf: bytes | None) -> None:
    """Recomputes leaf, BLAKE3 and seal. Raises VerificationFailed.

    `expected_leaf` is what the tree says stands at this place, None where it wasn't looked up. A reduced
    entry is checked as far as it is still there.
    """
    raw = entry.raw
    leaf = _sha256(b"\x00" + raw).digest()
    if leaf != entry.leaf or (expected_leaf is not None and leaf != expected_leaf):
        raise VerificationFailed("the entry's leaf isn't the one in the tree", subject=f"offset {entry.offset}")
    if len(raw) != ENTRY_BYTES:
        raise VerificationFailed(f"an entry has {ENTRY_BYTES} bytes, not {len(raw)}", subject="entry")
    fields = _unpack_entry(raw)
    if fields[:10] != (
        ENTRY_VERSION, entry.kind, entry.epoch, entry.offset, entry.appended_us, entry.stream_hash,
        entry.sequence, entry.prev, entry.target_from, entry.target_to,
    ):  # fmt: skip
        raise VerificationFailed("the entry's fields aren't those that were hashed", subject=f"offset {entry.offset}")
    if entry.is_reduced:
        return
    if blake3(entry.body).digest() != entry.content_hash:
        raise VerificationFailed("the body isn't the one that was hashed", subject=f"offset {entry.offset}")
    if seal_of(entry.salt, entry.commitment, entry.content_hash, entry.body, entry.meta) != fields[10]:
        raise VerificationFailed("the seal doesn't open", subject=f"offset {entry.offset}")


def seal_in(raw: bytes) -> bytes:
    """The seal that E holds."""
    return raw[_SEAL_AT:]


def _check_fields(header: EntryHeader) -> None:
    """Refuses what a kind can't have, so that each entry has one reading."""
    if header.kind not in Kind.__members__.values():
        raise VerificationFailed(f"unknown entry kind {header.kind}", subject="entry")
    if header.offset == 0:
        raise VerificationFailed("offsets begin at 1", subject="entry")
    if header.kind == Kind.PACKET:
        if header.sequence == 0 or header.stream_hash == Z32:
            raise VerificationFailed("a packet without a stream or sequence", subject="entry")
    elif header.sequence != 0 or header.prev != Z32:
        raise VerificationFailed("only packets have a sequence and a previous packet", subject="entry")
    if header.kind in (Kind.PACKET, Kind.NODE):
        if header.target_from != 0 or header.target_to != 0:
            raise VerificationFailed("packets and node entries have no target", subject="entry")
    elif not 1 <= header.target_from <= header.target_to:
        raise VerificationFailed("the target isn't a range of offsets", subject="entry")
