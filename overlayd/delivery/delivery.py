"""The parts that all readers share, and how a reader is made from a query."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from overlayd.delivery.frames import FrameBook
from overlayd.delivery.matching import Matcher, MatcherBook, PacketView, ViewBook, check_confirmations
from overlayd.delivery.meters import Meters
from overlayd.delivery.query import LiveQuery, Selection, Start, parse_arguments, parse_message
from overlayd.delivery.reader import Reader
from overlayd.delivery.scanning import Judge, ScanBook, Scanner
from overlayd.delivery.settings import DeliverySettings
from overlayd.delivery.start import check_seen, open_at
from overlayd.model.clock import Clock
from overlayd.model.entry import StoredEntry
from overlayd.model.errors import BadParameter
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
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
        lease_filter: LeaseFilter,
    ) -> None:  # fmt: skip
        self.log = log
        self.limits = limits
        self.settings = settings
        self.clock = clock
        self.metrics = metrics
        self.meters = Meters(clock, metrics)
        self.frames = FrameBook(settings.frame_cache, metrics)
        self._views = ViewBook(settings.decoded_cache)
        self._matchers = MatcherBook(log)
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

    async def open_reader(self, query: LiveQuery, principal: str) -> "OpenReader":
        """A reader at the query's start. The caller closes it. Checkpoint for some starts.

        Raises what the query can be wrong about: BadParameter, BadCursor, FutureCursor, UnknownEpoch,
        ForkDetected, InvalidFilter, LimitReached.
        """
        matcher = self._matchers.matcher(query.selection)
        never = check_confirmations(matcher, self.log)
        proof = None if query.seen is None else await check_seen(self.log, query.seen, query.start)
        text = query.selection.filter
        lease = None if text is None else self._lease_filter(text, principal)
        try:
            scanner = Scanner(self.log, matcher, self._views, None if lease is None else lease.judge)
            opening = await open_at(self.log, scanner, query.start, scan_max=self.limits.scan_max)
        except BaseException:
            if lease is not None:
                lease.release()
            raise
        # A gap that ends the reading needn't wait for its own end, and no request may end before one is told.
        run_entries_max = min(self.settings.progress_entries, self.limits.scan_max // 2)
        if query.on_gap == "error":
            run_entries_max = 0
        reader = Reader(self.log, scanner, self._scans, opening, run_entries_max=run_entries_max)
        return OpenReader(query, reader, never, proof, lease)

    def matcher(self, selection: Selection) -> Matcher:
        """The matcher that everybody with this selection shares."""
        return self._matchers.matcher(selection)

    def view(self, entry: StoredEntry, stream: str) -> PacketView:
        """A packet's entry with its meta decoded. Raises VerificationFailed."""
        return self._views.view(entry, stream)

    async def follow(self, matcher: Matcher, start: Start, judge: Judge | None) -> Reader:
        """A reader for whoever keeps its own account of what it got, with a filter that it holds itself.

        Checkpoint for some starts. Raises BadCursor, FutureCursor, UnknownEpoch.
        """
        scanner = Scanner(self.log, matcher, self._views, judge)
        opening = await open_at(self.log, scanner, start, scan_max=self.limits.scan_max)
        entries_max = min(self.settings.progress_entries, self.limits.scan_max // 2)
        return Reader(self.log, scanner, self._scans, opening, run_entries_max=entries_max)

    def forget(self) -> None:
        """Drops everything that was kept of entries. For erasure, which promises that nothing of them is left."""
        self.frames.clear()
        self._views.clear()
        self._scans.clear()


class OpenReader:
    """A reader with what its owner has to say about it at the start. Close it when it isn't read any more.

    `start` is its cursor before anything was read.
    """

    def __init__(
        self, query: LiveQuery, reader: Reader, never: list[str], proof: ConsistencyBody | LossBody | None,
        lease: FilterLease | None,
    ) -> None:  # fmt: skip
        self.query = query
        self.reader = reader
        self.start = reader.cursor
        self.never = never
        self.proof = proof
        self._lease = lease

    def close(self) -> None:
        """Gives its filter back. Again does nothing."""
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.release()

    def __enter__(self) -> "OpenReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
