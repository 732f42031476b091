"""A packet that comes as the writer's patience ends."""

from typing import Any

import trio
from storage_rig import Rig, draft
from trio.testing import MockClock, wait_all_tasks_blocked

from overlayd.model.draft import AppendRequest
from overlayd.model.names import StreamName
from overlayd.storage.writer import IDLE_S


class Told:
    """A ticket that says what became of its packets."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.answer: Any = None
        self.is_settled = False

    def settle(self, answer: Any) -> None:
        self.is_settled = True
        self.answer = answer
        self.done.set()

    fail = settle


async def test_a_packet_at_the_end_of_the_wait_is_stored(rig: Rig, mock_clock: MockClock) -> None:
    """The time for an idle moment is over in the same round in which a packet comes: it is committed, once."""
    async with rig.open() as log:
        request = AppendRequest(StreamName("s"), [draft()], may_create=True)
        await log.append(request)
        for number in range(2, 5):
            told = Told()
            version = log.find_stream("s").definition_version  # type: ignore[union-attr]
            await wait_all_tasks_blocked()
            assert log.append_soon(
                AppendRequest(StreamName("s"), [draft()], may_create=True, definition_version=version), told
            )
            mock_clock.jump(2 * IDLE_S)
            await told.done.wait()
            assert [receipt.sequence for receipt in told.answer.outcomes] == [number]
        assert log.find_stream("s").head_sequence == 4  # type: ignore[union-attr]
