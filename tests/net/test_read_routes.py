"""Reading over HTTP: packets of a stream, long-polls, single packets, pages of a live query."""

import base64
from pathlib import Path
from typing import Any

import pytest
import trio
from blake3 import blake3
from live_rig import LiveNode, open_live
from real_waiting import SOON_S
from route_rig import LOOPBACK, principal_with, scoped
from trio.testing import wait_all_tasks_blocked

from overlayd.delivery.session import Ending
from overlayd.model.definition import Definition
from overlayd.model.entry import StoredEntry
from overlayd.model.limits import Limits
from overlayd.model.units import Duration, Size
from overlayd.storage import Stream


def numbers(body: dict[str, Any]) -> list[int]:
    """The sequences of an answer's packets."""
    return [packet["packet_sequence"] for packet in body["packets"]]


async def test_packets_page_by_page(tmp_path: Path) -> None:
    """A stream is read from any sequence on, a page at a time."""
    async with open_live(tmp_path) as live:
        await live.append("s", *[b'{"n":%d}' % n for n in range(25)])
        await live.append("other", b"1")
        first = (await live.ask("GET", "/v1/streams/s/packets?limit=10", who=LOOPBACK)).json
        assert numbers(first) == list(range(1, 11))
        assert (first["next_after"], first["head_sequence"], first["gaps"]) == (10, 25, [])
        assert first["packets"][3]["data_payload"] == {"n": 3}
        rest = (await live.ask("GET", f"/v1/streams/s/packets?after={first['next_after']}")).json
        assert numbers(rest) == list(range(11, 26))
        end = (await live.ask("GET", "/v1/streams/s/packets?after=25")).json
        assert (end["packets"], end["next_after"]) == ([], 25)


async def test_gaps_in_sequences(tmp_path: Path) -> None:
    """What was taken away is told by runs of sequences with their reason; a page of nothing else is passed over."""
    async with open_live(tmp_path, Limits(read_packets_max=5)) as live:
        receipts = await live.append("s", *[b"%d" % n for n in range(20)])
        stream = live.log.find_stream("s")
        assert stream is not None
        await live.log.reduce(stream, receipts[0].offset, receipts[11].offset, "retention")
        await live.log.reduce(stream, receipts[14].offset, receipts[14].offset, "erased")
        body = (await live.ask("GET", "/v1/streams/s/packets?limit=5")).json
        assert body["gaps"][0] == {"from_sequence": 1, "to_sequence": 12, "reason": "retention"}
        assert body["gaps"][1] == {"from_sequence": 15, "to_sequence": 15, "reason": "erased"}
        assert numbers(body) == [13, 14]
        gone = await live.ask("GET", "/v1/streams/s/packets/15")
        assert (gone.status, gone.json["code"], gone.json["reason"]) == (410, "packet.gone", "erased")


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v1/streams/none/packets", 404, "stream.unknown"),
        ("/v1/streams/s/packets?after=-1", 400, "parameter.invalid"),
        ("/v1/streams/s/packets?limit=0", 400, "parameter.invalid"),
        ("/v1/streams/s/packets?limit=1001", 400, "parameter.invalid"),
        ("/v1/streams/s/packets?wait=30", 400, "parameter.invalid"),
        ("/v1/streams/s/packets?deliver=confirmed", 400, "parameter.invalid"),
        ("/v1/streams/s/packets?aftr=1", 400, "parameter.invalid"),
        ("/v1/streams/s/packets/0", 400, "parameter.invalid"),
        ("/v1/streams/s/packets/x", 400, "parameter.invalid"),
        ("/v1/streams/s/packets/99", 404, "packet.unknown"),
        ("/v1/streams/s/packets/99/data", 404, "packet.unknown"),
        ("/v1/streams/s/last?key=nobody", 404, "packet.unknown"),
        ("/v1/packets", 400, "parameter.invalid"),
        ("/v1/packets?txid=" + "a" * 64, 400, "parameter.invalid"),
        ("/v1/read?streem=a", 400, "parameter.invalid"),
        ("/v1/read?stream=%FF", 400, "parameter.invalid"),
        ("/v1/read?limit=0", 400, "parameter.invalid"),
        ("/v1/read?after=nonsense", 400, "cursor.malformed"),
        ("/v1/read?after=e1k7f3q2ma-1", 410, "cursor.epoch"),
        ("/v1/read?stream=s&deliver=confirmed", 400, "parameter.invalid"),
        ("/v1/read?filter=data..x", 422, "filter.invalid"),
    ],
)
async def test_problems(tmp_path: Path, path: str, status: int, code: str) -> None:
    """What is wrong with a request is told precisely."""
    async with open_live(tmp_path) as live:
        await live.append("s", b"1")
        reply = await live.ask("GET", path)
        assert (reply.status, reply.json["code"]) == (status, code)


