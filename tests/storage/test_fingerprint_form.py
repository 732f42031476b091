"""What a fingerprint is taken over: stored logs hold it, so it may never change."""

import struct

from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from overlayd.model.draft import Draft
from overlayd.storage.fingerprint import fingerprint_of

texts = st.sampled_from(["", "a", "ü", "a b"])
octets = st.sampled_from([b"", b"[1]", b"{}"])


@given(texts, texts, texts, texts, texts, octets, octets, octets, st.booleans())
def test_a_fingerprint_is_over_every_member(
    packet_id: str, kind: str, time: str, source: str, key: str, topics: bytes, metadata: bytes, csalt: bytes, flag: bool
) -> None:  # fmt: skip
    """The salt, nine lengths, the form, and the members as they were sent, whichever of them are there."""
    draft = Draft(
        0, b'{"a":1}', b'{"a":1}', id=packet_id, type=kind, time=time, source=source, key=key, topics=topics,
        metadata=metadata, csalt=csalt, is_octets=flag,
    )  # fmt: skip
    members = [text.encode() for text in (packet_id, kind, time, source, key)] + [topics, metadata, b'{"a":1}', csalt]
    lengths = struct.pack(">9IB", *map(len, members), flag)
    assert fingerprint_of(draft, b"s" * 16) == blake3(b"s" * 16 + lengths + b"".join(members)).digest(16)
