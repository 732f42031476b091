"""`overlayd check-config`."""

from pathlib import Path

import click

from overlayd.cli.output import json_option, print_json, print_table
from overlayd.cli.settings import load, settings_options


@click.command("check-config")
@settings_options
@click.option("--changed", is_flag=True, help="Only what differs from the defaults")
@json_option
def command(config: Path | None, data: str | None, listen: tuple[str, ...], changed: bool, as_json: bool) -> None:
    """Show the settings in effect and where each comes from. Secrets are hidden; nothing is started.

    Exits 78 and names every mistake if the configuration can't be used.
    """
    loaded = load(config, data, listen)
    rows = [row for row in loaded.rows() if not changed or row[2] != "default"]
    if as_json:
        for key, value, origin in rows:
            print_json({"key": key, "value": value, "from": origin})
        return
    print_table(("SETTING", "VALUE", "FROM"), rows)
    for stream in loaded.settings.streams:
        click.echo(f"stream {stream.name} is declared in {stream.declared_in}")
