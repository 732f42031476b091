"""The short way to encode a plain packet's meta gives the bytes of the long one."""

from hypothesis import given
from hypothesis import strategies as st

from overlayd.model.errors import VerificationFailed
from overlayd.model.meta import Meta, _decode_records, decode_meta, encode_meta, encode_plain_meta


@given(st.text(max_size=20), st.integers(0, 1 << 31), st.text(max_size=20))
def test_plain_meta_is_the_same(packet_id: str, version: int, principal: str) -> None:
    """Whatever is absent is left out in both."""
    meta = Meta(packet_id, definition_version=version, principal=principal)
    encoded = encode_plain_meta(packet_id, version, principal)
    assert encoded == encode_meta(meta)
    assert decode_meta(encoded) == meta


@given(
    st.text(max_size=300),
    st.integers(0, 3),
    st.text(max_size=5),
    st.binary(max_size=8),
    st.integers(0, 40),
    st.binary(max_size=2),
)
def test_short_way_of_decoding_is_the_long_one(
    packet_id: str, version: int, principal: str, tail: bytes, at: int, instead: bytes
) -> None:
    """Plain or damaged anywhere, a meta is read, or refused, as record by record."""
    raw = encode_plain_meta(packet_id, version, principal)
    for damaged in (raw, raw + tail, raw[:at] + instead + raw[at + len(instead) :], raw[: len(raw) - at]):
        try:
            expected: object = _decode_records(damaged)
        except VerificationFailed as err:
            expected = err.detail
        try:
            found: object = decode_meta(damaged)
        except VerificationFailed as err:
            found = err.detail
        assert found == expected
