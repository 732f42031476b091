"""The consumer of the log that keeps the session read model. It only follows: nothing waits for it but readers who want
to see what they just wrote."""

from collections import deque
from functools import partial

import msgspec
import structlog
import trio

from overlayd.delivery.query import Now, Start
from overlayd.dialects.agentpipe.checks import is_timestamp
from overlayd.dialects.agentpipe.events import EVENT_TYPES, PREFIX, fact_of_packet
from overlayd.dialects.agentpipe.facts import Bridge, Fact, Message
from overlayd.dialects.agentpipe.projection import (
    Change,
    Placed,
    Progress,
    Removed,
    apply,
    clear,
    count_active,
    read_progress,
    read_recent_offsets,
    write_progress,
)
from overlayd.dialects.agentpipe.uploads import HEADER_TYPE, MESSAGE_TYPE, Header
from overlayd.model.clock import format_time_us
from overlayd.model.cursor import Cursor
from overlayd.model.entry import Kind, StoredEntry
from overlayd.model.errors import OverlaydError
from overlayd.model.meta import decode_meta
from overlayd.model.metrics import Metrics
from overlayd.storage import Log, Page

NOTED_ENTRIES = 20_000
"""Entries of others after which the position is written down, so that a restart needn't look at them again."""
RETRY_S = 1.0
STREAMS_KNOWN = 100_000
RECENT_MAX = 1000
"""Events whose places are remembered, for listeners that come."""

_header = msgspec.json.Decoder(Header).decode
_message = msgspec.json.Decoder(Message).decode
_log = structlog.get_logger("agentpipe.follower")


