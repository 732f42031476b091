"""From what was written to typed settings, with every mistake named: place, key, what was expected."""

import difflib
import json
import tomllib
import typing
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import NODEFAULT

from overlayd.config.schema import Array, Key, Path, Shape, format_value, is_inline, is_struct, split_annotation
from overlayd.model.definition import decode_unit
from overlayd.model.errors import Violation
from overlayd.model.units import Duration, Size

S = TypeVar("S", bound=msgspec.Struct)

LATER_TABLES = frozenset(
    [
        "sources",
        "cluster",
        "events",
        "datastreams",
        "rooms",
        "overlay",
    ]
)
LATER_KEYS = frozenset({"node.identity"})
"""Parts of the contract that this version doesn't have. Said in so many words, instead of "no such key"."""

_SHOWN_CHARS_MAX = 80


class Origin(msgspec.Struct, frozen=True):
    """Where a value comes from: `place` is `file:line`, a variable's or a flag's name."""

    kind: Literal["default", "file", "environment", "flag"]
    place: str = ""

    def __str__(self) -> str:
        return self.place or self.kind


class Given(msgspec.Struct, frozen=True):
    """A value as written; of an array of tables, its `Row`s. `is_text`: it came as a text whatever its type, from a
    variable or a flag."""

    value: Any
    origin: Origin
    is_text: bool = False


class Row(msgspec.Struct, frozen=True):
    """One table of an array: its keys as given, and where it stands."""

    given: dict[Path, Given]
    origin: Origin


class Problems:
    """Collects mistakes, so that all are told at once."""

    def __init__(self) -> None:
        self.violations: list[Violation] = []

    def add(self, origin: Origin, name: str, code: str, detail: str) -> None:
        """Notes one mistake; the same one is noted once."""
        violation = Violation(name, f"config.{code}", f"{origin}: {name}: {detail}")
        if violation not in self.violations:
            self.violations.append(violation)


def spread(
    shape: Shape, data: dict[str, Any], origin_of: Callable[[Path], Origin], problems: Problems, *, under: str = ""
) -> dict[Path, Given]:
    """The keys that are set in a nested table, by path. `under` is put before names in messages."""
    found: dict[Path, Given] = {}
    _spread_table(shape, data, (), origin_of, problems, found, under)
    return found


def _spread_table(
    shape: Shape, data: dict[str, Any], table: Path, origin_of: Callable[[Path], Origin], problems: Problems,
    found: dict[Path, Given], under: str,
) -> None:  # fmt: skip
    for word, value in data.items():
        path = (*table, word)
        if path in shape.keys:
            found[path] = Given(value, origin_of(path))
        elif path in shape.arrays:
            found[path] = spread_rows(shape.arrays[path], value, origin_of, problems, under)
        elif path not in shape.tables:
            problems.add(origin_of(path), under + ".".join(path), "unknown", explain_unknown(shape, path, under))
        elif isinstance(value, dict):
            _spread_table(shape, value, path, origin_of, problems, found, under)
        else:
            detail = f"expected a table, got {show(value)}"
            problems.add(origin_of(path), under + ".".join(path), "type", detail)


def spread_rows(
    array: Array, value: Any, origin_of: Callable[[Path], Origin], problems: Problems, under: str = ""
) -> Given:
    """An array of tables, taken apart."""
    name = under + ".".join(array.path)
    if not isinstance(value, list) or not all(isinstance(table, dict) for table in value):
        detail = f"expected an array of tables, each under its own [[{name}]] header"
        problems.add(origin_of(array.path), name, "type", detail)
        return Given([], origin_of(array.path))
    rows = []
    for index, table in enumerate(value):
        place: tuple[str | int, ...] = (*array.path, index)

        def origin_in_row(path: Path, place: tuple[str | int, ...] = place) -> Origin:
            return origin_of((*place, *path))  # type: ignore[arg-type]  # the number of the table is part of the way

        keys = spread(array.shape, table, origin_in_row, problems, under=f"{name}[{index}].")
        rows.append(Row(keys, origin_in_row(())))
    return Given(rows, origin_of(array.path))


