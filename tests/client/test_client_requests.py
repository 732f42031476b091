"""The Trio client against a scripted node: requests, answers, retries."""

import itertools
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from fake_node import (
    DROP,
    HOLD,
    WELCOME,
    Answer,
    FakeNode,
    Request,
    fake_node,
    json_answer,
    packet_message,
    packet_of,
    problem,
    receipt_of,
)
from trio_websocket import WebSocketConnection

from overlayd.client import Client, RetryPolicy
from overlayd.model.errors import (
    ApiProblem,
    CommitFailed,
    IntakeBusy,
    NodeUnreachable,
    SchemaViolation,
    UncertainPublish,
    UnexpectedAnswer,
    UnknownStream,
    VerificationFailed,
)
from overlayd.model.wire import PacketGap, PacketMessage

QUICK = RetryPolicy(attempts=4, first_s=0.001, max_s=0.002)


def make_client(node: FakeNode, **options: Any) -> Client:
    """A client that hardly waits between attempts."""
    return Client(node.url, retry=options.pop("retry", QUICK), chance=random.Random(1), **options)


async def test_publish_sends_one_packet_and_gives_its_receipt() -> None:
    """A packet goes out as one JSON object with only the members that were given."""
    async with fake_node() as node, make_client(node, key="secret") as client:
        node.handler = lambda request: json_answer(receipt_of("weather-001", 1, "a"), 201)
        receipt = await client.publish("weather-001", {"t": 21}, id="a", topics=["x"])
    (request,) = node.requests
    assert receipt.sequence == 1
    assert receipt.id == "a"
    assert (request.method, request.path) == ("POST", "/v1/streams/weather-001/packets")
    assert msgspec.json.decode(request.body) == {"data": {"t": 21}, "id": "a", "topics": ["x"]}
    assert request.headers["authorization"] == "Bearer secret"


async def test_raw_data_and_octets_travel_verbatim() -> None:
    """A msgspec.Raw keeps its digits, octets become base64."""
    async with fake_node() as node, make_client(node) as client:
        node.handler = lambda request: json_answer(receipt_of("s", 1), 201)
        await client.publish("s", msgspec.Raw(b'{"v":1.000}'))
        await client.publish("s", octets=b"\x00\xff")
    assert node.requests[0].body == b'{"data":{"v":1.000}}'
    assert node.requests[1].body == b'{"data_base64":"AP8="}'


async def test_a_packet_with_an_id_is_sent_again_when_the_connection_breaks() -> None:
    """The second attempt's answer counts."""
    answers = [DROP, json_answer(receipt_of("s", 1, "a", duplicate=True), 200)]
    async with fake_node() as node, make_client(node) as client:
        node.handler = lambda request: answers.pop(0)
        receipt = await client.publish("s", 1, id="a")
    assert receipt.duplicate
    assert len(node.requests) == 2


async def test_a_packet_without_an_id_is_not_sent_again_when_its_fate_is_open() -> None:
    """A broken connection after the request raises UncertainPublish at once."""
    async with fake_node() as node, make_client(node) as client:
        node.handler = lambda request: DROP
        with pytest.raises(UncertainPublish, match="might append them twice"):
            await client.publish("s", 1)
    assert len(node.requests) == 1


async def test_a_refusal_that_proves_nothing_was_appended_is_retried_even_without_an_id() -> None:
    """503 intake.busy with Retry-After: the packet goes out again."""
    busy = problem("intake.busy", 503, retryable=True)
    answers = [busy, busy, json_answer(receipt_of("s", 1), 201)]
    async with fake_node() as node, make_client(node) as client:
        node.handler = lambda request: answers.pop(0)
        assert (await client.publish("s", 1)).sequence == 1


async def test_a_failed_commit_leaves_a_packet_without_an_id_uncertain() -> None:
    """The disk may hold what it said it couldn't write."""
    async with fake_node() as node, make_client(node) as client:
        node.handler = lambda request: problem("storage.failed", 503, retryable=True)
        with pytest.raises(UncertainPublish) as caught:
            await client.publish("s", 1)
        assert isinstance(caught.value.__cause__, CommitFailed)
        with pytest.raises(CommitFailed):
            await client.publish("s", 1, id="a")


async def test_attempts_are_bounded() -> None:
    """After the last attempt the node's own error is raised."""
    async with fake_node() as node, make_client(node) as client:
        node.handler = lambda request: problem("intake.busy", 503, retryable=True)
        with pytest.raises(IntakeBusy):
            await client.publish("s", 1)
    assert len(node.requests) == QUICK.attempts


