"""Cancelled anywhere, nothing is left: no session, no subscriber, no filter, no byte of the input budget."""

from collections.abc import Awaitable, Callable

import trio
import trio.testing
from delivery_fakes import FakeLog, FixedClock, make_delivery, query_of
from socket_harness import Node

from overlayd.delivery.event_stream import LiveStream, StreamForm
from overlayd.delivery.session import Registry
from overlayd.model.clock import Entropy
from overlayd.model.limits import Limits


class CancelAt(trio.abc.Instrument):
    """Cancels a scope when any task below it is about to take its n-th step."""

    def __init__(self, scope: trio.CancelScope, step: int) -> None:
        self.scope = scope
        self.steps_left = step
        self.mine = trio.lowlevel.current_task()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self.mine or task.name.startswith(("overlayd", "test_delivery_cancel", "socket_harness")):
            self.steps_left -= 1
            if self.steps_left == 0:
                self.scope.cancel()


async def cancel_everywhere(run: Callable[[], Awaitable[None]], steps: int, stride: int = 1) -> int:
    """Runs it again and again, cancelled a little later each time; how many steps it has, at most `steps`."""
    for step in range(1, steps + 1, stride):
        with trio.CancelScope() as scope:
            instrument = CancelAt(scope, step)
            trio.lowlevel.add_instrument(instrument)
            try:
                await run()
            finally:
                trio.lowlevel.remove_instrument(instrument)
        if not scope.cancelled_caught:
            return step
    return steps


async def test_sockets(autojump_clock: trio.testing.MockClock) -> None:
    """A WebSocket session that is cancelled at any step, in the middle of reading and publishing, leaves nothing."""
    node = Node(FakeLog(page_entries=2))
    for number in range(6):
        node.log.add("a", {"t": number})

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            async with node.connect("stream=a&from=beginning&filter=data.t%20%3E%200") as client:
                await client.receive_until("packet", 2)
                await client.send(type="subscribe", id="x", streams=["a"], **{"from": "last"})
                await client.send(type="publish", ref=1, stream="a", packets=[{"data": {"t": 9}}])
                await client.receive_until("receipt")
            nursery.cancel_scope.cancel()

    assert await cancel_everywhere(run, 121, stride=3) > 40
    await trio.testing.wait_all_tasks_blocked()
    assert len(node.registry) == 0
    assert node.registry.count_subscribers("a") == 0
    assert "InputBudget(0 of" in repr(node.budget)
    assert node.delivery.metrics.registry.get_sample_value("overlayd_filters") == 0
    assert node.delivery.metrics.registry.get_sample_value("overlayd_sessions", {"transport": "websocket"}) == 0


async def test_event_streams(autojump_clock: trio.testing.MockClock) -> None:
    """An event stream that is cancelled at any step leaves nothing, and its reader's cursor stays where it was."""
    log = FakeLog(page_entries=2)
    for number in range(6):
        log.add("a", {"t": number})
    delivery = make_delivery(log)
    registry = Registry(limits=Limits(), clock=FixedClock(), entropy=Entropy(), metrics=delivery.metrics)

    async def run() -> None:
        session = registry.enter("sse", "test", "127.0.0.1")
        try:
            query = query_of(filter="data.t > 0", key="k", **{"from": "last"})
            opened = await delivery.open_reader(query, "test")
            registry.add_reader(session, "", opened)
            stream = LiveStream(StreamForm("sse"), session, opened, delivery=delivery, registry=registry, node="n")
            await stream.prepare()
            for _ in range(3):
                await anext(stream)
            await stream.aclose()
        finally:
            registry.leave(session)

    assert await cancel_everywhere(run, 60) > 3
    assert len(registry) == 0
    assert delivery.metrics.registry.get_sample_value("overlayd_filters") == 0
