"""Writes config.example.toml from the settings: every key with its default, unit and a line of comment.

`python -m overlayd.config.example` prints it; `overlayd init` writes the same with every key commented out.
"""

import sys
import textwrap
from typing import Any

from msgspec import NODEFAULT

from overlayd.config.load import settings_shape
from overlayd.config.schema import Array, Key, Path, format_value

_HEAD = """\
Configuration of overlayd. Every setting is here with its default; a file needs only what differs.
Flags beat environment variables, those beat files, files beat defaults. The variable of a key is
OVERLAYD_<TABLE>__<KEY>, for example OVERLAYD_LISTEN__TCP; deeper keys have further double underscores.
Files conf.d/*.toml beside this one are read after it, in the order of their names. A key that isn't
known here is an error: `overlayd check-config` tells where and what was meant.
Durations are written "250ms", "30s", "1h30m" or "30d", sizes "64KiB", "1MiB" or "10GB".
"""

_STREAMS = """\
Streams can be declared here, each under its own [[streams]] header: a name and what differs from
[defaults]. What a file declares can't be changed through the API. In conf.d, files add to the list.

[[streams]]
name = "weather-001"
title = "Weather station on the roof"
topics = ["site.roof"]
retention = { max_age = "90d" }
schema = { type = "object", required = ["temp_max"] }
"""

_SUBSCRIPTIONS = """\
Durable subscriptions can be declared here, each under its own [[subscriptions]] header, in the words of
POST /v1/subscriptions. Where one stands isn't changed by a restart. In conf.d, files add to the list.

[[subscriptions]]
name = "warehouse"
kind = "webhook"
streams = ["weather.*"]
webhook = { url = "https://warehouse.example/packets", ordering = "stream" }
"""

_LINE_CHARS = 118


def render_example(*, is_commented: bool = False) -> str:
    """The file's text. `is_commented`: keys too are comments, so that later versions' defaults apply."""
    shape = settings_shape()
    lines = _comment(_HEAD)
    for table, description in shape.tables.items():
        keys = [key for key in shape.keys.values() if key.path[:-1] == table]
        if table:
            lines += ["", *_comment(description), f"[{'.'.join(table)}]"]
        for key in keys:
            lines += _key_lines(key, is_commented)
    for array in shape.arrays.values():
        lines += _array_lines(array)
    lines += ["", *_comment(_STREAMS), "", *_comment(_SUBSCRIPTIONS)]
    return "\n".join(lines) + "\n"


def _key_lines(key: Key, is_commented: bool) -> list[str]:
    comment = _comment(f"{key.description} ({key.unit})")
    if key.default is None:  # TOML has no null: the key is shown, not set
        example: Any = next((meta.examples[0] for meta in key.bounds if meta.examples), {})
        return [*comment, f"#{key.path[-1]} = {format_value(example)}"]
    return [*comment, f"{'#' if is_commented else ''}{key.path[-1]} = {format_value(key.default)}"]


def _array_lines(array: Array, outer: Path = ()) -> list[str]:
    """What one table of an array may hold, as a comment: without one there is no such table. Arrays in its tables
    follow, as in a file."""
    path = (*outer, *array.path)
    name, last = ".".join(path), "in conf.d, files add to the list."
    where = f"they belong to the [[{'.'.join(outer)}]] above." if outer else last
    first = f"{array.description}. Each under its own header; {where}"
    lines = ["", *_comment(first), "#", f"# [[{name}]]"]
    for key in array.shape.keys.values():
        example: Any = next((meta.examples[0] for meta in key.bounds if meta.examples), key.default)
        default = "required" if key.default is NODEFAULT else f"default {format_value(key.default)}"
        lines += [
            *_comment_twice(f"{key.description} ({key.unit}; {default})"),
            f"# {key.path[-1]} = {format_value(example)}",
        ]
    for inner in array.shape.arrays.values():
        lines += _array_lines(inner, path)
    return lines


def _comment_twice(text: str) -> list[str]:
    """A comment on what is itself a comment."""
    return [f"# {line}" for line in _comment(text)]


def _comment(text: str) -> list[str]:
    lines: list[str] = []
    for line in text.splitlines():
        lines += textwrap.wrap(line, _LINE_CHARS, break_long_words=False, break_on_hyphens=False) or [""]
    return [f"# {line}".rstrip() for line in lines]


if __name__ == "__main__":
    sys.stdout.write(render_example())
