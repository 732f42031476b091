"""`overlayd subscriptions dead-letters`: what exhausted its retries."""

import click

from overlayd.cli.output import json_option, print_json, print_table, printable
from overlayd.cli.target import Target, target_options
from overlayd.client import SyncClient
from overlayd.client.retry import ONCE


def add_letter_commands(group: click.Group) -> None:
    """Adds the commands to `overlayd subscriptions`."""
    group.add_command(dead_letters)


@click.group("dead-letters")
def dead_letters() -> None:
    """List, show, redeliver and delete what exhausted its retries."""


@dead_letters.command("list")
@click.argument("subscription")
@target_options
@json_option
def list_letters(target: Target, subscription: str, as_json: bool) -> None:
    """List a subscription's dead letters."""
    with SyncClient(target.url, target.key, tls=target.tls, retry=ONCE) as client:
        found = client.subscriptions.dead_letters(subscription)
    if as_json:
        for letter in found:
            print_json(letter)
        return
    rows = [
        (one.number, one.delivery_id, one.state, one.stream or "-", one.attempts, one.died_at, one.status or "-",
         printable(one.reason))
        for one in found
    ]  # fmt: skip
    print_table(("NUMBER", "DELIVERY", "STATE", "STREAM", "ATTEMPTS", "DIED", "STATUS", "REASON"), rows)


@dead_letters.command("show")
@click.argument("subscription")
@click.argument("number", type=int)
@target_options
def show(target: Target, subscription: str, number: int) -> None:
    """Print one dead letter with its packets, as JSON."""
    with SyncClient(target.url, target.key, tls=target.tls, retry=ONCE) as client:
        print_json(client.subscriptions.dead_letter(subscription, number))


@dead_letters.command("redeliver")
@click.argument("subscription")
@click.option("--from", "first", type=int, help="From this number on")
@click.option("--to", "last", type=int, help="Up to this number")
@click.option("--all", "is_all", is_flag=True, help="All of them")
@target_options
def redeliver(target: Target, subscription: str, first: int | None, last: int | None, is_all: bool) -> None:
    """Try dead letters again, under their old delivery ids."""
    _check_range(first, last, is_all)
    with SyncClient(target.url, target.key, tls=target.tls, retry=ONCE) as client:
        count = client.subscriptions.redeliver(subscription, first=first, last=last)
    click.echo(f"{count} tried again", err=True)


@dead_letters.command("delete")
@click.argument("subscription")
@click.option("--from", "first", type=int, help="From this number on")
@click.option("--to", "last", type=int, help="Up to this number")
@click.option("--all", "is_all", is_flag=True, help="All of them")
@target_options
def delete(target: Target, subscription: str, first: int | None, last: int | None, is_all: bool) -> None:
    """Throw dead letters away."""
    _check_range(first, last, is_all)
    with SyncClient(target.url, target.key, tls=target.tls, retry=ONCE) as client:
        count = client.subscriptions.delete_dead_letters(subscription, first=first, last=last)
    click.echo(f"{count} deleted", err=True)


def _check_range(first: int | None, last: int | None, is_all: bool) -> None:
    if is_all == (first is not None or last is not None):
        raise click.UsageError("say which: --from and --to, or --all")
