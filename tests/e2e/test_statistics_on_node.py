"""Statistics of a real node: live and webhook deliveries are counted, and a kill loses no packet of them."""

import http.server
import threading
from pathlib import Path

import httpx
import msgspec
from node_process import Node
from real_waiting import PATIENCE_S, until
from test_commands import on

from overlayd.cli.exits import FAILED, OK
from overlayd.client import SyncClient, statistics_calls
from overlayd.model.wire_statistics import StatsBody, StreamStats

PACKETS = 5


class Receiver(http.server.BaseHTTPRequestHandler):
    """Takes everything at /in, nothing elsewhere."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(204 if self.path == "/in" else 500)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None: ...


def test_deliveries_are_counted_and_packets_survive_a_kill(tmp_path: Path) -> None:
    """Each stream's figures after live reading, webhooks and a kill; by route, client and command."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    config = '[webhooks]\nallow_private = ["127.0.0.0/8"]\n'
    node = Node(tmp_path / "data", config=config).wait_ready()
    unix = f"unix:{node.directory}/overlayd.sock"
    try:
        with SyncClient(unix) as client:

            def stats(stream: str) -> StreamStats:
                return client.send(statistics_calls.show_stream_stats(stream))

            hook = f"http://127.0.0.1:{server.server_port}"
            client.define("live", {})
            client.define("bad", {})
            for name, stream, path in (("good", "live", "/in"), ("bad", "bad", "/out")):
                subscription = {"name": name, "kind": "webhook", "streams": [stream], "webhook": {"url": hook + path}}
                httpx.post(f"{node.url}/v1/subscriptions", json=subscription).raise_for_status()
            with httpx.stream(
                "GET", f"{node.url}/v1/live?stream=live", headers={"Accept": "application/x-ndjson"}, timeout=PATIENCE_S
            ) as live:
                lines = live.iter_lines()
                next(lines)
                for number in range(PACKETS):
                    httpx.post(f"{node.url}/v1/streams/live/packets", json={"data": number}).raise_for_status()
                httpx.post(f"{node.url}/v1/streams/bad/packets", json={"data": 1}).raise_for_status()
                for _ in range(PACKETS):
                    next(lines)
                figures = client.send(statistics_calls.show_stats(order="recent"))
                assert figures.sessions.ndjson == 1
                assert figures.subscriptions.active == 2
                until(lambda: stats("live").messages_out == 2 * PACKETS, "deliveries aren't counted")
                until(lambda: stats("bad").failed > 0, "failures aren't counted")
            found = stats("live")
            assert (found.messages_in, found.failed, found.refused, found.error_rate) == (PACKETS, 0, 0, 0.0)
            assert isinstance(found.latency_ms_mean, float)
            assert 0 < found.latency_ms_mean < 1000 * PATIENCE_S
            assert stats("bad").messages_out == 0
            done = on(node, "streams", "stats", "live", "--json")
            assert done.returncode == OK, done.stderr
            assert msgspec.json.decode(done.stdout, type=StreamStats).messages_in == PACKETS
            table = on(node, "streams", "stats").stdout.splitlines()
            assert table[0].split()[:4] == ["STREAM", "STATE", "IN", "OUT"]
            (row,) = [line.split() for line in table if line.startswith("live ")]
            assert row[2:6] == ["5", "10", "0", "0.00%"]
            assert on(node, "streams", "stats", "nothing").returncode == FAILED
        node.process.kill()
        node.stop()
        node = Node(node.directory, config=config).wait_ready()
        with SyncClient(unix) as client:
            after: StatsBody = client.send(statistics_calls.show_stats())
        assert {one.stream: one.messages_in for one in after.streams}["live"] == PACKETS
    finally:
        assert node.stop() == 0, "".join(node.output[-40:])
        server.shutdown()
        server.server_close()


def test_figures_stay_over_an_orderly_restart(tmp_path: Path) -> None:
    """Whatever was counted is stored at the stop."""
    node = Node(tmp_path / "data").wait_ready()
    try:
        for number in range(3):
            httpx.post(f"{node.url}/v1/streams/a/packets", json={"data": number}).raise_for_status()
        httpx.get(f"{node.url}/v1/streams/a/packets").raise_for_status()
        assert node.stop() == 0
        node = Node(node.directory).wait_ready()
        found = httpx.get(f"{node.url}/v1/streams/a/stats").raise_for_status().json()
        assert (found["messages_in"], found["messages_out"]) == (3, 3)
    finally:
        assert node.stop() == 0, "".join(node.output[-40:])
