"""The right edge of the tree, kept outside of the database: with it a log whose pages are damaged can go on.

Of a leaf that is lost along with its tile the hash of its tile is enough, and that hash stands in the tile above, which the
database gets only when it is full. The leaves of the last tile are in the high-water mark; this file holds the levels
above, and is written only when they change, every 256 entries. Blocking.
"""

import base64
from collections.abc import Sequence
from pathlib import Path

import msgspec

from overlayd.model.merkle import TILE_HEIGHT, TILE_WIDTH
from overlayd.storage import files

EDGE_NAME = "edge"
_HEAD = "overlayd/edge/1"
_HASH_BYTES = 32


class Edge(msgspec.Struct, frozen=True):
    """Hashes at a size: `levels[n]` are those of tile level n since its last full tile."""

    size: int
    levels: tuple[bytes, ...]

    def find(self, level: int, index: int) -> bytes:
        """The hash of a node of a tile level; b"" when the edge doesn't hold it."""
        if level >= len(self.levels):
            return b""
        first = (self.size >> TILE_HEIGHT * level) // TILE_WIDTH * TILE_WIDTH
        at = (index - first) * _HASH_BYTES
        return self.levels[level][at : at + _HASH_BYTES] if at >= 0 else b""


class EdgeFile:
    """Writes the file when it has to."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / EDGE_NAME
        self._levels: Sequence[bytes] | None = None

    def write(self, size: int, levels: Sequence[bytes]) -> None:
        """Durable when it returns. Raises OSError."""
        if self._levels == levels[1:]:
            return
        lines = [_HEAD, str(size), *(base64.b64encode(level).decode() for level in levels[1:]), ""]
        files.replace_file(self._path, "\n".join(lines).encode())
        self._levels = levels[1:]


def read_edges(directory: Path) -> tuple[Edge, ...]:
    """What is kept: the last leaves, and the levels above, which may be of an earlier size. Nothing that can't be read."""
    return tuple(edge for edge in (_read_leaves(directory), _read_levels(directory)) if edge is not None)


def _read_leaves(directory: Path) -> Edge | None:
    lines = _lines_of(directory / "high-water")
    if len(lines) != 6:
        return None
    try:
        return _edge_of(int(lines[2]), [base64.b64decode(lines[4], validate=True)])
    except ValueError:
        return None


def _read_levels(directory: Path) -> Edge | None:
    lines = _lines_of(directory / EDGE_NAME)
    if len(lines) < 3 or lines[0] != _HEAD or lines[-1]:
        return None
    try:
        return _edge_of(int(lines[1]), [b"", *(base64.b64decode(line, validate=True) for line in lines[2:-1])])
    except ValueError:
        return None


def _edge_of(size: int, levels: list[bytes]) -> Edge | None:
    for level, hashes in enumerate(levels):
        if hashes and len(hashes) != (size >> TILE_HEIGHT * level) % TILE_WIDTH * _HASH_BYTES:
            return None
    return Edge(size, tuple(levels))


def _lines_of(path: Path) -> list[str]:
    try:
        return files.read_file(path).decode("ascii").split("\n")
    except (OSError, UnicodeDecodeError):
        return []
