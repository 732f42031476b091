"""Changing the key that signs: step by step, cut off at each of them, with a key that is gone or silent."""

import itertools
import os
import shutil
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from real_waiting import PATIENCE_S
from storage_rig import Rig, append, receipts

from overlayd.model.bodies import KeyChange, decode_node_body
from overlayd.model.errors import ConfigInvalid, LogInconsistent, SignerUnavailable
from overlayd.model.key_chain import open_key_note
from overlayd.model.note import VerifierKey, open_note, parse_origin
from overlayd.model.signer import CheckpointKey
from overlayd.model.units import Duration
from overlayd.storage import Log, checkpoints, log_keys
from overlayd.storage.checkpoints import SIGN_TIMEOUT_S
from overlayd.storage.key_files import KeyFiles, SeedKey


def signers_of(log: Log, note: str) -> list[bytes]:
    """Public keys of the log whose good signature the checkpoint carries."""
    keys = [VerifierKey(log.origin, fact.row.public_key) for fact in log.keys.facts()]
    return [signature.key.public_key for signature in open_note(note, keys).signatures if signature.key is not None]


async def test_the_new_key_signs_after_one_checkpoint_of_both(rig: Rig) -> None:
    """Old key; entry; both keys on the first checkpoint over it; from then on the new one alone, also after a restart."""
    rig.set_settings(checkpoint=Duration(3600))
    async with rig.open() as log:
        await append(log, "s")
        old = VerifierKey.parse(log.vkey).public_key
        assert signers_of(log, (await log.checkpoint(log.head)).note) == [old]
        fact = await log.keys.rotate()
        new = fact.row.public_key
        assert new != old
        entry = await log.read_entry(fact.row.offset)
        body = decode_node_body(entry.body)
        assert isinstance(body, KeyChange)
        note = open_key_note(body.note)
        assert (note.old.public_key, note.new.public_key) == (old, new)
        assert signers_of(log, fact.row.checkpoint) == [old, new]
        assert fact.row.from_size is not None
        assert fact.row.from_size >= fact.row.offset
        assert [(known.state, known.to_size) for known in log.keys.facts()] == [
            ("retired", fact.row.from_size), ("current", None)
        ]  # fmt: skip
        await append(log, "s")
        assert signers_of(log, (await log.checkpoint(log.head)).note) == [new]
        named = parse_origin(log.origin)
    async with rig.open() as log:
        assert VerifierKey.parse(log.vkey).public_key == new
        assert parse_origin(log.origin) == named
        await append(log, "s")
        assert signers_of(log, (await log.checkpoint(log.head)).note) == [new]
    assert (rig.directory / "keys" / "log-2.ed25519").stat().st_mode & 0o777 == 0o600


async def test_rotates_again_and_again(rig: Rig) -> None:
    """Each key is another one, each introduced by the one before."""
    async with rig.open() as log:
        for _ in range(4):
            await log.keys.rotate()
        facts = log.keys.facts()
    assert len({fact.row.public_key for fact in facts}) == 5
    for old, new in itertools.pairwise(facts):
        note = open_key_note(new.row.note)
        assert (note.old.public_key, note.new.public_key) == (old.row.public_key, new.row.public_key)


async def test_the_old_file_may_go(rig: Rig) -> None:
    """Once it is retired the log opens without it, under the same name."""
    async with rig.open() as log:
        name = log.log_id
        await log.keys.rotate()
    (rig.directory / "keys" / "log.ed25519").unlink()
    async with rig.open() as log:
        assert log.log_id == name
        await append(log, "s")
        assert (await log.checkpoint(log.head)).size == log.head


CUTS: dict[str, tuple[object, str]] = {
    "after the key was drawn": (log_keys, "sign_key_note"),
    "after the note was signed": (checkpoints, "ChangeJob"),
    "after the entry": (log_keys.KeyRing, "sign"),
    "after both signed": (checkpoints, "_store"),
    "while the takeover is stored": (log_keys.KeyRing, "store_takeover"),
    "after the takeover is stored": (log_keys.KeyRing, "take_over"),
}


