"""A real node whose checkpoints a token signs: while it is there, while it is gone, and with its PIN nowhere to be found."""

import http.client
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from canaries import Canaries
from node_process import Node
from real_waiting import PATIENCE_S, until

from overlayd.client import SyncClient
from overlayd.client.retry import ONCE
from overlayd.client.trust import LogView
from overlayd.model.errors import SignerUnavailable

sys.path.insert(0, str(Path(__file__).parent.parent / "signers"))

from soft_token import PIN, SoftToken, soft_token


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SoftToken]:
    """A token with a key for a log."""
    place = tmp_path / "token"
    place.mkdir()
    for made in soft_token(place, monkeypatch):
        made.make_key("log", "ed25519")
        made.make_key("wallet", "secp256k1")
        yield made


def readiness(node: Node, check: str = "checkpoint_key") -> tuple[int, str]:
    """Status of /readyz, and what it says about the key."""
    connection = http.client.HTTPConnection(node.url.removeprefix("http://"), timeout=PATIENCE_S)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())["checks"][check].get("detail", "")
    finally:
        connection.close()


def test_a_node_signed_by_a_token(token: SoftToken, tmp_path: Path) -> None:
    """It says when the token is gone and goes on taking packets; it signs again when the token is back, and never shows the PIN."""
    canaries = Canaries()
    canaries.plant("pin", PIN)
    config = f'[node]\ncheckpoint_key = "{token.uri("log")}"\n[log]\nlevel = "debug"\n'
    node = Node(tmp_path / "data", config=config).wait_ready()
    try:
        view = LogView()
        with SyncClient(node.url, retry=ONCE) as client:
            client.publish("a", {"n": 1})
            client.verify_proof("a", 1, view)
            assert readiness(node) == (200, "")
            token.take_away()
            client.publish("a", {"n": 2})
            until(lambda: readiness(node)[0] == 503, "the node misses its key")
            assert "object 'log'" in readiness(node)[1]
            with pytest.raises(SignerUnavailable):
                client.verify_proof("a", 2, view)
            client.publish("a", {"n": 3})
            token.put_back()
            until(lambda: readiness(node)[0] == 200, "the node has its key again")
            client.verify_proof("a", 3, view)
        canaries.look_at("arguments", Path(f"/proc/{node.process.pid}/cmdline").read_bytes())
        canaries.look_at("environment", Path(f"/proc/{node.process.pid}/environ").read_bytes())
    finally:
        assert node.stop() == 0
    canaries.look_at("output", "".join(node.output))
    canaries.look_at_files("data", tmp_path / "data")
    assert canaries.found() == []
    assert "checkpoints are signed again" in "".join(node.output)
    assert not list((tmp_path / "data" / "keys").glob("log*"))


def test_the_wallets_token_is_away_at_start(token: SoftToken, tmp_path: Path) -> None:
    """The node starts, takes packets and says what is missing; a checkpoint key that is gone keeps it from starting."""
    config = f'[node]\nwallet_key = "{token.uri("wallet")}"\n[chain]\nnetwork = "regtest"\nblock_interval = "200ms"\n'
    confirmed = {"confirm": {"commit": "packet", "depths": [1]}}
    node = Node(tmp_path / "data", config=config).wait_ready()
    assert node.stop() == 0
    token.take_away()
    node = Node(tmp_path / "data", config=config).wait_ready()
    try:
        with SyncClient(f"unix:{node.directory}/overlayd.sock", retry=ONCE) as client:
            client.define("a", confirmed)
            client.publish("a", {"n": 1})
            status, words = readiness(node, "chain")
            assert status == 200
            assert "the wallet's key can't be reached" in words
            token.put_back()
            until(lambda: client.read_last("a").confirmation_status == "confirmed", "the packet is confirmed")
    finally:
        assert node.stop() == 0
    assert "a token isn't there" in "".join(node.output)
    (tmp_path / "data" / "keys" / "log.ed25519").unlink()
    keyless = Node(tmp_path / "data", config=config)
    keyless.process.wait(timeout=PATIENCE_S)
    assert keyless.stop() not in (0, None)
    assert "none of the keys is the one that signs this log" in "".join(keyless.output)
