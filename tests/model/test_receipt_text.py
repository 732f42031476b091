"""Receipts as text: the quick way and the plain way say the same, byte for byte."""

from hypothesis import given
from hypothesis import strategies as st

from overlayd.model import wire
from overlayd.model.cursor import Epoch, make_epoch
from overlayd.model.draft import Receipt
from overlayd.model.names import StreamName
from overlayd.model.receipt_text import encode_receipt

HASHES = st.binary(min_size=32, max_size=32)
OFFSETS = st.integers(1, (1 << 63) - 1)
RECEIPTS = st.builds(
    Receipt, index=st.integers(0, 10_000), stream=st.sampled_from(["a", "weather-001", "a.b_c"]).map(StreamName),
    sequence=OFFSETS, offset=OFFSETS,
    epoch=st.builds(make_epoch, st.integers(1, (1 << 24) - 1), st.binary(min_size=5, max_size=5)),
    packet_id=st.text(min_size=1), content_hash=HASHES | st.just(b""), leaf=HASHES,
    appended_us=st.integers(0, 4_000_000_000_000_000), duplicate=st.booleans(), commitment=HASHES | st.just(b""),
    txid=HASHES | st.just(b""), confirmation_status=st.sampled_from(["none", "pending", "confirmed"]),
)  # fmt: skip


@given(RECEIPTS)
def test_receipt_text_is_the_body_encoded(receipt: Receipt) -> None:
    """Whatever a receipt holds, its text is the wire body's own encoding."""
    assert encode_receipt(receipt) == wire.encode_wire(wire.receipt_body(receipt, Epoch(receipt.epoch)))
