"""Streams over HTTP: definitions, conflicts, lists, states, deletion, rights."""

import gzip
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from route_rig import LOOPBACK, Node, open_node

from overlayd.model.definition import Definition, RetentionRule
from overlayd.model.units import Duration

JSON = "application/json"


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    """A node with routes over a real log."""
    async with open_node(tmp_path) as running:
        yield running


async def put(node: Node, stream: str, definition: str = "{}", **headers: str) -> str:
    """Defines a stream and gives its ETag."""
    reply = await node.ask("PUT", f"/v1/streams/{stream}", definition, Content_Type=JSON, **headers)
    assert reply.status in (200, 201), reply
    return reply.headers["etag"]


async def test_create_change_show(node: Node) -> None:
    """A PUT creates with 201, changes with 200, repeats without a new version; a GET shows where the stream stands."""
    created = await node.ask("PUT", "/v1/streams/a.b", '{"title":"One","tags":["x"]}', Content_Type=JSON)
    assert (created.status, created.json["definition_version"]) == (201, 1)
    same = await node.ask("PUT", "/v1/streams/a.b", '{"tags":["x"],"title":"One"}', Content_Type=JSON)
    assert (same.status, same.json["definition_version"]) == (200, 1)
    changed = await node.ask("PUT", "/v1/streams/a.b", '{"title":"Two"}', Content_Type=JSON)
    assert (changed.status, changed.json["definition_version"], changed.json["tags"]) == (200, 2, [])
    await node.append("a.b", b"1", b"2")
    shown = (await node.ask("GET", "/v1/streams/a.b", who=LOOPBACK)).json
    assert (shown["head_sequence"], shown["oldest_sequence"], shown["packets"]) == (2, 1, 2)
    assert (shown["state"], shown["owner"], shown["subscribers"]) == ("active", "api", 0)
    assert shown["last_packet_at"].endswith("Z")


async def test_defaults(tmp_path: Path) -> None:
    """What a definition leaves out, also inside one of its groups, is as the node's defaults have it."""
    rule = RetentionRule(max_age=Duration(3600), max_packets=9)
    async with open_node(tmp_path, defaults=Definition(tags=("plant",), retention=rule)) as node:
        plain = (await node.ask("PUT", "/v1/streams/a", "{}", Content_Type=JSON)).json
        assert (plain["tags"], plain["retention"]["max_age"]) == (["plant"], "1h")
        body = '{"tags":[],"title":"T","retention":{"max_age":"2h"}}'
        said = (await node.ask("PUT", "/v1/streams/b", body, Content_Type=JSON)).json
        assert (said["tags"], said["title"]) == ([], "T")
        assert (said["retention"]["max_age"], said["retention"]["max_packets"]) == ("2h", 9)


async def test_if_match(node: Node) -> None:
    """A conditional PUT changes only what its sender saw."""
    first = await put(node, "a", '{"title":"1"}')
    second = await put(node, "a", '{"title":"2"}', If_Match=first)
    assert second != first
    for stale in (first, '"99-0000"', f"W/{second}"):
        reply = await node.ask("PUT", "/v1/streams/a", '{"title":"3"}', Content_Type=JSON, If_Match=stale)
        assert (reply.status, reply.json["code"]) == (409, "definition.conflict")
    await put(node, "a", '{"title":"4"}', If_Match=f'"x", {second}')
    await put(node, "a", '{"title":"5"}', If_Match="*")
    reply = await node.ask("PUT", "/v1/streams/new", "{}", Content_Type=JSON, If_Match="*")
    assert reply.status == 409
    reply = await node.ask("PUT", "/v1/streams/a", "{}", Content_Type=JSON, If_None_Match="*")
    assert reply.status == 409
    await put(node, "new", "{}", If_None_Match="*")


async def test_etag_of_a_new_stream_of_the_old_name(node: Node) -> None:
    """A stream that was deleted and made again isn't the one whose ETag was seen."""
    first = await put(node, "a")
    assert (await node.ask("DELETE", "/v1/streams/a?confirm=a")).status == 200
    assert await put(node, "a") != first


@pytest.mark.parametrize(
    ("body", "code", "pointer"),
    [('{"title":1}', "definition.invalid", "/title"), ('{"titel":"x"}', "definition.invalid", ""),
     ('{"tags":["a",2]}', "definition.invalid", "/tags/1"), ('{"retention":{"max_age":"soon"}}', "definition.invalid", None),
     ('{"confirm":{"depths":[0]}}', "definition.invalid", "/confirm/depths/0"), ("[]", "definition.invalid", ""),
     ('{"schema":{"type":"nonsense"}}', "definition.invalid", None), ("{", "json.malformed", None),
     ('{"schema":{"$ref":"file:///etc/passwd"}}', "definition.invalid", None),
     ('{"title":"a","title":"b"}', "json.unusable", None), ('{"title":"\\ud800"}', "json.unusable", None),
     ('{"confirm":{"commit":"batch"}}', "definition.invalid", None)],
)  # fmt: skip
async def test_unusable_definitions(node: Node, body: str, code: str, pointer: str | None) -> None:
    """A definition that can't be used is refused with the place of the mistake, and changes nothing."""
    reply = await node.ask("PUT", "/v1/streams/a", body, Content_Type=JSON)
    assert reply.status in (400, 422)
    assert reply.json["code"] == code
    if pointer is not None:
        assert reply.json["errors"][0]["pointer"] == pointer
    assert (await node.ask("GET", "/v1/streams/a")).status == 404


