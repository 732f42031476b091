"""The log's key is changed on a real node: by its page's commands, under kill -9, and after a theft."""

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from node_process import Node
from real_waiting import PATIENCE_S, pause

from overlayd.client import SyncClient
from overlayd.client.trust import LogView
from overlayd.model.errors import ForkDetected, VerificationFailed
from overlayd.model.key_chain import decode_key_list, follow_keys
from overlayd.model.note import CheckpointText, Ed25519Signer, VerifierKey, sign_note
from overlayd.model.proof import TrustedKeys, verify_checkpoint

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def blocks(name: str) -> list[str]:
    """The page's shell blocks of a name, without their indentation."""
    found = re.findall(rf"^( *)```sh {name}\n(.*?)^ *```", (ROOT / "docs/keys.md").read_text(), re.M | re.S)
    return [re.sub(rf"^{indent}", "", text, flags=re.M) for indent, text in found]


def shell(script: str, directory: Path, **environment: str) -> str:
    """Runs a block as a reader would; what it prints."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=directory, capture_output=True, text=True, timeout=60, check=False,
        env=os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"} | environment,
    )  # fmt: skip
    assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
    return done.stdout


def publish(node: Node, count: int = 3) -> None:
    """A few packets more."""
    with SyncClient(node.url) as client:
        for number in range(count):
            client.publish("a", {"n": number})


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """A node with some packets."""
    running = Node(tmp_path / "data").wait_ready()
    try:
        publish(running)
        yield running
    finally:
        running.stop()


def test_the_pages_commands_rotate_and_verify(node: Node, tmp_path: Path) -> None:
    """An old proof and a new one verify with either key and the list; a running node's log and a stopped one's are intact."""
    rotating, verifying = blocks("keys")
    with SyncClient(node.url) as client:
        before = client.node().keys[0]
        (tmp_path / "proof.json").write_bytes(client.proof("a", 1))
        shell(rotating, tmp_path, DIR=str(node.directory))
        after = client.node().keys[0]
        assert before != after
        publish(node)
        shell(verifying, tmp_path, VKEY=before)
        shell(verifying, tmp_path, VKEY=after)
        (tmp_path / "proof.json").write_bytes(client.proof("a", 5))
        shell(verifying, tmp_path, VKEY=before)
        shell(verifying, tmp_path, VKEY=after)
        shell('overlayd verify proof.json --log-key "$VKEY" || test $? -eq 20', tmp_path, VKEY=before)
    shell('overlayd verify --data "$DIR"', tmp_path, DIR=str(node.directory))
    shell('overlayd verify proof.json --data "$DIR" || test $? -eq 21', tmp_path, DIR=str(node.directory))
    assert node.stop() == 0
    assert "intact" in shell('overlayd verify --data "$DIR"', tmp_path, DIR=str(node.directory))


def test_after_a_theft(node: Node, tmp_path: Path) -> None:
    """What the thief signs is refused by whoever has the list, and by whoever remembers the log; a new log begins."""
    view = LogView(tmp_path / "trust.json")
    with SyncClient(node.url) as client:
        client.check_log(view)
        stolen = (node.directory / "keys" / "log.ed25519").read_bytes()
        pinned = TrustedKeys((VerifierKey.parse(client.node().keys[0]),))
        (block,) = blocks("stolen")
        shell(block, tmp_path, DIR=str(node.directory))
        known = follow_keys(decode_key_list((tmp_path / "keys.json").read_bytes()), pinned)
        verify_checkpoint((tmp_path / "checkpoint.txt").read_text(), known)
        origin = client.node().origin
        client.check_log(view)
    thief = Ed25519Signer(origin, stolen)
    larger = sign_note(str(CheckpointText(origin, view.known.size + 100, b"\x01" * 32)), [thief])
    with pytest.raises(VerificationFailed, match="didn't count at size"):
        verify_checkpoint(larger, known)
    same = sign_note(str(CheckpointText(origin, view.known.size, b"\x02" * 32)), [thief])
    steps = view.take_checkpoint(same)
    with pytest.raises(ForkDetected):
        next(steps)
    assert node.stop() == 0
    _begin_anew(node, tmp_path)


def _begin_anew(node: Node, tmp_path: Path) -> None:
    (block,) = blocks("new-log")
    lines = block.splitlines()
    assert [line for line in lines if line.startswith("systemctl")] == [
        "systemctl stop overlayd",
        "systemctl start overlayd",
    ]
    at = lines.index("systemctl start overlayd")
    shell("\n".join(line for line in lines[:at] if not line.startswith("systemctl")), tmp_path, DIR=str(node.directory))
    fresh = Node(node.directory).wait_ready()
    try:
        shell("\n".join(lines[at + 1 :]), tmp_path, DIR=str(node.directory))
        with SyncClient(fresh.url) as client:
            (packet,) = client.read("former-log").packets
        assert json.loads(bytes(packet.data_payload))["former_checkpoint"] == (tmp_path / "checkpoint.txt").read_text()
    finally:
        fresh.stop()
    assert "intact" in shell('overlayd verify --data "$DIR.stolen"', tmp_path, DIR=str(node.directory))


def test_killed_while_it_rotates(tmp_path: Path) -> None:
    """Wherever it is hit, the next start goes on: every key that counts was introduced, and the log is intact."""
    chance = random.Random(7)
    directory, first = tmp_path / "data", ""
    for _ in range(3):
        node = Node(directory).wait_ready()
        try:
            publish(node, 1)
            with SyncClient(node.url) as client:
                first = first or client.node().keys[0]
            socket = directory / "overlayd.sock"
            asking = subprocess.Popen(
                ["curl", "-s", "-X", "POST", "--unix-socket", str(socket), "http://localhost/v1/log/keys/rotate"],
                stdout=subprocess.DEVNULL,
            )  # fmt: skip
            pause(chance.random() * 0.03)
        finally:
            node.process.kill()
            node.stop()
        asking.wait(PATIENCE_S)
    node = Node(directory).wait_ready()
    try:
        publish(node, 1)
        listing = shell('overlayd keys node --data "$DIR" --json', tmp_path, DIR=str(directory))
        states = [key["state"] for key in json.loads(listing)["keys"]]
        assert states[-1] == "current"
        assert states.count("current") == 1
        known = follow_keys(decode_key_list(listing.encode()), TrustedKeys((VerifierKey.parse(first),)))
        with SyncClient(node.url) as client:
            verify_checkpoint(client.checkpoint(), known)
    finally:
        assert node.stop() == 0
    assert "intact" in shell('overlayd verify --data "$DIR"', tmp_path, DIR=str(directory))
