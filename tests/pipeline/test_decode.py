"""Packet objects: what becomes of their members, and how each mistake is named."""

import base64
import contextlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlayd.model.errors import BatchTooLarge, InvalidPacket, MalformedJson, OverlaydError, UnusableJson
from overlayd.model.limits import Limits
from overlayd.pipeline.decode import MEMBERS, decode_packet, is_array, split_array

LIMITS = Limits()
SALT = base64.b64encode(bytes(range(16))).decode()


def refusal_of(packet: Any) -> InvalidPacket:
    """The error that a packet object is refused with."""
    with pytest.raises(InvalidPacket) as caught:
        decode_packet(packet if isinstance(packet, bytes) else json.dumps(packet).encode(), 7, LIMITS)
    return caught.value


def test_data_is_cut_to_its_first_and_last_byte() -> None:
    """What is hashed is exactly the text of the value, with its inner white space, number spelling and escapes."""
    decoded = decode_packet(b' { "data" : { "a": 1.0e2,\n "b":"\\u00e9" } \t, "id":"x" } ', 3, LIMITS)
    assert decoded.draft.sent == b'{ "a": 1.0e2,\n "b":"\\u00e9" }'
    assert decoded.draft.body is decoded.draft.sent
    assert decoded.draft.index == 3
    assert decoded.value == {"a": 100.0, "b": "é"}


def test_every_member_finds_its_place() -> None:
    """All native members land in the draft; topics and metadata as the texts that were sent."""
    raw = b'{"data":null,"id":"i","type":"t","time":"2024-01-15T10:30:00.5+01:00","source":"s","key":"k",'
    raw += b'"topics":[ "a.b" , "c"],"metadata":{"x" : [1]},"salt":"' + SALT.encode() + b'"}'
    draft = decode_packet(raw, 0, LIMITS).draft
    assert (draft.id, draft.type, draft.source, draft.key) == ("i", "t", "s", "k")
    assert draft.time == "2024-01-15T10:30:00.5+01:00"
    assert draft.topics == b'[ "a.b" , "c"]'
    assert draft.metadata == b'{"x" : [1]}'
    assert draft.csalt == bytes(range(16))


def test_octets_keep_their_json_string() -> None:
    """data_base64 is stored as the JSON string it came in, escapes included, and marked as octets."""
    decoded = decode_packet(b'{"data_base64": "\\/+8=" }', 0, LIMITS)
    assert decoded.draft.sent == b'"\\/+8="'
    assert decoded.draft.is_octets
    assert decoded.value == "/+8="


@pytest.mark.parametrize("value", [0, False, "", None, [], {}, -1.5, "é"])
def test_any_json_value_is_data(value: Any) -> None:
    """Falsy, scalar and empty values are data like any other."""
    decoded = decode_packet(json.dumps({"data": value}).encode(), 0, LIMITS)
    assert decoded.value == value
    assert json.loads(decoded.draft.sent) == value


