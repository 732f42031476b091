"""A node on a damaged log: it starts, serves what proves itself, and says everywhere what it lost."""

import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from node_process import Node

from overlayd.client import SyncClient
from overlayd.storage.damage.pages import PAGE_BYTES, PageImage, find_leaves, read_cells
from overlayd.storage.damage.schema import load_schema
from overlayd.storage.damage.tables import judge_entry

PACKETS = 400


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data of a node that took some packets, made an API key, and stopped."""
    data = tmp_path_factory.mktemp("sound") / "data"
    node = Node(data).wait_ready()
    with SyncClient(node.url) as client:
        client.publish_many("a", [{"data": {"n": n, "text": "x" * 200}} for n in range(PACKETS)])
    assert node.stop() == 0
    return data


def root_of(data: Path, table: str) -> int:
    """A table's first page."""
    return next(row.root for row in load_schema(data).rows if row.name == table)


def wipe(data: Path, *pages: int) -> None:
    """Fills pages with nothing."""
    path = data / "log.sqlite3"
    content = bytearray(path.read_bytes())
    for page in pages:
        content[(page - 1) * PAGE_BYTES : page * PAGE_BYTES] = bytes(PAGE_BYTES)
    path.write_bytes(content)


def entry_pages(data: Path) -> dict[int, list[int]]:
    """The offsets on each page of entries."""
    with PageImage(data / "log.sqlite3") as image:
        leaves = [number for number, _ in find_leaves(image, root_of(data, "entry"))]
        return {
            number: [row[0] for cell in read_cells(image, number) if (row := judge_entry(cell)) is not None]
            for number in leaves
        }


def messages(node: Node) -> list[dict[str, Any]]:
    """Everything on the stream."""
    found: list[dict[str, Any]] = []
    query = {"stream": "a", "from": "beginning"}
    with httpx.Client(base_url=node.url) as client:
        while True:
            page = client.get("/v1/read", params=query).raise_for_status().json()
            found += page["messages"]
            query = {"stream": "a", "after": page["cursor"]}
            if page["at_head"]:
                return found


def metric(node: Node, name: str) -> float:
    """A metric's value."""
    text = httpx.get(f"{node.url}/metrics").text
    return float(next(line.split()[-1] for line in text.splitlines() if line.startswith(f"{name} ")))


def events(node: Node, type: str) -> list[dict[str, Any]]:
    """What the node told in its own events."""
    with SyncClient(f"unix:{node.directory}/overlayd.sock") as client:
        found = client.packets("overlayd.events")
        return [json.loads(bytes(packet.data_payload)) for packet in found if getattr(packet, "type", "") == type]


def test_a_lost_page_is_told_everywhere(sound: Path, tmp_path: Path) -> None:
    """The page that leads to all entries and one page of entries are gone: what was on that page is a gap, all else is
    served, and /readyz, the metrics, the events and `verify` name the same offsets."""
    data = tmp_path / "data"
    shutil.copytree(sound, data)
    pages = entry_pages(data)
    page = list(pages)[5]
    gone = sorted(pages[page])
    wipe(data, page, root_of(data, "entry"))
    node = Node(data).wait_ready()
    try:
        found = messages(node)
        gaps = [message for message in found if message["type"] == "gap"]
        assert {gap["reason"] for gap in gaps} == {"damaged"}
        assert (gaps[0]["from"].split("-")[1], gaps[-1]["to"].split("-")[1]) == (str(gone[0]), str(gone[-1]))
        assert len([message for message in found if message["type"] == "packet"]) == PACKETS - len(gone)
        ready = httpx.get(f"{node.url}/readyz")
        assert ready.status_code == 200
        assert (
            f"{len(gone)} entries can't be served: {gone[0]}-{gone[-1]}" in ready.json()["checks"]["damage"]["detail"]
        )
        assert metric(node, "overlayd_damaged_entries") == len(gone)
        assert metric(node, "overlayd_mended") == 1
        (told,) = events(node, "storage.mended")
        assert told["missing"] == [[gone[0], gone[-1]]]
        with SyncClient(node.url) as client:
            assert client.publish("a", {"n": "new"}).sequence > PACKETS
        made = subprocess.run(
            [sys.executable, "-m", "overlayd", "backup", "--data", data, "--json"], capture_output=True, check=True
        )
        assert json.loads(made.stdout)["verified"]
    finally:
        assert node.stop() == 0
    checked = subprocess.run(
        [sys.executable, "-m", "overlayd", "verify", "--data", data], capture_output=True, text=True, check=True
    )
    assert f"lost         {len(gone)} entries to damage" in checked.stdout
    again = Node(data).wait_ready()
    assert metric(again, "overlayd_mended") == 0
    assert metric(again, "overlayd_damaged_entries") == len(gone)
    assert again.stop() == 0
    assert len(list(data.glob("damaged-*"))) == 1


