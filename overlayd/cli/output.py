"""What commands print: tables and lists for people, one JSON value a line for programs."""

from collections.abc import Iterable, Sequence
from typing import Any

import click

from overlayd.model.wire import encode_wire

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, one value a line")


def print_json(value: Any) -> None:
    """One line of compact JSON."""
    click.echo(encode_wire(value))


def print_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Columns as wide as their widest cell; numbers to the right."""
    texts = [[str(cell) for cell in row] for row in rows]
    is_number = [
        bool(texts) and all(row[at].replace(",", "").lstrip("-").isdigit() for row in texts) for at in range(len(head))
    ]
    table = [list(head), *texts]
    widths = [max(len(row[at]) for row in table) for at in range(len(head))]
    for row in table:
        cells = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, is_number, strict=True)
        ]
        click.echo("  ".join(cells).rstrip())


def print_facts(facts: Iterable[tuple[str, object]]) -> None:
    """Names and values, one a line; a value of several lines is indented below its name."""
    pairs = [(name, str(value)) for name, value in facts]
    width = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        click.echo(f"{name.ljust(width)}  {value}".rstrip())


def shown_bytes(count: int) -> str:
    """`812 B`, `3.4 MiB`."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def shown_hash(text: str) -> str:
    """The first twelve digits, enough to compare by eye."""
    return text.partition(":")[2][:12]


def printable(text: str) -> str:
    """The text without what would steer a terminal."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
