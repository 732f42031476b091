"""Plain packets without a task's turn each: who is served so, who isn't, and that nobody can tell from the answers."""

from contextlib import suppress
from pathlib import Path

import pytest
import trio
import trio.testing
from net_rig import Edge, RawClient
from publish_rig import HEAD, chunk, open_publishing, packets_in

from overlayd.model.limits import Limits
from overlayd.model.units import Duration
from overlayd.net.quick_publish import LINES_MAX, QuickPublish
from overlayd.net.turnstile import Stay, Turnstile
from overlayd.storage.writer_thread import WriterThread

JSON = HEAD + b"Content-Type: application/json\r\n"
ECHO = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc"


def post(data: bytes, head: bytes = JSON) -> bytes:
    """A plain packet."""
    return head + b"Content-Length: %d\r\n\r\n" % len(data) + data


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What the turnstile was told of each request that it was offered."""
    told: list[bool] = []
    take = QuickPublish.take

    def note(quick: QuickPublish, stay: Stay, data: bytes) -> bool:
        told.append(take(quick, stay, data))
        return told[-1]

    monkeypatch.setattr(QuickPublish, "take", note)
    return told


async def ask(client: RawClient, raw: bytes) -> tuple[int, object]:
    """The status and body of the answer."""
    await client.send(raw)
    answer = await client.read_answer()
    return answer.status, answer.json


async def test_plain_packets_are_served_without_their_task(tmp_path: Path, taken: list[bool]) -> None:
    """From the second request of a connection on, plain packets are taken at the turnstile, whatever their stream and
    length; both ways count, log and answer alike."""
    async with open_publishing(tmp_path, Limits(), is_fast=True) as (edge, log), await edge.connect() as client:
        for number in range(1, 30):
            data = b'{"data":"%b"}' % (b"x" * number)
            status, receipt = await ask(client, post(data))
            assert status == 201
            assert receipt["sequence"] == number  # type: ignore[index]
        other = JSON.replace(b"/a/", b"/b/")
        assert (await ask(client, post(b'{"data":1}', other)))[0] == 201
        assert taken == [False] + [True] * 29
        route = "/v1/streams/<stream>/packets"
        assert edge.count("overlayd_http_requests_total", method="POST", route=route, status="201") == 30
        assert edge.count("overlayd_http_request_seconds_count", route=route) == 30
        assert packets_in(log) == 29
        assert edge.calls == []


NOT_PLAIN = [
    (post(b'[{"data":1}]'), 201),
    (post(b'{"data":1}', JSON + b"Content-Encoding: identity\r\n"), 201),
    (post(b'{"data":1}', JSON.replace(b"packets", b"packets?proof=true")), 201),
    (post(b'{"data":1}', JSON.replace(b"packets", b"data")), 201),
    (post(b'{"data":"' + b"x" * 20_000 + b'"}'), 201),
    (post(b'{"data":1}', HEAD + b"Content-Type: application/x-ndjson\r\n"), 201),
    (post(b'{"data":', JSON), 400),
    (post(b'{"date":1}', JSON), 422),
    (post(b"", JSON), 400),
    (post(b'{"data":1}', JSON.replace(b"packets", b"packets?atomic=perhaps")), 400),
    (post(b'{"data":1}', JSON.replace(b"/a/", b"/overlayd.own/")), 403),
    (post(b'{"data":1}', JSON.replace(b"packets", b"packets?expected_sequence=900")), 409),
    (post(b'{"data":2,"id":"known"}'), 422),
    (post(b'{"data":1}', HEAD + b"Content-Type: text/plain\r\n"), 415),
]
"""Requests that wait, or are refused, before the log or by it."""


@pytest.mark.parametrize(("raw", "status"), NOT_PLAIN)
async def test_everything_else_is_left_to_the_task(tmp_path: Path, raw: bytes, status: int) -> None:
    """What isn't plain, or will be refused, gets the answer that it gets without the turnstile, and the connection
    goes on as it would."""
    answers = []
    for name, is_fast in (("fast", True), ("slow", False)):
        (tmp_path / name).mkdir()
        async with (
            open_publishing(tmp_path / name, Limits(), is_fast=is_fast) as (edge, _),
            await edge.connect() as one,
        ):
            first = post(b'{"data":1,"id":"known"}')
            assert (await ask(one, first))[0] == 201
            await one.send(raw + first)
            answer = await one.read_answer()
            told = {key: value for key, value in answer.json.items() if key not in _DIFFERENT}
            goes_on = "connection" not in answer.headers
            answers.append(
                (answer.status, told, goes_on, (await one.read_answer()).json["duplicate"] if goes_on else None)
            )
    assert answers[0] == answers[1]
    assert answers[0][0] == status


_DIFFERENT = ("instance", "cursor", "leaf_hash", "appended_at", "receipts", "proof", "id")
"""Members that each node, or each request, has its own of."""


async def test_pipelined_packets_are_answered_in_order(tmp_path: Path, taken: list[bool]) -> None:
    """One at a time, plain or not, each answer before the next request is looked at."""
    async with open_publishing(tmp_path, Limits(), is_fast=True) as (edge, _), await edge.connect() as client:
        await ask(client, post(b'{"data":0}'))
        await client.send((post(b'{"data":1}') * 3 + ECHO + post(b'{"wrong":1}') + post(b'{"data":2}')) * 20)
        for number in range(20):
            sequences = [(await client.read_answer()).json["sequence"] for _ in range(3)]
            assert sequences == [2 + 4 * number + step for step in range(3)]
            assert (await client.read_answer()).json["body"] == "abc"
            assert (await client.read_answer()).status == 422
            assert (await client.read_answer()).json["sequence"] == 5 + 4 * number
        assert sum(taken) >= 60


async def test_what_came_before_the_end_is_answered(tmp_path: Path) -> None:
    """A client that sends its requests and half closes gets every answer, then the end."""
    async with open_publishing(tmp_path, Limits(), is_fast=True) as (edge, log), await edge.connect() as client:
        await client.send(post(b'{"data":1}') * 5)
        await client.stream.send_eof()
        assert [(await client.read_answer()).status for _ in range(5)] == [201] * 5
        assert await client.is_closed_by_peer()
        assert packets_in(log) == 5


async def test_a_client_that_never_reads_is_cut(tmp_path: Path, patient_clock: trio.testing.MockClock) -> None:
    """Answers that nobody reads fill the kernel's buffers, then one answer's worth of ours; `stall_timeout` later the
    connection is cut, and its further requests were never looked at."""
    limits = Limits(stall_timeout=Duration(5))
    async with open_publishing(tmp_path, limits, is_fast=True) as (edge, log), await edge.connect() as client:
        await ask(client, post(b'{"data":1}'))
        client.stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 4096)
        sent = 0
        with suppress(trio.BrokenResourceError):
            while True:
                await client.send(post(b'{"data":1}') * 1000)
                sent += 1000
        await edge.wait_connections()
        assert edge.count("overlayd_limit_hits_total", limit="stall_timeout") == 1
        assert edge.count("overlayd_bodies_in_flight_bytes") == 0
        assert 10 < packets_in(log) < sent


async def test_a_client_that_leaves_has_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A packet that was taken is committed although its client is gone before the commit; nothing is left behind."""
    run = WriterThread.run_in_shield

    async def run_late(thread: WriterThread, function: object) -> object:
        await client.stream.aclose()
        return await run(thread, function)  # type: ignore[arg-type]

    async with open_publishing(tmp_path, Limits(), is_fast=True) as (edge, log):
        client = await edge.connect()
        await ask(client, post(b'{"data":1}'))
        monkeypatch.setattr(WriterThread, "run_in_shield", run_late)
        await client.send(post(b'{"data":2}'))
        await edge.wait_connections()
        await edge.wait_until(lambda: packets_in(log) == 2)
        monkeypatch.undo()
        assert edge.count("overlayd_bodies_in_flight_bytes") == 0
        assert edge.count("overlayd_net_connections_between_requests") == 0


