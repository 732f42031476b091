"""CloudEvents coming in: three modes, checked against the specification's own Python SDK."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from cloudevents.core.bindings import http
from cloudevents.core.v1.event import CloudEvent
from hypothesis import given
from hypothesis import strategies as st

from overlayd.model.errors import InvalidPacket, MalformedJson, UnusableJson
from overlayd.model.limits import Limits
from overlayd.pipeline.cloudevents import decode_binary, decode_event
from overlayd.pipeline.decode import Decoded, split_array

LIMITS = Limits()
ATTRIBUTES: dict[str, Any] = {"specversion": "1.0", "id": "e-1", "source": "/plant/7", "type": "org.example.reading"}


def decode_structured(**members: Any) -> Decoded:
    """The draft of an event with the required attributes and these members."""
    return decode_event(json.dumps({**ATTRIBUTES, **members}).encode(), 0, LIMITS)


def found_in(headers: dict[str, str], body: bytes = b"1") -> list[tuple[str, str]]:
    """Rule and place of each mistake in a binary event that must be refused."""
    with pytest.raises(InvalidPacket) as caught:
        decode_binary(headers.items(), body, LIMITS)
    return [(found.code, found.pointer) for found in caught.value.violations]


texts = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=20)
sdk_events = st.builds(
    lambda required, optional, extensions, data: CloudEvent({**required, **optional, **extensions}, data),
    st.fixed_dictionaries(
        {"id": texts, "source": texts, "type": texts, "specversion": st.just("1.0"), "time": st.just(datetime(2024, 1, 15, 10, 30, tzinfo=UTC))}
    ),
    st.fixed_dictionaries({}, optional={"subject": texts, "dataschema": st.just("http://example.org/s")}),
    st.dictionaries(st.sampled_from(["partitionkey", "ext1", "abc"]), texts, max_size=3),
    st.dictionaries(st.text(max_size=4), st.integers(0, 99) | texts, max_size=3),
)  # fmt: skip


@given(sdk_events, st.booleans())
def test_what_the_sdk_sends_comes_in_whole(event: CloudEvent, is_binary: bool) -> None:
    """Events written by the SDK, structured or binary, keep every attribute and their data."""
    message = (http.to_binary_event if is_binary else http.to_structured_event)(event)
    if is_binary:
        headers = {"Content-Type": "application/json", **message.headers}
        decoded = decode_binary(headers.items(), message.body, LIMITS)
    else:
        decoded = decode_event(message.body, 0, LIMITS)
    draft = decoded.draft
    assert (draft.id, draft.source, draft.type) == (event.get_id(), event.get_source(), event.get_type())
    assert datetime.fromisoformat(draft.time) == event.get_time()
    assert decoded.value == json.loads(draft.sent) == event.get_data()
    kept = json.loads(draft.metadata or b"{}")
    for name in ("subject", "dataschema", "partitionkey", "ext1", "abc"):
        assert kept.get(name) == event.get_attributes().get(name)
    assert draft.key == event.get_attributes().get("partitionkey", event.get_attributes().get("subject", ""))


def test_data_is_cut_like_any_packet_s() -> None:
    """The event's data is the text that was sent, not a re-encoding of it."""
    raw = b'{"specversion":"1.0","id":"1","source":"s","type":"t","data" : { "a" : 1.50 } }'
    assert decode_event(raw, 0, LIMITS).draft.sent == b'{ "a" : 1.50 }'


def test_octets_stay_octets() -> None:
    """data_base64 and a binary body that is no text are marked as octets."""
    draft = decode_structured(data_base64="/+8=").draft
    assert (draft.sent, draft.is_octets) == (b'"/+8="', True)
    headers = {f"ce-{name}": value for name, value in ATTRIBUTES.items()}
    image = decode_binary({**headers, "content-type": "image/png"}.items(), b"text all the same", LIMITS)
    assert image.draft.is_octets
    assert json.loads(image.draft.metadata) == {"datacontenttype": "image/png"}


@pytest.mark.parametrize(
    ("content_type", "body", "sent", "is_octets"),
    [
        ("application/json", b' {"a" : 1} ', b'{"a" : 1}', False),
        ("application/vnd.x+json; charset=utf-8", b"[1]", b"[1]", False),
        ("text/plain", b"123", b'"123"', False),
        ("text/plain; charset=utf-8", "gr\u00fcn".encode(), '"gr\u00fcn"'.encode(), False),
        ("application/xml", b"<a/>", b'"<a/>"', False),
        ("text/plain", b"\xff", b'"/w=="', True),
        ("text/plain; charset=iso-8859-1", b"gr\xfcn", b'"Z3L8bg=="', True),
        ("application/octet-stream", b"{}", b'"e30="', True),
        ("", b"{}", b"{}", False),
        ("", b"hello", b'"hello"', False),
        ("", b"\xff", b'"/w=="', True),
        ("application/json", b"", b"null", False),
    ],
)
def test_the_content_type_of_a_binary_event_decides(
    content_type: str, body: bytes, sent: bytes, is_octets: bool
) -> None:
    """JSON is taken as it is, text as a string, the rest as base64; without a type the body decides."""
    headers = {f"Ce-{name}": value for name, value in ATTRIBUTES.items()}
    if content_type:
        headers["Content-Type"] = content_type
    draft = decode_binary(headers.items(), body, LIMITS).draft
    assert (draft.sent, draft.is_octets) == (sent, is_octets)


