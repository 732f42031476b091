"""Finding and reading TOML files, and the line that a key stands on."""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from overlayd.model.errors import ConfigInvalid

FILE_BYTES_MAX = 4 << 20
FILES_MAX = 1000
"""Files in one conf.d."""

_DEPTH_MAX = 32
"""Parts of a path that are told apart."""
_WORD = r"""(?:"[^"\n]*"|'[^'\n]*'|[A-Za-z0-9_-]+)"""
_DOTTED = rf"{_WORD}(?:\s*\.\s*{_WORD})*"
_ARRAY_HEADER = re.compile(rf"\s*\[\[\s*({_DOTTED})\s*\]\]")
_HEADER = re.compile(rf"\s*\[\s*({_DOTTED})\s*\]")
_KEY = re.compile(rf"\s*({_DOTTED})\s*=")


KeyPath: TypeAlias = tuple[str | int, ...]


class KeyLines(msgspec.Struct, frozen=True):
    """The lines of a text that set a key or open a table, each the first of its kind."""

    at: dict[KeyPath, int]
    """By the whole path that the line names."""
    within: dict[KeyPath, int]
    """By each beginning of that path, itself included."""

    def find(self, path: KeyPath) -> int | None:
        """As `find_line`."""
        path = path[:_DEPTH_MAX]
        if path in self.within:
            return self.within[path]
        around = (self.at.get(path[:depth]) for depth in range(len(path) - 1, 0, -1))
        return next((line for line in around if line is not None), None)


class Document(msgspec.Struct, frozen=True):
    """One TOML file as read."""

    file: Path
    lines: KeyLines
    data: dict[str, Any]

    def place(self, path: KeyPath) -> str:
        """`file:line` of a key, or of the nearest table around it; `file` when it can't be found."""
        line = self.lines.find(path)
        return f"{self.file}:{line}" if line else str(self.file)


def list_files(config: Path | None, environ: Mapping[str, str]) -> list[Path]:
    """The files to read, in order: the config file, then `conf.d/*.toml` beside it by name.

    Without `config`, `config.toml` in $CONFIGURATION_DIRECTORY (systemd sets it) is read if it is there.
    """
    files: list[Path] = []
    directory = config.parent if config else None
    if config:
        files.append(config)
    elif first := environ.get("CONFIGURATION_DIRECTORY", "").split(":")[0]:
        directory = Path(first)
        if (directory / "config.toml").exists():
            files.append(directory / "config.toml")
    if directory:
        parts = sorted(directory.glob("conf.d/*.toml"), key=lambda file: file.name)
        files += [file for file in parts if not file.name.startswith(".")]
    if len(files) > FILES_MAX:
        raise ConfigInvalid(f"{directory}/conf.d: more than {FILES_MAX} files", subject=str(directory))
    return files


def read_document(file: Path) -> Document:
    """Raises ConfigInvalid, naming file and line."""
    try:
        with file.open("rb") as stream:
            raw = stream.read(FILE_BYTES_MAX + 1)
    except OSError as err:
        raise ConfigInvalid(f"{file}: can't be read: {err.strerror}", subject=str(file)) from err
    if len(raw) > FILE_BYTES_MAX:
        raise ConfigInvalid(f"{file}: over {FILE_BYTES_MAX >> 20} MiB", subject=str(file))
    try:
        text = raw.decode("utf-8")
        data = tomllib.loads(text)
        return Document(file, read_lines(text), data)
    except UnicodeDecodeError as err:
        line = raw[: err.start].count(b"\n") + 1
        raise ConfigInvalid(f"{file}:{line}: not UTF-8", subject=str(file)) from err
    except tomllib.TOMLDecodeError as err:
        found = re.search(r"line (\d+)", str(err))
        line = int(found[1]) if found else text.count("\n") + 1
        raise ConfigInvalid(f"{file}:{line}: not TOML: {err}", subject=str(file)) from err
    except RecursionError as err:
        raise ConfigInvalid(f"{file}: nested too deeply", subject=str(file)) from err


def find_line(text: str, path: KeyPath) -> int | None:
    """The 1-based line where the key at `path` is set, or the longest part of it that can be found.

    A number in the path counts the tables of an array. Finds by looking, without parsing: a line inside
    a multi-line text that looks like a header can mislead it, which costs a wrong line in a message.
    """
    return read_lines(text).find(path)


def read_lines(text: str) -> KeyLines:
    """Looks at each line once, because a file with a thousand streams is asked for thousands of places."""
    lines = KeyLines({}, {})
    table: KeyPath = ()
    arrays: dict[KeyPath, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if match := _ARRAY_HEADER.match(line):
            name = _enter(_words(match[1]), arrays)
            arrays[name] = arrays.get(name, -1) + 1
            full = table = (*name, arrays[name])
        elif match := _HEADER.match(line):
            full = table = _enter(_words(match[1]), arrays)
        elif match := _KEY.match(line):
            full = table + _words(match[1])
        else:
            continue
        full = full[:_DEPTH_MAX]
        lines.at.setdefault(full, number)
        for depth in range(1, len(full) + 1):
            lines.within.setdefault(full[:depth], number)
    return lines


def _enter(name: tuple[str, ...], arrays: dict[KeyPath, int]) -> KeyPath:
    """A header's path with the number of the current table after each array in it but the last part."""
    path: KeyPath = ()
    for at, word in enumerate(name):
        path = (*path, word)
        if at < len(name) - 1 and path in arrays:
            path = (*path, arrays[path])
    return path


def _words(dotted: str) -> tuple[str, ...]:
    return tuple(word.strip("\"'") for word in re.findall(_WORD, dotted))
