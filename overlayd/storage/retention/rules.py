"""Which packets of a stream go now: its rule, what holds packets back, and nothing else. Pure."""

from collections.abc import Callable, Iterable
from typing import Literal

import msgspec

from overlayd.model.definition import RetentionRule

Why = Literal["", "age", "held", "needed", "young", "slice"]
"""Why the choice ended: "" nothing more is due; `slice`: more may be; the others kept something back that is due."""


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """A packet that is whole. `size`: bytes of its row that would go; `appended_us`: Unix µs."""

    sequence: int
    offset: int
    appended_us: int
    size: int


class Bounds(msgspec.Struct, frozen=True):
    """A stream's rule at a moment; times in Unix µs.

    `before_us`: what was appended earlier is too old (0: nothing is). `packets_max`, `bytes_max`: what may stay (None:
    anything). `young_us`: what was appended later stays whatever the bounds say (`min_age`). `needed_from`: from this offset
    on somebody still needs packets, unless they were appended before `waits_until_us`.
    """

    before_us: int = 0
    packets_max: int | None = None
    bytes_max: int | None = None
    young_us: int = 1 << 62
    needed_from: int = 1 << 62
    waits_until_us: int = 0


class Choice(msgspec.Struct):
    """Packets to take away, ascending, and why there are no more. `passed`: sequence up to which nothing needs to be looked
    at again while no hold is lifted; `next_us`: when the first packet that stays was appended, 0 where none was seen."""

    taken: list[Candidate]
    why: Why
    passed: int
    next_us: int = 0
    held: int = 0

    @property
    def size(self) -> int:
        return sum(candidate.size for candidate in self.taken)


def bounds_of(rule: RetentionRule, now_us: int, *, is_clock_trusted: bool, needed_from: int) -> Bounds:
    """The rule at a moment. While the clock isn't trusted nothing is too old, nothing old enough for `min_age`, and who
    needs a packet is waited for without an end."""
    age, least, longest = (int(float(value) * 1e6) for value in (rule.max_age, rule.min_age, rule.waits))
    return Bounds(
        before_us=now_us - age if age and is_clock_trusted else 0,
        packets_max=rule.max_packets or None,
        bytes_max=int(rule.max_bytes) or None,
        young_us=(now_us - least if is_clock_trusted else 0) if least else 1 << 62,
        needed_from=needed_from,
        waits_until_us=now_us - longest if is_clock_trusted else 0,
    )


def choose(
    candidates: Iterable[Candidate], bounds: Bounds, *, packets: int, size: int, is_held: Callable[[int], bool],
    packets_max: int, size_max: int, after: int,
) -> Choice:  # fmt: skip
    """What goes of a stream's packets, oldest first. `packets`, `size`: what the stream keeps now, all of it. At most
    `packets_max` are taken, and none behind the one that reaches `size_max` bytes. `after`: the sequence in front of the
    first candidate.

    Times ascend and counts only fall, so behind a packet that stays by its own none is due; one that is held is passed.
    """
    choice = Choice([], "", after)
    taken_bytes = 0
    for candidate in candidates:
        is_due = (
            candidate.appended_us < bounds.before_us
            or (bounds.packets_max is not None and packets > bounds.packets_max)
            or (bounds.bytes_max is not None and size > bounds.bytes_max)
        )
        if not is_due:
            return _ended(choice, "", candidate)
        if candidate.appended_us > bounds.young_us:
            return _ended(choice, "young", candidate)
        if candidate.offset >= bounds.needed_from and candidate.appended_us >= bounds.waits_until_us:
            return _ended(choice, "needed", candidate)
        if is_held(candidate.sequence):
            choice.held += 1
            choice.passed = candidate.sequence
            continue
        if len(choice.taken) >= packets_max or taken_bytes >= size_max:
            return _ended(choice, "slice", candidate)
        choice.taken.append(candidate)
        choice.passed = candidate.sequence
        packets -= 1
        size -= candidate.size
        taken_bytes += candidate.size
    return choice


def _ended(choice: Choice, why: Why, first: Candidate) -> Choice:
    choice.why, choice.next_us = why, first.appended_us
    return choice
