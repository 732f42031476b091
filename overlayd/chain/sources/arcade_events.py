"""Arcade's two event streams: what becomes of our transactions, and which block is the newest.

Events are hints. Arcade drops them for readers that are slow and replays, after a break, the present state of what
moved since the last event that it is told of; so what may have been lost is said (`EventsMissed`) and polled for.
"""

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import msgspec
import trio

from overlayd.chain.sources.arc_words import ArcStatus, status_of
from overlayd.chain.sources.calls import SourceCalls
from overlayd.chain.sources.events import EventBox
from overlayd.chain.sources.faults import Fault, fault_of, unavailable, words_of
from overlayd.chain.sources.settings import AskingSettings
from overlayd.chain.sources.sse import SseEvent, SseReader
from overlayd.model.chain_source import EventsMissed, SourceTip, TipMoved, TransactionMoved
from overlayd.model.errors import MalformedChainData, OutboundFailure, SourceUnavailable
from overlayd.model.txid import parse_block_hash, parse_txid
from overlayd.outbound.request import Headers


class _Tip(msgspec.Struct):
    height: int
    hash: str


class ArcadeEvents:
    """Listens to one Arcade."""

    def __init__(
        self, calls: SourceCalls, *, status_url: str, tip_url: str, asking: AskingSettings, chance: random.Random
    ) -> None:
        self._calls = calls
        self._status_url = status_url
        self._tip_url = tip_url
        self._asking = asking
        self._chance = chance

    @asynccontextmanager
    async def open(self) -> AsyncIterator[EventBox]:
        """Listens for the life of the block, connecting again whenever a stream ends."""
        box = EventBox(
            self._asking.source_events, f"events of {self._calls.name}",
            on_full=lambda: self._calls.limit_hit("source_events"),
        )  # fmt: skip
        statuses = _Stream(self._calls, self._status_url, box, self._take_status, may_miss=True)
        tips = _Stream(self._calls, self._tip_url, box, self._take_tip, may_miss=False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_on, statuses.listen)
            nursery.start_soon(self._keep_on, tips.listen)
            try:
                yield box
            finally:
                nursery.cancel_scope.cancel()
                box.close()

    async def _keep_on(self, listen: Callable[[], Awaitable[bool]]) -> None:
        """Listens again and again; the pauses grow while nothing comes."""
        row = 0
        while True:
            try:
                row = 0 if await listen() else row + 1
            except (OutboundFailure, SourceUnavailable, ValueError) as err:
                self._count(err)
                row += 1
            pause_s = float(self._asking.backoff_first) * 2.0 ** min(max(row - 1, 0), 32)
            await trio.sleep(min(pause_s, float(self._asking.backoff_max)) * (0.5 + self._chance.random() / 2))

    def _take_status(self, event: SseEvent, box: EventBox) -> None:
        """`status`: what became of a transaction of ours; `gap`: some such events were lost."""
        if event.kind == "gap":
            box.offer(EventsMissed())
        if event.kind != "status":
            return
        try:
            told = msgspec.json.decode(event.data, type=ArcStatus)
            status = status_of(told, parse_txid(told.txid), self._calls)
        except (msgspec.DecodeError, RecursionError, MalformedChainData) as err:
            self._calls.health.count(Fault.MALFORMED, f"an event of its can't be read: {words_of(str(err))}")
            box.offer(EventsMissed())
        except SourceUnavailable:  # noted already
            box.offer(EventsMissed())
        else:
            box.offer(TransactionMoved(msgspec.structs.replace(status, source=self._calls.name)))

    def _take_tip(self, event: SseEvent, box: EventBox) -> None:
        """A header in JSON, of which height and hash are looked at: whoever hears of a tip asks for headers."""
        try:
            told = msgspec.json.decode(event.data, type=_Tip)
            tip = SourceTip(told.height, parse_block_hash(told.hash))
        except (msgspec.DecodeError, RecursionError, MalformedChainData) as err:
            self._calls.health.count(Fault.MALFORMED, f"a tip of its can't be read: {words_of(str(err))}")
        else:
            box.offer(TipMoved(tip))

    def _count(self, err: OutboundFailure | SourceUnavailable | ValueError) -> None:
        """Counted, without a pause: who sends no events may answer questions."""
        if isinstance(err, OutboundFailure):
            fault = Fault.TIMEOUT if err.reason.endswith(".timeout") else Fault.UNREACHABLE
            self._calls.health.count(fault, f"its events broke off: {err.detail}")
        elif isinstance(err, SourceUnavailable):
            self._calls.health.count(fault_of(err), err.detail)
        else:
            self._calls.health.count(Fault.MALFORMED, f"its events can't be read: {err}")


class _Stream:
    """One event stream: `listen` reads it until it ends, and says whether anything came.

    `may_miss`: what happens while it is broken isn't told when it is open again, unless an id says since when.
    """

    def __init__(
        self, calls: SourceCalls, url: str, box: EventBox, take: Callable[[SseEvent, EventBox], None], *, may_miss: bool
    ) -> None:
        self._calls = calls
        self._url = url
        self._box = box
        self._take = take
        self._may_miss = may_miss
        self._last_id = ""
        self._was_open = False

    async def listen(self) -> bool:
        """Raises OutboundFailure, SourceUnavailable; ValueError for an event that is too large."""
        headers: Headers = await self._calls.stream_headers()
        if self._last_id:
            headers += (("Last-Event-ID", self._last_id),)
        reader, has_come = SseReader(), False
        async with self._calls.stream(self._url, headers) as stream:
            if stream.status != 200:
                raise unavailable(
                    Fault.FAILED, f"it answered {stream.status} to a wish for events", source=self._calls.name
                )
            if self._may_miss and self._was_open and not self._last_id:
                self._box.offer(EventsMissed())
            self._was_open = True
            while data := await stream.receive():
                has_come = True
                for event in reader.feed(data):
                    self._take(event, self._box)
                self._last_id = reader.last_id or self._last_id
        return has_come
