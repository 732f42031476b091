"""Reads the configuration: defaults, then files, then environment, then flags; the later beats the earlier."""

import difflib
import platform
from collections.abc import Mapping
from functools import cache
from pathlib import Path as FilePath
from typing import Any

import msgspec

from overlayd.config.convert import (
    Given,
    Origin,
    Problems,
    build,
    explain_unknown,
    parse_json_or_toml,
    show,
    spread,
    spread_rows,
)
from overlayd.config.dialects import read_foreign
from overlayd.config.files import Document, list_files, read_document
from overlayd.config.schema import Array, Key, Path, Shape, shape_of
from overlayd.config.settings import Settings, StreamSettings
from overlayd.config.subscriptions import read_subscriptions
from overlayd.delivery.subscriptions.declaring import DeclaredSubscription
from overlayd.model.definition import Definition
from overlayd.model.errors import BadParameter, ConfigInvalid
from overlayd.model.limits import Limits
from overlayd.model.names import is_node_name, parse_stream_name

ENVIRONMENT_PREFIX = "OVERLAYD_"
DATA_DIRECTORY = "overlayd-data"
"""Where the log lies when nobody says, below the working directory."""


class Flag(msgspec.Struct, frozen=True):
    """A setting from the command line: the flag's name and its value (a text is read as its setting's type)."""

    name: str
    value: Any


class Loaded(msgspec.Struct, frozen=True):
    """The settings and where each comes from."""

    settings: Settings
    origins: dict[str, Origin]
    """By dotted key; a key that isn't in it has its default."""
    files: tuple[FilePath, ...]

    def rows(self) -> list[tuple[str, str, str]]:
        """Every key, its value as text (secrets hidden) and where it comes from, for `check-config`."""
        rows = []
        for key in settings_shape().keys.values():
            rows.append(_shown(key, self.settings, "", str(self.origins.get(key.name, Origin("default")))))
        for array in settings_shape().arrays.values():
            name = ".".join(array.path)
            for index, row in enumerate(_value_at(self.settings, array.attributes)):
                origin = str(self.origins.get(f"{name}[{index}]", Origin("default")))
                rows += [_shown(key, row, f"{name}[{index}].", origin) for key in array.shape.keys.values()]
        return rows


def _value_at(settings: Any, attributes: Path) -> Any:
    for word in attributes:
        settings = getattr(settings, word)
    return settings


def _shown(key: Key, settings: Any, under: str, origin: str) -> tuple[str, str, str]:
    value = _value_at(settings, key.attributes)
    return under + key.name, "(hidden)" if key.is_secret and value else show(value), origin


class _Declared(msgspec.Struct):
    """A `[[streams]]` as found, before its definition is put together."""

    name: str
    given: dict[Path, Given]
    origin: Origin


@cache
def settings_shape() -> Shape:
    """Every key of the configuration, `[[streams]]` apart."""
    return shape_of(Settings)


@cache
def definition_shape() -> Shape:
    """Every key of a stream's definition."""
    return shape_of(Definition)


def load_settings(
    config: FilePath | None = None, *, environ: Mapping[str, str], flags: Mapping[str, Flag] | None = None
) -> Loaded:
    """Puts the settings together. `flags` are by dotted key.

    Raises ConfigInvalid that names every mistake: file and line (or variable, or flag), key, what was
    expected and the nearest valid name. Secrets are not repeated.
    """
    problems = Problems()
    documents = [read_document(file) for file in list_files(config, environ)]
    given: dict[Path, Given] = {}
    declared: list[_Declared] = []
    for document in documents:
        _add(given, _read_tables(document, problems))
        _read_streams(document, declared, problems)
    stronger = _read_environment(environ, problems) | _read_flags(flags or {})
    given |= read_foreign(given | stronger, environ) | stronger
    settings = build(Settings, settings_shape(), given, problems)
    streams = _build_streams(declared, given, problems)
    subscriptions: list[DeclaredSubscription] = []
    for document in documents:
        read_subscriptions(document, subscriptions, Limits() if settings is None else settings.limits, problems)
    if settings is None or problems.violations:
        raise _refusal(problems)
    origins = {".".join(path): value.origin for path, value in given.items()}
    for path in settings_shape().arrays:
        for index, row in enumerate(given[path].value if path in given else ()):
            origins[f"{'.'.join(path)}[{index}]"] = row.origin
    settings = _fill_in(
        msgspec.structs.replace(settings, streams=streams, subscriptions=tuple(subscriptions)), environ, origins
    )
    return Loaded(settings, origins, tuple(document.file for document in documents))


def _read_flags(flags: Mapping[str, Flag]) -> dict[Path, Given]:
    found: dict[Path, Given] = {}
    for name, flag in flags.items():
        path = tuple(name.split("."))
        assert path in settings_shape().keys, name
        found[path] = Given(flag.value, Origin("flag", flag.name), isinstance(flag.value, str))
    return found


def _add(given: dict[Path, Given], later: dict[Path, Given]) -> None:
    """What a later file says replaces what an earlier one said; arrays of tables add up."""
    for path, value in later.items():
        if path in settings_shape().arrays and path in given:
            value = Given([*given[path].value, *value.value], value.origin)
        given[path] = value


def _read_tables(document: Document, problems: Problems) -> dict[Path, Given]:
    data = {word: value for word, value in document.data.items() if word not in ("streams", "subscriptions")}
    return spread(settings_shape(), data, lambda path: Origin("file", document.place(path)), problems)


