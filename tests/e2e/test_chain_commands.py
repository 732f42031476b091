"""`overlayd regtest` and `overlayd wallet` against a real node with a chain of its own, on which nobody mines unasked."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from node_process import Node
from real_waiting import until
from test_commands import command, on

from overlayd.bsv.anchor import list_anchors
from overlayd.bsv.tx import parse_transaction
from overlayd.cli.exits import FAILED, OK, USAGE
from overlayd.client import SyncClient, chain_calls

CONFIG = """
[chain]
network = "regtest"
block_interval = "0s"
"""
OTHER = "mkHS9ne12qx9pS9VojpwU5xtRd4T7X7ZUt"


@pytest.fixture(scope="module")
def chain_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node with a stream whose packets the wallet pays for."""
    running = Node(tmp_path_factory.mktemp("chain-commands") / "data", config=CONFIG).wait_ready()
    with owner(running) as client:
        client.define("paid", {"confirm": {"commit": "packet", "depths": [1, 3]}})
    yield running
    assert running.stop() == 0, "".join(running.output[-60:])


def owner(node: Node) -> SyncClient:
    """With every right."""
    return SyncClient(f"unix:{node.directory}/overlayd.sock")


def mine_until_confirmed(node: Node, sequence: int) -> None:
    """A block at a time: the node looks again, and acts, at each."""

    def check() -> bool:
        assert on(node, "regtest", "mine").returncode == OK
        return state(node, sequence) == "confirmed"

    until(check, f"packet {sequence} is confirmed")


def state(node: Node, sequence: int) -> str:
    """Of a packet of the stream, now."""
    with owner(node) as client:
        return client.read_packet("paid", sequence).confirmation_status


def publish(node: Node) -> tuple[int, str]:
    """A packet that the wallet paid for: its sequence and transaction, which waits for a block."""
    with owner(node) as client:
        sequence = client.publish("paid", {"t": 1}).sequence
        until(lambda: state(node, sequence) == "seen", "it is seen")
        return sequence, str(client.read_packet("paid", sequence).txid)


def facts(text: str) -> dict[str, str]:
    """`wallet balance` by name."""
    return {line[:14].strip(): line[14:].strip() for line in text.splitlines()}


def test_mining_confirms_and_a_reorg_takes_back(chain_node: Node) -> None:
    """`mine`, `mine 2`, `reorg 1`: the tip is told, and packets follow it."""
    sequence, _ = publish(chain_node)
    done = on(chain_node, "regtest", "mine")
    assert done.returncode == OK, done.stderr
    word, height, block = done.stdout.split()
    assert (word, len(block)) == ("tip", 64)
    until(lambda: state(chain_node, sequence) == "confirmed", "it is confirmed")
    took = on(chain_node, "regtest", "reorg", "1", "--json")
    tip = json.loads(took.stdout)["tip"]
    assert (tip["height"], tip["hash"] == block) == (int(height) + 1, False)
    until(lambda: state(chain_node, sequence) in ("pending", "seen"), "it is taken back")
    until(lambda: state(chain_node, sequence) == "seen", "it is seen")
    assert on(chain_node, "regtest", "mine", "2").stdout.split()[1] == str(int(height) + 3)
    until(lambda: state(chain_node, sequence) == "confirmed", "it is confirmed")
    with owner(chain_node) as client:
        assert client.send(chain_calls.chain()).tip.height == int(height) + 3
        assert client.send(chain_calls.headers(int(height), 2)).headers[0].height == int(height)


def test_a_transaction_is_forgotten_or_spent_twice(chain_node: Node) -> None:
    """A dropped one is broadcast anew with the next block; what is spent twice is made anew, and confirmed in the end."""
    sequence, txid = publish(chain_node)
    assert on(chain_node, "regtest", "drop", txid).stdout.splitlines()[0] == f"forgotten {txid}"
    mine_until_confirmed(chain_node, sequence)
    with owner(chain_node) as client:
        assert client.read_packet("paid", sequence).txid == txid
    sequence, txid = publish(chain_node)
    word, other = on(chain_node, "regtest", "doublespend", txid).stdout.splitlines()[0].split()
    assert (word, len(other)) == ("conflicts", 64)
    assert other != txid
    mine_until_confirmed(chain_node, sequence)
    with owner(chain_node) as client:
        assert client.read_packet("paid", sequence).txid != txid


