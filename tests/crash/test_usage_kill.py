"""Usage under kill -9: what a principal used is what the log holds of it, to the byte, after every kill."""

import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from metered_publisher import PACKETS_PER_REQUEST, PRINCIPALS, TASKS_EACH
from real_waiting import pause

from overlayd.access.metering import METERING_FEATURES
from overlayd.access.usage_tables import UsageAsk, read_usage
from overlayd.model.clock import Entropy, SystemClock
from overlayd.model.definition import Definition
from overlayd.model.limits import Limits
from overlayd.model.meta import decode_meta
from overlayd.model.metrics import Metrics
from overlayd.model.quota import HOUR_US
from overlayd.model.units import Size
from overlayd.storage import StorageSettings, open_log

PUBLISHER = Path(__file__).parent / "metered_publisher.py"


def publish_until_killed(directory: Path, after_s: float) -> None:
    """A child that publishes, killed so long after it began."""
    child = subprocess.Popen(
        [sys.executable, str(PUBLISHER), str(directory)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"going\n"
        pause(after_s)
    finally:
        child.kill()
        child.communicate()


async def count_log_and_usage(directory: Path) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """By principal, hour and stream: packets and bytes in the log; the same in the usage; requests by principal."""
    settings = StorageSettings(reserve=Size(0), disk_high_water=Size(0), disk_low_water=Size(0))
    logged: Counter[str] = Counter()
    used: Counter[str] = Counter()
    requests: Counter[str] = Counter()
    async with open_log(
        directory, settings=settings, limits=Limits(), defaults=Definition(), clock=SystemClock(), entropy=Entropy(),
        metrics=Metrics(), features=METERING_FEATURES,
    ) as log:  # fmt: skip
        after = 0
        while after < log.head:
            page = await log.read_page(after)
            for entry in page.entries:
                if entry.sequence:
                    stream = log.find_stream_by_hash(entry.stream_hash)
                    assert stream is not None
                    if stream.name.startswith("overlayd."):  # what the node tells of itself is nobody's usage
                        continue
                    name = f"{decode_meta(entry.meta).principal} {entry.appended_us // HOUR_US} {stream.name}"
                    logged[f"{name} packets"] += 1
                    logged[f"{name} bytes"] += len(entry.body)
            after = page.after
        for row in await log.read(lambda c: read_usage(c, UsageAsk(0, 1 << 40, 1, method="publish", limit=10_000))):
            name = f"{row.key.principal} {row.hour} {row.key.stream}"
            used[f"{name} packets"] += row.counts.packets
            used[f"{name} bytes"] += row.counts.bytes
            requests[row.key.principal] += row.counts.requests
    return logged, used, requests


async def check_kills(directory: Path, kills: int, seed: int) -> None:
    """Kill after kill on the same log."""
    chance = random.Random(seed)
    for kill in range(1, kills + 1):
        publish_until_killed(directory, chance.uniform(0.0, 0.15))
        logged, used, requests = await count_log_and_usage(directory)
        assert sum(logged.values()) > 0
        assert used == logged
        for number in range(PRINCIPALS):
            name = f"key:{number}"
            packets = sum(n for key, n in logged.items() if key.startswith(f"{name} ") and key.endswith(" packets"))
            # A request is counted in the group that it is in, or in an earlier one of the same principal.
            assert 0 <= requests[name] - packets // PACKETS_PER_REQUEST <= TASKS_EACH * kill


async def test_usage_is_what_the_log_holds_after_a_kill(tmp_path: Path) -> None:
    """Two kills in the middle of publishing by four principals at once."""
    await check_kills(tmp_path / "data", kills=2, seed=7)


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_usage_is_what_the_log_holds_after_twenty_kills(tmp_path: Path) -> None:
    """The same with twenty kills on one log."""
    await check_kills(tmp_path / "data", kills=20, seed=8)
