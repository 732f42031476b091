"""Publishes and delivers until it is killed: `python delivering_node.py DIRECTORY EVENTS SEED go|finish`.

Every attempt that begins, and every one that the receiver took, is a line in EVENTS, written before anything else
happens. With `finish` nothing is published, and the process ends once everything is settled.
"""

import json
import os
import random
import sys
from pathlib import Path
from typing import Any

import structlog
import trio

TESTS = Path(__file__).parent.parent
sys.path[:0] = [str(TESTS / "delivery")]
from delivery_fakes import make_delivery  # noqa: E402 - found only then
from subscription_rig import HidingOwners, NoHeaders  # noqa: E402

from overlayd.delivery.frames import Message  # noqa: E402
from overlayd.delivery.matching import PacketView  # noqa: E402
from overlayd.delivery.subscriptions.definition import parse_new  # noqa: E402
from overlayd.delivery.subscriptions.parts import DurableSubscriptions  # noqa: E402
from overlayd.delivery.subscriptions.subscription import Reading  # noqa: E402
from overlayd.delivery.subscriptions.tables import FEATURE  # noqa: E402
from overlayd.model.clock import Entropy, SystemClock  # noqa: E402
from overlayd.model.definition import Definition  # noqa: E402
from overlayd.model.draft import AppendRequest, Draft  # noqa: E402
from overlayd.model.limits import Limits  # noqa: E402
from overlayd.model.metrics import Metrics  # noqa: E402
from overlayd.model.names import StreamName  # noqa: E402
from overlayd.model.outlet import AttemptResult, Delivery  # noqa: E402
from overlayd.model.units import Size  # noqa: E402
from overlayd.storage import Log, StorageSettings, open_log  # noqa: E402

STREAMS = ("a", "b", "c")
CONCURRENCY = 6
RETRY = {"schedule": ["10ms"] * 30}
SUBSCRIPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"concurrency": CONCURRENCY, "retry": RETRY},
    "ordered": {"ordering": "stream", "concurrency": CONCURRENCY, "retry": RETRY},
    "batched": {"batch_size": 5, "batch_wait": "20ms", "concurrency": CONCURRENCY, "retry": RETRY},
    "ordered-batches": {"batch_size": 4, "ordering": "stream", "concurrency": CONCURRENCY, "retry": RETRY},
}


class Outlet:
    """Takes most of what comes, a little later."""

    def __init__(self, events: int, chance: random.Random) -> None:
        self._events = events
        self._chance = chance

    def note(self, word: str, delivery: Delivery[Message]) -> None:
        offsets = [
            message.subject.entry.offset for message in delivery.messages if isinstance(message.subject, PacketView)
        ]
        line = [word, delivery.definition.name, delivery.delivery_id, delivery.stream, offsets]
        os.write(self._events, json.dumps(line).encode() + b"\n")

    async def attempt(self, delivery: Delivery[Message]) -> AttemptResult:
        self.note("begin", delivery)
        await trio.sleep(self._chance.random() * 0.006)
        if self._chance.random() < 0.1:
            return AttemptResult("retry", "not now")
        self.note("taken", delivery)
        return AttemptResult("delivered")

    async def fit(self, delivery: Delivery[Message]) -> int:
        """Sometimes fewer than there are."""
        await trio.lowlevel.checkpoint()
        return self._chance.randint(1, len(delivery.messages))


async def publish_forever(log: Log, chance: random.Random) -> None:
    """Some packets at a time."""
    while True:
        name = chance.choice(STREAMS)
        found = log.find_stream(name)
        drafts = [Draft(index, b"1", b"1") for index in range(chance.randint(1, 4))]
        version = 0 if found is None else found.definition_version
        await log.append(AppendRequest(StreamName(name), drafts, may_create=True, definition_version=version))
        await trio.sleep(chance.random() * 0.003)


async def main(directory: Path, events: int, seed: int, *, is_finishing: bool) -> None:
    """Until the process is killed, or done."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    chance = random.Random(seed)
    settings = StorageSettings(reserve=Size(0), disk_high_water=Size(0), disk_low_water=Size(0))
    async with open_log(
        directory, settings=settings, limits=Limits(), defaults=Definition(), clock=SystemClock(), entropy=Entropy(),
        metrics=Metrics(), features=(FEATURE,),
    ) as log:  # fmt: skip
        delivery = make_delivery(log)
        delivery.clock = SystemClock()
        parts = DurableSubscriptions(
            delivery, entropy=Entropy(), lease_filter=delivery._lease_filter, owners=HidingOwners(set()), secrets={},
            headers=NoHeaders(),
            outlets={"webhook": Outlet(events, chance)}, check_webhook=lambda rule: [], announce=announce,
            chance=chance,
        )  # fmt: skip
        async with trio.open_nursery() as nursery:
            await nursery.start(parts.run)
            for name, table in SUBSCRIPTIONS.items():
                if name not in [one.name for one in parts.book.all()]:
                    body = {
                        "name": name,
                        "kind": "webhook",
                        "from": "beginning",
                        "webhook": {"url": "http://x/", **table},
                    }
                    asked = parse_new(json.dumps(body).encode(), parts.book.parse_query, lambda rule: [])
                    await parts.book.create(asked, Reading("test"))
            print("going", flush=True)
            if not is_finishing:
                await publish_forever(log, chance)
            while not all(one.is_idle for one in parts.book.all()):  # noqa: ASYNC110 - nobody tells
                await trio.sleep(0.02)
            nursery.cancel_scope.cancel()


async def announce(type: str, data: dict[str, Any]) -> None:
    """Nobody listens."""


if __name__ == "__main__":
    file = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    trio.run(lambda: main(Path(sys.argv[1]), file, int(sys.argv[3]), is_finishing=sys.argv[4] == "finish"))
