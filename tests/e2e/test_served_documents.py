"""The served documents against the running node: schemathesis, the routes, a browser's event source."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from js_packages import needs_node, run_js
from node_process import Node
from unix_forwarder import UnixForwarder

from overlayd.net.asyncapi import build_asyncapi
from overlayd.net.openapi import build_openapi

# Left out, because the check can't know better:
# - positive_data_acceptance: parameters that exclude each other (`receipts=all` on JSON, `id` beside a different
#   Idempotency-Key) have no form in OpenAPI;
# - unsupported_method: it sends GET with a body, which is refused as such before the method is looked at;
EXCLUDED_CHECKS = "positive_data_acceptance,unsupported_method"


@pytest.mark.timeout(400)  # some thousand requests
def test_schemathesis_finds_no_answer_that_the_document_does_not_allow(node: Node) -> None:
    """Thousands of good and bad requests: no 5xx, and every answer is of a status, type and shape in the document."""
    httpx.post(f"{node.url}/v1/streams/a/data", content=b"1").raise_for_status()
    with UnixForwarder(node.directory / "overlayd.sock") as forwarder:
        found = subprocess.run(
            [
                str(Path(sys.executable).with_name("schemathesis")), "run", f"{forwarder.url}/openapi.json",
                "--exclude-path", "/v1/live",  # endless
                "--exclude-checks", EXCLUDED_CHECKS,
                "--phases", "examples,coverage,fuzzing", "--max-examples", "15", "--seed", "1", "--no-color",
            ],
            capture_output=True, text=True, check=False, timeout=240, env=os.environ | {"SCHEMATHESIS_HOOKS": ""},
        )  # fmt: skip
    assert found.returncode == 0, found.stdout[-6000:] + found.stderr[-2000:]


def test_documents_are_served_and_whole(node: Node) -> None:
    """Both documents are served as built, every reference in them leads somewhere, and the page needs no other host."""
    for path, document in (("/openapi.json", build_openapi()), ("/asyncapi.json", build_asyncapi())):
        served = httpx.get(node.url + path).json()
        assert served == json.loads(json.dumps(document))
        for reference in _references(served):
            _resolve(served, reference)
    page = httpx.get(f"{node.url}/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert not re.search(r"(?:src|href)=['\"]?https?:", page.text)
    assert "<script" not in page.text


def _references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [found for member in value.values() for found in _references(member)]
    return [found for item in value for found in _references(item)] if isinstance(value, list) else []


def _resolve(document: Any, reference: str) -> None:
    assert reference.startswith("#/")
    for step in reference[2:].split("/"):
        document = document[step.replace("~1", "/").replace("~0", "~")]


@needs_node
def test_an_event_source_reads_and_resumes(node: Node) -> None:
    """The eventsource package gets every packet once, and goes on behind the id it saw last."""
    packets = [{"id": f"es-{n}", "data": {"n": n, "text": "a\nb\u2028c"}} for n in range(6)]
    httpx.post(f"{node.url}/v1/streams/es.a/packets", json=packets).raise_for_status()
    url = f"{node.url}/v1/live?stream=es.a&from=beginning"
    first = _read_events(url, 3)
    assert [event["data"]["packet"]["data_payload"] for event in first] == [p["data"] for p in packets[:3]]
    assert [event["id"] for event in first] == [event["data"]["cursor"] for event in first]
    rest = _read_events(f"{node.url}/v1/live?stream=es.a", 3, first[-1]["id"])
    assert [event["data"]["packet"]["packet_id"] for event in rest] == ["es-3", "es-4", "es-5"]


def _read_events(url: str, count: int, last_event_id: str = "") -> list[dict[str, Any]]:
    events = run_js("eventsource-read.mjs", url, str(count), last_event_id)
    return [event for event in events if event["event"] == "packet"]
