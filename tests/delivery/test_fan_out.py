"""Fan-out: what is done once for all, what isn't done for those who don't match, and nobody skipped or doubled."""

import random
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
import trio
from delivery_fakes import FakeLog
from hypothesis import given, settings
from hypothesis import strategies as st
from patient_clock import patient_clock
from push_pair import MemoryPeer, MemoryPushStream, push_pair
from socket_harness import ANYBODY, Node
from test_delivery_socket_limits import handshake
from trio.testing import MockClock, wait_all_tasks_blocked

from overlayd.delivery.fan_out import REST_CHANNELS, REST_S
from overlayd.delivery.frames import PacketState
from overlayd.delivery.matching import Matcher, PacketView
from overlayd.delivery.session import Ending
from overlayd.delivery.wires import PIECE_BYTES
from overlayd.model.limits import Limits
from overlayd.model.units import Duration


class CountingLease:
    """A filter that lets odd numbers through and counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, text: str, principal: str) -> "CountingLease":
        return self

    @property
    def judge(self) -> Callable[[PacketView, PacketState], Awaitable[bool | None]]:
        async def judge(view: PacketView, state: PacketState) -> bool | None:
            self.asked += 1
            await trio.lowlevel.checkpoint()
            return int(msgspec.json.decode(view.entry.body)) % 2 == 1

        return judge

    def release(self) -> None:
        pass


class Reading:
    """A raw client: what it was sent, as messages."""

    def __init__(self, peer: MemoryPeer, stream: MemoryPushStream) -> None:
        self.peer = peer
        self.stream = stream
        self.data = bytearray()
        self.is_begun = False

    async def take(self, count: int) -> None:
        """Reads some bytes, if there are any."""
        with trio.move_on_after(0):
            self.data += await self.peer.receive_some(count)

    async def take_all(self) -> None:
        """Reads until nothing more comes."""
        await wait_all_tasks_blocked()
        while self.peer._incoming.data:
            self.data += await self.peer.receive_some(65536)
            await wait_all_tasks_blocked()

    def messages(self) -> list[dict[str, Any]]:
        """The whole messages so far."""
        found, at = [], bytes(self.data).index(b"\r\n\r\n") + 4
        while at + 2 <= len(self.data):
            size, head = self.data[at + 1], 2
            if size > 125:
                head = 4 if size == 126 else 10
                size = int.from_bytes(self.data[at + 2 : at + head], "big")
            if at + head + size > len(self.data):
                break
            if self.data[at] == 0x81:
                found.append(msgspec.json.decode(bytes(self.data[at + head : at + head + size])))
            at += head + size
        return found

    def payloads(self, sub: str | None = None) -> list[Any]:
        return [
            message["packet"]["data_payload"]
            for message in self.messages()
            if message["type"] == "packet" and message.get("sub") == sub
        ]


async def open_reading(node: Node, nursery: trio.Nursery, query: str, room: int = 1 << 20) -> Reading:
    """A connected client that has read nothing yet."""
    theirs, ours = push_pair(room)
    nursery.start_soon(node.serve, ours)
    await theirs.send_all(handshake(query))
    return Reading(theirs, ours)


async def test_a_frame_is_encoded_and_written_once(autojump_clock: MockClock) -> None:
    """For fifty equal subscriptions a packet's frame is encoded once, its filter asked once, and each gets the packets
    of one group in one write."""
    lease = CountingLease()
    node = Node(lease=lease)
    async with node.run(), trio.open_nursery() as nursery:
        readings = [await open_reading(node, nursery, "stream=a&filter=odd") for _ in range(50)]
        await wait_all_tasks_blocked()
        before = [reading.stream.writes for reading in readings]
        for number in range(10):
            node.log.add("a", number)
        for reading in readings:
            await reading.take_all()
            assert reading.payloads() == [1, 3, 5, 7, 9]
        assert [reading.stream.writes for reading in readings] == [count + 1 for count in before]
        nursery.cancel_scope.cancel()
    assert lease.asked == 10
    registry = node.delivery.metrics.registry
    assert registry.get_sample_value("overlayd_frames_encoded_total", {"format": "packet"}) == 5
    assert registry.get_sample_value("overlayd_fan_out_groups_total") == 1


async def test_who_does_not_match_costs_nothing(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A packet of one stream is judged for that stream's selections only, and nothing is written to the others."""
    node = Node()
    judged: list[str] = []

    def watching(matcher: Matcher, view: PacketView) -> bool:
        judged.append(",".join(matcher.selection.streams))
        return is_view_match(matcher, view)

    is_view_match = Matcher.is_view_match
    monkeypatch.setattr(Matcher, "is_view_match", watching)
    async with node.run(), trio.open_nursery() as nursery:
        others = [await open_reading(node, nursery, f"stream=s{number}") for number in range(100)]
        keyed = [await open_reading(node, nursery, f"key=k{number}") for number in range(50)]
        one = await open_reading(node, nursery, "stream=a")
        await wait_all_tasks_blocked()
        before = [reading.stream.writes for reading in (*others, *keyed)]
        for number in range(20):
            node.log.add("a", number, key="k7")
        await one.take_all()
        assert one.payloads() == list(range(20))
        assert keyed[7].stream.writes == before[107] + 1
        keyed[7].stream.writes -= 1
        assert [reading.stream.writes for reading in (*others, *keyed)] == before
        assert sorted(set(judged)) == ["", "a"]
        assert len(judged) == 40
        nursery.cancel_scope.cancel()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_slow_readers_skip_and_double_nothing(seed: int) -> None:
    """Whatever the clients read when, and however little fits in between: each subscription gets every packet that it
    asked for once and in order, also when sessions fall behind and rejoin all the time."""
    chance = random.Random(seed)

    async def main() -> None:
        node = Node(FakeLog(page_entries=chance.choice([1, 3, 50])))
        total = 0
        async with node.run(), trio.open_nursery() as nursery:
            readings = [
                await open_reading(
                    node, nursery, chance.choice(["stream=a", "from=beginning&stream=a", "stream=a&filter=data%3E=0"]),
                    room=chance.choice([300, 1000, 5000, 1 << 20]),
                )
                for _ in range(6)
            ]  # fmt: skip
            for reading in readings:
                await reading.take(10_000)
            while total < 60:
                for _ in range(chance.randrange(8)):
                    node.log.add("a", total)
                    node.log.add("b", 0)
                    total += 1
                for reading in chance.sample(readings, 3):
                    await reading.take(chance.choice([1, 100, 2000, 50_000]))
                if chance.random() < 0.5:
                    await wait_all_tasks_blocked()
            for _ in range(3):
                for reading in readings:
                    await reading.take_all()
            for reading in readings:
                begun = next(m for m in reading.messages() if m["type"] == "subscribed")
                first = next((n for n in range(total) if node.log.cursor(2 * n) == begun["cursor"]), None)
                expected = list(range(total))[first if first is not None else 0 :]
                if first is None:  # it began between the two entries of a round
                    expected = [n for n in range(total) if 2 * n + 1 > int(begun["cursor"].rsplit("-", 1)[1])]
                assert reading.payloads() == expected
            assert all(not line.behind for line in node.lane.fan_out.lines)
            nursery.cancel_scope.cancel()

    with patient_clock(0) as clock:
        trio.run(main, clock=clock)


