"""`overlayd salvage`."""

import os
import shutil
import sqlite3
from pathlib import Path

import click
import msgspec

from overlayd.cli.exits import FAILED
from overlayd.cli.output import json_option, print_json
from overlayd.cli.target import data_directory
from overlayd.model.clock import Entropy
from overlayd.model.errors import ConfigInvalid
from overlayd.storage import files
from overlayd.storage.damage.indexes_again import fill_indexes
from overlayd.storage.damage.rebuild import NothingLeft, Rebuilt, rebuild
from overlayd.storage.start import load_streams

REPORT_NAME = "salvage.json"
RUNS_SHOWN = 50
_BESIDE = ("high-water", "edge", "schema.json", "regtest.sqlite3", "config.toml", "backups.json")


@click.command("salvage")
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--data", metavar="DIR", help="The damaged data directory [default: $STATE_DIRECTORY or ./overlayd-data]")
@json_option
def command(target: Path, data: str | None, as_json: bool) -> None:
    """Save what can be saved of a damaged log into a new data directory TARGET, while no node runs.

    A node does this by itself at its start; this is for a disk that is read one last time, or to look before a node does.
    The damaged directory is only read. Every entry is taken that proves itself by its hashes, from whatever page it is
    on; the keys come along, so that the log goes on under its name. What is lost is listed, and readers of the new log
    are told of it as `gap {reason: damaged}`.

    Exits 0 when nothing is lost, 1 when something is, or nothing could be saved.
    """
    directory = data_directory(data, os.environ)
    database = directory / files.DATABASE_NAME
    if not database.exists():
        raise ConfigInvalid(f"there is no log in {directory}", subject=str(directory))
    if target.exists() and any(target.iterdir()):
        raise ConfigInvalid(f"{target} isn't empty", subject=str(target), hint="name a directory that isn't there yet")
    lock = files.DirectoryLock(directory)
    try:
        rebuilt = salvage(directory, target)
    except NothingLeft as error:
        click.echo(f"overlayd: {database}: {error}", err=True)
        raise SystemExit(FAILED) from error
    finally:
        lock.release()
    if as_json:
        print_json(rebuilt)
    else:
        _tell(rebuilt, target)
    raise SystemExit(FAILED if rebuilt.lost or rebuilt.size < rebuilt.known_size or rebuilt.damaged_tables else 0)


def salvage(directory: Path, target: Path) -> Rebuilt:
    """Makes the new directory. Raises NothingLeft, OSError, sqlite3.Error."""
    from overlayd.config.dialects import AgentPipeSettings, agentpipe_features
    from overlayd.daemon.serving import FEATURES

    files.make_directory(target)
    features = (*FEATURES, *agentpipe_features(AgentPipeSettings()))
    rebuilt = rebuild(
        directory / files.DATABASE_NAME, target / files.DATABASE_NAME, directory=directory,
        mark=files.read_high_water(directory), features=features,
    )  # fmt: skip
    for path in (directory / "keys").glob("*"):
        shutil.copy2(path, target / "keys" / path.name)
    for name in _BESIDE:
        if (directory / name).exists():
            shutil.copy2(directory / name, target / name)
    secret, _ = files.read_or_make_secret(target / "keys" / "index.key", 32, Entropy())
    connection = sqlite3.connect(target / files.DATABASE_NAME, isolation_level=None)
    try:
        fill_indexes(connection, secret, load_streams)
    finally:
        connection.close()
    files.replace_file(target / REPORT_NAME, msgspec.json.format(msgspec.json.encode(rebuilt), indent=1))
    return rebuilt


def _tell(rebuilt: Rebuilt, target: Path) -> None:
    lost = sum(high - low + 1 for low, high in rebuilt.lost)
    click.echo(f"{rebuilt.size - lost} of {rebuilt.known_size} entries are in {target}")
    for name, runs in (("lost", rebuilt.missing), ("content lost", rebuilt.hollow)):
        for low, high in runs[:RUNS_SHOWN]:
            click.echo(f"  {name}: {low}" + (f" to {high}" if high > low else ""))
        if len(runs) > RUNS_SHOWN:
            click.echo(f"  and {len(runs) - RUNS_SHOWN} runs more, in {target / REPORT_NAME}")
    if rebuilt.size < rebuilt.known_size:
        click.echo(f"  cut off: {rebuilt.size + 1} to {rebuilt.known_size}; clients that saw them are told so")
    for name in rebuilt.damaged_tables:
        click.echo(f"  rows of {name} may be missing")
    if rebuilt.needs_epoch:
        click.echo("  the new log begins a new epoch, so that no sequence is given twice")
