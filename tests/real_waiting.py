"""Where tests that watch real processes wait. Nothing else in tests/ may let real time pass (tests/project/test_waiting.py).

`until` and `until_async` look again and again at something that another process works towards. How long they may take
is a bound for a machine that is busy with other things, never what a test measures. `pause` and `pause_async` are for
what nobody can tell of: a kill at any moment, and that nothing more comes.
"""

import time
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import trio

PATIENCE_S = 60.0
SOON_S = 25.0
"""As much patience as can be had where the node's own time for a silent client (30 s) would end the wait as well."""
LOOK_S = 0.02

Found = TypeVar("Found")


def looks(seconds: float = PATIENCE_S, each_s: float = LOOK_S) -> Iterator[int]:
    """Counts up with a pause in between until the time is over."""
    end, number = time.monotonic() + seconds, 0  # noqa: TID251 - a real process: real time
    while time.monotonic() < end:  # noqa: TID251
        yield number
        number += 1
        time.sleep(each_s)


def until(look: Callable[[], Found], what: str, *, seconds: float = PATIENCE_S, each_s: float = LOOK_S) -> Found:
    """What `look` gives, once that is true. Raises AssertionError(what) when it doesn't become so."""
    for _ in looks(seconds, each_s):
        if found := look():
            return found
    raise AssertionError(f"it never came to be: {what}")


async def until_async(
    look: Callable[[], Found | Awaitable[Found]], what: str, *, seconds: float = PATIENCE_S, each_s: float = LOOK_S
) -> Found:
    """The same among tasks; `look` may be a coroutine function."""
    with trio.move_on_after(seconds):
        while True:
            found = look()
            if isinstance(found, Awaitable):
                found = await found
            if found:
                return found
            await trio.sleep(each_s)
    raise AssertionError(f"it never came to be: {what}")


def pause(seconds: float) -> None:
    """Lets time pass. What follows must hold however much of it did."""
    time.sleep(seconds)


async def pause_async(seconds: float) -> None:
    """The same among tasks that watch a real process."""
    await trio.sleep(seconds)