class BytePace:
    """So many bytes a second, and nothing ahead."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.until_s = trio.current_time()

    def wait_s(self) -> float:
        return max(0.0, self.until_s - trio.current_time())

    def spend(self, size: int) -> None:
        self.until_s = max(self.until_s, trio.current_time()) + size / self.rate


async def test_a_session_is_sent_to_at_its_pace(autojump_clock: MockClock) -> None:
    """It gets everything, in order, no sooner than it may; others get it at once, and its end isn't held up."""
    node = Node()
    async with node.run(), trio.open_nursery() as nursery:
        slow, quick = [await open_reading(node, nursery, "stream=a") for _ in range(2)]
        await wait_all_tasks_blocked()
        paced = node.registry.sessions()[0]
        paced.pace = BytePace(100_000.0)
        begun_s, texts = trio.current_time(), [f"{number:02}" + "x" * 20_000 for number in range(30)]
        for text in texts:
            node.log.add("a", text)
            await wait_all_tasks_blocked()
        await quick.take_all()
        assert quick.payloads() == texts
        assert trio.current_time() == begun_s
        await slow.take_all()
        sent = paced.bytes_sent
        while len(slow.payloads()) < 30 and trio.current_time() - begun_s < 60:
            await trio.sleep(0.25)
            await slow.take_all()
            assert paced.bytes_sent - sent <= 100_000 * (trio.current_time() - begun_s) + 2 * PIECE_BYTES
        assert slow.payloads() == texts
        assert trio.current_time() - begun_s >= 4
        for text in texts:
            node.log.add("a", text)
            await wait_all_tasks_blocked()
        before_s = trio.current_time()
        paced.end(Ending(4029, "quota.exceeded"))
        await slow.take_all()
        assert slow.messages()[-1]["type"] == "bye"
        assert trio.current_time() - before_s < 1
        nursery.cancel_scope.cancel()