def _read_environment(environ: Mapping[str, str], problems: Problems) -> dict[Path, Given]:
    """`OVERLAYD_<TABLE>__<KEY>`, deeper keys with further `__`. Names without `__` are not settings."""
    shape = settings_shape()
    found: dict[Path, Given] = {}
    names = {_variable(path): path for path in shape.keys}
    arrays = {_variable(path): path for path in shape.arrays}
    for variable in sorted(environ):
        if not variable.startswith(ENVIRONMENT_PREFIX) or "__" not in variable:
            continue
        origin = Origin("environment", variable)
        path = tuple(variable.removeprefix(ENVIRONMENT_PREFIX).lower().split("__"))
        if variable in names:
            found[names[variable]] = Given(environ[variable], origin, is_text=True)
        elif variable in arrays:
            found[arrays[variable]] = _read_rows(shape.arrays[arrays[variable]], environ[variable], origin, problems)
        elif near := difflib.get_close_matches(variable, [*names, *arrays], n=1, cutoff=0.8):
            problems.add(origin, ".".join(path), "unknown", f"no such setting; did you mean {near[0]}?")
        else:
            is_in_files = path[0] in ("streams", "subscriptions")
            detail = f"{path[0]} are declared in files" if is_in_files else explain_unknown(shape, path)
            problems.add(origin, ".".join(path), "unknown", detail)
    return found


def _read_rows(array: Array, text: str, origin: Origin, problems: Problems) -> Given:
    """An array of tables in a variable, in JSON or as in a file: `[{address = "..."}]`."""
    try:
        value = parse_json_or_toml(text)
    except ValueError:
        value = None
    return spread_rows(array, value, lambda path: origin, problems)


def _read_streams(document: Document, declared: list[_Declared], problems: Problems) -> None:
    tables = document.data.get("streams", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        detail = "expected an array of tables, each under its own [[streams]] header"
        problems.add(Origin("file", document.place(("streams",))), "streams", "type", detail)
        return
    for index, table in enumerate(tables):
        origin = Origin("file", document.place(("streams", index)))
        name = table.get("name")
        if not isinstance(name, str):
            detail = "expected a stream's name" + (f", got {show(name)}" if "name" in table else "")
            problems.add(origin, f"streams[{index}].name", "missing", detail)
            continue
        if not _is_usable_name(name, origin, problems):
            continue
        if first := next((one for one in declared if one.name == name), None):
            detail = f'the stream "{name}" is declared at {first.origin} too'
            problems.add(origin, f"streams.{name}", "duplicate", detail)
            continue
        rest = {word: value for word, value in table.items() if word != "name"}
        declared.append(_Declared(name, _spread_stream(document, index, name, rest, problems), origin))


def _spread_stream(
    document: Document, index: int, name: str, table: dict[str, Any], problems: Problems
) -> dict[Path, Given]:
    def origin_of(path: Path) -> Origin:
        return Origin("file", document.place(("streams", index, *path)))

    return spread(definition_shape(), table, origin_of, problems, under=f"streams.{name}.")


def _is_usable_name(name: str, origin: Origin, problems: Problems) -> bool:
    try:
        parse_stream_name(name)
    except BadParameter as err:
        problems.add(origin, "streams.name", "value", f"expected {err.hint}; got {show(name)}")
        return False
    if is_node_name(name):
        problems.add(origin, "streams.name", "value", f'"{name}" belongs to the node itself')
        return False
    return True


def _build_streams(
    declared: list[_Declared], given: dict[Path, Given], problems: Problems
) -> tuple[StreamSettings, ...]:
    """Definitions from `[defaults]` and what each stream says itself."""
    shape = definition_shape()
    defaults = {path[1:]: value for path, value in given.items() if path[0] == "defaults" and path[1:] in shape.keys}
    if build(Definition, shape, defaults, Problems()) is None:
        return ()  # told once already, under [defaults]
    streams = []
    for one in declared:
        definition = build(Definition, shape, defaults | one.given, problems, under=f"streams.{one.name}.")
        if definition is not None:
            streams.append(StreamSettings(parse_stream_name(one.name), definition, str(one.origin)))
    return tuple(streams)


def _fill_in(settings: Settings, environ: Mapping[str, str], origins: dict[str, Origin]) -> Settings:
    """What can only be known here: the data directory, the node's name, and where keys are declared."""
    node, storage = settings.node, settings.storage
    if not node.name:
        node = msgspec.structs.replace(node, name=platform.node() or "overlayd")
    if not storage.dir:
        directory = environ.get("STATE_DIRECTORY", "").split(":")[0]
        if directory:
            origins["storage.dir"] = Origin("environment", "STATE_DIRECTORY")
        storage = msgspec.structs.replace(storage, dir=directory or DATA_DIRECTORY)
    keys = tuple(
        msgspec.structs.replace(key, declared_in=str(origins[f"keys[{index}]"]))
        for index, key in enumerate(settings.keys)
    )
    return msgspec.structs.replace(settings, node=node, storage=storage, keys=keys)


def _refusal(problems: Problems) -> ConfigInvalid:
    lines = [violation.detail for violation in problems.violations]
    return ConfigInvalid("\n".join(lines), subject=lines[0].split(":")[0], violations=problems.violations)


def _variable(path: Path) -> str:
    return ENVIRONMENT_PREFIX + "__".join(path).upper()
