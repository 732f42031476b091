"""Bodies of status, removal, node and certificate entries."""

import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlayd.model.bodies import (
    Boot,
    DefinitionChange,
    Restore,
    SeenHead,
    StatusBody,
    decode_node_body,
    decode_removal_body,
    decode_status_body,
    encode_certificate_body,
    encode_node_body,
    encode_removal_body,
    encode_status_body,
)
from overlayd.model.errors import VerificationFailed


def test_status_members_stand_in_order():
    """Every member at once comes out in the format's order, compact."""
    status = StatusBody("confirmed", 1, "ab", 0, 850_000, "cd", 8, "why", True)
    assert encode_status_body(status) == (
        b'{"state":"confirmed","depth":1,"txid":"ab","vout":0,"height":850000,"block":"cd","anchor_size":8,'
        b'"reason":"why","late":true}'
    )
    assert decode_status_body(encode_status_body(status)) == status
    assert encode_status_body(StatusBody("pending")) == b'{"state":"pending"}'


def test_removal_members_stand_in_order():
    """Cause, then count; and nothing else can be in it."""
    assert encode_removal_body("erased", 3) == b'{"cause":"erased","count":3}'
    assert decode_removal_body(b'{"cause":"erased","count":3}').count == 3
    with pytest.raises(VerificationFailed):
        decode_removal_body(b'{"cause":"erased","count":3,"who":"me"}')


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"keys": ["k"], "type": "genesis"}, '{"type":"genesis","keys":["k"]}'),
        ({"clock_synced": False, "version": "1", "type": "boot", "uptime_ms": 0},
         '{"type":"boot","version":"1","uptime_ms":0,"clock_synced":false}'),
        ({"type": "clock", "step_us": -5}, '{"type":"clock","step_us":-5}'),
        ({"definition": {"b": 1, "a": 2}, "version": 1, "ssalt": "x", "stream": "é", "type": "definition"},
         '{"type":"definition","stream":"é","ssalt":"x","version":1,"definition":{"b":1,"a":2}}'),
        ({"note": "n\n", "type": "key"}, '{"type":"key","note":"n\\n"}'),
        ({"common_root": "r", "type": "restore", "common_size": 1, "from_epoch": "e"},
         '{"type":"restore","from_epoch":"e","common_size":1,"common_root":"r"}'),
        ({"type": "cut", "minimum_index": 256}, '{"type":"cut","minimum_index":256}'),
        ({"type": "witnessed", "note": "n"}, '{"type":"witnessed","note":"n"}'),
        ({"root": "r", "streams": 2, "size": 1, "type": "heads"}, '{"type":"heads","size":1,"streams":2,"root":"r"}'),
    ],
    ids=lambda value: value["type"] if isinstance(value, dict) else "",
)  # fmt: skip
def test_node_members_stand_in_order(body, text):
    """Whatever order a mapping has, the bytes have the format's, and read back to the same."""
    assert encode_node_body(body).decode() == text
    assert encode_node_body(decode_node_body(text.encode())).decode() == text


@pytest.mark.parametrize(
    "body", [{"type": "party"}, {"type": "cut"}, {"type": "cut", "minimum_index": 1, "why": ""}, {}]
)
def test_unknown_node_bodies_are_not_written(body):
    """An unknown type and a missing or extra member raise ValueError before anything is hashed."""
    with pytest.raises(ValueError):  # noqa: PT011 - msgspec's words, not ours
        encode_node_body(body)


def test_definition_text_is_kept():
    """A definition given as raw JSON stands in the body byte for byte."""
    body = DefinitionChange("a", "s", 1, msgspec.Raw(b'{"z":1e2,"a":"\\u00e9"}'))
    assert encode_node_body(body).endswith(b'"definition":{"z":1e2,"a":"\\u00e9"}}')


def test_optional_node_members():
    """What the system doesn't tell is left out; what was lost is told with size and root."""
    assert encode_node_body(Boot(version="1")) == b'{"type":"boot","version":"1"}'
    restore = Restore("e", 1, "r", SeenHead(2, "s"))
    assert decode_node_body(encode_node_body(restore)) == restore


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=40) | st.text('{}":,typebo01', max_size=40).map(str.encode))
def test_decoding_raises_nothing_else(raw):
    """Arbitrary bytes are read or refused by VerificationFailed alone."""
    for decode in (decode_node_body, decode_removal_body, decode_status_body):
        with pytest.raises(VerificationFailed):
            decode(raw)


def test_certificates_keep_their_order():
    """A certificate is compact JSON with its members as given."""
    raw = encode_certificate_body({"b": 1, "a": ["x"]})
    assert raw == b'{"b":1,"a":["x"]}'
    assert json.loads(raw) == {"b": 1, "a": ["x"]}
