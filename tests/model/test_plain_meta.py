"""The short way to encode a plain packet's meta gives the bytes of the long one."""

from hypothesis import given
from hypothesis import strategies as st

from overlayd.model.meta import Meta, decode_meta, encode_meta, encode_plain_meta


@given(st.text(max_size=20), st.integers(0, 1 << 31), st.text(max_size=20))
def test_plain_meta_is_the_same(packet_id: str, version: int, principal: str) -> None:
    """Whatever is absent is left out in both."""
    meta = Meta(packet_id, definition_version=version, principal=principal)
    encoded = encode_plain_meta(packet_id, version, principal)
    assert encoded == encode_meta(meta)
    assert decode_meta(encoded) == meta
