"""`overlayd streams`."""

from pathlib import Path
from typing import Any, Literal

import click
import msgspec

from overlayd.cli.output import json_option, print_facts, print_json, print_table, shown_bytes
from overlayd.cli.target import Target, target_options
from overlayd.client import SyncClient, retention_calls, statistics_calls
from overlayd.client.retry import ONCE
from overlayd.model.definition import Definition, encode_definition
from overlayd.model.wire import StreamBody
from overlayd.model.wire_retention import HoldBody
from overlayd.model.wire_statistics import StreamStats


@click.group("streams", invoke_without_command=True)
@target_options
@json_option
@click.pass_context
def command(ctx: click.Context, target: Target, as_json: bool) -> None:
    """List, define, pause, resume, stop, hold and delete streams; without a subcommand they are listed."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_streams, target=target, as_json=as_json)


@command.command("list")
@click.option("--query", "-q", metavar="TEXT", default="", help="Only names and titles that hold this")
@click.option("--tag", default="", help="Only streams with this tag")
@click.option("--state", type=click.Choice(["active", "paused", "stopped"]), default=None, help="Only in this state")
@target_options
@json_option
def list_streams(query: str = "", tag: str = "", state: str | None = None, *, target: Target, as_json: bool) -> None:
    """List streams and where they stand."""
    with _client(target) as client:
        streams = client.streams(q=query, tag=tag, state=state or "")
    if as_json:
        for stream in streams:
            print_json(stream)
        return
    print_table(
        ("STREAM", "STATE", "PACKETS", "BYTES", "OLDEST", "HEAD", "LAST PACKET", "TITLE"),
        [
            (
                stream.stream, stream.state, stream.packets, shown_bytes(stream.bytes), stream.oldest_sequence,
                stream.head_sequence, stream.last_packet_at or "-", stream.title,
            )
            for stream in streams
        ],
    )  # fmt: skip


@command.command("show")
@click.argument("stream")
@target_options
@json_option
def show_stream(stream: str, target: Target, as_json: bool) -> None:
    """Show a stream's definition and where it stands."""
    with _client(target) as client:
        found = client.stream(stream)
    if as_json:
        print_json(found)
        return
    print_facts(_facts(found))
    click.echo("definition")
    definition = Definition(**{name: getattr(found, name) for name in Definition.__struct_fields__})
    click.echo(msgspec.json.format(encode_definition(definition), indent=2))


def _facts(stream: StreamBody) -> list[tuple[str, object]]:
    return [
        ("stream", stream.stream),
        ("state", stream.state),
        ("owner", "the configuration file" if stream.owner == "config" else "the API"),
        ("packets", f"{stream.packets} ({shown_bytes(stream.bytes)})"),
        ("sequences", f"{stream.oldest_sequence} to {stream.head_sequence}" if stream.packets else "none"),
        ("last packet", stream.last_packet_at or "-"),
        ("created", stream.created_at),
        ("version", stream.definition_version),
        *([("subscribers", stream.subscribers)] if stream.subscribers is not msgspec.UNSET else []),
    ]


@command.command("stats")
@click.argument("stream", required=False)
@target_options
@json_option
def show_stats(stream: str | None, target: Target, as_json: bool) -> None:
    """Show what came in, went out and was refused: of STREAM, or of all streams."""
    found: list[StreamStats] = []
    with _client(target) as client:
        if stream is not None:
            found.append(client.send(statistics_calls.show_stream_stats(stream)))
        else:
            after = ""
            while True:
                page = client.send(statistics_calls.show_stats(limit=1000, after=after))
                found += page.streams
                if page.next_after is msgspec.UNSET:
                    break
                after = page.next_after
    if as_json:
        for one in found:
            print_json(one)
        return
    head = ("STREAM", "STATE", "IN", "OUT", "REFUSED", "ERRORS", "FAILED", "LATENCY", "LAST PACKET", "SUBSCRIBERS")
    print_table(head, [_stats_row(one) for one in found])


def _stats_row(one: StreamStats) -> tuple[object, ...]:
    rate = "-" if one.error_rate is msgspec.UNSET else f"{one.error_rate:.2%}"
    latency = "-" if one.latency_ms_mean is msgspec.UNSET else f"{one.latency_ms_mean:.3g} ms"
    return (
        one.stream, one.state, one.messages_in, one.messages_out, one.refused, rate, one.failed, latency,
        one.last_packet_at or "-", one.subscribers,
    )  # fmt: skip


