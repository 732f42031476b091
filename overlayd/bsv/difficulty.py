"""The target that mainnet asks of a block: it follows from the work and time of the 144 before it.

In force from height 504,032 on (network.ADJUSTED_FROM). Medians of three blocks stand at both ends, so that one false
time moves nothing.
"""

from collections.abc import Sequence
from typing import Protocol

from overlayd.bsv.header import bits_of_target, target_of_bits

WINDOW_BLOCKS = 147
"""Blocks that the rule looks at: 144, and two more for the median at the far end."""
BLOCK_INTERVAL_S = 600

_DISTANCE = 144


class Ancestor(Protocol):
    """What the rule needs of a block: its time and the work of the whole chain up to it."""

    @property
    def time_s(self) -> int: ...

    @property
    def chain_work(self) -> int: ...


def required_bits(ancestors: Sequence[Ancestor], limit_bits: int) -> int:
    """The bits that the next block must carry; `ancestors` are the last 147, oldest first."""
    assert len(ancestors) == WINDOW_BLOCKS
    last = _median_of_three(ancestors[-3:])
    first = _median_of_three(ancestors[-3 - _DISTANCE : -_DISTANCE])
    span_s = max(_DISTANCE // 2 * BLOCK_INTERVAL_S, min(2 * _DISTANCE * BLOCK_INTERVAL_S, last.time_s - first.time_s))
    work = (last.chain_work - first.chain_work) * BLOCK_INTERVAL_S // span_s
    return bits_of_target(min(target_of_bits(limit_bits), ((1 << 256) - work) // work))


def _median_of_three(blocks: Sequence[Ancestor]) -> Ancestor:
    """The one whose time is in the middle, by the exchanges that nodes make: they decide between equal times."""
    low, middle, high = blocks
    if low.time_s > high.time_s:
        low, high = high, low
    if low.time_s > middle.time_s:
        low, middle = middle, low
    if middle.time_s > high.time_s:
        middle, high = high, middle
    return middle
