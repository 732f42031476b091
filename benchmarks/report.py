"""What a run leaves: a table for people, JSON for programs, a chart for both."""

import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.chart import Bar, Group, draw_chart
from benchmarks.machine import is_quiet
from benchmarks.samples import GENERATOR_BUSY, UNITS, Contender, Outcome, Value
from benchmarks.servers import Server

COLUMNS: tuple[Value, ...] = ("rate", "p50_ms", "p99_ms", "kib")
RESULTS = Path(__file__).with_name("results")
NAME_WIDTH = 36


def head_lines(machine: dict[str, object], servers: Sequence[Server], skipped: Sequence[str], run: str) -> list[str]:
    """Machine, versions and durability: what stands above the table."""
    lines = [
        f"{machine['processor']}, {machine['processors']} processors shared with the load generators, "
        f"{machine['memory_gib']} GiB",
        f"Linux {machine['kernel']}, data on {machine['file_system']}, {machine['fdatasync_per_second']:,} fdatasync/s "
        f"of one page; Python {machine['python']}, SQLite {machine['sqlite']}",
        f"load before: {machine['load_before']}"
        + ("" if is_quiet(machine) else "  (NOT A QUIET MACHINE: noisy figures)"),
        run,
        "",
    ]
    lines += [f"{server.name} {server.version}: {server.durability}" for server in servers]
    return lines + [f"SKIPPED: {reason}" for reason in skipped]


def row_lines(outcome: Outcome) -> list[str]:
    """One block of the table."""
    row = outcome.row
    shown = [value for value in COLUMNS if any(outcome.median(one.name, value) is not None for one in row.contenders)]
    heads = "".join(f"{UNITS[value]:>11}" for value in shown)
    lines = ["", f"{row.title}" + (f" ({row.note})" if row.note else "")]
    lines.append(f"  {'':{NAME_WIDTH}}{heads}{'ratio':>8}{'server':>8}{'load':>6}")
    for contender in row.contenders:
        cells = "".join(figure(outcome.median(contender.name, value)) for value in shown)
        is_first = contender is row.contenders[0]
        ratio = outcome.ratio(contender.name)
        said = "" if is_first or ratio is None else f"{ratio:.2f}x" if ratio >= 0.1 else f"{ratio:.3f}x"
        server, load = outcome.server_share(contender.name), outcome.generator_share(contender.name)
        lines.append(
            f"  {contender.name:{NAME_WIDTH}}{cells}{said:>8}{percent(server):>8}{percent(load):>6}  "
            f"{remarks(outcome, contender)}".rstrip()
        )
    return lines


def figure(value: float | None) -> str:
    """A cell."""
    if value is None:
        return f"{'':>11}"
    return f"{value:>11,.0f}" if value >= 100 else f"{value:>11.3f}" if value < 10 else f"{value:>11.1f}"


def percent(share: float | None) -> str:
    """A share of one processor."""
    return "" if share is None else f"{share:.0%}"


def remarks(outcome: Outcome, contender: Contender) -> str:
    """What must be known beside a figure."""
    found = []
    if not contender.is_durable:
        found.append("NOT DURABLE")
    load = outcome.generator_share(contender.name)
    if load is not None and load >= GENERATOR_BUSY:
        found.append("held down by the load generator")
    if errors := outcome.errors(contender.name):
        found.append(f"{errors} ERRORS")
    found += [text for text in (contender.caveat, outcome.notes(contender.name)) if text]
    return "; ".join(found)


def as_json(head: dict[str, object], outcomes: Sequence[Outcome]) -> str:
    """Every sample of every round, with what stands above them."""
    rows = [
        {
            "part": outcome.row.part,
            "title": outcome.row.title,
            "note": outcome.row.note,
            "main": outcome.row.main,
            "contenders": [
                {
                    "name": contender.name,
                    "is_durable": contender.is_durable,
                    "remarks": remarks(outcome, contender),
                    "medians": {value: outcome.median(contender.name, value) for value in outcome.samples[contender.name][0].values},
                    "ratio": None if contender is outcome.row.contenders[0] else outcome.ratio(contender.name),
                    "rounds": [
                        {**sample.values, "generator_share": sample.generator_share, "server_share": sample.server_share,
                         "errors": sample.errors, "note": sample.note}
                        for sample in outcome.samples[contender.name]
                    ],
                }
                for contender in outcome.row.contenders
            ],
        }
        for outcome in outcomes
    ]  # fmt: skip
    return json.dumps({**head, "rows": rows}, indent=1) + "\n"


def chart_groups(outcomes: Sequence[Outcome]) -> list[Group]:
    """Bars of every row's main figure."""
    groups = []
    for outcome in outcomes:
        row = outcome.row
        bars = []
        for contender in row.contenders:
            value = outcome.median(contender.name, row.main)
            if value is not None:
                label = contender.name + ("" if contender.is_durable else " (not durable)")
                bars.append(
                    Bar(label, value, figure(value).strip(), contender is row.contenders[0], contender.is_durable)
                )
        better = "more is better" if row.is_more_better else "less is better"
        groups.append(Group(f"{row.title}: {UNITS[row.main].replace('/s', 'packets/s')}, {better}", bars))
    return groups


def write_results(name: str, head: dict[str, object], lines: Sequence[str], outcomes: Sequence[Outcome],
                  directory: Path = RESULTS) -> list[Path]:  # fmt: skip
    """The three files; where they are."""
    directory.mkdir(exist_ok=True)
    table, data, chart = (directory / f"{name}.{ending}" for ending in ("txt", "json", "png"))
    table.write_text("\n".join(lines) + "\n")
    data.write_text(as_json(head, outcomes))
    machine = head["machine"]
    assert isinstance(machine, dict)
    foot = (
        f"{machine['processor']}, {machine['processors']} processors, {machine['fdatasync_per_second']:,} fdatasync/s"
    )
    chart.write_bytes(draw_chart(chart_groups(outcomes), foot + ("" if is_quiet(machine) else ", NOT A QUIET MACHINE")))
    return [table, data, chart]
