"""What a benchmark is made of: rows of work, the contenders that do it, and the samples they leave."""

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

GENERATOR_BUSY = 0.9
"""A load generator that used so much of one processor was likely what held the figure down."""

Value = Literal["rate", "p50_ms", "p99_ms", "kib"]
UNITS: dict[Value, str] = {"rate": "/s", "p50_ms": "p50 ms", "p99_ms": "p99 ms", "kib": "KiB each"}


@dataclass(frozen=True, slots=True)
class Sample:
    """One turn of one contender. Shares are of one processor; None: not known."""

    values: dict[Value, float]
    generator_share: float | None = None
    server_share: float | None = None
    errors: int = 0
    note: str = ""


@dataclass(frozen=True, slots=True)
class Contender:
    """Somebody who does the work of a row. `run` takes the seconds a turn may last."""

    name: str
    run: Callable[[float], Sample]
    is_durable: bool = True
    caveat: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of work. The first contender is the one that the others are compared with."""

    part: str
    title: str
    main: Value
    contenders: tuple[Contender, ...]
    note: str = ""

    @property
    def is_more_better(self) -> bool:
        """Whether a larger figure is the better one."""
        return self.main == "rate"


@dataclass(slots=True)
class Outcome:
    """The samples of a row by contender, in the order of the rounds."""

    row: Row
    samples: dict[str, list[Sample]] = field(default_factory=dict)

    def median(self, name: str, value: Value) -> float | None:
        """Over the rounds; None where the contender has no such figure."""
        found = [sample.values[value] for sample in self.samples[name] if value in sample.values]
        return statistics.median(found) if found else None

    def ratio(self, name: str) -> float | None:
        """How many times better the first contender is in the row's main figure: the median over the rounds."""
        first = self.samples[self.row.contenders[0].name]
        pairs = [
            (ours.values[self.row.main], theirs.values[self.row.main])
            for ours, theirs in zip(first, self.samples[name], strict=True)
        ]
        if any(not ours or not theirs for ours, theirs in pairs):
            return None
        return statistics.median(ours / theirs if self.row.is_more_better else theirs / ours for ours, theirs in pairs)

    def generator_share(self, name: str) -> float | None:
        """The largest over the rounds."""
        shares = [sample.generator_share for sample in self.samples[name] if sample.generator_share is not None]
        return max(shares) if shares else None

    def server_share(self, name: str) -> float | None:
        """The median over the rounds."""
        shares = [sample.server_share for sample in self.samples[name] if sample.server_share is not None]
        return statistics.median(shares) if shares else None

    def errors(self, name: str) -> int:
        """Requests that weren't answered as they should be, over all rounds."""
        return sum(sample.errors for sample in self.samples[name])

    def notes(self, name: str) -> str:
        """What the last sample had to say."""
        return self.samples[name][-1].note


SETTLE_S = 0.3
"""For what a server does behind its last answers."""


def run_row(row: Row, rounds: int, seconds: float, warm_up_s: float) -> Outcome:
    """Lets the contenders take turns; each round begins with another one."""
    outcome = Outcome(row, {contender.name: [] for contender in row.contenders})
    for contender in row.contenders if warm_up_s else ():
        contender.run(warm_up_s)
    for number in range(rounds):
        shift = number % len(row.contenders)
        for contender in (*row.contenders[shift:], *row.contenders[:shift]):
            settle()
            outcome.samples[contender.name].append(contender.run(seconds))
    return outcome


def settle() -> None:
    """Has what the one before left in the page cache written, so that nobody's turn pays for somebody else's."""
    os.sync()
    time.sleep(SETTLE_S)


def percentile(ordered: Sequence[float], share: float) -> float:
    """Of values in ascending order, at least one."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
