"""Logs whose files are damaged on purpose, and what must be true of them afterwards."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
from storage_rig import Rig, append, draft, drafts

from overlayd.model.draft import Receipt
from overlayd.model.entry import StoredEntry
from overlayd.model.errors import CommitFailed, DamagedEntry
from overlayd.storage.damage.known_loss import join_runs
from overlayd.storage.damage.pages import PAGE_BYTES, PageImage, find_leaves, read_cells
from overlayd.storage.damage.schema import load_schema
from overlayd.storage.damage.tables import judge_entry
from overlayd.storage.log import Log

STREAMS = ("a", "b", "c")
PACKETS = 1200


class Sound(msgspec.Struct):
    """A log in order: its directory, every entry, where each stands in the file, and where the streams stand."""

    directory: Path
    entries: dict[int, StoredEntry]
    pages: dict[int, set[int]]
    heads: dict[str, int]
    epoch: int
    names: dict[str, int]


async def make_sound(directory: Path, *, flush_entries: int = 65_536) -> Sound:
    """A log of some streams: bodies short and long, packets and a stream taken away, two starts."""
    rig, chance = Rig(directory), random.Random(7)
    rig.set_settings(flush_entries=flush_entries)
    names: dict[str, int] = {}
    async with rig.open() as log:
        await append(log, "gone", drafts(*[""] * 20))
        for turn in range(PACKETS // 40):
            stream = STREAMS[turn % len(STREAMS)]
            made = [
                draft(
                    f'{{"n":{turn},"text":"{"x" * chance.choice((5, 80, 300, 6000))}"}}',
                    index=at,
                    id=f"{turn}-{at}",
                    key="k",
                )
                for at in range(40)
            ]
            for outcome in (await append(log, stream, made)).outcomes:
                assert isinstance(outcome, Receipt)
                names[f"{stream}/{turn}-{outcome.index if hasattr(outcome, 'index') else 0}"] = outcome.offset
        found = log.find_stream("a")
        assert found is not None
        await log.reduce(found, 100, 200, "erased")
        await log.delete_stream("gone")
    async with rig.open() as log:
        await append(log, "b", drafts("late"))
    async with rig.open() as log:
        entries = await read_everything(log)
        heads = {stream.name: stream.head_sequence for stream in log.list_streams()}
        epoch, head = log.epoch, log.head - 1  # without this start's own entry
    shutil.rmtree(directory / "before", ignore_errors=True)
    async with rig.open() as log:
        entries = await read_everything(log)
        head = log.head
    assert len(entries[0]) == head
    return Sound(directory, entries[0], pages_of(directory), heads, epoch, names)


async def read_everything(log: Log, after: int = 0) -> tuple[dict[int, StoredEntry], list[tuple[int, int]]]:
    """Every entry that is served, by offset, and the runs that are told to be damaged. Nothing comes from memory."""
    log._state.tail.reset(log.head)
    found: dict[int, StoredEntry] = {}
    damaged: list[tuple[int, int]] = []
    while after < log.head:
        page = await log.read_page(after)
        assert page.after > after
        for entry in page.entries:
            assert after < entry.offset <= page.after
            found[entry.offset] = entry
        damaged += page.damaged
        after = page.after
    return found, join_runs(damaged)


def pages_of(directory: Path) -> dict[int, set[int]]:
    """On which pages of the closed database each entry stands: its leaf, and the chain of what doesn't fit there."""
    places: dict[int, set[int]] = {}
    root = next(row.root for row in load_schema(directory).rows if row.name == "entry")
    with PageImage(directory / "log.sqlite3") as image:
        for number, error in find_leaves(image, root):
            assert error is None
            before = set[int]()
            original = image.read

            def noting(page: int, read: Callable[[int], bytes] = original, noted: set[int] = before) -> bytes:
                noted.add(page)
                return read(page)

            image.read = noting  # type: ignore[method-assign]
            for cell in read_cells(image, number):
                row = judge_entry(cell)
                assert row is not None
                places[row[0]] = {number, *before}
                before.clear()
            image.read = original  # type: ignore[method-assign]
    return places


