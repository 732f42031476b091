"""`overlayd run`."""

import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import click
import trio

from overlayd.cli.settings import load, settings_options
from overlayd.config import Flag, Settings
from overlayd.daemon import serve
from overlayd.model.errors import OverlaydError

_DEMO_FLAGS = {
    # One line a request would bury what the demo shows.
    "log.level": Flag("--demo", "warning"),
    "chain.network": Flag("--demo", "regtest"),
    "chain.anchor_interval": Flag("--demo", "20s"),
    "chain.block_interval": Flag("--demo", "5s"),
}
"""What the demo wants otherwise than a node's defaults, where nobody says."""


@click.command("run")
@settings_options
@click.option("--demo", is_flag=True, help="Stream real data through the node and show it arriving")
@click.option("--demo-rate", type=click.FloatRange(0.1, 1000), default=24.0, show_default=True, metavar="N",
              help="Packets a second of the demo's data set (1461 in all)")  # fmt: skip
def command(config: Path | None, data: str | None, listen: tuple[str, ...], demo: bool, demo_rate: float) -> None:
    """Run a node until it is told to stop (Ctrl-C or SIGTERM).

    Works without any file: data go to ./overlayd-data (or $STATE_DIRECTORY), every setting has a default. Flags
    beat environment variables (OVERLAYD_<TABLE>__<KEY>), those beat the file.

    Prints "listening on http://HOST:PORT" for each TCP listener once packets are taken. Exits 0 when it was told to
    stop, 75 when another node holds the directory, 78 when the configuration can't be used.
    """
    settings = _load(config, data, listen, demo)
    show = None
    if demo:
        from overlayd.cli.demo import Demo  # brings the client, which a node has no use for
        from overlayd.cli.demo_data import load_weather

        show = Demo(settings, load_weather(), demo_rate).run
    failures: list[OverlaydError] = []
    try:
        trio.run(_run, settings, partial(_load, config, data, listen, demo), show)
    except* OverlaydError as group:
        failures += _leaves_of(group)
    if failures:
        raise failures[0]


def _load(config: Path | None, data: str | None, listen: tuple[str, ...], demo: bool) -> Settings:
    loaded = load(config, data, listen)
    if demo:
        flags = {key: flag for key, flag in _DEMO_FLAGS.items() if key not in loaded.origins}
        loaded = load(config, data, listen, flags)
    return loaded.settings


async def _run(
    settings: Settings, load: Callable[[], Settings], demo: Callable[[list[str]], Awaitable[None]] | None
) -> None:
    """Serves until told to stop; the demo runs beside it and ends with it."""
    ready: list[str] = []
    is_ready = trio.Event()

    def on_ready(urls: list[str]) -> None:
        for url in urls:
            if url.startswith("http"):
                click.echo(f"listening on {url}")
        sys.stdout.flush()
        ready.extend(urls)
        is_ready.set()

    async with trio.open_nursery() as nursery:

        async def run_demo() -> None:
            await is_ready.wait()
            assert demo is not None
            await demo(ready)

        if demo is not None:
            nursery.start_soon(run_demo)
        await serve(settings, on_ready=on_ready, load=load)
        nursery.cancel_scope.cancel()


def _leaves_of(group: BaseExceptionGroup[OverlaydError]) -> list[OverlaydError]:
    leaves: list[OverlaydError] = []
    for error in group.exceptions:
        leaves += _leaves_of(error) if isinstance(error, BaseExceptionGroup) else [error]
    return leaves
