"""Keeps a task alive: logs, counts, backs off, starts again. Never for the writer or the watcher."""

import random
from collections.abc import Awaitable, Callable

import structlog
import trio

BACKOFF_FIRST_S = 0.5
BACKOFF_MAX_S = 60.0
_log = structlog.get_logger("supervise")


async def supervise(
    name: str,
    run: Callable[[], Awaitable[None]],
    *,
    chance: random.Random,
    on_crash: Callable[[str], None] = lambda name: None,
) -> None:
    """Runs `run` until it returns; a crash is logged, counted through `on_crash` and followed by a
    restart after an exponential, jittered pause. Checkpoint. Cancellation passes through."""
    backoff_s = BACKOFF_FIRST_S
    while True:
        started = trio.current_time()
        try:
            await run()
            return
        except* Exception as group:
            _log.error("task crashed", task=name, exc_info=group)
            on_crash(name)
        if trio.current_time() - started > BACKOFF_MAX_S:
            backoff_s = BACKOFF_FIRST_S
        await trio.sleep(backoff_s * (0.5 + chance.random() / 2))
        backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)


async def contain(name: str, run: Callable[[], Awaitable[None]], *, on_crash: Callable[[str], None]) -> None:
    """Runs `run` once; a crash is logged and counted through `on_crash`, and ends nothing else. Checkpoint if `run`
    is. Cancellation passes through."""
    try:
        await run()
    except* Exception as group:
        _log.error("task crashed", task=name, exc_info=group)
        on_crash(name)
