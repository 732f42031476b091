"""The outbound client against a server that behaves as badly as it can."""

import gzip

import chaos_sink as chaos
import pytest
import trio
from left_behind import nothing_left_of
from outbound_rig import RigMaker
from trio.testing import MockClock

from overlayd.model.errors import OutboundFailure
from overlayd.outbound import OutboundRequest, Reason
from overlayd.outbound.answer import AnswerReader


async def test_an_answer_comes_back_whole(make_rig: RigMaker) -> None:
    """Method, path, headers and body arrive as written; status, headers and body come back."""
    rig = make_rig()
    async with chaos.open_sink() as sink:
        sink.play(chaos.answer(201, b"made", x_made="yes"))
        answer = await rig.post(sink.url + "?a=1", b"abc", headers=(("X-Mine", "1"),))
        turn = sink.turns[0]
        assert (turn.method, turn.path, await turn.body()) == ("POST", "/hook?a=1", b"abc")
        assert turn.headers == {
            "host": f"127.0.0.1:{sink.port}", "accept-encoding": "identity", "x-mine": "1", "content-length": "3",
        }  # fmt: skip
    assert (answer.status, answer.body, answer.header("x-made"), answer.header("none")) == (201, b"made", "yes", "")
    assert (answer.is_cut, answer.address) == (False, "127.0.0.1")
    assert rig.count("overlayd_outbound_requests_total", result="2xx") == 1


