"""Live sessions and their use: counted without the hot path, held to quotas, told when they are over."""

from pathlib import Path
from typing import Any

import pytest
from metering_rig import MeteredNode, holder, open_metered

from overlayd.delivery.query import LiveQuery
from overlayd.delivery.session import CLOSE_LIMIT, CLOSE_STALLED, Ending, Session
from overlayd.model.cursor import Cursor
from overlayd.model.errors import QuotaExceeded


class Place:
    """A subscription's place, as the registry asks for it."""

    def __init__(self, query: LiveQuery, position: int) -> None:
        self.query = query
        self.position = position
        self.is_closed = False

    @property
    def cursor(self) -> Cursor:
        raise NotImplementedError

    def close(self) -> None:
        self.is_closed = True


def enter(node: MeteredNode, principal: str, *streams: str, position: int = 0) -> Session:
    """A session that reads these, one subscription each."""
    registry = node.parts.registry
    session = registry.enter("websocket", principal, "192.0.2.1")
    for number, stream in enumerate(streams):
        query = node.parts.delivery.parse_arguments([("stream", stream)])
        registry.add_reader(session, str(number or ""), Place(query, position))
    return session


def send(session: Session, packets: int, size: int) -> None:
    """As a transport counts what it sends."""
    session.messages_sent += packets
    session.bytes_sent += size


async def usage_of(node: MeteredNode, principal: str) -> dict[str, Any]:
    """Rows by stream."""
    rows = (await node.ask("GET", f"/v1/usage?principal={principal}&method=websocket")).json["usage"]
    return {row["stream"]: row for row in rows}


async def test_what_a_session_was_sent_is_folded_once(tmp_path: Path) -> None:
    """Every fold tells what came since the last one, the end tells the rest, and nothing is counted twice."""
    async with open_metered(tmp_path) as node:
        session = enter(node, "key:anna", "weather.*", position=node.parts.log.head)
        send(session, 3, 300)
        await node.metering.flush()
        send(session, 1, 50)
        await node.metering.flush()
        await node.metering.flush()
        send(session, 2, 200)
        node.parts.registry.leave(session)
        rows = await usage_of(node, "key:anna")
        assert (rows["weather.*"]["packets"], rows["weather.*"]["bytes"], rows["weather.*"]["ended"]) == (6, 550, 1)
        assert rows[""]["requests"] == 1
        (ended,) = (await node.ask("GET", "/v1/usage/deliveries")).json["deliveries"]
        assert (ended["packets"], ended["bytes"], ended["errors"], ended["completed_percent"]) == (6, 550, 0, 100.0)


async def test_a_session_that_fell_behind_says_how_far_it_came(tmp_path: Path) -> None:
    """Its slowest subscription against the head; ended by the node for a fault of its own counts as an error."""
    async with open_metered(tmp_path) as node:
        await node.publish("a", 39, who=holder())
        head = node.parts.log.head
        session = enter(node, "key:anna", "a", "b", position=head // 4)
        session.end(Ending(CLOSE_STALLED, "stalled"))
        node.parts.registry.leave(session)
        (ended,) = (await node.ask("GET", "/v1/usage/deliveries")).json["deliveries"]
        assert ended["completed_percent"] == pytest.approx(100 * (head // 4) / head, abs=0.01)
        assert (ended["errors"], ended["reason"], ended["stream"]) == (1, "stalled", "")


async def test_live_connections_are_held_to_the_policy(tmp_path: Path) -> None:
    """As many as it allows at a time; the place of one that ended is free again."""
    async with open_metered(tmp_path) as node:
        await node.put_policy(name="two", max_concurrent_streams=2)
        anna = holder(policy="two")
        await node.metering.connect(anna)
        sessions = [enter(node, anna.name, "a") for _ in range(2)]
        await node.metering.connect(anna)
        with pytest.raises(QuotaExceeded) as caught:
            enter(node, anna.name, "a")
        assert caught.value.extra == {"policy": "two", "active_streams": 2, "max_allowed": 2}
        assert node.hits("max_concurrent_streams") == 1
        assert (await node.ask("GET", "/v1/quotas", who=anna)).json["streams_open"] == 2
        node.parts.registry.leave(sessions[0])
        enter(node, anna.name, "a")
        enter(node, "key:bert", "a")


async def test_sessions_end_when_their_quota_is_used_up(tmp_path: Path) -> None:
    """Only those of that principal, with the time at which there is room again."""
    async with open_metered(tmp_path) as node:
        await node.put_policy(name="small", bytes_per_hour=1000, max_concurrent_streams=0)
        anna = holder(policy="small")
        await node.metering.connect(anna)
        mine, other = [enter(node, anna.name, "a") for _ in range(2)], enter(node, "key:bert", "a")
        for session in (*mine, other):
            send(session, 1, 450)
        await node.metering.flush()
        assert all(session.ending is None for session in (*mine, other))
        for session in (*mine, other):
            send(session, 1, 100)
        await node.metering.flush()
        assert other.ending is None
        for session in mine:
            assert session.ending == Ending(CLOSE_LIMIT, "quota.exceeded", 3400.0)
        with pytest.raises(QuotaExceeded):
            await node.metering.connect(anna)
