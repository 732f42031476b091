"""Producers with coins of their own against a real node with a regtest chain: both clients, commands, and JavaScript."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from js_packages import JS, install_js, needs_node
from node_process import Node
from real_waiting import PATIENCE_S
from test_commands import Done, command, on

from overlayd.bsv.base58 import address_of, format_wif
from overlayd.bsv.keys import PrivateKey
from overlayd.bsv.network import REGTEST
from overlayd.cli.exits import FAILED, OK, USAGE
from overlayd.client import Client, Producer, Purse, SyncClient, chain_calls, coins_in
from overlayd.model.errors import BadParameter, InvalidPacket, OverlaydError
from overlayd.model.wire import ReceiptBody

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
CONFIG = """
[chain]
network = "regtest"
block_interval = "1s"
"""
RULE = {"confirm": {"commit": "packet", "depths": [1, 2]}}
KEY = PrivateKey((5).to_bytes(32, "big"))
ADDRESS = address_of(KEY.public_key, REGTEST)


@pytest.fixture(scope="module")
def chain_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node that mines a block a second."""
    running = Node(tmp_path_factory.mktemp("produce") / "data", config=CONFIG).wait_ready()
    with owner(running) as client:
        for name in ("made.a", "made.b", "made.cli", "made.js"):
            client.define(name, RULE)
    yield running
    assert running.stop() == 0


def owner(node: Node) -> SyncClient:
    """With every right."""
    return SyncClient(f"unix:{node.directory}/overlayd.sock")


def fund(client: SyncClient, satoshis: int = 100_000) -> Producer:
    """A producer whose coin the miner paid."""
    paid = client.send(chain_calls.pay(ADDRESS, satoshis))
    producer = Producer(KEY, Purse())
    for coin in coins_in(paid.tx, producer.script):
        producer.purse.add(coin)
    return producer


def test_a_packet_with_its_own_transaction_is_followed_to_a_block(chain_node: Node) -> None:
    """The receipt is about the transaction; a repeat is a duplicate; the packet shows transaction, signature and block."""
    told: list[str] = []
    with owner(chain_node) as client:
        producer = fund(client)
        prepared = [producer.prepare("made.a", {"n": number}, id=f"n{number}") for number in range(5)]
        receipts = [client.produce(one) for one in prepared]
        assert client.produce(prepared[0]).duplicate
        packets = client.follow(
            receipts, min_confirmations=2, on_status=lambda one: told.append(one.confirmation_status)
        )
        assert [packet.packet_sequence for packet in packets] == [receipt.sequence for receipt in receipts]
        for packet, one in zip(packets, prepared, strict=True):
            assert packet.txid == one.txid
            assert packet.confirmations == 2
            producer.purse.note_confirmed(one.txid)
        assert all(not coin.unconfirmed for coin in producer.purse.coins())
        assert told.count("confirmed") == 5  # at the first depth, on the way to the second
        stored = client.read_packet("made.a", 1)
        assert json.loads(bytes(stored.signature or b"")) == json.loads(prepared[0].packet)["signature"]
        spent = producer.prepare("made.a", {"n": 9}, id="n0")
        with pytest.raises(InvalidPacket, match="n0"):
            client.produce(spent)
        assert producer.release(spent)


async def test_the_trio_client_does_the_same(chain_node: Node) -> None:
    """Prepared, published, followed at the smallest depth; a depth that the stream doesn't tell is refused."""
    with owner(chain_node) as other:
        producer = fund(other)
    async with Client(f"unix:{chain_node.directory}/overlayd.sock") as client:
        prepared = producer.prepare("made.b", "x", id="x")
        receipt = await client.produce(prepared)
        (packet,) = await client.follow(receipt)
        assert (packet.confirmation_status, packet.txid, packet.confirmations) == ("confirmed", prepared.txid, 1)
        assert packet.block_height
        with pytest.raises(OverlaydError, match="7"):
            await client.follow(receipt, min_confirmations=7)
        with pytest.raises(BadParameter):
            await client.follow([receipt, msgspec.structs.replace(receipt, stream="made.a")])