def explain_unknown(shape: Shape, path: Path, under: str = "") -> str:
    """Why a key isn't known, with the nearest valid name."""
    name = ".".join(path)
    if not under and (path[0] in LATER_TABLES or name in LATER_KEYS):
        return "not supported by this version of overlayd"
    kind = "table" if len(path) == 1 and not under else "key"
    siblings = shape.names_in(path[:-1])
    if near := difflib.get_close_matches(path[-1], siblings, n=1, cutoff=0.6):
        return f"no such {kind}; did you mean {under}{'.'.join((*path[:-1], near[0]))}?"
    elsewhere = [key.name for key in shape.keys.values() if key.path[-1] == path[-1]]
    if elsewhere:
        return f"no such {kind}; did you mean {under}{elsewhere[0]}?"
    return f"no such {kind}; expected one of {', '.join(sorted(siblings))}"


def build(
    struct: type[S], shape: Shape, given: dict[Path, Given], problems: Problems, *, under: str = "", prefix: Path = ()
) -> S | None:
    """The struct from what was given, defaults for the rest; None when something in it is wrong."""
    values: dict[str, Any] = {}
    before = len(problems.violations)
    for field in msgspec.structs.fields(struct):
        kind, metas = split_annotation(field.type)
        path = (*prefix, field.name)
        if is_struct(kind):
            inner = prefix if is_inline(metas) else path
            values[field.name] = build(kind, shape, given, problems, under=under, prefix=inner)
        elif path in shape.arrays and path in given:
            values[field.name] = _build_rows(shape.arrays[path], given[path], problems, under)
        elif path in given:
            values[field.name] = _convert(shape.keys[path], given[path], problems, under)
    if len(problems.violations) > before:
        return None
    try:
        return struct(**values)
    except ValueError as err:  # a struct's own check across its keys
        name = under + ".".join(prefix) if prefix else under.rstrip(".")
        paths = [path for path in given if path[: len(prefix)] == prefix]
        origin = given[paths[-1]].origin if paths else Origin("default")
        problems.add(origin, name, "value", str(err))
        return None


def _build_rows(array: Array, given: Given, problems: Problems, under: str) -> tuple[msgspec.Struct, ...]:
    rows = []
    for index, row in enumerate(given.value):
        name = f"{under}{'.'.join(array.path)}[{index}]."
        missing = [key for key in array.shape.keys.values() if key.default is NODEFAULT and key.path not in row.given]
        for key in missing:
            problems.add(row.origin, name + key.name, "missing", f"expected {key.expected}")
        if not missing:
            rows.append(build(array.struct, array.shape, row.given, problems, under=name))
    return tuple(row for row in rows if row is not None)


def _convert(key: Key, given: Given, problems: Problems, under: str) -> Any:
    try:
        value = parse_text(key.kind, given.value) if given.is_text else given.value
        result = msgspec.convert(value, key.annotation, dec_hook=decode_unit, strict=not given.is_text)
        if isinstance(result, (Duration, Size)) and result == 0 and not key.is_zero_allowed:
            raise ValueError("zero")
        return result
    except (ValueError, RecursionError):  # msgspec.ValidationError and tomllib's are ValueErrors
        shown = "" if key.is_secret else f"; got {show(given.value)}"
        near = difflib.get_close_matches(str(given.value), key.choices, n=1)
        hint = f'; did you mean "{near[0]}"?' if near and not key.is_secret else ""
        problems.add(given.origin, under + key.name, "value", f"expected {key.expected}{shown}{hint}")
        return None


def parse_text(kind: Any, text: str) -> Any:
    """A value that was given as text: lists by commas or as TOML, tables as JSON or TOML. Raises ValueError."""
    if typing.get_origin(kind) is tuple:
        if text.lstrip().startswith("["):
            return tomllib.loads(f"value = {text}")["value"]
        return [part.strip() for part in text.split(",") if part.strip()]
    if typing.get_origin(kind) not in (None, Literal):  # a union: JSON Schema, a table or true or false
        return parse_json_or_toml(text)
    return text


def parse_json_or_toml(text: str) -> Any:
    """A value in JSON or TOML. Raises ValueError."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return tomllib.loads(f"value = {text}")["value"]


def show(value: Any) -> str:
    """A value for a message: bounded, on one line."""
    text = format_value(value)
    return text if len(text) <= _SHOWN_CHARS_MAX else f"{text[:_SHOWN_CHARS_MAX]}…"