def test_the_regtest_commands_refuse_in_words(chain_node: Node, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Unknown transactions, addresses of another network, nodes without a chain."""
    for arguments in (("drop", "ab" * 32), ("doublespend", "ab" * 32), ("drop", "7"),
                      ("pay", "1BoatSLRHtKNngkdXEeobR76b53LETtpyT", "5")):  # fmt: skip
        done = on(chain_node, "regtest", *arguments)
        assert done.returncode == FAILED
        assert done.stderr.startswith("overlayd: "), arguments
    assert on(chain_node, "regtest", "mine", "0").returncode == USAGE
    plain = Node(tmp_path_factory.mktemp("plain") / "data").wait_ready()
    try:
        for arguments in (("regtest", "mine"), ("wallet", "balance")):
            assert "follows no chain" in on(plain, *arguments).stderr
        refused = command("wallet", "balance", "--url", plain.url)
        assert refused.returncode == FAILED
    finally:
        assert plain.stop() == 0


def test_the_miner_pays_an_address(chain_node: Node) -> None:
    """Three outputs, waiting for the next block; it is told to the audit stream."""
    done = on(chain_node, "regtest", "pay", OTHER, "700", "--outputs", "3", "--json")
    assert done.returncode == OK, done.stderr
    paid = json.loads(done.stdout)
    outputs = parse_transaction(bytes.fromhex(paid["tx"])).outputs
    assert [output.satoshis for output in outputs[:3]] == [700] * 3
    assert len({output.script for output in outputs[:3]}) == 1
    assert "3 x 5 satoshis" in on(chain_node, "regtest", "pay", OTHER, "5", "--outputs", "3").stdout
    with owner(chain_node) as client:
        page = client.read("overlayd.audit", limit=1000)
        assert "regtest.pay" in {json.loads(bytes(one.data_payload))["action"] for one in page.packets}


def test_the_wallet_shows_what_it_has_and_did(chain_node: Node) -> None:
    """Address, balance, fan-out, history page by page, deposits; every figure is the API's."""
    publish(chain_node)
    on(chain_node, "regtest", "mine")
    address = on(chain_node, "wallet", "address").stdout.strip()

    def look_twice() -> tuple[dict[str, str], dict[str, Any]] | None:
        """The same balance in both forms; the wallet may still work through the block between two looks."""
        shown = facts(on(chain_node, "wallet", "balance").stdout)
        body: dict[str, Any] = json.loads(on(chain_node, "wallet", "balance", "--json").stdout)
        return (shown, body) if shown["confirmed"] == f"{body['confirmed']:,} satoshis" else None

    shown, body = until(look_twice, "both forms show the same balance")
    assert shown["network"] == "regtest"
    assert (shown["low"], shown["waits"]) == ("no", "for nothing")
    assert body["address"] == address
    made = json.loads(on(chain_node, "wallet", "fan-out", "12", "--json").stdout)
    assert made["coins"] >= 12
    first = on(chain_node, "wallet", "history", "--limit", "1")
    assert made["txid"] in first.stdout
    before = first.stderr.split()[-1]
    older = [
        json.loads(line)
        for line in on(chain_node, "wallet", "history", "--before", before, "--json").stdout.splitlines()
    ]
    assert made["txid"] not in [line["txid"] for line in older]
    assert "packet" in [line["for"] for line in older]
    paid = json.loads(on(chain_node, "regtest", "pay", address, "4321", "--json").stdout)
    assert list_anchors(parse_transaction(bytes.fromhex(paid["tx"]))) == []
    assert on(chain_node, "wallet", "deposit", stdin=paid["tx"]).stdout.strip() == paid["txid"]
    foreign = json.loads(on(chain_node, "regtest", "pay", OTHER, "5", "--json").stdout)
    assert on(chain_node, "wallet", "deposit", stdin=foreign["tx"]).returncode == FAILED
