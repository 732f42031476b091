"""The live protocol over WebSocket, spoken by a real client."""

import pytest
import trio
from delivery_fakes import FakeLog
from socket_harness import Node
from trio.testing import wait_all_tasks_blocked


async def test_url_subscription_from_beginning_then_live(autojump_clock: trio.testing.MockClock) -> None:
    """A socket whose URL holds a query gets welcome, subscribed, the past and then what is appended."""
    node = Node(FakeLog(page_entries=7))
    for number in range(50):
        node.log.add("weather.a", {"n": number})
    async with node.connect("stream=weather.*&from=beginning") as client:
        welcome = await client.expect("welcome")
        assert (welcome["node"], welcome["head"]) == ("test-node", 50)
        subscribed = await client.expect("subscribed")
        assert subscribed == {"type": "subscribed", "cursor": node.log.cursor(0), "never": []}
        for number in range(50):
            message = await client.expect("packet")
            assert message["packet"]["data_payload"] == {"n": number}
            assert message["cursor"] == node.log.cursor(number + 1)
            assert "sub" not in message
        node.log.add("weather.b", "live")
        assert (await client.expect("packet"))["stream_id"] == "weather.b"
