"""`overlayd export`."""

import os
from pathlib import Path
from typing import cast

import click

from overlayd.cli.export_check import parse_range
from overlayd.cli.output import json_option, print_json
from overlayd.cli.target import data_directory
from overlayd.model.errors import ConfigInvalid
from overlayd.model.export_file import RowFormat


@click.command("export")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--range", "span", metavar="FROM..TO", required=True,
              help="Offsets, inclusive; without FROM from what is kept on, without TO up to what is signed")  # fmt: skip
@click.option("--stream", "patterns", metavar="PATTERN", multiple=True,
              help="Streams to show [default: all but the node's own]")  # fmt: skip
@click.option("--format", "form", type=click.Choice(["ndjson", "csv", "parquet"]), default="ndjson", show_default=True,
              help="Of the rows; parquet needs pyarrow")  # fmt: skip
@click.option("--data", metavar="DIR", help="Data directory [default: $STATE_DIRECTORY or ./overlayd-data]")
@json_option
def command(out: Path, span: str, patterns: tuple[str, ...], form: str, data: str | None, as_json: bool) -> None:
    """Write a part of the log with everything that proves it into a new directory OUT.

    The rows are one packet each, in the order of their offsets; beside them stand every entry's hash, one proof for all of
    them, the signed checkpoint, the blocks that hold it, and a list of what was taken away, with the entries that did so.
    `overlayd verify OUT` finds a row that was dropped, moved, changed, doubled or hidden.

    Reads the data directory, beside the running node or without one, and changes nothing in it; whoever may read that
    directory may export. OUT holds contents and salts in the clear and is readable by its owner alone.
    """
    from overlayd.cli.exporting import write_export  # brings the storage, which --help doesn't need
    from overlayd.cli.log_check import opened_log

    first, last = parse_range(span)
    if out.exists():
        raise ConfigInvalid(f"{out} is there already", subject=str(out), hint="name a directory that isn't there yet")
    directory = data_directory(data, os.environ)
    if not (directory / "log.sqlite3").exists():
        raise ConfigInvalid(f"there is no log in {directory}", subject=str(directory))
    try:
        with opened_log(directory) as (connection, read_as):
            is_live = read_as == "beside the running node"
            made = write_export(connection, out, (first, last), patterns, cast(RowFormat, form), is_live=is_live)
    except OSError as err:
        raise ConfigInvalid(f"{err.filename or out}: {err.strerror}", subject=str(out)) from err
    if as_json:
        print_json(made)
        return
    click.echo(f"{out}: offsets {made.first} to {made.last}, {made.rows} rows of {made.streams} streams, "
               f"{made.removed} on record as taken away")  # fmt: skip
    click.echo(f"  under the checkpoint over {made.checkpoint_size} entries, with {made.anchors} blocks")
    if made.transactions:
        click.echo(f"  {made.transactions} packets with a transaction of their own in a block")
    if made.keys_missing:
        click.echo("  the log's key was rotated in what was cut: whoever verifies needs a list of keys saved before")
