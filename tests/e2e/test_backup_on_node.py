"""Backups of a real node under load, and what comes back from them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from node_process import Node

from overlayd.client import SyncClient
from overlayd.model.errors import OverlaydError
from overlayd.storage.backup.manifest import describe_file, encode_manifest, read_manifest
from overlayd.storage.damage.mending import MARKER_NAME, MENDED_NAME

PASSPHRASE = "correct horse battery staple"


def overlayd(*arguments: str | Path, code: int | None = 0) -> str:
    """Runs a command; what it prints. `code`: how it must end."""
    done = subprocess.run(
        [sys.executable, "-m", "overlayd", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert code is None or done.returncode == code, f"{arguments} -> {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


class Producer(threading.Thread):
    """Publishes numbered packets until the node is gone; remembers what was acknowledged, and under which sequence."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.url = url
        self.sequences: dict[str, int] = {}
        self.enough = threading.Event()
        self.is_ending = False

    def run(self) -> None:
        with SyncClient(self.url) as client:
            while not self.is_ending:
                name = f"p-{len(self.sequences)}"
                try:
                    receipt = client.publish("a", {"name": name}, id=name)
                except OverlaydError:
                    return
                self.sequences[name] = receipt.sequence
                if len(self.sequences) % 100 == 0:
                    self.enough.set()

    def wait_more(self) -> None:
        """Until a hundred more or so are in."""
        self.enough.clear()
        assert self.enough.wait(30)


def read_all(node: Node, after: str = "") -> tuple[list[dict[str, Any]], str]:
    """The messages of `/v1/read` on the stream until the head, and the last cursor."""
    messages: list[dict[str, Any]] = []
    query = {"stream": "a", "after": after} if after else {"stream": "a", "from": "beginning"}
    with httpx.Client(base_url=node.url) as client:
        while True:
            page = client.get("/v1/read", params=query).raise_for_status().json()
            messages += page["messages"]
            query = {"stream": "a", "after": page["cursor"]}
            if page["at_head"]:
                return messages, page["cursor"]


