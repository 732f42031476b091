"""Proof files of a running node, at each stage of a packet: checked by the command, by @bsv/sdk in Node, by bsv-sdk."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner, Result
from js_packages import needs_node, run_js
from node_process import Node
from real_waiting import PATIENCE_S, looks

from overlayd.cli import cli
from overlayd.cli.exits import BROKEN, OK, REGTEST, SIGNED_ONLY

CONFIG = """
[chain]
network = "regtest"
block_interval = "0s"
anchor_packets = 1
"""
STREAMS = ("p.single", "p.batch")


class Prover:
    """A node that is asked for proofs, and the command that checks them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.node = Node(directory / "data", config=CONFIG).wait_ready()
        transport = httpx.HTTPTransport(uds=str(directory / "data" / "overlayd.sock"))
        self.client = httpx.Client(transport=transport, base_url="http://localhost", timeout=PATIENCE_S)

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        answer = self.client.request(method, path, json=body)
        assert answer.status_code < 300, answer.text
        return answer.json()

    def mine(self, blocks: int = 1) -> None:
        self.ask("POST", "/v1/chain/regtest/mine", {"blocks": blocks})

    def wait_state(self, stream: str, sequence: int, *states: str) -> dict[str, Any]:
        """A packet once it stands so."""
        packet: dict[str, Any] = {}
        for _ in looks():
            packet = self.ask("GET", f"/v1/streams/{stream}/packets/{sequence}")
            if packet["confirmation_status"] in states:
                return packet
        raise AssertionError(packet)

    def proof(self, stream: str, sequence: int = 1) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("GET", f"/v1/streams/{stream}/packets/{sequence}/proof")
        return found

    def headers(self, height: int) -> dict[str, Any]:
        """As `curl` saves them."""
        found: dict[str, Any] = self.ask("GET", f"/v1/chain/headers?from={height}")
        return found

    def verify(self, proof: dict[str, Any], *arguments: str, headers: dict[str, Any] | None = None) -> Result:
        """Runs the command on a file, with nothing but the log's key unless told otherwise."""
        file = self.directory / "proof.json"
        file.write_text(json.dumps(proof))
        more = []
        if headers is not None:
            (self.directory / "headers.json").write_text(json.dumps(headers))
            more = ["--headers", str(self.directory / "headers.json")]
        key = ["--log-key", (self.directory / "vkey").read_text()] if "--data" not in arguments else []
        return CliRunner().invoke(cli, ["verify", str(file), *key, *more, *arguments])


@pytest.fixture(scope="module")
def prover(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prover]:
    """A node with a packet of each kind in a block under another one, and one that waits."""
    made = Prover(tmp_path_factory.mktemp("prover"))
    (made.directory / "vkey").write_text(made.ask("GET", "/v1/log/keys")["keys"][0]["key"])
    made.ask("PUT", "/v1/streams/p.single", {"confirm": {"commit": "packet"}})
    made.ask("PUT", "/v1/streams/p.batch", {"confirm": {"commit": "batch"}})
    for stream in STREAMS:
        made.ask("POST", f"/v1/streams/{stream}/packets", [{"data": number} for number in range(5)])
        made.wait_state(stream, 5, "seen")
    made.mine()
    for stream in STREAMS:
        made.wait_state(stream, 5, "confirmed")
    made.mine()
    yield made
    made.client.close()
    assert made.node.stop() == 0


@pytest.mark.parametrize(("stream", "covers"), [("p.single", "commitment"), ("p.batch", "checkpoint")])
def test_a_proof_is_checked_offline_against_a_file_of_headers(prover: Prover, stream: str, covers: str) -> None:
    """It holds, names its block, and fails without `--allow-regtest`; what isn't proven is said."""
    proof = prover.proof(stream)
    assert set(proof["anchor"]) == {"network", "tx", "bump", "header", "height", "output_index"}
    headers = prover.headers(proof["anchor"]["height"])
    refused = prover.verify(proof, headers=headers)
    assert (refused.exit_code, "regtest" in refused.output) == (REGTEST, True)
    held = prover.verify(proof, "--allow-regtest", "--json", headers=headers)
    assert held.exit_code == OK, held.output
    verdict = json.loads(held.output)["verdict"]
    packet = prover.ask("GET", f"/v1/streams/{stream}/packets/1")
    assert (verdict["level"], verdict["anchor"]["covers"]) == ("anchored", covers)
    assert (verdict["anchor"]["txid"], verdict["anchor"]["block"]) == (packet["txid"], packet["block_hash"])
    assert verdict["anchor"]["confirmations"] == packet["confirmations"] == 2
    assert any("anybody makes at home" in sentence for sentence in verdict["not_proven"])
    words = prover.verify(proof, "--allow-regtest", headers=headers).output
    assert "2 deep by the given headers" in words
    assert packet["txid"] in words


def test_a_proof_is_checked_against_the_nodes_own_headers(prover: Prover) -> None:
    """Those of the directory, beside the running node."""
    held = prover.verify(prover.proof("p.batch"), "--data", str(prover.node.directory), "--allow-regtest")
    assert held.exit_code == OK, held.output
    assert "2 deep" in held.output


