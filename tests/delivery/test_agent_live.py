"""Agents over the live WebSocket: they are told who a packet is from; everybody else's frames stay shared as they were."""

import trio
from socket_harness import Node as Sockets
from subscription_rig import MemoryLog, running
from trio.testing import MockClock


def encoded(sockets: Sockets, format: str) -> float | None:
    """Frames written so far in a format."""
    return sockets.delivery.metrics.registry.get_sample_value("overlayd_frames_encoded_total", {"format": format})


async def test_an_attached_agent_is_told_who_packets_are_from(autojump_clock: MockClock) -> None:
    """Live and from before, signed and not; a named session that is no agent gets the frames of everybody."""
    log = MemoryLog()
    async with running(log) as node:
        await node.add("brain", "agent", attach="live", from_="beginning")
        await node.add("plain", "live", from_="beginning")
        sockets = Sockets(log, attach_named=node.parts.live.attach)
        log.add("a", 1, principal="key:one", signature=b'"c2ln"', derived_from=(1,))
        async with sockets.connect() as agent, sockets.connect() as other:
            for client, name in ((agent, "brain"), (other, "plain")):
                await client.expect("welcome")
                await client.send(type="subscribe", id="s", name=name)
                await client.expect("subscribed")
            first = await agent.expect("packet")
            assert first["packet"]["producer"] == {"principal": "key:one", "signature": "verified"}
            assert first["packet"]["made_from"] == [1]
            assert "producer" not in (await other.expect("packet"))["packet"]
            log.add("a", 2, principal="key:two")
            second = await agent.expect("packet")
            assert second["packet"]["producer"] == {"principal": "key:two", "signature": "none"}
            plain = await other.expect("packet")
            assert plain["packet"] == {name: v for name, v in second["packet"].items() if name != "producer"}
            assert [session.body(0).subscriptions[0].query.format for session in sockets.registry.sessions()] == [
                "agent", "packet"
            ]  # fmt: skip


async def test_each_packet_is_written_once_for_readers_and_once_for_agents(autojump_clock: MockClock) -> None:
    """However many of both there are."""
    log = MemoryLog()
    async with running(log) as node, trio.open_nursery() as nursery:
        sockets = Sockets(log, attach_named=node.parts.live.attach)
        done = []

        async def read(name: str) -> None:
            async with sockets.connect("" if name else "stream=a") as client:
                await client.expect("welcome")
                if name:
                    await client.send(type="subscribe", id="s", name=name)
                await client.expect("subscribed")
                messages = await client.receive_until("packet", 5)
                done.append([message["packet"]["data_payload"] for message in messages if message["type"] == "packet"])

        for number in range(3):
            await node.add(f"agent{number}", "agent", attach="live")
            nursery.start_soon(read, f"agent{number}")
            nursery.start_soon(read, "")
        await trio.sleep(1)
        for number in range(5):
            log.add("a", number)
            await trio.sleep(0.1)
        await trio.sleep(1)
        assert done == [[0, 1, 2, 3, 4]] * 6
        assert (encoded(sockets, "packet"), encoded(sockets, "agent")) == (5, 5)


async def test_events_do_not_say_who_a_packet_is_from(autojump_clock: MockClock) -> None:
    """An agent that asks for CloudEvents is refused, and whoever is attached stays."""
    log = MemoryLog()
    async with running(log) as node:
        brain = await node.add("brain", "agent", attach="live")
        sockets = Sockets(log, attach_named=node.parts.live.attach)
        async with sockets.connect() as first, sockets.connect(subprotocols=("cloudevents.json",)) as second:
            await first.expect("welcome")
            await first.send(type="subscribe", id="s", name="brain")
            await first.expect("subscribed")
            await second.receive()
            await second.send(type="subscribe", id="s", name="brain")
            error = await second.receive()
            assert error["type"] == "overlayd.error"
            assert error["data"]["code"] == "subscription.conflict"
            assert "overlayd.v1" in error["data"]["detail"]
            assert node.parts.live.is_attached(brain)
            log.add("a", 1)
            await first.expect("packet")
