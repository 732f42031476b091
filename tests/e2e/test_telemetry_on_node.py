"""Traces and fault reports of a real node: one trace from publishing through the log to each delivery, also after a kill."""

import contextlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from node_process import Node
from real_waiting import PATIENCE_S, until

from overlayd.client import SyncClient
from overlayd.model.errors import UncertainPublish

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
WANTED = f"00-{TRACE}-{PARENT}-01"
UNWANTED = f"00-{'1' * 32}-{PARENT}-00"
CANARY = "canary-0451"


class Collector:
    """Takes spans, reports and webhooks, and notes what came to which path."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self._changed = threading.Condition()
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                with collector._changed:
                    collector.requests.append((self.path, dict(self.headers), body))
                    collector._changed.notify_all()
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *arguments: object) -> None: ...

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def at(self, path: str) -> list[tuple[dict[str, str], bytes]]:
        """What came to a path."""
        with self._changed:
            return [(headers, body) for found, headers, body in self.requests if found == path]

    def spans(self) -> list[dict[str, Any]]:
        """All spans."""
        bodies = [json.loads(body) for _, body in self.at("/v1/traces")]
        return [span for body in bodies for span in body["resourceSpans"][0]["scopeSpans"][0]["spans"]]

    def wait(self, count: int, name: str) -> list[dict[str, Any]]:
        """Until so many spans of a name came."""

        def named() -> list[dict[str, Any]]:
            return [span for span in self.spans() if span["name"] == name]

        with self._changed:
            assert self._changed.wait_for(lambda: len(named()) >= count, PATIENCE_S), (name, self.spans())
        return named()

    def wait_at(self, path: str) -> tuple[dict[str, str], bytes]:
        """Until something came to a path."""
        with self._changed:
            assert self._changed.wait_for(lambda: bool(self.at(path)), PATIENCE_S), path
        return self.at(path)[0]


@pytest.fixture
def collector() -> Iterator[Collector]:
    """One for each test."""
    found = Collector()
    yield found
    found.server.shutdown()
    found.server.server_close()


def config_of(url: str, sample: float = 0.0) -> str:
    """Traces to the collector, soon."""
    return (
        f'[traces]\nendpoint = "{url}"\nsample = {sample}\ninterval = "100ms"\n'
        '[webhooks]\nallow_private = ["127.0.0.0/8"]\n'
    )


def read_packets(live: httpx.Response) -> Iterator[dict[str, Any]]:
    """The packets that come live, once the node has said welcome."""
    lines = map(json.loads, live.iter_lines())
    assert next(lines)["type"] == "welcome"
    return (line["packet"] for line in lines if line["type"] == "packet")


def attributes(span: dict[str, Any]) -> dict[str, str]:
    """A span's attributes, as text."""
    return {one["key"]: next(iter(one["value"].values())) for one in span["attributes"]}


def test_one_trace_goes_through_the_log(tmp_path: Path, collector: Collector) -> None:
    """Publish, append, live delivery and webhook stand below one another; after a kill a late reader finds the same
    append; the receiver's header leads below the attempt. What nobody wants traced isn't."""
    config = config_of(collector.url)
    node = Node(tmp_path / "data", config=config).wait_ready()
    try:
        with httpx.Client(base_url=node.url, timeout=PATIENCE_S) as client:
            hook = {"name": "hook", "kind": "webhook", "streams": ["s"], "webhook": {"url": f"{collector.url}/hook"}}
            client.post("/v1/subscriptions", json=hook).raise_for_status()
            with client.stream("GET", "/v1/live?stream=s", headers={"Accept": "application/x-ndjson"}) as live:
                packets = read_packets(live)
                with httpx.Client(base_url=node.url) as producer:
                    for trace in (UNWANTED, WANTED):  # a known connection is served by a quicker path
                        headers = {"traceparent": trace}
                        producer.post("/v1/streams/s/packets", json={"data": 1}, headers=headers).raise_for_status()
                    producer.post("/v1/streams/s/packets", json={"data": 2}).raise_for_status()
                assert [next(packets).get("traceparent") for _ in range(3)] == [UNWANTED, WANTED, None]
            (publish,) = collector.wait(1, "publish s")
            (append,) = collector.wait(1, "append s")
            deliveries = collector.wait(2, "deliver s")
        assert (publish["traceId"], publish["parentSpanId"]) == (TRACE, PARENT)
        assert append["parentSpanId"] == publish["spanId"]
        assert attributes(append)["overlayd.sequence"] == "2"
        assert {one["parentSpanId"] for one in deliveries} == {append["spanId"]}
        assert {attributes(one).get("overlayd.transport") for one in deliveries} == {"ndjson", None}
        (pushed,) = [one for one in deliveries if "overlayd.subscription" in attributes(one)]
        assert attributes(pushed)["http.response.status_code"] == "200"
        until(lambda: len(collector.at("/hook")) >= 3, "the webhook has them all")
        traces = {json.loads(body)["packet"]["packet_sequence"]: headers.get("traceparent") for headers, body in collector.at("/hook")}  # fmt: skip
        assert traces == {1: UNWANTED, 2: f"00-{TRACE}-{pushed['spanId']}-01", 3: None}
        assert {span["traceId"] for span in collector.spans()} == {TRACE}
        node.process.kill()
        node.stop()
        node = Node(node.directory, config=config).wait_ready()
        late = "/v1/live?stream=s&from=beginning"
        with httpx.stream(
            "GET", node.url + late, headers={"Accept": "application/x-ndjson"}, timeout=PATIENCE_S
        ) as live:
            packets = read_packets(live)
            assert [next(packets)["packet_sequence"] for _ in range(3)] == [1, 2, 3]
        *_, again = collector.wait(3, "deliver s")
        assert again["parentSpanId"] == append["spanId"]
    finally:
        assert node.stop() == 0, "".join(node.output[-40:])


