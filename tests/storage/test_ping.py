"""Whether the writer lives: it answers in turn, and not while its thread is stuck on the disk."""

import sqlite3
import threading

import pytest
import trio
from storage_rig import Rig, append, draft
from trio.testing import wait_all_tasks_blocked

from overlayd.model.errors import ShuttingDown, StorageFull


async def test_an_idle_writer_answers_without_writing(rig: Rig) -> None:
    """An idle node is alive; asking adds nothing to the log."""
    async with rig.open() as log:
        head = log.head
        for _ in range(3):
            await log.ping()
        assert log.head == head


async def test_a_writer_that_is_stuck_on_the_disk_does_not_answer(rig: Rig) -> None:
    """The commit's thread hangs: no answer until it goes on, then one, and the packet is there."""
    goes_on, is_in = threading.Event(), threading.Event()

    def hang(connection: sqlite3.Connection) -> None:
        is_in.set()
        goes_on.wait()

    answered: list[str] = []
    async with rig.open() as log, trio.open_nursery() as nursery:

        async def ask() -> None:
            await log.ping()
            answered.append("ping")

        nursery.start_soon(log.write, hang)
        try:
            await trio.to_thread.run_sync(is_in.wait)
            nursery.start_soon(ask)
            for _ in range(3):
                await wait_all_tasks_blocked()
            assert answered == []
        finally:
            goes_on.set()
        await append(log, "a", [draft("1")])
    assert answered == ["ping"]


async def test_a_node_that_refuses_for_lack_of_space_is_alive(rig: Rig) -> None:
    """A full disk isn't a reason to start it anew."""
    async with rig.open() as log:
        log._disk.is_full = True
        with pytest.raises(StorageFull):
            await append(log, "a", [draft("1")])
        await log.ping()


async def test_a_closed_log_says_so(rig: Rig) -> None:
    """Asking while the node stops is refused as everything is."""
    async with rig.open() as log:
        pass
    with pytest.raises(ShuttingDown):
        await log.ping()
