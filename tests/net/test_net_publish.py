"""Publishing over HTTP in every form: what is answered, and what is in the log afterwards."""

import base64
import gzip
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from route_rig import LOOPBACK, STRANGER, Node, open_node, principal_with

from overlayd.model.limits import Limits
from overlayd.model.note import VerifierKey
from overlayd.model.proof import TrustedKeys, decode_proof, verify_proof
from overlayd.model.units import Size
from overlayd.model.wire import PublishBody
from overlayd.net.publish_answers import PublishText

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
EVENTS = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"
PATH = "/v1/streams/a/packets"
DATA = "/v1/streams/a/data"


@pytest.fixture(params=["Quart", "lane"])
async def node(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Node]:
    """A node with routes over a real log, with and without the publish lane."""
    limits = Limits(packet_bytes=Size(2000), body_bytes=Size(100_000), errors_max=5, batch_packets_max=50)
    async with open_node(tmp_path, limits, is_fast=request.param == "lane") as running:
        yield running


async def post(node: Node, body: Any, path: str = PATH, **headers: str) -> Any:
    """Publishes; what isn't bytes is sent as JSON."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers.setdefault("Content_Type", JSON)
    return await node.ask("POST", path, raw, who=LOOPBACK, **headers)


async def stored(node: Node, stream: str = "a") -> list[bytes]:
    """The bodies in the log."""
    found = node.log.find_stream(stream)
    return [] if found is None else [entry.body for entry in await node.log.read_packets(found, 0, 1000)]


async def test_one_packet(node: Node) -> None:
    """A packet is 201 with its receipt; a repeat 200 with the first one; the id with other content 422."""
    first = await post(node, {"data": {"t": 21}, "id": "i-1"})
    assert first.status == 201
    receipt = first.json
    assert (receipt["stream"], receipt["sequence"], receipt["id"]) == ("a", 1, "i-1")
    assert (receipt["durability"], receipt["duplicate"]) == ("full", False)
    again = await post(node, {"data": {"t": 21}, "id": "i-1"})
    assert (again.status, again.json) == (200, {**receipt, "duplicate": True})
    other = await post(node, {"data": {"t": 22}, "id": "i-1"})
    assert (other.status, other.json["code"]) == (422, "packet.id_reused")
    assert await stored(node) == [b'{"t": 21}']


async def test_data_of_any_kind(node: Node) -> None:
    """…/data takes what curl sends: JSON under a form's type, text, octets, nothing but what it is."""
    for body, content_type, kept in (
        (b'{"t":21}', FORM, b'{"t":21}'), (b"21", FORM, b"21"), (b"warm", FORM, b'"warm"'),
        (b'{"t":22}', JSON, b'{"t":22}'), ("grün".encode(), "text/plain", '"grün"'.encode()),
        (b"\x00\xff", "application/octet-stream", b'"AP8="'),
    ):  # fmt: skip
        reply = await node.ask("POST", DATA, body, who=LOOPBACK, Content_Type=content_type)
        assert reply.status == 201, reply
        assert (await stored(node))[-1] == kept
    assert (await node.ask("POST", DATA, b'{"t":', who=LOOPBACK, Content_Type=JSON)).status == 400
    assert (await node.ask("POST", DATA, b"", who=LOOPBACK)).status == 422


async def test_data_query(node: Node) -> None:
    """The query gives id, type and key; Idempotency-Key stands for the id, or must equal it."""
    reply = await node.ask("POST", DATA + "?id=x&type=reading&key=k", b"1", who=LOOPBACK)
    assert (reply.status, reply.json["id"]) == (201, "x")
    assert (await node.ask("POST", DATA, b"1", who=LOOPBACK, Idempotency_Key="y")).json["id"] == "y"
    assert (await node.ask("POST", DATA, b"1", who=LOOPBACK, Idempotency_Key="y")).status == 200
    reply = await node.ask("POST", DATA + "?id=x", b"1", who=LOOPBACK, Idempotency_Key="y")
    assert (reply.status, reply.json["code"]) == (400, "parameter.invalid")
    assert (await node.ask("POST", DATA + "?atomic=true", b"1", who=LOOPBACK)).status == 400
    assert (await node.ask("POST", DATA, b"x" * 2001, who=LOOPBACK)).status == 413


