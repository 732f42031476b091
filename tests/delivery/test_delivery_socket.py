"""The live protocol over WebSocket, spoken by a real client over a stream in memory."""

import pytest
import trio
from delivery_fakes import FakeLog
from left_behind import nothing_left_of
from socket_harness import Node
from trio.testing import MockClock, wait_all_tasks_blocked

from overlayd.access import Principal
from overlayd.delivery.line import Line
from overlayd.delivery.session import Ending, Session
from overlayd.delivery.socket import SocketSession
from overlayd.model.limits import Limits


async def test_url_subscription_from_beginning_then_live(autojump_clock: MockClock) -> None:
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
        assert client.socket.subprotocol == "overlayd.v1"


async def test_payload_arrives_byte_for_byte(autojump_clock: MockClock) -> None:
    """The payload is the stored text, white space, number forms and escapes included."""
    node = Node()
    body = b'{ "a" : 1.50,\n  "b": "\\u00e9\\/", "c": [1e3] }'
    node.log.add("s", body=body)
    async with node.connect("from=beginning") as client:
        await client.receive_until("subscribed")
        text = await client.socket.get_message()
        assert isinstance(text, str)
        assert body in text.encode()


async def test_several_subscriptions_have_their_own_positions(autojump_clock: MockClock) -> None:
    """Each subscription's frames carry its id and come from its own position; a packet that matches two comes twice."""
    node = Node()
    for number in range(3):
        node.log.add("a", number)
        node.log.add("b", number)
    async with node.connect() as client:
        await client.expect("welcome")
        await client.send(type="subscribe", id="one", streams=["a"], **{"from": "beginning"})
        await client.send(type="subscribe", id="two", streams=["*"], after=node.log.cursor(4))
        messages = await client.receive_until("packet", 5)
        got = {
            name: [m["cursor"] for m in messages if m["type"] == "packet" and m["sub"] == name]
            for name in ("one", "two")
        }
        assert got == {
            "one": [node.log.cursor(n) for n in (1, 3, 5)], "two": [node.log.cursor(n) for n in (5, 6)],
        }  # fmt: skip
        assert {m["id"]: m["cursor"] for m in messages if m["type"] == "subscribed"} == {
            "one": node.log.cursor(0), "two": node.log.cursor(4)
        }  # fmt: skip
        node.log.add("a", "both")
        assert {(await client.expect("packet"))["sub"] for _ in range(2)} == {"one", "two"}
        await client.send(type="unsubscribe", id="one")
        await client.send(type="ping")
        await client.expect("heartbeat")
        node.log.add("a", "two alone")
        assert (await client.expect("packet"))["sub"] == "two"
        await client.send(type="subscribe", id="one", stream="a")
        assert (await client.expect("subscribed"))["id"] == "one"


async def test_publish_with_many_in_flight(autojump_clock: MockClock) -> None:
    """Fifty publishes wait for their commit at the same time, and each answer names its ref."""
    node = Node()
    gate = trio.Event()
    node.log.define("s")
    async with node.connect() as client:
        await client.expect("welcome")
        await client.send(type="publish", ref="first", stream="s", packets=[{"data": "first"}])
        await client.expect("receipt")
        node.publish_gate = gate.wait
        for number in range(50):
            await client.send(type="publish", ref=number, stream="s", packets=[{"data": number}])
        await wait_all_tasks_blocked()
        await client.send(type="ping", ref="still there")
        assert (await client.receive())["type"] == "heartbeat"
        gate.set()
        receipts = [await client.expect("receipt") for _ in range(50)]
        assert sorted(receipt["ref"] for receipt in receipts) == list(range(50))
        assert bytes(node.publish_log[0].packets[0]) == b'{"data":"first"}'


async def test_publish_over_the_cap_waits(autojump_clock: MockClock) -> None:
    """More publishes than may be in flight wait for their turn; none is lost and none is refused."""
    node = Node(limits=Limits(publishes_in_flight=4))
    node.log.define("s")
    running = 0
    most = 0

    async def slow() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await trio.sleep(0.1)
        running -= 1

    node.publish_gate = slow
    async with node.connect() as client:
        await client.expect("welcome")
        for number in range(20):
            await client.send(type="publish", ref=number, stream="s", packets=[{"data": number}])
        assert {(await client.expect("receipt"))["ref"] for _ in range(20)} == set(range(20))
        assert most == 4
    hits = node.delivery.metrics.registry.get_sample_value(
        "overlayd_limit_hits_total", {"limit": "publishes_in_flight"}
    )
    assert hits is not None
    assert hits >= 1


