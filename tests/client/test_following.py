"""What each message of a live reading means for packets that are followed."""

import msgspec
import pytest
from msgspec import Raw

from overlayd.client.following import Following
from overlayd.model.errors import BadParameter, NotConfirmed
from overlayd.model.wire import ErasedMessage, GapMessage, Packet, PacketMessage, ReceiptBody, StatusMessage

NAME = "weather-001"


def receipt(sequence: int, stream: str = NAME) -> ReceiptBody:
    """Of a packet whose offset is its sequence."""
    return ReceiptBody(
        stream=stream, sequence=sequence, offset=sequence, cursor=f"e1-{sequence}", id="x", leaf_hash="", appended_at=""
    )


def packet(sequence: int, state: str = "confirmed", confirmations: int = 1) -> Packet:
    """As a reader gets it."""
    return msgspec.convert(
        {"stream_id": NAME, "packet_sequence": sequence, "packet_id": "x", "offset": sequence, "appended_at": "",
         "data_payload": Raw(b"1"), "content_hash": "blake3:" + "0" * 64, "leaf_hash": "sha256:" + "0" * 64,
         "confirmation_status": state, "confirmations": confirmations}, Packet,
    )  # fmt: skip


def message(sequence: int) -> PacketMessage:
    """A confirmed packet."""
    return PacketMessage(stream_id=NAME, cursor="e1-9", packet=packet(sequence))


def status(state: str, **where: int) -> StatusMessage:
    """Of a packet or a range."""
    return StatusMessage(stream_id=NAME, cursor="e1-9", confirmation_status=state, reason="since", **where)  # type: ignore[arg-type]


def test_all_packets_are_waited_for_in_any_order() -> None:
    """Others of the stream are passed over, repeats too; they are given by sequence, read from the first one's place."""
    following = Following([receipt(5), receipt(3)], 1)
    assert following.query()["after"] == "e1-3"
    assert not following.take(message(4))
    assert not following.take(message(5))
    assert not following.take(message(5))
    assert following.take(message(3))
    assert [one.packet_sequence for one in following.in_order()] == [3, 5]


def test_statuses_of_packets_and_ranges_are_told() -> None:
    """Only those that hold a packet that is waited for; failing and dropping end it."""
    told: list[str] = []
    following = Following([receipt(5)], on_status=lambda one: told.append(one.confirmation_status))
    for one in (
        status("seen", packet_sequence=5),
        status("mined", packet_sequence=6),
        status("pending", from_=1, to=5),
    ):
        assert not following.take(one)
    assert told == ["seen", "pending"]
    assert not following.take(status("failed", from_=1, to=4))
    with pytest.raises(NotConfirmed, match="weather-001 5 is dropped: since"):
        following.take(status("dropped", from_=4, to=6))
    with pytest.raises(NotConfirmed, match="failed"):
        Following([receipt(5)]).take(status("failed", packet_sequence=5))


def test_what_is_taken_away_ends_it() -> None:
    """An erased packet isn't waited for; behind a gap each packet is looked at by itself."""
    following = Following([receipt(5)], 2)
    gap = GapMessage(from_="e1-4", to="e1-9", reason="damaged")
    assert following.to_look_at(gap) == [5]
    assert following.to_look_at(message(5)) == []
    assert not following.judge(packet(5, "pending"))
    assert not following.judge(packet(5, confirmations=1))
    assert not following.take(gap)
    assert following.judge(packet(5, confirmations=3))
    with pytest.raises(NotConfirmed, match="failed"):
        following.judge(packet(5, "failed"))
    erased = ErasedMessage(stream_id=NAME, cursor="e1-9", packet_sequence=5)
    assert Following([receipt(6)]).take(erased) is False
    with pytest.raises(NotConfirmed, match="erased"):
        Following([receipt(5)]).take(erased)


def test_receipts_of_one_stream_are_followed() -> None:
    """Not of none, and not of two."""
    for wrong in ([], [receipt(1), receipt(1, "other")]):
        with pytest.raises(BadParameter):
            Following(wrong)
