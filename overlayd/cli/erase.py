"""`overlayd erase`: takes the content of packets away, everywhere."""

import sys
import time

import click
from msgspec import UNSET

from overlayd.cli.output import json_option, print_facts, print_json, print_table, printable
from overlayd.cli.target import Target, target_options
from overlayd.client import SyncClient, privacy_calls
from overlayd.model.wire_privacy import EraseIn, ErasureBody

LOOK_S = 1.0


@click.command("erase")
@click.argument("stream", required=False)
@click.argument("sequences", required=False, metavar="[SEQUENCE | FROM-TO]")
@click.option("--subject", default="", help="Every packet about somebody, instead of STREAM and SEQUENCE")
@click.option("--dry-run", is_flag=True, help="Only say what would be erased")
@click.option("--yes", is_flag=True, help="Don't ask")
@target_options
@json_option
def command(
    target: Target, stream: str | None, sequences: str | None, subject: str, dry_run: bool, yes: bool, as_json: bool
) -> None:
    """Erase packets of a STREAM, or every packet about a subject.

    Returns when nothing of them is left on the node but what the log proves by: the packets' place, time and hash. What
    the node made from them is erased as well. Prints who was given them, and which backups still hold them.
    """
    what = _wanted(stream, sequences, subject)
    with SyncClient(target.url, target.key, tls=target.tls) as client:
        what.dry_run = True
        report = client.send(privacy_calls.erase(what))
        if report.packets and not dry_run:
            if not yes:
                _print_report(report, as_json=False)
                click.confirm("Erase this for good?", abort=True, err=True)
            what.dry_run = False
            report = client.send(privacy_calls.erase(what))
            while report.state == "working":
                time.sleep(LOOK_S)
                report = client.send(privacy_calls.show_erasure(report.id))
    _print_report(report, as_json=as_json)
    if report.state == "held":
        sys.exit(1)


def _wanted(stream: str | None, sequences: str | None, subject: str) -> EraseIn:
    if subject:
        if stream or sequences:
            raise click.UsageError("--subject goes without STREAM and SEQUENCE")
        return EraseIn(subject=subject)
    if not stream or not sequences:
        raise click.UsageError("name a STREAM and a SEQUENCE or FROM-TO, or use --subject")
    first, dash, last = sequences.partition("-")
    if not first.isdigit() or (dash and not last.isdigit()):
        raise click.UsageError(f"not a sequence or a range such as 10-20: {sequences}")
    if not dash:
        return EraseIn(stream=stream, sequence=int(first))
    return EraseIn(stream=stream, from_=int(first), to=int(last))


def _print_report(report: ErasureBody, *, as_json: bool) -> None:
    if as_json:
        print_json(report)
        return
    facts = [("state", report.state), ("packets", str(report.packets)), ("made from others", str(report.derived))]
    if report.id:
        facts.insert(0, ("id", report.id))
    if report.held:
        facts.append(("held back", str(report.held)))
    if report.done_at is not UNSET:
        facts.append(("done at", str(report.done_at)))
    print_facts(facts)
    if report.streams:
        print_table(
            ("STREAM", "PACKETS", "FIRST", "LAST"),
            [(one.stream, one.packets, one.first_sequence, one.last_sequence) for one in report.streams],
        )
    if report.recipients:
        print_table(("GIVEN TO", "KIND", "ID"), [(printable(one.name), one.kind, one.id) for one in report.recipients])
    if report.state == "held":
        click.echo("a hold, or a least age, keeps some of it; that goes as soon as it ends", err=True)
    for backup in report.backups:
        click.echo(f"still in the backup {printable(backup)}", err=True)
