"""Live reading against a scripted node: resume, backoff, close codes, verification."""

import random
from typing import Any

import pytest
import trio
from fake_node import DROP, WELCOME, FakeNode, fake_node, message, packet_message, problem
from trio_websocket import WebSocketConnection

from overlayd.client import Client, Live, RetryPolicy
from overlayd.model.errors import (
    BadParameter,
    CursorExpired,
    Forbidden,
    LimitReached,
    NodeUnreachable,
    SessionClosed,
    Unauthorized,
    UnexpectedAnswer,
    UnknownEpoch,
    VerificationFailed,
)
from overlayd.model.wire import GapMessage, PacketMessage

QUICK = RetryPolicy(attempts=1 << 40, first_s=0.001, max_s=0.002)


class Script:
    """What the fake node sends on each connection, one after the other; the last one stays open."""

    def __init__(self, *connections: list[str | int]) -> None:
        self.connections = list(connections)
        self.params: list[dict[str, str]] = []

    async def __call__(self, socket: WebSocketConnection, params: dict[str, str]) -> None:
        self.params.append(params)
        for item in self.connections.pop(0):
            if isinstance(item, int):
                await socket.aclose(item, f"code {item}")
                return
            await socket.send_message(item)
        if self.connections:
            return  # without a closing handshake
        await socket.get_message()


def live_on(client: Client, *patterns: str, **options: Any) -> Live:
    """A live reading that hardly waits between connections."""
    return client.live(patterns, retry=options.pop("retry", QUICK), **options)


def script_of(node: FakeNode, *connections: list[str | int]) -> Script:
    """Sets the node's script."""
    node.live = script = Script(*connections)
    return script


async def take(live: Live, count: int) -> list[int]:
    """The sequences of the next packets."""
    return [message.packet.packet_sequence async for message, _ in _zip(live, count)]


async def _zip(live: Live, count: int) -> Any:
    for number in range(count):
        message = await live.receive()
        assert isinstance(message, PacketMessage)
        yield message, number


async def test_the_query_travels_as_the_api_has_it() -> None:
    """Patterns, filters and the start become query parameters; the first message is a packet."""
    async with fake_node() as node, Client(node.url) as client:
        script = script_of(node, [WELCOME, packet_message("s", 1)])
        live = live_on(client, "s.*", start="beginning", types=["x"], filter="data.t > 3.0", status=True)
        assert await take(live, 1) == [1]
    assert script.params == [
        {"stream": "s.*", "from": "beginning", "type": "x", "filter": "data.t > 3.0", "status": "true",
         "heartbeat": "15s"}
    ]  # fmt: skip
    assert node.requests[0].headers["sec-websocket-protocol"] == "overlayd.v1"


async def test_a_broken_connection_is_resumed_behind_the_last_packet() -> None:
    """After a connection without a goodbye the cursor takes the place of the start."""
    pauses: list[str] = []
    async with fake_node() as node, Client(node.url) as client:
        script = script_of(
            node, [WELCOME, packet_message("s", 1), packet_message("s", 2)], [WELCOME, packet_message("s", 3)]
        )
        live = live_on(client, start="beginning", on_pause=lambda seconds, reason: pauses.append(reason))
        assert await take(live, 3) == [1, 2, 3]
        assert live.cursor == "e1aaaaaaaa-4"
    assert script.params[1]["after"] == "e1aaaaaaaa-3"
    assert "from" not in script.params[1]
    assert len(pauses) == 1


async def test_heartbeats_move_the_resume_point() -> None:
    """Entries that didn't match aren't scanned again after a reconnection."""
    beat = message("heartbeat", timestamp="t", head=90, cursor="e1aaaaaaaa-90")
    async with fake_node() as node, Client(node.url) as client:
        script = script_of(node, [WELCOME, beat, 1001], [WELCOME, packet_message("s", 100)])
        assert await take(live_on(client), 1) == [100]
    assert script.params[1]["after"] == "e1aaaaaaaa-90"


async def test_now_stays_the_moment_of_the_first_connection() -> None:
    """What was appended while the client was away isn't skipped, even if nothing had come before."""
    async with fake_node() as node, Client(node.url) as client:
        script = script_of(node, [WELCOME, 1001], [WELCOME, packet_message("s", 8)])
        assert await take(live_on(client), 1) == [8]
    assert script.params[1]["after"] == "e1aaaaaaaa-7"


