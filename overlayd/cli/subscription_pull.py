"""`overlayd subscriptions fetch`, `ack`, `nack` and `extend`."""

import json
import math
from typing import Any

import click

from overlayd.cli.output import print_json
from overlayd.cli.target import Target, target_options
from overlayd.client import SyncClient
from overlayd.client.retry import ONCE
from overlayd.model.units import Duration


class DurationType(click.ParamType[float]):
    """A duration with a unit, as seconds."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        try:
            return float(Duration.parse(str(value)))
        except ValueError as err:
            self.fail(str(err), param, ctx)


DURATION = DurationType()


def add_pull_commands(group: click.Group) -> None:
    """Adds the commands to `overlayd subscriptions`."""
    for command in (fetch, ack, nack, extend):
        group.add_command(command)


@click.command("fetch")
@click.argument("subscription")
@click.option("--max", "count", default=1, show_default=True, help="At most so many messages")
@click.option("--wait", type=DURATION, default="0s", help="Hold so long for a first one")
@click.option("--ack", "is_acked", is_flag=True, help="Acknowledge them once they are printed")
@target_options
def fetch(target: Target, subscription: str, count: int, wait: float, is_acked: bool) -> None:
    """Lease messages of a pull subscription and print them, one a line, each with its lease."""
    with SyncClient(target.url, target.key, tls=target.tls, retry=ONCE) as client:
        fetched = client.subscriptions.fetch(subscription, count, wait_s=wait)
        for message in fetched.messages:
            print_json(message)
        if is_acked and fetched.messages:
            client.subscriptions.ack(subscription, [message.lease for message in fetched.messages])


@click.command("ack")
@click.argument("subscription")
@click.argument("leases", nargs=-1, required=True, metavar="LEASE...")
@click.option(
    "--reply", default="", help="What an agent replies to the one lease: JSON, @FILE, or - for standard input"
)
@target_options
@click.pass_context
def ack(ctx: click.Context, target: Target, subscription: str, leases: tuple[str, ...], reply: str) -> None:
    """Settle leased messages; prints ok or expired for each, and exits 1 when one had expired.

    A REPLY is {"packets": [{"data": ...}, ...]}; its packets go to the agent's output stream, with the settling.
    """
    body = _read_reply(reply)
    if body is not None and len(leases) != 1:
        raise click.UsageError("--reply goes with one lease")
    with SyncClient(target.url, target.key, tls=target.tls, retry=ONCE) as client:
        _print(ctx, client.subscriptions.ack(subscription, leases, reply=body))


@click.command("nack")
@click.argument("subscription")
@click.argument("leases", nargs=-1, required=True, metavar="LEASE...")
@click.option("--delay", type=DURATION, default="0s", help="Not given out again before")
@target_options
@click.pass_context
def nack(ctx: click.Context, target: Target, subscription: str, leases: tuple[str, ...], delay: float) -> None:
    """Give leased messages back; prints ok or expired for each, and exits 1 when one had expired."""
    with SyncClient(target.url, target.key, tls=target.tls, retry=ONCE) as client:
        _print(ctx, client.subscriptions.nack(subscription, leases, delay_s=delay))


@click.command("extend")
@click.argument("subscription")
@click.argument("leases", nargs=-1, required=True, metavar="LEASE...")
@click.option("--lease", "lease_s", type=DURATION, default=math.nan, help="From now on [default: the subscription's]")
@target_options
@click.pass_context
def extend(ctx: click.Context, target: Target, subscription: str, leases: tuple[str, ...], lease_s: float) -> None:
    """Make leases last longer; prints ok or expired for each, and exits 1 when one had expired."""
    with SyncClient(target.url, target.key, tls=target.tls, retry=ONCE) as client:
        wanted = None if math.isnan(lease_s) else lease_s
        _print(ctx, client.subscriptions.extend(subscription, leases, lease_s=wanted))


def _read_reply(text: str) -> dict[str, Any] | None:
    if not text:
        return None
    try:
        if text == "-" or text.startswith("@"):
            with click.open_file(text.removeprefix("@"), encoding="utf-8") as file:
                text = file.read()
        body = json.loads(text)
    except (OSError, ValueError) as err:
        raise click.UsageError(f"--reply: {err}") from err
    if not isinstance(body, dict):
        raise click.UsageError("--reply: expected a JSON object")
    return body


def _print(ctx: click.Context, results: list[str]) -> None:
    for result in results:
        click.echo(result)
    if "expired" in results:
        ctx.exit(1)
