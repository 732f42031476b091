"""Evidence exports of a running node with a chain: blocks that hold the range, and packets that go while it runs."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from click.testing import CliRunner, Result
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


class Exporter:
    """A node, and the commands beside it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.data = directory / "data"
        self.node = Node(self.data, config=CONFIG).wait_ready()
        transport = httpx.HTTPTransport(uds=str(self.data / "overlayd.sock"))
        self.client = httpx.Client(transport=transport, base_url="http://localhost", timeout=PATIENCE_S)
        self.vkey = self.ask("GET", "/v1/log/keys")["keys"][0]["key"]

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        answer = self.client.request(method, path, json=body)
        assert answer.status_code < 300, answer.text
        return answer.json()

    def confirm(self, stream: str, sequence: int) -> dict[str, Any]:
        """Mines until a packet is confirmed."""
        packet: dict[str, Any] = {}
        for _ in looks(each_s=0.05):
            packet = self.ask("GET", f"/v1/streams/{stream}/packets/{sequence}")
            if packet["confirmation_status"] == "confirmed":
                return packet
            if packet["confirmation_status"] == "seen":
                self.ask("POST", "/v1/chain/regtest/mine", {"blocks": 1})
        raise AssertionError(packet)

    def export(self, out: Path, span: str) -> dict[str, Any]:
        done = CliRunner().invoke(cli, ["export", str(out), "--range", span, "--data", str(self.data), "--json"])
        assert done.exit_code == OK, done.output
        made: dict[str, Any] = json.loads(done.output)
        return made

    def verify(self, out: Path, *arguments: str) -> Result:
        return CliRunner().invoke(cli, ["verify", str(out), "--log-key", self.vkey, *arguments])


@pytest.fixture(scope="module")
def exporter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exporter]:
    """Five packets in a block, five that wait."""
    made = Exporter(tmp_path_factory.mktemp("exporter"))
    made.ask("PUT", "/v1/streams/e.batch", {"confirm": {"commit": "batch"}})
    made.ask("POST", "/v1/streams/e.batch/packets", [{"data": number} for number in range(5)])
    made.confirm("e.batch", 5)
    yield made
    made.client.close()
    assert made.node.stop() == 0


def test_a_block_dates_the_whole_range(exporter: Exporter, tmp_path: Path) -> None:
    """Held against the headers of a file, of the node, of another chain, and of none."""
    last = exporter.ask("GET", "/v1/streams/e.batch/packets/5")["offset"]
    made = exporter.export(tmp_path / "out", f"..{last}")
    assert made["anchors"] == 1
    evidence = json.loads((tmp_path / "out" / "evidence.json").read_bytes())
    height = evidence["anchors"][0]["anchor"]["height"]
    headers = tmp_path / "headers.json"
    headers.write_text(json.dumps(exporter.ask("GET", f"/v1/chain/headers?from={height}")))
    assert exporter.verify(tmp_path / "out").exit_code == REGTEST
    held = exporter.verify(tmp_path / "out", "--allow-regtest", "--headers", str(headers), "--json")
    assert held.exit_code == OK, held.output
    verdict = json.loads(held.output)["verdict"]
    assert verdict["level"] == "anchored"
    assert verdict["anchors"][0]["upto"] >= last
    assert verdict["rows"] == 5
    own = CliRunner().invoke(cli, ["verify", str(tmp_path / "out"), "--data", str(exporter.data), "--allow-regtest"])
    assert own.exit_code == OK, own.output
    assert "holds all up to offset" in own.output
    assert exporter.verify(tmp_path / "out", "--allow-regtest").exit_code == SIGNED_ONLY


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("consistency_path", 0), "sha256:" + "0" * 64), (("anchor", "height"), 1), (("anchor", "output_index"), 5),
        (("anchor", "network"), "main"), (("checkpoint",), ""),
    ],
)  # fmt: skip
def test_a_changed_anchor_is_found(
    exporter: Exporter, tmp_path: Path, path: tuple[str | int, ...], value: str | int
) -> None:
    """Each of its parts. What comes after the anchor makes the checkpoint a larger one."""
    exporter.ask("POST", "/v1/streams/e.later/packets?proof=true", {"data": 1})
    exporter.export(tmp_path / "out", "..")
    file = tmp_path / "out" / "evidence.json"
    evidence = json.loads(file.read_bytes())
    place = evidence["anchors"][0]
    for part in path[:-1]:
        place = place[part]
    assert place[path[-1]] != value
    place[path[-1]] = value
    file.write_bytes(msgspec.json.format(msgspec.json.encode(evidence), indent=1) + b"\n")
    assert exporter.verify(tmp_path / "out", "--allow-regtest").exit_code == BROKEN


def test_what_was_erased_just_now_is_on_record(exporter: Exporter, tmp_path: Path) -> None:
    """The checkpoint is chosen last, so that it covers the removal; the block still dates what it held."""
    exporter.ask("POST", "/v1/streams/e.plain/packets", [{"data": {"name": "somebody"}}, {"data": 2}])
    offset = exporter.ask("GET", "/v1/streams/e.plain/packets/2")["offset"]
    done = CliRunner().invoke(cli, ["erase", "e.plain", "1", "--data", str(exporter.data), "--yes"])
    assert done.exit_code == OK, done.output
    made = exporter.export(tmp_path / "out", f"..{offset}")
    assert made["removed"] == 1
    assert b"somebody" not in b"".join(path.read_bytes() for path in (tmp_path / "out").iterdir())
    held = exporter.verify(tmp_path / "out", "--allow-regtest", "--json", "--expect-all-streams")
    assert json.loads(held.output)["verdict"]["removed"] == {"erased": 1}
    shutil.rmtree(tmp_path / "out")
