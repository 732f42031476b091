"""Meta's records, there and back."""

import contextlib
from typing import Any

import independent_log_format as independent
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlayd.model.errors import VerificationFailed
from overlayd.model.meta import Meta, Origin, decode_meta, decode_origin, encode_meta, encode_origin, split_records

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
JSON_TEXT = st.sampled_from([b"", b'["a"]', b'{"k": "\xc3\xa9"}'])
OFFSETS = st.sets(st.integers(1, (1 << 64) - 1), max_size=4).map(lambda offsets: tuple(sorted(offsets)))
UNKNOWN_TAGS = [0, *range(10, 16), *range(25, 256)]
UNKNOWN = st.dictionaries(st.sampled_from(UNKNOWN_TAGS), st.binary(max_size=5), max_size=3).map(
    lambda records: tuple(sorted(records.items()))
)


def fixed(count: int) -> Any:
    """So many bytes."""
    return st.binary(min_size=count, max_size=count)


ORIGINS = st.builds(
    Origin, line=TEXT, entry=fixed(146), salt=fixed(16), ssalt=fixed(16), stream=TEXT, commitment=fixed(32),
    meta=st.binary(max_size=9),
)  # fmt: skip


@st.composite
def metas(draw: Any) -> Meta:
    """Any meta that the format allows."""
    meta = Meta(
        definition_version=draw(st.integers(0, (1 << 32) - 1)),
        definition_topics=draw(JSON_TEXT),
        hops=draw(st.integers(0, 255)),
        traceparent=draw(TEXT),
        principal=draw(TEXT),
        derived_from=draw(OFFSETS),
        txid=draw(st.sampled_from([b"", bytes(range(32))])),
        unknown=draw(UNKNOWN),
        commitment_form=draw(st.integers(0, 3)),
    )
    meta.csalt = draw(fixed(16)) if meta.commitment_form == 2 else b""
    if draw(st.booleans()):
        meta.origin = encode_origin(draw(ORIGINS))
        return meta
    meta.id, meta.type, meta.time, meta.source, meta.key = (draw(TEXT) for _ in range(5))
    meta.topics, meta.metadata, meta.signature = (draw(JSON_TEXT) for _ in range(3))
    meta.is_octets = draw(st.booleans())
    return meta


@settings(deadline=None, max_examples=60)
@given(metas())
def test_meta_reads_back(meta):
    """Every allowed meta decodes to itself, and the second implementation reads the same records."""
    raw = encode_meta(meta)
    assert decode_meta(raw) == meta
    assert independent.read_meta(raw) == split_records(raw)


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(st.integers(0, 30), st.binary(max_size=18)), max_size=4), st.binary(max_size=3))
def test_decoding_has_one_form_or_fails(records, rest):
    """Records made at random decode and encode to the same bytes, or fail; the second implementation agrees which."""
    raw = b"".join(bytes([tag]) + len(value).to_bytes(4, "big") + value for tag, value in records) + rest
    try:
        meta = decode_meta(raw)
    except VerificationFailed:
        with pytest.raises(independent.Broken):
            independent.read_meta(raw)
        return
    assert encode_meta(meta) == raw
    independent.read_meta(raw)


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=40))
def test_decoding_raises_nothing_else(raw):
    """Arbitrary bytes never raise anything but VerificationFailed."""
    with contextlib.suppress(VerificationFailed):
        assert encode_meta(decode_meta(raw)) == raw


@settings(deadline=None, max_examples=40)
@given(ORIGINS)
def test_origin_reads_back(origin):
    """The record of a forwarded packet decodes to itself and, cut anywhere, to nothing."""
    raw = encode_origin(origin)
    assert decode_origin(raw) == origin
    for end in range(0, len(raw), 7):
        with pytest.raises(VerificationFailed):
            decode_origin(raw[:end])


def test_nothing_is_no_bytes():
    """An empty meta has no bytes, and no bytes are an empty meta."""
    assert encode_meta(Meta()) == b""
    assert decode_meta(b"") == Meta()


def test_known_tags_are_not_unknown():
    """A record of a known tag can't be smuggled in as an unknown one."""
    with pytest.raises(AssertionError):
        encode_meta(Meta(unknown=((1, b"a"),)))


def test_own_members_and_an_origin_exclude_each_other():
    """A forwarded packet's id stands in its origin, so encoding both is a programming error."""
    with pytest.raises(AssertionError):
        encode_meta(Meta(id="a", origin=b"x"))


@pytest.mark.parametrize("changes", [
    {"derived_from": (2, 1)}, {"commitment_form": 2}, {"commitment_form": 1, "csalt": bytes(16)},
    {"txid": b"short"}, {"commitment_form": 4},
])  # fmt: skip
def test_what_could_not_be_read_back_is_not_written(changes):
    """Values outside the format are programming errors."""
    with pytest.raises(AssertionError):
        encode_meta(Meta(**changes))
