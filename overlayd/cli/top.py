"""`overlayd top`: a node's streams, rates, lags, sessions and chain, as they are now."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType

import click
from rich.cells import cell_len
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from overlayd.cli.node_figures import Frame, Section, Snapshot, frame_of
from overlayd.cli.output import print_table, printable
from overlayd.cli.target import Target, target_options
from overlayd.client import SyncClient, calls, chain_calls, statistics_calls, subscription_calls
from overlayd.client.retry import ONCE
from overlayd.model.errors import NoChain, NodeUnreachable, OverlaydError

STREAMS_MAX = 200
INTERVAL_MIN_S = 0.1
TITLE_ROWS = 3
"""Rows of a section that no row of its table is on."""
GAP = 2
"""Columns of the terminal between two of a table."""


@click.command("top")
@click.option("--once", is_flag=True, help="Print one snapshot as text and end; its rates are those of one interval")
@click.option(
    "--interval", type=click.FloatRange(INTERVAL_MIN_S, 3600), default=2.0, show_default=True, metavar="SECONDS",
    help="Look so often",
)  # fmt: skip
@target_options
def command(target: Target, once: bool, interval: float) -> None:
    """Watch a node: streams and their rates, subscriptions and sessions by how far they are behind, disk and chain.

    Ctrl-C ends it. It needs the right to manage the node, as its Unix socket has it.
    """
    with SyncClient(target.url, target.key, tls=target.tls, retry=ONCE) as client:
        if once:
            before = read_snapshot(client)
            time.sleep(interval)
            print_frame(frame_of(before, read_snapshot(client)))
            return
        watch(client, interval)


def read_snapshot(client: SyncClient) -> Snapshot:
    """The node now. Raises what the node answers."""
    stats = client.send(statistics_calls.show_stats(limit=STREAMS_MAX, order="recent"))
    subscriptions = client.send(subscription_calls.subscriptions()).subscriptions
    sessions = client.send(calls.sessions())
    try:
        chain = client.send(chain_calls.chain())
    except NoChain:
        chain = None
    return Snapshot(stats, subscriptions, sessions, chain)


def print_frame(frame: Frame) -> None:
    """As plain text, for scripts and people."""
    for line in frame.lines:
        click.echo(line)
    for section in frame.sections:
        click.echo("")
        click.echo(section.title)
        print_table(section.head, section.rows)


def watch(client: SyncClient, interval: float) -> None:
    """On the whole terminal, until it is interrupted. A node that is away for a while is waited for. Raises what it
    answers at first."""
    console = Console(highlight=False)
    before, now = None, read_snapshot(client)
    trouble = ""
    with (
        _interrupted() as is_interrupted,
        contextlib.suppress(KeyboardInterrupt),
        Live(console=console, screen=True, auto_refresh=False) as live,
    ):
        while not is_interrupted():
            live.update(drawing_of(frame_of(before, now), console.size, trouble), refresh=True)
            time.sleep(interval)
            try:
                before, now, trouble = now, read_snapshot(client), ""
            except OverlaydError as error:
                if not (error.retryable or isinstance(error, NodeUnreachable)):
                    raise
                trouble = error.detail


@contextlib.contextmanager
def _interrupted() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C came. It raises KeyboardInterrupt as ever, but one that comes while a callback of the collector or
    of a library runs is printed or swallowed there, so it is remembered as well."""
    came = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: came
    finally:
        signal.signal(signal.SIGINT, before)


def drawing_of(frame: Frame, size: tuple[int, int], trouble: str = "") -> Group:
    """The frame for a terminal of so many columns and rows: sections share what the lines leave, those with fewer rows
    first; of a table's columns the last ones that there is no room for are left out, rather than all cut short."""
    width, height = size
    parts: list[Text | Table] = [
        Text(line, style="bold" if number == 0 else "") for number, line in enumerate(frame.lines)
    ]
    if trouble:
        parts.append(Text(f"no answer: {printable(trouble)}", style="bold red"))
    room = height - len(parts) - TITLE_ROWS * len(frame.sections)
    shares: dict[str, int] = {}
    for left, section in zip(range(len(frame.sections), 0, -1), sorted(frame.sections, key=_row_count), strict=True):
        shares[section.title] = min(len(section.rows), max(1, room // left))
        room -= shares[section.title]
    for section in frame.sections:
        parts += [Text(""), Text(section.title, style="bold"), _table_of(section, shares[section.title], width)]
    return Group(*parts)


def _row_count(section: Section) -> int:
    return len(section.rows)


def _table_of(section: Section, count: int, width: int) -> Table:
    table = Table(box=None, pad_edge=False)
    shown = _columns_in(section, count, width)
    for number, name in enumerate(section.head[:shown]):
        is_number = all(
            row[number].replace(".", "").replace("-", "").isdigit() or row[number] == "-" for row in section.rows
        )
        table.add_column(name, justify="right" if is_number else "left", no_wrap=True, overflow="ellipsis")
    for row in section.rows[:count]:
        table.add_row(*map(Text, row[:shown]))
    return table


def _columns_in(section: Section, count: int, width: int) -> int:
    """How many columns fit, the first one always."""
    used = 0
    for number, name in enumerate(section.head):
        used += max(cell_len(text) for text in (name, *(row[number] for row in section.rows[:count])))
        used += GAP * bool(number)
        if used > width and number:
            return number
    return len(section.head)
