"""What durable subscriptions are given is told to whoever counts usage: at once, and as a whole when a run is over."""

from typing import Any

import trio
from subscription_rig import FAILED, OK, running
from trio.testing import MockClock

from overlayd.model.outlet import AttemptResult
from overlayd.model.usage import EndedDelivery, Method


class Sink:
    """Adds up."""

    def __init__(self) -> None:
        self.sums: dict[tuple[str, str, str], dict[str, int]] = {}
        self.over: list[EndedDelivery] = []

    def delivered(self, stream: str, principal: str, method: Method, **counts: Any) -> None:
        """So much more."""
        held = self.sums.setdefault((stream, principal, method), {})
        for name, value in counts.items():
            held[name] = held.get(name, 0) + value

    def ended(self, delivery: EndedDelivery) -> None:
        """A run is over."""
        self.over.append(delivery)


async def test_attempts_are_counted_and_told_as_runs(autojump_clock: MockClock) -> None:
    """Bytes and packets of what was taken, errors and times of every attempt; the pause ends the run."""
    sink = Sink()
    async with running(usage=sink) as node:
        node.outlet.answer("s", FAILED, AttemptResult("delivered", duration_us=2500), OK)
        one = await node.add(ordering="stream", retry={"schedule": ["1s"]})
        for text in ("ab", "cd", "ef"):
            node.log.add("a", text)
        await trio.sleep(5)
        counts = sink.sums["a", "tester", "webhook"]
        assert (counts["requests"], counts["packets"], counts["bytes"], counts["errors"]) == (4, 3, 12, 1)
        assert (counts["latency_us"] >= 2500, counts["latencies"]) == (True, 4)
        assert not sink.over
        await node.book.set_state(one, "paused")
        (run,) = sink.over
        assert (run.session, run.stream, run.method, run.address) == (f"{one.id}-1", "a", "webhook", "sink")
        assert (run.packets, run.bytes, run.errors, run.errors_told) == (3, 12, 1, 1)
        assert (run.completed_ppm, run.reason, run.principal) == (1_000_000, "paused", "tester")
        assert run.latency_us == counts["latency_us"] // 4
        assert run.ended_us > run.started_us


async def test_runs_last_an_hour_at_most(autojump_clock: MockClock) -> None:
    """A subscription that goes on gets a run for each hour in which it was given something; what it lacks is told."""
    sink = Sink()
    async with running(usage=sink) as node:
        node.outlet.answer("s", OK, OK, FAILED)
        await node.add()
        node.log.add("a", 1)
        await trio.sleep(4000)
        assert [run.packets for run in sink.over] == [1]
        node.log.add("a", 2)
        await trio.sleep(1)
        node.log.add("a", 3)
        await trio.sleep(4000)
        assert [(run.packets, run.session[-2:]) for run in sink.over] == [(1, "-1"), (1, "-2")]
        assert sink.over[1].errors >= 1
        assert sink.over[1].completed_ppm == 2 * 1_000_000 // 3
        assert "500" in sink.over[1].reason
        await trio.sleep(1)
        node.log.add("a", 4)
        await trio.sleep(1)
    assert sink.over[-1].reason == "the node ended"


async def test_fetches_are_counted(autojump_clock: MockClock) -> None:
    """Per stream, with the address of the worker; a lease that ran out is an error; agents have a method of their own."""
    sink = Sink()
    async with running(usage=sink) as node:
        one = await node.add(kind="pull", streams=["a", "b"], lease="10s")
        agent = await node.add("brain", "agent", attach="pull")
        node.log.add("a", "x")
        node.log.add("b", "yz")
        desk = node.engine.desk(one)
        fetched = await desk.fetch(10, 0, address="10.0.0.1")
        assert len(fetched.messages) == 2
        await desk.ack([fetched.messages[0].lease])
        await trio.sleep(30)
        assert sink.sums["a", "tester", "pull"] == {"packets": 1, "bytes": 3, "requests": 1}
        assert sink.sums["b", "tester", "pull"]["bytes"] == 4
        assert sink.sums["", "tester", "pull"]["errors"] == 1
        await desk.fetch(10, 0, address="10.0.0.2")
        (run,) = sink.over
        assert (run.address, run.packets, run.errors, run.stream) == ("10.0.0.1", 2, 1, "")
        await node.engine.desk(agent).fetch(1, 0, address="10.0.0.3")
        assert sink.sums["a", "tester", "agent"]["packets"] == 1
        await node.book.delete(one)
        assert [run.reason for run in sink.over] == ["", "deleted"]
