"""Packets' frames as text: the same bytes as the wire body, for every packet that the quick way takes on."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from overlayd.delivery.frames import Message, PacketState, encode_message, packet_message
from overlayd.delivery.matching import PacketView, view_packet
from overlayd.delivery.packet_text import encode_plain_packet
from overlayd.model.cursor import Cursor, Epoch, make_epoch
from overlayd.model.entry import Z32, StoredEntry
from overlayd.model.meta import Meta, encode_meta
from overlayd.model.wire import encode_wire

HASHES = st.binary(min_size=32, max_size=32)
NUMBERS = st.integers(1, (1 << 63) - 1)
EPOCHS = st.builds(make_epoch, st.integers(1, 1 << 20), st.binary(min_size=5, max_size=5))
TOPICS = st.lists(st.sampled_from(["a.b", "ü", 'q"']), max_size=2).map(
    lambda names: msgspec.json.encode(names) if names else b""
)
PLAIN = st.builds(
    Meta, id=st.text(max_size=9), type=st.text(max_size=5), key=st.text(max_size=5), topics=TOPICS,
    definition_topics=TOPICS, definition_version=st.integers(0, 9), principal=st.text(max_size=5),
)  # fmt: skip
RARE = st.builds(
    msgspec.structs.replace, PLAIN, time=st.sampled_from(["", "2024-01-15T10:30:00Z"]), source=st.text(max_size=5),
    metadata=st.sampled_from([b"", b'{"a":1}']), is_octets=st.booleans(), hops=st.integers(0, 3),
    traceparent=st.sampled_from(["", "00-" + "1" * 32 + "-" + "2" * 16 + "-01"]), signature=st.sampled_from([b"", b'{"s":1}']),
    txid=st.sampled_from([b"", b"t" * 32]),
)  # fmt: skip
STATES = st.sampled_from([PacketState(), PacketState("pending"), PacketState("mined", 1, 5, "ab", "cd")])


@st.composite
def messages(draw: st.DrawFn, metas: st.SearchStrategy[Meta]) -> Message:
    """A packet's message; its cursor may be a later trigger's."""
    meta, epoch, offset = draw(metas), draw(EPOCHS), draw(NUMBERS)
    entry = StoredEntry(
        b"", draw(HASHES), 1, epoch, offset, draw(st.integers(0, 4_000_000_000_000_000)), draw(HASHES), draw(NUMBERS), Z32,
        0, 0, b"", draw(st.just(Z32) | HASHES), draw(HASHES), encode_meta(meta), draw(st.sampled_from([b"1", b'{ "a":[1]}'])),
    )  # fmt: skip
    view = view_packet(entry, draw(st.sampled_from(["s", "weather-001"])))
    assert view.meta == meta
    cursor = Cursor(Epoch(draw(EPOCHS)), draw(NUMBERS), draw(st.none() | st.integers(0, 5)))
    return Message("packet", cursor, entry.appended_us, view, draw(STATES))


@given(messages(RARE))
def test_any_packet_is_the_same_text(message: Message) -> None:
    """Whatever a packet says, its frame is the wire body's own encoding."""
    assert encode_message(message, "packet") == encode_wire(packet_message(message))


@given(messages(PLAIN))
def test_plain_packets_take_the_quick_way(message: Message) -> None:
    """What most packets are isn't left to the slow way, or the comparison above would compare nothing."""
    view = message.subject
    assert isinstance(view, PacketView)
    text = encode_plain_packet(view, message.cursor)
    if message.cursor.index is None and view.entry.commitment == Z32:
        assert text is not None
