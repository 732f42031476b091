"""`overlayd retention`."""

import click
from msgspec import UNSET

from overlayd.cli.output import json_option, print_facts, print_json, shown_bytes
from overlayd.cli.target import Target, target_options
from overlayd.client import SyncClient, retention_calls
from overlayd.client.retry import ONCE
from overlayd.model.wire_retention import RetentionBody


@click.group("retention", invoke_without_command=True)
@target_options
@json_option
@click.pass_context
def command(ctx: click.Context, target: Target, as_json: bool) -> None:
    """Show how taking old packets away stands."""
    if ctx.invoked_subcommand is None:
        with _client(target) as client:
            _print(client.send(retention_calls.show_retention()), as_json)


@command.command("trust-clock")
@target_options
@json_option
def trust_clock(target: Target, as_json: bool) -> None:
    """Say that the clock is right after a step of more than a day, so that packets age again."""
    with _client(target) as client:
        _print(client.send(retention_calls.trust_clock()), as_json)


def _print(found: RetentionBody, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    trouble = "" if found.clock_trouble is UNSET else f": {found.clock_trouble}"
    print_facts(
        [
            ("clock", "trusted" if found.clock_trusted else f"not trusted, packets don't age{trouble}"),
            ("oldest packet", "-" if found.oldest_at is UNSET else found.oldest_at),
            ("cut entries", found.minimum_index),
            ("legal holds", found.holds),
            ("disk", f"{found.disk}, {shown_bytes(found.disk_free_bytes)} free"),
        ]
    )


def _client(target: Target) -> SyncClient:
    return SyncClient(target.url, target.key, tls=target.tls, retry=ONCE)
