"""NDJSON uploads: groups as they arrive, bounded memory, rejected lines, endings of every kind."""

import gzip
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from route_rig import LOOPBACK, Node, open_node

from overlayd.access.stream_guard import StreamGuard
from overlayd.model.errors import RequestTimeout, StorageFull
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.model.names import StreamName
from overlayd.model.units import Size
from overlayd.net.content import Bodies
from overlayd.net.lane import Lane, NoLane
from overlayd.net.publish import Ask
from overlayd.net.publish_answers import Published
from overlayd.net.publish_lines import GROUP_BYTES, LinesRun, PublishedLines
from overlayd.net.spool import BUFFER_BYTES, Spool
from overlayd.pipeline.intake import PublishAnswer

NDJSON = "application/x-ndjson"
PATH = "/v1/streams/a/packets"
LIMITS = Limits(
    packet_bytes=Size(500), ndjson_group_packets=20, ndjson_receipts_max=30, errors_max=5, batch_packets_max=50
)


@pytest.fixture(params=["Quart", "lane"])
async def node(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Node]:
    """A node with routes over a real log and small limits, with and without the publish lane."""
    async with open_node(tmp_path, LIMITS, is_fast=request.param == "lane") as running:
        yield running


def lines_of(*packets: Any) -> bytes:
    """NDJSON of these values."""
    return b"".join(json.dumps(packet).encode() + b"\n" for packet in packets)


async def post(node: Node, body: bytes, query: str = "", **headers: str) -> Any:
    """Uploads a body."""
    return await node.ask("POST", PATH + query, body, who=LOOPBACK, Content_Type=NDJSON, **headers)


async def stored(node: Node) -> list[Any]:
    """The data in the log."""
    found = node.log.find_stream("a")
    if found is None:
        return []
    entries = await node.log.read_packets(found, 0, 1000)
    return [json.loads(entry.body) for entry in entries]


async def test_short_upload(node: Node) -> None:
    """A few lines give their receipts; blank lines, CR LF and a missing last line end don't matter."""
    body = b'{"data":1,"id":"1"}\r\n\n  \n{"data":2}\n{"data":3}'
    reply = await post(node, body)
    assert (reply.status, reply.json["accepted"], reply.json["rejected"]) == (201, 3, 0)
    assert [receipt["sequence"] for receipt in reply.json["receipts"]] == [1, 2, 3]
    assert "first" not in reply.json
    assert await stored(node) == [1, 2, 3]
    assert (await post(node, b'{"data":1,"id":"1"}')).status == 200
    assert (await post(node, b"")).json == {"accepted": 0, "duplicates": 0, "rejected": 0, "receipts": [], "errors": []}


async def test_long_upload(node: Node) -> None:
    """Over `ndjson_receipts_max` lines the first and last receipts stand for all."""
    reply = await post(node, lines_of(*({"data": n} for n in range(100))))
    assert (reply.status, reply.json["accepted"]) == (201, 100)
    assert "receipts" not in reply.json
    assert (reply.json["first"]["sequence"], reply.json["last"]["sequence"]) == (1, 100)
    assert await stored(node) == list(range(100))


async def test_rejected_lines(node: Node) -> None:
    """Lines that can't be taken are named by their number; the others are in the log, in order."""
    body = lines_of({"data": 0}) + b"\nnonsense\n" + lines_of({"data": 1, "id": 7}, {"data": "x" * 600}, {"data": 2})
    reply = await post(node, body)
    assert (reply.status, reply.json["accepted"], reply.json["rejected"]) == (201, 2, 3)
    assert sorted({error["line"] for error in reply.json["errors"]}) == [3, 4, 5]
    assert await stored(node) == [0, 2]


async def test_all_lines_rejected(node: Node) -> None:
    """422, with the counts and the first few errors."""
    reply = await post(node, b"no\n" * 40)
    assert (reply.status, reply.json["rejected"], len(reply.json["errors"])) == (422, 40, 5)
    assert reply.json["errors"][0]["line"] == 1


