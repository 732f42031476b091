"""The schema stage: nothing is fetched, nothing runs away, and mistakes are pointed at."""

import http.server
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from overlayd.model.errors import InvalidDefinition, SchemaViolation
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.pipeline.schema import DRAFTS, CompiledSchema, SchemaCache, compile_schema

LIMITS = Limits()
PROMPT_S = 0.5
"""Of the thread's own time; they need a fiftieth of it. What they hold off takes seconds, or for ever."""


def check(schema: Any, value: Any, limits: Limits = LIMITS) -> None:
    """Judges a value by a schema."""
    compile_schema(schema, limits).check(value, json.dumps(value).encode())


def mistakes_of(schema: Any, value: Any, limits: Limits = LIMITS) -> list[tuple[str, str]]:
    """Rule and place of each mistake that a value makes."""
    with pytest.raises(SchemaViolation) as caught:
        check(schema, value, limits)
    return [(found.code, found.pointer) for found in caught.value.violations]


def refusal_of(schema: Any, limits: Limits = LIMITS) -> InvalidDefinition:
    """The error that a schema is refused with."""
    with pytest.raises(InvalidDefinition) as caught:
        compile_schema(schema, limits)
    return caught.value


def test_mistakes_are_pointed_at_in_the_packet() -> None:
    """Each mistake comes with a pointer that begins at the packet's member, escaped as pointers are."""
    schema = {"properties": {"a/b": {"items": {"type": "integer"}}, "c": {"maximum": 5}}, "required": ["d"]}
    value = {"a/b": [1, "x"], "c": 6}
    assert sorted(mistakes_of(schema, value)) == [
        ("schema.maximum", "/data/c"), ("schema.required", "/data"), ("schema.type", "/data/a~1b/1"),
    ]  # fmt: skip
    with pytest.raises(SchemaViolation) as caught:
        compile_schema({"maxLength": 1}, LIMITS).check("YQ==", b'"YQ=="', "data_base64")
    assert caught.value.violations[0].pointer == "/data_base64"


def test_numbers_of_64_bits_are_judged_exactly() -> None:
    """Integers up to the last bit compare as integers, not as doubles."""
    check({"maximum": (1 << 64) - 1, "minimum": -(1 << 63)}, (1 << 64) - 1)
    assert mistakes_of({"maximum": (1 << 53)}, (1 << 53) + 1) == [("schema.maximum", "/data")]


def test_each_draft_is_told_by_its_name() -> None:
    """`$schema` chooses the draft, with or without its empty fragment; none means 2020-12."""
    for draft in DRAFTS:
        for name in (draft, draft + "#"):
            check({"$schema": name, "type": "object"}, {})
    assert mistakes_of({"prefixItems": [{"type": "string"}]}, [1]) == [("schema.type", "/data/0")]
    check({"$schema": "http://json-schema.org/draft-07/schema#", "prefixItems": [{"type": "string"}]}, [1])
    for boolean in (True, {}):
        check(boolean, 1)
    assert mistakes_of(False, 1)[0][1] == "/data"


@pytest.mark.parametrize(
    ("schema", "pointer"),
    [
        ({"$schema": "http://json-schema.org/draft-03/schema#"}, "/schema/$schema"),
        ({"$schema": "http://localhost:1/x"}, "/schema/$schema"),
        ({"$schema": 5}, "/schema/$schema"),
        ({"$defs": {"a": {"$id": "http://x/y", "$schema": "file:///etc/passwd"}}}, "/schema/$defs/a/$schema"),
        ({"type": "strin"}, "/schema/type"),
        ({"properties": {"a": {"minimum": "5"}}}, "/schema/properties/a/minimum"),
        ({"$ref": "#/$defs/missing"}, "/schema/$ref"),
        ({"items": {"$ref": "other.json"}}, "/schema/items/$ref"),
        ({"properties": {"a": {"pattern": "(a"}}}, "/schema/properties/a/pattern"),
        ({"pattern": "a" * 513}, "/schema/pattern"),
        ({"pattern": "(a{100}){100}"}, "/schema/pattern"),
        ({"patternProperties": {"(x{40}){40}": True}}, "/schema/patternProperties/(x{40}){40}"),
        ({"$ref": "#"}, "/schema"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}, "/schema/$defs/b"),
    ],
)
def test_unusable_schemas_are_refused_with_their_place(schema: Any, pointer: str) -> None:
    """A schema that can't be used is refused when it is defined, with a pointer into the definition."""
    error = refusal_of(schema)
    assert error.status == 422
    assert error.violations[0].pointer == pointer