@command.command("define")
@click.argument("stream")
@click.argument("file", type=click.File("rb"), required=False)
@click.option("--title", default=None, help="What people call it")
@click.option("--description", default=None, help="What it is about")
@click.option("--tag", "tags", multiple=True, help="A tag; may be repeated")
@click.option("--topic", "topics", multiple=True, help="A topic stamped into every packet; may be repeated")
@click.option(
    "--packet-key", "packet_key", metavar="PATH", default=None, help="Where a packet's key is, as data.sensorId"
)
@click.option("--schema", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="File with a JSON Schema")
@click.option("--max-age", default=None, help="How long packets stay, as 30d")
@target_options
@json_option
def define_stream(stream: str, file: Any, target: Target, as_json: bool, **options: Any) -> None:
    """Create a stream or change its definition.

    FILE (- is standard input) holds the definition as JSON; options change single members of it. Members that
    neither names take the node's defaults, also for a stream that exists.
    """
    definition = _definition_of(file.read() if file else b"{}", options)
    with _client(target) as client:
        defined = client.define(stream, definition)
    if as_json:
        print_json(defined)
    else:
        click.echo(f"{defined.stream}: definition version {defined.definition_version}")


def _definition_of(text: bytes, options: dict[str, Any]) -> dict[str, Any]:
    definition = _object_of(text, "the definition")
    for name in ("title", "description"):
        if options[name] is not None:
            definition[name] = options[name]
    for name in ("tags", "topics"):
        if options[name]:
            definition[name] = list(options[name])
    if options["packet_key"] is not None:
        definition["key"] = options["packet_key"]
    if options["schema"] is not None:
        definition["schema"] = msgspec.Raw(options["schema"].read_bytes())
        _object_of(bytes(definition["schema"]), str(options["schema"]))
    if options["max_age"] is not None:
        definition["retention"] = {**definition.get("retention", {}), "max_age": options["max_age"]}
    return definition


def _object_of(text: bytes, what: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError as err:
        raise click.UsageError(f"{what} isn't a JSON object: {err}") from err
    return found


@command.command("pause")
@click.argument("stream")
@target_options
def pause_stream(stream: str, target: Target) -> None:
    """Take no more packets; reading goes on."""
    _set_state(stream, "paused", target)


@command.command("resume")
@click.argument("stream")
@target_options
def resume_stream(stream: str, target: Target) -> None:
    """Take packets again."""
    _set_state(stream, "active", target)


@command.command("stop")
@click.argument("stream")
@target_options
def stop_stream(stream: str, target: Target) -> None:
    """Take no more packets and end its live sessions."""
    _set_state(stream, "stopped", target)


@command.command("delete")
@click.argument("stream")
@click.option("--yes", "-y", is_flag=True, help="Don't ask")
@target_options
@json_option
def delete_stream(stream: str, yes: bool, target: Target, as_json: bool) -> None:
    """Delete a stream with its packets, for good."""
    with _client(target) as client:
        if not yes:
            found = client.stream(stream)
            click.confirm(f"Delete {stream} with its {found.packets} packets?", abort=True, err=True)
        removed = client.delete(stream)
    if as_json:
        print_json(removed)
    else:
        click.echo(f"deleted {removed.stream} with {removed.packets_removed} packets")


@command.command("hold")
@click.argument("stream")
@click.option("--from", "first", type=click.IntRange(1), default=1, show_default=True, help="First sequence")
@click.option(
    "--to", "last", type=click.IntRange(1), default=None, help="Last sequence; without it whatever comes, too"
)
@click.option("--reason", required=True, help="Why, for the audit stream")
@target_options
@json_option
def hold_packets(stream: str, first: int, last: int | None, reason: str, target: Target, as_json: bool) -> None:
    """Hold packets: nothing takes them away until the hold is released."""
    with _client(target) as client:
        hold = client.send(retention_calls.place_hold(stream, reason, first, last))
    if as_json:
        print_json(hold)
    else:
        click.echo(f"hold {hold.id} on {stream}, sequences {_range_of(hold)}")


@command.command("holds")
@click.argument("stream")
@target_options
@json_option
def list_holds(stream: str, target: Target, as_json: bool) -> None:
    """List what holds a stream's packets."""
    with _client(target) as client:
        holds = client.send(retention_calls.list_holds(stream)).holds
    if as_json:
        for hold in holds:
            print_json(hold)
        return
    print_table(
        ("HOLD", "SEQUENCES", "PLACED", "BY", "REASON"),
        [(hold.id, _range_of(hold), hold.placed_at, hold.placed_by, hold.reason) for hold in holds],
    )


@command.command("release")
@click.argument("stream")
@click.argument("hold", type=click.IntRange(1))
@target_options
def release_hold(stream: str, hold: int, target: Target) -> None:
    """Release a hold; what it covered goes by the stream's rule from then on."""
    with _client(target) as client:
        client.send(retention_calls.lift_hold(stream, hold))
    click.echo(f"released hold {hold} on {stream}")


def _range_of(hold: HoldBody) -> str:
    return f"{hold.from_} on" if hold.to is msgspec.UNSET else f"{hold.from_} to {hold.to}"


def _set_state(stream: str, state: Literal["active", "paused", "stopped"], target: Target) -> None:
    with _client(target) as client:
        client.set_state(stream, state)
    click.echo(f"{stream} is {state}")


def _client(target: Target) -> SyncClient:
    return SyncClient(target.url, target.key, tls=target.tls, retry=ONCE)