async def test_gaps_are_handed_out_and_move_the_cursor() -> None:
    """A gap is a message like a packet."""
    gap = message("gap", **{"from": "e1aaaaaaaa-1", "to": "e1aaaaaaaa-5", "reason": "retention"})
    async with fake_node() as node, Client(node.url) as client:
        script_of(node, [WELCOME, gap])
        live = live_on(client, after="e1aaaaaaaa-0")
        received = await live.receive()
        assert isinstance(received, GapMessage)
        assert live.cursor == "e1aaaaaaaa-5"


@pytest.mark.parametrize("code", [1001, 1011, 4008, 4029, 4500])
async def test_close_codes_that_mean_come_back(code: int) -> None:
    """The reading goes on by itself."""
    async with fake_node() as node, Client(node.url) as client:
        script_of(node, [WELCOME, packet_message("s", 1), code], [WELCOME, packet_message("s", 2)])
        assert await take(live_on(client), 2) == [1, 2]


@pytest.mark.parametrize(
    ("code", "error"),
    [(1000, SessionClosed), (1008, SessionClosed), (1009, SessionClosed), (4001, Unauthorized), (4003, Forbidden),
     (4009, SessionClosed), (4010, CursorExpired)],
)  # fmt: skip
async def test_close_codes_that_mean_stay_away(code: int, error: type[Exception]) -> None:
    """The matching error is raised and nothing is tried again."""
    async with fake_node() as node, Client(node.url) as client:
        script = script_of(node, [WELCOME, packet_message("s", 1), code])
        live = live_on(client)
        await take(live, 1)
        with pytest.raises(error, match=f"code {code}"):
            await live.receive()
        assert live.cursor == "e1aaaaaaaa-2"
    assert len(script.params) == 1


async def test_bye_says_how_long_to_stay_away() -> None:
    """`retry_after` is waited on top of the backoff."""
    pauses: list[float] = []
    async with fake_node() as node, Client(node.url) as client:
        bye = message("bye", reason="restarting", retry_after=0.01)
        script_of(node, [WELCOME, bye, 1001], [WELCOME, packet_message("s", 1)])
        live = live_on(
            client,
            on_pause=lambda seconds, reason: pauses.append(seconds),
            retry=RetryPolicy(attempts=1 << 40, first_s=0.001, max_s=0.02),
        )
        await take(live, 1)
    assert 0.01 < pauses[0] < 0.012


async def test_a_first_connection_that_fails_is_told() -> None:
    """A wrong address isn't retried for ever."""
    async with fake_node() as node:
        url = node.url
    async with Client(url) as client:
        with pytest.raises(NodeUnreachable, match="no connection"):
            await live_on(client).receive()


async def test_a_refused_query_is_told_with_the_nodes_own_words() -> None:
    """The handshake's problem body becomes the error."""
    async with fake_node() as node, Client(node.url) as client:
        node.handler = lambda request: problem("parameter.invalid", 400, detail="filter: no such variable")
        with pytest.raises(BadParameter, match="no such variable"):
            await live_on(client, filter="x").receive()


async def test_a_node_that_is_full_is_waited_for_once_it_was_reached() -> None:
    """429 on a reconnection is a pause; on the first connection it is an error."""
    async with fake_node() as node, Client(node.url) as client:
        node.handler = lambda request: problem("limit.reached", 429, retryable=True)
        with pytest.raises(LimitReached):
            await live_on(client).receive()
        refused: list[str] = []

        def count(seconds: float, reason: str) -> None:
            refused.append(reason)
            if len(refused) == 3:
                script_of(node, [WELCOME, packet_message("s", 2)])

        live = live_on(client, on_pause=count)
        script_of(node, [WELCOME, packet_message("s", 1), 1001])
        await take(live, 1)
        node.live = None
        assert await take(live, 1) == [2]
    assert refused[1:] == ["about limit.reached"] * 2


