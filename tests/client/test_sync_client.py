"""The blocking client, in a thread beside the scripted node."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import httpx
import pytest
import trio
from fake_node import (
    DROP,
    WELCOME,
    Answer,
    FakeNode,
    Request,
    fake_node,
    json_answer,
    message,
    packet_message,
    packet_of,
    problem,
    receipt_of,
)
from tiny_log import STREAM, TinyLog

from overlayd.client import LogView, RetryPolicy, SyncClient
from overlayd.client.lines import split_lines
from overlayd.model.errors import (
    IntakeBusy,
    NodeUnreachable,
    SessionClosed,
    UnexpectedAnswer,
    UnknownStream,
    VerificationFailed,
)
from overlayd.model.wire import PacketGap, PacketMessage

T = TypeVar("T")
QUICK = RetryPolicy(attempts=4, first_s=0.001, max_s=0.002)


async def beside(node: FakeNode, work: Callable[[SyncClient], T], **options: object) -> T:
    """Runs blocking work with a client, in a thread."""

    def run() -> T:
        with SyncClient(node.url, retry=QUICK, sleep=lambda seconds: None, **options) as client:  # type: ignore[arg-type]
            return work(client)

    return await trio.to_thread.run_sync(run)


async def test_publish_and_read_back() -> None:
    """The same requests as the Trio client's, without await."""

    def answer(request: Request) -> Answer:
        return json_answer(receipt_of("s", 1, "a"), 201) if request.method == "POST" else json_answer(packet_of("s", 1))

    async with fake_node() as node:
        node.handler = answer
        receipt = await beside(node, lambda client: client.publish("s", {"t": 1}, id="a"))
        packet = await beside(node, lambda client: client.read_last("s"), verify=True)
    assert (receipt.sequence, packet.packet_sequence) == (1, 1)


async def test_retries_pause_through_the_given_sleep() -> None:
    """Every attempt but the last is followed by a pause that grows."""
    pauses: list[float] = []

    def run(url: str) -> None:
        with SyncClient(url, retry=QUICK, sleep=pauses.append) as client:
            client.publish("s", 1, id="a")

    async with fake_node() as node:
        node.handler = lambda request: problem("intake.busy", 503, retryable=True)
        with pytest.raises(IntakeBusy):
            await trio.to_thread.run_sync(run, node.url)
    assert len(pauses) == QUICK.attempts - 1


async def test_an_absent_node_and_a_wrong_socket_are_unreachable(tmp_path: Path) -> None:
    """TCP and Unix sockets give the same error."""
    async with fake_node() as node:
        pass
    for url in (node.url, f"unix:{tmp_path}/nobody.sock"):
        node.url = url
        with pytest.raises(NodeUnreachable):
            await beside(node, lambda client: client.node())


async def test_packets_iterates_with_gaps() -> None:
    """Pages are followed to the head."""

    def page(request: Request) -> Answer:
        after = int(request.params["after"])
        gaps = [{"from_sequence": 1, "to_sequence": 1, "reason": "erased"}] if after == 0 else []
        packets = [packet_of("s", after + 2)] if after == 0 else []
        return json_answer({"packets": packets, "gaps": gaps, "next_after": 2, "head_sequence": 2})

    async with fake_node() as node:
        node.handler = page
        items = await beside(node, lambda client: list(client.packets("s")))
    assert isinstance(items[0], PacketGap)
    assert len(items) == 2


def lines(*messages: str) -> Answer:
    """An NDJSON answer that ends."""
    return Answer(200, "".join(f"{text}\n" for text in messages).encode(), {"content-type": "application/x-ndjson"})