async def test_future_cursor_names_the_head(tmp_path: Path) -> None:
    """A cursor beyond the head is refused, and the answer holds the head."""
    async with open_live(tmp_path) as live:
        await live.append("s", b"1")
        head = (await live.ask("GET", "/v1/read")).json["cursor"]
        beyond = head.rsplit("-", 1)[0] + "-999"
        reply = await live.ask("GET", f"/v1/read?after={beyond}")
        assert (reply.status, reply.json["code"], reply.json["head"]) == (400, "cursor.future", head)


async def test_long_poll_gets_the_next_packet(tmp_path: Path) -> None:
    """A waiting request is answered as soon as its stream gets a packet, and others' packets don't end it."""
    async with open_live(tmp_path) as live:
        await live.append("s", b"1")
        await live.append("other", b"0")
        async with trio.open_nursery() as nursery:

            async def poll() -> None:
                body = (await live.ask("GET", "/v1/streams/s/packets?after=1&wait=30s")).json
                assert numbers(body) == [2]

            nursery.start_soon(poll)
            await wait_all_tasks_blocked(0.01)
            await live.append("other", b"1")
            await live.append("s", b"2")
            nursery.cancel_scope.deadline = trio.current_time() + SOON_S
        assert not nursery.cancel_scope.cancelled_caught, "it was not answered"


async def test_longer_holds_are_cut(tmp_path: Path) -> None:
    """A wait beyond `wait_max` is cut to it, which is counted; one within it isn't."""
    async with open_live(tmp_path, limits=Limits(wait_max=Duration(0.01))) as live:
        await live.append("s", b"1")
        for wait, hits in (("5ms", 0), ("50s", 1)):
            body = (await live.ask("GET", f"/v1/streams/s/packets?after=1&wait={wait}")).json
            assert body["packets"] == []
            assert live.count("overlayd_limit_hits_total", limit="wait_max") == hits


async def test_long_poll_ends(tmp_path: Path) -> None:
    """A wait without a packet ends with an empty answer; at shutdown it ends at once."""
    async with open_live(tmp_path) as live:
        await live.append("s", b"1")
        body = (await live.ask("GET", "/v1/streams/s/packets?after=1&wait=20ms")).json
        assert (body["packets"], body["next_after"]) == ([], 1)
        body = (await live.ask("GET", "/v1/read?from=now&wait=20ms")).json
        assert (body["messages"], body["at_head"]) == ([], True)
        answers = []
        async with trio.open_nursery() as nursery:

            async def poll(path: str) -> None:
                answers.append((await live.ask("GET", path)).json)

            nursery.start_soon(poll, "/v1/streams/s/packets?after=1&wait=50s")
            nursery.start_soon(poll, "/v1/read?from=now&wait=50s")
            await wait_all_tasks_blocked(0.01)
            assert answers == []
            await live.registry.stop(Ending(1001, "shutdown"))
        assert len(answers) == 2