@pytest.mark.parametrize(
    "bad", [b"nonsense\n", b'{"data":1,"type":""}\n', b'{"data":"' + b"x" * 600 + b'"}\n', b'{"data":9,"id":"5"}\n']
)
async def test_stop_on_error(node: Node, bad: bytes) -> None:
    """Everything before the first rejected line is in the log, nothing behind it, wherever in a group it stands."""
    for at in (0, 7, 20, 33):
        await node.ask("DELETE", "/v1/streams/a?confirm=a")
        body = b"".join(lines_of({"data": n, "id": str(n)}) for n in range(at))
        reply = await post(
            node, lines_of({"data": 5, "id": "5"}) + body + bad + lines_of({"data": 99}), "?stop_on_error=true"
        )
        before = [5, *(n for n in range(at) if n != 5)]
        assert await stored(node) == before
        assert (reply.status, reply.json["accepted"], reply.json["rejected"]) == (201, len(before), 1)
        assert [error["line"] for error in reply.json["errors"]] == [at + 2]


async def test_atomic_upload(node: Node) -> None:
    """With `atomic=true` it is all lines or none, and no more than an array may have."""
    good = lines_of(*({"data": n} for n in range(40)))
    assert (await post(node, good, "?atomic=true")).json["accepted"] == 40
    for bad in (b"nonsense\n", b'{"data":"' + b"x" * 600 + b'"}'):
        assert (await post(node, good + bad, "?atomic=true")).status in (400, 413, 422)
    assert (await post(node, good + good, "?atomic=true")).json["code"] == "batch.too_large"
    assert len(await stored(node)) == 40


async def test_receipts_of_all(node: Node) -> None:
    """`receipts=all` gives a receipt a line in order, then the counts."""
    reply = await post(node, lines_of(*({"data": n} for n in range(90))) + b"bad\n", "?receipts=all")
    assert (reply.status, reply.headers["content-type"]) == (201, NDJSON)
    answers = [json.loads(line) for line in reply.body.splitlines()]
    assert [receipt["sequence"] for receipt in answers[:-1]] == list(range(1, 91))
    assert (answers[-1]["accepted"], answers[-1]["rejected"], answers[-1]["errors"][0]["line"]) == (90, 1, 91)


@pytest.mark.parametrize("query", ["?expected_sequence=0", "?proof=true"])
async def test_what_does_not_go_with_lines(node: Node, query: str) -> None:
    """Parameters that only make sense for one request's packets together are 400."""
    assert (await post(node, lines_of({"data": 1}), query)).status == 400
    assert (await post(node, lines_of({"data": 1}), Idempotency_Key="k")).status == 400
    assert await stored(node) == []


async def test_gzipped_upload(node: Node) -> None:
    """A compressed upload is cut into lines as it inflates; garbage behind it is told with what was committed."""
    body = lines_of(*({"data": n} for n in range(50)))
    assert (await post(node, gzip.compress(body), Content_Encoding="gzip")).json["accepted"] == 50
    broken = await post(node, gzip.compress(body) + b"garbage", Content_Encoding="gzip")
    assert (broken.status, broken.json["code"]) == (400, "request.malformed")
    assert broken.json.get("accepted", 0) + 50 == len(await stored(node))


