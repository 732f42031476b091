"""Memory channels: always bounded, always named, so that a full one can be found."""

from typing import TypeVar

import trio

T = TypeVar("T")


def bounded(capacity: int, name: str) -> "tuple[trio.MemorySendChannel[T], trio.MemoryReceiveChannel[T]]":
    """A channel that holds at most `capacity` items. The caller chooses the full-behavior: await
    `send` to wait, `send_nowait` to reject, drop or disconnect on trio.WouldBlock."""
    assert 0 <= capacity < 1_000_000, name
    return trio.open_memory_channel[T](capacity)
