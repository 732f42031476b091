"""What letting a request in costs: by a known connection, by a key among many. Processor time of one core, medians.

Run: python3 -m benchmarks.access [KEYS]
"""

import statistics
import sys
import time
from collections.abc import Awaitable, Callable

import trio

from overlayd.access.bearers import KeyScheme, TicketScheme
from overlayd.access.failures import FailureBook
from overlayd.access.gate import Gate, Remembered
from overlayd.access.key_records import KeyRecord, SecretRecord
from overlayd.access.keys import KeyBook
from overlayd.access.origin import AccessRules, Peer
from overlayd.access.roles import RoleBook
from overlayd.access.secret_text import NewSecret, draw_key
from overlayd.access.settings import AccessSettings
from overlayd.access.stream_guard import StreamGuard
from overlayd.access.tickets import TicketBook
from overlayd.model.audit import ignore_record
from overlayd.model.clock import Entropy, SystemClock
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.net.head import Head, parse_head

RUNS = 5
PEER = Peer("tcp", "192.0.2.9", 40000, "192.0.2.1", 7878)
STREAM = "weather.roof"


def head_of(key: str) -> Head:
    """What a producer sends with each packet."""
    raw = (
        f"POST /v1/streams/{STREAM}/packets HTTP/1.1\r\nHost: node.example:7878\r\nUser-Agent: producer/1\r\n"
        f"Accept: */*\r\nContent-Type: application/json\r\nContent-Length: 230\r\nAuthorization: Bearer {key}\r\n"
        "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n\r\n"
    )
    return parse_head(raw.encode(), Limits())


def add_key(keys: KeyBook, number: int) -> NewSecret:
    """One key more in the book."""
    secret = draw_key("ovl", Entropy())
    stored = SecretRecord(secret.digest, secret.prefix, 0)
    keys.put(KeyRecord(f"k{number}", "ovl", f"owner-{number}", ("publish:weather.*",), 0, (stored,)))
    return secret


async def measure(
    name: str, work: Callable[[], Awaitable[object]] | Callable[[], object], repeats: int, *, waits: bool = False
) -> None:
    """Prints microseconds."""
    took = []
    for _ in range(RUNS):
        began = time.process_time()
        if waits:
            for _ in range(repeats):
                await work()  # type: ignore[misc]
        else:
            for _ in range(repeats):
                work()
        took.append((time.process_time() - began) / repeats)
    print(f"{name:64} {statistics.median(took) * 1e6:8.2f} µs")


async def main(count: int) -> None:
    """All figures, with one key and with many."""
    settings, metrics, clock = AccessSettings(), Metrics(), SystemClock()
    keys, streams = KeyBook(RoleBook()), StreamGuard(lambda name: None)
    tickets = TicketBook(settings, Entropy(), metrics, trio.current_time)
    gate = Gate(
        rules=AccessRules(service_uid=0), schemes=(KeyScheme(keys, clock, may_create=True), TicketScheme(tickets)),
        failures=FailureBook(settings, metrics, trio.current_time), audit=ignore_record, clock=clock, metrics=metrics,
    )  # fmt: skip
    head, memory = head_of(add_key(keys, 0).text), Remembered()
    gate.refresh()

    def known() -> None:
        principal = gate.recall(memory, head)
        assert principal is not None
        streams.require(principal, "publish", STREAM)

    def known_by_bytes() -> None:
        assert gate.is_good(principal, gate.generation)
        assert streams.may(principal, "publish", STREAM)

    async def claim() -> None:
        await gate.claim(memory, PEER, head)

    await claim()
    assert memory.principal is not None
    principal = memory.principal
    await measure("a request on a known connection: who, and may they publish", known, 50_000)
    await measure("the same where all headers are the same bytes (publish lane)", known_by_bytes, 50_000)
    await measure("the first request of a connection, 1 key on the node", claim, 10_000, waits=True)
    for number in range(1, count):
        add_key(keys, number)
        if number % 1000 == 0:
            await trio.lowlevel.checkpoint()
    await measure(f"the first request of a connection, {count:,} keys on the node", claim, 10_000, waits=True)


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
