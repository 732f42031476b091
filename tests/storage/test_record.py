"""The stored form of a row: round trip, rows that follow each other, and bytes that mean nothing."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlayd.model.entry import Z32, Kind, StoredEntry, encode_header, entry_of_row, leaf_hash
from overlayd.model.errors import VerificationFailed
from overlayd.storage.record import (
    HEAD_BYTES,
    REDUCED,
    decode_page,
    decode_row,
    decode_stub,
    encode_sealed,
    reduce_entry,
    sealed_bytes,
    stub_bytes,
)

_octets = st.binary(max_size=60)


@st.composite
def entries(draw: st.DrawFn) -> StoredEntry:
    """Rows of any content; hashes needn't fit here."""
    offset = draw(st.integers(1, (1 << 63) - 1))
    raw = encode_header(
        Kind.PACKET, 1 << 40, offset, 5, b"s" * 32, 1, Z32, 0, 0, draw(st.binary(min_size=32, max_size=32))
    )
    entry = entry_of_row(
        raw, leaf_hash(raw), draw(st.binary(min_size=16, max_size=16)), draw(st.sampled_from([Z32, b"c" * 32])),
        draw(st.binary(min_size=32, max_size=32)), draw(_octets), draw(_octets), draw(st.sampled_from([b"", b"f" * 16])),
    )  # fmt: skip
    return reduce_entry(entry) if draw(st.booleans()) else entry


def seal(entry: StoredEntry) -> bytes | None:
    """The column of an entry."""
    if entry.is_reduced:
        return None
    return encode_sealed(entry.salt, entry.commitment, entry.content_hash, entry.meta, entry.body, entry.fingerprint)


@given(entries())
def test_row_round_trip(entry: StoredEntry) -> None:
    """What was packed comes out again, and its length is known without packing."""
    sealed = seal(entry)
    assert decode_row(entry.raw, entry.leaf, sealed) == entry
    if sealed is not None:
        assert len(sealed) == sealed_bytes(entry)
        stub = sealed[: stub_bytes(sealed[:HEAD_BYTES])]
        assert stub + entry.body == sealed
        found = decode_stub(entry.raw, entry.leaf, stub)
        assert (found.meta, found.fingerprint, found.salt, found.body) == (
            entry.meta,
            entry.fingerprint,
            entry.salt,
            b"",
        )
        with pytest.raises(VerificationFailed):
            decode_row(entry.raw, entry.leaf, sealed + b"x")


@given(st.lists(entries(), max_size=6))
def test_page_round_trip(rows: list[StoredEntry]) -> None:
    """Rows come apart where they were joined."""
    assert decode_page(b"".join(row.raw + row.leaf + (seal(row) or REDUCED) for row in rows)) == rows


@given(st.binary(max_size=400), st.lists(entries(), max_size=2))
def test_nonsense_is_refused_in_one_way(noise: bytes, rows: list[StoredEntry]) -> None:
    """Whatever the bytes, a page decodes or raises VerificationFailed."""
    page = b"".join(row.raw + row.leaf + (seal(row) or REDUCED) for row in rows)
    with contextlib.suppress(VerificationFailed):
        assert stub_bytes(noise) >= HEAD_BYTES
    for blob in (noise, page + noise, page[: len(noise)], page[:180] + noise):
        try:
            decode_page(blob)
        except VerificationFailed:
            continue
