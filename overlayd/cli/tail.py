"""`overlayd tail`."""

import re
import signal
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import click
import msgspec
import trio

from overlayd.cli.exits import SIGNALED
from overlayd.cli.output import printable
from overlayd.cli.target import Target, target_options
from overlayd.client.async_client import Client
from overlayd.client.live import Live
from overlayd.model.errors import OverlaydError
from overlayd.model.wire import ErasedMessage, GapMessage, LogMessage, PacketMessage, encode_wire

_FIELD = re.compile(r"\{(\w+)\}")
_TEXT = "{appended_at} {stream_id} {packet_sequence} {type} {key} {data_payload}"


@click.command("tail")
@click.argument("patterns", metavar="PATTERN...", nargs=-1, required=True)
@click.option("--after", metavar="CURSOR", default="", help="Go on behind this cursor")
@click.option("--from", "start", metavar="WHERE", default="",
              help="now, beginning, last (the newest packet per stream or key) or an RFC 3339 time [default: now]")  # fmt: skip
@click.option("--type", "types", multiple=True, help="Only packets of this type; may be repeated")
@click.option("--packet-key", "keys", multiple=True, help="Only packets with this key; may be repeated")
@click.option("--topic", "topics", multiple=True, help="Only packets under this topic pattern; may be repeated")
@click.option("--filter", "expression", metavar="CEL", default="", help="Only packets for which this holds")
@click.option("--format", "form", metavar="FORMAT", default="text", show_default=True,
              help="text, json (whole messages), payload (data alone), or a template such as '{stream_id} {cursor}'")  # fmt: skip
@click.option("--count", "-n", type=click.IntRange(1), help="End after so many packets")
@click.option("--verify", is_flag=True, help="Recompute every packet's content hash")
@target_options
def command(
    patterns: tuple[str, ...], after: str, start: str, types: tuple[str, ...], keys: tuple[str, ...],
    topics: tuple[str, ...], expression: str, form: str, count: int | None, verify: bool, target: Target,
) -> None:  # fmt: skip
    """Print packets of the streams that match PATTERN as they arrive.

    In a pattern * stands for one token and > for the rest: 'weather.*', 'plant.>', '>'.

    A lost connection is made again and reading goes on where it was, also over restarts of the node. Gaps and lost
    connections are told on standard error. On Ctrl-C the last cursor is printed there; give it to --after to go on.

    A template may name stream_id, packet_sequence, packet_id, offset, cursor, type, key, timestamp, appended_at,
    source, topics, metadata, data_payload, content_hash and leaf_hash.
    """
    if after and start:
        raise click.UsageError("--after and --from exclude each other")
    if form not in ("text", "json", "payload") and _FIELD.search(form) is None:
        raise click.BadParameter("text, json, payload or a template with {names}", param_hint="--format")
    query = {
        "streams": patterns, "after": after, "start": start, "types": types, "keys": keys, "topics": topics,
        "filter": expression,
    }  # fmt: skip
    raise SystemExit(trio.run(partial(_tail, target, query, form, count=count, verify=verify)))


async def _tail(target: Target, query: dict[str, Any], form: str, *, count: int | None, verify: bool) -> int:
    async with Client(target.url, target.key, tls=target.tls, verify=verify) as client:
        live = client.live(**query, on_pause=_tell_pause)
        try:
            return await until_signal(partial(_print_all, live, form, count))
        finally:
            if live.cursor:
                click.echo(f"cursor {live.cursor}", err=True)


async def until_signal(work: Callable[[], Awaitable[None]]) -> int:
    """0 when the work ends by itself; 128 and the signal's number when INT or TERM ended it."""
    code = 0
    failure: OverlaydError | BrokenPipeError | None = None
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                nonlocal code
                async for number in signals:
                    code = SIGNALED + number
                    nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            try:
                await work()
            except (OverlaydError, BrokenPipeError) as error:  # raised below, outside the nursery, which would wrap it
                failure = error
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return code


async def _print_all(live: Live, form: str, count: int | None) -> None:
    shown = 0
    async for message in live:
        shown += print_message(message, form)
        if count is not None and shown >= count:
            return


def print_message(message: LogMessage, form: str) -> bool:
    """Prints a message in the given form; whether it was a packet."""
    if form == "json":
        click.echo(encode_wire(message))
    elif isinstance(message, PacketMessage):
        click.echo(_format_packet(message, form))
    elif isinstance(message, GapMessage):
        click.echo(f"gap: {message.from_} to {message.to} can't be read any more ({message.reason})", err=True)
    elif isinstance(message, ErasedMessage):
        click.echo(f"erased: {message.stream_id} {message.packet_sequence}", err=True)
    return isinstance(message, PacketMessage)


def _format_packet(message: PacketMessage, form: str) -> str | bytes:
    packet = message.packet
    if form == "payload":
        return bytes(packet.data_payload)

    def value_of(match: re.Match[str]) -> str:
        value = message.cursor if match[1] == "cursor" else getattr(packet, match[1], match[0])
        if isinstance(value, msgspec.Raw):
            return bytes(value).decode()
        if isinstance(value, list):
            return ",".join(value)
        return "-" if value is msgspec.UNSET else str(value)

    return printable(_FIELD.sub(value_of, _TEXT if form == "text" else form))


def _tell_pause(seconds: float, reason: str) -> None:
    click.echo(f"overlayd: connection lost ({reason}); going on in {seconds:.1f} s", err=True)
