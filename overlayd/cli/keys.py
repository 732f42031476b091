"""`overlayd keys`: API keys of a running node, drawing one for the configuration, and the keys of the log."""

from collections.abc import Iterator

import click
from msgspec import UNSET, UnsetType

from overlayd.access.secret_text import draw_key, format_digest
from overlayd.cli.key_bundle import export, import_
from overlayd.cli.output import json_option, print_facts, print_json, print_table, printable
from overlayd.cli.target import Target, target_options
from overlayd.client import SyncClient, access_calls, calls
from overlayd.client.retry import ONCE
from overlayd.model.clock import Entropy
from overlayd.model.key_chain import LogKeysBody
from overlayd.model.wire_access import KeyBody, KeyChangeIn, KeyIn, KeyMade

_WARNING = "Keep it now: it isn't shown again."


@click.group("keys", invoke_without_command=True)
@target_options
@json_option
@click.pass_context
def command(ctx: click.Context, target: Target, as_json: bool) -> None:
    """Make, list, change, rotate and revoke API keys; without a subcommand they are listed."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_keys, target=target, as_json=as_json, owner="")


command.add_command(export)
command.add_command(import_)


@command.command("list")
@click.option("--owner", default="", help="Only the keys of this owner")
@target_options
@json_option
def list_keys(target: Target, owner: str, as_json: bool) -> None:
    """List the keys, without their secrets."""
    with _open(target) as client:
        keys = list(_all_keys(client, owner))
    if as_json:
        for key in keys:
            print_json(key)
        return
    print_table(
        ("KEY", "BEGINS", "OWNER", "STATE", "SCOPES", "EXPIRES", "LAST USED", "FROM"), [_row(key) for key in keys]
    )


@command.command("create")
@click.argument("scopes", nargs=-1, metavar="SCOPE...")
@click.option("--role", "roles", multiple=True, help="A named set of scopes; may be repeated")
@click.option("--owner", default="", help="Whose it is [default: whoever makes it]")
@click.option("--title", default="", help="What it is for")
@click.option("--expires", default="", metavar="TIME", help="RFC 3339 time at which it ends")
@click.option("--policy", default="", help="Quota policy")
@click.option("--agentpipe", is_flag=True, help="A key for AgentPipe clients: ap_live_…")
@target_options
@json_option
def create(
    target: Target, scopes: tuple[str, ...], roles: tuple[str, ...], owner: str, title: str, expires: str, policy: str,
    agentpipe: bool, as_json: bool,
) -> None:  # fmt: skip
    """Make a key with these SCOPEs, such as publish:weather.* or read. Its secret is printed once.

    Once a node has a key, clients on the same machine need one too, unless [access] loopback_free is set.
    """
    wanted = KeyIn(
        kind="ap" if agentpipe else "ovl", title=title, owner=owner, scopes=list(scopes), roles=list(roles),
        expires_at=expires or UNSET, policy=policy,
    )  # fmt: skip
    with _open(target) as client:
        made = client.send(access_calls.create_key(wanted))
    _print_made(made, as_json)


@command.command("change")
@click.argument("key_id", metavar="KEY")
@click.option("--scope", "scopes", multiple=True, help="Instead of those that it has; may be repeated")
@click.option("--role", "roles", multiple=True, help="Instead of those that it has; may be repeated")
@click.option("--no-scopes", is_flag=True, help="Take all scopes away; its roles stay")
@click.option("--no-roles", is_flag=True, help="Take all roles away; its scopes stay")
@click.option("--owner", default=None, help="Whose it is")
@click.option("--title", default=None, help="What it is for")
@click.option("--expires", default=None, metavar="TIME", help='RFC 3339 time at which it ends; "never"')
@click.option("--policy", default=None, help='Quota policy; "": the default one')
@target_options
@json_option
def change(
    target: Target, key_id: str, scopes: tuple[str, ...], roles: tuple[str, ...], no_scopes: bool, no_roles: bool,
    owner: str | None, title: str | None, expires: str | None, policy: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Change what a key may do, whose it is, or when it ends. Its secret stays; what it let in comes in anew."""
    if (scopes and no_scopes) or (roles and no_roles):
        raise click.UsageError("give either new ones, or none")
    wanted = KeyChangeIn(
        title=_given(title), owner=_given(owner), policy=_given(policy),
        scopes=list(scopes) if scopes or no_scopes else UNSET, roles=list(roles) if roles or no_roles else UNSET,
        expires_at=None if expires == "never" else _given(expires),
    )  # fmt: skip
    if wanted == KeyChangeIn():
        raise click.UsageError("say what is to change")
    with _open(target) as client:
        changed = client.send(access_calls.change_key(key_id, wanted))
    if as_json:
        print_json(changed)
        return
    expires_at = changed.expires_at if isinstance(changed.expires_at, str) else "never"
    print_facts(
        (("id", changed.id), ("owner", printable(changed.owner)), ("scopes", _scopes(changed)), ("expires", expires_at))
    )


