"""Bits that flip in the rows of features, which no entry's hash covers: the node comes up all the same, at the latest with
its second start, and serves every packet."""

import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from node_process import Node

from overlayd.client import SyncClient
from overlayd.storage.damage.pages import PAGE_BYTES
from overlayd.storage.damage.schema import SchemaRow, load_schema

PACKETS = 60
STARTS_MAX = 3
SHORT, LONG = 3, 57
_BY_HASH = frozenset({"entry", "tile", "position_block"})


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data of a node with packets, a subscription that is being worked through, and a key."""
    data = tmp_path_factory.mktemp("sound") / "data"
    node = Node(data).wait_ready()
    for arguments in (
        ("subscriptions", "create", "puller", "--stream", "a"), ("publish", "a", "--id-prefix", "p"),
        ("subscriptions", "fetch", "puller", "--max", "5"), ("keys", "create", "read:a"),
    ):  # fmt: skip
        lines = "".join(f'{{"data":{{"n":{n}}}}}\n' for n in range(PACKETS))
        command = [sys.executable, "-m", "overlayd", *arguments, "--data", str(data)]
        subprocess.run(command, input=lines, text=True, capture_output=True, check=True)
    assert node.stop() == 0
    return data


def tables_of(data: Path) -> list[SchemaRow]:
    """Tables with rows on their first page."""
    raw = (data / "log.sqlite3").read_bytes()
    rows = [row for row in load_schema(data).rows if row.kind == "table" and row.root and row.name not in _BY_HASH]
    return [row for row in rows if any(raw[(row.root - 1) * PAGE_BYTES + 3 : (row.root - 1) * PAGE_BYTES + 5])]


def flip(data: Path, row: SchemaRow, chance: random.Random) -> None:
    """Some bits of the rows on the table's first page."""
    path = data / "log.sqlite3"
    content = bytearray(path.read_bytes())
    start = (row.root - 1) * PAGE_BYTES
    rows_at = int.from_bytes(content[start + 5 : start + 7], "big")
    for _ in range(chance.choice((1, 1, 3, 10))):
        content[start + chance.randrange(rows_at, PAGE_BYTES)] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def starts_until_up(data: Path) -> int:
    """How often a service manager has to start the node until it stays; then every packet has to be there."""
    for start in range(1, STARTS_MAX + 1):
        node = Node(data)
        try:
            node.wait_ready()
            with SyncClient(f"unix:{data}/overlayd.sock") as client:
                assert len(list(client.packets("a"))) == PACKETS
                client.publish("a", {"n": "more"})
        except AssertionError:
            node.process.wait(20)  # it ended; one that hangs is another matter
            continue
        else:
            return start
        finally:
            node.stop()
    raise AssertionError("".join(node.output[-30:]))


def damaged_once(sound: Path, directory: Path, seed: int) -> None:
    """One damage, of each table in turn."""
    data = directory / "data"
    shutil.copytree(sound, data)
    tables = tables_of(data)
    flip(data, tables[seed % len(tables)], random.Random(seed))
    assert starts_until_up(data) <= 2
    shutil.rmtree(data)


@pytest.mark.parametrize("seed", range(SHORT))
def test_flipped_bits(sound: Path, tmp_path: Path, seed: int) -> None:
    """A few."""
    damaged_once(sound, tmp_path, 32 + seed)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_flipped_bits_in_every_table(sound: Path, tmp_path: Path) -> None:
    """Three in every table."""
    for seed in range(LONG):
        damaged_once(sound, tmp_path, seed)
