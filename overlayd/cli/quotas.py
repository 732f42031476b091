"""`overlayd quotas`: what a principal used and has left, and the policies that say how much there is."""

from typing import Any

import click
import msgspec
from msgspec import UNSET, UnsetType

from overlayd.cli.output import json_option, print_json, print_table, printable, shown_bytes
from overlayd.cli.target import Target, target_options
from overlayd.client import SyncClient
from overlayd.client.retry import ONCE
from overlayd.model.quota import QuotaPolicy
from overlayd.model.units import Size
from overlayd.model.wire_usage import QuotaWindow


@click.group("quotas", invoke_without_command=True)
@target_options
@json_option
@click.pass_context
def command(ctx: click.Context, target: Target, as_json: bool) -> None:
    """Show quotas and change their policies; without a subcommand, your own quota is shown."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(show, target=target, as_json=as_json, principal="")


@command.command("show")
@click.argument("principal", default="")
@target_options
@json_option
def show(target: Target, principal: str, as_json: bool) -> None:
    """Show what PRINCIPAL, or you, used and have left this hour, day and month."""
    with SyncClient(target.url, target.key, tls=target.tls, retry=ONCE) as client:
        body = client.quota(principal)
    if as_json:
        print_json(body)
        return
    policy = "none" if body.policy is UNSET else body.policy.name
    click.echo(f"{printable(body.principal)}: policy {policy}, {body.streams_open} live connections")
    windows = (("hour", body.hour), ("day", body.day), ("month", body.month))
    head = ("WINDOW", "RESETS", "BYTES", "OF", "LEFT", "REQUESTS", "OF", "LEFT")
    print_table(head, [_window_row(name, window) for name, window in windows])


@command.command("policies")
@target_options
@json_option
def list_policies(target: Target, as_json: bool) -> None:
    """List the quota policies."""
    with SyncClient(target.url, target.key, tls=target.tls, retry=ONCE) as client:
        policies = client.quota_policies()
    if as_json:
        for policy in policies:
            print_json(policy)
        return
    head = ("POLICY", "BYTES/H", "BYTES/D", "BYTES/MONTH", "REQ/H", "REQ/D", "REQ/MONTH", "STREAMS", "BURST", "ACTIVE")
    print_table(head, [_policy_row(policy) for policy in policies])


@command.command("set")
@click.argument("name")
@click.argument("settings", nargs=-1, metavar="KEY=VALUE...")
@target_options
def set_policy(target: Target, name: str, settings: tuple[str, ...]) -> None:
    """Create the policy NAME, or change what is named: bytes_per_hour=1GiB requests_per_day=1000 is_active=false.

    Sizes may have units; 0 is no bound.
    """
    with SyncClient(target.url, target.key, tls=target.tls, retry=ONCE) as client:
        known = {policy.name: policy for policy in client.quota_policies()}
        members = msgspec.structs.asdict(known.get(name, QuotaPolicy(name=name)))
        for setting in settings:
            key, value = _parse_setting(setting, members)
            members[key] = value
        try:
            policy = msgspec.convert(members, QuotaPolicy)
        except msgspec.ValidationError as err:
            raise click.BadParameter(str(err)) from err
        client.put_quota_policy(policy)
    click.echo(f"{'changed' if name in known else 'created'} {name}", err=True)


@command.command("delete")
@click.argument("name")
@target_options
def delete_policy(target: Target, name: str) -> None:
    """Take a policy away. Whoever has it is refused until they get another one."""
    with SyncClient(target.url, target.key, tls=target.tls, retry=ONCE) as client:
        client.delete_quota_policy(name)
    click.echo(f"deleted {name}", err=True)


def _parse_setting(text: str, members: dict[str, Any]) -> tuple[str, Any]:
    """Raises BadParameter."""
    key, is_there, value = text.partition("=")
    if not is_there or key not in members or key == "name":
        raise click.BadParameter(f"{text!r} isn't one of {', '.join(k for k in members if k != 'name')}=VALUE")
    try:
        if isinstance(members[key], bool):
            return key, {"true": True, "false": False}[value.lower()]
        if isinstance(members[key], float):
            return key, float(value)
        return key, value if isinstance(members[key], str) else int(Size.parse(value))
    except (KeyError, ValueError) as err:
        raise click.BadParameter(f"{key} can't be {value!r}") from err


def _window_row(name: str, window: QuotaWindow) -> tuple[object, ...]:
    def size(count: int | UnsetType) -> str:
        return "-" if count is UNSET else shown_bytes(count)

    def number(count: int | UnsetType) -> object:
        return "-" if count is UNSET else count

    return (
        name, window.resets_at[:16] + "Z", shown_bytes(window.bytes_used), size(window.bytes_allowed),
        size(window.bytes_left), window.requests_used, number(window.requests_allowed), number(window.requests_left),
    )  # fmt: skip


def _policy_row(policy: QuotaPolicy) -> tuple[object, ...]:
    sizes = (policy.bytes_per_hour, policy.bytes_per_day, policy.bytes_per_month)
    counts = (
        policy.requests_per_hour,
        policy.requests_per_day,
        policy.requests_per_month,
        policy.max_concurrent_streams,
    )
    return (
        policy.name, *(shown_bytes(size) if size else "-" for size in sizes), *(count or "-" for count in counts),
        shown_bytes(policy.burst_bytes_allowance) if policy.burst_bytes_allowance else "-",
        "yes" if policy.is_active else "no",
    )  # fmt: skip
