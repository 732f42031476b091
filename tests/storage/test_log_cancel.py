"""Every public async function of the log, cancelled at every tick: nothing hangs, nothing is half done."""

from collections.abc import Awaitable, Callable

import pytest
import trio
from storage_rig import Rig, append, draft, drafts, forget_tail, receipts

from overlayd.model.definition import Definition
from overlayd.storage import Log

Work = Callable[[Log], Awaitable[object]]

WORKS: dict[str, Work] = {
    "append": lambda log: append(log, "s", drafts("x", "y")),
    "define_stream": lambda log: log.define_stream("t", Definition(title="t")),
    "set_stream_state": lambda log: log.set_stream_state("s", "paused"),
    "delete_stream": lambda log: log.delete_stream("gone"),
    "reduce": lambda log: log.reduce(log.list_streams()[0], 1, log.head, "retention"),
    "append_node": lambda log: log.append_node({"type": "cut", "minimum_index": 256}),
    "write": lambda log: log.write(lambda c: c.execute("SELECT 1").fetchall()),
    "read_page": lambda log: log.read_page(0),
    "read_entry": lambda log: log.read_entry(2),
    "read_packets": lambda log: log.read_packets(log.list_streams()[0], 0, 10),
    "find_offset": lambda log: log.find_offset(log.list_streams()[0], 1),
    "find_last": lambda log: log.find_last(log.list_streams()[0], "k"),
    "find_by_id": lambda log: log.find_by_id("a"),
    "find_offset_at": lambda log: log.find_offset_at(5),
    "checkpoint": lambda log: log.checkpoint(log.head),
    "inclusion_path": lambda log: log.inclusion_path(0, 300),
    "consistency_path": lambda log: log.consistency_path(3, 300),
    "root_at": lambda log: log.root_at(256),
    "read_tile": lambda log: log.read_tile(0, 0, 256),
    "read_entry_tile": lambda log: log.read_entry_tile(0, 256),
}


@pytest.mark.parametrize("name", WORKS)
async def test_cancelled_at_every_tick(rig: Rig, name: str) -> None:
    """Whenever it is given up, the log stays whole, and the same call works afterwards."""
    async with rig.open() as log:
        await append(log, "a.s", [draft(id="a", key="k") for _ in range(1)] + [draft(index=n) for n in range(1, 300)])
        await append(log, "s")
        await append(log, "gone", [draft() for _ in range(5)])
        for ticks in range(0, 24, 3):
            forget_tail(log)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(swallow, WORKS[name], log)
                for _ in range(ticks):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
        await check_whole(log)
        await swallow(WORKS[name], log)
        await check_whole(log)


async def swallow(work: Work, log: Log) -> None:
    """Runs it; after the first time some calls are refused, such as deleting what is gone."""
    try:
        await work(log)
    except Exception as err:
        assert type(err).__name__ in ("UnknownStream", "StreamPaused")  # noqa: PT017 - anything else fails


async def check_whole(log: Log) -> None:
    """The log takes packets and can be read from end to end."""
    (receipt,) = receipts(await append(log, "other"))
    assert receipt.offset == log.head
    forget_tail(log)
    after = 0
    while after < log.head:
        page = await log.read_page(after)
        assert not page.damaged
        after = page.after