async def test_a_cursor_of_another_log_ends_the_reading() -> None:
    """410 on resume isn't worth a repeat."""
    async with fake_node() as node, Client(node.url) as client:
        script_of(node, [WELCOME, packet_message("s", 1), 1001])
        live = live_on(client)
        await take(live, 1)
        node.live = None
        node.handler = lambda request: problem("cursor.epoch", 410)
        with pytest.raises(UnknownEpoch):
            await live.receive()


async def test_an_error_message_is_raised_unless_it_may_pass() -> None:
    """A retryable one is followed by a reconnection when the node closes."""
    passing = message("error", code="intake.busy", detail="later", retryable=True)
    final = message("error", code="stream.unknown", detail="gone")
    async with fake_node() as node, Client(node.url) as client:
        script_of(node, [WELCOME, passing, 4500], [WELCOME, packet_message("s", 1), final])
        live = live_on(client)
        await take(live, 1)
        with pytest.raises(Exception, match="gone"):
            await live.receive()


async def test_a_node_that_hangs_up_in_the_handshake_is_unreachable() -> None:
    """Nothing waits for an answer that can't come."""
    async with fake_node() as node, Client(node.url) as client:
        node.handler = lambda request: DROP
        with pytest.raises(NodeUnreachable, match="hung up"):
            await live_on(client).receive()


async def test_an_unreadable_message_is_named() -> None:
    """A frame that isn't one of the protocol's raises instead of being skipped."""
    async with fake_node() as node, Client(node.url) as client:
        script_of(node, [WELCOME, '{"type":"packet"}'])
        with pytest.raises(UnexpectedAnswer, match="can't be read"):
            await live_on(client).receive()


async def test_verification_catches_a_forged_payload() -> None:
    """Content hashes are recomputed as packets arrive."""
    forged = packet_message("s", 1).replace('"t":21', '"t":22')
    async with fake_node() as node, Client(node.url, verify=True) as client:
        script_of(node, [WELCOME, forged])
        with pytest.raises(VerificationFailed):
            await live_on(client).receive()


async def test_cancelling_receive_loses_nothing() -> None:
    """A message that arrives after a cancelled wait is handed to the next one."""
    async with fake_node() as node, Client(node.url) as client:
        go = trio.Event()

        async def send_late(socket: WebSocketConnection, params: dict[str, str]) -> None:
            await socket.send_message(WELCOME)
            await go.wait()
            await socket.send_message(packet_message("s", 1))
            await go.wait()
            await trio.sleep_forever()

        node.live = send_late
        async with live_on(client) as live:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(live.receive)
                    await trio.testing.wait_all_tasks_blocked(0.01)
                    scope.cancel()
            go.set()
            assert await take(live, 1) == [1]
        with pytest.raises(trio.ClosedResourceError):
            await live.receive()


async def test_pings_are_answered_while_a_message_is_waited_for() -> None:
    """The node's ping comes back, and the reading goes on."""
    async with fake_node() as node, Client(node.url) as client:
        ponged = trio.Event()

        async def ping(socket: WebSocketConnection, params: dict[str, str]) -> None:
            await socket.send_message(WELCOME)
            await socket.ping(b"are you there")
            ponged.set()
            await socket.send_message(packet_message("s", 1))
            await trio.sleep_forever()

        node.live = ping
        assert await take(live_on(client), 1) == [1]
        assert ponged.is_set()


async def test_entering_a_live_reading_waits_for_the_welcome() -> None:
    """What is published after that can't be missed."""
    async with fake_node() as node, Client(node.url) as client:
        script_of(node, [WELCOME])
        async with live_on(client) as live:
            assert live.welcome is not None
            assert live.welcome.session == "s-1"


async def test_silence_counts_as_a_lost_connection(patient_clock: trio.testing.MockClock) -> None:
    """A node that sends no heartbeat for three times its interval is left."""
    async with fake_node() as node, Client(node.url, chance=random.Random(1)) as client:
        script = script_of(node, [WELCOME], [WELCOME, packet_message("s", 1)])

        async def silent(socket: WebSocketConnection, params: dict[str, str]) -> None:
            node.live = script
            script.connections.pop(0)
            await socket.send_message(WELCOME)
            await trio.sleep_forever()

        node.live = silent
        started = trio.current_time()
        assert await take(live_on(client), 1) == [1]
        assert trio.current_time() - started >= 45
