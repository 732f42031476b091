"""Redaction, consent, search indexes and backups on a real node."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from agentpipe_node import CONFIG, Api
from live_sockets import open_socket
from node_process import Node
from real_waiting import until

SECRET = "planted-e8d2"
REDACT = [{"path": "/data/email", "action": "drop"}, {"path": "/data/name", "action": "pseudonymise"}]
DATA = {"name": f"{SECRET}-name", "email": f"{SECRET}-mail", "n": 1}
EVENT = {"specversion": "1.0", "id": "e", "type": "t", "source": "/s", "data": DATA}
JSON = "application/json"


def post(path: str, kind: str, body: Any, **headers: str) -> Callable[[httpx.Client], httpx.Response]:
    """A way to publish."""
    content = body if isinstance(body, str) else json.dumps(body)
    named = {"Content-Type": kind, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return lambda client: client.post(f"/v1/streams/people/{path}", content=content, headers=named)


WAYS = {
    "one": post("packets", JSON, {"data": DATA}),
    "array": post("packets", JSON, [{"data": DATA}, {"data": DATA}]),
    "ndjson": post("packets", "application/x-ndjson", json.dumps({"data": DATA}) + "\n"),
    "event": post("packets", "application/cloudevents+json", EVENT),
    "events": post("packets", "application/cloudevents-batch+json", [EVENT | {"id": "f"}]),
    "binary": post("packets", JSON, DATA, ce_specversion="1.0", ce_id="g", ce_type="t", ce_source="/s"),
    "data": post("data", JSON, DATA),
}


class Place:
    """A node with a client over TCP."""

    def __init__(self, directory: Path, config: str = "") -> None:
        self.data = directory / "data"
        self.node = Node(self.data, config=config).wait_ready()
        self.client = httpx.Client(base_url=self.node.url, timeout=60)
        self.admin = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(self.data / "overlayd.sock")), base_url="http://localhost", timeout=60
        )  # fmt: skip

    def define(self, stream: str, **definition: Any) -> None:
        answer = self.admin.put(f"/v1/streams/{stream}", json=definition)
        assert answer.status_code in (200, 201), answer.text

    def erase(self, **what: Any) -> Any:
        answer = self.admin.post("/v1/erase", json=what)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def holders(self, text: str, below: Path | None = None) -> list[str]:
        """The files that hold a text."""
        files = (one for one in (below or self.data).rglob("*") if one.is_file() and one.name != "reserve")
        return [one.name for one in files if text.encode() in one.read_bytes()]

    def close(self) -> None:
        self.client.close()
        self.admin.close()
        self.node.stop()


@pytest.fixture(params=["", "[listen]\nfast_lanes = false\n"], ids=["lanes", "quart"])
def place(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Place]:
    """A node, with the publish lane and without."""
    found = Place(tmp_path, request.param)
    yield found
    found.close()


async def publish_live(url: str) -> None:
    """By WebSocket."""
    async with open_socket(f"{url}/v1/live", {}) as socket:
        await socket.send_message(
            json.dumps({"type": "publish", "ref": 1, "stream": "people", "packets": [{"data": DATA}]})
        )
        while json.loads(await socket.get_message())["type"] != "receipt":
            pass


def test_every_way_in_is_redacted(place: Place) -> None:
    """However a packet is published, nothing that a rule takes out reaches any file or reader."""
    place.define("people", redact=REDACT)
    for name, way in WAYS.items():
        answer = way(place.client)
        assert answer.status_code == 201, (name, answer.text)
    for _ in range(3):  # the first request of a connection is judged by its task, the next ones quickly
        assert WAYS["one"](place.client).status_code == 201
    trio.run(publish_live, place.node.url)
    packets = place.client.get("/v1/streams/people/packets").json()["packets"]
    assert len(packets) == len(WAYS) + 1 + 3 + 1
    for packet in packets:
        assert packet["data_payload"].keys() == {"name", "n"}
    assert len({packet["data_payload"]["name"] for packet in packets}) == 1
    assert packets[0]["data_payload"]["name"].startswith("p_")
    assert place.holders(SECRET) == []


def test_consent_lets_packets_in(place: Place) -> None:
    """Refused, recorded, taken, withdrawn, refused; a broken definition is named."""
    place.define("people", subject="/data/name", purpose="billing", consent="required")
    path = f"/v1/subjects/{DATA['name']}/consent"

    def publish() -> tuple[int, str]:
        answer = WAYS["one"](place.client)
        return answer.status_code, answer.json().get("code", "")

    assert publish() == (422, "consent.missing")
    assert place.admin.put(path, json={"purpose": "billing", "granted": True}).status_code == 200
    assert publish() == (201, "")
    assert place.client.put(path, json={"purpose": "billing", "granted": True}).status_code == 403
    assert place.admin.put(path, json={"purpose": "billing", "granted": False}).json()["granted"] is False
    assert publish() == (422, "consent.missing")
    (row,) = place.admin.get(path).json()["consents"]
    assert (row["purpose"], row["granted"], row["by"]) == ("billing", False, "unix:0")
    assert place.admin.put(path, json={"purpose": "x", "granted": True, "until": "soon"}).status_code == 400
    refused = place.admin.put("/v1/streams/other", json={"consent": "required"})
    assert [one["code"] for one in refused.json()["errors"]] == ["definition.consent", "definition.consent"]


def test_the_search_index_forgets_words(tmp_path: Path) -> None:
    """AgentPipe's messages, their search and the index's own tables hold nothing of erased packets when the answer comes."""
    place = Place(tmp_path, CONFIG)
    try:
        api, conversation = Api(place.node), "e0aa6d27-08a6-41a2-8e54-8cced6c084b3"
        api.begin(conversation)
        for number in range(40):
            api.say(conversation, number, f"zebrafish{number} {SECRET} other words" if number % 2 else "plain words")
        streams = place.admin.get("/v1/streams?q=agentpipe").json()["streams"]
        stream = max(streams, key=lambda one: one["packets"])
        assert place.holders(SECRET)
        assert place.holders("zebrafish")
        report = place.erase(stream=stream["stream"], **{"from": 1, "to": stream["head_sequence"]})
        assert report["packets"] >= 40
        assert place.holders(SECRET) == []
        assert place.holders("zebrafish") == []
    finally:
        place.close()


def test_backups_are_named_and_fresh_ones_hold_nothing(tmp_path: Path) -> None:
    """The report names the backup from before, which still has it; one that is made afterwards hasn't."""
    place = Place(tmp_path)
    try:
        place.define("people")
        for number in range(50):
            place.client.post("/v1/streams/people/packets", json={"data": {"text": f"{SECRET}-{number}"}})
        backups = []
        for _ in range(2):
            ran = subprocess.run(
                [sys.executable, "-m", "overlayd", "backup", "--data", str(place.data), "--json"],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            backups.append(Path(json.loads(ran.stdout)["path"]))
            if len(backups) == 1:
                assert place.holders(SECRET, backups[0])
                report = place.erase(stream="people", **{"from": 1, "to": 50})
                assert report["backups"] == [str(backups[0])]
        assert place.holders(SECRET, backups[0])
        assert place.holders(SECRET, backups[1]) == []
    finally:
        place.close()


class Echo(BaseHTTPRequestHandler):
    """Refuses every delivery by repeating it."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(400)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


def test_what_receivers_answered_is_cleared(tmp_path: Path) -> None:
    """A receiver that repeats what it was sent leaves it among attempts and dead letters, until it is erased."""
    place = Place(tmp_path, '[webhooks]\nallow_private = ["127.0.0.0/8"]\n')
    sink = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=sink.serve_forever, daemon=True).start()
    try:
        place.define("people")
        webhook = {"url": f"http://127.0.0.1:{sink.server_port}/", "retry": {"schedule": ["10ms"]}}
        made = place.admin.post(
            "/v1/subscriptions", json={"name": "echo", "kind": "webhook", "streams": ["people"], "webhook": webhook}
        ).json()
        place.client.post("/v1/streams/people/packets", json={"data": {"text": SECRET}})
        path = f"/v1/subscriptions/{made['id']}"
        until(lambda: place.admin.get(f"{path}/dead-letters").json()["dead_letters"], "the packet is a dead letter")
        for list in ("attempts", "dead-letters"):
            assert SECRET in place.admin.get(f"{path}/{list}").text
        report = place.erase(stream="people", sequence=1)
        assert [one["name"] for one in report["recipients"]] == ["echo"]
        for list in ("attempts", "dead-letters"):
            assert SECRET not in place.admin.get(f"{path}/{list}").text
        assert place.holders(SECRET) == []
    finally:
        sink.shutdown()
        sink.server_close()
        place.close()