async def test_publish_errors_name_their_ref(autojump_clock: MockClock) -> None:
    """What is wrong with a publish is told with its ref, and the socket goes on."""
    node = Node()
    async with node.connect() as client:
        await client.expect("welcome")
        await client.send(type="publish", ref="p", stream="paused", packets=[{"data": 1}])
        error = await client.expect("error")
        assert (error["code"], error["ref"], error["retryable"]) == ("stream.paused", "p", True)
        await client.send(type="publish", ref="q", stream="s", packets=[{"data": 1}], expected_sequnce=4)
        error = await client.expect("error")
        assert (error["code"], error["ref"]) == ("request.malformed", "q")
        assert "expected_sequnce" in error["detail"]
    reader = Principal(name="r", kind="open", rights=frozenset({"subscribe"}), address="10.0.0.1")
    async with node.connect(principal=reader) as client:
        await client.expect("welcome")
        await client.send(type="publish", ref=1, stream="s", packets=[{"data": 1}])
        assert (await client.expect("error"))["code"] == "access.forbidden"


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("{", "json.malformed", "JSON"),
        ("[]", "request.malformed", "object"),
        ('{"id":"a"}', "request.malformed", "type"),
        ('{"type":"dance","id":"a"}', "parameter.invalid", "dance"),
        ('{"type":"subscribe"}', "parameter.invalid", "id"),
        ('{"type":"subscribe","id":"a","streems":["x"]}', "parameter.invalid", "did you mean streams"),
        ('{"type":"subscribe","id":"a","streams":[7]}', "parameter.invalid", "streams must be"),
        ('{"type":"subscribe","id":"a","after":"x"}', "cursor.malformed", "after"),
        ('{"type":"subscribe","id":"a","name":"durable"}', "parameter.invalid", "durable"),
        ('{"type":"subscribe","id":"a","deliver":"confirmed","streams":["plain"]}', "parameter.invalid", "commits nothing"),
        ('{"type":"subscribe","id":"a","seen":"1:' + "0" * 64 + '"}', "parameter.invalid", "seen"),
        ('{"type":"ping","ref":"' + "r" * 129 + '"}', "request.malformed", "length <= 128 - at `$.ref`"),
        ('{"type":"unsubscribe","id":"a"}', "parameter.invalid", "no subscription 'a'"),
        ('{"type":"ack","id":"a","cursor":"x"}', "parameter.invalid", "no subscription 'a'"),
        ('{"type":"subscribe","id":"a","streams":' + "[" * 100_000, "json.malformed", "JSON"),
    ],
)  # fmt: skip
async def test_bad_messages_are_told_and_survived(autojump_clock: MockClock, text: str, code: str, words: str) -> None:
    """A wrong message is answered by an error that says what is wrong; the socket goes on."""
    node = Node()
    node.log.define("plain")
    async with node.connect() as client:
        await client.expect("welcome")
        await client.socket.send_message(text)
        error = await client.expect("error")
        assert error["code"] == code
        assert words in error["detail"]
        await client.send(type="ping")
        await client.expect("heartbeat")


async def test_ack_of_a_live_subscription(autojump_clock: MockClock) -> None:
    """Acknowledging a subscription that isn't durable is an error that says so."""
    node = Node()
    async with node.connect() as client:
        await client.expect("welcome")
        await client.send(type="subscribe", id="a")
        await client.expect("subscribed")
        await client.send(type="ack", id="a", cursor=node.log.cursor(0))
        assert "isn't durable" in (await client.expect("error"))["detail"]


@pytest.mark.parametrize(
    ("query", "code", "close"),
    [
        ("streem=a", "parameter.invalid", 1008),
        ("after=nonsense", "cursor.malformed", 1008),
        ("after=e1k7f3q2ma-1", "cursor.epoch", 1008),
        ("stream=plain&deliver=confirmed", "parameter.invalid", 1008),
        ("min_confirmations=3", "parameter.invalid", 1008),
        ("filter=data..x", "filter.invalid", 1008),
        ("from=beginning&on_gap=error", "cursor.expired", 4010),
    ],
)
async def test_bad_url_query_closes(autojump_clock: MockClock, query: str, code: str, close: int) -> None:
    """What is wrong with the URL's query is told by an error, then the node closes with a code that says not to retry."""
    node = Node()
    node.log.add("plain", 1)
    node.log.remove("plain", 1, 1, "retention")
    async with node.connect(query) as client:
        messages = await client.receive_until("error")
        assert messages[-1]["code"] == code
        assert await client.close_code() == close


async def test_gap_then_packets(autojump_clock: MockClock) -> None:
    """A too-old position begins with the gap."""
    node = Node()
    for number in range(4):
        node.log.add("a", number)
    node.log.remove("a", 1, 2, "retention")
    async with node.connect("from=beginning") as client:
        messages = await client.receive_until("packet")
        assert messages[2] == {
            "type": "gap", "from": node.log.cursor(1), "to": node.log.cursor(2), "reason": "retention",
            "cursor": node.log.cursor(2),
        }  # fmt: skip


async def test_heartbeats_move_the_cursor(autojump_clock: MockClock) -> None:
    """Entries that don't match move the cursor of the next heartbeat, and a quiet session gets one per interval."""
    node = Node()
    async with node.connect("stream=a&heartbeat=2s") as client:
        await client.receive_until("subscribed")
        started = trio.current_time()
        node.log.add("b", 1)
        heartbeat = await client.expect("heartbeat")
        assert heartbeat["cursor"] == node.log.cursor(1)
        assert trio.current_time() - started == pytest.approx(2.0, abs=0.01)
        await client.expect("heartbeat")
        assert trio.current_time() - started == pytest.approx(4.0, abs=0.01)