def test_binary_headers_are_percent_decoded() -> None:
    """Percent codes give UTF-8, double quotes are taken off, and what isn't either is refused."""
    headers = {f"ce-{name}": value for name, value in ATTRIBUTES.items()}
    draft = decode_binary({**headers, "ce-subject": "Euro%20%E2%82%AC%20%F0%9F%98%80"}.items(), b"1", LIMITS).draft
    assert draft.key == "Euro € 😀"
    quoted = decode_binary({**headers, "ce-subject": r'"a \"b\""'}.items(), b"1", LIMITS).draft
    assert quoted.key == 'a "b"'
    assert found_in({**headers, "ce-subject": "%ff"}) == [("member.format", "/subject")]
    assert found_in({**headers, "ce-subject": "100%"}) == [("member.format", "/subject")]
    assert found_in({**headers, "ce-a_b": "x"}) == [("event.name", "/a_b")]
    assert found_in({**headers, "ce-data": "x"}) == [("event.name", "/data")]
    assert found_in({**headers, "ce-id": "1", "CE-ID": "2"}) == [("member.exclusive", "/id")]


def test_json_that_a_binary_event_promises_must_be_json() -> None:
    """A body under a JSON content type that isn't JSON, or that no consumer could take, is refused."""
    headers = {f"ce-{name}": value for name, value in ATTRIBUTES.items()} | {"content-type": "application/json"}
    with pytest.raises(MalformedJson):
        decode_binary(headers.items(), b"{oops", LIMITS)
    with pytest.raises(UnusableJson):
        decode_binary(headers.items(), b'{"a":1,"a":2}', LIMITS)


@pytest.mark.parametrize(
    ("members", "code", "pointer"),
    [
        ({"specversion": "0.3"}, "event.version", "/specversion"),
        ({"specversion": None}, "event.version", "/specversion"),
        ({"id": None}, "member.missing", "/id"),
        ({"source": ""}, "member.empty", "/source"),
        ({"type": 5}, "member.type", "/type"),
        ({"time": "now"}, "member.format", "/time"),
        ({"subject": 5}, "member.type", "/subject"),
        ({"myExt": "x"}, "event.name", "/myExt"),
        ({"my-ext": "x"}, "event.name", "/my-ext"),
        ({"ext": {}}, "event.value", "/ext"),
        ({"ext": 1.5}, "event.value", "/ext"),
        ({"ext": 1 << 31}, "event.value", "/ext"),
        ({"data": 1, "data_base64": "YQ=="}, "member.exclusive", "/data_base64"),
        ({"data_base64": "YQ"}, "member.format", "/data_base64"),
        ({"id": "x" * 129}, "member.length", "/id"),
        ({"partitionkey": "x" * 129}, "member.length", "/partitionkey"),
    ],
)
def test_wrong_attributes_are_named(members: dict[str, Any], code: str, pointer: str) -> None:
    """Each attribute that breaks the specification is refused with a pointer into the event."""
    with pytest.raises(InvalidPacket) as caught:
        decode_structured(**members)
    assert (caught.value.violations[0].code, caught.value.violations[0].pointer) == (code, pointer)


def test_null_attributes_are_absent_and_a_missing_payload_is_null() -> None:
    """An attribute set to null counts as unset; an event without data carries null."""
    decoded = decode_structured(subject=None, ext=True, count=5)
    assert decoded.draft.sent == b"null"
    assert json.loads(decoded.draft.metadata) == {"ext": True, "count": 5}


def test_a_long_subject_is_no_key_and_a_trace_goes_on() -> None:
    """A subject too long for a key stays in the metadata only; a valid traceparent becomes the entry's."""
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    draft = decode_structured(subject="x" * 200, traceparent=trace).draft
    assert (draft.key, draft.traceparent) == ("", trace)
    assert json.loads(draft.metadata)["subject"] == "x" * 200
    assert decode_structured(traceparent="00-0-0-00").draft.traceparent == ""


def test_a_batch_is_an_array_of_events() -> None:
    """Batched mode splits like any array and each event stands alone."""
    body = json.dumps([{**ATTRIBUTES, "data": 1}, {**ATTRIBUTES, "id": "e-2", "data": 2}]).encode()
    drafts = [decode_event(text, at, LIMITS).draft for at, text in enumerate(split_array(body, LIMITS))]
    assert [(draft.index, draft.id, draft.sent) for draft in drafts] == [(0, "e-1", b"1"), (1, "e-2", b"2")]
    with pytest.raises(InvalidPacket, match="an event is an object"):
        decode_event(b"5", 0, LIMITS)
