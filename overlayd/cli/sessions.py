"""`overlayd sessions`: the live connections of a node."""

import click

from overlayd.cli.output import json_option, print_json, print_table, shown_bytes
from overlayd.cli.target import Target, target_options
from overlayd.client import SyncClient
from overlayd.client.retry import ONCE
from overlayd.model.wire import QueryBody, SessionBody


@click.group("sessions", invoke_without_command=True)
@target_options
@json_option
@click.pass_context
def command(ctx: click.Context, target: Target, as_json: bool) -> None:
    """List and end live connections; without a subcommand they are listed."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_sessions, target=target, as_json=as_json)


@command.command("list")
@target_options
@json_option
def list_sessions(target: Target, as_json: bool) -> None:
    """List the connections that read, with what they read and how far behind they are."""
    with SyncClient(target.url, target.key, tls=target.tls, retry=ONCE) as client:
        sessions = client.sessions()
    if as_json:
        for session in sessions:
            print_json(session)
        return
    print_table(
        ("SESSION", "TRANSPORT", "PEER", "OPENED", "SENT", "BYTES", "LAG", "READS"), [_row(item) for item in sessions]
    )


def _row(session: SessionBody) -> tuple[object, ...]:
    lag = max((subscription.lag_entries for subscription in session.subscriptions), default=0)
    reads = "; ".join(describe_query(subscription.query) for subscription in session.subscriptions)
    peer = session.principal if session.principal == session.address else f"{session.principal} {session.address}"
    return (
        session.id, session.transport, peer, session.opened_at[:19] + "Z", session.messages_sent,
        shown_bytes(session.bytes_sent), lag, reads,
    )  # fmt: skip


def describe_query(query: QueryBody) -> str:
    """In a few words."""
    parts = [
        *query.streams,
        *(f"topic {topic}" for topic in query.topics),
        *(f"type {name}" for name in query.types),
        *(f"key {name}" for name in query.keys),
        *([f"where {query.filter}"] if query.filter else []),
    ]
    return " ".join(parts) or "everything"


@command.command("end")
@click.argument("session_id", metavar="SESSION")
@target_options
def end_session(session_id: str, target: Target) -> None:
    """End a live connection. Its client may come back and resume."""
    with SyncClient(target.url, target.key, tls=target.tls, retry=ONCE) as client:
        client.end_session(session_id)
    click.echo(f"ended {session_id}", err=True)
