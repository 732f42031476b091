"""Traces: what happened to a packet from its publishing to its deliveries, told to a collector of the admin's.

A trace goes through the log by the packet's `traceparent` (W3C Trace Context), which stands in its entry. The span of the
append has an id that follows from the packet's place in the log, so that a delivery finds its parent without asking
anybody, days later and after a restart.

Only the event loop's thread writes spans down: into a bounded queue, in memory, without waiting.
"""

import random
from collections import deque
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Literal, TypeAlias

import msgspec
import trio

from overlayd.model.clock import Clock, Entropy
from overlayd.model.metrics import Metrics

Kind: TypeAlias = Literal["internal", "server", "client", "producer"]
Attributes: TypeAlias = tuple[tuple[str, str | int], ...]
_SAMPLED = frozenset("13579bdf")
_TRACE = slice(3, 35)
_PARENT = slice(36, 52)


class Span(msgspec.Struct, frozen=True, gc=False):
    """One step of a trace. Ids are hex; `parent` is "" for the first. Times are Unix microseconds. `error`: a code, ""
    when it went well."""

    trace: str
    id: str
    parent: str
    name: str
    kind: Kind
    start_us: int
    end_us: int
    attributes: Attributes = ()
    error: str = ""


class Followed(msgspec.Struct, frozen=True, gc=False):
    """A packet that was appended within a trace. `is_root`: the node began it, and its publishing is the trace's first
    span."""

    traceparent: str
    stream: str
    epoch: int
    offset: int
    sequence: int
    appended_us: int
    is_root: bool = False


