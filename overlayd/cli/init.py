"""`overlayd init`."""

import os
from pathlib import Path

import click

from overlayd.cli.exits import FAILED
from overlayd.cli.target import data_directory
from overlayd.config.example import render_example
from overlayd.model.clock import Entropy
from overlayd.model.note import Ed25519Signer, log_id_of
from overlayd.storage.files import make_directory, read_or_make_secret

CONFIG_NAME = "config.toml"
SECRET_BYTES = 32


@click.command("init")
@click.option("--data", metavar="DIR", help="Directory to fill [default: $STATE_DIRECTORY or ./overlayd-data]")
def command(data: str | None) -> None:
    """Write a commented configuration and the node's keys into a directory.

    Nothing that exists is overwritten. Neither is needed: `overlayd run` has a default for every setting and makes
    the keys itself. Keep a copy of DIR/keys somewhere else: only with it can a log be continued under its name.
    """
    directory = data_directory(data, os.environ)
    try:
        make_directory(directory)
        wrote_config = _write_config(directory / CONFIG_NAME)
        seed, is_new = read_or_make_secret(directory / "keys" / "log.ed25519", SECRET_BYTES, Entropy())
        read_or_make_secret(directory / "keys" / "index.key", SECRET_BYTES, Entropy())
    except OSError as error:
        click.echo(f"overlayd: {error.filename or directory}: {error.strerror}", err=True)
        raise SystemExit(FAILED) from error
    log_id = log_id_of(Ed25519Signer("overlayd", seed).key.public_key)
    click.echo(f"{'wrote' if wrote_config else 'kept '} {directory / CONFIG_NAME}")
    click.echo(f"{'wrote' if is_new else 'kept '} {directory / 'keys'}, log {log_id}")
    click.echo(f"start it with: overlayd run --config {directory / CONFIG_NAME} --data {directory}", err=True)


def _write_config(path: Path) -> bool:
    """Whether the file is new."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(render_example(is_commented=True))
    except FileExistsError:
        return False
    return True