async def test_definition_bodies(node: Node) -> None:
    """Definitions may be gzipped; forms are 415 with a command line that works; over the limit is 413."""
    packed = gzip.compress(b'{"title":"x"}')
    reply = await node.ask("PUT", "/v1/streams/a", packed, Content_Type=JSON, Content_Encoding="gzip")
    assert reply.status == 201
    reply = await node.ask("PUT", "/v1/streams/a", "{}", Content_Type="application/x-www-form-urlencoded")
    assert reply.status == 415
    assert "curl" in reply.json["detail"]
    reply = await node.ask("PUT", "/v1/streams/a", b'{"title":"' + b"x" * 300_000 + b'"}', Content_Type=JSON)
    assert (reply.status, reply.json["subject"]) == (413, "definition_bytes")


async def test_names(node: Node) -> None:
    """Names that aren't names are 400, the node's own 403, unknown ones 404."""
    for name in ("A", "a..b", "a b", "a*", "-" * 200):
        assert (await node.ask("PUT", f"/v1/streams/{name}", "{}", Content_Type=JSON)).status == 400
    assert (await node.ask("PUT", "/v1/streams/overlayd.x", "{}", Content_Type=JSON)).status == 403
    for method, path in (("GET", "a"), ("DELETE", "a?confirm=a")):
        assert (await node.ask(method, f"/v1/streams/{path}")).json["code"] == "stream.unknown"


async def test_list(node: Node) -> None:
    """The list is by name, in pages, narrowed by text, tag and state."""
    for name in ("c", "a", "b.x", "b.y"):
        await put(node, name, f'{{"title":"Title {name.upper()}","tags":["t{name[0]}"]}}')
    await node.ask("PUT", "/v1/streams/a/state", '{"state":"paused"}', Content_Type=JSON)

    async def names(query: str) -> list[str]:
        body = (await node.ask("GET", f"/v1/streams{query}", who=LOOPBACK)).json
        return [stream["stream"] for stream in body["streams"]] + [body.get("next_after", "end")]

    assert await names("") == ["a", "b.x", "b.y", "c", "end"]
    assert await names("?limit=2") == ["a", "b.x", "b.x"]
    assert await names("?limit=2&after=b.x") == ["b.y", "c", "end"]
    assert await names("?q=B.") == ["b.x", "b.y", "end"]
    assert await names("?q=title%20c") == ["c", "end"]
    assert await names("?tag=tb&limit=1") == ["b.x", "b.x"]
    assert await names("?state=paused") == ["a", "end"]
    assert await names("?q=nothing") == ["end"]


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=x", "limit=1001", "limit=-1", "limit=1&limit=2", "state=open", "nme=x", "limit=%F0"]
)
async def test_list_parameters(node: Node, query: str) -> None:
    """A parameter that is wrong, unknown or given twice is 400 by its name."""
    reply = await node.ask("GET", f"/v1/streams?{query}")
    assert (reply.status, reply.json["code"]) == (400, "parameter.invalid")


async def test_near_parameter_is_named(node: Node) -> None:
    """A typing error gets the name that was probably meant."""
    assert "state" in (await node.ask("GET", "/v1/streams?stat=active")).json["hint"]


async def test_state(node: Node) -> None:
    """A paused stream takes no packets; states can be set again and wrong ones are refused."""
    await put(node, "a")
    for state in ("paused", "stopped", "active", "active"):
        reply = await node.ask("PUT", "/v1/streams/a/state", f'{{"state":"{state}"}}', Content_Type=JSON)
        assert (reply.status, reply.json["state"]) == (200, state)
    assert node.stopped == ["a"]
    for body in ('{"state":"asleep"}', '{"state":1}', "{}", '{"state":"active","x":1}', "7"):
        assert (await node.ask("PUT", "/v1/streams/a/state", body, Content_Type=JSON)).status == 422
    assert (await node.ask("PUT", "/v1/streams/a/state", "nonsense", Content_Type=JSON)).status == 400
    assert (await node.ask("PUT", "/v1/streams/b/state", '{"state":"active"}', Content_Type=JSON)).status == 404


async def test_delete(node: Node) -> None:
    """Deleting needs the name again, gives the number of packets, and frees the name."""
    await put(node, "a")
    await node.append("a", b"1", b"2", b"3")
    for query in ("", "?confirm=", "?confirm=b", "?confirm=A"):
        assert (await node.ask("DELETE", f"/v1/streams/a{query}")).status == 400
    reply = await node.ask("DELETE", "/v1/streams/a?confirm=a")
    assert (reply.status, reply.json) == (200, {"stream": "a", "packets_removed": 3})
    assert (await node.ask("GET", "/v1/streams/a")).status == 404


async def test_rights(node: Node) -> None:
    """Without the right `manage` nothing is changed, and the answer says how to come by it."""
    await put(node, "a")
    for method, path, body in (
        ("PUT", "/v1/streams/b", "{}"), ("DELETE", "/v1/streams/a?confirm=a", ""),
        ("PUT", "/v1/streams/a/state", '{"state":"paused"}'),
    ):  # fmt: skip
        reply = await node.ask(method, path, body, who=LOOPBACK, Content_Type=JSON)
        assert (reply.status, reply.json["code"]) == (403, "access.forbidden")
        assert "overlayd.sock" in reply.json["hint"]
    assert [stream.name for stream in node.log.list_streams()] == ["a", "overlayd.audit"]
