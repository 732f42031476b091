"""How a row of table `entry` holds what E seals: one self-delimiting blob, so that a page is one concatenation.

version u8 = 1 ‖ length of the whole u32 ‖ flags u8 ‖ salt 16 ‖ content hash 32 ‖ length of meta u32
‖ [commitment 32] ‖ [fingerprint 16] ‖ meta ‖ body. A reduced entry's column is NULL; in a page the single byte 0
stands for it. Nothing here is hashed; E and the seal say whether it is right.
"""

import struct
from collections.abc import Sequence

from overlayd.model.entry import ENTRY_BYTES, Z32, StoredEntry, entry_of_row
from overlayd.model.errors import DamagedEntry, VerificationFailed

REDUCED = b"\x00"
LEAF_BYTES = 32
FINGERPRINT_BYTES = 16
_VERSION = 1
_HAS_COMMITMENT = 1
_HAS_FINGERPRINT = 2
_HEAD = struct.Struct(">BIB16s32sI")
HEAD_BYTES = _HEAD.size
"""What comes before everything whose length varies."""
_pack_head = _HEAD.pack
_unpack_head = _HEAD.unpack_from
_ROW_BYTES = ENTRY_BYTES + LEAF_BYTES


def encode_sealed(
    salt: bytes, commitment: bytes, content_hash: bytes, meta: bytes, body: bytes, fingerprint: bytes
) -> bytes:
    """The column `sealed`. A commitment of Z32 and an absent fingerprint (b"") take no room."""
    flags = 0
    length = HEAD_BYTES + len(meta) + len(body)
    if commitment != Z32:
        flags, length = _HAS_COMMITMENT, length + 32
    else:
        commitment = b""
    if fingerprint:
        flags, length = flags | _HAS_FINGERPRINT, length + FINGERPRINT_BYTES
    head = _pack_head(_VERSION, length, flags, salt, content_hash, len(meta))
    return b"".join((head, commitment, fingerprint, meta, body))


def decode_row(raw: bytes, leaf: bytes, sealed: bytes | None) -> StoredEntry:
    """One row, taken apart but not verified. Raises VerificationFailed when it has no such form."""
    if sealed is None:
        return _reduced(raw, leaf)
    entry, end = _decode_sealed(raw, leaf, sealed, 0)
    if end != len(sealed):
        raise VerificationFailed("the stored row has a rest", subject=f"offset {entry.offset}")
    return entry


def decode_page(page: bytes) -> list[StoredEntry]:
    """Rows concatenated as E ‖ leaf ‖ sealed (or REDUCED). Raises VerificationFailed when they have no such form."""
    entries = []
    at, end = 0, len(page)
    while at < end:
        middle, start = at + ENTRY_BYTES, at + _ROW_BYTES
        if start >= end:
            raise VerificationFailed("the page ends inside a row", subject="page")
        raw, leaf = page[at:middle], page[middle:start]
        if page[start] == 0:
            entries.append(_reduced(raw, leaf))
            at = start + 1
        else:
            entry, at = _decode_sealed(raw, leaf, page, start)
            entries.append(entry)
    return entries


def stub_bytes(head: bytes) -> int:
    """Length of a row's sealed part without its body, from the first HEAD_BYTES. Raises VerificationFailed."""
    if len(head) < HEAD_BYTES:
        raise VerificationFailed("the stored row is truncated", subject="row")
    version, length, flags, _salt, _content_hash, meta_bytes = _unpack_head(head)
    end = HEAD_BYTES + meta_bytes + (32 if flags & _HAS_COMMITMENT else 0)
    end += FINGERPRINT_BYTES if flags & _HAS_FINGERPRINT else 0
    if version != _VERSION or end > length:
        raise VerificationFailed(f"unknown form {version} of a stored row", subject="row")
    return int(end)


def decode_stub(raw: bytes, leaf: bytes, stub: bytes) -> StoredEntry:
    """An entry without its body, which therefore can't be verified against its seal. Raises VerificationFailed."""
    head = stub[:1] + len(stub).to_bytes(4, "big") + stub[5:]
    return _decode_sealed(raw, leaf, head, 0)[0]


def check_are_of(stream_hash: bytes, after_sequence: int, entries: Sequence[StoredEntry]) -> None:
    """Whether entries that were found by their positions are a stream's packets, ascending. Raises DamagedEntry."""
    for entry in entries:
        if entry.stream_hash != stream_hash or entry.sequence <= after_sequence:
            raise DamagedEntry(
                "a packet isn't where its stream's positions say", subject=f"offset {entry.offset}",
                hint="overlayd verify names every damaged entry",
            )  # fmt: skip
        after_sequence = entry.sequence


def reduce_entry(entry: StoredEntry) -> StoredEntry:
    """What stays of an entry whose sealed part was taken away."""
    return _reduced(entry.raw, entry.leaf)


def sealed_bytes(entry: StoredEntry) -> int:
    """Length of the column `sealed` for an entry that isn't reduced."""
    extra = (32 if entry.commitment != Z32 else 0) + (FINGERPRINT_BYTES if entry.fingerprint else 0)
    return HEAD_BYTES + extra + len(entry.meta) + len(entry.body)


def entry_cost(entry: StoredEntry) -> int:
    """About what the entry holds in memory, in bytes."""
    return 700 + len(entry.body) + len(entry.meta)


def _reduced(raw: bytes, leaf: bytes) -> StoredEntry:
    return entry_of_row(raw, leaf, b"", b"", b"", b"", b"", b"", True)


def _decode_sealed(raw: bytes, leaf: bytes, page: bytes, start: int) -> tuple[StoredEntry, int]:
    at = start + HEAD_BYTES
    if at > len(page):
        raise VerificationFailed("the stored row is truncated", subject="page")
    version, length, flags, salt, content_hash, meta_bytes = _unpack_head(page, start)
    end = start + length
    commitment, fingerprint = Z32, b""
    if version != _VERSION or flags & ~(_HAS_COMMITMENT | _HAS_FINGERPRINT):
        raise VerificationFailed(f"unknown form {version} of a stored row", subject="page")
    if flags & _HAS_COMMITMENT:
        commitment = page[at : at + 32]
        at += 32
    if flags & _HAS_FINGERPRINT:
        fingerprint = page[at : at + FINGERPRINT_BYTES]
        at += FINGERPRINT_BYTES
    body_at = at + meta_bytes
    if end > len(page) or body_at > end:
        raise VerificationFailed("the stored row's lengths contradict each other", subject="page")
    meta, body = page[at:body_at], page[body_at:end]
    return entry_of_row(raw, leaf, salt, commitment, content_hash, meta, body, fingerprint), end
