"""Rates of live connections and of their messages, on a real node."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import trio
from live_sockets import open_socket
from node_process import Node
from real_waiting import PATIENCE_S
from trio_websocket import ConnectionClosed

HANDSHAKE = {
    "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}  # fmt: skip


EVENTS = {"Accept": "text/event-stream"}


def left_of(headers: dict[str, str]) -> int:
    """How many more live connections an answer says may be opened."""
    assert headers["ratelimit-policy"] == '"connect_per_address";q=3;w=3600'
    return int(headers["ratelimit"].partition("r=")[2].partition(";")[0])


@pytest.fixture
def strict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    """A node that counts local clients, too."""
    for name, value in (
        ("LOCAL", "true"), ("CONNECT_PER_ADDRESS", "3/h"), ("CONTROL_PER_PRINCIPAL", "3/h"),
        ("PUBLISH_PER_STREAM", "1/h"),
    ):  # fmt: skip
        monkeypatch.setitem(os.environ, f"OVERLAYD_RATES__{name}", value)
    node = Node(tmp_path / "data")
    try:
        yield node.wait_ready()
    finally:
        assert node.stop() == 0, "".join(node.output[-40:])


async def test_live_connections_and_messages_are_held_to_rates(strict: Node) -> None:
    """The fourth message is answered with an error, then the session ends with 4029; the fourth connection is a 429.
    Each is told what is left."""
    url = f"{strict.url}/v1/live"
    with trio.fail_after(PATIENCE_S):
        async with httpx.AsyncClient() as client, client.stream("GET", url, headers=EVENTS) as streaming:
            assert left_of(dict(streaming.headers)) == 2
        async with open_socket(url, {}) as socket:
            told_of = {name.decode(): value.decode() for name, value in socket.handshake_headers}
            assert left_of(told_of) == 1
            assert json.loads(await socket.get_message())["type"] == "welcome"
            for _ in range(4):
                await socket.send_message('{"type":"ping"}')
            told = []
            for _ in range(5):
                told.append(json.loads(await socket.get_message()))
            with pytest.raises(ConnectionClosed) as caught:
                await socket.get_message()
            assert [message["type"] for message in told] == ["heartbeat"] * 3 + ["error", "bye"]
            assert told[3]["code"] == "limit.reached"
            assert caught.value.reason is not None
            assert caught.value.reason.code == 4029
        async with open_socket(url, {}) as socket:
            await socket.get_message()
            for ref, outcome in ((1, "receipt"), (2, "error")):
                packet = {"type": "publish", "stream": "r", "packets": [{"data": 1}], "ref": ref}
                await socket.send_message(json.dumps(packet))
                answer = json.loads(await socket.get_message())
                assert (answer["type"], answer["ref"]) == (outcome, ref)
        async with httpx.AsyncClient() as client:
            for headers in (EVENTS, HANDSHAKE):
                refused = await client.get(f"{strict.url}/v1/live", headers=headers)
                assert refused.status_code == 429
                assert refused.headers["ratelimit-policy"] == '"connect_per_address";q=3;w=3600'
                assert int(refused.headers["retry-after"]) > 1000
