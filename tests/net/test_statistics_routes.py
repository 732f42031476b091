"""Statistics over HTTP: what is counted for which stream, who sees it, and that restarts keep it."""

from pathlib import Path
from typing import Any

import pytest
from metering_rig import ADMIN, LOOPBACK, MeteredNode, holder, open_metered

from overlayd.model.errors import StorageFull

SCHEMA = {"schema": {"type": "object", "required": ["t"]}}


async def stats(node: MeteredNode, stream: str) -> dict[str, Any]:
    """A stream's figures."""
    reply = await node.ask("GET", f"/v1/streams/{stream}/stats")
    assert reply.status == 200, reply
    found: dict[str, Any] = reply.json
    return found


async def use(node: MeteredNode) -> None:
    """Three packets in, one refused, five out."""
    await node.ask("PUT", "/v1/streams/a", SCHEMA)
    for value in (1, 2, 3):
        reply = await node.ask("POST", "/v1/streams/a/packets", {"data": {"t": value}})
        assert reply.status == 201
    assert (await node.ask("POST", "/v1/streams/a/packets", {"data": {}})).status == 422
    assert len((await node.ask("GET", "/v1/streams/a/packets?limit=2")).json["packets"]) == 2
    assert len((await node.ask("GET", "/v1/read?stream=a")).json["messages"]) == 3


@pytest.mark.parametrize("is_fast", [True, False])
async def test_a_stream_s_figures(tmp_path: Path, is_fast: bool) -> None:
    """Packets in by sequence, what was refused, what was read; nothing that wasn't measured."""
    async with open_metered(tmp_path, is_fast=is_fast) as node:
        await use(node)
        found = await stats(node, "a")
        assert (found["messages_in"], found["messages_out"], found["refused"], found["failed"]) == (3, 5, 1, 0)
        assert found["error_rate"] == 0.25
        assert found["packets"] == 3
        assert found["last_packet_at"].startswith("2026-01-02T03:03:20")
        assert "latency_ms_mean" not in found
        await node.ask("PUT", "/v1/streams/empty", {})
        empty = await stats(node, "empty")
        assert (empty["messages_in"], empty["messages_out"]) == (0, 0)
        assert not {"error_rate", "last_packet_at", "latency_ms_mean"} & empty.keys()
        assert (await node.ask("GET", "/v1/streams/none/stats")).status == 404


async def test_the_node_s_figures_add_the_streams_up(tmp_path: Path) -> None:
    """Sums are of all streams, whatever page of them is shown."""
    async with open_metered(tmp_path) as node:
        await use(node)
        for name in ("b", "c"):
            assert (await node.publish(name, 2, who=LOOPBACK)).status == 201
        first = (await node.ask("GET", "/v1/stats?limit=2")).json
        assert [one["stream"] for one in first["streams"]] == ["a", "b"]
        assert (first["messages_in"], first["refused"], first["stream_count"]) == (
            8,
            1,
            4,
        )  # one is the audit of the definition
        assert first["sessions"] == {"websocket": 0, "sse": 0, "ndjson": 0, "lag_entries_max": 0}
        assert first["subscriptions"]["active"] == 0
        assert not first["storage"]["full"]
        rest = (await node.ask("GET", f"/v1/stats?limit=2&after={first['next_after']}")).json
        assert [one["stream"] for one in rest["streams"]] == ["c", "overlayd.audit"]
        assert "next_after" not in rest
        node.clock.us += 1_000_000
        await node.publish("b", 1, who=LOOPBACK)
        recent = (await node.ask("GET", "/v1/stats?limit=1&order=recent")).json
        assert [one["stream"] for one in recent["streams"]] == ["b"]
        assert (await node.ask("GET", "/v1/stats?order=recent&after=a")).status == 400
        assert (await node.ask("GET", "/v1/stats?order=size")).status == 400


async def test_who_may_see_statistics(tmp_path: Path) -> None:
    """A stream's: who may read it. The node's: who may manage it."""
    async with open_metered(tmp_path) as node:
        await use(node)
        reader = holder("key:anna")
        assert (await node.ask("GET", "/v1/streams/a/stats", who=reader)).status == 200
        assert (await node.ask("GET", "/v1/stats", who=reader)).status == 403
        assert (await node.ask("GET", "/v1/stats", who=ADMIN)).status == 200


async def test_figures_stay_over_restarts(tmp_path: Path) -> None:
    """What was stored, and packets in even when nothing was stored after them."""
    async with open_metered(tmp_path) as node:
        await node.parts.statistics.load()
        await use(node)
        await node.parts.statistics.flush()
        await node.ask("POST", "/v1/streams/a/packets", {"data": {"t": 4}})
        await node.publish("late", 2, who=LOOPBACK)
    async with open_metered(tmp_path) as node:
        await node.parts.statistics.load()
        found = await stats(node, "a")
        assert (found["messages_in"], found["messages_out"], found["refused"]) == (4, 5, 1)
        assert (await stats(node, "late"))["messages_in"] == 2


async def test_a_stream_with_a_deleted_one_s_name_begins_anew(tmp_path: Path) -> None:
    """And the deleted one's row goes."""
    async with open_metered(tmp_path) as node:
        await node.parts.statistics.load()
        await use(node)
        await node.parts.statistics.flush()
        assert (await node.ask("DELETE", "/v1/streams/a?confirm=a")).status == 200
        await node.publish("a", 1, who=LOOPBACK)
        found = await stats(node, "a")
        assert (found["messages_in"], found["messages_out"], found["refused"]) == (1, 0, 0)
        await node.ask("GET", "/v1/read?stream=a")
        await node.parts.statistics.flush()
        await node.ask("GET", "/v1/read?stream=a")
        await node.parts.statistics.flush()
        rows = await node.parts.log.read(
            lambda connection: connection.execute("SELECT received, sent FROM stream_statistics").fetchall()
        )
        assert [tuple(row) for row in rows] == [(1, 1)]


async def test_what_cannot_be_stored_now_is_stored_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk loses no figure, and is counted."""
    async with open_metered(tmp_path) as node:
        statistics = node.parts.statistics
        await use(node)

        async def refuse(job: object) -> None:
            raise StorageFull("no room", subject="disk")

        with monkeypatch.context() as patched:
            patched.setattr(node.parts.log, "write", refuse)
            await statistics.flush()
        registry = node.parts.metrics.registry
        assert registry.get_sample_value("overlayd_statistics_flush_failures_total") == 1
        await statistics.flush()
    async with open_metered(tmp_path) as node:
        await node.parts.statistics.load()
        assert (await stats(node, "a"))["messages_out"] == 5