async def test_problems_come_back_as_the_errors_they_were() -> None:
    """Code, violations, hint, Retry-After and further members survive the way."""
    violations = [{"pointer": "/data/t", "code": "type", "detail": "not a number"}]
    async with fake_node() as node, make_client(node, retry=RetryPolicy(attempts=1)) as client:
        node.handler = lambda request: problem(
            "packet.schema", 422, errors=violations, hint="send a number", headers={"Retry-After": "7"}, schema="v2"
        )
        with pytest.raises(SchemaViolation) as caught:
            await client.publish("s", 1)
    error = caught.value
    assert error.violations[0].pointer == "/data/t"
    assert error.hint == "send a number"
    assert error.retry_after_s == 7.0
    assert error.extra == {"instance": "r-1", "schema": "v2"}


async def test_an_unknown_code_becomes_a_generic_problem() -> None:
    """A newer node's code is kept, with its status and whether it may pass."""
    async with fake_node() as node, make_client(node) as client:
        node.handler = lambda request: problem("quota.reached", 429, detail="come back tomorrow")
        with pytest.raises(ApiProblem, match="tomorrow") as caught:
            await client.node()
    assert (caught.value.given_code, caught.value.given_status) == ("quota.reached", 429)
    assert not caught.value.is_retryable


@pytest.mark.parametrize("body", [b"<html>Bad gateway</html>", b"", b'{"error": "nope"}'])
async def test_what_does_not_speak_the_api_is_named(body: bytes) -> None:
    """A proxy's page isn't taken for a problem."""
    async with fake_node() as node, make_client(node) as client:
        node.handler = lambda request: Answer(502, body, {"content-type": "text/html"})
        with pytest.raises(UnexpectedAnswer, match=r"502 \(text/html\)"):
            await client.node()


async def test_an_answer_of_another_shape_is_named() -> None:
    """JSON that isn't what the route promises raises instead of giving half an object."""
    async with fake_node() as node, make_client(node) as client:
        node.handler = lambda request: json_answer({"packets": "many"})
        with pytest.raises(UnexpectedAnswer, match="PacketsBody"):
            await client.read("s")


async def test_an_absent_node_is_unreachable() -> None:
    """Nothing was sent, and the error says so."""
    async with fake_node() as node:
        url = node.url
    async with Client(url, retry=QUICK) as client:
        with pytest.raises(NodeUnreachable) as caught:
            await client.node()
    assert not caught.value.is_sent


async def test_requests_travel_over_a_unix_socket(tmp_path: Path) -> None:
    """`unix:PATH` reaches the socket, and its Host is a loopback name."""
    async with fake_node(tmp_path / "o.sock") as node, make_client(node) as client:
        node.handler = lambda request: Answer(200, b"origin\n1\nroot\n")
        assert await client.checkpoint() == "origin\n1\nroot\n"
    assert node.requests[0].headers["host"] == "localhost"


async def test_a_long_poll_is_asked_for_in_the_apis_units() -> None:
    """The hold is capped at what the node allows."""
    page = {"packets": [], "next_after": 4, "head_sequence": 4}
    async with fake_node() as node, make_client(node) as client:
        node.handler = lambda request: json_answer(page)
        await client.read("s", after=4, wait_s=1.5)
        await client.read("s", after=4, wait_s=600)
    assert [request.params["wait"] for request in node.requests] == ["1500ms", "55s"]
    assert node.requests[0].params["after"] == "4"


def paged(request: Request) -> Answer:
    """Ten packets, of which retention took the first three, two at a time."""
    after = int(request.params["after"])
    gaps = [{"from_sequence": 1, "to_sequence": 3, "reason": "retention"}] if after < 3 else []
    first = max(after, 3) + 1
    packets = [packet_of("s", sequence) for sequence in range(first, min(first + 2, 11))]
    return json_answer({"packets": packets, "gaps": gaps, "next_after": min(first + 1, 10), "head_sequence": 10})


async def test_packets_walks_the_stream_and_tells_gaps_in_their_place() -> None:
    """Every page is fetched, and what is gone comes before what follows it."""
    async with fake_node() as node, make_client(node, verify=True) as client:
        node.handler = paged
        items = [item async for item in client.packets("s")]
    assert isinstance(items[0], PacketGap)
    assert [item.packet_sequence for item in items[1:]] == [4, 5, 6, 7, 8, 9, 10]


