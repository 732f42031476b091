"""The wire bodies: what is left out, what is kept byte for byte, and what the served documents say of them."""

import jsonschema_rs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlayd.model import wire
from overlayd.model.cursor import make_epoch
from overlayd.model.definition import Definition, encode_definition
from overlayd.model.draft import Receipt
from overlayd.model.limits import Limits
from overlayd.model.names import StreamName
from overlayd.model.wire_publish import PacketIn
from overlayd.model.wire_schema import schema_components

EPOCH = make_epoch(1, b"\0\0\0\0\5")


def make_receipt(**changes: object) -> Receipt:
    """A receipt with everything an ordinary one has."""
    receipt = Receipt(
        index=0, stream=StreamName("a.b"), sequence=3, offset=9, epoch=EPOCH, packet_id="p-1",
        content_hash=b"\x01" * 32, leaf=b"\x02" * 32, appended_us=1_700_000_000_000_001,
    )  # fmt: skip
    return msgspec.structs.replace(receipt, **changes)


def test_receipt_says_what_is_known_and_nothing_else() -> None:
    """A receipt holds cursor, hashes and durability; a missing commitment or content hash is left out."""
    body = msgspec.json.decode(wire.encode_wire(wire.receipt_body(make_receipt(), EPOCH)))
    assert body == {
        "stream": "a.b", "sequence": 3, "offset": 9, "cursor": "e1aaaaaaaf-9", "id": "p-1",
        "content_hash": "blake3:" + "01" * 32, "leaf_hash": "sha256:" + "02" * 32,
        "appended_at": "2023-11-14T22:13:20.000001Z", "durability": "full", "duplicate": False,
        "confirmation_status": "none",
    }  # fmt: skip
    bare = wire.receipt_body(make_receipt(content_hash=b"", commitment=b"\x03" * 32, duplicate=True), EPOCH)
    again = msgspec.json.decode(wire.encode_wire(bare))
    assert "content_hash" not in again
    assert again["commitment"] == "sha256:" + "03" * 32
    assert again["duplicate"] is True


def test_payload_travels_byte_for_byte() -> None:
    """White space, number spelling and escapes of data_payload survive decoding and encoding."""
    payload = b'{ "a":1.0e2,\n"b":"\\u00e9" , "c":123456789012345678}'
    text = (
        b'{"type":"packet","stream_id":"s","cursor":"e","packet":{"stream_id":"s","packet_sequence":1,"packet_id":"x",'
    )
    text += b'"offset":1,"appended_at":"t","data_payload":' + payload
    text += b',"content_hash":"blake3:%s","leaf_hash":"sha256:%s","new_member":1}}' % (b"0" * 64, b"0" * 64)
    message = msgspec.json.decode(text, type=wire.ServerMessage)
    assert isinstance(message, wire.PacketMessage)
    assert bytes(message.packet.data_payload) == payload
    assert payload in wire.encode_wire(message)


def test_from_is_spelled_as_in_the_contract() -> None:
    """Members named `from` are spelled so on the wire although Python reserves the word."""
    gap = wire.GapMessage(from_="e1aaaaaaaf-1", to="e1aaaaaaaf-2", reason="retention")
    assert wire.encode_wire(gap) == b'{"type":"gap","from":"e1aaaaaaaf-1","to":"e1aaaaaaaf-2","reason":"retention"}'
    subscribe = msgspec.json.decode(b'{"type":"subscribe","id":"a","from":"beginning"}', type=wire.ClientMessage)
    assert isinstance(subscribe, wire.SubscribeMessage)
    assert subscribe.from_ == "beginning"


@given(st.binary(min_size=32, max_size=32))
def test_hash_texts_round_trip(digest: bytes) -> None:
    """A hash's text form parses back to the hash."""
    assert wire.parse_blake3(wire.format_blake3(digest)) == digest
    assert wire.parse_sha256(wire.format_sha256(digest)) == digest


@pytest.mark.parametrize("text", ["", "blake3:", "sha256:" + "0" * 64, "blake3:" + "A" * 64, "blake3:" + "0" * 63,
                                  "blake3:" + "0" * 62 + "  ", "blake3:" + "g" * 64, "blake3:" + "0" * 65])  # fmt: skip
def test_loose_hash_texts_are_refused(text: str) -> None:
    """Only the exact form counts: prefix, 64 lower-case hex digits, nothing else."""
    with pytest.raises(ValueError, match="not a hash"):
        wire.parse_blake3(text)


def test_stream_body_shows_the_definition_on_one_level() -> None:
    """A stream's definition members stand beside its state, in the definition's own text form."""
    definition = Definition(title="Weather", key="data.id")
    body = wire.StreamBody(
        **{field: getattr(definition, field) for field in Definition.__struct_fields__},
        stream="w", owner="api", state="active", definition_version=1, created_at="t", head_sequence=0,
        oldest_sequence=0, packets=0, bytes=0,
    )  # fmt: skip
    shown = msgspec.json.decode(wire.encode_wire(body))
    assert shown.items() >= msgspec.json.decode(encode_definition(definition)).items()
    assert shown["retention"]["max_age"] == "30d"
    assert "subscribers" not in shown


def test_schemas_describe_units_as_text_with_their_defaults() -> None:
    """Durations and sizes appear as text with the default as people write it, and what is encoded fits the schema."""
    (ref, *_), components = schema_components(
        [Definition, wire.StreamList, wire.ServerMessage, wire.ClientMessage, PacketIn, Limits], "#/$defs/{name}"
    )
    assert components["RetentionRule"]["properties"]["max_age"]["default"] == "30d"
    assert components["Definition"]["properties"]["limits"]["default"]["packet_bytes"] == "1MiB"
    assert components["Limits"]["properties"]["head_bytes"]["default"] == "16KiB"
    assert components["StreamBody"]["properties"]["limits"] == components["Definition"]["properties"]["limits"]
    validator = jsonschema_rs.validator_for({**ref, "$defs": components})
    validator.validate(msgspec.json.decode(encode_definition(Definition(schema=True))))


def test_every_member_of_a_receipt_is_described() -> None:
    """The served documents explain a receipt's members."""
    _, components = schema_components([wire.ReceiptBody], "#/$defs/{name}")
    for name, member in components["ReceiptBody"]["properties"].items():
        assert "description" in member or "enum" in member or "anyOf" in member, name