@pytest.fixture
def trap() -> Iterator[tuple[str, list[str]]]:
    """A web server that notes whatever is asked of it."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *args: object) -> None:
            """Says nothing."""

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_nothing_is_ever_fetched(trap: tuple[str, list[str]], tmp_path: Path) -> None:
    """No keyword, draft or trick makes the node ask another machine or read a file."""
    url, asked = trap
    (tmp_path / "s.json").write_text("{}")
    for target in (f"{url}/s.json", (tmp_path / "s.json").as_uri()):
        for draft in DRAFTS:
            for schema in (
                {"$ref": target}, {"items": {"$ref": target + "#/x"}}, {"$dynamicRef": target}, {"$recursiveRef": target},
                {"$id": target, "$ref": "other.json"}, {"id": target, "$ref": "other.json"}, {"properties": {"a": {"$ref": target}}},
                {"allOf": [{"$id": url + "/a/", "items": {"$ref": "b"}}]}, {"unknownKeyword": {"$ref": target}, "$ref": "#/unknownKeyword"},
                {"$schema": target}, {"$defs": {"a": {"$id": "x", "$schema": target}}}, {"$vocabulary": {target: True}},
                {"format": target}, {"contentSchema": {"$ref": target}, "contentMediaType": "application/json"},
                {"definitions": {"a": {"$ref": target}}}, {"$defs": {"$ref": target}}, {"$ref": "//127.0.0.1" + url[16:]},
            ):  # fmt: skip
                try:
                    compiled = compile_schema({"$schema": draft, **schema}, LIMITS)
                except InvalidDefinition:
                    continue
                assert isinstance(compiled, CompiledSchema)
    assert asked == []


def doubling(count: int) -> dict[str, Any]:
    """Definitions that each refer to the next one twice."""
    defs: dict[str, Any] = {f"a{at}": {"allOf": [{"$ref": f"#/$defs/a{at + 1}"}] * 2} for at in range(count)}
    defs[f"a{count}"] = {"type": "integer"}
    return {"$defs": defs, "$ref": "#/$defs/a0"}


def test_schema_bombs_are_refused() -> None:
    """Definitions that double forty times over are refused; a few doublings are an ordinary schema."""
    assert refusal_of(doubling(40)).violations[0].code == "definition.schema"
    check(doubling(6), 1)


def test_recursive_schemas_are_bounded_by_the_packet_s_depth() -> None:
    """A schema that looks at each child twice judges shallow packets and refuses those where it would explode."""
    schema = {"properties": {"a": {"allOf": [{"$ref": "#"}, {"$ref": "#"}]}}}
    value: Any = 1
    for _ in range(8):
        value = {"a": value}
    check(schema, value)
    for _ in range(50):
        value = {"a": value}
    started = time.thread_time()
    assert mistakes_of(schema, value) == [("schema.cost", "/data")]
    assert time.thread_time() - started < PROMPT_S


def test_ordinary_recursion_is_free() -> None:
    """A tree that looks at each child once is judged at any depth that packets may have."""
    tree = {
        "type": "object",
        "properties": {"v": {"type": "integer"}, "kids": {"type": "array", "items": {"$ref": "#"}}},
    }
    value: Any = {"v": 1}
    for _ in range(31):
        value = {"v": 1, "kids": [value]}
    check(tree, value)
    value["kids"][0]["v"] = "x"
    assert mistakes_of(tree, value) == [("schema.type", "/data/kids/0/v")]


def test_long_strings_against_heavy_patterns_are_refused() -> None:
    """Matching is bounded by pattern size times text: simple patterns take megabytes, heavy ones a few kilobytes."""
    check({"pattern": "^a+$"}, "a" * 1_000_000)
    heavy = {"pattern": ".*a.{400}c"}
    check(heavy, "x" * 10 + "a" * 401 + "c")
    started = time.thread_time()
    assert mistakes_of(heavy, "ab" * 250_000) == [("schema.cost", "/data")]
    assert time.thread_time() - started < PROMPT_S


def test_backtracking_gives_up() -> None:
    """An exponential pattern with lookaround ends as a mistake, in no time."""
    started = time.thread_time()
    assert mistakes_of({"pattern": "^(?=a)(a|aa|a?)+$"}, "a" * 60 + "!")[0][1] == "/data"
    assert time.thread_time() - started < PROMPT_S
    check({"pattern": r"^(?=.{1,253}$)([a-z0-9]([-a-z0-9]*[a-z0-9])?\.)+[a-z]{2,}$"}, "weather-7.plants.example.org")


def test_naming_mistakes_does_not_cost_more_than_finding_them() -> None:
    """A large packet with a mistake in every place is refused as a whole instead of listing half a million."""
    started = time.thread_time()
    value = [1] * 100_000
    assert mistakes_of({"anyOf": [{"items": {"type": "string"}}, {"items": {"type": "null"}}]}, value) == [
        ("schema.invalid", "/data")
    ]
    assert time.thread_time() - started < PROMPT_S
    assert len(mistakes_of({"items": {"type": "string"}}, [1] * 100)) == 20


def test_a_mistake_s_words_are_short() -> None:
    """However long the value, the words about it are bounded."""
    with pytest.raises(SchemaViolation) as caught:
        check({"type": "integer"}, "x" * 10_000)
    assert len(caught.value.violations[0].detail) <= 301


@pytest.mark.parametrize("text", ["(" * 100_000, "[" * 5000, "(a{100}){100}" * 400, r"\p{L}{9999}" * 5000])
def test_format_regex_is_bounded(text: str) -> None:
    """A packet can't make the node compile a monstrous expression by way of a format."""
    started = time.thread_time()
    assert mistakes_of({"format": "regex"}, text) == [("schema.format", "/data")]
    assert time.thread_time() - started < PROMPT_S
    check({"format": "regex"}, "^(a{100}){100}$")