class Feed:
    """A body whose pieces arrive when the test sends them."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[bytes](1000)
        self.taken = 0

    @property
    def is_ready(self) -> bool:
        return self._receive.statistics().current_buffer_used > 0

    def receive_nowait(self) -> None:
        """Nothing comes without a wait."""

    async def receive(self) -> bytes:
        piece = await self._receive.receive()
        self.taken += len(piece)
        return piece

    def send(self, piece: bytes) -> None:
        self._send.send_nowait(piece)


class SlowIntake:
    """Stands in for the intake where a test needs to see its groups, or trouble at a certain one."""

    def __init__(self, trouble_at: int = -1, delay_s: float = 0) -> None:
        self.groups: list[list[bytes]] = []
        self.trouble_at = trouble_at
        self.delay_s = delay_s

    def count_limit_hit(self, limit: str) -> None:
        """Nothing is asked about it here."""

    def count_errors(self, count: int) -> None:
        """Neither about this."""

    async def publish(self, stream: str, objects: list[bytes], **terms: Any) -> PublishAnswer:
        await trio.sleep(self.delay_s)
        if len(self.groups) == self.trouble_at:
            raise StorageFull("no room")
        self.groups.append(objects)
        return PublishAnswer([], [], len(objects), 0, 0)


class FakePublisher:
    """What a run needs of the publisher."""

    def __init__(self, intake: SlowIntake, limits: Limits) -> None:
        self.intake = intake
        self.limits = limits
        self.streams = StreamGuard(lambda name: None)
        self.lane = NoLane()

    async def submit(self, ask: Ask, objects: list[bytes], *, atomic: bool, first_index: int) -> PublishAnswer:
        return await self.intake.publish(ask.stream, objects)


def ask_for(**more: Any) -> Ask:
    """A request for stream `a`."""
    return Ask(
        stream=StreamName("a"),
        principal=LOOPBACK,
        content_type=NDJSON,
        event_headers=(),
        url="http://localhost",
        **more,
    )


async def run_lines(feed: Feed, intake: SlowIntake, limits: Limits = LIMITS, **more: Any) -> Published | PublishedLines:
    """One upload into a stand-in of the intake."""
    bodies = Bodies(limits, Lane(2, 8, Metrics()), Metrics())
    with bodies.hold() as hold:
        reader = bodies.reader(feed, "", int(limits.upload_bytes), "upload_bytes")
        publisher: Any = FakePublisher(intake, limits)
        return await LinesRun(publisher, ask_for(**more), reader, hold, lambda: Spool(Path())).run()


async def test_lines_are_committed_as_they_arrive(autojump_clock: trio.testing.MockClock) -> None:
    """What has arrived is committed before the upload goes on, however long it pauses."""
    feed, intake = Feed(), SlowIntake(delay_s=0.01)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_lines, feed, intake)
        feed.send(lines_of({"data": 1}, {"data": 2}) + b'{"da')
        await trio.sleep(5)
        assert [len(group) for group in intake.groups] == [2]
        feed.send(b'ta":3}\n')
        await trio.sleep(5)
        assert [len(group) for group in intake.groups] == [2, 1]
        for number in range(45):
            feed.send(lines_of({"data": number}))
        feed.send(b"")
    assert [len(group) for group in intake.groups] == [2, 1, 20, 20, 5]


async def test_upload_takes_one_group_of_memory(autojump_clock: trio.testing.MockClock) -> None:
    """While a commit takes its time, the upload is held back: no more is taken in than a group and a piece."""
    limits = Limits(ndjson_group_packets=10_000)
    feed, intake = Feed(), SlowIntake(delay_s=10)
    line = lines_of({"data": "x" * 1000})
    piece = line * 64
    for _ in range(200):
        feed.send(piece)
    feed.send(b"")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_lines, feed, intake, limits)
        await trio.sleep(1)
        assert feed.taken <= GROUP_BYTES + len(piece)
        await trio.sleep(10)
        assert feed.taken <= 2 * (GROUP_BYTES + len(piece))
    assert sum(map(len, intake.groups)) == 200 * 64
    assert max(sum(map(len, group)) for group in intake.groups) <= GROUP_BYTES + len(line)


async def test_trouble_half_way(autojump_clock: trio.testing.MockClock) -> None:
    """When the intake refuses a later group, the problem counts what was committed before it."""
    feed, intake = Feed(), SlowIntake(trouble_at=2)
    feed.send(lines_of(*({"data": n} for n in range(100))))
    feed.send(b"")
    with pytest.raises(StorageFull) as caught:
        await run_lines(feed, intake)
    assert caught.value.extra["accepted"] == 40


async def test_silence_half_way(autojump_clock: trio.testing.MockClock) -> None:
    """An upload that falls silent is 408 with what was committed."""
    feed, intake = Feed(), SlowIntake()
    feed.send(lines_of({"data": 1}))
    with pytest.raises(RequestTimeout) as caught:
        await run_lines(feed, intake)
    assert (caught.value.extra["accepted"], trio.current_time()) == (1, 30)


async def test_cancelled_upload(autojump_clock: trio.testing.MockClock) -> None:
    """A client that leaves in the middle ends the run and nothing hangs."""
    feed, intake = Feed(), SlowIntake(delay_s=5)
    feed.send(lines_of({"data": 1}))
    with trio.move_on_after(3) as scope:
        await run_lines(feed, intake, all_receipts=True)
    assert scope.cancelled_caught


async def test_spool(tmp_path: Path) -> None:
    """Small answers stay in memory, large ones go through a nameless file, and both come back whole."""
    for size in (5000, 3 * BUFFER_BYTES + 7):
        spool, piece = Spool(tmp_path), b"0123456789" * 500
        for _ in range(size // len(piece)):
            await spool.write(piece)
        assert b"".join([part async for part in spool.read()]) == piece * (size // len(piece))
    assert os.listdir(tmp_path) == []
    broken = Spool(tmp_path / "missing")
    with pytest.raises(StorageFull):
        await broken.write(b"x" * BUFFER_BYTES)
    broken.close()
