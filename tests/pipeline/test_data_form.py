"""Bodies that become the data of one packet: JSON as it is, text as a string, octets as base64."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlayd.model.errors import InvalidPacket, MalformedJson, PacketTooLarge, UnusableJson
from overlayd.model.limits import Limits
from overlayd.model.units import Size
from overlayd.pipeline.data_form import decode_data

LIMITS = Limits()
FORM = "application/x-www-form-urlencoded"


@pytest.mark.parametrize(
    ("content_type", "body", "sent", "is_octets"),
    [
        (FORM, b'{"t":21}', b'{"t":21}', False),
        (FORM, b'  {"t": 21}\n', b'{"t": 21}', False),
        (FORM, b"21.50", b"21.50", False),
        (FORM, b"t=21&u=3", b'"t=21&u=3"', False),
        (FORM, b'{"t":21', b'"{\\"t\\":21"', False),
        ("", b"null", b"null", False),
        ("", "größe\n".encode(), '"größe\\n"'.encode(), False),
        ("text/plain", b"5", b"5", False),
        ("application/octet-stream", b"\x00\x01", b'"AAE="', True),
        ("application/octet-stream", b"abc", b'"YWJj"', True),
        ("", b"\xff\xfe", b'"//4="', True),
        ("image/png", b"\x89PNG", b'"iVBORw=="', True),
        ("application/json", b"[1, 2]", b"[1, 2]", False),
    ],
)
def test_each_body_takes_its_form(content_type: str, body: bytes, sent: bytes, is_octets: bool) -> None:
    """What a person types after `curl -d` arrives as they meant it."""
    decoded = decode_data(body, content_type, LIMITS)
    assert (decoded.draft.sent, decoded.draft.is_octets) == (sent, is_octets)
    assert decoded.value == json.loads(sent)


@given(st.binary(min_size=1, max_size=60))
def test_no_octet_is_lost(body: bytes) -> None:
    """Whatever octets arrive can be had back from what is stored."""
    decoded = decode_data(body, "application/octet-stream; x=1", LIMITS) if body[0] > 127 else None
    if decoded is not None and decoded.draft.is_octets:
        assert base64.b64decode(json.loads(decoded.draft.sent)) == body


@pytest.mark.parametrize("body", [b'{"a":1,"a":2}', b"1e400", b"[" * 5000, b'"\\ud800"'])
def test_json_that_no_consumer_takes_is_not_smuggled_in_as_text(body: bytes) -> None:
    """JSON that is unusable is refused here as everywhere."""
    with pytest.raises(UnusableJson):
        decode_data(body, FORM, LIMITS)


def test_a_body_that_says_json_must_be_json() -> None:
    """With a JSON content type a typing mistake is an error, not a text."""
    with pytest.raises(MalformedJson):
        decode_data(b'{"t":21', "application/json", LIMITS)


def test_members_from_the_query_are_checked() -> None:
    """id, type and key come from the query and follow the rules of packet objects."""
    draft = decode_data(b"1", "", LIMITS, packet_id="i", packet_type="t", key="k").draft
    assert (draft.id, draft.type, draft.key) == ("i", "t", "k")
    with pytest.raises(InvalidPacket) as caught:
        decode_data(b"1", "", LIMITS, packet_id="x" * 129)
    assert caught.value.violations[0].pointer == "/id"


def test_empty_and_swollen_bodies_are_refused() -> None:
    """Nothing at all isn't data, and escapes can't carry a body over the limit unseen."""
    with pytest.raises(InvalidPacket, match="empty"):
        decode_data(b"", FORM, LIMITS)
    small = Limits(packet_bytes=Size(100))
    with pytest.raises(PacketTooLarge):
        decode_data(b"\x01" * 50, FORM, small)
