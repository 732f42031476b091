"""`overlayd node`."""

import click

from overlayd.cli.output import json_option, print_facts, print_json
from overlayd.cli.target import Target, target_options
from overlayd.client import SyncClient
from overlayd.client.retry import ONCE


@click.command("node")
@target_options
@json_option
def command(target: Target, as_json: bool) -> None:
    """Show who the node is and where its log stands."""
    with SyncClient(target.url, target.key, tls=target.tls, retry=ONCE) as client:
        node = client.node()
        ready = client.ready()
    if as_json:
        print_json({"node": node, "ready": ready})
        return
    facts: list[tuple[str, object]] = [
        ("node", node.node),
        ("address", target.url),
        ("ready", "yes" if ready.ready else "no"),
        *((f"  {name}", check.detail or ("ok" if check.ok else "not ok")) for name, check in ready.checks.items()),
        ("log", node.log),
        ("origin", node.origin),
        *(("key", key) for key in node.keys),
        ("epoch", node.epoch),
        *(("  continues", f"{earlier.epoch} up to entry {earlier.last_offset}") for earlier in node.ancestry),
        ("head", f"{node.head} ({node.cursor})"),
        ("started", node.started_at),
        ("network", node.network if node.network != "none" else "none: this node confirms nothing on a chain"),
        *((name, version) for name, version in node.versions.items()),
    ]
    print_facts(facts)
