"""The links between packets and what was made from them are made anew behind whoever asked for it."""

import sqlite3

import pytest
import trio
from privacy_rig import PrivacyRig, made, put
from storage_rig import append
from trio.testing import wait_all_tasks_blocked

from overlayd.storage import Log
from overlayd.storage.links import MADE

SOURCES = 6


@pytest.fixture
def rig(tmp_path) -> PrivacyRig:
    """A directory of its own."""
    return PrivacyRig(tmp_path)


def read_links(connection: sqlite3.Connection) -> list[int]:
    """What was made from packets."""
    return [
        offset for (offset,) in connection.execute("SELECT DISTINCT offset FROM entry_link WHERE kind = ?", (MADE,))
    ]


async def lose_links(log: Log) -> None:
    """As damage does."""
    await log.write(lambda c: c.execute("DELETE FROM entry_link"))
    assert await log.read(read_links) == []


async def test_links_are_made_again_after_the_answer(rig: PrivacyRig) -> None:
    """Asking returns once the wish is durable, with everything still to be looked through; the task then does it, once and
    again, and what a stop left is done at the next start."""
    async with rig.office(runs=False) as office, trio.open_nursery() as nursery:
        log, older = office.log, office.log.erasing.older
        await put(log, "people", *range(SOURCES))
        await append(log, "replies", [made("1", 1), made("2", 3, 5)])
        links = await log.read(read_links)
        assert len(links) == 2
        nursery.start_soon(older.keep)
        await wait_all_tasks_blocked()
        for _ in range(2):
            await lose_links(log)
            await older.begin_anew(log.head)
            with trio.fail_after(60):
                while await older.count_behind():
                    pass
            assert await log.read(read_links) == links
        nursery.cancel_scope.cancel()
    async with rig.office(runs=False) as office:
        await lose_links(office.log)
        await office.log.erasing.older.begin_anew(office.log.head)
        assert await office.log.erasing.older.count_behind() == office.log.head
    async with rig.office(runs=False) as office:
        await office.log.erasing.older.run()
        assert await office.log.read(read_links) == links
        assert await office.log.erasing.older.count_behind() == 0
