"""E, its leaf and its seal."""

import struct
from typing import Any

import independent_log_format as independent
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlayd.model.entry import (
    ENTRY_BYTES,
    Z32,
    EntryHeader,
    Kind,
    StoredEntry,
    commitment_of,
    content_hash_of,
    encode_header,
    entry_of_row,
    heads_root,
    leaf_hash,
    seal_in,
    seal_of,
    stream_hash_of,
    verify_entry,
)
from overlayd.model.errors import VerificationFailed

U64 = st.integers(0, (1 << 64) - 1)
ABOVE_0 = st.integers(1, (1 << 64) - 1)
HASH = st.binary(min_size=32, max_size=32)
SALT = st.binary(min_size=16, max_size=16)
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)


@st.composite
def headers(draw: Any) -> EntryHeader:
    """Any entry that the format allows."""
    kind = draw(st.sampled_from(Kind))
    fields: dict[str, Any] = {"kind": int(kind), "epoch": draw(U64), "offset": draw(ABOVE_0), "appended_us": draw(U64)}
    if kind == Kind.PACKET:
        fields["stream_hash"] = draw(HASH.filter(lambda octets: octets != Z32))
        fields.update(sequence=draw(ABOVE_0), prev=draw(HASH))
    else:
        fields["stream_hash"] = draw(HASH)
    if kind not in (Kind.PACKET, Kind.NODE):
        fields["target_from"], fields["target_to"] = sorted((draw(ABOVE_0), draw(ABOVE_0)))
    return EntryHeader(seal=draw(HASH), **fields)


@settings(deadline=None, max_examples=60)
@given(headers())
def test_entries_read_back(header):
    """Every allowed entry encodes to 146 bytes, decodes to itself, and reads the same in the second implementation."""
    raw = header.encode()
    assert len(raw) == ENTRY_BYTES
    assert EntryHeader.decode(raw) == header
    assert seal_in(raw) == header.seal
    second = independent.read_entry(raw)
    assert all(second[name] == getattr(header, name) for name in header.__struct_fields__)


@settings(deadline=None, max_examples=60)
@given(st.one_of(st.binary(max_size=200), st.binary(min_size=146, max_size=146).map(lambda raw: b"\1" + raw[1:])))
def test_decoding_raises_nothing_else(raw):
    """Arbitrary bytes either decode and encode again, or raise VerificationFailed; the second implementation agrees."""
    try:
        header = EntryHeader.decode(raw)
    except VerificationFailed:
        with pytest.raises(independent.Broken):
            independent.read_entry(raw)
        return
    assert header.encode() == raw
    independent.read_entry(raw)


@pytest.mark.parametrize("name", ["epoch", "offset", "appended_us", "sequence"])
def test_numbers_are_u64(name):
    """A number over 64 bits, or below 0, can't be encoded."""
    for value in (1 << 64, -1):
        fields = {"kind": 1, "epoch": 1, "offset": 1, "appended_us": 1, "sequence": 1, name: value}
        with pytest.raises(struct.error):
            EntryHeader(**fields).encode()


def test_hashes_have_32_bytes():
    """A hash of another length is a programming error, not silently padded."""
    with pytest.raises(AssertionError):
        encode_header(1, 1, 1, 1, b"short", 1, Z32, 0, 0, Z32)


@settings(deadline=None, max_examples=40)
@given(
    SALT, st.lists(TEXT, min_size=6, max_size=6), st.lists(st.binary(max_size=20), min_size=2, max_size=2), st.binary()
)
def test_commitments_agree(csalt, texts, json_texts, sent):
    """Both implementations commit to the same 32 bytes whatever the members hold."""
    names = ("stream", "id", "type", "time", "source", "key", "topics", "metadata")
    packet = dict(zip(names, [*texts, *json_texts], strict=True))
    assert commitment_of(csalt, *texts, *json_texts, sent) == independent.commitment(csalt, packet, sent)