@pytest.mark.parametrize(
    ("step", "body"),
    [
        (chaos.chunked(200, b"ab", b"c", extension=";q=1"), b"abc"),
        (chaos.zipped(200, b"hello" * 10), b"hello" * 10),
        (chaos.raw(b"HTTP/1.1 200 OK\r\n\r\nto the end"), b"to the end"),
        (chaos.raw(b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nhi"), b"hi"),
        (chaos.raw(b"HTTP/1.1 103 Hints\r\nlink: x\r\n\r\nHTTP/1.1 100 C\r\n\r\nHTTP/1.1 200 O\r\ncontent-length: 1\r\n\r\nA", is_last=False), b"A"),
        (chaos.answer_and_close(200, b"bye"), b"bye"),
        (chaos.answer(204), b""),
    ],
    ids=["chunked", "gzip unasked", "until the end", "http 1.0", "after interim answers", "close", "no content"],
)  # fmt: skip
async def test_every_form_of_a_body_is_read(make_rig: RigMaker, step: chaos.Step, body: bytes) -> None:
    """Chunked, compressed, ended by the connection, behind interim answers."""
    rig = make_rig()
    async with chaos.open_sink() as sink:
        sink.play(step)
        answer = await rig.post(sink.url)
        assert (answer.status // 100, answer.body, answer.is_cut) == (2, body, False)
        assert "link" not in dict(answer.headers)
        assert (await rig.post(sink.url)).body == body


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (chaos.reset, Reason.ANSWER_RESET),
        (chaos.reset_at_head, Reason.ANSWER_RESET),
        (chaos.close_silently, Reason.ANSWER_CLOSED),
        (chaos.raw(b"HTTP/1.1 200 OK\r\nx-half"), Reason.ANSWER_CLOSED),
        (chaos.raw(b"SSH-2.0-OpenSSH_9.2\r\n"), Reason.ANSWER_MALFORMED),
        (chaos.raw(b"HTTP/2 200 OK\r\n\r\n"), Reason.ANSWER_MALFORMED),
        (chaos.raw(b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n"), Reason.ANSWER_MALFORMED),
        (chaos.raw(b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n"), Reason.ANSWER_MALFORMED),
        (chaos.raw(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n"), Reason.ANSWER_MALFORMED),
        (chaos.raw(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"), Reason.ANSWER_MALFORMED),
        (chaos.raw(b"HTTP/1.1 101 S\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n"), Reason.ANSWER_MALFORMED),
        (chaos.raw(b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 4\r\n\r\nabcd"), Reason.ANSWER_MALFORMED),
        (chaos.answer(200, gzip.compress(b"a" * 999)[:-9], content_encoding="gzip"), Reason.ANSWER_MALFORMED),
        (chaos.endless_head, Reason.ANSWER_HEAD_TOO_LARGE),
        (chaos.endless_header, Reason.ANSWER_HEAD_TOO_LARGE),
        (chaos.endless_interim, Reason.ANSWER_HEAD_TOO_LARGE),
        (chaos.raw(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort"), Reason.BODY_CUT),
        (chaos.raw(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nsh"), Reason.BODY_CUT),
        (chaos.endless_body(200), Reason.BODY_TOO_LARGE),
        (chaos.endless_extensions(200), Reason.BODY_TOO_LARGE),
        (chaos.gzip_bomb(200, 30_000_000), Reason.BODY_TOO_LARGE),
    ],
)  # fmt: skip
async def test_bad_answers_fail_with_a_reason(make_rig: RigMaker, step: chaos.Step, reason: Reason) -> None:
    """Each kind of broken answer has a reason of its own, and the connection isn't used again."""
    rig = make_rig()
    async with chaos.open_sink() as sink:
        sink.play(step, chaos.answer(200))
        assert (await rig.refuse(sink.url)).reason == reason
        assert (await rig.post(sink.url)).status == 200
        assert sink.connections == 2
    assert rig.count("overlayd_outbound_requests_total", result=reason) == 1


@pytest.mark.parametrize(
    ("step", "kept"),
    [
        (chaos.endless_body(200), b"b" * 100),
        (chaos.gzip_bomb(200, 30_000_000), bytes(100)),
        (chaos.raw(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort"), b"short"),
        (chaos.raw(b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 4\r\n\r\nabcd"), b""),
        (chaos.trickle_body(b"c" * 50, pause_s=0.5), b"c" * 3),
    ],
    ids=["endless", "bomb", "cut", "not gzip", "trickling"],
)
async def test_a_body_that_is_only_evidence_is_cut(
    make_rig: RigMaker, step: chaos.Step, kept: bytes, patient_clock: MockClock
) -> None:
    """When the status is what counts, a bad body is cut and the status stands."""
    rig = make_rig()
    async with chaos.open_sink() as sink:
        sink.play(step)
        answer = await rig.post(sink.url, is_body_evidence=True, body_max=100)
        assert (answer.status, answer.is_cut) == (200, True)
        assert answer.body[: len(kept)] == kept
        assert len(answer.body) <= 100


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (chaos.hang, Reason.ANSWER_TIMEOUT),
        (chaos.hang_unread, Reason.ANSWER_TIMEOUT),
        (chaos.trickle(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"), Reason.ANSWER_TIMEOUT),
        (chaos.trickle_body(b"x" * 90), Reason.BODY_TIMEOUT),
    ],
    ids=["hangs", "hangs at the body", "head by the byte", "body by the byte"],
)
async def test_the_whole_exchange_has_one_deadline(
    make_rig: RigMaker, step: chaos.Step, reason: Reason, patient_clock: MockClock
) -> None:
    """However the other side spends it, the time is over after `timeout_s`, and the reason says in which part."""
    rig = make_rig()
    async with chaos.open_sink() as sink:
        sink.play(step)
        started = trio.current_time()
        assert (await rig.refuse(sink.url, timeout_s=7.0)).reason == reason
        assert trio.current_time() - started == pytest.approx(7.0, abs=0.2)


async def test_a_request_that_nobody_takes_times_out_while_sending(
    make_rig: RigMaker, patient_clock: MockClock
) -> None:
    """A receiver that doesn't read holds up a large body; the reason says that it was the sending."""
    rig = make_rig()
    async with chaos.open_sink() as sink:
        sink.play(chaos.hang_unread)
        assert (await rig.refuse(sink.url, bytes(20_000_000), timeout_s=5.0)).reason == Reason.SEND_TIMEOUT


async def test_an_answer_before_the_body_was_sent_counts(make_rig: RigMaker) -> None:
    """A receiver that answers 413 without reading is heard, and the connection closes."""
    rig = make_rig()
    async with chaos.open_sink() as sink:
        sink.play(chaos.early(413, b"too long"), chaos.answer(200))
        answer = await rig.post(sink.url, bytes(20_000_000))
        assert (answer.status, answer.body) == (413, b"too long")
        await rig.post(sink.url)
        assert sink.connections == 2


async def test_large_bodies_arrive(make_rig: RigMaker, patient_clock: MockClock) -> None:
    """What the kernel doesn't take at once is written as it takes it."""
    rig = make_rig()
    async with chaos.open_sink() as sink:
        body = bytes(range(256)) * 40_000
        assert (await rig.post(sink.url, body)).status == 200
        assert await sink.turns[0].body() == body


async def test_redirects_are_answers(make_rig: RigMaker) -> None:
    """A 302 comes back as it is; nobody calls where it points."""
    rig = make_rig()
    async with chaos.open_sink() as sink:
        sink.play(chaos.answer(302, location=sink.origin + "/elsewhere"))
        assert (await rig.post(sink.url)).status == 302
        assert [turn.path for turn in sink.turns] == ["/hook"]


async def test_nobody_listening_is_said(make_rig: RigMaker) -> None:
    """A closed port is refused at once."""
    rig = make_rig()
    async with chaos.open_sink() as sink:
        url = sink.url
    assert (await rig.refuse(url)).reason == Reason.CONNECT_REFUSED


async def test_a_connection_that_nobody_accepts_times_out(make_rig: RigMaker, patient_clock: MockClock) -> None:
    """A full backlog swallows the connection; the bound on connecting ends the wait."""
    rig = make_rig()
    listener = trio.socket.socket()
    await listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    port = listener.getsockname()[1]
    fillers = [trio.socket.socket() for _ in range(4)]
    try:
        async with trio.open_nursery() as nursery:
            for filler in fillers:
                nursery.start_soon(filler.connect, ("127.0.0.1", port))
            with trio.move_on_after(0.05):
                await trio.sleep_forever()
            failure = await rig.refuse(f"http://127.0.0.1:{port}/")
            nursery.cancel_scope.cancel()
        assert failure.reason == Reason.CONNECT_TIMEOUT
        assert rig.hits("outbound_connect_timeout") == 1
    finally:
        for sock in (listener, *fillers):
            sock.close()


@pytest.mark.parametrize(
    "header", [("a\r\nb", "c"), ("a", "b\r\nc: d"), ("", "x"), ("Host", "x"), ("content-length", "1")]
)
async def test_headers_stay_in_their_line(make_rig: RigMaker, header: tuple[str, str]) -> None:
    """Line breaks in headers, and headers that the client sets itself, are a programming error."""
    rig = make_rig()
    with pytest.raises(ValueError, match="header"):
        await rig.post("http://127.0.0.1:9999/", headers=(header,))


async def test_head_limits_count_their_hits(make_rig: RigMaker) -> None:
    """Bytes and lines of an answer's head are bounded, each by its own limit."""
    rig = make_rig(outbound_head_bytes=2048, outbound_head_lines=10)
    async with chaos.open_sink() as sink:
        sink.play(chaos.endless_header, chaos.raw(b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 11 + b"\r\n"))
        await rig.refuse(sink.url)
        await rig.refuse(sink.url)
    assert (rig.hits("outbound_head_bytes"), rig.hits("outbound_head_lines")) == (1, 1)


async def test_a_stream_is_read_as_it_comes(make_rig: RigMaker, patient_clock: MockClock) -> None:
    """A streamed answer gives pieces without a bound in all, and ends after a silence."""
    rig = make_rig()

    async def events(turn: chaos.Turn) -> None:
        await turn.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
        for number in range(3):
            await turn.send(b"data: %d\n\n" % number + b"x" * 200_000)
            await trio.sleep(5)
        await trio.sleep_forever()

    async with chaos.open_sink() as sink:
        sink.play(events)
        request = OutboundRequest("GET", sink.url, timeout_s=3.0)
        got = b""
        async with rig.out.stream(request, idle_timeout_s=10.0) as stream:
            assert dict(stream.headers)["content-type"] == "text/event-stream"
            while len(got) < 3 * 200_000:
                got += await stream.receive()
            with pytest.raises(OutboundFailure) as caught:
                await stream.receive()
        assert caught.value.reason == Reason.BODY_TIMEOUT
        assert len(got) == 3 * (200_000 + len(b"data: 0\n\n"))
        sink.play(chaos.chunked(200, b"one", b"two"))
        async with rig.out.stream(request, idle_timeout_s=10.0) as stream:
            assert await stream.receive() + await stream.receive() in (b"onetwo", b"one" + b"two")


async def test_cancelling_closes_the_connection(make_rig: RigMaker, patient_clock: MockClock) -> None:
    """A call that is cancelled leaves neither a connection nor a place behind."""
    rig = make_rig()
    async with chaos.open_sink() as sink:
        sink.play(chaos.hang)
        with trio.move_on_after(1):
            await rig.post(sink.url)
        assert rig.count("overlayd_outbound_requests_open") == 0
        assert rig.count("overlayd_outbound_connections_idle") == 0
        sink.play(chaos.answer(200))
        assert (await rig.post(sink.url)).status == 200


async def test_nothing_is_left_of_a_call(make_rig: RigMaker) -> None:
    """What read the answer is free with it: no cycle keeps it until the collector comes by."""
    rig = make_rig()
    async with chaos.open_sink() as sink:
        with nothing_left_of(AnswerReader):
            for _ in range(3):
                assert (await rig.post(sink.url)).status == 200
