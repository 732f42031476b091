"""The options from which a node's settings are put together, shared by `run` and `check-config`."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from overlayd.config import Flag, Loaded, load_settings

F = TypeVar("F", bound=Callable[..., Any])


def settings_options(command: F) -> F:
    """Adds --config, --data and --listen."""
    options = (
        click.option(
            "--config", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False),
            help="Configuration file; conf.d/*.toml beside it are read after it",
        ),
        click.option(
            "--data", metavar="DIR", help="Data directory [default: $STATE_DIRECTORY or ./overlayd-data]",
        ),
        click.option(
            "--listen", metavar="ADDRESS", multiple=True,
            help="HOST:PORT or unix:PATH, may be repeated; port 0 takes a free one [default: 127.0.0.1:7878]",
        ),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def load(
    config: Path | None, data: str | None, listen: tuple[str, ...], extra: dict[str, Flag] | None = None
) -> Loaded:
    """The settings of these options, the environment and the files. Raises ConfigInvalid."""
    flags = dict(extra or {})
    if data is not None:
        flags["storage.dir"] = Flag("--data", data)
    if listen:
        tcp = tuple(address for address in listen if not address.startswith("unix:"))
        unix = tuple(address.removeprefix("unix:") for address in listen if address.startswith("unix:"))
        for address in listen:
            _check_address(address)
        flags["listen.tcp"] = Flag("--listen", tcp)
        flags["listen.unix"] = Flag("--listen", unix)
    return load_settings(config, environ=os.environ, flags=flags)


def _check_address(address: str) -> None:
    if address.startswith("unix:"):
        is_good = len(address) > len("unix:")
    else:
        host, _, port = address.rpartition(":")
        is_good = bool(host) and port.isascii() and port.isdigit() and int(port) < 65536
    if not is_good:
        raise click.BadParameter(f"{address!r} is neither HOST:PORT nor unix:PATH", param_hint="--listen")
