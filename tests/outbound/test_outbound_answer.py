"""The reader of answers, fed with anything in any pieces; h11 as a second opinion."""

import gzip
from itertools import pairwise

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlayd.model.errors import OutboundFailure
from overlayd.outbound.answer import AnswerReader

TOKENS = st.from_regex(r"[A-Za-z][A-Za-z0-9-]{0,8}", fullmatch=True).map(lambda name: f"x-{name}")
TEXTS = st.from_regex(r"([!-~]([ -~]{0,10}[!-~])?)?", fullmatch=True)


def read(data: bytes, cuts: list[int], **options: object) -> AnswerReader:
    """All of it, in pieces, then the end."""
    settings: dict[str, object] = {"head_bytes": 8192, "head_lines": 50, "body_max": 4096, "is_body_evidence": False}
    reader = AnswerReader(**(settings | options))  # type: ignore[arg-type]
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    for start, end in pairwise(places):
        if not reader.is_complete:
            reader.feed(data[start:end])
    if not reader.is_complete:
        reader.feed_end()
    return reader


@st.composite
def answers(draw: st.DrawFn) -> tuple[bytes, int, list[tuple[str, str]], bytes]:
    """A well-formed answer and what it means."""
    status = draw(st.sampled_from([200, 201, 302, 400, 404, 410, 429, 500, 503]))
    headers = draw(st.lists(st.tuples(TOKENS, TEXTS), max_size=5))
    body = draw(st.binary(max_size=300))
    wire, framing = body, f"content-length: {len(body)}\r\n"
    if draw(st.booleans()):
        framing, wire = "transfer-encoding: chunked\r\n", b""
        at = 0
        while at < len(body):
            size = draw(st.integers(1, 100))
            wire += b"%x\r\n%s\r\n" % (len(body[at : at + size]), body[at : at + size])
            at += size
        wire += b"0\r\n\r\n"
    interim = b"HTTP/1.1 102 Processing\r\nx: y\r\n\r\n" * draw(st.integers(0, 2))
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    return interim + f"HTTP/1.1 {status} Said\r\n{framing}{lines}\r\n".encode() + wire, status, headers, body


@given(answers(), st.lists(st.integers(0, 10_000), max_size=10))
def test_pieces_make_no_difference(answer: tuple[bytes, int, list[tuple[str, str]], bytes], cuts: list[int]) -> None:
    """However the bytes arrive, status, headers and body are those that were written, and h11 agrees."""
    data, status, headers, body = answer
    reader = read(data, cuts)
    assert (reader.status, reader.take_body(), reader.is_cut) == (status, body, False)
    named = [(name, value) for name, value in reader.headers if name.startswith("x-")]
    assert named == [(name.lower(), value) for name, value in headers]
    assert reader.is_reusable
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="POST", target="/", headers=[("host", "a"), ("content-length", "0")]))
    client.send(h11.EndOfMessage())
    client.receive_data(data)
    event = client.next_event()
    while isinstance(event, h11.InformationalResponse):
        event = client.next_event()
    assert isinstance(event, h11.Response)
    assert event.status_code == status


@given(
    st.binary(max_size=400) | answers().map(lambda answer: answer[0][:-3]), st.lists(st.integers(0, 500), max_size=5)
)
def test_anything_else_is_a_failure_with_a_reason(data: bytes, cuts: list[int]) -> None:
    """Random and broken bytes end in an answer or an OutboundFailure, in nothing else."""
    for is_evidence in (False, True):
        reason = ""
        try:
            assert read(data, cuts, is_body_evidence=is_evidence).is_head_complete
        except OutboundFailure as failure:
            reason = failure.reason
        assert not reason or reason.startswith(("answer.", "body."))


@given(st.binary(max_size=2000), st.integers(1, 100))
def test_compressed_bodies_are_bounded_after_inflating(body: bytes, bound: int) -> None:
    """Whatever comes over the wire, no more than the bound is kept."""
    packed = gzip.compress(body)
    head = f"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: {len(packed)}\r\n\r\n".encode()
    reader = read(head + packed, [], body_max=bound, is_body_evidence=True)
    assert reader.take_body() == body[:bound]
    assert reader.is_cut == (len(body) > bound)


def test_answers_without_a_length_end_with_the_connection() -> None:
    """And such a connection can't be used again."""
    reader = read(b"HTTP/1.1 200 OK\r\n\r\nall of it", [5])
    assert (reader.take_body(), reader.is_cut, reader.is_reusable) == (b"all of it", False, False)


@pytest.mark.parametrize(
    ("head", "is_reusable"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n", False),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n", False),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 0\r\nconnection: keep-alive\r\n\r\n", True),
        (b"HTTP/1.1 204 None\r\n\r\n", True),
        (b"HTTP/1.1 304 Same\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\nmore", False),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\nHTTP/1.1 200 OK\r\n", False),
    ],
)
def test_which_connections_can_be_used_again(head: bytes, is_reusable: bool) -> None:
    """Those whose answer ended by itself, kept by both sides, without a word too many."""
    assert read(head, []).is_reusable is is_reusable