@pytest.mark.parametrize(
    ("packet", "code", "pointer"),
    [
        ({}, "member.missing", "/data"),
        ({"id": "x"}, "member.missing", "/data"),
        ({"data": 1, "data_base64": ""}, "member.exclusive", "/data_base64"),
        ({"data": 1, "dat": 1}, "member.unknown", "/dat"),
        ({"data": 1, "a/b~": 1}, "member.unknown", "/a~1b~0"),
        ({"data": 1, "id": ""}, "member.empty", "/id"),
        ({"data": 1, "type": ""}, "member.empty", "/type"),
        ({"data": 1, "time": ""}, "member.empty", "/time"),
        ({"data": 1, "source": ""}, "member.empty", "/source"),
        ({"data": 1, "key": ""}, "member.empty", "/key"),
        ({"data": 1, "id": 5}, "member.type", "/id"),
        ({"data": 1, "id": None}, "member.type", "/id"),
        ({"data": 1, "id": "x" * 129}, "member.length", "/id"),
        ({"data": 1, "type": "x" * 129}, "member.length", "/type"),
        ({"data": 1, "key": "x" * 129}, "member.length", "/key"),
        ({"data": 1, "source": "x" * 1025}, "member.length", "/source"),
        ({"data": 1, "time": "yesterday"}, "member.format", "/time"),
        ({"data": 1, "topics": "a"}, "member.type", "/topics"),
        ({"data": 1, "topics": ["a", 1]}, "member.type", "/topics/1"),
        ({"data": 1, "topics": ["a.*"]}, "member.format", "/topics/0"),
        ({"data": 1, "topics": ["a.>"]}, "member.format", "/topics/0"),
        ({"data": 1, "topics": ["a..b"]}, "member.format", "/topics/0"),
        ({"data": 1, "topics": ["a b"]}, "member.format", "/topics/0"),
        ({"data": 1, "topics": [""]}, "member.format", "/topics/0"),
        ({"data": 1, "topics": ["x" * 129]}, "member.format", "/topics/0"),
        ({"data": 1, "topics": ["x"] * 33}, "member.length", "/topics"),
        ({"data": 1, "metadata": []}, "member.type", "/metadata"),
        ({"data": 1, "metadata": {"a": "x" * 20_000}}, "member.length", "/metadata"),
        ({"data": 1, "salt": 5}, "member.type", "/salt"),
        ({"data": 1, "salt": SALT[:-1]}, "member.format", "/salt"),
        ({"data": 1, "salt": "AAAAAAAAAAAAAAAAAAAAAB=="}, "member.format", "/salt"),
        ({"data": 1, "salt": base64.b64encode(bytes(15)).decode()}, "member.length", "/salt"),
        ({"data_base64": 5}, "member.type", "/data_base64"),
        ({"data_base64": "a b="}, "member.format", "/data_base64"),
        ({"data_base64": "YQ"}, "member.format", "/data_base64"),
        ({"data_base64": "YR=="}, "member.format", "/data_base64"),
        ({"data_base64": "_-8="}, "member.format", "/data_base64"),
        ({"data": 1, "tx": "00"}, "member.requires", "/tx"),
        ({"data": 1, "txid": "0" * 64, "id": "x"}, "member.requires", "/txid"),
        ({"data": 1, "signature": "s", "id": "x", "salt": SALT}, "member.format", "/signature"),
        ({"data": 1, "signature": "AAAA", "id": "x", "salt": SALT}, "member.format", "/signature"),
        ({"data": 1, "signature": 1, "id": "x", "salt": SALT}, "member.type", "/signature"),
        ({"data": 1, "txid": 1, "id": "x", "salt": SALT}, "member.type", "/txid"),
        ({"data": 1, "txid": "0" * 63, "id": "x", "salt": SALT}, "member.format", "/txid"),
        ({"data": 1, "tx": {}, "id": "x", "salt": SALT}, "member.type", "/tx"),
        ({"data": 1, "tx": "00", "id": "x", "salt": SALT}, "tx.form", "/tx"),
        ({"data": 1, "tx": [1, 256], "id": "x", "salt": SALT}, "tx.form", "/tx"),
        (b"[]", "packet.object", ""),
        (b'"x"', "packet.object", ""),
        (b"5", "packet.object", ""),
        (b'{"data":1,"data":1}', "json.duplicate_key", "/data"),
        (b'{"data":1,"metadata":{"a":1,"a":1}}', "json.duplicate_key", "/metadata/a"),
        (b'{"data":1,"topics":["a"],"topics":["a"]}', "json.duplicate_key", "/topics"),
        (b'{"data":1,"metadata":{"a":1e999}}', "json.number", "/metadata/a"),
        (b'{"data":"\xff"}', "json.utf8", ""),
        (b'{"data":' + b"[" * 65 + b"]" * 65 + b"}", "json.depth", ""),
    ],
)
def test_each_mistake_is_named_with_its_place(packet: Any, code: str, pointer: str) -> None:
    """A mistake in a member is refused with its rule and a pointer into the packet object."""
    error = refusal_of(packet)
    assert error.status == 422
    assert (error.violations[0].code, error.violations[0].pointer) == (code, pointer)


def test_data_may_nest_as_deep_as_the_limit_says() -> None:
    """The packet object itself doesn't count: 64 levels inside data pass."""
    decode_packet(b'{"data":' + b"[" * 64 + b"]" * 64 + b"}", 0, LIMITS)


