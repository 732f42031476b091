"""`overlayd check-config`."""

import os
from pathlib import Path

import click

from overlayd.cli.output import json_option, print_json, print_table
from overlayd.cli.reload import ask_reload, show_reload
from overlayd.cli.settings import load, settings_options
from overlayd.cli.target import Target, resolve
from overlayd.config import Settings


@click.command("check-config")
@settings_options
@click.option("--changed", is_flag=True, help="Only what differs from the defaults")
@click.option("--diff", is_flag=True, help="What a reload of the running node would change; asks it on its Unix socket")
@json_option
def command(
    config: Path | None, data: str | None, listen: tuple[str, ...], changed: bool, diff: bool, as_json: bool
) -> None:
    """Show the settings in effect and where each comes from. Secrets are hidden; nothing is started.

    With --diff, a running node reads its own files and says how they differ from what it runs with.

    Exits 78 and names every mistake if the configuration can't be used.
    """
    loaded = load(config, data, listen)
    if diff:
        show_reload(ask_reload(_node_of(loaded.settings), is_dry=True), as_json=as_json)
        return
    rows = [row for row in loaded.rows() if not changed or row[2] != "default"]
    if as_json:
        for key, value, origin in rows:
            print_json({"key": key, "value": value, "from": origin})
        return
    print_table(("SETTING", "VALUE", "FROM"), rows)
    for stream in loaded.settings.streams:
        click.echo(f"stream {stream.name} is declared in {stream.declared_in}")


def _node_of(settings: Settings) -> Target:
    """The node that runs in the settings' data directory."""
    return resolve(settings.storage.dir, None, None, os.environ)