def test_commitment_tells_members_apart():
    """Moving a text from one member into the next gives another commitment."""
    salt = bytes(16)
    made = {
        commitment_of(salt, "s", *("x" if at == place else "" for at in range(5)), b"", b"", b"1") for place in range(5)
    }
    made.add(commitment_of(salt, "sx", "", "", "", "", "", b"", b"", b"1"))
    made.add(commitment_of(salt, "s", "", "", "", "", "", b"x", b"", b"1"))
    made.add(commitment_of(salt, "s", "", "", "", "", "", b"", b"x", b"1"))
    assert len(made) == 8


@settings(deadline=None, max_examples=40)
@given(SALT, HASH, st.binary(), st.binary(), TEXT)
def test_seals_and_pseudonyms_agree(salt, committed, body, meta, stream):
    """Both implementations come to the same seal and stream hash."""
    assert seal_of(salt, committed, content_hash_of(body), body, meta) == independent.seal(salt, committed, body, meta)
    assert stream_hash_of(salt, stream) == independent.stream_hash(salt, stream)


@settings(deadline=None, max_examples=30)
@given(st.dictionaries(HASH, st.tuples(U64, HASH), max_size=9))
def test_heads_agree(rows_by_stream):
    """Both implementations come to the same heads root, also for no stream at all."""
    rows = [(stream, *rest) for stream, rest in rows_by_stream.items()]
    assert heads_root(rows) == independent.heads(rows)


def stored_packet(body: bytes = b'{"t":21}', meta: bytes = b"\1\0\0\0\1a") -> StoredEntry:
    """A good row."""
    salt, content = bytes(range(16)), content_hash_of(body)
    seal = seal_of(salt, Z32, content, body, meta)
    raw = encode_header(1, 1 << 40, 5, 1_700_000_000_000_000, b"s" * 32, 3, b"p" * 32, 0, 0, seal)
    return entry_of_row(raw, leaf_hash(raw), salt, Z32, content, meta, body, b"f" * 16)


def test_a_good_row_verifies():
    """A row straight from the writer verifies, with and without the tree's word for its leaf."""
    row = stored_packet()
    verify_entry(row, None)
    verify_entry(row, row.leaf)


def test_the_tree_decides():
    """A row that is consistent in itself but isn't the one in the tree is refused."""
    with pytest.raises(VerificationFailed):
        verify_entry(stored_packet(), b"x" * 32)


@pytest.mark.parametrize(
    "name", [name for name in StoredEntry.__struct_fields__ if name not in ("is_reduced", "fingerprint")]
)
def test_every_column_is_checked(name):
    """Changing any column that is hashed makes the row fail; the fingerprint alone isn't hashed."""
    row = stored_packet()
    value = getattr(row, name)
    setattr(row, name, value + 1 if isinstance(value, int) else value[:-1] + bytes([value[-1] ^ 1]))
    with pytest.raises(VerificationFailed):
        verify_entry(row, None)


def test_every_byte_of_a_row_is_checked():
    """Each byte flipped in E, body or meta makes the row fail."""
    for name in ("raw", "body", "meta", "salt", "commitment", "content_hash", "leaf"):
        octets = getattr(stored_packet(), name)
        for at in range(len(octets)):
            row = stored_packet()
            setattr(row, name, octets[:at] + bytes([octets[at] ^ 0x20]) + octets[at + 1 :])
            with pytest.raises(VerificationFailed):
                verify_entry(row, None)


def test_a_reduced_row_verifies_by_what_is_left():
    """After reduction E and leaf still verify, and E's bytes are still checked."""
    row = stored_packet()
    left = entry_of_row(row.raw, row.leaf, b"", b"", b"", b"", b"", is_reduced=True)
    verify_entry(left, row.leaf)
    left.raw = left.raw[:-1] + bytes([left.raw[-1] ^ 1])
    with pytest.raises(VerificationFailed):
        verify_entry(left, row.leaf)


def test_rows_of_a_wrong_length_are_refused():
    """A row whose E isn't 146 bytes can't be taken apart, nor verified when it is made to look like one."""
    row = stored_packet()
    with pytest.raises(VerificationFailed):
        entry_of_row(row.raw[:-1], row.leaf, row.salt, Z32, row.content_hash, row.meta, row.body)
    row.raw = row.raw + b"\0"
    row.leaf = leaf_hash(row.raw)
    with pytest.raises(VerificationFailed):
        verify_entry(row, None)