def test_all_mistakes_of_a_packet_come_at_once() -> None:
    """One answer names every wrong member, each with the packet's place in the request."""
    error = refusal_of({"data": 1, "id": "", "key": 5, "tpye": "x"})
    assert [found.pointer for found in error.violations] == ["/tpye", "/id", "/key"]
    assert {found.index for found in error.violations} == {7}
    assert "did you mean 'type'" in error.violations[0].detail


@pytest.mark.parametrize(
    "text",
    ["2024-01-15T10:30:00Z", "2024-02-29T00:00:00z", "2024-01-15t10:30:00.123456789+23:59", "2016-12-31T23:59:60Z",
     "0001-01-01T00:00:00Z", "2017-01-01T05:29:60+05:30"],
)  # fmt: skip
def test_times_that_are_rfc_3339_pass(text: str) -> None:
    """Fractions of any length, offsets, lower case and leap seconds pass, and are kept as sent."""
    assert decode_packet(json.dumps({"data": 1, "time": text}).encode(), 0, LIMITS).draft.time == text


@pytest.mark.parametrize(
    "text",
    ["2024-01-15", "2024-01-15T10:30:00", "2024-01-15 10:30:00Z", "2023-02-29T00:00:00Z", "2024-01-15T24:00:00Z",
     "2024-01-15T10:30:61Z", "2024-01-15T10:00:60Z", "0000-01-01T00:00:00Z", "2024-01-15T10:30Z", "20240115T103000Z",
     "2024-01-15T10:30:00+24:00", "2024-01-15T10:30:00.Z", "٢٠٢٤-01-15T10:30:00Z", "2024-W03-1T00:00:00Z", " 2024-01-15T10:30:00Z"],
)  # fmt: skip
def test_times_that_are_not_rfc_3339_fail(text: str) -> None:
    """A missing zone, an impossible date or another ISO 8601 form is refused."""
    assert refusal_of({"data": 1, "time": text}).violations[0].pointer == "/time"


@given(st.dictionaries(st.sampled_from(sorted(MEMBERS)) | st.text(max_size=5), st.none() | st.text() | st.integers() | st.lists(st.text(max_size=3)) | st.dictionaries(st.text(max_size=2), st.text())))  # fmt: skip
def test_objects_never_escape_the_error_tree(packet: dict[str, Any]) -> None:
    """Whatever members an object has, it becomes a draft or an error of the tree."""
    with contextlib.suppress(OverlaydError):
        draft = decode_packet(json.dumps(packet).encode(), 0, LIMITS).draft
        assert msgspec.json.decode(draft.sent) == packet.get("data", packet.get("data_base64"))


@given(
    st.lists(
        st.recursive(
            st.none() | st.integers(0, 9) | st.text(max_size=4), lambda x: st.lists(x, max_size=3), max_leaves=6
        )
    )
)
def test_arrays_split_into_the_texts_of_their_elements(elements: list[Any]) -> None:
    """Splitting gives each element's own text, without the white space around it."""
    texts = [json.dumps(element).encode() for element in elements]
    body = b" \n[ " + b" ,\t".join(texts) + b" ]\r\n"
    assert is_array(body)
    assert split_array(body, LIMITS) == texts


@pytest.mark.parametrize("body", [b"[", b"[{]", b"[1,]", b"[1] x", b"[{}{}]", b'{"data":1}', b""])
def test_a_broken_array_is_malformed_as_a_whole(body: bytes) -> None:
    """A body that isn't one JSON array is refused as a whole, before any packet is looked at."""
    with pytest.raises(MalformedJson):
        split_array(body, LIMITS)


def test_hostile_arrays_are_refused_before_they_cost_anything() -> None:
    """Nesting and the number of packets are bounded for the whole body."""
    with pytest.raises(UnusableJson):
        split_array(b"[" * 100_000, LIMITS)
    with pytest.raises(BatchTooLarge):
        split_array(b"[" + b"1," * 10_000 + b"1]", LIMITS)
    assert len(split_array(b"[" + b"1," * 9_999 + b"1]", LIMITS)) == 10_000


@pytest.mark.parametrize(
    ("body", "answer"), [(b" [", True), (b"\n\t[1]", True), (b"{}", False), (b"", False), (b"1", False)]
)
def test_the_first_byte_tells_an_array_from_a_packet(body: bytes, answer: bool) -> None:
    """White space in front doesn't matter."""
    assert is_array(body) is answer
