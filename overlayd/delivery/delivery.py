"""The parts that all readers share, and how a reader is made from a query."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import msgspec

from overlayd.access import Principal, require
from overlayd.access.stream_guard import StreamGuard
from overlayd.delivery.frames import FrameBook
from overlayd.delivery.matching import Matcher, MatcherBook, ViewBook, check_confirmations
from overlayd.delivery.meters import Meters
from overlayd.delivery.query import LiveQuery, Selection, Start, parse_arguments, parse_message, with_sight
from overlayd.delivery.reader import Opening, Reader
from overlayd.delivery.scanning import Judge, ScanBook, Scanner
from overlayd.delivery.settings import DeliverySettings
from overlayd.delivery.start import check_seen, open_at
from overlayd.model.clock import Clock
from overlayd.model.confirmation import ConfirmationReads, NothingConfirmed
from overlayd.model.cursor import Cursor, Epoch
from overlayd.model.errors import BadParameter
from overlayd.model.limits import Limits
from overlayd.model.memory_budget import MemoryBudget
from overlayd.model.metrics import Metrics
from overlayd.model.stream_tally import NO_TALLY, StreamTally
from overlayd.model.traces import SpanBook
from overlayd.model.wire import ConsistencyBody, LossBody
from overlayd.storage import Log


class FilterLease(Protocol):
    """A compiled filter in use, shared with everybody who asks for the same expression."""

    @property
    def judge(self) -> Judge: ...

    def release(self) -> None:
        """Once, when the reader ends."""
        ...


LeaseFilter = Callable[[str, str], FilterLease]
"""From an expression and a principal's name. Raises InvalidFilter or LimitReached."""


