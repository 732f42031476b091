"""`overlayd subscriptions`: durable subscriptions of a running node."""

import json
from typing import Any

import click

from overlayd.cli.output import json_option, print_facts, print_json, print_table, printable
from overlayd.cli.subscription_letters import add_letter_commands
from overlayd.cli.subscription_pull import add_pull_commands
from overlayd.cli.target import Target, target_options
from overlayd.client import SyncClient
from overlayd.client.retry import ONCE
from overlayd.model.wire_subscriptions import SubscriptionBody

_WARNING = "Keep the secret now: it isn't shown again."


@click.group("subscriptions", invoke_without_command=True)
@target_options
@json_option
@click.pass_context
def command(ctx: click.Context, target: Target, as_json: bool) -> None:
    """Create, list, show, move and delete durable subscriptions; without a subcommand they are listed.

    SUBSCRIPTION is a name or an id.
    """
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_subscriptions, target=target, as_json=as_json, kind="", state="")


@command.command("list")
@click.option("--kind", default="", help="Only of this kind: webhook, agent, pull or live")
@click.option("--state", default="", help="Only active, paused or disabled ones")
@target_options
@json_option
def list_subscriptions(target: Target, kind: str, state: str, as_json: bool) -> None:
    """List subscriptions with how far behind they are."""
    with _open(target) as client:
        found = client.subscriptions.list(kind=kind, state=state)
    if as_json:
        for one in found:
            print_json(one)
        return
    head = ("NAME", "KIND", "STATE", "STREAMS", "LAG", "OUTSTANDING", "DELIVERED", "FAILED", "DEAD", "LAST ERROR")
    print_table(head, [_row(one) for one in found])


@command.command("show")
@click.argument("subscription")
@target_options
@json_option
def show(target: Target, subscription: str, as_json: bool) -> None:
    """Show a subscription and where it stands."""
    with _open(target) as client:
        found = client.subscriptions.get(subscription)
    _print(found, as_json)


@command.command("create")
@click.argument("name")
@click.option(
    "--kind",
    type=click.Choice(["webhook", "agent", "pull", "live"]),
    help="[default: webhook with --post-to, else pull]",
)
@click.option("--stream", "streams", multiple=True, help="Pattern over stream names; may be repeated")
@click.option("--topic", "topics", multiple=True, help="Pattern over topics; may be repeated")
@click.option("--type", "types", multiple=True, help="Packet type; may be repeated")
@click.option("--key", "keys", multiple=True, help="Packet key; may be repeated")
@click.option("--filter", "filter_text", default="", help="A CEL expression")
@click.option("--from", "start", default="", help="now, beginning, a time or a cursor [default: now]")
@click.option("--post-to", default="", help="Where a webhook posts")
@click.option("--ordered", is_flag=True, help="Each stream's packets one after the other")
@click.option("--output", default="", help="The stream that an agent replies to")
@click.option("--trigger", default="", help="What wakes an agent: a CEL expression, or a predicate as JSON")
@click.option("--definition", default="", help="The whole definition as JSON, or @FILE; the other options beat it")
@target_options
@json_option
def create(
    target: Target, name: str, kind: str | None, streams: tuple[str, ...], topics: tuple[str, ...],
    types: tuple[str, ...], keys: tuple[str, ...], filter_text: str, start: str, post_to: str, ordered: bool,
    output: str, trigger: str, definition: str, as_json: bool,
) -> None:  # fmt: skip
    """Create a subscription. A webhook's secret is printed once."""
    body = _read_definition(definition)
    body["name"] = name
    given = {
        "kind": kind, "streams": list(streams), "topics": list(topics), "types": list(types), "keys": list(keys),
        "filter": filter_text, "from": start,
    }  # fmt: skip
    body.update({member: value for member, value in given.items() if value})
    body.setdefault("kind", "webhook" if post_to or "webhook" in body else "pull")
    way = _agent(body, post_to, output, trigger) if body["kind"] == "agent" else body["kind"]
    if way in ("webhook", "pull"):
        table = dict(body.get(way, {}))
        table.update({"url": post_to} if post_to else {})
        table.update({"ordering": "stream"} if ordered else {})
        if table:
            body[way] = table
    with _open(target) as client:
        made = client.subscriptions.create(body)
    _print(made, as_json)


def _agent(body: dict[str, Any], post_to: str, output: str, trigger: str) -> str:
    """Puts the table `agent` in, and gives how the agent is reached."""
    agent = dict(body.get("agent", {}))
    agent.setdefault("attach", "webhook" if post_to or "webhook" in body else "pull")
    agent.update({"output": output} if output else {})
    if trigger:
        try:
            agent["trigger"] = json.loads(trigger) if trigger.startswith("{") else trigger
        except ValueError as err:
            raise click.BadParameter(f"not JSON: {err}", param_hint="--trigger") from err
    body["agent"] = agent
    return str(agent["attach"])


@command.command("pause")
@click.argument("subscription")
@target_options
def pause(target: Target, subscription: str) -> None:
    """Begin nothing more for a subscription; nothing is lost."""
    with _open(target) as client:
        client.subscriptions.pause(subscription)
    click.echo(f"paused {printable(subscription)}", err=True)


