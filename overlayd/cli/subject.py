"""`overlayd subject`: what a running node keeps about somebody."""

import click
from msgspec import UNSET

from overlayd.cli.output import json_option, print_json, print_table, printable
from overlayd.cli.target import Target, target_options
from overlayd.client import SyncClient, privacy_calls
from overlayd.model.wire_privacy import ConsentBody

PAGE = 500


@click.group("subject")
def command() -> None:
    """Find, export and ask for the consent of those whom packets are about."""


@command.command("show")
@click.argument("subject")
@target_options
@json_option
def show(target: Target, subject: str, as_json: bool) -> None:
    """Show where packets about SUBJECT are, and what they consented to."""
    with SyncClient(target.url, target.key, tls=target.tls) as client:
        body = client.send(privacy_calls.show_subject(subject))
    if as_json:
        print_json(body)
        return
    print_table(
        ("STREAM", "PACKETS", "FIRST", "LAST"),
        [(one.stream, one.packets, one.first_sequence, one.last_sequence) for one in body.streams],
    )
    _print_consents(body.consents)
    if not body.complete:
        click.echo("there are more: only the first were counted (limits.subject_packets_max)", err=True)
    click.echo(f"searched {len(body.searched)} streams that say where the subject stands", err=True)


@command.command("export")
@click.argument("subject")
@target_options
def export(target: Target, subject: str) -> None:
    """Print every packet about SUBJECT, one JSON object a line, oldest first."""
    after, count = 0, 0
    with SyncClient(target.url, target.key, tls=target.tls) as client:
        while True:
            page = client.send(privacy_calls.export_subject(subject, after=after, limit=PAGE))
            for packet in page.packets:
                print_json(packet)
            count += len(page.packets)
            if page.next_after is UNSET:
                break
            after = page.next_after
    click.echo(f"{count} packets", err=True)


@command.command("consent")
@click.argument("subject")
@click.option("--grant", default="", metavar="PURPOSE", help="Record that they consented to it")
@click.option("--withdraw", default="", metavar="PURPOSE", help="Record that they don't any more")
@click.option("--until", default="", metavar="TIME", help="RFC 3339 time at which a granted one ends")
@click.option("--reference", default="", help="Names the form or act by which it was given; no personal data")
@target_options
@json_option
def consent(target: Target, subject: str, grant: str, withdraw: str, until: str, reference: str, as_json: bool) -> None:
    """Show what SUBJECT consented to, or record it."""
    if grant and withdraw:
        raise click.UsageError("either --grant or --withdraw")
    with SyncClient(target.url, target.key, tls=target.tls) as client:
        if grant or withdraw:
            put = privacy_calls.put_consent(
                subject, grant or withdraw, granted=bool(grant), until=until, reference=reference
            )
            consents = [client.send(put)]
        else:
            consents = client.send(privacy_calls.list_consents(subject)).consents
    if as_json:
        for one in consents:
            print_json(one)
        return
    _print_consents(consents)


def _print_consents(consents: list[ConsentBody]) -> None:
    rows = [
        (
            printable(one.purpose), "granted" if one.granted else "withdrawn", one.changed_at[:19] + "Z",
            "-" if one.until is UNSET else str(one.until), "-" if one.reference is UNSET else printable(str(one.reference)),
        )
        for one in consents
    ]  # fmt: skip
    if rows:
        print_table(("PURPOSE", "CONSENT", "SINCE", "UNTIL", "REFERENCE"), rows)