async def test_what_comes_while_the_first_page_is_read_is_not_passed_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A packet that is appended after the page was read, and before the wait, ends the wait and is in the answer."""
    async with open_live(tmp_path) as live:
        await live.append("s", b"1")
        read = live.log.read_packets

        async def read_slowly(stream: Stream, after: int, limit: int) -> list[StoredEntry]:
            page = await read(stream, after, limit)
            monkeypatch.undo()
            await live.append("s", b"2")
            return page

        monkeypatch.setattr(live.log, "read_packets", read_slowly)
        with trio.fail_after(SOON_S):
            body = (await live.ask("GET", "/v1/streams/s/packets?after=1&wait=50s")).json
        assert numbers(body) == [2]


async def test_waiting_gives_the_lane_back(tmp_path: Path) -> None:
    """While long-polls wait, other requests run, though there are fewer places than waiters."""
    async with open_live(tmp_path) as live:
        await live.append("s", b"1")
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(live.ask, "GET", "/v1/streams/s/packets?after=1&wait=50s")
                nursery.start_soon(live.ask, "GET", "/v1/read?from=now&wait=50s")
            await wait_all_tasks_blocked(0.01)
            with trio.fail_after(SOON_S):
                assert (await live.ask("GET", "/v1/streams/s/packets/1")).status == 200
            nursery.cancel_scope.cancel()


async def test_one_packet_and_its_etag(tmp_path: Path) -> None:
    """A packet comes with an ETag that answers 304 to whoever has it."""
    async with open_live(tmp_path) as live:
        await live.append("s", b'{"a": 1}', ids=("p1",))
        reply = await live.ask("GET", "/v1/streams/s/packets/1")
        assert (reply.json["packet_id"], reply.json["data_payload"]) == ("p1", {"a": 1})
        again = await live.ask("GET", "/v1/streams/s/packets/1", If_None_Match=reply.headers["etag"])
        assert (again.status, again.body, again.headers["etag"]) == (304, b"", reply.headers["etag"])
        assert again.headers["cache-control"] == reply.headers["cache-control"] == "no-cache"
        other = await live.ask("GET", "/v1/streams/s/packets/1", If_None_Match='"x"')
        assert other.status == 200


async def test_body_byte_for_byte(tmp_path: Path) -> None:
    """…/data answers the stored bytes, whose BLAKE3 is the content hash, for ever."""
    body = b'{ "a":\n 1.50 }'
    async with open_live(tmp_path) as live:
        await live.append("s", body)
        reply = await live.ask("GET", "/v1/streams/s/packets/1/data")
        assert (reply.body, reply.headers["content-type"]) == (body, "application/json")
        assert reply.headers["etag"] == f'"{blake3(body).hexdigest()}"'
        assert "immutable" in reply.headers["cache-control"]
        again = await live.ask("GET", "/v1/streams/s/packets/1/data", If_None_Match=reply.headers["etag"])
        assert (again.status, again.headers["cache-control"]) == (304, reply.headers["cache-control"])


async def test_octets_by_name(tmp_path: Path) -> None:
    """Octets come as the JSON text that was stored and hashed; asked for by name they come as what they are."""
    raw = bytes(range(256))
    async with open_live(tmp_path) as live:
        published = await live.ask("POST", "/v1/streams/s/data", raw, Content_Type="application/octet-stream")
        assert published.status == 201
        reply = await live.ask("GET", "/v1/streams/s/packets/1/data")
        assert reply.body == b'"' + base64.b64encode(raw) + b'"'
        octets = await live.ask("GET", "/v1/streams/s/packets/1/data", Accept="application/octet-stream")
        assert (octets.body, octets.headers["content-type"]) == (raw, "application/octet-stream")
        assert octets.headers["etag"] != reply.headers["etag"]


async def test_newest(tmp_path: Path) -> None:
    """…/last is the newest packet, also of a key."""
    async with open_live(tmp_path) as live:
        for number, key in enumerate(("x", "y", "x")):
            packet = b'{"data":%d,"key":"%s"}' % (number, key.encode())
            await live.ask("POST", "/v1/streams/s/packets", packet, Content_Type="application/json")
        assert (await live.ask("GET", "/v1/streams/s/last")).json["packet_sequence"] == 3
        assert (await live.ask("GET", "/v1/streams/s/last?key=y")).json["packet_sequence"] == 2


async def test_packets_by_id(tmp_path: Path) -> None:
    """Packets are found by their id in any stream, and those without one by what they are called."""
    async with open_live(tmp_path) as live:
        await live.append("a", b"1", ids=("p",))
        await live.append("b", b"2", ids=("p",))
        (unnamed,) = await live.append("b", b"3")
        found = (await live.ask("GET", "/v1/packets?id=p")).json
        assert [packet["stream_id"] for packet in found["packets"]] == ["a", "b"]
        found = (await live.ask("GET", f"/v1/packets?id={unnamed.packet_id}")).json
        assert [packet["data_payload"] for packet in found["packets"]] == [3]
        assert (await live.ask("GET", "/v1/packets?id=nobody")).json == {"packets": []}


async def test_read_page_by_page(tmp_path: Path) -> None:
    """/v1/read goes through the log by its cursor, in messages, until the head."""
    async with open_live(tmp_path) as live:
        for number in range(5):
            await live.append("w.a", b"%d" % number)
            await live.append("w.b", b"%d" % number)
            await live.append("t", b"0")
        found, cursor = [], ""
        for _ in range(20):
            after = f"&after={cursor}" if cursor else ""
            body = (await live.ask("GET", f"/v1/read?stream=w.*&limit=3{after}")).json
            assert len(body["messages"]) <= 3
            found += [(m["stream_id"], m["packet"]["packet_sequence"]) for m in body["messages"]]
            cursor = body["cursor"]
            if body["at_head"]:
                break
        assert found == [(name, number) for number in range(1, 6) for name in ("w.a", "w.b")]


async def test_read_as_cloudevents(tmp_path: Path) -> None:
    """format=cloudevents gives events as messages."""
    async with open_live(tmp_path) as live:
        await live.append("s", b"7", ids=("p",))
        (event,) = (await live.ask("GET", "/v1/read?stream=s&format=cloudevents")).json["messages"]
        assert (event["specversion"], event["source"], event["data"]) == ("1.0", "/streams/s", 7)


async def test_read_waits_for_a_message(tmp_path: Path) -> None:
    """A waiting read is answered by the first message that matches."""
    async with open_live(tmp_path) as live:
        await live.append("s", b"1")
        async with trio.open_nursery() as nursery:

            async def poll() -> None:
                body = (await live.ask("GET", "/v1/read?stream=s&from=now&wait=30s")).json
                assert [m["packet"]["data_payload"] for m in body["messages"]] == [2]

            nursery.start_soon(poll)
            await wait_all_tasks_blocked(0.01)
            await live.append("other", b"1")
            await live.append("s", b"2")
            nursery.cancel_scope.deadline = trio.current_time() + SOON_S
        assert not nursery.cancel_scope.cancelled_caught, "it was not answered"


async def test_read_scans_so_far_and_no_further(tmp_path: Path) -> None:
    """One request looks at scan_max entries and may answer nothing but a moved cursor."""
    async with open_live(tmp_path, Limits(scan_max=50, page_entries=20)) as live:
        await live.append("noise", *[b"%d" % n for n in range(200)])
        await live.append("s", b"1")
        requests, cursor = 0, ""
        while True:
            after = f"&after={cursor}" if cursor else ""
            body = (await live.ask("GET", f"/v1/read?stream=s{after}")).json
            requests += 1
            if body["messages"]:
                break
            assert not body["at_head"]
            assert body["cursor"] != cursor
            cursor = body["cursor"]
        assert 3 <= requests <= 5
        assert live.count("overlayd_limit_hits_total", limit="scan_max") >= 3


async def test_read_answers_by_bytes(tmp_path: Path) -> None:
    """An answer stops at about page_bytes, however many messages were asked for."""
    async with open_live(tmp_path, Limits(page_bytes=Size(10_000))) as live:
        await live.append("s", *[b'"%s"' % (b"x" * 3000) for _ in range(20)])
        body = (await live.ask("GET", "/v1/read?stream=s&limit=1000")).json
        assert 2 <= len(body["messages"]) <= 8
        listed = (await live.ask("GET", "/v1/streams/s/packets?limit=1000")).json
        assert 2 <= len(listed["packets"]) <= 8


async def test_read_and_gaps(tmp_path: Path) -> None:
    """A gap is a message; with on_gap=error it is 410 with the oldest, unless there is something to give before it."""
    async with open_live(tmp_path) as live:
        receipts = await live.append("s", b"1", b"2", b"3")
        stream = live.log.find_stream("s")
        assert stream is not None
        await live.log.reduce(stream, receipts[1].offset, receipts[1].offset, "retention")
        body = (await live.ask("GET", "/v1/read?stream=s")).json
        assert [m["type"] for m in body["messages"]] == ["packet", "gap", "packet"]
        strict = (await live.ask("GET", "/v1/read?stream=s&on_gap=error")).json
        assert [m["type"] for m in strict["messages"]] == ["packet"]
        reply = await live.ask("GET", f"/v1/read?stream=s&on_gap=error&after={strict['cursor']}")
        assert (reply.status, reply.json["code"]) == (410, "cursor.expired")
        rest = (await live.ask("GET", f"/v1/read?stream=s&on_gap=error&after={reply.json['oldest']}")).json
        assert [m["packet"]["data_payload"] for m in rest["messages"]] == [3]


async def test_rights(tmp_path: Path) -> None:
    """Reading needs the right to read."""
    async with open_live(tmp_path) as live:
        await live.append("s", b"1")
        for path in ("/v1/read", "/v1/streams/s/packets", "/v1/streams/s/packets/1",
                     "/v1/streams/s/packets/1/data", "/v1/streams/s/last"):  # fmt: skip
            reply = await live.ask("GET", path, who=principal_with("publish", "subscribe"))
            assert (reply.status, reply.json["code"]) == (403, "access.forbidden")
            assert (await live.ask("GET", path, who=principal_with("read"))).status == 200


async def test_packets_of_several_streams_are_those_that_may_be_read(tmp_path: Path) -> None:
    """A search by id and a page of a pattern leave out what the key isn't for; a stream named outright is refused."""
    async with open_live(tmp_path) as live:
        for stream in ("a.one", "a.two", "b.one"):
            await live.append(stream, b"1", ids=("same",))
        who = scoped("read:a.*")
        found = (await live.ask("GET", "/v1/packets?id=same", who=who)).json["packets"]
        assert [packet["stream_id"] for packet in found] == ["a.one", "a.two"]
        page = (await live.ask("GET", "/v1/read", who=who)).json
        assert [message["stream_id"] for message in page["messages"]] == ["a.one", "a.two"]
        page = (await live.ask("GET", "/v1/read?stream=*.one", who=who)).json
        assert [message["stream_id"] for message in page["messages"]] == ["a.one"]
        reply = await live.ask("GET", "/v1/read?stream=b.one", who=who)
        assert (reply.status, reply.json["subject"]) == (403, "b.one")
        assert (await live.ask("GET", "/v1/streams", who=who)).json["streams"][0]["title"] == ""
        assert len((await live.ask("GET", "/v1/streams", who=who)).json["streams"]) == 2


