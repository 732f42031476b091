"""Webhook deliveries from a real node to a loopback receiver: how many a second, settled durably; how soon a restart goes
on; and whether bad endpoints are felt by the others.

Run: .venv/bin/python -m benchmarks.deliveries [--rows fan,single,ordered,restart,bad] [--packets N]
or, beside the others: make bench PART=deliveries
"""

import argparse
import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.sink import address_of

CONFIG = """
[webhooks]
allow_private = ["127.0.0.0/8"]
[metrics]
enabled = true
[log]
level = "warning"
"""
WAIT_S = 120.0
SUBSCRIPTIONS = 100
"""Of the row where each packet goes to all of them."""
BESIDE_BODY = json.dumps({"type": "measured", "data": {"text": "x" * 80}})
JSON = {"Content-Type": "application/json"}
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class Receiver:
    """benchmarks/sink.py as a process: so many hosts."""

    def __init__(self, hosts: int = 1) -> None:
        self.process = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-m", "benchmarks.sink", str(hosts)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self._port = int(self.process.stdout.readline())

    def url(self, word: str, host: int = 0) -> str:
        """An endpoint of one of the hosts; `word`: how it answers."""
        return f"http://{address_of(host)}:{self._port}/{word}"

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


class Pace(NamedTuple):
    """What deliveries cost: how many a second, and the node's processor time for each, in microseconds."""

    rate: float
    cpu_us: float

    def __str__(self) -> str:
        return f"{self.rate:8.0f}/s, {self.cpu_us:6.0f} µs of the node's processor time each"


def measure(node: Node, expected: int, work: Callable[[], object]) -> Pace:
    """Over some work."""
    before, cpu_before, began = node.settled(), node.cpu_s, time.perf_counter()
    work()
    node.wait_settled(before + expected)
    took, cpu = time.perf_counter() - began, node.cpu_s - cpu_before
    return Pace(expected / took, cpu / expected * 1e6)