def test_drill(tmp_path: Path) -> None:
    """Back up while packets come in, kill, restore, go on: what the backup has is there, what it hasn't is announced."""
    data = tmp_path / "data"
    node = Node(data).wait_ready()
    producer = Producer(node.url)
    producer.start()
    producer.wait_more()
    early = read_all(node)[1]
    made = json.loads(overlayd("backup", "--data", data, "--json"))
    producer.wait_more()
    late = read_all(node)[1]
    os.kill(node.process.pid, signal.SIGKILL)
    node.stop()
    producer.join()
    backup = Path(made["path"])

    assert "would be lost" in overlayd("restore", backup, "--data", data, "--replace", code=1)
    told = overlayd("restore", backup, "--data", data, "--replace", "--accept-loss")
    assert "are lost; clients that saw them are told so" in told
    assert [path.name for path in data.glob("replaced-*/log.sqlite3")] == ["log.sqlite3"]
    node = Node(data).wait_ready()
    try:
        after_early, _ = read_all(node, early)
        after_late, _ = read_all(node, late)
        with SyncClient(node.url) as client:
            facts = client.node()
            again = client.publish("a", {"name": "p-0"}, id="p-0")
            fresh = client.publish("a", {"name": "new"}, id="fresh")
        everything, _ = read_all(node)
        assert "ok     proof" in overlayd("smoke", "--data", data)
    finally:
        assert node.stop() == 0
    (ancestor,) = facts.ancestry
    assert (ancestor.epoch, ancestor.last_offset) == (made["epoch"], made["entries"])
    assert not [message for message in after_early if message["type"] == "gap"]
    gap = after_late[0]
    assert (gap["type"], gap["reason"]) == ("gap", "restored")
    assert gap["to"] == late
    assert gap["from"] == f"e{ancestor.epoch}-{ancestor.last_offset + 1}"
    assert again.duplicate
    assert fresh.sequence > max(producer.sequences.values())
    kept = {message["packet"]["packet_id"]: message["packet"] for message in everything}
    held = [name for name in producer.sequences if name in kept]
    assert held == list(producer.sequences)[: len(held)]
    assert len(held) >= 100
    assert all(kept[name]["packet_sequence"] == producer.sequences[name] for name in held)
    assert "intact" in overlayd("verify", "--data", data)
    listed = [json.loads(line) for line in overlayd("backup", "list", "--data", data, "--json").splitlines()]
    assert [(one["id"], one["present"]) for one in listed] == [(made["id"], True)]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data of a node that has stopped, with a backup in `backup` and its keys in `keys.bundle` beside it."""
    place = tmp_path_factory.mktemp("stopped")
    node = Node(place / "data").wait_ready()
    with SyncClient(node.url) as client:
        for number in range(20):
            client.publish("a", {"n": number})
    assert node.stop() == 0
    overlayd("backup", "--data", place / "data", "--to", place / "backups")
    (made,) = (place / "backups").iterdir()
    made.rename(place / "backup")
    (place / "passphrase").write_text(PASSPHRASE + "\n")
    return place


def test_restore_onto_another_machine(stopped: Path, tmp_path: Path) -> None:
    """Backup and keys are enough; without the keys the node says what is missing."""
    bundle, phrase = tmp_path / "keys.bundle", ("--passphrase-file", stopped / "passphrase")
    overlayd("keys", "export", bundle, "--data", stopped / "data", *phrase)
    assert bundle.stat().st_mode & 0o777 == 0o600
    assert "isn't overwritten" in overlayd("keys", "export", bundle, "--data", stopped / "data", *phrase, code=78)
    (tmp_path / "wrong").write_text("another passphrase\n")
    target = tmp_path / "data"
    wrong = overlayd("restore", stopped / "backup", "--data", target, "--keys", bundle, "--passphrase-file",
                     tmp_path / "wrong", code=78)  # fmt: skip
    assert "the passphrase is another one" in wrong
    assert not (target / "log.sqlite3").exists()
    assert "there are no key files" in overlayd("restore", stopped / "backup", "--data", target)
    node = Node(target)
    assert node.process.wait(30) != 0
    node.stop()
    overlayd("keys", "import", bundle, "--data", target, *phrase, code=78)  # that start drew other keys
    shutil.rmtree(target)
    overlayd("restore", stopped / "backup", "--data", target, "--keys", bundle, *phrase)
    assert "all were there" in overlayd("keys", "import", bundle, "--data", target, *phrase)
    node = Node(target).wait_ready()
    messages, _ = read_all(node)
    assert node.stop() == 0
    assert len(messages) == 20


@pytest.mark.parametrize("change", ["cut", "flip", "manifest", "foreign"])
def test_altered_backups_are_refused(stopped: Path, tmp_path: Path, change: str) -> None:
    """Truncated, altered, altered along with its manifest, or another log's: nothing of the old log is touched."""
    backup, data = tmp_path / "backup", tmp_path / "data"
    subprocess.run(["cp", "-r", stopped / "backup", backup], check=True)
    subprocess.run(["cp", "-r", stopped / "data", data], check=True)
    database = backup / "log.sqlite3"
    content = database.read_bytes()
    if change == "cut":
        database.write_bytes(content[:-4096])
    elif change == "flip":
        at = content.rindex(b'{"n":7}')
        database.write_bytes(content[:at] + b'{"n":8}' + content[at + 7 :])
    elif change == "manifest":
        manifest = json.loads((backup / "manifest.json").read_text()) | {"entries": 3}
        (backup / "manifest.json").write_text(json.dumps(manifest))
    else:
        subprocess.run(["rm", "-r", data / "keys"], check=True)
        overlayd("init", "--data", data)
    before = (data / "log.sqlite3").read_bytes()
    told = overlayd("restore", backup, "--data", data, "--replace", "--accept-loss", code=20)
    assert "overlayd: " in told
    assert (data / "log.sqlite3").read_bytes() == before
    assert not list(data.glob("replaced-*"))


def test_a_newer_versions_backup_is_refused(stopped: Path, tmp_path: Path) -> None:
    """No start of this version would open it, so the log that is there stays in its place."""
    backup, data = tmp_path / "backup", tmp_path / "data"
    subprocess.run(["cp", "-r", stopped / "backup", backup], check=True)
    subprocess.run(["cp", "-r", stopped / "data", data], check=True)
    manifest = read_manifest(backup)
    newer = msgspec.structs.replace(manifest, schema=manifest.schema | {"webhooks": 900})
    (backup / "manifest.json").write_bytes(encode_manifest(newer))
    before = (data / "log.sqlite3").read_bytes()
    assert "newer version" in overlayd("restore", backup, "--data", data, "--replace", "--accept-loss", code=1)
    assert (data / "log.sqlite3").read_bytes() == before


