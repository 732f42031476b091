"""Definitions: what a stream may ask for, and the key that it finds in a packet."""

from typing import Any

import pytest

from overlayd.model.definition import ConfirmRule, Definition, Price
from overlayd.model.errors import InvalidDefinition
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.pipeline.definitions import KeyPath, check_definition
from overlayd.pipeline.schema import SchemaCache

LIMITS = Limits()


async def pointers_of(definition: Definition) -> list[str]:
    """Where a definition is wrong."""
    with pytest.raises(InvalidDefinition) as caught:
        await check_definition(definition, SchemaCache(LIMITS, Metrics()), LIMITS)
    return [found.pointer for found in caught.value.violations]


async def test_an_ordinary_definition_passes() -> None:
    """Schema, key, topics and tags that can be carried out pass."""
    definition = Definition(
        schema={"type": "object"}, key="data.sensor.id", topics=("gitdata.events.iot",), tags=("weather", "de"),
    )  # fmt: skip
    schemas = SchemaCache(LIMITS, Metrics())
    await check_definition(definition, schemas, LIMITS)
    await check_definition(Definition(), schemas, LIMITS)


@pytest.mark.parametrize(
    ("definition", "pointers"),
    [
        (Definition(key="sensorId"), ["/key"]),
        (Definition(key="data"), ["/key"]),
        (Definition(key="data..x"), ["/key"]),
        (Definition(key="data." + ".".join("x" * 17)), ["/key"]),
        (Definition(topics=("a.*", "b", "c d")), ["/topics/0", "/topics/2"]),
        (Definition(topics=("a",) * 33), ["/topics"]),
        (Definition(tags=("", "b")), ["/tags/0"]),
        (Definition(tags=("t",) * 65), ["/tags"]),
        (Definition(schema={"items": {"type": "no"}}), ["/schema/items/type"]),
        (Definition(schema={"$ref": "http://localhost/x"}), ["/schema/$ref"]),
        (Definition(confirm=ConfirmRule(commit="packet", depths=())), ["/confirm/depths"]),
        (Definition(confirm=ConfirmRule(depths=tuple(range(1, 12)))), ["/confirm/depths"]),
        (Definition(price=Price(satoshis_per_packet=1)), ["/price/satoshis_per_packet"]),
    ],
)
async def test_what_cannot_be_carried_out_is_refused(definition: Definition, pointers: list[str]) -> None:
    """Wrong paths, topics, tags, schemas, and promises that this node can't keep, are pointed at."""
    assert await pointers_of(definition) == pointers


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ({"a": {"b": "x"}}, "x"), ({"a": {"b": 7}}, "7"), ({"a": {"b": -7}}, "-7"), ({"a": {"b": ""}}, ""), ({"a": {"b": 1.5}}, ""),
        ({"a": {"b": True}}, ""), ({"a": {"b": None}}, ""), ({"a": {"b": ["x"]}}, ""), ({"a": {}}, ""), ({"a": [{"b": "x"}]}, ""),
        ([], ""), ("x", ""), (None, ""),
    ],
)  # fmt: skip
def test_keys_are_texts_or_whole_numbers(value: Any, key: str) -> None:
    """The path leads through objects to a string or an integer; anything else means no key."""
    assert KeyPath("data.a.b").find(value) == key


def test_a_key_path_knows_its_pointer() -> None:
    """Where the key stands is told as a pointer into the packet object."""
    assert KeyPath("data.a/b.c~").pointer == "/data/a~1b/c~0"
