"""What a WebSocket client can't do to the node: floods, silence, broken frames, too much of anything."""

from typing import Any

import pytest
import trio
from delivery_fakes import FakeLog
from push_pair import push_pair
from socket_harness import ANYBODY, Node
from trio.testing import MockClock, wait_all_tasks_blocked

from overlayd.access import Principal
from overlayd.model.limits import Limits
from overlayd.model.units import Duration, Size


def hits(node: Node, limit: str) -> Any:
    """How often a limit was hit."""
    return node.delivery.metrics.registry.get_sample_value("overlayd_limit_hits_total", {"limit": limit})


def handshake(query: str = "") -> bytes:
    """A client's handshake."""
    target = f"/v1/live?{query}" if query else "/v1/live"
    return (
        f"GET {target} HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
        "sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ).encode()


async def raw_exchange(node: Node, data: bytes) -> bytes:
    """Sends bytes, then end of file; what came back until the node closed."""
    theirs, ours = push_pair()
    answer = b""
    async with node.run(), trio.open_nursery() as nursery:

        async def serve() -> None:
            await node.serve(ours)
            await ours.aclose()

        nursery.start_soon(serve)
        await theirs.send_all(data)
        await theirs.send_eof()
        while True:
            more = await theirs.receive_some(65536)
            if not more:
                return answer
            answer += more


async def test_binary_frames_are_a_protocol_error(autojump_clock: MockClock) -> None:
    """A binary frame, even an empty one, ends the session with 1002."""
    for payload in (b"", b'{"type":"ping"}'):
        node = Node()
        async with node.connect() as client:
            await client.expect("welcome")
            await client.socket.send_message(payload)
            assert await client.close_code() == 1002


async def test_too_big_a_message(autojump_clock: MockClock) -> None:
    """A message over its limit ends the session with 1009, and the limit's counter tells."""
    node = Node(limits=Limits(message_bytes=Size(1000)))
    async with node.connect() as client:
        await client.expect("welcome")
        await client.socket.send_message("x" * 1001)
        assert await client.close_code() == 1009
    assert hits(node, "message_bytes") == 1


async def test_subscriptions_per_session(autojump_clock: MockClock) -> None:
    """A subscription over the limit is refused by name, the others go on."""
    node = Node(limits=Limits(subscriptions_per_session=2))
    async with node.connect() as client:
        await client.expect("welcome")
        for name in ("a", "b", "c"):
            await client.send(type="subscribe", id=name)
        messages = await client.receive_until("error")
        assert messages[-1]["code"] == "limit.reached"
        assert messages[-1]["sub"] == "c"
        await client.send(type="subscribe", id="a")
        error = await client.expect("error")
        assert "already" in error["detail"]
        # Subscription a goes on, so the error mustn't look as if it had ended.
        assert "sub" not in error
    assert hits(node, "subscriptions_per_session") == 1


async def test_session_caps(autojump_clock: MockClock) -> None:
    """Sessions over a cap are refused: before the handshake by a status, per stream by an error and 4029."""
    node = Node(limits=Limits(sessions_per_address=2, sessions_per_stream=1))
    async with node.connect("stream=a") as first:
        await first.receive_until("subscribed")
        async with node.connect("stream=a") as second:
            assert (await second.expect("error"))["code"] == "limit.reached"
            assert await second.close_code() == 4029
        other = Principal(name="o", kind="open", rights=ANYBODY.rights, address="10.0.0.2")
        async with node.connect() as third, node.connect(principal=other) as fourth:
            await third.expect("welcome")
            await fourth.expect("welcome")
            answer = await raw_exchange(node, handshake())
            assert answer.startswith(b"HTTP/1.1 429 ")
            assert b'"code":"limit.reached"' in answer
    assert hits(node, "sessions_per_address") == 1
    assert hits(node, "sessions_per_stream") == 1
    assert len(node.registry) == 0


async def test_vanished_peer(autojump_clock: MockClock) -> None:
    """A peer that answers no ping and takes nothing is given up after the deadline, with 4008."""
    node = Node(limits=Limits(pong_timeout=Duration(20)))
    theirs, ours = push_pair()
    async with node.run(), trio.open_nursery() as nursery:
        nursery.start_soon(node.serve, ours)
        await theirs.send_all(handshake())
        started = trio.current_time()
        await wait_all_tasks_blocked()
        assert len(node.registry) == 1
        while len(node.registry):  # noqa: ASYNC110 - the clock is a mock
            await trio.sleep(1)
        assert 49 < trio.current_time() - started < 60
        nursery.cancel_scope.cancel()
    slow = node.delivery.metrics.registry.get_sample_value(
        "overlayd_slow_sessions_closed_total", {"transport": "websocket"}
    )
    assert slow == 1


async def test_a_quiet_socket_is_left_open(autojump_clock: MockClock) -> None:
    """A client that sends nothing for a day, but answers pings, is never closed for being idle."""
    node = Node()
    async with node.connect() as client:
        await client.expect("welcome")
        await trio.sleep(86_400)
        await client.send(type="ping")
        await client.expect("heartbeat")
    assert not hits(node, "pong_timeout")


async def test_stalled_reader_holds_one_page(autojump_clock: MockClock) -> None:
    """A peer that stops reading costs the page being written, and is cut when no byte moves for stall_timeout."""
    node = Node(FakeLog(page_entries=10), limits=Limits(stall_timeout=Duration(5)))
    for number in range(1000):
        node.log.add("a", number)
    theirs, ours = push_pair(room=1000)
    async with node.run(), trio.open_nursery() as nursery:
        nursery.start_soon(node.serve, ours)
        await theirs.send_all(handshake("stream=a&from=beginning"))
        for _ in range(3):
            await theirs.receive_some(65536)
        await wait_all_tasks_blocked()
        (body,) = node.registry.bodies(node.log.head)
        assert body.messages_sent <= 10
        assert node.log.pages_read <= 3
        while len(node.registry):  # noqa: ASYNC110 - the clock is a mock
            await trio.sleep(1)
        nursery.cancel_scope.cancel()


async def test_flood_of_unread_input(autojump_clock: MockClock) -> None:
    """A client that sends and never reads answers is closed with 1008 when its input piles up."""
    node = Node(limits=Limits(unread_messages=4, admit_timeout=Duration(1), stall_timeout=Duration(60)))
    never = trio.Event()
    node.publish_gate = never.wait
    async with node.connect() as client:
        await client.expect("welcome")
        for _ in range(50):
            await client.send(type="publish", ref=1, stream="s", packets=[{"data": 1}])
        assert await client.close_code() == 1008
        never.set()
    assert hits(node, "unread_messages") == 1


async def test_flood_of_unread_bytes(autojump_clock: MockClock) -> None:
    """A client whose messages are few, but too much together, is closed with 1008 when nothing is dealt with for
    admit_timeout."""
    limits = Limits(unread_bytes=Size(3000), message_bytes=Size(1500), admit_timeout=Duration(1))
    node, never = Node(limits=limits), trio.Event()
    node.publish_gate = never.wait
    async with node.connect() as client:
        await client.expect("welcome")
        for number in range(5):
            await client.send(type="publish", ref=number, stream="s", packets=[{"data": "x" * 1000}])
        assert await client.close_code() == 1008
        never.set()
    assert hits(node, "unread_bytes") == 1


async def test_input_budget_is_given_back(autojump_clock: MockClock) -> None:
    """Whatever a client sends, nothing of the node's budget for input is held once the socket is gone."""
    node = Node(limits=Limits(unread_bytes=Size(2000), message_bytes=Size(1500)))
    async with node.connect() as client:
        await client.expect("welcome")
        for number in range(20):
            await client.send(type="publish", ref=number, stream="s", packets=[{"data": "x" * 1000}])
            await client.send(type="nonsense", pad="y" * 300)
        messages = await client.receive_until("receipt", 20)
        assert len(messages) >= 20
    assert "InputBudget(0 of" in repr(node.budget)


async def test_equal_sockets_share_frames(autojump_clock: MockClock) -> None:
    """A packet is encoded once for all sockets with equal subscriptions."""
    node = Node()
    async with trio.open_nursery() as nursery:
        done = 0

        async def one() -> None:
            nonlocal done
            async with node.connect("stream=a") as client:
                await client.receive_until("packet", 5)
                done += 1

        for _ in range(20):
            nursery.start_soon(one)
        await wait_all_tasks_blocked()
        for number in range(5):
            node.log.add("a", number)
    assert done == 20
    encoded = node.delivery.metrics.registry.get_sample_value("overlayd_frames_encoded_total", {"format": "packet"})
    assert encoded == 5


async def test_bad_utf8_is_answered_by_1007(autojump_clock: MockClock) -> None:
    """A text frame that isn't UTF-8 is closed with the code that says so."""
    node = Node()
    theirs, ours = push_pair()
    async with node.run(), trio.open_nursery() as nursery:
        nursery.start_soon(node.serve, ours)
        await theirs.send_all(handshake())
        await wait_all_tasks_blocked()
        await theirs.receive_some(65536)
        await theirs.send_all(bytes((0x81, 0x82, 0, 0, 0, 0, 0xC3, 0x28)))
        answer = await theirs.receive_some(65536)
        assert answer[0] == 0x88
        assert int.from_bytes(answer[2:4], "big") == 1007
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "trailing",
    [b"x", b"\x81\x00", b"\x00" * 100, b"GET / HTTP/1.1\r\n\r\n", bytes((0x88, 0x80, 0, 0, 0, 0))],
)
async def test_bytes_before_the_answer(autojump_clock: MockClock, trailing: bytes) -> None:
    """Bytes behind the handshake, before it was answered, crash nothing and leave nothing behind."""
    node = Node()
    await raw_exchange(node, handshake() + trailing)
    assert len(node.registry) == 0


@pytest.mark.parametrize(
    "head",
    [
        b"sec-websocket-version: 12\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        b"sec-websocket-version: 13\r\n",
        b"sec-websocket-version: 13\r\nsec-websocket-key: short\r\n",
        b"sec-websocket-version: 13\r\n" + 2 * b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
    ],
)
async def test_bad_handshakes_are_problems(autojump_clock: MockClock, head: bytes) -> None:
    """A handshake that can't be accepted is answered by a problem body."""
    node = Node()
    request = (
        b"GET /v1/live HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n" + head + b"\r\n"
    )
    answer = await raw_exchange(node, request)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'"code":"request.malformed"' in answer