def test_altered_with_a_fitting_manifest(stopped: Path, tmp_path: Path) -> None:
    """Who alters both still can't sign: the entries don't hash to what the log's key signed."""
    backup = tmp_path / "backup"
    subprocess.run(["cp", "-r", stopped / "backup", backup], check=True)
    database = backup / "log.sqlite3"
    content = database.read_bytes()
    at = content.rindex(b'{"n":7}')
    database.write_bytes(content[:at] + b'{"n":8}' + content[at + 7 :])
    manifest = msgspec.structs.replace(read_manifest(backup), files=(describe_file(database),))
    (backup / "manifest.json").write_bytes(encode_manifest(manifest))
    overlayd("backup", "verify", backup, code=20)
    overlayd("restore", backup, "--data", tmp_path / "data", code=20)


def test_a_mending_that_was_cut_off_spares_the_restored_log(stopped: Path, tmp_path: Path) -> None:
    """What a start was making of the damaged log doesn't go over the one that was restored in its place."""
    data = tmp_path / "data"
    subprocess.run(["cp", "-r", stopped / "data", data], check=True)
    (data / "log.sqlite3").rename(data / MENDED_NAME)
    (data / MARKER_NAME).write_text("swap damaged-20260101T000000Z")
    overlayd("restore", stopped / "backup", "--data", data, "--accept-loss")
    restored = (data / "log.sqlite3").stat().st_ino
    node = Node(data).wait_ready()
    assert node.stop() == 0
    assert (data / "log.sqlite3").stat().st_ino == restored


def test_behind_a_checkpoint_that_somebody_kept(stopped: Path, tmp_path: Path) -> None:
    """A note of a later size, kept elsewhere: the restore tells by how much it falls short, and wants to be sure."""
    data = tmp_path / "data"
    subprocess.run(["cp", "-r", stopped / "data", data], check=True)
    node = Node(data).wait_ready()
    with SyncClient(node.url) as client:
        receipt = client.publish("a", {"n": 20})
        httpx.get(f"{node.url}/v1/streams/a/packets/{receipt.sequence}/proof", timeout=60).raise_for_status()
        (tmp_path / "note").write_text(client.checkpoint())  # what a proof needed was signed for it
    node.stop()
    target = tmp_path / "fresh"
    arguments = ("restore", stopped / "backup", "--data", target, "--checkpoint", tmp_path / "note")
    assert "the last anchored checkpoint covers" in overlayd(*arguments, code=1)
    assert "BEHIND the last anchored checkpoint" in overlayd(*arguments, "--accept-loss")


def test_backup_of_no_log(tmp_path: Path) -> None:
    """There is nothing to copy, and nothing is made."""
    assert "no log" in overlayd("backup", "--data", tmp_path / "data", code=1)
    assert not (tmp_path / "data").exists()


def test_where_a_running_node_puts_backups(tmp_path: Path) -> None:
    """The settings say so, and nobody else; one more than `keep` takes the oldest one's place."""
    node = Node(tmp_path / "data", config=f'[backup]\ndir = "{tmp_path}/elsewhere"\nkeep = 1\n').wait_ready()
    try:
        assert "[backup] dir" in overlayd("backup", "--data", tmp_path / "data", "--to", tmp_path, code=2)
        for _ in range(2):
            overlayd("backup", "--data", tmp_path / "data")
        listed = overlayd("backup", "list", "--data", tmp_path / "data")
        assert [word in listed for word in ("gone", "verified")] == [True, True]
    finally:
        assert node.stop() == 0
    (there,) = (tmp_path / "elsewhere").iterdir()
    overlayd("backup", "--data", tmp_path / "data", "--config", tmp_path / "data.toml")
    (kept,) = (tmp_path / "elsewhere").iterdir()
    assert kept != there, "the node's absence changed where backups go, or how many stay"
