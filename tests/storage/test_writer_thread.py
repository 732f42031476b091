"""The writing connection's thread: one function at a time, to its end, in one thread."""

import threading

import pytest
import trio

from overlayd.storage.writer_thread import WriterThread


async def test_runs_functions_in_one_thread_of_its_own() -> None:
    """Every function runs in the same thread, which isn't the loop's, and what it raises is raised to its caller."""
    thread = WriterThread("test")
    try:
        first, second = await thread.run(threading.get_ident), await thread.run(threading.get_ident)
        assert first == second != threading.get_ident()
        with pytest.raises(ZeroDivisionError):
            await thread.run(lambda: 1 // 0)
        assert await thread.run(lambda: 5) == 5
    finally:
        thread.close()
        thread.close()


async def test_isnt_cancelled_half_way() -> None:
    """A cancelled caller gets the answer all the same: what was begun is finished."""
    thread, told = WriterThread("test"), trio.Event()
    token = trio.lowlevel.current_trio_token()

    def work() -> str:
        trio.from_thread.run_sync(told.set, trio_token=token)
        return "done"

    with trio.CancelScope() as scope:
        scope.cancel()
        assert await thread.run(work) == "done"
    assert told.is_set()
    thread.close()


async def test_ends_when_it_is_closed() -> None:
    """Closing joins the thread; the next function gets another one."""
    thread = WriterThread("closed-soon")
    first = await thread.run(threading.current_thread)
    assert first.name == "closed-soon"
    thread.close()
    assert not first.is_alive()
    assert await thread.run(threading.current_thread) is not first
    thread.close()
