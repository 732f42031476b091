"""`overlayd rebuild`: has a node make anew what it derives from its log."""

import time

import click

from overlayd.cli.target import Target, target_options
from overlayd.client import SyncClient, agentpipe_calls

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