async def test_several_subscriptions_of_a_slow_session(autojump_clock: MockClock) -> None:
    """Each subscription of a session that falls behind keeps its own place."""
    node = Node()
    async with node.run(), trio.open_nursery() as nursery:
        reading = await open_reading(node, nursery, "", room=500)
        for name in ("x", "y"):
            text = msgspec.json.encode({"type": "subscribe", "id": name, "streams": ["a"]})
            await reading.peer.send_all(bytes((0x81, 0x80 | len(text), 0, 0, 0, 0)) + text)
        for _ in range(10):
            await reading.take(10_000)
            await wait_all_tasks_blocked()
        for number in range(40):
            node.log.add("a", number)
            if number % 7 == 0:
                await wait_all_tasks_blocked()
        await reading.take_all()
        assert reading.payloads("x") == reading.payloads("y") == list(range(40))
        nursery.cancel_scope.cancel()


async def test_a_page_in_several_pieces(autojump_clock: MockClock) -> None:
    """A group of packets that is longer than what is written at once goes on behind the piece that a slow session took
    last; it never holds more than one piece."""
    node = Node(FakeLog(page_entries=50))
    async with node.run(), trio.open_nursery() as nursery:
        slow = await open_reading(node, nursery, "stream=a", room=5000)
        quick = await open_reading(node, nursery, "stream=a", room=1 << 24)
        for reading in (slow, quick):
            await reading.take_all()
        for number in range(12):
            node.log.add("a", f"{number:02d}" + "x" * 30_000)
        await wait_all_tasks_blocked()
        assert 0 < slow.stream.unsent <= PIECE_BYTES
        for reading in (slow, quick):
            await reading.take_all()
            assert [payload[:2] for payload in reading.payloads()] == [f"{number:02d}" for number in range(12)]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("streams", "writes"), [(REST_CHANNELS - 1, 3), (REST_CHANNELS, 2)])
async def test_packets_of_many_streams_are_gathered(autojump_clock: MockClock, streams: int, writes: int) -> None:
    """After a page for many streams the fan-out rests, and what came meanwhile goes to a session in one write; after
    one for few streams it doesn't."""
    node, names = Node(), [f"s{number}" for number in range(streams)]
    async with node.run(), trio.open_nursery() as nursery:
        readings = [await open_reading(node, nursery, f"stream={name}") for name in names]
        await wait_all_tasks_blocked()
        before = [reading.stream.writes for reading in readings]
        for number in range(3):
            for name in names:
                node.log.add(name, number)
            await wait_all_tasks_blocked()
        await trio.sleep(REST_S)
        await wait_all_tasks_blocked()
        assert [reading.stream.writes - count for reading, count in zip(readings, before, strict=True)] == [
            writes
        ] * streams
        for reading in readings:
            await reading.take_all()
            assert reading.payloads() == [0, 1, 2]
        nursery.cancel_scope.cancel()


async def test_a_broadcast_lets_others_work(autojump_clock: MockClock) -> None:
    """While one packet goes to two thousand sessions, other tasks get their turn every few hundred writes."""
    node = Node()
    turns = 0

    async with node.run(), trio.open_nursery() as nursery:
        for _ in range(2000):
            await open_reading(node, nursery, "stream=a")
        await wait_all_tasks_blocked()
        line = next(iter(node.lane.fan_out.lines))
        written = node.delivery.metrics.registry.get_sample_value
        node.log.add("a", 1)

        async def count_turns() -> None:
            nonlocal turns
            labels = {"transport": "websocket"}
            while (written("overlayd_messages_sent_total", labels) or 0) < 2000:
                await trio.lowlevel.checkpoint()
                turns += 1

        await count_turns()
        assert turns >= 2000 // 256
        assert not line.behind
        nursery.cancel_scope.cancel()