@command.command("rotate")
@click.argument("key_id", metavar="KEY")
@click.option(
    "--grace", default="", metavar="DURATION", help="How long the old secret goes on, such as 1h; 0s: not at all"
)
@target_options
@json_option
def rotate(target: Target, key_id: str, grace: str, as_json: bool) -> None:
    """Give a key another secret, which is printed once; the old one goes on for a while."""
    with _open(target) as client:
        made = client.send(access_calls.rotate_key(key_id, grace))
    _print_made(made, as_json)


@command.command("revoke")
@click.argument("key_id", metavar="KEY")
@target_options
def revoke(target: Target, key_id: str) -> None:
    """End a key at once, with every live connection that it let in."""
    with _open(target) as client:
        client.send(access_calls.revoke_key(key_id))
    click.echo(f"revoked {printable(key_id)}", err=True)


@command.command("generate")
@click.option("--agentpipe", is_flag=True, help="A key for AgentPipe clients: ap_live_…")
@json_option
def generate(agentpipe: bool, as_json: bool) -> None:
    """Draw a key for the configuration, without a node: prints it, and the hash that goes into [[keys]]."""
    secret = draw_key("ap" if agentpipe else "ovl", Entropy())
    if as_json:
        print_json({"key": secret.text, "hash": format_digest(secret.digest)})
        return
    print_facts((("key", secret.text), ("hash", format_digest(secret.digest))))
    click.echo(_WARNING, err=True)


@command.command("rotate-node")
@target_options
@json_option
def rotate_node(target: Target, as_json: bool) -> None:
    """Change the key that signs the log's checkpoints.

    The next key is the one that [node] checkpoint_key_next names, else a new file in the data directory. Old proofs
    verify as before; clients learn the new key from the log. Keep a copy of the new file with your backups.
    """
    with _open(target) as client:
        listed = client.send(calls.rotate_log_key())
    _print_log_keys(listed, as_json)


@command.command("node")
@target_options
@json_option
def show_node_keys(target: Target, as_json: bool) -> None:
    """List the keys that signed the log's checkpoints, with the sizes for which each counts.

    With --json it is the list that `overlayd verify --key-list` takes.
    """
    with _open(target) as client:
        listed = client.send(calls.log_keys())
    _print_log_keys(listed, as_json)


def _print_log_keys(listed: LogKeysBody, as_json: bool) -> None:
    if as_json:
        print_json(listed)
        return
    rows = [
        (
            key.state,
            "-" if key.from_size is None else key.from_size,
            "-" if key.to_size is None else key.to_size,
            key.key,
        )
        for key in listed.keys
    ]
    print_table(("STATE", "FROM SIZE", "TO SIZE", "KEY"), rows)


def _open(target: Target) -> SyncClient:
    return SyncClient(target.url, target.key, tls=target.tls, retry=ONCE)


def _all_keys(client: SyncClient, owner: str) -> Iterator[KeyBody]:
    after = ""
    while True:
        page = client.send(access_calls.list_keys(owner=owner, limit=1000, after=after))
        yield from page.keys
        if not isinstance(page.next_after, str):
            return
        after = page.next_after


def _given(text: str | None) -> str | UnsetType:
    return UNSET if text is None else text


def _print_made(made: KeyMade, as_json: bool) -> None:
    if as_json:
        print_json(made)
        return
    print_facts((("id", made.id), ("owner", printable(made.owner)), ("scopes", _scopes(made)), ("key", made.key)))
    click.echo(_WARNING, err=True)


def _row(key: KeyBody) -> tuple[object, ...]:
    prefixes = ", ".join(f"{secret.prefix}…" for secret in key.secrets if secret.prefix)
    return (
        key.id, prefixes or "-", printable(key.owner), key.state, _scopes(key), _shown(key.expires_at),
        _shown(key.last_used_at), "config" if isinstance(key.declared_in, str) else "api",
    )  # fmt: skip


def _scopes(key: KeyBody) -> str:
    return " ".join([*key.scopes, *(f"role {role}" for role in key.roles)])


def _shown(time: str | UnsetType) -> str:
    return f"{time[:19]}Z" if isinstance(time, str) else "-"
