"""The settings structs as a flat list of keys: what may be written, of which type, with which default."""

import json
import re
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import NODEFAULT, Meta

from overlayd.model.units import Duration, Size

Path = tuple[str, ...]


class Key(msgspec.Struct, frozen=True):
    """One setting: `annotation` is its type with its bounds, `kind` the type without."""

    path: Path
    attributes: Path
    """The way to the value through the structs; longer than `path` where a struct is inline."""
    annotation: Any
    kind: Any
    default: Any
    description: str
    is_secret: bool
    bounds: tuple[Meta, ...]

    @property
    def name(self) -> str:
        """Dotted, as in messages: `storage.sync`."""
        return ".".join(self.path)

    @property
    def expected(self) -> str:
        """What to write, in words: `a whole number, at least 1`."""
        above = "" if self.is_zero_allowed or self.kind not in (Duration, Size) else ", above 0"
        return _expected(self.kind, self.bounds) + above

    @property
    def is_zero_allowed(self) -> bool:
        """Whether a duration or size may be 0: where 0 is the default or the description says what it means."""
        return self.default == 0 or re.search(r"\b0[Bs]?: ", self.description) is not None

    @property
    def unit(self) -> str:
        """The same in a word or two: `duration`, `whole number, at least 1`."""
        short = {Duration: "duration", Size: "size", str: "text", int: "whole number", float: "number"}.get(self.kind)
        return short + _bounds(self.bounds) if short else self.expected.removeprefix("a ")

    @property
    def choices(self) -> tuple[str, ...]:
        """The allowed values, when they are a closed list of texts."""
        return tuple(typing.get_args(self.kind)) if typing.get_origin(self.kind) is Literal else ()


class Array(msgspec.Struct, frozen=True):
    """An array of tables, `[[listen.tls]]`: what one of its tables looks like."""

    path: Path
    attributes: Path
    struct: type[msgspec.Struct]
    shape: "Shape"
    description: str


class Shape(msgspec.Struct, frozen=True):
    """Every key and every table of a tree of structs, in the order of the source."""

    keys: dict[Path, Key]
    tables: dict[Path, str]
    """Path to description. The empty path is the root."""
    arrays: dict[Path, Array] = {}

    def names_in(self, table: Path) -> list[str]:
        """What may be written in a table."""
        paths = [path for path in (*self.keys, *self.tables, *self.arrays) if path and path[:-1] == table]
        return [path[-1] for path in paths]


def shape_of(struct: type[msgspec.Struct], *, is_row: bool = False) -> Shape:
    """The keys of a settings struct. Tuples of structs are arrays of tables; those without a description are left to
    whoever reads them in a way of their own (`[[streams]]`). `is_row`: keys may be without a default."""
    shape = Shape({}, {(): ""}, {})
    _collect(struct, (), (), shape, is_row=is_row)
    return shape


def split_annotation(annotation: Any) -> tuple[Any, tuple[Meta, ...]]:
    """The bare type and what is said about it."""
    if typing.get_origin(annotation) is Annotated:
        kind, *metas = typing.get_args(annotation)
        return kind, tuple(meta for meta in metas if isinstance(meta, Meta))
    return annotation, ()


def is_struct(kind: Any) -> bool:
    """Whether the type is a table."""
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def is_inline(metas: tuple[Meta, ...]) -> bool:
    """Whether a struct's keys stand in its parent's table."""
    return any((meta.extra or {}).get("inline") for meta in metas)


def format_value(value: Any) -> str:
    """A value as it is written in TOML; a JSON Schema as JSON."""
    if isinstance(value, (Duration, Size)):
        return json.dumps(str(value))
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(format_value(item) for item in value)}]"
    return json.dumps(value, ensure_ascii=False, default=str)


def _collect(struct: type[msgspec.Struct], prefix: Path, attributes: Path, shape: Shape, *, is_row: bool) -> None:
    for field in msgspec.structs.fields(struct):
        way = (*attributes, field.name)
        kind, metas = split_annotation(field.type)
        if any((meta.extra or {}).get("filled_in") for meta in metas):
            continue  # nobody writes it; it is known only when everything is put together
        description = next((meta.description for meta in metas if meta.description), "")
        if is_struct(kind):
            path = prefix if is_inline(metas) else (*prefix, field.name)
            shape.tables.setdefault(path, description)
            _collect(kind, path, way, shape, is_row=is_row)
        elif is_array(kind):
            path = (*prefix, field.name)
            if description:
                row = typing.get_args(kind)[0]
                shape.arrays[path] = Array(path, way, row, shape_of(row, is_row=True), description)
        else:
            assert is_row or field.default is not NODEFAULT, field.name
            path = (*prefix, field.name)
            secret = any((meta.extra or {}).get("secret") for meta in metas)
            shape.keys[path] = Key(path, way, field.type, kind, field.default, description, bool(secret), metas)


def is_array(kind: Any) -> bool:
    """Whether the type is an array of tables."""
    return typing.get_origin(kind) is tuple and is_struct(typing.get_args(kind)[0])


def _expected(kind: Any, metas: tuple[Meta, ...]) -> str:
    origin = typing.get_origin(kind)
    if origin is Literal:
        return "one of " + ", ".join(f'"{choice}"' for choice in typing.get_args(kind))
    if origin is tuple:
        inner, inner_metas = split_annotation(typing.get_args(kind)[0])
        return "a list of " + ("texts" if inner is str else "whole numbers") + _bounds(inner_metas)
    if origin in (typing.Union, types.UnionType):
        return "a table" if dict in _members(kind) else " or ".join(_expected(part, ()) for part in _members(kind))
    words = {
        bool: "true or false", int: "a whole number", float: "a number", str: "a text",
        Duration: 'a duration such as "30s", "250ms" or "1h30m"', Size: 'a size such as "64KiB" or "1GiB"',
    }  # fmt: skip
    return words[kind] + _bounds(metas)


def _members(kind: Any) -> list[Any]:
    """The parts of a union, without None and without what a part is made of: `dict[str, Any]` counts as dict."""
    return [typing.get_origin(part) or part for part in typing.get_args(kind) if part is not type(None)]


def _bounds(metas: tuple[Meta, ...]) -> str:
    return "".join(f", {text}" for meta in metas for text in _bound_words(meta))


def _bound_words(meta: Meta) -> Iterator[str]:
    if meta.ge is not None:
        yield f"at least {meta.ge}"
    if meta.gt is not None:
        yield f"above {meta.gt}"
    if meta.le is not None:
        yield f"at most {meta.le}"
    if meta.lt is not None:
        yield f"below {meta.lt}"
    if meta.max_length is not None:
        yield f"at most {meta.max_length} characters"