async def test_public_streams_are_open_to_every_key(tmp_path: Path) -> None:
    """Whoever has a key reads a public stream; what becomes private is out of sight at once."""
    async with open_live(tmp_path) as live:
        await live.log.define_stream("news", Definition(visibility="public"))
        await live.append("news", b"1")
        who = scoped("publish:else")
        assert (await live.ask("GET", "/v1/streams/news/packets", who=who)).status == 200
        assert len((await live.ask("GET", "/v1/read", who=who)).json["messages"]) == 1
        await live.log.define_stream("news", Definition(visibility="private"))
        assert (await live.ask("GET", "/v1/streams/news/packets", who=who)).status == 403
        assert (await live.ask("GET", "/v1/read", who=who)).json["messages"] == []


async def test_deleted_while_waiting(tmp_path: Path) -> None:
    """A long-poll on a stream that is deleted ends."""
    async with open_live(tmp_path) as live:
        await live.append("s", b"1")
        done: list[LiveNode] = []
        async with trio.open_nursery() as nursery:

            async def poll() -> None:
                await live.ask("GET", "/v1/streams/s/packets?after=1&wait=50s")
                done.append(live)

            nursery.start_soon(poll)
            await wait_all_tasks_blocked(0.01)
            with trio.fail_after(SOON_S):
                await live.log.delete_stream("s")
        assert done
