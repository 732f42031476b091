"""Signing: on demand, on its own, in the right order, and never two roots for one size."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing
from real_waiting import PATIENCE_S
from storage_rig import Rig, append, receipts

from overlayd.model.errors import BadParameter, CommitFailed, ShuttingDown, StorageFull
from overlayd.model.note import CheckpointText, VerifierKey, open_note
from overlayd.model.units import Duration
from overlayd.storage import Log, checkpoints, files, log_keys
from overlayd.storage.files import HighWater


async def check_note(log: Log, size: int) -> None:
    """The checkpoint at least covers a size, and says what the tree says."""
    signed = await log.checkpoint(size)
    assert signed.size >= size
    opened = open_note(signed.note, [VerifierKey.parse(log.vkey)])
    text = CheckpointText.parse(opened.text)
    assert (text.origin, text.size, text.root) == (log.origin, signed.size, signed.root)
    assert await log.root_at(signed.size) == signed.root


async def test_signs_on_demand(rig: Rig) -> None:
    """A checkpoint that covers what was asked for comes at once, however long the pause is."""
    rig.set_settings(checkpoint=Duration(3600))
    async with rig.open() as log:
        for _ in range(5):
            (receipt,) = receipts(await append(log, "s"))
            await check_note(log, receipt.offset)
        newest = await log.checkpoint()
        assert await log.checkpoint(newest.size) is newest
        with pytest.raises(BadParameter):
            await log.checkpoint(log.head + 1)


async def test_signs_on_its_own(rig: Rig) -> None:
    """Without being asked, the head is signed within the pause; an idle log isn't signed again."""
    rig.set_settings(checkpoint=Duration(0.01))
    async with rig.open() as log:
        (receipt,) = receipts(await append(log, "s"))
        with trio.fail_after(PATIENCE_S):
            while (await log.checkpoint()).size < receipt.offset:
                await trio.lowlevel.checkpoint()
        newest = await log.checkpoint()
        await trio.testing.wait_all_tasks_blocked(0.03)
        assert await log.checkpoint() is newest


async def test_many_who_ask_share_one(rig: Rig) -> None:
    """Concurrent requests for the same size are answered by one signature."""
    rig.set_settings(checkpoint=Duration(3600))
    async with rig.open() as log:
        await append(log, "s")
        got = []

        async def ask() -> None:
            got.append(await log.checkpoint(log.head))

        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(ask)
        assert len({checkpoint.note for checkpoint in got}) == 1


async def test_high_water_is_synced_before_signing(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commit, then the mark, then the signature."""
    order: list[str] = []
    write, sign = files.write_high_water, log_keys.sign_note

    def note(name: str, function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            order.append(name)
            return function(*arguments)

        return call

    monkeypatch.setattr(checkpoints, "write_high_water", note("mark", write))
    monkeypatch.setattr(log_keys, "sign_note", note("sign", sign))
    async with rig.open() as log:
        await append(log, "s")
        await log.checkpoint(log.head)
    assert order == ["mark", "sign"] * (len(order) // 2)


async def test_last_checkpoint_at_the_end(rig: Rig) -> None:
    """A stop in order signs what was appended last."""
    rig.set_settings(checkpoint=Duration(3600))
    async with rig.open() as log:
        await append(log, "s")
        head = log.head
    mark = files.read_high_water(rig.directory)
    assert mark is not None
    assert mark.size == head
    async with rig.open() as log:
        sizes = await log.read(lambda c: [size for (size,) in c.execute("SELECT size FROM checkpoint")])
        assert head in sizes
        found = await log.find_checkpoint(log.epoch)
        assert found is not None
        assert found.size >= head


async def test_one_note_an_hour_is_kept(rig: Rig) -> None:
    """Of the checkpoints of one hour the table keeps the last."""
    async with rig.open() as log:
        for _ in range(4):
            await append(log, "s")
            await log.checkpoint(log.head)
        first = log.head
        rig.clock.advance(3600)
        for _ in range(3):
            await append(log, "s")
            await log.checkpoint(log.head)
        rows = await log.read(lambda c: c.execute("SELECT size FROM checkpoint ORDER BY size").fetchall())
        assert rows == [(first,), (log.head,)]


async def test_full_disk_fails_those_who_ask(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without room for the mark nothing is signed; with room it goes on."""
    rig.set_settings(checkpoint=Duration(3600))
    async with rig.open() as log:
        await log.checkpoint(log.head)
        await append(log, "s")
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints, "write_high_water", raise_os_error(errno.ENOSPC))
            with pytest.raises(StorageFull):
                await log.checkpoint(log.head)
        await check_note(log, log.head)


async def test_failed_fsync_is_fatal(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mark that can't be synced ends the log."""

    async def run() -> None:
        async with rig.open() as log:
            await log.checkpoint(log.head)
            monkeypatch.setattr(checkpoints, "write_high_water", raise_os_error(errno.EIO))
            await append(log, "s")
            await log.checkpoint(log.head)

    with pytest.raises(CommitFailed):
        await run()


def raise_os_error(number: int) -> Callable[[Path, HighWater, bytes], None]:
    """A writer of marks that fails."""

    def write(directory: Path, mark: HighWater, leaves: bytes) -> None:
        raise OSError(number, "injected")

    return write


async def test_stopped_signer_answers_nobody(rig: Rig) -> None:
    """After the block nobody waits for ever; what is signed is still given."""
    async with rig.open() as log:
        pass
    assert (await log.checkpoint()).size == log.head
    log._signer._newest = None
    with pytest.raises(ShuttingDown):
        await log.checkpoint()
