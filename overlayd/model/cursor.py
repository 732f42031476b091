"""Epochs and cursors: where a reader stands in which history of the log."""

import base64
import re
from functools import lru_cache
from typing import NewType

import msgspec

from overlayd.model.errors import BadCursor

Epoch = NewType("Epoch", int)
"""u64: a counter (24 bits, first epoch 1) above 40 random bits."""

OFFSET_MAX = (1 << 63) - 1
"""SQLite's largest integer. Nobody gets there: at a million entries a second it takes 292,000 years."""

_EPOCH = re.compile(r"([1-9][0-9]{0,7})([a-z2-7]{8})", re.ASCII)
_CURSOR = re.compile(r"e([1-9][0-9]{0,7})([a-z2-7]{8})-(0|[1-9][0-9]{0,18})(?:\.(0|[1-9][0-9]{0,18}))?", re.ASCII)


def make_epoch(counter: int, chance: bytes) -> Epoch:
    """An epoch from its counter and 5 random bytes."""
    assert 1 <= counter < 1 << 24
    assert len(chance) == 5
    return Epoch(counter << 40 | int.from_bytes(chance, "big"))


def epoch_counter(epoch: Epoch) -> int:
    """The counter, which is 1 for the first epoch of a log."""
    return epoch >> 40


def is_older(epoch: int, than: int) -> bool:
    """Whether an epoch began before another, by their counters."""
    return epoch_counter(Epoch(epoch)) < epoch_counter(Epoch(than))


@lru_cache(maxsize=64)
def format_epoch(epoch: Epoch) -> str:
    """Decimal counter and 8 base32 characters: `2k7f3q2ma`."""
    chance = (epoch & (1 << 40) - 1).to_bytes(5, "big")
    return f"{epoch >> 40}{base64.b32encode(chance).decode().lower()}"


def parse_epoch(text: str) -> Epoch:
    """Raises BadCursor."""
    match = _EPOCH.fullmatch(text)
    if match is None:
        raise BadCursor(f"not an epoch: {text[:60]!r}", subject="epoch")
    return _epoch_of(match[1], match[2])


def _epoch_of(counter: str, chance: str) -> Epoch:
    if int(counter) >= 1 << 24:
        raise BadCursor("the epoch's counter is over 24 bits", subject="epoch")
    return make_epoch(int(counter), base64.b32decode(chance.upper()))


class Cursor(msgspec.Struct, frozen=True):
    """A position: everything of this epoch up to and including `offset` was taken.

    `index` counts what was taken of a range entry (`…-400.37`: trigger 400, packet 37 done); None
    for a whole entry. Offset 0 is before the first entry. Opaque to clients.
    """

    epoch: Epoch
    offset: int
    index: int | None = None

    def __str__(self) -> str:
        tail = "" if self.index is None else f".{self.index}"
        return f"e{format_epoch(self.epoch)}-{self.offset}{tail}"

    @classmethod
    def parse(cls, text: str) -> "Cursor":
        """Raises BadCursor."""
        match = _CURSOR.fullmatch(text)
        if match is None:
            raise BadCursor(
                f"not a cursor: {text[:60]!r}", subject="cursor",
                hint="send back exactly what the node gave you, such as e1k7f3q2ma-12345",
            )  # fmt: skip
        offset = int(match[3])
        index = None if match[4] is None else int(match[4])
        if offset > OFFSET_MAX or (index or 0) > OFFSET_MAX:
            raise BadCursor("the cursor's offset is over 63 bits", subject="cursor")
        return cls(_epoch_of(match[1], match[2]), offset, index)