async def rotate_and_copy(rig: Rig, monkeypatch: pytest.MonkeyPatch, where: str) -> tuple[Rig, bytes]:
    """The files as they are when the process ends at a step of a rotation, and the key that signed before it."""
    rig.set_settings(checkpoint=Duration(3600))
    target = rig.directory.with_name("cut")
    async with rig.open() as log:
        await append(log, "s")
        await log.checkpoint(log.head)
        old = VerifierKey.parse(log.vkey).public_key
        place, name = CUTS[where]
        original = getattr(place, name)

        def copy_and_go_on(*arguments: Any) -> Any:
            if not target.exists():
                shutil.copytree(rig.directory, target)
            return original(*arguments)

        monkeypatch.setattr(place, name, copy_and_go_on)
        await log.keys.rotate()
    monkeypatch.undo()
    cut = Rig(target)
    cut.settings = rig.settings
    return cut, old


@pytest.mark.parametrize("where", CUTS)
async def test_cut_off_anywhere(rig: Rig, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Wherever the process ends, the next start serves a log with one good key, and another rotation comes to its end."""
    cut, old = await rotate_and_copy(rig, monkeypatch, where)
    async with cut.open() as log:
        await log.checkpoint(log.head)  # what a start owes is made up for by its first one
        await append(log, "s")
        note = (await log.checkpoint(log.head)).note
        facts = log.keys.facts()
        if where in ("after the key was drawn", "after the note was signed"):
            assert [fact.state for fact in facts] == ["current"]
            assert signers_of(log, note) == [old]
        else:
            assert [fact.state for fact in facts] == ["retired", "current"]
            assert signers_of(log, facts[1].row.checkpoint) == [old, facts[1].row.public_key]
            assert signers_of(log, note) == [facts[1].row.public_key]
        await log.keys.rotate()
        await append(log, "s")
        assert len(signers_of(log, (await log.checkpoint(log.head)).note)) == 1
        assert all(fact.state in ("retired", "current") for fact in log.keys.facts())
    drawn = list((cut.directory / "keys").glob("log-*.ed25519"))
    assert len(drawn) == len(log.keys.facts()) - 1, "a key that was drawn and not used is taken up again"


async def test_a_new_key_that_is_lost_is_given_up_by_the_next_rotation(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """Its entry stays in the log; it never counts."""
    cut, _old = await rotate_and_copy(rig, monkeypatch, "after the entry")
    (cut.directory / "keys" / "log-2.ed25519").unlink()
    async with cut.open() as log:
        assert [fact.state for fact in log.keys.facts()] == ["current", "pending"]
        await log.keys.rotate()
        assert [fact.state for fact in log.keys.facts()] == ["retired", "abandoned", "current"]


class Shelf(KeyFiles):
    """Keys of which some can't be reached, for as long as a test says so."""

    def __init__(self, directory: Path, rig: Rig) -> None:
        super().__init__(directory, rig.entropy)
        self.gone: set[bytes] = set()
        self.wait: Callable[[], object] = lambda: None

    def first(self) -> CheckpointKey:
        return Frail(super().first(), self)

    def find(self, public_key: bytes) -> CheckpointKey:
        return Frail(super().find(public_key), self)

    def next(self, known: Collection[bytes]) -> CheckpointKey:
        return Frail(super().next(known), self)


class Frail:
    """A key in a device."""

    is_quick = False

    def __init__(self, key: CheckpointKey, shelf: Shelf) -> None:
        self._key = key
        self._shelf = shelf

    @property
    def public_key(self) -> bytes:
        return self._key.public_key

    def sign(self, message: bytes) -> bytes:
        self._shelf.wait()
        if self.public_key in self._shelf.gone:
            raise SignerUnavailable("the token is gone", subject="checkpoint_key")
        return self._key.sign(message)


async def test_a_key_that_is_gone_stops_checkpoints_and_nothing_else(
    rig: Rig, autojump_clock: trio.testing.MockClock
) -> None:  # fmt: skip
    """Packets are taken; who asks for a checkpoint is told why not; it comes by itself when the key is back."""
    shelf = Shelf(rig.directory, rig)
    async with rig.open(keys=shelf) as log:
        public_key = VerifierKey.parse(log.vkey).public_key
        shelf.gone.add(public_key)
        await append(log, "s")
        with pytest.raises(SignerUnavailable, match="the token is gone"):
            await log.checkpoint(log.head)
        assert log.keys.trouble == "the token is gone"
        await append(log, "s")
        shelf.gone.clear()
        with trio.fail_after(60):
            while log.keys.trouble:  # noqa: ASYNC110 - nobody is told when it ends
                await trio.sleep(1)
        assert (await log.checkpoint(log.head)).size == log.head


async def test_a_start_without_the_key_goes_on_without_checkpoints(rig: Rig) -> None:
    """What lies in a device may be away when the node starts; the log knows its public key."""
    async with rig.open() as log:
        await append(log, "s")
    shelf = Shelf(rig.directory, rig)
    shelf.gone.add(VerifierKey.parse(log.vkey).public_key)
    async with rig.open(keys=shelf) as log:
        (receipt,) = receipts(await append(log, "s"))
        assert receipt.offset == log.head
        with pytest.raises(SignerUnavailable):
            await log.checkpoint(log.head)


async def test_a_new_key_that_goes_away_doesnt_hold_up_the_old_one(
    rig: Rig, autojump_clock: trio.testing.MockClock
) -> None:  # fmt: skip
    """Between the entry and the checkpoint of both, the old key signs alone; the takeover comes when the new one is back."""
    rig.set_settings(checkpoint=Duration(1))
    shelf = Shelf(rig.directory, rig)
    async with rig.open(keys=shelf) as log:
        await append(log, "s")
        old = VerifierKey.parse(log.vkey).public_key
        answered = 0

        def lose_it_after_the_note() -> None:
            nonlocal answered
            answered += 1
            if answered == 3:  # old and new signed the note before
                shelf.gone.add(shelf.next({old}).public_key)

        await log.checkpoint(log.head)
        shelf.wait = lose_it_after_the_note
        with pytest.raises(SignerUnavailable, match="the old one signs until it can"):
            await log.keys.rotate()
        assert [fact.state for fact in log.keys.facts()] == ["current", "pending"]
        shelf.wait = lambda: None
        await append(log, "s")
        assert signers_of(log, (await log.checkpoint(log.head)).note) == [old]
        shelf.gone.clear()
        fact = await log.keys.rotate()
        assert fact.row.number == 2, "the rotation that was cut off came to its end; no second one was begun"
        assert [fact.state for fact in log.keys.facts()] == ["retired", "current"]


async def test_a_silent_device_is_given_up_after_a_while(rig: Rig, mock_clock: trio.testing.MockClock) -> None:
    """The call's thread is left to it; nobody waits longer than SIGN_TIMEOUT_S, and the node ends all the same."""
    shelf, called, release = Shelf(rig.directory, rig), trio.Event(), threading.Event()
    token = trio.lowlevel.current_trio_token()

    def say_nothing() -> None:
        token.run_sync_soon(called.set)
        release.wait(PATIENCE_S)

    async def let_time_pass() -> None:
        await called.wait()
        mock_clock.jump(SIGN_TIMEOUT_S)

    async with rig.open(keys=shelf) as log:
        await append(log, "s")
        await log.checkpoint(log.head)
        await append(log, "s")
        shelf.wait = say_nothing
        async with trio.open_nursery() as nursery:
            nursery.start_soon(let_time_pass)
            with pytest.raises(SignerUnavailable, match="gave no answer in 10 s"):
                await log.checkpoint(log.head)
        release.set()


def test_others_permissions_are_refused(rig: Rig) -> None:
    """A key file that anybody else may read or write isn't used."""
    keys = KeyFiles(rig.directory, rig.entropy)
    (rig.directory / "keys").mkdir(parents=True)
    public_key = keys.first().public_key
    for mode in (0o640, 0o604, 0o620, 0o602):
        os.chmod(rig.directory / "keys" / "log.ed25519", mode)
        with pytest.raises(ConfigInvalid, match="others may use"):
            keys.find(public_key)
    os.chmod(rig.directory / "keys" / "log.ed25519", 0o400)
    assert keys.find(public_key).public_key == public_key


def test_no_key_shows_its_secret(rig: Rig) -> None:
    """Neither in its text nor in an error about it."""
    seed = bytes(range(32))
    assert seed.hex() not in repr(SeedKey(seed))
    keys = KeyFiles(rig.directory, rig.entropy)
    (rig.directory / "keys").mkdir(parents=True)
    path = rig.directory / "keys" / "log.ed25519"
    path.write_bytes(seed + b"more")
    path.chmod(0o600)
    with pytest.raises(LogInconsistent) as refusal:
        keys.first()
    assert seed.hex() not in f"{refusal.value} {refusal.value.hint}"
