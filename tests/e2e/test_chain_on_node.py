"""The embedded chain in a real node: packets paid for, mined on demand, confirmed, taken back, and shown over HTTP."""

import http.client
import itertools
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from node_process import Node
from real_waiting import looks, until

CONFIG = """
[chain]
network = "regtest"
block_interval = "0s"
anchor_interval = "1s"
"""


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))


class ChainNode:
    """A node with a chain, asked over its Unix socket."""

    def __init__(self, node: Node) -> None:
        self.node = node

    def ask(self, method: str, path: str, body: Any = None, *, status: int | None = None) -> Any:
        """The answer's JSON."""
        connection = UnixConnection(self.node.directory / "overlayd.sock")
        raw = None if body is None else json.dumps(body)
        connection.request(method, path, raw, {"Content-Type": "application/json"} if raw else {})
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        assert answer.status == status or (status is None and answer.status < 300), (answer.status, text)
        return json.loads(text)

    def mine(self, blocks: int = 1) -> Any:
        return self.ask("POST", "/v1/chain/regtest/mine", {"blocks": blocks})

    def statuses(self, stream: str) -> list[tuple[str, int | None]]:
        """What was told of a stream: states and depths, packets that are delivered for it among them."""
        path = f"/v1/read?stream={stream}&deliver=confirmed&status=true&from=beginning"
        told = []
        for message in self.ask("GET", path)["messages"]:
            found = message["packet"] if message["type"] == "packet" else message
            told.append((message["type"], found["confirmation_status"]))
        return told

    def wait_for(self, stream: str, count: int) -> list[tuple[str, int | None]]:
        """Until so much was told."""
        told: list[tuple[str, int | None]] = []
        for _ in looks(each_s=0.05):
            told = self.statuses(stream)
            if len(told) >= count:
                return told
        raise AssertionError(f"{told} of {count}: {self.ask('GET', '/v1/chain')}")

    def wait_seen(self, stream: str, sequence: int = 1) -> None:
        """Until the mempool holds the packet's transaction."""

        def is_seen() -> bool:
            packet = self.ask("GET", f"/v1/streams/{stream}/packets/{sequence}")
            return bool(packet["confirmation_status"] == "seen")

        until(is_seen, f"{stream}'s packet {sequence} is in the mempool")


@pytest.fixture(scope="module")
def chain_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChainNode]:
    """A node with its own chain, on which nobody mines unasked."""
    node = Node(tmp_path_factory.mktemp("chain") / "data", config=CONFIG).wait_ready()
    yield ChainNode(node)
    assert node.stop() == 0


def test_a_packet_is_paid_for_and_confirmed_after_its_block(chain_node: ChainNode) -> None:
    """Nothing is delivered before a block; the packet then comes once, and a reorg takes it back and gives it again."""
    chain_node.ask("PUT", "/v1/streams/each", {"confirm": {"commit": "packet"}})
    chain_node.ask("POST", "/v1/streams/each/packets", {"data": {"t": 21}})
    chain_node.wait_seen("each")
    assert chain_node.statuses("each") == []
    chain_node.mine()
    assert chain_node.wait_for("each", 1) == [("packet", "confirmed")]
    tip = chain_node.ask("POST", "/v1/chain/regtest/reorg", {"depth": 1})["tip"]
    assert chain_node.ask("GET", "/v1/chain")["tip"]["hash"] == tip["hash"]
    assert chain_node.wait_for("each", 2)[1] == ("status", "pending")
    chain_node.wait_seen("each")
    chain_node.mine()
    told = [one for one in chain_node.wait_for("each", 3) if one != ("status", "mined")]
    assert told == [("packet", "confirmed"), ("status", "pending"), ("status", "confirmed")]


def test_a_batch_is_anchored_by_itself(chain_node: ChainNode) -> None:
    """One transaction for ten packets; all are delivered once it is in a block."""
    chain_node.ask("PUT", "/v1/streams/batch", {"confirm": {"commit": "batch"}})
    for number in range(10):
        chain_node.ask("POST", "/v1/streams/batch/packets", {"data": number})

    def is_anchored() -> bool:
        lines = chain_node.ask("GET", "/v1/wallet/history")["transactions"]
        return any(line["for"] == "checkpoint" for line in lines)

    until(is_anchored, "a transaction for the checkpoint")
    chain_node.wait_seen("batch", 10)
    chain_node.mine()
    assert chain_node.wait_for("batch", 10) == [("packet", "confirmed")] * 10
    assert [line["for"] for line in chain_node.ask("GET", "/v1/wallet/history")["transactions"]].count(
        "checkpoint"
    ) == 1
    assert "anchored_at" in chain_node.ask("GET", "/v1/chain")