def test_the_node_begins_traces_of_its_own(tmp_path: Path, collector: Collector) -> None:
    """For the share that the settings ask for; its packets carry them on."""
    node = Node(tmp_path / "data", config=config_of(collector.url, 1.0)).wait_ready()
    try:
        with httpx.Client(base_url=node.url) as producer:
            for number in range(3):
                producer.post("/v1/streams/s/packets", json={"data": number}).raise_for_status()
            producer.post("/v1/streams/s/packets", json=[{"data": 4}, {"data": 5}]).raise_for_status()
        publishes = collector.wait(4, "publish s")
        appends = collector.wait(5, "append s")
        assert all("parentSpanId" not in one for one in publishes)
        assert len({one["traceId"] for one in publishes}) == 4
        assert {one["parentSpanId"] for one in appends} == {one["spanId"] for one in publishes}
        packets = httpx.get(f"{node.url}/v1/streams/s/packets").json()["packets"]
        handed_on = [one["traceparent"] for one in packets]
        assert {text[3:35] for text in handed_on} == {one["traceId"] for one in publishes}
        assert {text[36:52] for text in handed_on} == {one["spanId"] for one in publishes}
    finally:
        assert node.stop() == 0, "".join(node.output[-40:])


def test_a_collector_that_is_away_stops_nobody(tmp_path: Path) -> None:
    """Packets are taken and delivered as ever; what can't be told is counted."""
    config = config_of("http://127.0.0.1:9", 1.0).replace("[webhooks]", "spans_max = 5\n[webhooks]")
    node = Node(tmp_path / "data", config=config).wait_ready()
    try:
        with httpx.Client(base_url=node.url) as producer:
            for number in range(50):
                producer.post("/v1/streams/s/packets", json={"data": number}).raise_for_status()
            assert len(producer.get("/v1/streams/s/packets").json()["packets"]) == 50
            metrics = producer.get("/metrics").text
        (dropped,) = re.findall(r"^overlayd_trace_spans_dropped_total (\S+)", metrics, re.MULTILINE)
        assert float(dropped) > 50
        assert 'overlayd_limit_hits_total{limit="spans_max"}' in metrics
    finally:
        assert node.stop() == 0, "".join(node.output[-40:])


CRASHING = f"""
import trio
from overlayd.daemon.parts import Parts
from overlayd.cli import main

async def watch_memory(self):
    secret = "{CANARY}"
    while self.log.find_stream("s") is None:
        await trio.sleep(0.02)
    raise ValueError("can't go on with " + secret)

Parts.watch_memory = watch_memory
main()
"""


def test_a_node_that_crashes_says_so(tmp_path: Path, collector: Collector) -> None:
    """An error that ends the process arrives, with its place in the code and without its words."""
    config = tmp_path / "node.toml"
    config.write_text(f'[sentry]\ndsn = "{collector.url.replace("://", "://abc123@")}/5"\n')
    command = [
        sys.executable, "-c", CRASHING, "run", "--config", str(config), "--data", str(tmp_path / "data"), "--listen",
        "127.0.0.1:0",
    ]  # fmt: skip
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}
    ) as process:  # fmt: skip
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        with contextlib.suppress(UncertainPublish), SyncClient(url) as client:
            client.publish("s", {"words": CANARY})
        headers, body = collector.wait_at("/api/5/envelope/")
        assert process.wait(PATIENCE_S) != 0
    assert "sentry_key=abc123" in headers["X-Sentry-Auth"]
    assert CANARY.encode() not in body
    event = json.loads(body.split(b"\n")[2])
    assert event["transaction"] == "the node ended"
    (frame, *_) = [one for value in event["exception"]["values"] for one in value["stacktrace"]["frames"] if one["function"] == "watch_memory"]  # fmt: skip
    assert frame["lineno"] > 1


def test_a_wrong_dsn_is_told_without_its_key(tmp_path: Path) -> None:
    """As any wrong setting; `check-config` shows a right one hidden."""
    config = tmp_path / "node.toml"
    for dsn, code in (("https://s3cr3tk3y@sentry.example", 78), ("https://s3cr3tk3y@sentry.example/1", 0)):
        config.write_text(f'[sentry]\ndsn = "{dsn}"\n')
        done = subprocess.run(
            [sys.executable, "-m", "overlayd", "check-config", "--config", str(config)], capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        assert "s3cr3tk3y" not in done.stdout + done.stderr
