"""Looking names up: once, in few threads, remembered for a while."""

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import trio
from outbound_rig import RigMaker
from real_waiting import until, until_async
from trio.testing import MockClock, wait_all_tasks_blocked

from overlayd.model.errors import OutboundFailure
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.model.units import Duration
from overlayd.outbound import Reason
from overlayd.outbound.resolver import SystemResolver


class Names:
    """Stands in for getaddrinfo: counts, answers, fails or blocks."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.held = threading.Event()
        self.held.set()

    def getaddrinfo(self, host: str, port: None, **options: Any) -> list[tuple[Any, ...]]:
        """As the system's, for names that say what they lead to."""
        self.asked.append(host)
        if host.startswith("slow"):
            self.held.wait(20)
        if host.startswith("unknown"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        if host.startswith("broken"):
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        if host.startswith("odd"):
            raise UnicodeError("label too long")
        if host.startswith("empty"):
            return []
        rows = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.7", 0))] * 2
        return [*rows, (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2001:db8::7", 0, 0, 0))]


@pytest.fixture
def hasty_clock() -> MockClock:
    """Time jumps over threads at work: here they hang on purpose."""
    return MockClock(autojump_threshold=0)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    """A resolver of the operating system under our control."""
    found = Names()
    monkeypatch.setattr(socket, "getaddrinfo", found.getaddrinfo)
    yield found
    found.held.set()


async def test_addresses_are_remembered_for_a_while(names: Names, mock_clock: MockClock) -> None:
    """In the resolver's order, without repeats; after `outbound_name_age` the name is asked again."""
    resolver = SystemResolver(Limits(), Metrics())
    found = await resolver.resolve("a.example")
    assert [str(address) for address in found] == ["192.0.2.7", "2001:db8::7"]
    assert await resolver.resolve("a.example") == found
    mock_clock.jump(29)
    await resolver.resolve("a.example")
    assert names.asked == ["a.example"]
    mock_clock.jump(2)
    await resolver.resolve("a.example")
    assert names.asked == ["a.example"] * 2


async def test_what_is_remembered_is_bounded(names: Names) -> None:
    """The name that was asked for least recently goes; an age of 0 remembers nothing."""
    metrics = Metrics()
    resolver = SystemResolver(Limits(outbound_names=2), metrics)
    for host in ("a", "b", "a", "c", "a", "b"):
        await resolver.resolve(host)
    assert names.asked == ["a", "b", "c", "b"]
    assert metrics.registry.get_sample_value("overlayd_limit_hits_total", {"limit": "outbound_names"}) == 2
    forgetful = SystemResolver(Limits(outbound_name_age=Duration(0)), Metrics())
    await forgetful.resolve("d")
    await forgetful.resolve("d")
    assert names.asked[-2:] == ["d", "d"]


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("unknown.example", Reason.HOST_UNKNOWN),
        ("odd.example", Reason.HOST_UNKNOWN),
        ("empty.example", Reason.HOST_UNKNOWN),
        ("broken.example", Reason.DNS_FAILED),
    ],
)
async def test_failures_have_reasons_and_are_not_remembered(host: str, reason: Reason, names: Names) -> None:
    """No such name, and no answer, are two things."""
    resolver = SystemResolver(Limits(), Metrics())
    for _ in range(2):
        with pytest.raises(OutboundFailure) as caught:
            await resolver.resolve(host)
        assert caught.value.reason == reason
    assert len(names.asked) == 2


async def test_callers_share_a_look_up(names: Names) -> None:
    """Ten callers, one question; when the one that asks is cancelled, another asks in its place."""
    resolver = SystemResolver(Limits(outbound_name_age=Duration(60)), Metrics())
    names.held.clear()
    async with trio.open_nursery() as nursery:
        first = trio.CancelScope()

        async def ask_first() -> None:
            with first:
                await resolver.resolve("slow.example")

        nursery.start_soon(ask_first)
        await until_async(lambda: names.asked, "the first look-up begins")
        for _ in range(9):
            nursery.start_soon(resolver.resolve, "slow.example")
        await wait_all_tasks_blocked()
        first.cancel()
        await until_async(lambda: len(names.asked) == 2, "another begins")
        names.held.set()
    assert names.asked == ["slow.example"] * 2


async def test_hanging_name_servers_cannot_pile_up_threads(
    names: Names, make_rig: RigMaker, hasty_clock: MockClock
) -> None:
    """Threads that nobody waits for any more keep their places until the system lets go; then there is room again."""
    rig = make_rig(outbound_lookups=2, allow=("192.0.2.0/24",))
    names.held.clear()
    reasons = []
    async with trio.open_nursery() as nursery:

        async def ask(number: int) -> None:
            reasons.append((await rig.refuse(f"http://slow{number}.example/")).reason)

        for number in range(5):
            nursery.start_soon(ask, number)
    assert set(reasons) == {Reason.DNS_BUSY}
    until(lambda: len(names.asked) >= 2, "both threads begin")
    assert len(names.asked) == 2
    assert rig.hits("outbound_lookups") > 0
    names.held.set()


async def test_a_look_up_has_its_own_deadline(names: Names, make_rig: RigMaker, hasty_clock: MockClock) -> None:
    """One slow name ends after `outbound_lookup_timeout`, whatever the time of the whole call."""
    rig = make_rig(allow=("192.0.2.0/24",))
    names.held.clear()
    started = trio.current_time()
    assert (await rig.refuse("http://slow.example/", timeout_s=60.0)).reason == Reason.DNS_TIMEOUT
    assert trio.current_time() - started == pytest.approx(5.0)
    assert rig.hits("outbound_lookup_timeout") == 1
    names.held.set()