def test_without_headers_a_proof_is_worth_its_signature(prover: Prover) -> None:
    """The block dates nothing then, and that is said."""
    held = prover.verify(prover.proof("p.batch"), "--allow-regtest")
    assert held.exit_code == SIGNED_ONLY
    assert "compared with no headers" in held.output
    assert "no block dates this proof" in " ".join(held.output.split())


def test_another_chains_headers_refuse_it(prover: Prover) -> None:
    """The block at that height is another one: broken, not regtest."""
    proof = prover.proof("p.batch")
    headers = prover.headers(proof["anchor"]["height"] - 1)
    headers["headers"] = [{**one, "height": one["height"] + 1} for one in headers["headers"]]
    refused = prover.verify(proof, "--allow-regtest", headers=headers)
    assert refused.exit_code == BROKEN
    assert "another block at height" in refused.output


def test_each_stage_says_what_it_proves(prover: Prover) -> None:
    """Appended, seen, mined: no anchor before the block; then the same packet's proof has one."""
    prover.ask("POST", "/v1/streams/p.single/packets", {"data": "late"})
    waiting = prover.wait_state("p.single", 6, "pending", "seen")
    proof = prover.proof("p.single", 6)
    assert "anchor" not in proof
    assert waiting["confirmation_status"] != "confirmed"
    held = prover.verify(proof)
    assert held.exit_code == SIGNED_ONLY
    assert "the proof carries no anchor" in held.output
    prover.wait_state("p.single", 6, "seen")
    assert "anchor" not in prover.proof("p.single", 6)
    prover.mine()
    prover.wait_state("p.single", 6, "confirmed")
    after = prover.proof("p.single", 6)
    assert after["anchor"]["tx"]
    assert prover.verify(after, "--allow-regtest", headers=prover.headers(after["anchor"]["height"])).exit_code == OK


def test_a_packet_of_any_stream_is_dated_by_the_next_anchor(prover: Prover) -> None:
    """An anchor covers everything before it, also what its stream didn't ask to be confirmed."""
    prover.ask("POST", "/v1/streams/p.plain/packets", {"data": 1})
    assert "anchor" not in prover.proof("p.plain")
    sequence = prover.ask("POST", "/v1/streams/p.batch/packets", {"data": 1})["sequence"]
    prover.wait_state("p.batch", sequence, "seen")
    prover.mine()
    prover.wait_state("p.batch", sequence, "confirmed")
    proof = prover.proof("p.plain")
    held = prover.verify(proof, "--allow-regtest", headers=prover.headers(proof["anchor"]["height"]))
    assert held.exit_code == OK, held.output


def test_the_c2sp_form_carries_no_block(prover: Prover) -> None:
    """It has no place for one: it leads to the newest checkpoint, and holds as before."""
    text = prover.client.get("/v1/streams/p.batch/packets/1/proof?format=tlog-proof").text
    file = prover.directory / "proof.tlog"
    file.write_text(text)
    key = (prover.directory / "vkey").read_text()
    assert CliRunner().invoke(cli, ["verify", str(file), "--log-key", key]).exit_code == SIGNED_ONLY


@needs_node
def test_code_that_shares_nothing_with_ours_agrees(prover: Prover) -> None:
    """@bsv/sdk finds the same transaction, path and block; and refuses each proof in which one of them is changed."""
    questions, wanted = [], []
    for stream, covers in zip(STREAMS, ("commitment", "checkpoint"), strict=True):
        proof = prover.proof(stream, 3)
        anchor = proof["anchor"]
        headers = {str(one["height"]): one["raw"] for one in prover.headers(anchor["height"])["headers"]}
        packet = prover.ask("GET", f"/v1/streams/{stream}/packets/3")
        questions.append({"proof": proof, "headers": headers})
        wanted.append({"txid": packet["txid"], "covers": covers, "block": packet["block_hash"]})
        for name, at in [("tx", 100), ("bump", -1), ("header", 80)]:
            octets = bytearray.fromhex(anchor[name])
            octets[at // 2] ^= 1
            changed = {**proof, "anchor": {**anchor, name: octets.hex()}}
            questions.append({"proof": changed, "headers": headers})
            wanted.append(None)
    text = "".join(json.dumps(question) + "\n" for question in questions)
    answers = [answer.get("value") for answer in run_js("proof-check.mjs", text=text)]
    assert answers == wanted


def test_bsv_sdk_agrees(prover: Prover) -> None:
    """The library for Python reads transaction and path, and comes to the header's root."""
    sdk = pytest.importorskip("bsv", reason="bsv-sdk isn't installed; `make oracle` does that")
    merkle = pytest.importorskip("bsv.merkle_path")
    for stream in STREAMS:
        anchor = prover.proof(stream, 2)["anchor"]
        tx, path = sdk.Transaction.from_hex(anchor["tx"]), merkle.MerklePath.from_hex(anchor["bump"])
        assert path.block_height == anchor["height"]
        assert path.compute_root(tx.txid()) == bytes.fromhex(anchor["header"])[36:68][::-1].hex()
        assert tx.txid() == prover.ask("GET", f"/v1/streams/{stream}/packets/2")["txid"]
