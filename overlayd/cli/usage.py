"""`overlayd usage`: what was published, read and delivered."""

import click
from msgspec import UNSET

from overlayd.cli.output import json_option, print_json, print_table, printable, shown_bytes
from overlayd.cli.target import Target, target_options
from overlayd.client import SyncClient
from overlayd.client.retry import ONCE
from overlayd.model.wire_usage import UsageCounts

METHODS = ("publish", "read", "websocket", "sse", "ndjson", "pull", "webhook", "agent")
PAGE = 1000


@click.command("usage")
@click.option("--principal", default="", help="Only this principal's")
@click.option("--stream", default="", help="Only of this stream, or pattern as a reader named it")
@click.option("--method", default="", type=click.Choice(("", *METHODS)), help="Only by this method", show_choices=True)
@click.option(
    "--from", "from_", default="", metavar="TIME", help="From this hour on (RFC 3339); default: 24 hours back"
)
@click.option("--to", default="", metavar="TIME", help="Up to this hour; default: now")
@click.option("--by", default="hour", type=click.Choice(("hour", "day", "total")), help="One row for each")
@target_options
@json_option
def command(
    target: Target, principal: str, stream: str, method: str, from_: str, to: str, by: str, as_json: bool
) -> None:
    """Show requests, packets and bytes by hour, principal, stream and method."""
    rows: list[UsageCounts] = []
    after = ""
    with SyncClient(target.url, target.key, tls=target.tls, retry=ONCE) as client:
        while True:
            page = client.usage(
                principal=principal, stream=stream, method=method, from_=from_, to=to, by=by, limit=PAGE, after=after
            )
            if as_json:
                for row in page.usage:
                    print_json(row)
            else:
                rows += page.usage
            if page.next_after is UNSET:
                break
            after = page.next_after
    if not as_json:
        head = (
            "FROM",
            "PRINCIPAL",
            "STREAM",
            "METHOD",
            "REQUESTS",
            "PACKETS",
            "BYTES",
            "ERRORS",
            "LATENCY",
            "COMPLETED",
        )
        print_table(head, [_row(row) for row in rows])


def _row(row: UsageCounts) -> tuple[object, ...]:
    latency = "-" if row.latency_ms_mean is UNSET else f"{row.latency_ms_mean:.1f} ms"
    completed = "-" if row.completed_percent is UNSET else f"{row.completed_percent:.0f} %"
    return (
        row.start[:16] + "Z", printable(row.principal) or "-", printable(row.stream) or "-", row.method, row.requests,
        row.packets, shown_bytes(row.bytes), row.errors, latency, completed,
    )  # fmt: skip
