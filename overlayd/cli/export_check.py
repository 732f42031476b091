"""Opening an evidence export for `overlayd verify`, holding it against what was expected, and telling what came out."""

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

import click

from overlayd.cli.export_parquet import ParquetReader
from overlayd.cli.output import print_facts, printable
from overlayd.model.clock import format_time_us
from overlayd.model.errors import VerificationFailed
from overlayd.model.export_check import AnchorFound, ExportFiles, ExportVerdict
from overlayd.model.export_file import (
    ENTRIES_NAME,
    EVIDENCE_BYTES_MAX,
    EVIDENCE_NAME,
    REMOVED_NAME,
    TRANSACTIONS_NAME,
    Evidence,
    RowFormat,
    decode_evidence,
)
from overlayd.model.export_rows import CsvReader, NdjsonReader, RowReader
from overlayd.model.names import is_node_name

STREAMS_SHOWN = 50
_RANGE = re.compile(r"(\d{0,19})\.\.(\d{0,19})", re.ASCII)


def rows_name(form: RowFormat) -> str:
    """The name of the file that holds the rows."""
    return f"rows.{form}"


def parse_range(text: str) -> tuple[int | None, int | None]:
    """`FROM..TO`, offsets, inclusive; either may be missing. Raises BadParameter of click."""
    match = _RANGE.fullmatch(text)
    if match is None:
        raise click.BadParameter(f"{text!r} isn't FROM..TO, two offsets of which either may be left out")
    first, last = (int(part) if part else None for part in match.groups())
    if first == 0 or (first is not None and last is not None and first > last):
        raise click.BadParameter("offsets begin at 1, and the first one comes first")
    return first, last


def read_evidence(directory: Path) -> Evidence:
    """Raises VerificationFailed."""
    return decode_evidence(_read_evidence(directory))


def _read_evidence(directory: Path) -> bytes:
    with _open(directory, EVIDENCE_NAME) as file:
        return file.read(EVIDENCE_BYTES_MAX + 1)


@contextmanager
def opened_export(directory: Path) -> Iterator[ExportFiles]:
    """The files of an export. Raises VerificationFailed where one is missing, or one more is there."""
    raw = _read_evidence(directory)
    evidence = decode_evidence(raw)
    rows = evidence.rows
    if rows.file != rows_name(rows.format):
        raise VerificationFailed(f"the rows are said to be in {rows.file[:80]!r}", subject=EVIDENCE_NAME)
    known = {EVIDENCE_NAME, ENTRIES_NAME, REMOVED_NAME, rows.file}
    if evidence.transactions is not None:
        known.add(TRANSACTIONS_NAME)
    others = sorted(path.name for path in directory.iterdir() if path.name not in known)
    if others:
        raise VerificationFailed(f"{printable(others[0])} is no part of the export", subject=str(directory))
    with ExitStack() as stack:
        entries, removed = (stack.enter_context(_open(directory, name)) for name in (ENTRIES_NAME, REMOVED_NAME))
        transactions = (
            None if evidence.transactions is None else stack.enter_context(_open(directory, TRANSACTIONS_NAME))
        )
        reader: RowReader
        if rows.format == "parquet":
            _open(directory, rows.file).close()
            reader = ParquetReader(directory / rows.file)
        else:
            file = stack.enter_context(_open(directory, rows.file))
            reader = NdjsonReader(file) if rows.format == "ndjson" else CsvReader(file)
        yield ExportFiles(raw, entries, removed, reader, transactions)


def _open(directory: Path, name: str) -> BinaryIO:
    try:
        return (directory / name).open("rb")
    except OSError as err:
        raise VerificationFailed(f"{name}: {err.strerror}", subject=str(directory)) from err


def check_expected(
    verdict: ExportVerdict, expected: tuple[int | None, int | None] | None, streams: Sequence[str], *, all_streams: bool
) -> None:
    """Whether the export is of what the reader asked for. Raises VerificationFailed."""
    if expected is not None:
        first, last = expected
        if (first is not None and first != verdict.first) or (last is not None and last != verdict.last):
            raise VerificationFailed(f"it is of offsets {verdict.first} to {verdict.last}", subject="--expect-range")
    shown = {stream.stream for stream in verdict.streams}
    missing = [name for name in streams if name not in shown]
    if missing:
        raise VerificationFailed(f"it shows no stream {missing[0]}", subject="--expect-stream")
    if all_streams and (verdict.unnamed or not all(is_node_name(name) for name in verdict.hidden_streams)):
        raise VerificationFailed(
            f"{verdict.hidden + verdict.unnamed} packets of the range are of streams that it doesn't show",
            subject="--expect-all-streams",
        )


def print_export(verdict: ExportVerdict) -> None:
    """For a person."""
    click.echo("The export holds.\n")
    gone = sum(verdict.removed.values())
    causes = ", ".join(f"{count} {cause}" for cause, count in sorted(verdict.removed.items()))
    others = verdict.hidden + verdict.unnamed
    print_facts([
        ("range", f"offsets {verdict.first} to {verdict.last} of {verdict.checkpoint_size}, each accounted for"),
        ("appended", f"{format_time_us(verdict.first_us)} to {format_time_us(verdict.last_us)} (the node's word)"),
        ("rows", f"{verdict.rows}, each as it was hashed"),
        ("taken away", f"{gone} on record: {causes}" if gone else "none"),
        ("not shown", f"{others} packets of other streams" if others else "none: all streams of the range are here"),
        ("log", verdict.log_id),
        ("checkpoint", f"{verdict.origin}, root {verdict.checkpoint_root}"),
        *([("producers", f"{verdict.producer_signatures} signatures verified")] if verdict.producer_signatures else []),
        *(("block", _describe_anchor(found)) for found in verdict.anchors),
        *([("transactions", f"{verdict.transactions} packets with one of their own in a block, {verdict.transactions_in_chain} "
           "of the blocks are among the given headers")] if verdict.transactions else []),
        *(("signed by", f"{signer.name} ({signer.key_id}): {signer.role}") for signer in verdict.signers),
    ])  # fmt: skip
    for stream in verdict.streams[:STREAMS_SHOWN]:
        name = printable(stream.stream) or f"a deleted stream ({stream.stream_hash})"
        click.echo(f"  {name}: {stream.packets} packets, {stream.removed} of them taken away")
    if len(verdict.streams) > STREAMS_SHOWN:
        click.echo(f"  and {len(verdict.streams) - STREAMS_SHOWN} streams more")
    click.echo("\nNot proven:")
    for sentence in verdict.not_proven:
        click.echo(f"  - {sentence}")


def _describe_anchor(found: AnchorFound) -> str:
    report = found.report
    if not report.is_checked:
        return f"{report.network}: not checked"
    depth = f"{report.confirmations} deep by the given headers" if report.is_in_chain else "compared with no headers"
    when = format_time_us(report.block_time_s * 1_000_000)
    return f"{report.block}, {report.network} {report.height}, {depth}, {when}: holds all up to offset {found.upto}"
