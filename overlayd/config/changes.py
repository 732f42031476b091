"""What differs between the settings a node runs with and those in its files now."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from overlayd.config.live import is_live, told_as
from overlayd.config.load import definition_shape, settings_shape
from overlayd.config.schema import Array, Key, Path, Shape, format_value
from overlayd.config.settings import Settings

SHOWN_CHARS = 200


class Change(msgspec.Struct, frozen=True):
    """One difference. `before`, `after`: as in TOML, bounded, secrets hidden; "" where there is nothing.
    `told`: which part takes it; "" for a value that is simply put, None when it waits for a restart."""

    name: str
    before: str
    after: str
    told: str | None
    attributes: Path = ()
    """The way to the value, for one that is simply put."""

    @property
    def needs_restart(self) -> bool:
        return self.told is None


def compare(running: Settings, wanted: Settings) -> list[Change]:
    """Every difference: keys in the order of the configuration, then arrays, streams and subscriptions by name."""
    shape = settings_shape()
    changes = [change for key in shape.keys.values() if (change := _compare_key(key, running, wanted))]
    for array in shape.arrays.values():
        changes += _compare_array(array, _value(running, array.attributes), _value(wanted, array.attributes))
    changes += _compare_streams(running, wanted)
    changes += _compare_subscriptions(running, wanted)
    return changes


def _compare_key(key: Key, running: Settings, wanted: Settings) -> Change | None:
    before, after = _value(running, key.attributes), _value(wanted, key.attributes)
    if before == after:
        return None
    told = "" if is_live(key) else told_as(key.name)
    return Change(key.name, _show(key, before), _show(key, after), told, key.attributes)


def _compare_array(
    array: Array, running: Sequence[Any], wanted: Sequence[Any], within: str = "", told: str | None = None
) -> list[Change]:  # fmt: skip
    """Rows are known by what they are called; rows that aren't called anything by their place. `within`, `told`: of the
    row, or stream, that the array is part of."""
    name = ".".join(array.path)
    name, told = (f"{within}.{name}", told) if within else (name, told_as(name))
    before, after = _named(running), _named(wanted)
    changes: list[Change] = []
    for row in dict.fromkeys((*before, *after)):
        place, old, new = f"{name}[{row}]", before.get(row), after.get(row)
        if old is None or new is None:
            changes.append(Change(place, "declared" if old else "", "declared" if new else "", told))
            continue
        changes += _compare_members(array.shape, old, new, place, told)
    if not changes and list(running) != list(wanted):
        changes.append(Change(name, "", "in another order", told))
    return changes


def _compare_members(shape: Shape, old: Any, new: Any, place: str, told: str | None) -> list[Change]:
    """Of one row or definition: every key, and every array in it."""
    changes = []
    for key in shape.keys.values():
        was, is_now = _value(old, key.attributes), _value(new, key.attributes)
        if was != is_now:
            changes.append(Change(f"{place}.{key.name}", _show(key, was), _show(key, is_now), told))
    for inner in shape.arrays.values():
        changes += _compare_array(inner, _value(old, inner.attributes), _value(new, inner.attributes), place, told)
    return changes


def _named(rows: Sequence[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for number, row in enumerate(rows):
        word = next((text for field in ("name", "address", "issuer", "kind") if (text := getattr(row, field, ""))), "")
        found[word if word and word not in found else f"{word}#{number}"] = row
    return found


def _compare_streams(running: Settings, wanted: Settings) -> Iterator[Change]:
    before = {str(stream.name): stream.definition for stream in running.streams}
    after = {str(stream.name): stream.definition for stream in wanted.streams}
    for name in sorted({*before, *after}):
        old, new = before.get(name), after.get(name)
        if old is None or new is None:
            yield Change(f"streams.{name}", "declared" if old else "", "declared" if new else "", "streams")
            continue
        yield from _compare_members(definition_shape(), old, new, f"streams.{name}", "streams")


def _compare_subscriptions(running: Settings, wanted: Settings) -> Iterator[Change]:
    """By name; what is in a definition may be secret, so only which members differ is told."""
    before = {one.name: one.body for one in running.subscriptions}
    after = {one.name: one.body for one in wanted.subscriptions}
    for name in sorted({*before, *after}):
        old, new = before.get(name), after.get(name)
        if old is None or new is None:
            yield Change(f"subscriptions.{name}", "declared" if old else "", "declared" if new else "", "subscriptions")
        elif old != new:
            members = ", ".join(_differing(msgspec.json.decode(old), msgspec.json.decode(new)))
            yield Change(f"subscriptions.{name}", "", f"other {members}", "subscriptions")


def _differing(before: dict[str, Any], after: dict[str, Any]) -> Iterable[str]:
    return [word for word in dict.fromkeys((*before, *after)) if before.get(word) != after.get(word)]


def _value(settings: Any, attributes: Path) -> Any:
    for word in attributes:
        settings = getattr(settings, word)
    return settings


def _show(key: Key, value: Any) -> str:
    if key.is_secret and value:
        return "(hidden)"
    text = format_value(value)
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}…"
