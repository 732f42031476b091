"""`overlayd agents`: the switch of all agents of a running node."""

import click

from overlayd.cli.output import json_option, print_facts, print_json, printable
from overlayd.cli.target import Target, target_options
from overlayd.client import SyncClient
from overlayd.client.retry import ONCE
from overlayd.model.wire_agents import AgentsBody


@click.group("agents", invoke_without_command=True)
@target_options
@json_option
@click.pass_context
def command(ctx: click.Context, target: Target, as_json: bool) -> None:
    """Show whether agents are paused; pause all of them, or let them go on.

    Agents are subscriptions of kind agent; `overlayd subscriptions` makes and looks after each.
    """
    if ctx.invoked_subcommand is None:
        with _open(target) as client:
            _print(client.subscriptions.agents(), as_json)


@command.command("pause-all")
@target_options
@json_option
def pause_all(target: Target, as_json: bool) -> None:
    """Begin nothing more for any agent until they are resumed, over restarts too; nothing is lost."""
    with _open(target) as client:
        _print(client.subscriptions.pause_agents(), as_json)


@command.command("resume-all")
@target_options
@json_option
def resume_all(target: Target, as_json: bool) -> None:
    """Let all agents go on where they stand."""
    with _open(target) as client:
        _print(client.subscriptions.resume_agents(), as_json)


def _open(target: Target) -> SyncClient:
    return SyncClient(target.url, target.key, tls=target.tls, retry=ONCE)


def _print(found: AgentsBody, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    facts: list[tuple[str, object]] = [("agents", found.agents), ("paused", "yes" if found.paused else "no")]
    if found.since:
        facts += [("since", found.since), ("by", printable(found.by or "-"))]
    print_facts(facts)