def damage(path: Path, chance: random.Random) -> tuple[str, set[int]]:
    """Breaks something of the file; gives what was done and the pages that it hit."""
    content = bytearray(path.read_bytes())
    pages = len(content) // PAGE_BYTES
    page = chance.randrange(pages)
    at = page * PAGE_BYTES
    kind = chance.choice(("bit", "bits", "zero", "noise", "run", "cut", "cut inside", "swap", "stale", "head"))
    hit = {page}
    if kind == "bit":
        content[at + chance.randrange(PAGE_BYTES)] ^= 1 << chance.randrange(8)
    elif kind == "bits":
        for _ in range(chance.randrange(2, 40)):
            spot = chance.randrange(len(content))
            content[spot] ^= 1 << chance.randrange(8)
            hit.add(spot // PAGE_BYTES)
    elif kind == "zero":
        content[at : at + PAGE_BYTES] = bytes(PAGE_BYTES)
    elif kind == "noise":
        content[at : at + PAGE_BYTES] = chance.randbytes(PAGE_BYTES)
    elif kind == "run":
        hit = set(range(page, min(pages, page + chance.randrange(2, 40))))
        content[at : at + len(hit) * PAGE_BYTES] = bytes(len(hit) * PAGE_BYTES)
    elif kind in ("cut", "cut inside"):
        page = chance.randrange(pages // 2, pages)
        del content[page * PAGE_BYTES + (chance.randrange(PAGE_BYTES) if kind == "cut inside" else 0) :]
        hit = set(range(page, pages))
    elif kind == "swap":
        other = chance.randrange(pages)
        hit.add(other)
        there = content[other * PAGE_BYTES : (other + 1) * PAGE_BYTES]
        content[other * PAGE_BYTES : (other + 1) * PAGE_BYTES] = content[at : at + PAGE_BYTES]
        content[at : at + PAGE_BYTES] = there
    elif kind == "stale":
        other = chance.randrange(pages)
        content[at : at + PAGE_BYTES] = content[other * PAGE_BYTES : (other + 1) * PAGE_BYTES]
    elif kind == "head":
        content[: chance.randrange(1, 200)] = b""
        content[:0] = bytes(len(path.read_bytes()) - len(content))
        hit = {0}
    path.write_bytes(content)
    return kind, {number + 1 for number in hit}


class Outcome(msgspec.Struct):
    """What became of a damaged log."""

    unhit: int
    served: int
    is_mended: bool


async def judge_damaged(sound: Sound, directory: Path, hit: set[int]) -> Outcome:
    """Opens a damaged copy twice and checks everything that must hold. Raises AssertionError, and what opening raises."""
    rig = Rig(directory)
    rig.clock.advance(3600)
    try:
        lost, last = await use_damaged(sound, rig)
    except CommitFailed:  # found while it was written to: the process ends, and the service manager starts it anew
        lost, last = await use_damaged(sound, rig)
    async with rig.open() as log:
        assert log.head > last
        again = set(await check_served(sound, log))
        assert again == lost
    unhit = {offset for offset, pages in sound.pages.items() if not pages & hit}
    is_mended = any(directory.glob("damaged-*"))  # noqa: ASYNC240 - a directory of a few files
    return Outcome(len(unhit), len(unhit - lost), is_mended)


async def use_damaged(sound: Sound, rig: Rig) -> tuple[set[int], int]:
    """Reads, finds, appends; the offsets that are lost, and the head."""
    async with rig.open() as log:
        lost = set(await check_served(sound, log))
        await check_streams(sound, log)
        await check_goes_on(sound, log)
        return lost, log.head


async def check_served(sound: Sound, log: Log) -> list[int]:
    """Nothing is served that wasn't there, and nothing is missing without a word. Gives the offsets that are lost."""
    served, damaged = await read_everything(log)
    common = min([offset for epoch, offset in log.ancestry if epoch == sound.epoch], default=len(sound.entries))
    lost = []
    for offset, entry in sound.entries.items():
        found = served.get(offset)
        if found is not None and offset <= common:
            # The fingerprint isn't sealed: it tells repeats of an id apart, and is served to nobody.
            assert msgspec.structs.replace(found, fingerprint=entry.fingerprint) == entry, f"another entry at {offset}"
            continue
        is_told = any(low <= offset <= high for low, high in damaged) or offset > common
        assert is_told, f"the entry at {offset} is missing without a gap"
        lost.append(offset)
    return lost


async def check_streams(sound: Sound, log: Log) -> None:
    """A packet that is found by its stream and sequence is that one, or damage is told."""
    for name, head in sound.heads.items():
        stream = log.find_stream(name)
        if stream is None:
            continue
        for sequence in range(1, head + 1, 7):
            try:
                offset = await log.find_offset(stream, sequence)
                entry = None if offset is None else await log.read_entry(offset)
            except DamagedEntry:
                continue
            assert entry is None or (entry.sequence, entry.stream_hash) == (sequence, stream.stream_hash)


async def check_goes_on(sound: Sound, log: Log) -> None:
    """Packets are taken, and no sequence is given twice."""
    for name, head in sound.heads.items():
        if name.startswith("overlayd."):
            continue
        (outcome,) = (await append(log, name, drafts(""))).outcomes
        assert isinstance(outcome, Receipt)
        stream = log.find_stream(name)
        assert stream is not None
        is_same_stream = any(entry.stream_hash == stream.stream_hash for entry in sound.entries.values())
        assert outcome.sequence > head or not is_same_stream
    await log.checkpoint(log.head)


__all__ = ["Outcome", "Sound", "check_served", "damage", "judge_damaged", "make_sound", "pages_of", "read_everything"]
