"""Bodies by template: a JSON document with `{{ path }}` in its texts. Judged when defined, bounded when filled. Pure.

A text that is nothing but one placeholder becomes the value itself, whatever its type; within a longer text values are
written out: texts as they are, the rest as JSON. A path that leads nowhere gives null, and nothing within a text.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import msgspec

PATH_CHARS_MAX = 256
PATH_STEPS_MAX = 16
DEPTH_MAX = 64

_PLACEHOLDER = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_STEP = re.compile(r"[^\s.{}\"\\]+")

Path: TypeAlias = tuple[str, ...]
Part: TypeAlias = "str | Path"


class Template(msgspec.Struct, frozen=True):
    """A judged template. `node` is the document with placeholders in place of their texts."""

    node: Any
    paths: tuple[Path, ...]


class _Value(msgspec.Struct, frozen=True):
    """A text that is one placeholder."""

    path: Path


class _Text(msgspec.Struct, frozen=True):
    """A text with placeholders in it."""

    parts: tuple[Part, ...]


class TemplateTooLong(Exception):
    """What the template gives with these values is over its bound."""


def parse_template(text: str, *, placeholders_max: int, roots: Sequence[str]) -> Template:
    """Raises ValueError that says what is wrong. `roots` are the names that a path can begin with."""
    try:
        document = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as err:
        raise ValueError(
            'a template is a JSON document; placeholders stand in its texts, such as {"text": "{{ packet.type }}"}'
            f" ({err})"
        ) from err
    if not isinstance(document, (dict, list)):
        raise ValueError("a template is a JSON object or array")
    node = _compile(document, 1)
    paths = tuple(_paths_in(node))
    if len(paths) > placeholders_max:
        raise ValueError(f"a template has at most {placeholders_max} placeholders, not {len(paths)}")
    for path in paths:
        if path[0] not in roots:
            raise ValueError(f"{{{{ {'.'.join(path)} }}}} leads nowhere: a path begins with {' or '.join(roots)}")
    return Template(node, paths)


@lru_cache(maxsize=256)
def judged_template(text: str) -> Template:
    """A template that was judged before, compiled."""
    node = _compile(msgspec.json.decode(text), 1)
    return Template(node, tuple(_paths_in(node)))


def fill_template(template: Template, values: Mapping[str, Any], *, bytes_max: int) -> bytes:
    """The JSON text. Raises TemplateTooLong as soon as it is clear that it has more than `bytes_max` bytes."""
    pieces: list[bytes] = []
    room = [bytes_max]
    _fill(template.node, values, pieces, room)
    return b"".join(pieces)


def _compile(node: Any, depth: int) -> Any:
    if depth > DEPTH_MAX:
        raise ValueError(f"a template nests at most {DEPTH_MAX} levels")
    if isinstance(node, dict):
        for name in node:
            if "{{" in name:
                raise ValueError("placeholders stand in values, not in names")
        return {name: _compile(value, depth + 1) for name, value in node.items()}
    if isinstance(node, list):
        return [_compile(value, depth + 1) for value in node]
    if isinstance(node, str) and "{{" in node:
        return _compile_text(node)
    return node


def _compile_text(text: str) -> _Value | _Text:
    parts: list[Part] = []
    at = 0
    for match in _PLACEHOLDER.finditer(text):
        if match.start() > at:
            parts.append(text[at : match.start()])
        parts.append(_parse_path(match[1].strip()))
        at = match.end()
    if at < len(text):
        parts.append(text[at:])
    if any(isinstance(part, str) and "{{" in part for part in parts):
        raise ValueError("a placeholder isn't closed: {{ … }}")
    if len(parts) == 1 and isinstance(parts[0], tuple):
        return _Value(parts[0])
    return _Text(tuple(parts))


def _parse_path(text: str) -> Path:
    steps = tuple(text.split("."))
    if len(text) > PATH_CHARS_MAX or len(steps) > PATH_STEPS_MAX:
        raise ValueError(f"a path has at most {PATH_CHARS_MAX} characters and {PATH_STEPS_MAX} steps")
    if not all(_STEP.fullmatch(step) for step in steps):
        raise ValueError(f"not a path: {{{{ {text} }}}}; write names and positions with dots, packet.data_payload.t")
    return steps


def _paths_in(node: Any) -> Iterator[Path]:
    if isinstance(node, _Value):
        yield node.path
    elif isinstance(node, _Text):
        yield from (part for part in node.parts if isinstance(part, tuple))
    elif isinstance(node, (dict, list)):
        for inner in node.values() if isinstance(node, dict) else node:
            yield from _paths_in(inner)


def _fill(node: Any, values: Mapping[str, Any], pieces: list[bytes], room: list[int]) -> None:
    if isinstance(node, dict):
        for position, (name, value) in enumerate(node.items()):
            _put(pieces, room, (b"," if position else b"{") + msgspec.json.encode(name) + b":")
            _fill(value, values, pieces, room)
        _put(pieces, room, b"}" if node else b"{}")
    elif isinstance(node, list):
        for position, value in enumerate(node):
            _put(pieces, room, b"," if position else b"[")
            _fill(value, values, pieces, room)
        _put(pieces, room, b"]" if node else b"[]")
    elif isinstance(node, _Value):
        _put(pieces, room, msgspec.json.encode(_find(values, node.path)))
    elif isinstance(node, _Text):
        texts = []
        for part in node.parts:
            texts.append(part if isinstance(part, str) else _write_out(_find(values, part)))
            if sum(map(len, texts)) > room[0]:
                raise TemplateTooLong
        _put(pieces, room, msgspec.json.encode("".join(texts)))
    else:
        _put(pieces, room, msgspec.json.encode(node))


def _put(pieces: list[bytes], room: list[int], piece: bytes) -> None:
    room[0] -= len(piece)
    if room[0] < 0:
        raise TemplateTooLong
    pieces.append(piece)


def _write_out(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _find(values: Mapping[str, Any], path: Path) -> Any:
    found: Any = values
    for step in path:
        if isinstance(found, Mapping):
            found = found.get(step)
        elif isinstance(found, list) and step.isascii() and step.isdigit() and len(step) < 6:
            found = found[int(step)] if int(step) < len(found) else None
        else:
            return None
    return found
