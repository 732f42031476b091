"""What the Merkle tree costs: growing it in groups, its root, and the two ways to key its tiles.

Run: python3 -m benchmarks.tree
"""

import hashlib
import sqlite3
import tempfile
import time
from pathlib import Path

from overlayd.storage.tree import TABLES, TILE_INSERT, Tree, tile_id

LEAVES = 300_000
TILES = 20_000


def measure_growing(leaves: list[bytes]) -> None:
    """Prints the cost of a leaf for several sizes of group, and of a root."""
    for group in (1, 10, 100, 1000):
        tree, count = Tree(), LEAVES if group > 1 else LEAVES // 5
        began = time.perf_counter()
        for at in range(0, count, group):
            tree.adopt(tree.extend(leaves[at : at + group]))
        print(f"extend, groups of {group:4}: {(time.perf_counter() - began) / count * 1e6:.2f} µs a leaf")
    began = time.perf_counter()
    for _ in range(1000):
        tree.root()
    print(f"root of {tree.size:,} leaves: {(time.perf_counter() - began) * 1e3:.1f} µs")


def measure_tables(directory: Path) -> None:
    """Prints seconds and bytes a tile for a packed rowid and for a two-column key."""
    two_columns = "CREATE TABLE tile(level INTEGER, idx INTEGER, hashes BLOB, PRIMARY KEY(level, idx)) WITHOUT ROWID"
    hashes = bytes(8192)
    for name, tables in (("packed rowid", TABLES), ("level and index, WITHOUT ROWID", two_columns)):
        path = directory / f"{len(name)}.sqlite3"
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.executescript(tables)
        connection.execute("BEGIN")
        began = time.perf_counter()
        for index in range(TILES):
            for level, at in [(0, index), *([(1, index >> 8)] if index % 256 == 255 else [])]:
                if tables is TABLES:
                    connection.execute(TILE_INSERT + "(?, ?)", (tile_id(level, at), hashes))
                else:
                    connection.execute("INSERT INTO tile VALUES (?, ?, ?)", (level, at, hashes))
        connection.execute("COMMIT")
        took = time.perf_counter() - began
        connection.close()
        print(f"{name}: {took / TILES * 1e6:.1f} µs and {path.stat().st_size / TILES:.0f} bytes a tile")


if __name__ == "__main__":
    measure_growing([hashlib.sha256(at.to_bytes(8, "big")).digest() for at in range(LEAVES)])
    with tempfile.TemporaryDirectory() as directory:
        measure_tables(Path(directory))