async def test_a_fault_of_the_fan_out_loses_nothing(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the task that follows the head fails in the middle, it starts again and nobody misses a packet."""
    node = Node()
    fan_out = node.lane.fan_out
    async with node.run(), trio.open_nursery() as nursery:
        readings = [await open_reading(node, nursery, "stream=a") for _ in range(3)]
        await wait_all_tasks_blocked()
        node.log.add("a", 0)
        await wait_all_tasks_blocked()
        write_one, calls = fan_out._write_one, 0

        def failing(*args: Any) -> bool:
            nonlocal calls
            calls += 1
            if calls == 2:
                raise RuntimeError("a fault")
            return write_one(*args)

        monkeypatch.setattr(fan_out, "_write_one", failing)
        node.log.add("a", 1)
        await trio.sleep(5)
        node.log.add("a", 2)
        for reading in readings:
            await reading.take_all()
            payloads = reading.payloads()
            assert sorted(set(payloads)) == [0, 1, 2]
            assert payloads[-1] == 2
        assert node.delivery.metrics.registry.get_sample_value("overlayd_live_crashes_total", {"task": "fan-out"}) == 1
        nursery.cancel_scope.cancel()


async def test_what_passes_moves_the_resume_point(autojump_clock: MockClock) -> None:
    """A session at the head that nothing matches is told its place after so many entries, before any heartbeat."""
    node = Node(progress_entries=100)
    async with node.connect("stream=a&heartbeat=55s") as client:
        await client.receive_until("subscribed")
        await wait_all_tasks_blocked()
        await trio.sleep(2)
        started = trio.current_time()
        node.log.add_other(150)
        beat = await client.expect("heartbeat")
        assert beat["cursor"] == node.log.cursor(150)
        assert trio.current_time() - started < 0.1


async def test_close_matching(autojump_clock: MockClock) -> None:
    """All sessions of one principal are ended with the code that is given, the others aren't; a slow one, too."""
    node = Node()
    other = msgspec.structs.replace(ANYBODY, name="other")
    async with node.connect("stream=a") as first, node.connect("stream=a", principal=other) as second:
        await first.receive_until("subscribed")
        await second.receive_until("subscribed")
        count = node.registry.close_matching(lambda s: s.principal == "loopback", Ending(4003, "revoked"))
        assert count == 1
        node.log.add("a", 1)
        assert (await first.expect("bye"))["reason"] == "revoked"
        assert await first.close_code() == 4003
        await second.expect("packet")


async def test_nobody_is_left_behind_at_the_end(autojump_clock: MockClock) -> None:
    """Sessions that end while they are behind leave no task, timer, channel or reader."""
    node = Node(limits=Limits(stall_timeout=Duration(5)))
    async with node.run(), trio.open_nursery() as nursery:
        for _ in range(5):
            await open_reading(node, nursery, "stream=a", room=700)
        await wait_all_tasks_blocked()
        for number in range(50):
            node.log.add("a", number)
        await wait_all_tasks_blocked()
        assert len(node.registry) == 5
        await trio.sleep(30)
        assert len(node.registry) == 0
        assert not node.lane.fan_out.lines
        assert "channels=0" in repr(node.lane.fan_out)
        assert "waiting=0" in repr(node.lane.fan_out.wheel)
        nursery.cancel_scope.cancel()
    slow = node.delivery.metrics.registry.get_sample_value(
        "overlayd_slow_sessions_closed_total", {"transport": "websocket"}
    )
    assert slow == 5


async def test_what_one_session_alone_wants_is_not_kept(autojump_clock: MockClock) -> None:
    """Packets that only one session at the head gets are decoded and encoded for it and then forgotten; as soon as
    another selection wants them too, they are kept, and encoded once for both."""
    node = Node()
    async with node.run(), trio.open_nursery() as nursery:
        alone = await open_reading(node, nursery, "stream=a")
        await wait_all_tasks_blocked()
        registry = node.delivery.metrics.registry
        for number in range(3):
            node.log.add("a", number)
            node.log.add("b", number)
        await alone.take_all()
        assert alone.payloads() == [0, 1, 2]
        assert registry.get_sample_value("overlayd_frames_encoded_total", {"format": "packet"}) == 3
        assert len(node.delivery.frames._texts) == len(node.delivery.views._views) == 0
        wider = await open_reading(node, nursery, "stream=a&stream=b")
        await wait_all_tasks_blocked()
        node.log.add("a", 3)
        for reading in (alone, wider):
            await reading.take_all()
        assert alone.payloads() == [0, 1, 2, 3]
        assert wider.payloads() == [3]
        assert registry.get_sample_value("overlayd_frames_encoded_total", {"format": "packet"}) == 4
        assert len(node.delivery.frames._texts) == len(node.delivery.views._views) == 1
        nursery.cancel_scope.cancel()


async def test_a_lone_slow_session_loses_nothing(autojump_clock: MockClock) -> None:
    """A session that is the only one to want packets and doesn't take them all at once goes on behind what it got."""
    node = Node()
    async with node.run(), trio.open_nursery() as nursery:
        slow = await open_reading(node, nursery, "stream=a", room=700)
        await slow.take_all()
        for number in range(20):
            node.log.add("a", number)
            await wait_all_tasks_blocked()
        await slow.take_all()
        assert slow.payloads() == list(range(20))
        nursery.cancel_scope.cancel()
    behind = node.delivery.metrics.registry.get_sample_value(
        "overlayd_sessions_behind_total", {"transport": "websocket"}
    )
    assert behind is not None
    assert behind > 0
