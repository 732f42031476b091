"""What the service manager hears while the node runs."""

import pytest
import trio
from trio.testing import MockClock

from overlayd.daemon.pulse import START_GRACE_S, START_STEP_S, STATUS_S, Pulse, asking_for_time
from overlayd.model.errors import ConfigInvalid, ShuttingDown
from overlayd.model.systemd import Notifier


class HeardNotifier(Notifier):
    """Keeps what it would send."""

    def __init__(self) -> None:
        super().__init__({"NOTIFY_SOCKET": "@nobody"})
        self.heard: list[tuple[float, str]] = []

    def _send(self, message: str) -> bool:
        self.heard.append((trio.current_time(), message.strip()))
        return True


class SlowLog:
    """A log whose writer can be stuck."""

    def __init__(self) -> None:
        self.head = 100
        self.is_full = False
        self.goes_on = trio.Event()
        self.goes_on.set()
        self.is_closed = False

    async def ping(self) -> None:
        if self.is_closed:
            raise ShuttingDown("the node is stopping")
        await self.goes_on.wait()

    def stats(self) -> "SlowLog":
        return self


def pulse_of(log: SlowLog, notifier: Notifier) -> Pulse:
    """One that counts three messages a packet."""
    return Pulse(notifier, log, count_sent=lambda: 3 * log.head, count_sessions=lambda: 7)  # type: ignore[arg-type]


async def test_a_long_start_is_waited_for(autojump_clock: MockClock) -> None:
    """More time is asked for, before what was given is over, until packets are taken; not afterwards."""
    notifier, start = HeardNotifier(), trio.current_time()
    async with asking_for_time(notifier):
        await trio.sleep(10 * START_STEP_S - 1)
        notifier.ready("taking packets")
        await trio.sleep(1000)
    *asked, ready = notifier.heard
    assert [round(time - start) for time, _ in asked] == [round(START_STEP_S) * step for step in range(10)]
    assert all(
        text.startswith(f"EXTEND_TIMEOUT_USEC={round(START_GRACE_S)}000000\nSTATUS=starting") for _, text in asked
    )
    assert ready[1].startswith("READY=1")
    assert START_GRACE_S > 2 * START_STEP_S


async def test_nobody_is_asked_where_nobody_listens(autojump_clock: MockClock) -> None:
    """And what ends the start comes out as it is, for those who tell of it."""
    with pytest.RaisesGroup(pytest.RaisesExc(ConfigInvalid)):
        async with asking_for_time(Notifier({})):
            raise ConfigInvalid("no", subject="x")


async def test_a_stuck_writer_starves_the_watchdog(autojump_clock: MockClock) -> None:
    """Fed twice a period by way of the writer; not once while that is stuck; again when it goes on."""
    log, notifier = SlowLog(), HeardNotifier()
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pulse_of(log, notifier).run, {"WATCHDOG_USEC": "10000000"}, 1)
        await trio.sleep(12)
        log.goes_on = trio.Event()
        await trio.sleep(30)
        log.goes_on.set()
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    fed = [round(time - start) for time, text in notifier.heard if text == "WATCHDOG=1"]
    assert fed == [0, 5, 10, 42]


async def test_the_status_tells_rates(autojump_clock: MockClock) -> None:
    """What came in and went out since the line before, sessions, head, and a full disk."""
    log, notifier = SlowLog(), HeardNotifier()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pulse_of(log, notifier).run, {}, 1)
        await trio.sleep(STATUS_S / 2)
        log.head += 50
        await trio.sleep(STATUS_S)
        log.is_full = True
        await trio.sleep(STATUS_S)
        nursery.cancel_scope.cancel()
    lines = [text for _, text in notifier.heard if text.startswith("STATUS=")]
    assert lines == [
        "STATUS=taking packets: 5 entries/s in, 15 messages/s out, 7 sessions, head 150",
        "STATUS=refusing packets, the disk is nearly full: 0 entries/s in, 0 messages/s out, 7 sessions, head 150",
    ]


async def test_a_draining_node_is_alive(autojump_clock: MockClock) -> None:
    """The log takes nothing more, and the node is fed until it has ended."""
    log, notifier = SlowLog(), HeardNotifier()
    log.is_closed = True
    with trio.move_on_after(STATUS_S * 2.5):
        await pulse_of(log, notifier).run({}, 1)
    assert sum(text == "WATCHDOG=1" for _, text in notifier.heard) == 3


async def test_nobody_listens() -> None:
    """Without a service manager it ends at once."""
    await pulse_of(SlowLog(), Notifier({})).run({}, 1)
