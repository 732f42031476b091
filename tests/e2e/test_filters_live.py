"""Filters on the running node, as a subscriber uses them."""

import json

import httpx
from node_process import Node
from real_waiting import PATIENCE_S


def _read(node: Node, **query: str) -> dict[str, object]:
    answer = httpx.get(f"{node.url}/v1/read", params=query)
    answer.raise_for_status()
    body: dict[str, object] = answer.json()
    return body


def test_only_what_the_filter_wants_is_read(node: Node) -> None:
    """A filter over packet and data picks packets; a missing member is no match, not an error."""
    packets = [{"type": "reading", "data": {"celsius": n}} for n in range(5)] + [{"type": "reading", "data": {}}]
    httpx.post(f"{node.url}/v1/streams/filters.a/packets", json=packets).raise_for_status()
    body = _read(
        node, stream="filters.a", **{"from": "beginning"}, filter='packet.type == "reading" && data.celsius > 2'
    )
    messages = body["messages"]
    assert isinstance(messages, list)
    assert [m["packet"]["data_payload"] for m in messages] == [{"celsius": 3}, {"celsius": 4}]
    assert body["at_head"] is True


def test_a_costly_filter_is_refused_before_it_runs(node: Node) -> None:
    """A nested comprehension and deep nesting are 422 with the reason."""
    for text in ("[1].exists(x, [1].exists(y, true))", "(" * 900 + "true" + ")" * 900):
        answer = httpx.get(f"{node.url}/v1/read", params={"filter": text})
        assert answer.status_code == 422
        assert answer.json()["code"] == "filter.invalid"


def test_a_live_reader_with_a_filter_gets_only_matches(node: Node) -> None:
    """The same over server-sent events."""
    for n in (1, 5, 9):
        httpx.post(f"{node.url}/v1/streams/filters.b/data", json={"n": n}).raise_for_status()
    query = {"stream": "filters.b", "from": "beginning", "filter": "data.n >= 5"}
    seen = []
    with httpx.stream(
        "GET", f"{node.url}/v1/live", params=query, headers={"Accept": "application/x-ndjson"}, timeout=PATIENCE_S
    ) as answer:
        for line in answer.iter_lines():
            message = json.loads(line) if line.strip() else {}
            if message.get("type") == "packet":
                seen.append(message["packet"]["data_payload"]["n"])
                if len(seen) == 2:
                    break
    assert seen == [5, 9]