class SpanBook:
    """Spans that wait to be sent. One for the node, if traces are wanted."""

    def __init__(
        self, *, sample: float, spans_max: int, packets_max: int, clock: Clock, entropy: Entropy, chance: random.Random,
        metrics: Metrics,
    ) -> None:  # fmt: skip
        """`sample`: the share of requests without a trace that begin one. `packets_max`: packets of one request, or one
        write, that are followed."""
        self._sample = sample
        self._spans_max = spans_max
        self._packets_max = packets_max
        self._clock = clock
        self._entropy = entropy
        self._chance = chance
        self._metrics = metrics
        self._waiting: deque[Span] = deque()
        self._dropped = metrics.counter(
            "overlayd_trace_spans_dropped", "Spans that found no room among those that wait to be sent"
        )
        metrics.gauge("overlayd_trace_spans_waiting", "Spans that wait to be sent").set_function(
            lambda: len(self._waiting)
        )

    def __len__(self) -> int:
        return len(self._waiting)

    def __repr__(self) -> str:
        return f"SpanBook(waiting={len(self._waiting)})"

    def begin(self) -> str:
        """A trace for a request that has none, "" when it isn't to be followed."""
        if self._chance.random() >= self._sample:
            return ""
        return f"00-{self._entropy.draw(16).hex()}-{self.new_id()}-01"

    def new_id(self) -> str:
        """A span's."""
        return self._entropy.draw(8).hex()

    def add(self, span: Span) -> None:
        """Takes it, or drops it where there is no room. Neither waits nor fails."""
        if len(self._waiting) >= self._spans_max:
            self._dropped.inc()
            self._metrics.count_limit_hit("spans_max")
            return
        self._waiting.append(span)

    def take(self, count: int) -> list[Span]:
        """The oldest ones, which leave the queue."""
        return [self._waiting.popleft() for _ in range(min(count, len(self._waiting)))]

    def published(self, stream: str, packets: Sequence[Followed], started: float) -> None:
        """A request's packets are durable; `started` (`trio.current_time()`): when they were in memory."""
        now_us = self._clock.now_us()
        start_us = now_us - round((trio.current_time() - started) * 1e6)
        spans: dict[str, str] = {}
        counts: dict[str, int] = {}
        for packet in packets:
            counts[packet.traceparent] = counts.get(packet.traceparent, 0) + 1
        if len(packets) > self._packets_max:
            self._metrics.count_limit_hit("packets_max")
        for packet in packets[: self._packets_max]:
            trace = packet.traceparent
            if trace not in spans:
                spans[trace] = id = trace[_PARENT] if packet.is_root else self.new_id()
                parent = "" if packet.is_root else trace[_PARENT]
                told: Attributes = (*_about(stream), ("messaging.batch.message_count", counts[trace]))
                self.add(Span(trace[_TRACE], id, parent, f"publish {stream}", "server", start_us, now_us, told))
            place: Attributes = (("overlayd.offset", packet.offset), ("overlayd.sequence", packet.sequence))
            self.add(
                Span(
                    trace[_TRACE], append_span(packet.epoch, packet.offset), spans[trace], f"append {stream}", "internal",
                    min(packet.appended_us, now_us), now_us, (*_about(stream), *place),
                )
            )  # fmt: skip

    def refused(self, stream: str, traceparent: str, code: str, started: float) -> None:
        """A request that came with a trace was refused as a whole."""
        now_us = self._clock.now_us()
        start_us = now_us - round((trio.current_time() - started) * 1e6)
        self.add(
            Span(
                traceparent[_TRACE], self.new_id(), traceparent[_PARENT], f"publish {stream}", "server", start_us, now_us,
                _about(stream), code,
            )
        )  # fmt: skip

    def delivered(self, packets: Iterable[Followed], attributes: Attributes, *, is_live: bool) -> None:
        """They were written to a reader, or to several. `is_live`: who waited for them."""
        now_us = self._clock.now_us()
        for number, packet in enumerate(packets):
            if number >= self._packets_max:
                self._metrics.count_limit_hit("packets_max")
                return
            start_us = min(packet.appended_us, now_us) if is_live else now_us
            self.add(self._delivery(packet, self.new_id(), start_us, now_us, "producer", attributes, ""))

    def attempted(
        self, packets: Sequence[tuple[Followed, str]], start_us: int, attributes: Attributes, error: str
    ) -> None:
        """An attempt to push packets ended; with each the id that its span was given beforehand."""
        now_us = self._clock.now_us()
        for packet, id in packets:
            self.add(self._delivery(packet, id, min(start_us, now_us), now_us, "client", attributes, error))

    def to_push(self, packets: Iterable[Followed]) -> list[tuple[Followed, str]]:
        """Packets that will be pushed, one of each trace, with the id of the span that the attempt will be."""
        chosen: dict[str, Followed] = {}
        for packet in packets:
            if len(chosen) >= self._packets_max:
                self._metrics.count_limit_hit("packets_max")
                break
            chosen.setdefault(packet.traceparent[_TRACE], packet)
        return [(packet, self.new_id()) for packet in chosen.values()]

    def _delivery(
        self, packet: Followed, id: str, start_us: int, end_us: int, kind: Kind, attributes: Attributes, error: str
    ) -> Span:
        told: Attributes = (*_about(packet.stream), ("overlayd.offset", packet.offset), *attributes)
        parent = append_span(packet.epoch, packet.offset)
        return Span(
            packet.traceparent[_TRACE], id, parent, f"deliver {packet.stream}", kind, start_us, end_us, told, error
        )


def is_sampled(traceparent: str) -> bool:
    """Whether whoever began the trace wants it written down; `traceparent` may be ""."""
    return traceparent[-1:] in _SAMPLED and bool(traceparent)


def append_span(epoch: int, offset: int) -> str:
    """The id of the span in which the entry was appended: the same for everybody, at any time."""
    return blake2b(f"{epoch}-{offset}".encode(), digest_size=8).hexdigest()


def hand_on(packet: Followed, span: str) -> str:
    """What is handed on to who gets the packet: their spans stand below ours."""
    return f"00-{packet.traceparent[_TRACE]}-{span}-01"


def _about(stream: str) -> Attributes:
    return ("messaging.system", "overlayd"), ("messaging.destination.name", stream)