@command.command("resume")
@click.argument("subscription")
@target_options
def resume(target: Target, subscription: str) -> None:
    """Go on with a subscription that was paused or disabled."""
    with _open(target) as client:
        client.subscriptions.resume(subscription)
    click.echo(f"resumed {printable(subscription)}", err=True)


@command.command("test")
@click.argument("subscription")
@target_options
@json_option
@click.pass_context
def test(ctx: click.Context, target: Target, subscription: str, as_json: bool) -> None:
    """Have one delivery without packets sent; exits 1 when it failed."""
    with _open(target) as client:
        found = client.subscriptions.test(subscription)
    if as_json:
        print_json(found)
    else:
        facts = (("outcome", found.outcome), ("status", found.status or "-"), ("reason", found.reason or "-"))
        print_facts((*facts, ("took", f"{found.duration_ms:.1f} ms"), ("id", found.delivery_id)))
    if found.outcome != "delivered":
        ctx.exit(1)


@command.command("seek")
@click.argument("subscription")
@click.option("--cursor", default="", help="Go on behind this cursor")
@click.option("--time", default="", help="Go on with what was appended at or after this RFC 3339 time")
@target_options
def seek(target: Target, subscription: str, cursor: str, time: str) -> None:
    """Go on from another place, forwards or back."""
    if bool(cursor) == bool(time):
        raise click.UsageError("give either --cursor or --time")
    with _open(target) as client:
        found = client.subscriptions.seek(subscription, cursor=cursor, time=time)
    click.echo(f"{printable(subscription)} goes on behind {found.cursor}", err=True)


@command.command("rotate-secret")
@click.argument("subscription")
@target_options
def rotate_secret(target: Target, subscription: str) -> None:
    """Sign with another secret, which is printed once; the one before stays valid for a while."""
    with _open(target) as client:
        click.echo(client.subscriptions.rotate_secret(subscription))
    click.echo(_WARNING, err=True)


@command.command("attempts")
@click.argument("subscription")
@target_options
@json_option
def attempts(target: Target, subscription: str, as_json: bool) -> None:
    """List the last attempts, newest first."""
    with _open(target) as client:
        found = client.subscriptions.attempts(subscription)
    if as_json:
        for one in found:
            print_json(one)
        return
    rows = [
        (one.at, one.delivery_id, one.attempt, one.outcome, one.status or "-", f"{one.duration_ms:.1f}",
         printable(one.reason or ""))
        for one in found
    ]  # fmt: skip
    print_table(("AT", "DELIVERY", "ATTEMPT", "OUTCOME", "STATUS", "MS", "REASON"), rows)


@command.command("delete")
@click.argument("subscription")
@target_options
def delete(target: Target, subscription: str) -> None:
    """Delete a subscription with its dead letters."""
    with _open(target) as client:
        client.subscriptions.delete(subscription)
    click.echo(f"deleted {printable(subscription)}", err=True)


add_pull_commands(command)
add_letter_commands(command)


def _open(target: Target) -> SyncClient:
    return SyncClient(target.url, target.key, tls=target.tls, retry=ONCE)


def _read_definition(text: str) -> dict[str, Any]:
    if not text:
        return {}
    try:
        if text.startswith("@"):
            with click.open_file(text[1:], encoding="utf-8") as file:
                text = file.read()
        body = json.loads(text)
    except (OSError, ValueError) as err:
        raise click.UsageError(f"--definition: {err}") from err
    if not isinstance(body, dict):
        raise click.UsageError("--definition: expected a JSON object")
    return body


def _row(one: SubscriptionBody) -> tuple[object, ...]:
    return (
        one.name, one.kind, one.state, " ".join(one.streams) or ">", one.lag_entries, one.outstanding,
        "-" if not isinstance(one.delivered, int) else one.delivered,
        "-" if not isinstance(one.failed, int) else one.failed, one.dead_letters, printable(one.last_error or ""),
    )  # fmt: skip


def _print(one: SubscriptionBody, as_json: bool) -> None:
    if as_json:
        print_json(one)
        return
    facts: list[tuple[str, object]] = [
        ("name", one.name), ("id", one.id), ("kind", one.kind),
        ("state", f"{one.state}: {printable(one.reason)}" if one.reason else one.state), ("owner", one.owner),
        ("reads for", one.principal), ("streams", " ".join(one.streams) or ">"), ("cursor", one.cursor),
        ("lag", f"{one.lag_entries} entries"), ("outstanding", one.outstanding), ("dead letters", one.dead_letters),
    ]  # fmt: skip
    if one.webhook:
        facts.append(("url", printable(one.webhook.url)))
    for name, value in (
        ("filter", one.filter), ("delivered", one.delivered), ("failed", one.failed),
        ("last success", one.last_success_at), ("last failure", one.last_failure_at), ("last error", one.last_error),
        ("secret", one.secret),
    ):  # fmt: skip
        if isinstance(value, str | int):
            facts.append((name, printable(str(value))))
    print_facts(facts)
    if one.secret:
        click.echo(_WARNING, err=True)