def test_the_chain_is_shown(chain_node: ChainNode) -> None:
    """Network, tip, headers in a row, readiness in words."""
    chain = chain_node.ask("GET", "/v1/chain")
    assert (chain["network"], chain["first_height"]) == ("regtest", 0)
    assert chain["sources"] == [{"name": "regtest", "state": "ok", "abilities": ["everything"]}]
    headers = chain_node.ask("GET", "/v1/chain/headers?from=0&limit=2000")["headers"]
    assert [header["height"] for header in headers] == list(range(chain["tip"]["height"] + 1))
    assert headers[-1]["hash"] == chain["tip"]["hash"]
    assert all(
        bytes.fromhex(one["raw"])[4:36][::-1].hex() == before["hash"] for before, one in itertools.pairwise(headers)
    )
    ready = chain_node.ask("GET", "/readyz")
    assert ready["checks"]["chain"]["detail"].startswith("regtest at block ")
    assert chain_node.ask("GET", "/v1/node")["network"] == "regtest"


def test_the_wallet_is_shown_and_fanned_out(chain_node: ChainNode) -> None:
    """Address, balance, history; coins are made on demand; what pays nobody here is refused."""
    wallet = chain_node.ask("GET", "/v1/wallet")
    assert wallet["confirmed"] + wallet["unconfirmed"] > 100_000_000
    assert wallet["address"][0] in "mn"
    chain_node.mine()
    made = chain_node.ask("POST", "/v1/wallet/fan-out", {"coins": 30})
    assert made["coins"] >= 30
    first = chain_node.ask("GET", "/v1/wallet/history?limit=1")
    assert first["transactions"][0]["txid"] == made["txid"]
    older = chain_node.ask("GET", f"/v1/wallet/history?before={first['next_before']}")
    assert made["txid"] not in [line["txid"] for line in older["transactions"]]
    assert chain_node.ask("POST", "/v1/wallet/deposits", {"tx": "00"}, status=422)["code"] == "chain.malformed"


def test_the_embedded_chain_refuses_what_it_cannot_do(chain_node: ChainNode) -> None:
    """Beyond the first block, or without such a transaction, it says so."""
    unknown = {"txid": "ab" * 32}
    assert chain_node.ask("POST", "/v1/chain/regtest/drop", unknown, status=409)["code"] == "regtest.refused"
    assert chain_node.ask("POST", "/v1/chain/regtest/double-spend", unknown, status=409)["code"] == "regtest.refused"
    assert chain_node.ask("POST", "/v1/chain/regtest/reorg", {"depth": 0}, status=422)["code"]
    audit = chain_node.ask("GET", "/v1/streams/overlayd.audit/packets?limit=1000")["packets"]
    assert "regtest.mine" in {packet["data_payload"]["action"] for packet in audit}


def test_a_node_without_a_chain_says_so(tmp_path: Path) -> None:
    """Its routes answer 404 by name, and no stream may ask for confirmations."""
    node = Node(tmp_path / "data").wait_ready()
    try:
        plain = ChainNode(node)
        for method, path in (("GET", "/v1/chain"), ("GET", "/v1/wallet"), ("POST", "/v1/chain/regtest/mine")):
            assert plain.ask(method, path, status=404)["code"] == "chain.none"
        answer = plain.ask("PUT", "/v1/streams/each", {"confirm": {"commit": "packet"}}, status=422)
        assert answer["code"] == "definition.invalid"
    finally:
        node.stop()


def test_a_directory_goes_on_after_a_kill(tmp_path: Path) -> None:
    """Killed between a payment and its block, the node goes on with the same coins, and delivers once."""
    directory = tmp_path / "data"
    node = Node(directory, config=CONFIG).wait_ready()
    chain = ChainNode(node)
    chain.ask("PUT", "/v1/streams/each", {"confirm": {"commit": "packet"}})
    for number in range(20):
        chain.ask("POST", "/v1/streams/each/packets", {"data": number})
    node.process.kill()
    node.stop()
    node = Node(directory, config=CONFIG).wait_ready()
    try:
        chain = ChainNode(node)
        for sequence in range(1, 21):
            chain.wait_seen("each", sequence)
        chain.mine()
        assert chain.wait_for("each", 20) == [("packet", "confirmed")] * 20
        history = chain.ask("GET", "/v1/wallet/history")["transactions"]
        assert [line["for"] for line in history].count("packet") == 20
    finally:
        assert node.stop() == 0