async def test_shutdown_waits_for_packets_that_were_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that stops answers what it took, says that the connection closes, and ends idle connections at once."""
    run = WriterThread.run_in_shield

    async def run_while_stopping(thread: WriterThread, function: object) -> object:
        edge.stop.set()
        await trio.testing.wait_all_tasks_blocked()
        return await run(thread, function)  # type: ignore[arg-type]

    async with (
        open_publishing(tmp_path, Limits(), is_fast=True) as (edge, _),
        await edge.connect() as client,
        await edge.connect() as idle,
    ):
        for one in (client, idle):
            await ask(one, post(b'{"data":1}'))
        monkeypatch.setattr(WriterThread, "run_in_shield", run_while_stopping)
        await client.send(post(b'{"data":2}'))
        answer = await client.read_answer()
        assert (answer.status, answer.headers["connection"]) == (201, "close")
        assert await client.is_closed_by_peer()
        assert await idle.is_closed_by_peer()


async def test_requests_per_connection_counts_plain_ones(tmp_path: Path, taken: list[bool]) -> None:
    """The last one says so, and the connection ends."""
    limits = Limits(requests_per_connection=4)
    async with open_publishing(tmp_path, limits, is_fast=True) as (edge, _), await edge.connect() as client:
        await client.send(post(b'{"data":1}') * 5)
        answers = [await client.read_answer() for _ in range(4)]
        assert ["connection" in answer.headers for answer in answers] == [False, False, False, True]
        assert await client.is_closed_by_peer()
        assert taken == [False, True, True, True]
        assert edge.count("overlayd_limit_hits_total", limit="requests_per_connection") == 1


async def test_keep_alive_counts_from_the_last_answer(tmp_path: Path, patient_clock: trio.testing.MockClock) -> None:
    """A connection that publishes now and then stays; one that stops ends `keep_alive_timeout` later."""
    limits = Limits(keep_alive_timeout=Duration(3))
    async with open_publishing(tmp_path, limits, is_fast=True) as (edge, _), await edge.connect() as client:
        for _ in range(3):
            assert (await ask(client, post(b'{"data":1}')))[0] == 201
            await trio.sleep(2)
        before = trio.current_time()
        assert await client.is_closed_by_peer()
        assert 0.9 <= trio.current_time() - before <= 1.1
        assert edge.count("overlayd_limit_hits_total", limit="keep_alive_timeout") == 1


async def test_many_request_lines_are_forgotten(tmp_path: Path) -> None:
    """What is remembered of request lines is bounded, also where each asks for another stream."""
    async with open_publishing(tmp_path, Limits(), is_fast=True) as (edge, log):
        quick = _turnstile_of(edge)._quick
        assert isinstance(quick, QuickPublish)
        async with await edge.connect() as client:
            await ask(client, post(b'{"data":1}'))
            for number in range(LINES_MAX):
                quick._targets[b"line %d" % number] = ("", None)  # type: ignore[assignment]
            assert (await ask(client, post(b'{"data":1}', JSON.replace(b"/a/", b"/b/"))))[0] == 201
            assert len(quick._targets) == 1
            assert log.find_stream("b") is not None


async def test_an_upload_beside_plain_packets(tmp_path: Path) -> None:
    """A connection in the middle of a chunked body isn't the turnstile's; others are served meanwhile."""
    async with open_publishing(tmp_path, Limits(), is_fast=True) as (edge, log):
        async with await edge.connect() as slow, await edge.connect() as quick:
            await slow.send(JSON + b"Transfer-Encoding: chunked\r\n\r\n" + chunk(b'{"da'))
            for _ in range(5):
                assert (await ask(quick, post(b'{"data":1}')))[0] == 201
            await slow.send(chunk(b'ta":1}') + b"0\r\n\r\n")
            assert (await slow.read_answer()).status == 201
        assert packets_in(log) == 6


async def test_a_fault_of_the_quick_way_costs_one_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The turnstile is one task for everybody; what must not happen there ends a connection and is told."""
    take = QuickPublish.take

    def fail(quick: QuickPublish, stay: Stay, data: bytes) -> bool:
        if b"unlucky" in data:
            raise RecursionError("a fault")
        return take(quick, stay, data)

    monkeypatch.setattr(QuickPublish, "take", fail)
    async with open_publishing(tmp_path, Limits(), is_fast=True) as (edge, log), await edge.connect() as other:
        async with await edge.connect() as client:
            for one in (client, other):
                assert (await ask(one, post(b'{"data":1}')))[0] == 201
            await client.send(post(b'{"data":"unlucky"}'))
            assert await client.is_closed_by_peer()
        assert (await ask(other, post(b'{"data":3}')))[0] == 201
        assert packets_in(log) == 3
        assert edge.count("overlayd_net_turnstile_crashes_total") == 1
        assert len(_turnstile_of(edge)._stays) == 1


def _turnstile_of(edge: Edge) -> Turnstile:
    turnstile = edge.door._turnstile
    assert turnstile is not None
    return turnstile