def test_damage_that_readers_come_upon(sound: Path, tmp_path: Path) -> None:
    """A body that changed isn't found by a start; who reads it gets the gap, and the node tells of it from then on."""
    data = tmp_path / "data"
    shutil.copytree(sound, data)
    path = data / "log.sqlite3"
    content = path.read_bytes()
    at = content.index(b'{"n":77,')
    path.write_bytes(content[: at + 5] + b"8" + content[at + 6 :])
    node = Node(data).wait_ready()
    try:
        assert metric(node, "overlayd_damaged_entries") == 0
        gaps = [message for message in messages(node) if message["type"] == "gap"]
        assert [gap["reason"] for gap in gaps] == ["damaged"]
        assert metric(node, "overlayd_damaged_entries") == 1
        assert "1 entries can't be served" in httpx.get(f"{node.url}/readyz").json()["checks"]["damage"]["detail"]
        node.wait_for("damaged entries")
        told = events(node, "storage.damaged")
        assert [len(one["runs"]) for one in told] == [1]
    finally:
        assert node.stop() == 0


def test_lost_keys_open_nothing(sound: Path, tmp_path: Path) -> None:
    """Without keys a node is open to the machine; one that lost its keys to damage isn't."""
    data = tmp_path / "data"
    shutil.copytree(sound, data)
    wipe(data, root_of(data, "access_key"), root_of(data, "entry"))
    node = Node(data).wait_ready()
    try:
        assert httpx.get(f"{node.url}/v1/streams").status_code == 401
        with SyncClient(f"unix:{data}/overlayd.sock") as client:
            assert "access_key" in client.ready().checks["damage"].detail  # type: ignore[operator]
    finally:
        assert node.stop() == 0


def test_salvage(sound: Path, tmp_path: Path) -> None:
    """What is left goes into a new directory, on which a node goes on; the old one isn't changed."""
    data, new = tmp_path / "data", tmp_path / "new"
    shutil.copytree(sound, data)
    pages = entry_pages(data)
    page = list(pages)[2]
    wipe(data, page, root_of(data, "entry"), 1)
    before = (data / "log.sqlite3").read_bytes()
    command = [sys.executable, "-m", "overlayd", "salvage", str(new), "--data", str(data)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"lost: {min(pages[page])} to {max(pages[page])}" in done.stdout
    assert (data / "log.sqlite3").read_bytes() == before
    assert subprocess.run(command, capture_output=True, check=False).returncode == 78  # it isn't empty any more
    node = Node(new).wait_ready()
    try:
        found = messages(node)
        assert len([message for message in found if message["type"] == "packet"]) == PACKETS - len(pages[page])
        assert [message["reason"] for message in found if message["type"] == "gap"] == ["damaged"]
    finally:
        assert node.stop() == 0


def test_nothing_left_is_said(tmp_path: Path) -> None:
    """A file without an entry in it: the node stops with what to do, salvage too, and neither touches it."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "log.sqlite3").write_bytes(b"not a database" * 5000)
    node = Node(data)
    assert node.process.wait(30) == 1
    node.stop()
    assert "restore it from a backup" in "".join(node.output)
    command = [sys.executable, "-m", "overlayd", "salvage", str(tmp_path / "new"), "--data", str(data)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 1
    assert (data / "log.sqlite3").read_bytes() == b"not a database" * 5000


def test_database_that_a_newer_version_wrote(sound: Path, tmp_path: Path) -> None:
    """It is refused by name, and isn't taken for damage."""
    data = tmp_path / "data"
    shutil.copytree(sound, data)
    with sqlite3.connect(data / "log.sqlite3") as connection:
        connection.execute("CREATE TABLE later (a)")
        connection.execute("UPDATE schema_version SET version = 99 WHERE feature = 'log'")
    connection.close()
    node = Node(data)
    assert node.process.wait(30) == 1
    node.stop()
    assert "have version 99, this program knows" in "".join(node.output)
    assert not list(data.glob("damaged-*"))