class Delivery:
    """Everything readers have in common: the log, settings, and what is decoded and encoded once for all."""

    def __init__(
        self, *, log: Log, limits: Limits, settings: DeliverySettings, clock: Clock, metrics: Metrics,
        lease_filter: LeaseFilter, streams: StreamGuard | None = None,
        confirmations: ConfirmationReads | None = None, memory: MemoryBudget | None = None,
        tally: StreamTally = NO_TALLY, spans: SpanBook | None = None,
    ) -> None:  # fmt: skip
        """`confirmations`: None where the node follows no chain. `memory`: what readers that are behind wait for. `tally`:
        counts by stream. `spans`: None where no traces are wanted."""
        self.memory = memory
        self.log = log
        self.limits = limits
        self.settings = settings
        self.confirmations: ConfirmationReads = confirmations or NothingConfirmed()
        self.clock = clock
        self.metrics = metrics
        self.tally = tally
        self.meters = Meters(clock, metrics, tally, spans)
        self.frames = FrameBook(settings.frame_cache, metrics)
        self.views = ViewBook(settings.decoded_cache)
        self.frames_once = FrameBook(0, metrics, counts_with=self.frames)
        self.views_once = ViewBook(0)
        """These keep nothing: for packets that only one reader gets, keeping them costs as much as an eighth of a write."""
        self._streams = streams
        self._matchers = MatcherBook(log, streams)
        self._scans = ScanBook(log)
        self._lease_filter = lease_filter

    def parse_arguments(self, arguments: Iterable[tuple[str, str]], start: Start | None = None) -> LiveQuery:
        """The query of URL arguments, as `query.parse_arguments`; counts the limits that it hits."""
        with self._counting():
            return parse_arguments(arguments, self.limits, heartbeat_s=self.settings.heartbeat, start=start)

    def parse_message(self, members: Mapping[str, Any]) -> LiveQuery:
        """The query of a `subscribe` message, as `query.parse_message`; counts the limits that it hits."""
        with self._counting():
            return parse_message(members, self.limits, heartbeat_s=self.settings.heartbeat)

    @contextmanager
    def _counting(self) -> Iterator[None]:
        try:
            yield
        except BadParameter as error:
            if error.subject == "query_terms":
                self.metrics.count_limit_hit(error.subject)
            raise

    def see(self, query: LiveQuery, who: Principal) -> LiveQuery:
        """The query, of what somebody may subscribe to. Raises Forbidden, and Unauthorized when they may no longer."""
        if self._streams is None:
            require(who, "subscribe")
            return query
        return with_sight(query, self._streams.sight(who, "subscribe", query.selection.streams))

    async def open_reader(
        self, query: LiveQuery, principal: str, horizon: Callable[[Matcher], int] | None = None
    ) -> "OpenReader":
        """A reader at the query's start. The caller closes it. Checkpoint for some starts. `horizon`: how far whoever
        follows the head for everybody has got; the reader goes no further.

        Raises what the query can be wrong about: BadParameter, BadCursor, FutureCursor, UnknownEpoch,
        ForkDetected, InvalidFilter, LimitReached.
        """
        matcher = self._matchers.matcher(query.selection)
        query = msgspec.structs.replace(query, selection=matcher.selection)  # one for all that are equal
        never = check_confirmations(matcher, self.log)
        proof = None if query.seen is None else await check_seen(self.log, query.seen, query.start)
        text = query.selection.filter
        lease = None if text is None else self._lease_filter(text, principal)
        opened = OpenReader(query, matcher, never, proof, lease)
        try:
            await self.place_reader(opened, query.start, horizon)
        except BaseException:
            opened.close()
            raise
        opened.start = opened.cursor
        return opened

    async def place_reader(
        self, opened: "OpenReader", start: Start, horizon: Callable[[Matcher], int] | None = None
    ) -> None:
        """Gives it a reader that begins there. Checkpoint for some starts. Raises as `open_reader`."""
        query, matcher = opened.query, opened.matcher
        scanner = self.scanner(matcher, opened.judge)
        opening = await open_at(self.log, scanner, start, scan_max=self.limits.scan_max)
        opened.reader = Reader(
            self.log, scanner, self._scans, opening, run_entries_max=0 if query.on_gap == "error" else self.run_entries_max,
            horizon=None if horizon is None else partial(horizon, matcher),
        )  # fmt: skip

    def scanner(self, matcher: Matcher, judge: Judge | None) -> Scanner:
        """Scans for a selection."""
        return Scanner(self.log, matcher, self.views, judge)

    def shared_reader(self, matcher: Matcher, judge: Judge | None, position: int, horizon: Callable[[], int]) -> Reader:
        """A reader for everybody who wants the same and stands at the same place."""
        scanner = self.scanner(matcher, judge)
        return Reader(
            self.log, scanner, self._scans, Opening(position), run_entries_max=self.run_entries_max, horizon=horizon
        )

    def matcher(self, selection: Selection) -> Matcher:
        """The matcher that everybody with this selection shares."""
        return self._matchers.matcher(selection)

    async def follow(self, matcher: Matcher, start: Start, judge: Judge | None) -> Reader:
        """A reader for whoever keeps its own account of what it got, with a filter that it holds itself.

        Checkpoint for some starts. Raises BadCursor, FutureCursor, UnknownEpoch.
        """
        scanner = self.scanner(matcher, judge)
        opening = await open_at(self.log, scanner, start, scan_max=self.limits.scan_max)
        return Reader(self.log, scanner, self._scans, opening, run_entries_max=self.run_entries_max)

    @property
    def run_entries_max(self) -> int:
        """A gap is told after so many entries even if it goes on: no request may end before one is told."""
        return min(self.settings.progress_entries, self.limits.scan_max // 2)

    def forget(self) -> None:
        """Drops everything that was kept of entries. For erasure, which promises that nothing of them is left."""
        self.frames.clear()
        self.views.clear()
        self._scans.clear()


class OpenReader:
    """A reader with what its owner has to say about it at the start. Close it when it isn't read any more.

    `start` is its cursor before anything was read.
    """

    __slots__ = ("_lease", "_reader", "judge", "matcher", "never", "proof", "query", "start")

    def __init__(
        self, query: LiveQuery, matcher: Matcher, never: list[str], proof: ConsistencyBody | LossBody | None,
        lease: FilterLease | None,
    ) -> None:  # fmt: skip
        self.query = query
        self.matcher = matcher
        self.never = never
        self.proof = proof
        self.judge: Judge | None = None if lease is None else lease.judge
        self.start = Cursor(Epoch(0), 0)
        self._lease = lease
        self._reader: Reader | None = None

    @property
    def reader(self) -> Reader:
        assert self._reader is not None
        return self._reader

    @reader.setter
    def reader(self, reader: Reader) -> None:
        self._reader = reader

    @property
    def cursor(self) -> Cursor:
        """Where to resume."""
        return self.reader.cursor

    @property
    def position(self) -> int:
        """The last offset that was looked at."""
        return self.reader.position

    def rest(self) -> None:
        """Lets go of the reader: somebody else reads for it."""
        self._reader = None

    def close(self) -> None:
        """Gives its filter back. Again does nothing."""
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.release()

    def __enter__(self) -> "OpenReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