class Follower:
    """One for the node. `start`, then `run` until cancelled."""

    def __init__(self, log: Log, metrics: Metrics) -> None:
        self._log = log
        self._progress = Progress(int(log.epoch), 0, 0)
        self._noted = 0
        self._names: dict[bytes, str] = {}
        self._moved = trio.Event()
        self._waiting = trio.CancelScope()
        self.recent: deque[int] = deque(maxlen=RECENT_MAX)
        """Offsets of the newest events, oldest first."""
        self.active = 0
        self._skipped = metrics.counter(
            "overlayd_agentpipe_packets_skipped", "Packets in streams of conversations that say nothing about one"
        )
        metrics.gauge("agentpipe_active_conversations", "Conversations that go on").set_function(lambda: self.active)
        metrics.gauge(
            "overlayd_agentpipe_behind", "Log entries that the session read model hasn't looked at"
        ).set_function(lambda: self.behind)

    def __repr__(self) -> str:
        return f"Follower({self._progress!r})"

    @property
    def position(self) -> int:
        """The last offset that was looked at."""
        return self._progress.position

    @property
    def behind(self) -> int:
        """Entries that weren't looked at yet."""
        return max(0, self._log.head - self.position)

    @property
    def version(self) -> str:
        """Changes with every write that changed a session."""
        return f"{self._progress.epoch:x}-{self._progress.version}"

    async def start(self) -> None:
        """Reads how far it got. Checkpoint."""
        self._progress = await self._log.read(read_progress)
        self.active = await self._log.read(count_active)
        epoch = int(self._log.epoch)
        if self._progress.epoch != epoch or self.position > self._log.head:
            await self.rebuild()
        self._noted = self.position
        self.recent.extend(await self._log.read(partial(read_recent_offsets, limit=RECENT_MAX)))

    def replay_start(self, count: int) -> Start:
        """Where to begin to get the newest events, so many of them; now, when there are none."""
        if not self.recent:
            return Now()
        return Cursor(self._log.epoch, self.recent[-min(count, len(self.recent))] - 1)

    async def rebuild(self) -> None:
        """Takes the read model away; `run` makes it again, from the log's beginning. Checkpoint."""
        epoch = int(self._log.epoch)
        await self._log.write(partial(clear, epoch=epoch))
        self._progress, self._noted, self.active = Progress(epoch, 0, 0), 0, 0
        self._waiting.cancel()

    async def wait_for(self, offset: int) -> None:
        """Until everything up to an offset was looked at. Checkpoint."""
        while self.position < offset:
            await self._moved.wait()
        await trio.lowlevel.checkpoint()

    async def run(self) -> None:
        """Follows the log until cancelled. Where the log takes nothing for a while it waits."""
        try:
            while True:
                with trio.CancelScope() as self._waiting:
                    await self._log.wait_beyond(self.position)
                if self.behind == 0:
                    continue
                try:
                    await self._step()
                except OverlaydError as error:
                    _log.warning("sessions can't be brought up to date", error=error.detail)
                    await trio.sleep(RETRY_S)
        finally:
            with trio.move_on_after(RETRY_S, shield=True):
                await self._note()

    async def _step(self) -> None:
        """One page. Checkpoint."""
        before = self._progress
        page = await self._log.read_page(before.position)
        changes, events = self._changes(page)
        if self._progress is not before:
            return  # rebuilt meanwhile: the page is of no use
        version = page.after if changes else before.version
        after = Progress(before.epoch, max(page.after, before.position), version)
        if changes:
            active = await self._log.write(partial(apply, changes=changes, progress=after))
            if self._progress is not before:
                return await self.rebuild()
            self.active, self._noted = active, after.position
        self._progress = after
        newest = self.recent[-1] if self.recent else 0
        self.recent.extend(offset for offset in events if offset > newest)
        if after.position - self._noted >= NOTED_ENTRIES:
            await self._note()
        self._moved.set()
        self._moved = trio.Event()

    async def _note(self) -> None:
        progress = self._progress
        if progress.position == self._noted:
            return
        try:
            await self._log.write(partial(write_progress, progress=progress))
        except OverlaydError as error:
            _log.warning("the position of the sessions isn't noted", error=error.detail)
        else:
            self._noted = progress.position

    def _changes(self, page: Page) -> tuple[list[Change], list[int]]:
        """What a page changes, and where in it events are."""
        changes: list[Change] = []
        events: list[int] = []
        for entry in page.entries:
            if entry.kind == Kind.PACKET:
                name = self._name_of(entry.stream_hash)
                if name and not entry.is_reduced and self._add_packet(changes, entry, name):
                    events.append(entry.offset)
            elif entry.kind == Kind.REMOVAL and self._name_of(entry.stream_hash):
                changes.append(Removed(entry.stream_hash, entry.target_from, entry.target_to))
        return changes, events

    def _add_packet(self, changes: list[Change], entry: StoredEntry, name: str) -> bool:
        """Whether the packet is an event that listeners get."""
        kind = decode_meta(entry.meta).type
        facts, original_id = self._facts_of(kind, entry)
        if not facts:
            self._skipped.inc()
        changes += [
            Placed(fact, name, entry.stream_hash, entry.offset, entry.appended_us, original_id)
            for fact in facts
            if not isinstance(fact, Bridge) and fact.conversation
        ]
        return bool(facts) and kind in EVENT_TYPES

    def _facts_of(self, kind: str, entry: StoredEntry) -> tuple[list[Fact], str]:
        if kind in EVENT_TYPES:
            fact = fact_of_packet(kind, entry.body, format_time_us(entry.appended_us))
            return ([] if fact is None else [fact]), ""
        try:
            if kind == HEADER_TYPE:
                header = _header(entry.body)
                facts: list[Fact] = [header.started] if header.ended is None else [header.started, header.ended]
                return (facts if all(is_timestamp(fact.time) for fact in facts) else []), header.original_id
            if kind == MESSAGE_TYPE:
                message = _message(entry.body)
                return ([message] if is_timestamp(message.time) else []), ""
        except msgspec.MsgspecError:
            return [], ""
        return [], ""

    def _name_of(self, stream_hash: bytes) -> str:
        """The stream's name if it is a conversation's, "" for any other."""
        known = self._names.get(stream_hash)
        if known is None:
            stream = self._log.find_stream_by_hash(stream_hash)
            if stream is None:
                return ""
            if len(self._names) >= STREAMS_KNOWN:
                self._names.clear()
            known = self._names[stream_hash] = stream.name if stream.name.startswith(f"{PREFIX}.") else ""
        return known
