"""Many packets: cut into requests, retried only where that is safe, added up."""

import math
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from fake_node import DROP, Answer, Request, fake_node, json_answer, problem, receipt_of
from hypothesis import given
from hypothesis import strategies as st

from overlayd.client import Client, RetryPolicy
from overlayd.client.publishing import Chunker, build_packet, encode_packet, is_safe_to_repeat
from overlayd.model.errors import IntakeBusy, InvalidPacket, UncertainPublish, UnknownStream, UnusableJson

QUICK = RetryPolicy(attempts=4, first_s=0.001, max_s=0.002)


class Taker:
    """Takes packets like a node: rejects those whose data are the text `bad`."""

    def __init__(self) -> None:
        self.taken: list[Any] = []
        self.chunks: list[int] = []

    def __call__(self, request: Request) -> Answer:
        assert request.headers["content-type"] == "application/x-ndjson"
        lines = [msgspec.json.decode(line) for line in request.body.splitlines()]
        self.chunks.append(len(lines))
        receipts, errors = [], []
        for number, packet in enumerate(lines, 1):
            if packet["data"] == "bad":
                errors.append({"pointer": "/data", "code": "type", "detail": "bad", "line": number})
            else:
                self.taken.append(packet["data"])
                receipts.append(receipt_of("s", len(self.taken)))
        body = {"accepted": len(receipts), "duplicates": 0, "rejected": len(errors), "errors": errors}
        if receipts:
            body |= {"first": receipts[0], "last": receipts[-1]}
        return json_answer(body, 201 if receipts else 422)


async def test_packets_go_out_in_bounded_requests_and_the_answers_add_up() -> None:
    """2,500 packets are three requests; progress is told after each."""
    taker, progress = Taker(), []
    async with fake_node() as node, Client(node.url) as client:
        node.handler = taker
        outcome = await client.publish_many(
            "s", ({"data": number} for number in range(2500)), on_progress=lambda done: progress.append(done.sent)
        )
    assert taker.chunks == [1000, 1000, 500]
    assert progress == [1000, 2000, 2500]
    assert (outcome.accepted, outcome.rejected) == (2500, 0)
    assert outcome.first is not None
    assert outcome.last is not None
    assert (outcome.first.sequence, outcome.last.sequence) == (1, 2500)


async def test_async_iterables_and_texts_are_taken_too() -> None:
    """JSON texts travel as they are, one a line, whatever white space they had."""

    async def source() -> AsyncIterator[str | bytes]:
        yield '{"data": 1.000}'
        yield b'{\n  "data": 2\n}\n'

    async with fake_node() as node, Client(node.url) as client:
        node.handler = Taker()
        await client.publish_many("s", source())
    assert node.requests[0].body == b'{"data": 1.000}\n{"data":2}\n'


async def test_rejected_packets_are_named_by_their_number_in_the_whole_input() -> None:
    """A request whose packets were all rejected doesn't end the rest either."""
    data: list[Any] = [1, 2, "bad", 4, "bad", "bad", 7]
    async with fake_node() as node, Client(node.url) as client:
        node.handler = Taker()
        outcome = await client.publish_many("s", [{"data": item} for item in data], chunk_packets=2)
    assert [violation.line for violation in outcome.errors] == [3, 5, 6]
    assert (outcome.accepted, outcome.rejected) == (4, 3)


async def test_a_request_whose_packets_all_have_ids_is_retried() -> None:
    """A connection that breaks costs nothing but time."""
    taker, first = Taker(), [True]

    def flaky(request: Request) -> Answer:
        return DROP if first and first.pop() else taker(request)

    async with fake_node() as node, Client(node.url, retry=QUICK) as client:
        node.handler = flaky
        outcome = await client.publish_many("s", [{"id": str(number), "data": number} for number in range(3)])
    assert outcome.accepted == 3


async def test_without_ids_the_packets_in_doubt_are_named() -> None:
    """The first request was answered, the second wasn't: nobody knows, and the error says which."""
    taker = Taker()
    async with fake_node() as node, Client(node.url, retry=QUICK) as client:
        node.handler = lambda request: DROP if taker.chunks else taker(request)
        with pytest.raises(UncertainPublish, match="packets 3 to 4 were sent") as caught:
            await client.publish_many("s", [{"data": number} for number in range(6)], chunk_packets=2)
    assert caught.value.extra == {"first_number": 3, "last_number": 4, "answered": 2}