async def test_array(node: Node) -> None:
    """An array is all or none, unless it says otherwise; counts, receipts and errors with places."""
    reply = await post(node, [{"data": 1, "id": "1"}, {"data": 2, "id": "2"}])
    assert (reply.status, reply.json["accepted"], reply.json["duplicates"], reply.json["rejected"]) == (201, 2, 0, 0)
    assert [receipt["sequence"] for receipt in reply.json["receipts"]] == [1, 2]
    again = await post(node, [{"data": 1, "id": "1"}, {"data": 2, "id": "2"}])
    assert (again.status, again.json["duplicates"]) == (200, 2)
    mixed = [{"data": 3}, {"data": 4, "type": 5}, {"data": 6, "id": "1"}, {"dta": 7}]
    refused = await post(node, mixed)
    assert refused.status == 422
    assert {error["index"] for error in refused.json["errors"]} >= {1, 3}
    assert len(await stored(node)) == 2
    partial = await post(node, mixed, PATH + "?atomic=false")
    assert (partial.status, partial.json["accepted"], partial.json["rejected"]) == (201, 1, 3)
    assert sorted({error["index"] for error in partial.json["errors"]}) == [1, 2, 3]
    assert await stored(node) == [b"1", b"2", b"3"]


async def test_array_all_rejected(node: Node) -> None:
    """When nothing was taken the answer is 422, a problem with the counts; long lists of errors are cut."""
    reply = await post(node, [{"data": 1, "id": 5}] * 20, PATH + "?atomic=false")
    assert (reply.status, reply.headers["content-type"]) == (422, "application/problem+json")
    assert (reply.json["rejected"], reply.json["accepted"], len(reply.json["errors"])) == (20, 0, 5)


async def test_array_bounds(node: Node) -> None:
    """Too many packets, or too many bytes, are 413; an empty array takes nothing and says so."""
    assert (await post(node, [{"data": 1}] * 51)).json["code"] == "batch.too_large"
    reply = await post(node, [{"data": "x" * 1900}] * 60)
    assert (reply.status, reply.json["subject"]) == (413, "body_bytes")
    assert (await post(node, [])).json["accepted"] == 0
    assert (await post(node, {"data": "x" * 3000})).json["code"] == "packet.too_large"
    assert await stored(node) == []


async def test_expected_sequence(node: Node) -> None:
    """A packet goes in only where its sender thinks the stream stands."""
    assert (await post(node, {"data": 1}, PATH + "?expected_sequence=0")).status == 201
    refused = await post(node, {"data": 2}, PATH + "?expected_sequence=0")
    assert (refused.status, refused.json["code"]) == (409, "sequence.mismatch")
    assert (await post(node, [{"data": 2}, {"data": 3}], PATH + "?expected_sequence=1")).status == 201
    for bad in ("-1", "x", "", "1.5", "99999999999999999999"):
        assert (await post(node, {"data": 2}, f"{PATH}?expected_sequence={bad}")).status == 400


async def test_idempotency_key(node: Node) -> None:
    """It stands for the id of a single packet, must equal one that is there, and doesn't go with arrays."""
    assert (await post(node, {"data": 1}, Idempotency_Key="k")).json["id"] == "k"
    assert (await post(node, {"data": 1}, Idempotency_Key="k")).status == 200
    assert (await post(node, {"data": 1, "id": "k"}, Idempotency_Key="k")).status == 200
    for body, key in (({"data": 1, "id": "x"}, "k"), ([{"data": 1}], "k"), ({"data": 1}, "k" * 129), ({"data": 1}, "")):
        assert (await post(node, body, Idempotency_Key=key)).status == 400


async def test_gzip(node: Node) -> None:
    """A compressed body counts by what is in it."""
    packed = gzip.compress(b'{"data":1}')
    assert (await post(node, packed, Content_Encoding="gzip")).status == 201
    bomb = gzip.compress(b'{"data":"' + b"x" * 10_000_000 + b'"}')
    assert (await post(node, bomb, Content_Encoding="gzip")).status == 413
    assert (await post(node, b"plain", Content_Encoding="gzip")).json["code"] == "request.malformed"
    assert (await post(node, packed, Content_Encoding="br")).json["code"] == "content.encoding"


EVENT = {"specversion": "1.0", "id": "e-1", "source": "/sensors/1", "type": "reading", "data": {"t": 1}}


async def test_cloud_events(node: Node) -> None:
    """Structured, batched and binary CloudEvents become packets; the same event twice is a duplicate."""
    first = await post(node, EVENT, Content_Type=EVENTS)
    assert (first.status, first.json["id"]) == (201, "e-1")
    assert (await post(node, EVENT, Content_Type=EVENTS)).status == 200
    batch = [{**EVENT, "id": "e-2"}, {**EVENT, "id": "e-3"}]
    assert (await post(node, batch, Content_Type=BATCH)).json["accepted"] == 2
    reply = await node.ask(
        "POST", PATH, b'{"t":4}', who=LOOPBACK, Content_Type=JSON, ce_specversion="1.0", ce_id="e-4",
        ce_source="/sensors/1", ce_type="reading",
    )  # fmt: skip
    assert (reply.status, reply.json["id"]) == (201, "e-4")
    assert await stored(node) == [b'{"t": 1}', b'{"t": 1}', b'{"t": 1}', b'{"t":4}']


