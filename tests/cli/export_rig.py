"""Logs to export from, exports, and the commands that make and check them."""

import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from click.testing import CliRunner, Result

from overlayd.cli import cli
from overlayd.model.clock import Entropy, SystemClock
from overlayd.model.definition import Definition
from overlayd.model.draft import AppendRequest, Draft
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.model.names import StreamName
from overlayd.model.units import Size
from overlayd.storage import Log, StorageSettings, open_log

SETTINGS = StorageSettings(reserve=Size(0), disk_high_water=Size(0), disk_low_water=Size(0))
BODIES = (
    b'{"n":1}', b"-1", b'"=1+1"', b'[1,\r\n 2]', '{"name":"Zoë 🐝","q":"say \\"hi\\", you"}'.encode(), b"null", b'"\\u0000,;\\t"',
)  # fmt: skip
"""What a careless form of rows would change: signs, quotes, line ends, other alphabets."""


@asynccontextmanager
async def opened(directory: Path) -> AsyncIterator[Log]:
    """A real log."""
    async with open_log(
        directory, settings=SETTINGS, limits=Limits(), defaults=Definition(), clock=SystemClock(), entropy=Entropy(),
        metrics=Metrics(),
    ) as log:  # fmt: skip
        yield log


async def append(log: Log, stream: str, bodies: list[bytes]) -> None:
    """One request."""
    found = log.find_stream(stream)
    drafts = [
        Draft(number, body, body, type="=cmd|' /C calc'!A0", source="+1", key='@k,"', topics=b'["a","b"]')
        for number, body in enumerate(bodies)
    ]
    version = 0 if found is None else found.definition_version
    await log.append(AppendRequest(StreamName(stream), drafts, may_create=True, definition_version=version))


async def make_log(directory: Path) -> None:
    """Two streams of outsiders and one of the node; packets erased and taken by retention; a stream deleted."""
    async with opened(directory) as log:
        await append(log, "gone", [b"1"] * 5)
        for number in range(40):
            await append(log, "weather", list(BODIES))
            await append(log, "-other", [b'{"n":%d}' % number])
        await append(log, "gone", [b"2"] * 5)
        await log.checkpoint(min_size=log.head)
        weather = log.find_stream("weather")
        assert weather is not None
        first = weather.oldest_sequence
        positions = await log.erasing.read_positions(weather, first, 300)
        await log.reduce(weather, 1, positions[9][1], "retention")
        await log.erasing.take(weather, [positions[20], positions[21], positions[100]])
        await log.delete_stream("gone")
        await append(log, "weather", list(BODIES))
        await log.checkpoint(min_size=log.head)
        (directory / "vkey").write_text(log.vkey)


def export(directory: Path, out: Path, span: str = "..", *arguments: str) -> Result:
    """Runs the command."""
    return CliRunner().invoke(cli, ["export", str(out), "--range", span, "--data", str(directory), *arguments])


def verify(out: Path, directory: Path, *arguments: str) -> Result:
    """Runs the command with nothing but the log's key."""
    key = (directory / "vkey").read_text()
    return CliRunner().invoke(cli, ["verify", str(out), "--log-key", key, *arguments])


def changed_copy(out: Path, place: Path, change: Callable[[Path], None]) -> Path:
    """A copy of an export in which something was changed."""
    shutil.copytree(out, place)
    change(place)
    return place