async def test_fruitless_search_moves_the_resume_point(autojump_clock: MockClock) -> None:
    """A long search without a match tells its position every so many entries, without waiting for the heartbeat."""
    node = Node(FakeLog(page_entries=10), progress_entries=100)
    node.log.add_other(1000)
    node.log.add("a", 1)
    async with node.connect("stream=a&from=beginning") as client:
        messages = await client.receive_until("packet")
        assert [m["cursor"] for m in messages if m["type"] == "heartbeat"] == [
            node.log.cursor(n) for n in range(100, 1001, 100)
        ]


async def test_cloudevents_subprotocol(autojump_clock: MockClock) -> None:
    """With subprotocol cloudevents.json every frame is a CloudEvent."""
    node = Node()
    node.log.add("s", {"x": 1}, id="p1", type="reading", key="k")
    async with node.connect("from=beginning", subprotocols=("nonsense", "cloudevents.json", "overlayd.v1")) as client:
        assert client.socket.subprotocol == "cloudevents.json"
        welcome, subscribed, packet = [await client.receive() for _ in range(3)]
        assert (welcome["type"], welcome["data"]["node"]) == ("overlayd.welcome", "test-node")
        assert subscribed["type"] == "overlayd.subscribed"
        assert welcome["id"] != subscribed["id"]
        assert packet | {"contenthash": "", "time": ""} == {
            "specversion": "1.0", "id": "1aebagbaf-1", "source": "/streams/s", "type": "reading", "subject": "k",
            "datacontenttype": "application/json", "sequence": "1", "packetid": "p1", "cursor": node.log.cursor(1),
            "contenthash": "", "time": "", "data": {"x": 1},
        }  # fmt: skip
        await client.send(type="ping")
        assert (await client.receive())["type"] == "overlayd.heartbeat"


async def test_no_common_subprotocol_is_no_subprotocol(autojump_clock: MockClock) -> None:
    """A client that offers none, or none that we know, is served without one."""
    node = Node()
    for offered in ((), ("chat",)):
        async with node.connect(subprotocols=offered) as client:
            assert client.socket.subprotocol is None
            await client.expect("welcome")


async def test_stop_says_bye_to_all(autojump_clock: MockClock) -> None:
    """At shutdown every session gets bye with a pause to wait, and close code 1001; new ones are refused."""
    node = Node()
    async with node.connect("stream=a") as first, node.connect() as second:
        await first.receive_until("subscribed")
        await second.expect("welcome")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.registry.stop, Ending(1001, "shutdown", 2.0))
            for client in (first, second):
                assert (await client.expect("bye")) == {"type": "bye", "reason": "shutdown", "retry_after": 2.0}
                assert await client.close_code() == 1001
    assert len(node.registry) == 0


async def test_admin_ends_one_session(autojump_clock: MockClock) -> None:
    """Ending one session by its id says bye to it and leaves the others alone."""
    node = Node()
    async with node.connect("stream=a") as first, node.connect("stream=b") as second:
        session = (await first.receive_until("subscribed"))[0]["session"]
        await second.receive_until("subscribed")
        bodies = node.registry.bodies(node.log.head)
        assert [body.subscriptions[0].query.streams for body in bodies] == [["a"], ["b"]]
        assert node.registry.count_subscribers("a") == 1
        node.registry.end(session, Ending(1008, "ended by an administrator"))
        assert (await first.expect("bye"))["reason"] == "ended by an administrator"
        assert await first.close_code() == 1008
        await second.send(type="ping")
        await second.expect("heartbeat")


async def test_stopped_stream_ends_its_sessions(autojump_clock: MockClock) -> None:
    """A session that reads nothing but a stopped stream gets what is there, then bye, without waiting for anything."""
    node = Node()
    node.log.add("a", 1)
    stream = node.log.define("a")
    async with node.connect("stream=a&from=beginning") as client, node.connect() as other:
        await client.receive_until("packet")
        await other.expect("welcome")
        await other.send(type="subscribe", id="x", stream="a")
        await other.expect("subscribed")
        await wait_all_tasks_blocked()
        before = trio.current_time()
        stream.state = "stopped"
        node.registry.look_again("a")
        assert (await client.expect("bye"))["reason"] == "stream.stopped"
        assert trio.current_time() == before
        assert await client.close_code() == 1008
        error = await other.expect("error")
        assert (error["code"], error["sub"]) == ("stream.paused", "x")
        await other.send(type="ping")
        await other.expect("heartbeat")


async def test_nothing_is_left_of_a_session(autojump_clock: MockClock) -> None:
    """Its buffers are free once it is over: no cycle keeps them until the collector comes by."""
    node = Node()
    with nothing_left_of(SocketSession, Session, Line):
        for _ in range(3):
            async with node.connect("stream=a") as client:
                await client.receive_until("subscribed")
                await client.send(type="ping")
                await client.expect("heartbeat")
        await trio.sleep(5)  # what a client asks for is dealt with by a task that lingers
