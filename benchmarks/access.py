"""What letting a request in costs: by a known connection, by a key among many. Processor time of one core.

Run: python3 -m benchmarks.access [KEYS], or `make bench PART=access` for these and mutual authentication.
"""

import statistics
import sys
import time

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
AT_ONCE = 200
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


class Doorway:
    """A gate before so many keys, and a producer who has one of them."""

    def __init__(self, count: int) -> None:
        """In a Trio run."""
        settings, metrics, clock = AccessSettings(), Metrics(), SystemClock()
        keys, tickets = KeyBook(RoleBook()), TicketBook(settings, Entropy(), metrics, trio.current_time)
        self._streams = StreamGuard(lambda name: None)
        self._gate = Gate(
            rules=AccessRules(service_uid=0), schemes=(KeyScheme(keys, clock, may_create=True), TicketScheme(tickets)),
            failures=FailureBook(settings, metrics, trio.current_time), audit=ignore_record, clock=clock,
            metrics=metrics,
        )  # fmt: skip
        self._head, self._memory = head_of(add_key(keys, 0).text), Remembered()
        for number in range(1, count):
            add_key(keys, number)
        self._gate.refresh()

    async def first(self) -> None:
        """The first request of a connection."""
        await self._gate.claim(self._memory, PEER, self._head)

    async def known(self) -> None:
        """A further one: who asks, and may they publish. No checkpoint."""
        principal = self._gate.recall(self._memory, self._head)
        assert principal is not None
        self._streams.require(principal, "publish", STREAM)

    async def known_by_bytes(self) -> None:
        """The same where the quick publish way has compared the headers as bytes. No checkpoint."""
        principal = self._memory.principal
        assert principal is not None
        assert self._gate.is_good(principal, self._gate.generation)
        assert self._streams.may(principal, "publish", STREAM)


async def measure(doorway: Doorway, what: str, seconds: float) -> float:
    """How often in a second of processor time."""
    work = getattr(doorway, what)
    await doorway.first()
    count, began = 0, time.process_time()
    while not count or time.process_time() - began < seconds:
        for _ in range(AT_ONCE):
            await work()
        count += AT_ONCE
    return count / (time.process_time() - began)


async def main(count: int) -> None:
    """All figures, with one key and with many, in microseconds; medians."""
    few, many = Doorway(1), Doorway(count)
    for what, words, doorway in (
        ("known", "a request on a known connection: who, and may they publish", few),
        ("known", f"the same, {count:,} keys on the node", many),
        ("known_by_bytes", "where all headers are the same bytes (publish lane)", many),
        ("first", "the first request of a connection, 1 key on the node", few),
        ("first", f"the first request of a connection, {count:,} keys on the node", many),
    ):
        rates = [await measure(doorway, what, 0.3) for _ in range(RUNS)]
        print(f"{words:64} {1e6 / statistics.median(rates):8.2f} µs")


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
