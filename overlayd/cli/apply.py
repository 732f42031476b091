"""`overlayd apply`."""

import sys
from pathlib import Path

import click

from overlayd.cli.drift import Step, carry_out, plan_streams, plan_subscriptions
from overlayd.cli.exits import FAILED
from overlayd.cli.output import json_option, print_json
from overlayd.cli.target import Target, target_options
from overlayd.client import SyncClient
from overlayd.client.retry import ONCE
from overlayd.config import load_settings

DRIFT = 2


@click.command("apply")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--dry-run", is_flag=True, help="Only tell what differs; exit 2 when something does")
@click.option(
    "--prune", is_flag=True, help="Also delete subscriptions, and streams without packets, that FILE doesn't name"
)
@target_options
@json_option
def command(file: Path, dry_run: bool, prune: bool, target: Target, as_json: bool) -> None:
    """Bring a node's streams and subscriptions in line with those in FILE, through the API.

    FILE is written as a node's configuration is, conf.d/*.toml beside it are read after it, and only [defaults],
    [[streams]] and [[subscriptions]] count. Applying twice changes nothing. What the node's own configuration declares
    is changed there, not here. Packets are never deleted; and what somebody else changes while this runs is left as it is
    and told as a conflict.
    """
    wanted = load_settings(file, environ={}).settings
    with SyncClient(target.url, target.key, tls=target.tls, retry=ONCE) as client:
        steps = [
            *plan_streams(wanted.streams, client.streams(), prune=prune),
            *plan_subscriptions(wanted.subscriptions, client.subscriptions.list(), prune=prune),
        ]
        if dry_run:
            for step in steps:
                _tell(step, as_json=as_json)
        else:
            steps = carry_out(steps, client.send, lambda step: _tell(step, as_json=as_json))
    if not steps and not as_json:
        click.echo("nothing differs")
    if dry_run and any(step.verb != "keep" for step in steps):
        sys.exit(DRIFT)
    if any(step.verb == "conflict" for step in steps):
        sys.exit(FAILED)


def _tell(step: Step, *, as_json: bool) -> None:
    if as_json:
        print_json({"verb": step.verb, "kind": step.kind, "name": step.name, "detail": step.detail})
    else:
        click.echo(f"{step.verb:8} {step.kind} {step.name}" + (f": {step.detail}" if step.detail else ""))