async def test_bad_cloud_events(node: Node) -> None:
    """Events with mistakes are refused, batches as a whole unless they say otherwise."""
    assert (await post(node, {**EVENT, "specversion": "0.3"}, Content_Type=EVENTS)).status == 422
    assert (await post(node, EVENT, Content_Type=EVENTS, Idempotency_Key="other")).status == 400
    batch = [EVENT, {**EVENT, "id": "e-2", "type": ""}]
    refused = await post(node, batch, Content_Type=BATCH)
    assert (refused.status, refused.json["errors"][0]["index"]) == (422, 1)
    assert await stored(node) == []
    partial = await post(node, batch, PATH + "?atomic=false", Content_Type=BATCH)
    assert (partial.status, partial.json["accepted"], partial.json["errors"][0]["index"]) == (201, 1, 1)


async def test_proofs_in_receipts(node: Node) -> None:
    """With `proof=true` each receipt carries a proof that stands alone, for repeats too."""
    body = (await node.ask("GET", "/v1/node")).json
    keys = TrustedKeys(log_keys=(VerifierKey.parse(body["keys"][0]),), log_id=body["log"])
    one = await post(node, {"data": 1, "id": "1"}, PATH + "?proof=true")
    many = await post(node, [{"data": 1, "id": "1"}, {"data": 2}], PATH + "?proof=true")
    data = await node.ask("POST", DATA + "?proof=true", b"3", who=LOOPBACK)
    receipts = [one.json, *many.json["receipts"], data.json]
    assert [receipt["sequence"] for receipt in receipts] == [1, 1, 2, 3]
    for receipt in receipts:
        proof = decode_proof(json.dumps(receipt["proof"]).encode())
        verify_proof(proof, keys)
        assert (proof.offset, proof.leaf_hash) == (receipt["offset"], receipt["leaf_hash"])


async def test_first_curl(node: Node) -> None:
    """The mistakes of a first curl get the command line that works: another content type, data without `data`."""
    wrong = await post(node, b'{"t":21}', Content_Type=FORM)
    assert (wrong.status, wrong.json["code"]) == (415, "content.type")
    assert '-d \'{"data": {"t":21}}\' http://localhost/v1/streams/a/packets' in wrong.json["detail"]
    assert "curl -d '{\"t\":21}' http://localhost/v1/streams/a/data" in wrong.json["detail"]
    bare = await post(node, b'{"t":21}')
    assert bare.status == 422
    assert "curl -d '{\"t\":21}' http://localhost/v1/streams/a/data" in bare.json["detail"]
    quoted = await post(node, b'{"t":"it\'s"}', Content_Type=FORM)
    assert "it's" not in quoted.json["detail"]


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"", 400), (b"{", 400), (b"nonsense", 400), (b'{"data":NaN}', 400), (b'{"data":1}{"data":2}', 400),
     (b'{"data":1e400}', 422), (b'{"data":' + b"9" * 500 + b"}", 422), (b'{"data":"\xff"}', 422),
     (b'{"data":1,"data":2}', 422), (b'{"data":"\\ud800"}', 422), (b'{"data":' + b"[" * 900 + b"]" * 900 + b"}", 422),
     (b'{"data":1,"id":""}', 422), (b'{"data":1,"x":2}', 422), (b"null", 422), (b"7", 422), (b'"data"', 422),
     (b'{"data":1,"time":"yesterday"}', 422), (b'{"id":"x"}', 422), (b"\xef\xbb\xbf{\"data\":1}", 400)],
)  # fmt: skip
async def test_bad_json(node: Node, body: bytes, status: int) -> None:
    """A body that no consumer could take is refused with a problem, and nothing is appended."""
    reply = await post(node, body)
    assert reply.status == status, reply
    assert reply.headers["content-type"] == "application/problem+json"
    assert await stored(node) == []


