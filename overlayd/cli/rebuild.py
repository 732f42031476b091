"""`overlayd rebuild`: has a node make anew what it derives from its log."""

import time

import click

from overlayd.cli.target import Target, target_options
from overlayd.client import SyncClient, agentpipe_calls, privacy_calls

LOOK_S = 0.2


@click.group("rebuild")
def command() -> None:
    """Make anew what a node derives from its log."""


@command.command("sessions")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Return only when it is done")
@target_options
def sessions(target: Target, wait: bool) -> None:
    """Take AgentPipe's sessions away and make them again from the log, on the running node.

    Events and live listeners go on meanwhile; lists are incomplete until it is done. Needs the right to administer,
    which a client of the Unix socket with the service's uid has.
    """
    with SyncClient(target.url, target.key, tls=target.tls) as client:
        head = client.send(agentpipe_calls.rebuild_sessions()).head
        click.echo(f"making sessions again from {head} log entries")
        while wait:
            behind = int(client.send(agentpipe_calls.health())["checks"]["sessions"]["behind"])
            if not behind:
                click.echo("done")
                return
            time.sleep(LOOK_S)


@command.command("subjects")
@target_options
def subjects(target: Target) -> None:
    """Make the index of subjects again from the log, on the running node, which goes on in the background.

    Questions about a subject wait until it is done. Needs the right to administer.
    """
    with SyncClient(target.url, target.key, tls=target.tls) as client:
        client.send(privacy_calls.rebuild("subjects"))
    click.echo("the index of subjects is made again")


@command.command("links")
@target_options
def links(target: Target) -> None:
    """Look through the whole log for packets that were made from others, on the running node, which goes on in the background.

    Erasures wait until it is done. Needs the right to administer.
    """
    with SyncClient(target.url, target.key, tls=target.tls) as client:
        client.send(privacy_calls.rebuild("links"))
    click.echo("the links between packets are made again")