async def test_an_upload_that_broke_off_is_not_sent_again_without_ids() -> None:
    """The node says how far it got; sending the whole request again would append that part twice."""
    async with fake_node() as node, Client(node.url, retry=QUICK) as client:
        node.handler = lambda request: problem("intake.busy", 503, retryable=True, accepted=2, duplicates=0, rejected=1)
        with pytest.raises(IntakeBusy) as caught:
            await client.publish_many("s", [{"data": number} for number in range(6)])
        assert len(node.requests) == 1
        with pytest.raises(IntakeBusy):
            await client.publish_many("s", [{"data": number, "id": str(number)} for number in range(6)])
    assert "up to 3 were dealt with, those from 4" in caught.value.hint
    assert len(node.requests) == 1 + QUICK.attempts


async def test_an_error_about_the_whole_request_ends_it() -> None:
    """An unknown stream isn't asked for three times."""
    async with fake_node() as node, Client(node.url, retry=QUICK) as client:
        node.handler = lambda request: problem("stream.unknown", 404)
        with pytest.raises(UnknownStream):
            await client.publish_many("s", [{"data": 1}])
    assert len(node.requests) == 1


def test_a_chunk_is_bounded_in_bytes_too() -> None:
    """A packet that doesn't fit begins the next request; one over the bound goes alone."""
    chunker = Chunker(bytes_max=30)
    full = [chunker.add({"data": "x" * size}) for size in (5, 5, 100, 1)]
    assert [None if chunk is None else len(chunk.lines) for chunk in full] == [None, 1, 1, 1]
    last = chunker.finish()
    assert last is not None
    assert (last.first_number, last.last_number) == (4, 4)
    assert chunker.finish() is None


@given(st.lists(st.integers(1, 40), max_size=60), st.integers(1, 7), st.integers(1, 100))
def test_chunks_hold_every_packet_once_and_in_order(sizes: list[int], packets_max: int, bytes_max: int) -> None:
    """Whatever the bounds are, nothing is lost, doubled or moved."""
    packets = [{"data": "x" * size} for size in sizes]
    chunker = Chunker(packets_max=packets_max, bytes_max=bytes_max)
    chunks = [chunk for chunk in [*(chunker.add(packet) for packet in packets), chunker.finish()] if chunk]
    assert [line for chunk in chunks for line in chunk.lines] == [encode_packet(packet) for packet in packets]
    assert [chunk.first_number for chunk in chunks] == [
        1 + sum(len(before.lines) for before in chunks[:number]) for number in range(len(chunks))
    ]
    assert all(len(chunk.lines) <= packets_max for chunk in chunks)
    assert all(sum(map(len, chunk.lines)) <= bytes_max or len(chunk.lines) == 1 for chunk in chunks)


@dataclass
class Reading:
    """Data as a program might hold it."""

    t: float


@pytest.mark.parametrize(
    "data",
    [math.nan, [1, math.inf], {"a": {"b": -math.inf}}, Reading(math.nan), [None, (math.nan,)]],
)
def test_what_json_cannot_say_is_refused(data: Any) -> None:
    """NaN would otherwise travel as null, a value of its own."""
    with pytest.raises(UnusableJson):
        build_packet(data)


def test_null_stays_null() -> None:
    """None is a value that JSON knows."""
    assert build_packet({"t": None, "r": Reading(1.5)}) == b'{"data":{"t":null,"r":{"t":1.5}}}'


def test_data_or_octets_exactly_one() -> None:
    """Both or neither is a mistake of the caller, as is what can't be encoded at all."""
    for arguments in ({}, {"data": 1, "octets": b""}, {"data": object()}):
        with pytest.raises(InvalidPacket):
            build_packet(**arguments)


@pytest.mark.parametrize(
    ("text", "is_safe"),
    [(b'{"id":"a","data":1}', True), (b'{"data":1}', False), (b'{"id":"","data":1}', False), (b"not json", True),
     (b"[1]", True)],
)  # fmt: skip
def test_which_packets_may_be_sent_twice(text: bytes, is_safe: bool) -> None:
    """Those with an id, and those that can't be appended at all."""
    assert is_safe_to_repeat(text) is is_safe