async def test_live_reads_ndjson_and_resumes_by_cursor() -> None:
    """An answer that ends is asked for again behind the last packet; heartbeats aren't handed out."""
    beat = message("heartbeat", timestamp="t", head=9, cursor="e1aaaaaaaa-9")
    answers = [
        lines(WELCOME, packet_message("s", 1)),
        DROP,
        lines(WELCOME, beat),
        lines(WELCOME, packet_message("s", 9)),
    ]

    def work(client: SyncClient) -> list[int]:
        with client.live("s", start="beginning", retry=QUICK) as live:
            return [next_packet(live) for _ in range(2)]

    async with fake_node() as node:
        node.handler = lambda request: answers.pop(0)
        assert await beside(node, work, verify=True) == [1, 9]
    assert [request.params.get("after") for request in node.requests] == [
        None, "e1aaaaaaaa-2", "e1aaaaaaaa-2", "e1aaaaaaaa-9",
    ]  # fmt: skip
    assert node.requests[0].headers["accept"] == "application/x-ndjson"


def next_packet(live: Iterator[object]) -> int:
    """The sequence of the next message, which must be a packet."""
    received = next(live)
    assert isinstance(received, PacketMessage)
    return received.packet.packet_sequence


async def test_a_payload_with_line_ends_is_verified_as_it_was_stored() -> None:
    """A line can't hold them, so the node wrote blanks; the stored bytes are fetched and hash right."""
    stored = '{\n  "t": 21\r\n}'
    sent = packet_message("s", 1, payload=stored).replace("\n", " ").replace("\r", " ")

    def answer(request: Request) -> Answer:
        return Answer(200, stored.encode()) if request.path.endswith("/1/data") else lines(WELCOME, sent)

    async with fake_node() as node:
        node.handler = answer
        received = await beside(node, lambda client: next(client.live("s")), verify=True)
        assert isinstance(received, PacketMessage)
        assert bytes(received.packet.data_payload) == stored.encode()
        sent = sent.replace("21", "22")
        with pytest.raises(VerificationFailed):
            await beside(node, lambda client: next(client.live("s")), verify=True)


async def test_a_goodbye_without_a_time_to_come_back_is_final() -> None:
    """A stopped stream's reader isn't sent round in circles."""
    bye = message("bye", reason="stream.stopped")
    async with fake_node() as node:
        node.handler = lambda request: lines(WELCOME, bye)
        with pytest.raises(SessionClosed, match=r"stream\.stopped"):
            await beside(node, lambda client: next(client.live("s")))
    assert len(node.requests) == 1


async def test_a_refused_live_query_is_told() -> None:
    """The first answer's problem becomes the error."""
    async with fake_node() as node:
        node.handler = lambda request: problem("stream.unknown", 404)
        with pytest.raises(UnknownStream):
            await beside(node, lambda client: next(client.live("s")))


async def test_proofs_are_verified_with_blocking_calls() -> None:
    """The same steps as the Trio client's."""
    log = TinyLog(6)
    async with fake_node() as node:
        node.handler = log.answer
        verdict = await beside(node, lambda client: client.verify_proof(STREAM, 2, LogView(), subject=log.packet(2)))
        assert verdict.sequence == 2
        with pytest.raises(VerificationFailed):
            await beside(node, lambda client: client.verify_proof(STREAM, 2, LogView(), subject=log.packet(3)))


def test_lines_are_cut_at_line_feeds_alone() -> None:
    """U+2028 inside a JSON text is no line end; what follows the last line feed isn't whole."""
    text = '{"a":"x\u2028y"}\r\n\n{"b":1}\n{"c'.encode()
    for size in (1, 2, 3, len(text)):
        parts = [text[at : at + size] for at in range(0, len(text), size)]
        assert [line.strip() for line in split_lines(parts)] == ['{"a":"x\u2028y"}'.encode(), b'{"b":1}']


def test_a_line_without_an_end_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that never ends its line can't fill the memory."""
    monkeypatch.setattr("overlayd.client.lines.LINE_BYTES_MAX", 10)
    with pytest.raises(UnexpectedAnswer):
        list(split_lines([b"x" * 6, b"x" * 6]))


def test_the_environments_proxies_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy for the outside world mustn't see what goes to the node."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    with SyncClient("http://127.0.0.1:9") as client:
        assert isinstance(client._http._transport, httpx.HTTPTransport)
        assert not client._http._mounts