def test_the_clients_page_does_what_it_says(chain_node: Node, tmp_path: Path) -> None:
    """Its block, with a coin and a key that are there."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "client.md").read_text(), re.DOTALL)
    text = next(block for block in blocks if "Producer(" in block).replace("http://127.0.0.1:7878", chain_node.url)
    with owner(chain_node) as client:
        client.define("weather-001", RULE)
        (coin,) = fund(client, 50_000).purse.coins()
    assert "satoshis=50_000" in text
    text = text.replace('"8f0e…", vout=0', f'"{coin.txid}", vout={coin.vout}')
    (tmp_path / "producer.key").write_text(KEY.secret.hex() + "\n")
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stderr
    txid, height = done.stdout.split()
    assert (len(txid), int(height) > 100) == (64, True)


def produce(node: Node, directory: Path, *arguments: str, stdin: str = "", url: str = "") -> Done:
    """`overlayd produce` with the key in the environment."""
    where = ("--url", url) if url else ("--data", str(node.directory))
    return command("produce", "made.cli", "--coins", directory / "coins.json", *arguments, *where, stdin=stdin,
                   OVERLAYD_PRODUCER_KEY=KEY.secret.hex())  # fmt: skip


def test_the_command_publishes_follows_and_keeps_the_coins(chain_node: Node, tmp_path: Path) -> None:
    """More packets than coins: it waits for blocks. A packet that is refused costs no coin. The file is for nobody else."""
    lines = "".join(f'{{"data":{number},"id":"c{number}"}}\n' for number in range(70))
    done = produce(chain_node, tmp_path, "--regtest-fund", stdin=lines)
    assert done.returncode == OK, done.stderr
    assert f"paid to {ADDRESS}" in done.stderr
    assert len([line for line in done.stdout.splitlines() if "  transaction " in line]) == 70
    assert len([line for line in done.stdout.splitlines() if "confirmed in block" in line]) == 70
    file = tmp_path / "coins.json"
    assert file.stat().st_mode & 0o777 == 0o600
    book = json.loads(file.read_text())
    assert book["unanswered"] == []
    assert not any("unconfirmed" in coin for coin in book["coins"])
    before = sum(coin["satoshis"] for coin in book["coins"])
    again = produce(chain_node, tmp_path, "--no-follow", "--json", stdin='{"data":1,"id":"c0"}\n{"data":1}\n')
    assert again.returncode == FAILED
    assert "c0" in again.stderr
    assert "needs an id" in again.stderr
    assert again.stdout == ""
    assert sum(coin["satoshis"] for coin in json.loads(file.read_text())["coins"]) == before


def test_what_was_not_answered_is_sent_again_as_it_was(chain_node: Node, tmp_path: Path) -> None:
    """Killed after the file was written, once before the packet was sent and once after: it is in the log once."""
    assert produce(chain_node, tmp_path, "--regtest-fund", "--no-follow", stdin='{"data":1,"id":"k0"}').returncode == OK
    script = (
        "import os, signal, sys\n"
        "from overlayd.cli import cli, produce\n"
        "kind = produce._Work if sys.argv[1] == 'before' else produce.CoinFile\n"
        "def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)\n"
        "setattr(kind, '_send' if kind is produce._Work else 'settle', die)\n"
        "cli(sys.argv[2:])\n"
    )
    where = ("--coins", str(tmp_path / "coins.json"), "--data", str(chain_node.directory), "--no-follow")
    for number, moment in enumerate(("before", "after"), 1):
        killed = subprocess.run(
            [sys.executable, "-c", script, moment, "produce", "made.cli", *where], timeout=PATIENCE_S, check=False,
            input=f'{{"data":1,"id":"k{number}"}}', text=True, capture_output=True,
            env=os.environ | {"OVERLAYD_PRODUCER_KEY": KEY.secret.hex()},
        )  # fmt: skip
        assert killed.returncode == -9, killed.stderr
        book = json.loads((tmp_path / "coins.json").read_text())
        assert [json.loads(one["packet"])["id"] for one in book["unanswered"]] == [f"k{number}"]
        done = produce(chain_node, tmp_path, "--json", "--no-follow")
        assert done.returncode == OK, done.stderr
        receipt = msgspec.json.decode(done.stdout, type=ReceiptBody)
        assert (receipt.id, receipt.duplicate) == (f"k{number}", moment == "after")
        with owner(chain_node) as client:
            assert len(client.find_packets(f"k{number}")) == 1


def test_keys_and_coins_are_asked_for_in_words(chain_node: Node, tmp_path: Path) -> None:
    """From a file, as a wallet exports it; never told; what can't be used is wrong usage."""
    key = tmp_path / "key"
    key.write_text("# mine\n" + format_wif(KEY, REGTEST) + "\n")
    (tmp_path / "coins.json").write_text("[]")
    arguments = ("produce", "made.cli", "--coins", tmp_path / "coins.json")
    broke = on(chain_node, *arguments, "--signing-key", key, stdin='{"data":1,"id":"poor"}')
    assert broke.returncode == FAILED
    assert "none of 0 coins" in broke.stderr
    assert on(chain_node, *arguments, stdin="1").returncode == USAGE
    key.write_text("nonsense-5Kb8\n")
    wrong = on(chain_node, *arguments, "--signing-key", key, stdin="1")
    assert wrong.returncode == USAGE
    assert "nonsense" not in wrong.stderr
    (tmp_path / "coins.json").write_text('{"coins":[{"txid":"7"}]}')
    key.write_text(KEY.secret.hex())
    assert on(chain_node, *arguments, "--signing-key", key, stdin="1").returncode == USAGE
    assert on(chain_node, *arguments, "--signing-key", tmp_path / "none", stdin="1").returncode == USAGE


@needs_node
def test_the_javascript_producer_needs_nothing_but_bsv_sdk(chain_node: Node, tmp_path: Path) -> None:
    """Commitment, transaction and signature by @bsv/sdk are taken; the packet is confirmed; the change pays the next."""
    install_js()
    coin = tmp_path / "coin.json"
    environment = os.environ | {"PRODUCER_KEY": KEY.secret.hex(), "PRODUCER_MODULES": str(JS / "package.json")}
    arguments = ["node", str(EXAMPLES / "producer.mjs"), chain_node.url, "made.js", str(coin)]
    asked = subprocess.run(
        [*arguments, "1"], env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert asked.returncode == 1
    assert ADDRESS in asked.stderr
    coin.write_text(on(chain_node, "regtest", "pay", ADDRESS, "5000", "--json").stdout)
    for sequence, data in enumerate(('{"t":21.50}', '"ünïcode \\u2603"'), 1):
        done = subprocess.run(
            [*arguments, data], env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        first, *_, last = done.stdout.splitlines()
        assert first.startswith(f"sequence {sequence} transaction ")
        assert last.startswith("confirmed in block ")
        with owner(chain_node) as client:
            packet = client.read_packet("made.js", sequence)
        assert bytes(packet.data_payload).decode() == data
        assert packet.txid == first.split()[3]
        assert "packet" not in json.loads(coin.read_text())
