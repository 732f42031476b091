"""The thread of the writing connection. It runs one function at a time and ends when it is told to.

Trio's own threads cost a group commit two more rounds of the event loop (one for the limiter, one for the wake-up) and
a copied context; a single packet's commit takes less than that. The thread says that it is done through an eventfd on
which the task itself waits: Trio's way to be called from threads wakes a task of Trio's first, a round more.
"""

import os
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import trio

T = TypeVar("T")


class WriterThread:
    """Runs functions for one task. The thread begins with the first of them."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread: threading.Thread | None = None
        self._wanted = threading.Lock()  # held while there is nothing to do; a semaphore costs ten times as much
        self._wanted.acquire()
        self._function: Callable[[], Any] | None = None
        self._done = -1  # the eventfd
        self._is_busy = False
        self._given: Any = None
        self._error: BaseException | None = None

    def __repr__(self) -> str:
        return f"WriterThread({self._name!r}, busy={self._is_busy})"

    async def run(self, function: Callable[[], T]) -> T:
        """What the function gives or raises. Checkpoint, but it isn't cancelled half way: the function goes on."""
        with trio.CancelScope(shield=True):
            given = await self.run_in_shield(function)
        return given

    async def run_in_shield(self, function: Callable[[], T]) -> T:
        """The same for a caller that is shielded from cancellation already: a scope costs as much as judging a packet."""
        assert not self._is_busy, "one function at a time"
        if self._thread is None:
            self._done = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            self._thread.start()
        self._is_busy = True
        self._function = function
        self._wanted.release()
        await trio.lowlevel.wait_readable(self._done)
        os.eventfd_read(self._done)
        self._is_busy = False
        error, self._error = self._error, None
        if error is not None:
            raise error
        given: T
        given, self._given = self._given, None
        return given

    def close(self) -> None:
        """Ends the thread. Not while it works. Again does nothing."""
        assert not self._is_busy, "it works"
        if self._thread is not None:
            self._function = None
            self._wanted.release()
            self._thread.join()
            self._thread = None
            os.close(self._done)

    def _work(self) -> None:
        while True:
            self._wanted.acquire()
            function, self._function = self._function, None
            if function is None:
                return
            try:
                self._given = function()
            except BaseException as error:
                self._error = error  # raised in the task
            del function
            os.eventfd_write(self._done, 1)
