"""A reload of any change of anything that can be configured: taken over, or named as waiting for a restart; never neither."""

import copy
import functools
import typing
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlayd.config import Settings
from overlayd.config.changes import compare
from overlayd.config.live import TOLD
from overlayd.config.load import definition_shape, settings_shape
from overlayd.config.schema import Array, Key, Shape
from overlayd.config.settings import StreamSettings
from overlayd.daemon.reload_steps import ACCESS_ARRAYS
from overlayd.daemon.reloading import Commit, Reloader, Step
from overlayd.delivery.subscriptions.declaring import DeclaredSubscription
from overlayd.model.audit import AuditRecord
from overlayd.model.definition import Definition
from overlayd.model.metrics import Metrics
from overlayd.model.names import StreamName

KEYS = list(settings_shape().keys.values())
ARRAYS = list(settings_shape().arrays.values())
Way = tuple[str | int, ...]
"""To a value: attributes of structs, places in arrays."""


def another(key: Key, value: Any) -> Any:
    """A value of the same kind that differs; nobody judges here whether it is a sensible one."""
    if typing.get_origin(key.kind) is Literal:
        return next(word for word in (*key.choices, "another") if word != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return type(value)(value + 1)
    if isinstance(value, str):
        return f"{value}x"
    if isinstance(value, Sequence):
        return type(value)() if value else type(value)(["x"])  # type: ignore[call-arg]
    return {} if value else {"x": 1}


@functools.cache
def unjudged(struct: type[msgspec.Struct]) -> type[msgspec.Struct]:
    """The same members, any values."""
    return msgspec.defstruct(struct.__name__, [(name, Any) for name in struct.__struct_fields__])


def row_of(array: Array, name: str) -> Any:
    """One table of an array with one of each array in it; what must be given is some text."""
    members: dict[str, Any] = {}
    for field in msgspec.structs.fields(array.struct):
        members[field.name] = f"{name}-{field.name}" if field.default is msgspec.NODEFAULT else field.default
        if field.default_factory is not msgspec.NODEFAULT:
            members[field.name] = field.default_factory()
    for inner in array.shape.arrays.values():
        members[inner.attributes[0]] = (row_of(inner, "inner"),)
    return unjudged(array.struct)(**members | ({"name": name} if "name" in members else {}))


def full_settings() -> Settings:
    """Settings of their own, with two tables in each array and two streams and subscriptions."""
    whole = copy.deepcopy(Settings())
    for array in ARRAYS:
        put(whole, array.attributes, (row_of(array, "one"), row_of(array, "two")))
    (redact,) = definition_shape().arrays.values()
    definition = Definition(redact=(row_of(redact, "one"), row_of(redact, "two")))
    streams = tuple(StreamSettings(StreamName(name), copy.deepcopy(definition), "f:1") for name in "ab")
    bodies = tuple(DeclaredSubscription(name, b'{"name":"%s"}' % name.encode(), "f:2") for name in "ab")
    put(whole, ("streams",), streams)
    put(whole, ("subscriptions",), bodies)
    return whole


def find(owner: Any, way: Way) -> Any:
    """What lies at the end of a way."""
    for word in way:
        owner = owner[word] if isinstance(word, int) else getattr(owner, word)
    return owner


def put(owner: Any, way: Way, value: Any) -> None:
    """Puts another value there."""
    msgspec.structs.force_setattr(find(owner, way[:-1]), str(way[-1]), value)


def ways_in(shape: Shape, way: Way) -> list[tuple[Way, Key]]:
    """Every key of a table, and of the first table of every array in it."""
    found = [((*way, *key.attributes), key) for key in shape.keys.values()]
    for array in shape.arrays.values():
        found += ways_in(array.shape, (*way, *array.attributes, 0))
    return found


EVERY = [*ways_in(settings_shape(), ()), *ways_in(definition_shape(), ("streams", 0, "definition"))]


def names_of(way: Way, key: Key, told: Sequence[Any]) -> set[str]:
    """What is told of a setting: its name; in an array that of the row, too, which may be known by what changed."""
    if 0 not in way:
        return {key.name}
    outer = way[: way.index(0)]
    rows = next((f"{'.'.join(array.path)}[" for array in ARRAYS if array.attributes == outer), f"{outer[0]}.")
    return {one.name for one in told if one.name.startswith(rows)}


class Reloaded:
    """A reloader of the real table of changes, whose parts only note what they were given."""

    def __init__(self, running: Settings, wanted: Settings, parts: Sequence[str]) -> None:
        self.running, self.wanted = running, wanted
        self.taken: set[str] = set()
        owns = {
            "access": (("keys",), *(("access", name) for name in ACCESS_ARRAYS)),
            "streams": (("streams",),),
            "subscriptions": (("subscriptions",),),
            "sources": (("chain", "sources"),),
        }
        steps = {name: Step(self._prepare(name), owns.get(name, ())) for name in parts}
        self.reloader = Reloader(
            running, lambda: wanted, steps=steps, reread=lambda: (), audit=self._note, metrics=Metrics()
        )

    def _prepare(self, name: str) -> Any:
        async def prepare(wanted: Settings) -> Commit:
            assert wanted is self.wanted

            async def commit() -> None:
                self.taken.add(name)

            return commit

        return prepare

    async def _note(self, record: AuditRecord) -> None:
        pass


PARTS = tuple(dict.fromkeys((*TOLD.values(), "streams", "subscriptions")))


@pytest.mark.parametrize(
    "parts", [PARTS, tuple(part for part in PARTS if part != "sources")], ids=["all", "no-sources"]
)
@given(st.sets(st.sampled_from(range(len(EVERY))), min_size=1, max_size=8))
@settings(max_examples=25, deadline=None)
async def test_any_changes_are_taken_or_named(parts: tuple[str, ...], chosen: set[int]) -> None:
    """Afterwards the settings that everybody holds are the wanted ones but for what is named as waiting, which is as before;
    and reading the same once more finds exactly that."""
    before, running, wanted = full_settings(), full_settings(), full_settings()
    assert compare(running, wanted) == []
    changed = [EVERY[number] for number in chosen]
    for way, key in changed:
        put(wanted, way, another(key, find(wanted, way)))
    reloaded = Reloaded(running, wanted, parts)
    told = (await reloaded.reloader.reload(None, is_dry=False)).changes
    assert len(told) >= len({way[:2] if way[0] in ("streams", "subscriptions") else way for way, _ in changed}) > 0
    waiting = {one.name for one in told if one.effect == "restart"}
    for way, key in changed:
        is_new = find(running, way) == find(wanted, way)
        is_old = find(running, way) == find(before, way)
        assert is_new != is_old, way
        assert is_new or waiting & names_of(way, key, told), f"{way} is as before, and nobody is told"
    left = (await reloaded.reloader.reload(None, is_dry=True)).changes
    assert {one.name for one in left} == waiting


async def test_where_a_stream_is_declared_is_known_after_lines_moved() -> None:
    """Nothing differs, and whoever wants to change it through the API is told the line on which it stands now."""
    running, wanted = full_settings(), full_settings()
    put(wanted, ("streams",), tuple(msgspec.structs.replace(one, declared_in="f:9") for one in wanted.streams))
    assert (await Reloaded(running, wanted, PARTS).reloader.reload(None, is_dry=False)).changes == ()
    assert {one.declared_in for one in running.streams} == {"f:9"}


def test_each_change_has_its_name() -> None:
    """One setting changed is one difference, which is called as the setting is."""
    running, wanted = full_settings(), full_settings()
    for way, key in EVERY:
        old = find(wanted, way)
        put(wanted, way, another(key, old))
        (name,) = {change.name.split("[")[0] for change in compare(running, wanted)}
        put(wanted, way, old)
        if way[0] == "streams":
            assert name in (f"streams.a.{key.name}", "streams.a.redact")
        elif 0 in way:
            assert name in {".".join(array.path) for array in ARRAYS}
        else:
            assert name == key.name
    assert compare(running, wanted) == []


def test_rows_in_another_order_differ() -> None:
    """Sources are asked, rules applied, in the order of the file."""
    for array in ARRAYS:
        running, wanted = full_settings(), full_settings()
        put(wanted, array.attributes, find(wanted, array.attributes)[::-1])
        assert compare(running, wanted), array.path


def test_a_whole_object_more_or_less_is_named() -> None:
    """Streams, subscriptions and rows of arrays that come or go."""
    for way in (("streams",), ("subscriptions",), *(array.attributes for array in ARRAYS)):
        running, wanted = full_settings(), full_settings()
        put(wanted, way, find(wanted, way)[:1])
        assert len(compare(running, wanted)) == len(compare(wanted, running)) == 1, way
