"""Which node a command talks to: its Unix socket by default, an address if one is given."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

DATA_DIRECTORY = "overlayd-data"
SOCKET_NAME = "overlayd.sock"
F = TypeVar("F", bound=Callable[..., Any])


class Target(msgspec.Struct, frozen=True):
    """A node's address as `overlayd.client` takes it, and the key for it."""

    url: str
    key: str | None = None


def data_directory(given: str | None, environ: Mapping[str, str]) -> Path:
    """The directory a command means: the one given, $STATE_DIRECTORY, or ./overlayd-data."""
    return Path(given or environ.get("STATE_DIRECTORY", "").split(":")[0] or DATA_DIRECTORY)


def resolve(data: str | None, url: str | None, key: str | None, environ: Mapping[str, str]) -> Target:
    """An address beats a directory on the command line, and either beats the environment."""
    if url is None and data is None:
        url = environ.get("OVERLAYD_URL") or None
    if url is None:
        url = f"unix:{data_directory(data, environ) / SOCKET_NAME}"
    return Target(url, key)


def target_options(command: F) -> F:
    """Adds --data, --url and --key to a command, which gets them as `target`."""

    def combine(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
        values = ctx.meta.setdefault("overlayd.target", {})  # shared with a group's own options
        if value is not None:
            values[param.name] = value
        ctx.params["target"] = resolve(values.get("data"), values.get("url"), values.get("key"), os.environ)

    options = (
        click.option(
            "--data", metavar="DIR", expose_value=False, callback=combine,
            help="Data directory of the node, whose Unix socket is used [default: $STATE_DIRECTORY or ./overlayd-data]",
        ),
        click.option(
            "--url", metavar="URL", expose_value=False, callback=combine,
            help="http://HOST:PORT, https://HOST or unix:PATH instead [env: OVERLAYD_URL]",
        ),
        click.option(
            "--key", metavar="KEY", envvar="OVERLAYD_KEY", expose_value=False, callback=combine,
            help="Sent as a bearer token [env: OVERLAYD_KEY]",
        ),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command
