"""kill -9 during delivery: nothing is lost, and per kill at most what was in flight comes twice, under the same ids."""

import json
import random
import subprocess
import sys
from collections import defaultdict, deque
from pathlib import Path

import msgspec
import pytest
from delivering_node import CONCURRENCY, STREAMS, SUBSCRIPTIONS
from real_waiting import pause

from overlayd.model.clock import Entropy, SystemClock
from overlayd.model.definition import Definition
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.model.units import Size
from overlayd.storage import StorageSettings, open_log

NODE = Path(__file__).parent / "delivering_node.py"
FINISH_S = 240.0


class Event(msgspec.Struct, array_like=True):
    """One line of the child. `word`: begin, taken, or kill."""

    word: str
    subscription: str
    id: str
    stream: str
    offsets: list[int]


def run_child(directory: Path, events: Path, seed: int, after_s: float | None) -> None:
    """A child, killed so long after it began to work; None lets it finish."""
    arguments = [sys.executable, str(NODE), str(directory), str(events), str(seed)]
    child = subprocess.Popen(
        [*arguments, "finish" if after_s is None else "go"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"going\n", child.communicate()[1].decode()[-2000:]
        if after_s is not None:
            pause(after_s)
            return
        _, errors = child.communicate(timeout=FINISH_S)
        assert child.returncode == 0, errors.decode()[-2000:]
    finally:
        child.kill()
        child.communicate()
        with events.open("r+b") as file:  # what the kill tore while it was being written didn't reach the receiver
            whole = file.read()
            file.truncate(whole.rfind(b"\n") + 1)
            file.seek(0, 2)
            file.write(b'["kill","","","",[]]\n')


async def published(directory: Path) -> set[int]:
    """Where the packets stand."""
    settings = StorageSettings(reserve=Size(0), disk_high_water=Size(0), disk_low_water=Size(0))
    async with open_log(
        directory, settings=settings, limits=Limits(), defaults=Definition(), clock=SystemClock(), entropy=Entropy(),
        metrics=Metrics(),
    ) as log:  # fmt: skip
        found: set[int] = set()
        after = 0
        while after < log.head:
            page = await log.read_page(after)
            found.update(entry.offset for entry in page.entries if entry.sequence)
            after = page.after
        return found


def check_events(events: list[Event], wanted: set[int], name: str) -> int:
    """One subscription's whole story; gives how many deliveries were taken more than once.

    What is settled is settled in the order in which it was taken, and holds its place until that is durable. So a kill
    finds in flight some of the last taken, at most as many as there are places; those alone may come again, once each.
    """
    members: dict[str, list[int]] = {}
    id_of: dict[int, str] = {}
    taken: set[str] = set()
    repeated: set[str] = set()
    repeats_in_all = 0
    last: dict[str, int] = defaultdict(int)
    is_ordered = "ordered" in name
    newest: deque[str] = deque(maxlen=CONCURRENCY)
    in_flight: set[str] = set()
    for event in events:
        if event.word == "kill":
            assert len(repeated) <= CONCURRENCY, repeated
            repeats_in_all += len(repeated)
            repeated = set()
            in_flight.update(newest)
            newest.clear()
            last.clear()
            continue
        if event.subscription != name:
            continue
        assert members.setdefault(event.id, event.offsets) == event.offsets
        for offset in event.offsets:
            assert id_of.setdefault(offset, event.id) == event.id, "one packet, two ids"
        if event.word != "taken":
            continue
        if is_ordered:
            assert event.offsets == sorted(event.offsets)
            assert event.offsets[0] > last[event.stream], "out of order between two kills"
            last[event.stream] = event.offsets[-1]
        if event.id in taken:
            assert event.id in in_flight, "it was settled, or is repeated without a kill"
            in_flight.remove(event.id)
            repeated.add(event.id)
        taken.add(event.id)
        newest.append(event.id)
    assert {offset for id in taken for offset in members[id]} == wanted
    return repeats_in_all


async def check_kills(directory: Path, kills: int, seed: int) -> None:
    """Kill after kill on the same log, then an end in peace."""
    chance = random.Random(seed)
    events = directory.parent / "events"
    for _ in range(kills):
        run_child(directory, events, chance.randrange(1 << 30), chance.uniform(0.02, 0.4))
    run_child(directory, events, 1, None)
    lines = [msgspec.convert(json.loads(line), Event) for line in events.read_text().splitlines()]
    wanted = await published(directory)
    assert len(wanted) > 10 * kills
    assert {event.stream for event in lines if event.stream} == set(STREAMS)
    for name in SUBSCRIPTIONS:
        check_events(lines, wanted, name)


async def test_three_kills_during_delivery(tmp_path: Path) -> None:
    """Four subscriptions, plain, ordered and in batches, over three kills."""
    await check_kills(tmp_path / "data", kills=3, seed=5)


@pytest.mark.slow
@pytest.mark.timeout(3600)  # 6 minutes on a calm machine with two cores, 10 on a busy one
async def test_two_hundred_kills_during_delivery(tmp_path: Path) -> None:
    """The same over two hundred."""
    await check_kills(tmp_path / "data", kills=200, seed=11)