async def test_verification_recomputes_the_content_hash() -> None:
    """A payload that was changed on the way is refused only when verification is on."""
    forged = packet_of("s", 1) | {"data_payload": {"t": 22}}
    async with fake_node() as node:
        node.handler = lambda request: json_answer(forged)
        async with make_client(node) as client:
            assert bytes((await client.read_packet("s", 1)).data_payload) == b'{"t":22}'
        async with make_client(node, verify=True) as client:
            with pytest.raises(VerificationFailed, match="hashes to"):
                await client.read_packet("s", 1)


async def test_stream_names_cannot_lead_to_other_routes() -> None:
    """Whatever is given as a name stays one part of the path."""
    async with fake_node() as node, make_client(node) as client:
        node.handler = lambda request: problem("stream.unknown", 404)
        with pytest.raises(UnknownStream):
            await client.stream("a/../../node?x=")
    assert node.requests[0].path == "/v1/streams/a%2F..%2F..%2Fnode%3Fx%3D"


async def test_streams_gathers_every_page() -> None:
    """`next_after` is followed until there is none."""
    body = {
        "owner": "api", "state": "active", "definition_version": 1, "created_at": "t", "head_sequence": 0,
        "oldest_sequence": 0, "packets": 0, "bytes": 0, "retention": {"max_age": "1d"},
    }  # fmt: skip

    def answer(request: Request) -> Answer:
        if "after" in request.params:
            return json_answer({"streams": [body | {"stream": "b"}]})
        return json_answer({"streams": [body | {"stream": "a"}], "next_after": "a"})

    async with fake_node() as node, make_client(node) as client:
        node.handler = answer
        streams = await client.streams(tag="x")
    assert [stream.stream for stream in streams] == ["a", "b"]
    assert streams[0].retention.max_age == 86_400
    assert node.requests[1].params == {"tag": "x", "after": "a"}


async def test_a_cancelled_request_leaves_the_client_usable() -> None:
    """Cancellation closes that connection and nothing else."""
    async with fake_node() as node, make_client(node) as client:
        held = trio.Event()

        def hold(request: Request) -> Answer:
            held.set()
            return HOLD

        node.handler = hold
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.checkpoint)
            await held.wait()
            nursery.cancel_scope.cancel()
        node.handler = lambda request: Answer(200, b"note")
        assert await client.checkpoint() == "note"


class CancelAt(trio.abc.Instrument):
    """Cancels a scope when a task is about to make its n-th step."""

    def __init__(self, scope: trio.CancelScope, step: int) -> None:
        self.scope = scope
        self.left = step
        self.task = trio.lowlevel.current_task()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self.task:
            self.left -= 1
            if self.left == 0:
                self.scope.cancel()


async def cancelled_at_every_step(work: Callable[[], Awaitable[None]]) -> int:
    """Runs `work`, cancelling it one step later each time, until it gets through; how often it was cancelled."""
    for step in itertools.count(1):
        with trio.CancelScope() as scope:
            instrument = CancelAt(scope, step)
            trio.lowlevel.add_instrument(instrument)
            try:
                await work()
            finally:
                trio.lowlevel.remove_instrument(instrument)
        if not scope.cancelled_caught:
            return step - 1
    raise AssertionError


async def test_publishing_may_be_cancelled_anywhere() -> None:
    """Whatever was under way, the next request goes through, and nothing is left behind."""
    async with fake_node() as node, make_client(node) as client:
        node.handler = lambda request: json_answer(receipt_of("s", 1, "a"), 201)

        async def publish() -> None:
            await client.publish("s", 1, id="a")

        assert await cancelled_at_every_step(publish) > 2
        await publish()


async def test_reading_live_may_be_cancelled_anywhere() -> None:
    """Every packet is handed out once and in order, however often waiting for it was given up."""
    async with fake_node() as node, Client(node.url) as client:

        async def send(socket: WebSocketConnection, params: dict[str, str]) -> None:
            after = int(params["after"].rpartition("-")[2]) - 1 if "after" in params else 0
            await socket.send_message(WELCOME)
            for sequence in range(after + 1, 40):
                await socket.send_message(packet_message("s", sequence))
            await socket.get_message()

        node.live = send
        live = client.live("s", start="beginning")
        taken: list[int] = []

        async def receive() -> None:
            message = await live.receive()
            assert isinstance(message, PacketMessage)
            taken.append(message.packet.packet_sequence)

        for _ in range(3):
            await cancelled_at_every_step(receive)
        await live.aclose()
    assert taken == [1, 2, 3]
