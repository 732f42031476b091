"""Giving other tasks their turn inside long work on the loop."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

import trio

PACKETS_PER_SLICE = 128
"""Packets judged or hashed in one go: about 2 ms."""


_T = TypeVar("_T")


def slices_of(items: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    """The items in runs of at most `size`, for a `spend` after each: awaiting for every item would cost too much."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


class Pace:
    """Counts work and yields when a slice is full. For tasks that can't be cancelled where they use it."""

    __slots__ = ("_spent",)

    def __init__(self) -> None:
        self._spent = 0.0

    async def spend(self, packets: float) -> None:
        """A checkpoint once per slice, otherwise none."""
        self._spent += packets
        if self._spent >= PACKETS_PER_SLICE:
            self._spent = 0.0
            await trio.lowlevel.checkpoint()
