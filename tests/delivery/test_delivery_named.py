"""Durable subscriptions over a WebSocket: attached through the hook, acknowledged, replaced."""

from typing import Any

import trio
from delivery_fakes import query_of
from socket_harness import Node
from trio.testing import MockClock

from overlayd.access import Principal
from overlayd.delivery.query import LiveQuery
from overlayd.delivery.session import Ending, Session
from overlayd.model.cursor import Cursor
from overlayd.model.errors import NotFound

REPLACED = 4009


class Durable:
    """Stands in for durable subscriptions: one of them, called `mine`."""

    def __init__(self) -> None:
        self.acknowledged: list[str] = []
        self.floor = ""
        self.holder: Session | None = None
        self.detached = 0

    async def attach(self, name: str, principal: Principal, session: Session, forced: str | None = None) -> "Durable":
        """What a node's own would do."""
        await trio.lowlevel.checkpoint()
        if name != "mine":
            raise NotFound(f"there is no subscription {name}", subject=name)
        if self.holder is not None:
            self.holder.end(Ending(REPLACED, "replaced"))
        self.holder = session
        return self

    @property
    def query(self) -> LiveQuery:
        start: dict[str, Any] = {"after": self.floor} if self.floor else {"from": "beginning"}
        return query_of(stream="a", **start)

    async def ack(self, cursor: Cursor, reply: bytes = b"") -> None:
        await trio.lowlevel.checkpoint()
        self.floor = str(cursor)
        self.acknowledged.append(self.floor)

    def detach(self) -> None:
        self.detached += 1


async def test_attach_acknowledge_replace(autojump_clock: MockClock) -> None:
    """A client reads from the floor, moves it, and is closed with 4009 by its successor, who goes on behind it."""
    durable = Durable()
    node = Node(attach_named=durable.attach)
    for number in range(4):
        node.log.add("a", number)
    async with node.connect() as first, node.connect() as second:
        await first.expect("welcome")
        await first.send(type="subscribe", id="s", name="mine")
        messages = await first.receive_until("packet", 4)
        assert {message["sub"] for message in messages if message["type"] == "packet"} == {"s"}
        await first.send(type="ack", id="s", cursor=messages[2]["cursor"])
        await first.send(type="ping")
        await first.expect("heartbeat")
        assert durable.acknowledged == [messages[2]["cursor"]]
        await second.expect("welcome")
        await second.send(type="subscribe", id="t", name="mine")
        assert (await first.expect("bye"))["reason"] == "replaced"
        assert await first.close_code() == REPLACED
        messages = await second.receive_until("packet", 2)
        assert [m["packet"]["data_payload"] for m in messages if m["type"] == "packet"] == [2, 3]
        assert durable.detached == 1
        await second.send(type="unsubscribe", id="t")
        await second.send(type="ping")
        await second.expect("heartbeat")
        assert durable.detached == 2


async def test_what_attaching_refuses(autojump_clock: MockClock) -> None:
    """An unknown name, a query beside a name, and a cursor that is none are told; the socket goes on."""
    durable = Durable()
    node = Node(attach_named=durable.attach)
    async with node.connect() as client:
        await client.expect("welcome")
        for message, code, words in (
            ({"type": "subscribe", "id": "s", "name": "other"}, "route.unknown", "no subscription"),
            ({"type": "subscribe", "id": "s", "name": "mine", "streams": ["b"]}, "parameter.invalid", "streams"),
            ({"type": "subscribe", "id": "s", "name": 7}, "parameter.invalid", "name"),
        ):
            await client.send(**message)
            error = await client.expect("error")
            assert (error["code"], error["sub"]) == (code, "s")
            assert words in error["detail"]
        await client.send(type="subscribe", id="s", name="mine")
        await client.expect("subscribed")
        for cursor in ("x", 7, None):
            await client.send(type="ack", id="s", cursor=cursor)
            assert (await client.expect("error"))["code"] in ("cursor.malformed", "parameter.invalid")
    assert durable.detached == 1
    assert not durable.acknowledged
