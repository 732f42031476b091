"""Webhook deliveries from a real node to a loopback receiver: how many a second, settled durably; how soon a restart goes
on; and whether bad endpoints are felt by the others.

Run: .venv/bin/python -m benchmarks.deliveries [--rows fan,single,ordered,restart,bad] [--packets N]
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

CONFIG = """
[webhooks]
allow_private = ["127.0.0.0/8"]
[metrics]
enabled = true
[log]
level = "warning"
"""
WAIT_S = 120.0
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class Receiver:
    """benchmarks/sink.py as a process."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.sink"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self.process.stdout.readline())}"

    def ask(self) -> tuple[int, int]:
        """Requests taken so far, and the slowest hundredth since the last time, in microseconds."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        taken, slowest = self.process.stdout.readline().split()
        return int(taken), int(slowest)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


class Node:
    """`overlayd run` on a directory."""

    def __init__(self, directory: Path) -> None:
        directory.parent.mkdir(parents=True, exist_ok=True)
        file = directory.parent / "config.toml"
        file.write_text(CONFIG)
        self.started = time.perf_counter()
        self.process = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-m", "overlayd", "run", "--data", str(directory), "--listen", "127.0.0.1:0", "--config",
             str(file)],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        found = re.search(r"listening on (http://\S+)", self.process.stdout.readline())
        assert found is not None, "the node didn't start"
        self.url = found[1]
        self.ready_s = time.perf_counter() - self.started

    def call(self, path: str, body: Any = None) -> Any:
        """A POST with a body, else a GET; the answer as JSON."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data, {"Content-Type": "application/json"})  # noqa: S310 - loopback
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - loopback
            return json.loads(answer.read() or b"null")

    def subscribe(
        self, name: str, url: str, *, start: str = "now", streams: tuple[str, ...] = ("a",), **webhook: Any
    ) -> None:
        """A webhook subscription."""
        body = {
            "name": name,
            "kind": "webhook",
            "streams": list(streams),
            "from": start,
            "webhook": {"url": url} | webhook,
        }
        self.call("/v1/subscriptions", body)

    def publish(self, count: int, stream: str = "a") -> float:
        """Packets of about 120 bytes in batches of 100; seconds."""
        began = time.perf_counter()
        for first in range(0, count, 100):
            packets = [
                {"data": {"n": number, "sent": time.perf_counter_ns() // 1000, "text": "x" * 80}}
                for number in range(first, min(count, first + 100))
            ]
            self.call(f"/v1/streams/{stream}/packets", packets)
        return time.perf_counter() - began

    def settled(self) -> int:
        """Deliveries that are settled on disk, or about to be: what the node counts as delivered."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=60) as answer:  # noqa: S310 - loopback
            text = answer.read().decode()
        found = re.search(r'^overlayd_subscription_delivered_total\{kind="webhook"\} (\S+)', text, re.MULTILINE)
        return int(float(found[1])) if found else 0

    def wait_settled(self, count: int) -> None:
        """Until so many are."""
        deadline = time.perf_counter() + WAIT_S
        while self.settled() < count:
            assert time.perf_counter() < deadline, f"{self.settled()} of {count}"
            time.sleep(0.05)

    @property
    def cpu_s(self) -> float:
        """Processor time of the node so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * TICK_S

    @property
    def memory_mib(self) -> float:
        """Resident memory."""
        found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{self.process.pid}/status").read_text())
        return int(found[1]) / 1024 if found else 0.0

    def close(self, *, is_killed: bool = False) -> None:
        if is_killed:
            self.process.kill()
        else:
            self.process.terminate()
        self.process.communicate()


def measure(node: Node, expected: int, work: Any) -> str:
    """Deliveries a second and the node's processor time for each, over some work."""
    before, cpu_before, began = node.settled(), node.cpu_s, time.perf_counter()
    work()
    node.wait_settled(before + expected)
    took, cpu = time.perf_counter() - began, node.cpu_s - cpu_before
    return f"{expected / took:8.0f}/s, {cpu / expected * 1e6:6.0f} µs of the node's processor time each"


def row_fan(directory: Path, receiver: Receiver, packets: int) -> None:
    """Every packet to 100 subscriptions."""
    node = Node(directory)
    for number in range(100):
        node.subscribe(f"s{number}", f"{receiver.url}/ok")
    node.publish(20)
    node.wait_settled(2000)
    count = max(1, packets // 100)
    print(f"100 subscriptions, {count} packets:", measure(node, count * 100, lambda: node.publish(count)))
    node.close()


def row_single(directory: Path, receiver: Receiver, packets: int, **webhook: Any) -> None:
    """One subscription that is behind."""
    node = Node(directory)
    node.publish(packets)
    name = "ordered" if webhook else "unordered"
    began = measure(node, packets, lambda: node.subscribe("one", f"{receiver.url}/ok", start="beginning", **webhook))
    print(f"one {name} subscription, {packets} packets:", began)
    node.close()


def row_restart(directory: Path, receiver: Receiver) -> None:
    """A kill with 100,000 packets undelivered; from the start of the process to the first delivery."""
    node = Node(directory)
    node.subscribe("one", f"{receiver.url}/ok", concurrency=16)
    node.call("/v1/subscriptions/one/pause", {})
    node.publish(100_000)
    before, _ = receiver.ask()
    node.call("/v1/subscriptions/one/resume", {})
    while receiver.ask()[0] < before + 500:
        time.sleep(0.01)
    node.close(is_killed=True)
    before, _ = receiver.ask()
    node = Node(directory)
    while receiver.ask()[0] == before:
        time.sleep(0.005)
    first_s = time.perf_counter() - node.started
    print(
        f"restart with 99,000 undelivered: listening after {node.ready_s:.2f} s, first delivery after {first_s:.2f} s"
    )
    node.close(is_killed=True)


def row_bad(directory: Path, receiver: Receiver, everybody: int) -> None:
    """Of so many subscriptions 30 % hang, 30 % fail and 1 % trickle; a packet now and then, and how late the others get it."""
    for is_rough in (False, True):
        node = Node(directory / ("rough" if is_rough else "calm"))
        good = 0
        for number in range(everybody):
            share = number * 1000 // everybody
            word = "hang" if share < 300 else "error" if share < 600 else "slow" if share < 610 else "ok"
            good += word == "ok"
            node.subscribe(f"s{number}", f"{receiver.url}/{word if is_rough or word == 'ok' else 'none'}")
            if not is_rough and word != "ok":
                node.call(f"/v1/subscriptions/s{number}/pause", {})
        slowest_of(node, receiver, good)  # connections are opened, bad ones have failed once
        word = "with" if is_rough else "without"
        print(
            f"{good} good subscriptions {word} bad ones: {slowest_of(node, receiver, good)}, {node.memory_mib:.0f} MiB"
        )
        node.close(is_killed=True)


def slowest_of(node: Node, receiver: Receiver, good: int) -> str:
    """The slowest hundredth of the deliveries of ten packets, one every half second, the slowest packet's."""
    delays = []
    publishes = []
    for _ in range(10):
        before, _ = receiver.ask()
        publishes.append(node.publish(1))
        time.sleep(0.5)
        taken, slowest = receiver.ask()
        deadline = time.perf_counter() + 10
        while taken < before + good and time.perf_counter() < deadline:
            time.sleep(0.02)
            taken, slowest = receiver.ask()
        assert taken == before + good, f"{taken - before} of {good} came"
        delays.append(slowest)
    return f"slowest hundredth {max(delays) / 1000:.0f} ms, publish {sorted(publishes)[5] * 1000:.1f} ms"


def main() -> None:
    """Rows, one line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="fan,single,ordered,restart,bad")
    parser.add_argument("--packets", type=int, default=6000)
    parser.add_argument("--subscriptions", type=int, default=300, help="of the row `bad`")
    chosen = parser.parse_args()
    receiver = Receiver()
    try:
        for row in chosen.rows.split(","):
            with tempfile.TemporaryDirectory() as place:
                directory = Path(place) / "data"
                if row == "fan":
                    row_fan(directory, receiver, chosen.packets)
                elif row == "single":
                    row_single(directory, receiver, chosen.packets)
                elif row == "ordered":
                    row_single(directory, receiver, chosen.packets // 4, ordering="stream")
                elif row == "restart":
                    row_restart(directory, receiver)
                elif row == "bad":
                    row_bad(directory, receiver, chosen.subscriptions)
    finally:
        receiver.close()


if __name__ == "__main__":
    main()