def test_what_looks_like_a_schema_in_data_is_data() -> None:
    """Under enum, const, default and examples nothing is taken for a reference or a draft."""
    check(
        {"default": {"$schema": "x", "$ref": "y"}, "examples": [{"$id": "z"}], "enum": [{"$ref": "w"}]}, {"$ref": "w"}
    )


def test_large_schemas_are_bounded() -> None:
    """More objects or patterns than bounded are refused; a schema of a thousand properties is fine."""
    assert "objects" in refusal_of({"properties": {f"p{at}": {} for at in range(10_001)}}).detail
    patterns = {f"p{at}": {"pattern": r"\p{L}{100}"} for at in range(11)}
    assert "places" in refusal_of({"properties": patterns}).detail
    check({"properties": {f"p{at}": {"type": "integer"} for at in range(1000)}}, {"p7": 1})


def test_limits_of_the_node_hold() -> None:
    """The steps that one packet may take are a setting."""
    small = Limits(schema_steps=100)
    check({"type": "array"}, [1, 2, 3], small)
    assert mistakes_of({"type": "array"}, list(range(100)), small) == [("schema.cost", "/data")]


async def test_schemas_are_compiled_once_and_forgotten_in_turn() -> None:
    """The cache gives the same object for a version, compiles under contention only once, and is bounded."""
    metrics = Metrics()
    cache = SchemaCache(Limits(schemas_compiled=2), metrics)
    found: list[CompiledSchema] = []

    async def ask() -> None:
        found.append(await cache.compiled(b"s", 1, {"type": "object"}))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(ask)
    assert len({id(compiled) for compiled in found}) == 1
    assert cache.find(b"s", 1) is found[0]
    assert cache.find(b"s", 2) is None
    await cache.compiled(b"s", 2, True)
    cache.find(b"s", 1)
    await cache.compiled(b"s", 3, True)
    assert [cache.find(b"s", version) is not None for version in (1, 2, 3)] == [True, False, True]
    assert metrics.registry.get_sample_value("overlayd_limit_hits_total", {"limit": "schemas_compiled"}) == 1
    with pytest.raises(InvalidDefinition):
        await cache.compiled(b"s", 4, {"type": "no"})
    with pytest.raises(InvalidDefinition):
        await cache.check({"type": "no"})
    await cache.check({"type": "object"})


@pytest.mark.parametrize(
    ("limit", "schema"),
    [
        ("schema_pattern_chars", {"pattern": "a" * 513}), ("schema_pattern_repeats", {"pattern": "(a{40}){40}"}),
        ("schema_steps", doubling(40)),
    ],
)  # fmt: skip
async def test_each_limit_that_a_schema_hits_is_counted(limit: str, schema: Any) -> None:
    """A schema over a bound is refused, names the setting, and the bound's own counter goes up."""
    metrics = Metrics()
    with pytest.raises(InvalidDefinition) as caught:
        await SchemaCache(LIMITS, metrics).check(schema)
    assert caught.value.extra == {"limit": limit}
    assert metrics.registry.get_sample_value("overlayd_limit_hits_total", {"limit": limit}) == 1
