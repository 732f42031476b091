"""Which node a command talks to: its Unix socket by default, an address if one is given."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from overlayd.client.tls_files import TlsFiles

DATA_DIRECTORY = "overlayd-data"
SOCKET_NAME = "overlayd.sock"
F = TypeVar("F", bound=Callable[..., Any])


class Target(msgspec.Struct, frozen=True):
    """A node's address as `overlayd.client` takes it, the key for it, and files for https."""

    url: str
    key: str | None = None
    tls: TlsFiles = TlsFiles()


def data_directory(given: str | None, environ: Mapping[str, str]) -> Path:
    """The directory a command means: the one given, $STATE_DIRECTORY, or ./overlayd-data."""
    return Path(given or environ.get("STATE_DIRECTORY", "").split(":")[0] or DATA_DIRECTORY)


def resolve(data: str | None, url: str | None, key_file: str | None, environ: Mapping[str, str]) -> Target:
    """An address beats a directory on the command line, and either beats the environment. Raises UsageError for a key
    that can't be read."""
    if url is None and data is None:
        url = environ.get("OVERLAYD_URL") or None
    if url is None:
        url = f"unix:{data_directory(data, environ) / SOCKET_NAME}"
    return Target(url, read_key(Path(key_file)) if key_file else environ.get("OVERLAYD_KEY") or None)


def read_key(path: Path, option: str = "--key-file") -> str:
    """The key in a file: its first line that isn't empty or a comment. Raises UsageError, which names the option."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as err:
        reason = err.strerror if isinstance(err, OSError) else "it isn't text"
        raise click.UsageError(f"{option} {path}: {reason}") from err
    for line in lines:
        if line.strip() and not line.startswith("#"):
            return line.strip()
    raise click.UsageError(f"{option} {path}: there is no key in it")


def target_options(command: F) -> F:
    """Adds --data, --url, --key-file and the files for https to a command, which gets them as `target`."""

    def combine(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
        values = ctx.meta.setdefault("overlayd.target", {})  # shared with a group's own options
        if value is not None:
            values[param.name] = value
        tls = TlsFiles(values.get("cacert", ""), values.get("cert", ""), values.get("cert_key", ""))
        target = resolve(values.get("data"), values.get("url"), values.get("key_file"), os.environ)
        ctx.params["target"] = msgspec.structs.replace(target, tls=tls)

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
            "--key-file", metavar="FILE", envvar="OVERLAYD_KEY_FILE", expose_value=False, callback=combine,
            help="File with the API key; a key in an argument could be seen by everybody on the machine "
            "[env: OVERLAYD_KEY_FILE, or OVERLAYD_KEY with the key itself]",
        ),
        click.option(
            "--cacert", metavar="FILE", envvar="OVERLAYD_CACERT", expose_value=False, callback=combine,
            help="Authorities to believe for https instead of the system's [env: OVERLAYD_CACERT]",
        ),
        click.option(
            "--cert", metavar="FILE", envvar="OVERLAYD_CERT", expose_value=False, callback=combine,
            help="Client certificate to show, with its key unless --cert-key says where that is [env: OVERLAYD_CERT]",
        ),
        click.option(
            "--cert-key", metavar="FILE", envvar="OVERLAYD_CERT_KEY", expose_value=False, callback=combine,
            help="Key of the client certificate [env: OVERLAYD_CERT_KEY]",
        ),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command
