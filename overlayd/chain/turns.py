"""Whose turn it is: which entries become due by what is mined and how deep, in the order that each stream asks for."""

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

from overlayd.chain import item_tables as items
from overlayd.chain.item_tables import Item, Telling
from overlayd.chain.rules import Rules, TurnRule
from overlayd.model.bodies import StatusEntry
from overlayd.model.entry import Z32

T = TypeVar("T")
ENTRIES_AT_ONCE = 250
"""Entries of one transaction; they are built between two awaits, in about 3 ms."""


class TellingLog(Protocol):
    """What is needed of the log to tell something."""

    async def read(self, function: Callable[[sqlite3.Connection], T]) -> T: ...

    async def append_statuses(
        self, statuses: Sequence[StatusEntry], along: Callable[[sqlite3.Connection], None]
    ) -> list[int]: ...


class Turns:
    """Appends entries whose turn has come. Called by the watcher alone, one call at a time."""

    def __init__(self, log: TellingLog, rules: Rules, on_told: Callable[[Sequence[Telling]], None]) -> None:
        self._log = log
        self._rules = rules
        self._on_told = on_told
        self.tip_height = 0
        """Of the newest block for which everything that left the best chain was taken back; depths count from it."""

    async def advance_all(self) -> None:
        """Every stream's. Checkpoint."""
        await self.advance(await self._log.read(items.read_open_streams))

    async def advance(self, streams: Iterable[bytes]) -> None:
        """Those of some streams; then tells what is mined and must wait further. Checkpoint."""
        for stream_hash in streams:
            rule = self._rules.of(stream_hash)
            if rule is None:
                continue
            for depth in rule.depths:
                while await self._advance(stream_hash, rule, depth):
                    pass
        after = -1
        while untold := await self._log.read(lambda c: items.read_untold(c, after, ENTRIES_AT_ONCE)):  # noqa: B023
            await self.tell([items.tell_mined(item) for item in untold])
            after = untold[-1].offset

    async def _advance(self, stream_hash: bytes, rule: TurnRule, depth: int) -> bool:
        """Tells a page of what is due at a depth; whether there may be more."""
        height_max = self.tip_height - depth + 1

        def read(c: sqlite3.Connection) -> list[Item]:
            if rule.is_in_sequence:
                return items.read_turns(c, stream_hash, depth, ENTRIES_AT_ONCE)
            ready = items.read_ready(c, stream_hash, depth, height_max, ENTRIES_AT_ONCE)
            return ready or items.read_judged(c, stream_hash, ENTRIES_AT_ONCE)

        found = await self._log.read(read)
        tellings = []
        for item in found:
            if item.height is not None and item.height <= height_max:
                tellings.append(items.tell_confirmed(item, rule.depths))
            elif item.verdict and item.state in ("pending", "seen"):
                tellings.append(items.tell_verdict(item))
            else:
                break
        await self.tell(tellings)
        return len(tellings) == ENTRIES_AT_ONCE or (bool(tellings) and not rule.is_in_sequence)

    async def tell(self, tellings: Sequence[Telling]) -> None:
        """Appends entries and writes their rows, all or nothing. Checkpoint if there are any."""
        if tellings:
            await self._log.append_statuses(entries_of(tellings), lambda c: items.write_tellings(c, tellings))
            self._on_told(tellings)


def entries_of(tellings: Iterable[Telling]) -> list[StatusEntry]:
    """What the log is to append: a range belongs to no stream."""
    return [
        (one.body, Z32 if one.item.is_range else one.item.stream_hash, one.item.offset, one.item.to_offset)
        for one in tellings
    ]
