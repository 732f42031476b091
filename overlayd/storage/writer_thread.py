"""The thread of the writing connection. It runs one function at a time and ends when it is told to.

Trio's own threads cost a group commit two more rounds of the event loop (one for the limiter, one for the wake-up) and
a copied context; a single packet's commit takes less than that.
"""

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
        self._task: trio.lowlevel.Task | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._given: Any = None
        self._error: BaseException | None = None

    def __repr__(self) -> str:
        return f"WriterThread({self._name!r}, busy={self._task is not None})"

    async def run(self, function: Callable[[], T]) -> T:
        """What the function gives or raises. Checkpoint, but it isn't cancelled half way: the function goes on."""
        assert self._task is None, "one function at a time"
        if self._thread is None:
            self._token = trio.lowlevel.current_trio_token()
            self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            self._thread.start()
        self._task = trio.lowlevel.current_task()
        self._function = function
        self._wanted.release()
        await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)
        error, self._error = self._error, None
        if error is not None:
            raise error
        given: T
        given, self._given = self._given, None
        return given

    def close(self) -> None:
        """Ends the thread. Not while it works. Again does nothing."""
        assert self._task is None, "it works"
        if self._thread is not None:
            self._function = None
            self._wanted.release()
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        assert self._token is not None
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
            try:
                self._token.run_sync_soon(self._wake)
            except trio.RunFinishedError:  # nobody is left to be told
                return

    def _wake(self) -> None:
        task, self._task = self._task, None
        assert task is not None
        trio.lowlevel.reschedule(task)