def measure_fan(directory: Path, receiver: Receiver, packets: int) -> Pace:
    """Every packet to 100 subscriptions; so many deliveries in all."""
    with closing(Node(directory)) as node:
        for number in range(SUBSCRIPTIONS):
            node.subscribe(f"s{number}", receiver.url("ok"))
        node.publish(20)
        node.wait_settled(20 * SUBSCRIPTIONS)
        count = max(1, packets // SUBSCRIPTIONS)
        return measure(node, count * SUBSCRIPTIONS, lambda: node.publish(count))


def measure_single(directory: Path, receiver: Receiver, packets: int, **webhook: Any) -> Pace:
    """One subscription that is behind."""
    with closing(Node(directory)) as node:
        node.publish(packets)
        url = receiver.url("ok")
        return measure(node, packets, lambda: node.subscribe("one", url, start="beginning", **webhook))


def measure_restart(directory: Path, receiver: Receiver, undelivered: int) -> tuple[float, float]:
    """A kill while so many packets are undelivered; seconds from the start of the next process until it listens, and
    until its first delivery."""
    node = Node(directory)
    node.subscribe("one", receiver.url("ok"), concurrency=16)
    node.call("/v1/subscriptions/one/pause", {})
    node.publish(undelivered)
    before, _ = receiver.ask()
    node.call("/v1/subscriptions/one/resume", {})
    while receiver.ask()[0] < before + min(500, undelivered // 4):
        time.sleep(0.01)
    node.close(is_killed=True)
    before, _ = receiver.ask()
    node = Node(directory)
    while receiver.ask()[0] == before:
        time.sleep(0.005)
    first_s = time.perf_counter() - node.started
    node.close(is_killed=True)
    return node.ready_s, first_s


class Beside(NamedTuple):
    """What good subscriptions and a publisher felt: the slowest hundredth in milliseconds, packets a second; memory in
    MiB."""

    good: int
    slowest_ms: float
    publish_rate: float
    memory_mib: float

    def __str__(self) -> str:
        return (
            f"{self.good} good subscriptions: slowest hundredth {self.slowest_ms:.0f} ms, {self.publish_rate:.0f} packets/s "
            f"published one by one, {self.memory_mib:.0f} MiB"
        )


def measure_beside(directory: Path, receiver: Receiver, everybody: int, *, is_rough: bool) -> Beside:
    """Of so many subscriptions, each at a host of its own, 30 % hang, 30 % fail and 1 % trickle, or are paused; a packet now and then, how late the
    others get it, and how many packets somebody publishes meanwhile, to another stream."""
    node, good = Node(directory), 0
    try:
        for number in range(everybody):
            share = number * 1000 // everybody
            word = "hang" if share < 300 else "error" if share < 600 else "slow" if share < 610 else "ok"
            good += word == "ok"
            node.subscribe(f"s{number}", receiver.url(word, number))
            if not is_rough and word != "ok":
                node.call(f"/v1/subscriptions/s{number}/pause", {})
        slowest_of(node, receiver, good)  # connections are opened, bad ones have failed once
        with closing(Publisher(node.url)) as publisher:
            slowest_ms = slowest_of(node, receiver, good, publisher, packets=20)
        return Beside(good, slowest_ms, publisher.rate, node.memory_mib)
    finally:
        node.close(is_killed=True)


class Publisher:
    """Publishes small packets, each when the one before is confirmed, on one connection to a stream nobody reads."""

    def __init__(self, url: str) -> None:
        self._connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
        self.published = 0
        self.took_s = 0.0

    def publish_for(self, seconds: float) -> None:
        """For so long."""
        began = now = time.perf_counter()
        while now < began + seconds:
            self._connection.request("POST", "/v1/streams/beside/packets", BESIDE_BODY, JSON)
            answer = self._connection.getresponse()
            assert answer.status == 201, answer.read()
            answer.read()
            self.published += 1
            now = time.perf_counter()
        self.took_s += now - began

    @property
    def rate(self) -> float:
        return self.published / self.took_s

    def close(self) -> None:
        self._connection.close()


def slowest_of(
    node: Node, receiver: Receiver, good: int, publisher: Publisher | None = None, packets: int = 10
) -> float:
    """The slowest hundredth of the deliveries of so many packets, one every half second, the slowest packet's;
    milliseconds."""
    delays = []
    for _ in range(packets):
        before, _ = receiver.ask()
        node.publish(1)
        if publisher is None:
            time.sleep(0.5)
        else:
            publisher.publish_for(0.5)
        taken, slowest = receiver.ask()
        deadline = time.perf_counter() + 10
        while taken < before + good and time.perf_counter() < deadline:
            time.sleep(0.02)
            taken, slowest = receiver.ask()
        assert taken == before + good, f"{taken - before} of {good} came"
        delays.append(slowest)
    return max(delays) / 1000


def main() -> None:
    """Rows, one line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="fan,single,ordered,restart,bad")
    parser.add_argument("--packets", type=int, default=6000)
    parser.add_argument("--undelivered", type=int, default=100_000, help="of the row `restart`")
    parser.add_argument("--subscriptions", type=int, default=300, help="of the row `bad`")
    chosen = parser.parse_args()
    with closing(Receiver(chosen.subscriptions)) as receiver:
        for row in chosen.rows.split(","):
            with tempfile.TemporaryDirectory() as place:
                print_row(row, Path(place) / "data", receiver, chosen)


def print_row(row: str, directory: Path, receiver: Receiver, chosen: argparse.Namespace) -> None:
    """Measures and says so."""
    if row == "fan":
        print(f"{SUBSCRIPTIONS} subscriptions:", measure_fan(directory, receiver, chosen.packets))
    elif row == "single":
        print("one unordered subscription:", measure_single(directory, receiver, chosen.packets))
    elif row == "ordered":
        pace = measure_single(directory, receiver, chosen.packets // 4, ordering="stream")
        print("one ordered subscription:", pace)
    elif row == "restart":
        ready_s, first_s = measure_restart(directory, receiver, chosen.undelivered)
        print(
            f"restart with {chosen.undelivered} undelivered: listening after {ready_s:.2f} s, first delivery {first_s:.2f} s"
        )
    elif row == "bad":
        for is_rough in (False, True):
            place = directory / ("rough" if is_rough else "calm")
            print("with bad ones," if is_rough else "without bad ones,",
                  measure_beside(place, receiver, chosen.subscriptions, is_rough=is_rough))  # fmt: skip


if __name__ == "__main__":
    main()
