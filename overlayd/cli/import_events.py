"""`overlayd import agentpipe`: what AgentPipe's client kept on its disk, into a node."""

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import msgspec

from overlayd.cli.exits import FAILED, OK
from overlayd.cli.output import json_option, print_json
from overlayd.cli.target import Target, target_options
from overlayd.client import RetryPolicy, SyncClient, agentpipe_calls
from overlayd.model.errors import LimitReached

BATCH_EVENTS = 500
BATCH_BYTES = 4 << 20
UPLOAD_BYTES_MAX = 50 << 20
REFUSED_SHOWN = 20
PATIENCE = RetryPolicy(attempts=10, first_s=0.2, max_s=60.0)
"""Outlasts a restart of the node, and a rate that is full again within the minute."""
LOCAL_TYPES = frozenset(("log.entry",))
"""What the client writes for its own screen and never sends."""


class _Type(msgspec.Struct):
    type: str = ""


class Tally(msgspec.Struct):
    """What was done so far. `left_out`: lines that aren't events to be sent."""

    files: int = 0
    events: int = 0
    accepted: int = 0
    rejected: int = 0
    left_out: int = 0
    uploaded: int = 0
    known: int = 0


_type_of = msgspec.json.Decoder(_Type).decode


@click.group("import")
def command() -> None:
    """Bring in what other programs have stored."""


@command.command("agentpipe")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--quiet", "-q", is_flag=True, help="No progress, no summary")
@target_options
@json_option
def import_agentpipe(files: tuple[Path, ...], quiet: bool, target: Target, as_json: bool) -> None:
    """Send AgentPipe's stored events (FILES, or directories with events_*.jsonl) to a node.

    A file holds an event a line, as in ~/.agentpipe/events and as `agentpipe run --json` prints, or one finished
    session as JSON. Events have ids, so that this can be repeated after any failure: what the node has already is
    taken again and counted once. Refused events are listed and don't stop the others; the exit code is then 1.
    """
    paths = list(_expand(files))
    tally, progress = Tally(), _Progress(paths, is_shown=not quiet and sys.stderr.isatty())
    with SyncClient(target.url, target.key, tls=target.tls, retry=PATIENCE) as client:
        client.send(agentpipe_calls.health())
        for path in paths:
            _import_file(client, path, tally, progress)
            tally.files += 1
    progress.end()
    if as_json:
        print_json(tally)
    elif not quiet:
        click.echo(_sentence(tally))
    raise SystemExit(FAILED if tally.rejected else OK)


def _expand(files: Sequence[Path]) -> Iterator[Path]:
    """Files as they are, directories as the event files in them. Raises UsageError for one without any."""
    for path in files:
        if not path.is_dir():
            yield path
            continue
        found = sorted(path.glob("events_*.jsonl"))
        if not found:
            raise click.UsageError(f"there are no events_*.jsonl in {path}")
        yield from found


def _import_file(client: SyncClient, path: Path, tally: Tally, progress: "_Progress") -> None:
    session = _session_in(path)
    if session:
        found = client.send(agentpipe_calls.upload_session(session))
        tally.known += bool(found.existing_conversation_id)
        tally.uploaded += not found.existing_conversation_id
        progress.move(len(session), tally)
        return
    batch: list[tuple[int, bytes]] = []
    size = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            size += len(line)
            text = line.strip()
            if text and not _is_local(text):
                batch.append((number, text))
            elif text:
                tally.left_out += 1
            if len(batch) >= BATCH_EVENTS or size >= BATCH_BYTES:
                _send(client, path, batch, tally)
                progress.move(size, tally)
                batch, size = [], 0
    _send(client, path, batch, tally)
    progress.move(size, tally)


def _send(client: SyncClient, path: Path, batch: list[tuple[int, bytes]], tally: Tally) -> None:
    """Sends a batch. What a rate holds back is sent again when the rate allows it."""
    while batch:
        body = client.send(agentpipe_calls.ingest([text for _, text in batch]))
        held_back = []
        for (number, text), result in zip(batch, body.results, strict=True):
            if result.status == 429:
                held_back.append((number, text))
                continue
            tally.events += 1
            if result.status < 300:
                tally.accepted += 1
                continue
            tally.rejected += 1
            if tally.rejected <= REFUSED_SHOWN:
                place = f"{result.field}: " if result.field else ""
                click.echo(f"overlayd: {path}:{number}: {place}{result.message or result.error}", err=True)
        if len(held_back) == len(batch):
            raise LimitReached("the node takes no more events from this key now", hint="run the same command later")
        batch = held_back


def _session_in(path: Path) -> bytes:
    """The file's content if it is one finished session, else b""."""
    if path.suffix != ".json" or path.stat().st_size > UPLOAD_BYTES_MAX:
        return b""
    content = path.read_bytes()
    try:
        members = msgspec.json.decode(content, type=dict[str, msgspec.Raw])
    except msgspec.DecodeError:
        return b""
    return content if "messages" in members and ("session" in members or "conversation" in members) else b""


def _is_local(text: bytes) -> bool:
    try:
        return _type_of(text).type in LOCAL_TYPES
    except msgspec.DecodeError:
        return False  # the node says what is wrong with it


def _sentence(tally: Tally) -> str:
    parts = [f"{tally.files} files: {tally.accepted} events taken"]
    parts += [f"{tally.rejected} rejected"] if tally.rejected else []
    parts += [f"{tally.left_out} log lines left out"] if tally.left_out else []
    parts += [f"{tally.uploaded} sessions uploaded"] if tally.uploaded else []
    parts += [f"{tally.known} sessions were there already"] if tally.known else []
    return ", ".join(parts)


class _Progress:
    """A bar over the files' bytes, on standard error."""

    def __init__(self, paths: Sequence[Path], *, is_shown: bool) -> None:
        self._is_shown = is_shown
        self._size = sum(os.path.getsize(path) for path in paths)
        self._done = self._drawn = 0

    def move(self, size: int, tally: Tally) -> None:
        """So many bytes more are done."""
        self._done += size
        if not self._is_shown:
            return
        share = min(1.0, self._done / max(1, self._size))
        text = f"[{'#' * round(share * 30):<30}] {share:4.0%}  {tally.events:,} events"
        click.echo(f"\r{text:<{self._drawn}}", nl=False, err=True)
        self._drawn = len(text)

    def end(self) -> None:
        """Takes the bar away."""
        if self._drawn:
            click.echo(f"\r{'':<{self._drawn}}\r", nl=False, err=True)
