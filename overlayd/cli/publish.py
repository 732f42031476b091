"""`overlayd publish`."""

import os
import stat
import sys
from typing import BinaryIO

import click

from overlayd.cli.exits import FAILED, OK, describe_violation
from overlayd.cli.output import json_option, print_json, shown_bytes
from overlayd.cli.packet_input import Form, PacketInput
from overlayd.cli.target import Target, target_options
from overlayd.client import PublishOutcome, RetryPolicy, SyncClient
from overlayd.client.retry import ONCE
from overlayd.model.errors import OverlaydError, Violation

ERRORS_SHOWN = 20
PATIENCE = RetryPolicy(attempts=10, first_s=0.2, max_s=10.0)
"""Outlasts a restart of the node, about a minute in all."""


@click.command("publish")
@click.argument("stream")
@click.argument("file", type=click.File("rb"), default="-")
@click.option("--input", "form", type=click.Choice(["auto", "json", "ndjson"]), default="auto", show_default=True,
              help="One JSON value or array, or a value a line")  # fmt: skip
@click.option("--bare", is_flag=True, help="The values are the packets' data, not packet objects")
@click.option("--id-prefix", metavar="TEXT", help="Packets without an id get this and their line number as id")
@click.option("--content-ids", is_flag=True, help="Packets without an id get a hash of their text; equal ones are one")
@click.option("--batch", type=click.IntRange(1, 10_000), default=1000, show_default=True, help="Packets a request")
@click.option("--quiet", "-q", is_flag=True, help="No progress, no summary")
@target_options
@json_option
def command(
    stream: str, file: BinaryIO, form: Form, bare: bool, id_prefix: str | None, content_ids: bool, batch: int,
    quiet: bool, target: Target, as_json: bool,
) -> None:  # fmt: skip
    """Publish the packets in FILE, or from standard input, to STREAM.

    The input is packet objects, {"data": ..., "id"?: ..., "type"?: ...}: one, an array of them, or one a line.
    With --bare each value is the data itself.

    A packet with an id is appended once, however often it is sent, so this command can be repeated after any
    failure. Ids come from the input, from --id-prefix or from --content-ids. Without one a repeat appends again.

    Rejected packets are listed and don't stop the others; the exit code is then 1.
    """
    if id_prefix is not None and content_ids:
        raise click.UsageError("--id-prefix and --content-ids exclude each other")
    packets = PacketInput(file, form=form, is_bare=bare, id_prefix=id_prefix, has_content_ids=content_ids)
    progress = _Progress(file, packets, is_shown=not quiet and sys.stderr.isatty())
    with SyncClient(target.url, target.key, tls=target.tls, retry=ONCE) as client:
        client.ready()  # an absent node is told at once; later losses are waited out
    with SyncClient(target.url, target.key, tls=target.tls, retry=PATIENCE) as client:
        try:
            outcome = client.publish_many(stream, packets, on_progress=progress.show, chunk_packets=batch)
        except OverlaydError as error:
            progress.end()
            _tell_interrupted(error, progress.last, packets)
            raise
    progress.end()
    if as_json:
        print_json(_summary(outcome, packets))
    elif not quiet:
        _print_outcome(stream, outcome)
    _tell_rejections(outcome, packets)
    if packets.without_id and not quiet:
        click.echo(
            f"overlayd: {packets.without_id} packets had no id: publishing this input again would append them again "
            "(--id-prefix or --content-ids prevent that)", err=True,
        )  # fmt: skip
    raise SystemExit(FAILED if outcome.rejected else OK)


def _summary(outcome: PublishOutcome, packets: PacketInput) -> dict[str, object]:
    summary: dict[str, object] = {
        "accepted": outcome.accepted,
        "duplicates": outcome.duplicates,
        "rejected": outcome.rejected,
        "errors": [_placed(violation, packets) for violation in outcome.errors],
    }
    ends = (("first", outcome.first), ("last", outcome.last))
    return summary | {name: receipt for name, receipt in ends if receipt is not None}


def _print_outcome(stream: str, outcome: PublishOutcome) -> None:
    parts = [f"{outcome.accepted} appended"]
    parts += [f"{outcome.duplicates} were there already"] if outcome.duplicates else []
    parts += [f"{outcome.rejected} rejected"] if outcome.rejected else []
    where = ""
    if outcome.first is not None and outcome.last is not None:
        where = f"; sequence {outcome.first.sequence} to {outcome.last.sequence}"
    click.echo(f"{stream}: {', '.join(parts)}{where}")


def _placed(violation: Violation, packets: PacketInput) -> Violation:
    number = packets.place_of(violation.line or 1)
    is_line = packets.unit == "line"
    return Violation(
        violation.pointer, violation.code, violation.detail,
        index=None if is_line else number, line=number if is_line else None,
    )  # fmt: skip


def _tell_rejections(outcome: PublishOutcome, packets: PacketInput) -> None:
    for violation in outcome.errors[:ERRORS_SHOWN]:
        click.echo(f"overlayd: {describe_violation(_placed(violation, packets))}", err=True)
    if outcome.rejected > ERRORS_SHOWN:
        click.echo(f"overlayd: {outcome.rejected} rejected in all", err=True)


def _tell_interrupted(error: OverlaydError, done: PublishOutcome | None, packets: PacketInput) -> None:
    """What is known when the way to the node broke."""
    if done is None or error.code == "client.uncertain":
        return
    last = packets.place_of(done.sent)
    click.echo(f"overlayd: up to {packets.unit} {last} everything was answered; what followed is open", err=True)
    if not packets.without_id:
        click.echo("overlayd: every packet has an id, so the same command can simply be run again", err=True)


class _Progress:
    """A bar over the input's bytes if it is a file, else a running count. On standard error."""

    def __init__(self, file: BinaryIO, packets: PacketInput, *, is_shown: bool) -> None:
        self._packets = packets
        self._is_shown = is_shown
        self._size = _size_of(file)
        self._drawn = 0
        self.last: PublishOutcome | None = None

    def show(self, outcome: PublishOutcome) -> None:
        """Draws what is done."""
        self.last = outcome
        if not self._is_shown:
            return
        done = f"{outcome.sent:,} packets"
        if self._size:
            share = min(1.0, self._packets.read_bytes / self._size)
            bar = "#" * round(share * 30)
            text = f"[{bar:<30}] {share:4.0%}  {done}"
        else:
            text = f"{done}, {shown_bytes(outcome.sent_bytes)}"
        self._draw(text + (f", {outcome.rejected:,} rejected" if outcome.rejected else ""))

    def _draw(self, text: str) -> None:
        click.echo(f"\r{text:<{self._drawn}}", nl=False, err=True)
        self._drawn = len(text)

    def end(self) -> None:
        """Takes the bar away."""
        if self._drawn:
            click.echo(f"\r{'':<{self._drawn}}\r", nl=False, err=True)


def _size_of(file: BinaryIO) -> int:
    """Bytes of a regular file; 0 for a pipe or a terminal."""
    try:
        found = os.fstat(file.fileno())
    except (OSError, ValueError, AttributeError):
        return 0
    return found.st_size if stat.S_ISREG(found.st_mode) else 0
