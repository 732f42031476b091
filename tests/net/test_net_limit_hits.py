"""Limits of requests and packets: hitting one is counted under its name, whichever lane it is hit on."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from publish_rig import UPLOAD, chunk, open_publishing
from route_rig import Node, open_node

from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.model.units import Size
from overlayd.net.lane import Lane

PACKETS = "/v1/streams/a/packets"
JSON = "application/json"
LINES = "application/x-ndjson"
EVENTS = "application/cloudevents-batch+json"


def hits(metrics: Metrics, limit: str) -> float:
    """How often a limit was hit."""
    return metrics.registry.get_sample_value("overlayd_limit_hits_total", {"limit": limit}) or 0.0


CASES: list[tuple[str, dict[str, Any], str, bytes, str, int]] = [
    ("body_bytes", {"body_bytes": Size(100)}, PACKETS, b'{"data":"%b"}' % (b"x" * 100), JSON, 413),
    ("upload_bytes", {"upload_bytes": Size(100)}, PACKETS, b'{"data":1}\n' * 20, LINES, 413),
    ("packet_bytes", {"packet_bytes": Size(100)}, "/v1/streams/a/data", b"[%b1]" % (b"1," * 100), JSON, 413),
    (
        "batch_packets_max",
        {"batch_packets_max": 3},
        PACKETS,
        b'[{"data":1},{"data":1},{"data":1},{"data":1}]',
        JSON,
        413,
    ),
    ("batch_packets_max", {"batch_packets_max": 3}, f"{PACKETS}?atomic=true", b'{"data":1}\n' * 4, LINES, 413),
    ("ndjson_group_packets", {"ndjson_group_packets": 2}, PACKETS, b'{"data":1}\n' * 5, LINES, 201),
    ("ndjson_receipts_max", {"ndjson_receipts_max": 2}, PACKETS, b'{"data":1}\n' * 5, LINES, 201),
    ("errors_max", {"errors_max": 2}, PACKETS, b'[{"data":1},{"a":1},{"b":1},{"c":1}]', JSON, 422),
    ("errors_max", {"errors_max": 2}, f"{PACKETS}?atomic=false", b'[{"data":1},{"a":1},{"b":1},{"c":1}]', JSON, 201),
    ("errors_max", {"errors_max": 2}, PACKETS, b'{"data":1}\n' + b'{"a":1}\n' * 3, LINES, 201),
    ("errors_max", {"errors_max": 2}, PACKETS, b"[{},{},{}]", EVENTS, 422),
    ("id_chars", {"id_chars": 8}, PACKETS, b'{"data":1,"id":"123456789"}', JSON, 422),
    ("source_chars", {"source_chars": 8}, PACKETS, b'{"data":1,"source":"123456789"}', JSON, 422),
    ("topics_max", {"topics_max": 1}, PACKETS, b'{"data":1,"topics":["a","b"]}', JSON, 422),
    ("metadata_bytes", {"metadata_bytes": Size(8)}, PACKETS, b'{"data":1,"metadata":{"a":12345}}', JSON, 422),
    ("json_depth_max", {"json_depth_max": 4}, PACKETS, b'{"data":[[[[[1]]]]]}', JSON, 422),
]
"""Limit, settings, path, body, content type, status."""


@pytest.mark.parametrize("is_fast", [True, False], ids=["lane", "Quart"])
@pytest.mark.parametrize(("limit", "settings", "path", "body", "kind", "status"), CASES)
async def test_limits_of_publishing(
    tmp_path: Path, is_fast: bool, limit: str, settings: dict[str, Any], path: str, body: bytes,
    kind: str, status: int,
) -> None:  # fmt: skip
    """One request hits it, and is answered alike."""
    async with open_node(tmp_path, Limits(**settings), is_fast=is_fast) as node:
        reply = await node.ask("POST", path, body, Content_Type=kind)
        assert reply.status == status, reply
        assert hits(node.metrics, limit) >= 1


async def test_uploads_are_cut_into_groups(tmp_path: Path) -> None:
    """A line over the group waits for the next commit, which is a hit; a group that isn't full is none."""
    async with open_publishing(tmp_path, Limits(ndjson_group_packets=2), is_fast=True) as (edge, _):
        async with await edge.connect() as client:
            await client.send(UPLOAD + chunk(b'{"data":1}\n') + b"0\r\n\r\n")
            assert (await client.read_answer()).status == 201
        assert edge.count("overlayd_limit_hits_total", limit="ndjson_group_packets") == 0


async def test_definition_bytes(tmp_path: Path) -> None:
    """A definition over its bound."""
    async with open_node(tmp_path, Limits(definition_bytes=Size(1000))) as node:
        body = b'{"title":"%b"}' % (b"x" * 1000)
        assert (await node.ask("PUT", "/v1/streams/a", body, Content_Type=JSON)).status == 413
        assert hits(node.metrics, "definition_bytes") == 1


@pytest.mark.parametrize(
    ("limit", "schema"),
    [
        ("schema_pattern_chars", {"pattern": "a" * 600}),
        ("schema_pattern_repeats", {"pattern": "(a{100}){100}"}),
    ],
)
async def test_limits_of_schemas(tmp_path: Path, limit: str, schema: Any) -> None:
    """A schema that could cost too much is refused, and counted under what it hit."""
    async with open_node(tmp_path) as node:
        assert await _define(node, schema) == 422
        assert hits(node.metrics, limit) == 1


async def test_schema_steps(tmp_path: Path) -> None:
    """A packet that its schema could take too long to judge."""
    async with open_node(tmp_path, Limits(schema_steps=100)) as node:
        assert await _define(node, {"type": "array"}) == 201
        assert (await node.ask("POST", "/v1/streams/a/data", b"[%b1]" % (b"1," * 100), Content_Type=JSON)).status == 422
        assert hits(node.metrics, "schema_steps") == 1


async def _define(node: Node, schema: Any) -> int:
    return (await node.ask("PUT", "/v1/streams/a", msgspec.json.encode({"schema": schema}), Content_Type=JSON)).status


async def test_other_lane_concurrency() -> None:
    """A request that finds every place taken waits, and that is counted; one that finds a place isn't."""
    metrics = Metrics()
    lane = Lane(1, 10, metrics)
    first = await lane.enter()
    assert hits(metrics, "other_lane_concurrency") == 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lane.enter)
        await trio.testing.wait_all_tasks_blocked()
        assert hits(metrics, "other_lane_concurrency") == 1
        lane.leave(first)
