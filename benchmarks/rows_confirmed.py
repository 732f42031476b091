"""Rows of confirmation: a block turned into entries and deliveries on a whole node, what waiting costs, and memory.

On the chain inside the node, whose own work (signing by the wallet before the block, the chain's file and its proofs) is in
the node's figures.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from benchmarks.samples import Contender, Row, Sample

CONFIG = """
[chain]
network = "regtest"
block_interval = "0s"

[chain.wallet]
pool_coins = 10000
day_sat_max = 0

[limits]
auto_create_per_minute = 1000000
"""
AT_ONCE = 5000
DEPTH = 1
WAIT_S = 300.0
PAUSE_S = 0.05
POLL_S = 60.0


class ConfirmingNode:
    """A node on a directory, with its own chain, asked over its Unix socket."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True)
        (directory / "config.toml").write_text(CONFIG)
        command = [sys.executable, "-m", "overlayd", "run", "--config", str(directory / "config.toml")]
        self.process = subprocess.Popen(  # noqa: S603 - our own program
            [*command, "--data", str(directory / "data"), "--listen", "127.0.0.1:0"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.url = next(line.split()[-1] for line in self.process.stdout if "listening on http://" in line)
        transport = httpx.HTTPTransport(uds=str(directory / "data" / "overlayd.sock"))
        self.client = httpx.Client(transport=transport, base_url="http://localhost", timeout=WAIT_S)

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        answer = self.client.request(method, path, json=body)
        answer.raise_for_status()
        return answer.json()

    def wait(self, path: str, is_so: Any) -> None:
        """Until an answer is as it should be."""
        until = time.perf_counter() + WAIT_S
        while not is_so(self.ask("GET", path)):
            if time.perf_counter() > until:
                raise TimeoutError(f"{path}: {self.ask('GET', path)}")
            time.sleep(PAUSE_S)

    def processor_s(self) -> float:
        """User and kernel time of the process until now."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        self.client.close()
        self.process.terminate()
        self.process.wait()


@contextmanager
def confirming_node(directory: Path, packets: int) -> Iterator[ConfirmingNode]:
    """With coins for so many packets, and a stream that commits each."""
    node = ConfirmingNode(directory)
    try:
        node.ask("PUT", "/v1/streams/c", {"confirm": {"commit": "packet", "depths": [DEPTH]}})
        node.ask("POST", "/v1/chain/regtest/mine", {"blocks": 1})
        while node.ask("GET", "/v1/wallet")["usable_coins"] < packets:
            node.client.post("/v1/wallet/fan-out", json={"coins": min(packets, 4000)})
            node.ask("POST", "/v1/chain/regtest/mine", {"blocks": 1})
            time.sleep(PAUSE_S)
        yield node
    finally:
        node.close()


def count_frames(url: str, packets: int, opened: threading.Event, done: threading.Event) -> None:
    """Reads the stream's confirmed packets live until there are so many."""
    query = f"/v1/live?stream=c&deliver=confirmed&min_confirmations={DEPTH}"
    seen = 0
    with httpx.stream("GET", url + query, headers={"Accept": "application/x-ndjson"}, timeout=WAIT_S) as answer:
        for line in answer.iter_lines():
            kind = json.loads(line)["type"] if line else ""
            if kind == "welcome":
                opened.set()
            seen += kind == "packet"
            if seen == packets:
                done.set()
                return


def deliver_block(directory: Path, packets: int) -> Sample:
    """Publishes, mines one block, and waits until a live reader has every packet."""
    turn = directory / f"turn-{time.perf_counter_ns()}"
    with confirming_node(turn, packets) as node:
        for first in range(0, packets, AT_ONCE):
            batch = [{"data": {"t": 21.5, "n": number}} for number in range(first, min(packets, first + AT_ONCE))]
            node.ask("POST", "/v1/streams/c/packets", batch)
        node.wait("/v1/chain", lambda chain: chain["unfunded"] == 0)
        node.wait(f"/v1/streams/c/packets/{packets}", lambda packet: packet["confirmation_status"] == "seen")
        opened, done = threading.Event(), threading.Event()
        reader = threading.Thread(target=count_frames, args=(node.url, packets, opened, done), daemon=True)
        reader.start()
        assert opened.wait(WAIT_S)
        time.sleep(PAUSE_S)
        used_s, began = node.processor_s(), time.perf_counter()
        node.ask("POST", "/v1/chain/regtest/mine", {"blocks": 1})
        mined_s, mining_s = time.perf_counter() - began, node.processor_s() - used_s
        assert done.wait(WAIT_S), "not every packet came"
        took_s, used_s = time.perf_counter() - began, node.processor_s() - used_s
        return Sample(
            {"rate": packets / took_s}, server_share=used_s / took_s,
            note=f"{took_s:.2f} s, {used_s:.2f} s of a core; of these {mined_s:.2f} and {mining_s:.2f} s until the chain had the block",
        )  # fmt: skip


def measure_alone(packets: int, stored: int) -> dict[str, float]:
    """Watcher, log and chain in a process of their own (`benchmarks.confirmations`)."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.confirmations",
        "--packets",
        str(packets),
        "--stored",
        str(stored),
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - our own program
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def watch(packets: int) -> Sample:
    """One look at everything that waits."""
    used_s = measure_alone(packets, 0)["ask_cpu_s"]
    note = f"{used_s:.3f} s of a core for {packets:,}: {used_s / POLL_S:.2%} of one, once in {POLL_S:.0f} s"
    return Sample({"rate": packets / used_s}, note=note)


def remember(packets: int, stored: int) -> Sample:
    """What a confirmed packet leaves in memory."""
    none, many = measure_alone(packets, 0), measure_alone(packets, stored)
    grown_kib = max(0.0, many["memory_mib"] - none["memory_mib"]) * 1024
    note = (
        f"{none['memory_mib']:.0f} MiB beside none, {many['memory_mib']:.0f} MiB beside {stored:,}; a block to entries "
        f"{none['entries_cpu_s']:.2f} and {many['entries_cpu_s']:.2f} s of a core"
    )
    return Sample({"kib": grown_kib / stored}, note=note)


def confirmed_rows(directory: Path, packets: int, stored: int) -> list[Row]:
    """A block's packets to a reader; what those that wait cost; what those that are confirmed do."""
    return [
        Row(
            "confirmed", f"a block that confirms {packets:,} packets, to entries and to a live reader", "rate",
            (Contender("overlayd", lambda _: deliver_block(directory, packets)),), "to reach: under 2 s for 10,000",
        ),
        Row(
            "confirmed", f"asking about {packets:,} that wait", "rate",
            (Contender("overlayd", lambda _: watch(packets)),), "to reach: under 5 % of a core between blocks",
        ),
        Row(
            "confirmed", f"memory of {stored:,} confirmed packets", "kib",
            (Contender("overlayd", lambda _: remember(packets, stored)),), "to reach: flat",
        ),
    ]  # fmt: skip
