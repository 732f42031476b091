"""`overlayd reload`."""

import sys

import click

from overlayd.cli.output import json_option, print_json, print_table
from overlayd.cli.target import Target, target_options
from overlayd.client import SyncClient
from overlayd.client.admin_calls import reload_settings
from overlayd.client.retry import ONCE
from overlayd.model.wire_admin import ReloadBody


@click.command("reload")
@target_options
@click.option("--dry-run", is_flag=True, help="Only show what would change")
@json_option
def command(target: Target, dry_run: bool, as_json: bool) -> None:
    """Have the node read its configuration anew, without ending a session.

    What needs a restart keeps its old value and is named. A mistake in a file changes nothing, and is shown. SIGHUP
    does the same.
    """
    show_reload(ask_reload(target, is_dry=dry_run), as_json=as_json)


def ask_reload(target: Target, *, is_dry: bool) -> ReloadBody:
    """Raises what the node refuses it with."""
    with SyncClient(target.url, target.key, tls=target.tls, retry=ONCE) as client:
        return client.send(reload_settings(is_dry=is_dry))


def show_reload(report: ReloadBody, *, as_json: bool) -> None:
    """Prints the changes, one a line."""
    if as_json:
        print_json(report)
        return
    if report.changes:
        rows = [(change.name, change.before, change.after, change.effect) for change in report.changes]
        print_table(("SETTING", "BEFORE", "AFTER", "TAKES EFFECT"), rows)
    else:
        click.echo("the node runs with what the files say")
    for address in report.certificates:
        click.echo(f"read the certificate of {address} anew", file=sys.stderr)