async def test_bad_text_is_told_in_plain_words(node: Node) -> None:
    """What isn't UTF-8 is named without the words of the language that the node is written in."""
    event = {"ce_specversion": "1.0", "ce_id": "%ff", "ce_source": "s", "ce_type": "t"}
    replies = [
        await post(node, b'{"data":"\xff"}'),
        await post(node, b'[{"data":"\xff"}]'),
        await post(node, b'{"\xff":1}', DATA),
        await post(node, b'{"specversion":"1.0","id":"\xff"}', Content_Type=EVENTS),
        await post(node, b"1", **event),
        await post(node, b"1", PATH + "?atomic=%ff"),
        await node.ask("PUT", "/v1/streams/a", b'{"title":"\xff"}', Content_Type=JSON),
    ]
    for reply in replies:
        assert reply.status in (400, 422), reply
        assert "UTF-8" in reply.json["detail"], reply
        assert not re.search(r"\bb'|bytearray|codec|\\x", reply.body.decode()), reply


async def test_content_types(node: Node) -> None:
    """JSON with parameters or without any content type is taken; other types are 415."""
    assert (await post(node, b'{"data":1}', Content_Type="application/json; charset=utf-8")).status == 201
    assert (await node.ask("POST", PATH, b'{"data":1}', who=LOOPBACK)).status == 201
    for other in ("text/plain", "application/xml", "multipart/form-data; boundary=x", "application/vnd.api+json"):
        assert (await post(node, b'{"data":1}', Content_Type=other)).status == 415


async def test_unknown_streams(node: Node) -> None:
    """Publishing creates streams for who may; others get 404. The node's own streams take nothing."""
    reply = await node.ask("POST", PATH, b'{"data":1}', who=STRANGER)
    assert (reply.status, reply.json["code"]) == (404, "stream.unknown")
    assert (await post(node, {"data": 1})).status == 201
    assert (await node.ask("POST", PATH, b'{"data":1}', who=STRANGER)).status == 201
    assert (await post(node, {"data": 1}, "/v1/streams/overlayd.x/packets")).status == 403
    assert (await post(node, {"data": 1}, "/v1/streams/A/packets")).status == 400


async def test_rights_and_parameters(node: Node) -> None:
    """Without the right `publish` nothing is taken; parameters that don't go with the form are 400."""
    reply = await node.ask("POST", PATH, b'{"data":1}', who=principal_with("read"))
    assert (reply.status, reply.json["code"]) == (403, "access.forbidden")
    for query in ("stop_on_error=true", "receipts=all", "receipts=some", "atomic=perhaps", "atmic=true", "id=x"):
        assert (await post(node, {"data": 1}, f"{PATH}?{query}")).status == 400
    assert await stored(node) == []


async def test_schema_of_the_stream(node: Node) -> None:
    """A packet that breaks its stream's schema is 422 with the place."""
    schema = {"schema": {"type": "object", "properties": {"t": {"type": "number"}}, "required": ["t"]}}
    await node.ask("PUT", "/v1/streams/a", json.dumps(schema), Content_Type=JSON)
    assert (await post(node, {"data": {"t": 1}})).status == 201
    reply = await post(node, {"data": {"t": "warm"}})
    assert (reply.status, reply.json["code"], reply.json["errors"][0]["pointer"]) == (422, "packet.schema", "/data/t")
    assert (await node.ask("POST", DATA, b'{"t":2}', who=LOOPBACK, Content_Type=FORM)).status == 201


async def test_traceparent_and_principal_are_kept(node: Node) -> None:
    """The entry names the trace it came in with and who sent it; a trace that isn't one is dropped."""
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    await post(node, {"data": 1}, traceparent=trace)
    await post(node, {"data": 2}, traceparent="nonsense")
    found = node.log.find_stream("a")
    assert found is not None
    first, second = await node.log.read_packets(found, 0, 2)
    assert trace.encode() in first.meta
    assert b"loopback" in first.meta
    assert b"nonsense" not in second.meta


async def test_paused_stream(node: Node) -> None:
    """A paused stream is 409, to be tried again."""
    await post(node, {"data": 1})
    await node.ask("PUT", "/v1/streams/a/state", '{"state":"paused"}', Content_Type=JSON)
    reply = await post(node, {"data": 2})
    assert (reply.status, reply.json["code"], reply.json["retryable"]) == (409, "stream.paused", True)


async def test_octets(node: Node) -> None:
    """`data_base64` holds octets, kept as they were written."""
    text = base64.b64encode(b"\x00\x01").decode()
    assert (await post(node, {"data_base64": text})).status == 201
    assert (await post(node, {"data_base64": "AAE"})).status == 422
    assert await stored(node) == [f'"{text}"'.encode()]


def test_answer_text_has_the_members_of_the_body() -> None:
    """The answer whose receipts are text already names the same members in the same order as the documented body."""
    assert PublishText.__struct_fields__ == PublishBody.__struct_fields__
