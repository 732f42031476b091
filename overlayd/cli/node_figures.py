"""What `overlayd top` shows: a node's figures at two moments, and what lies between them. Pure."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from overlayd.cli.output import printable, shown_bytes
from overlayd.cli.sessions import describe_query
from overlayd.model.clock import parse_time_us
from overlayd.model.wire import SessionBody
from overlayd.model.wire_chain import ChainBody
from overlayd.model.wire_statistics import StatsBody, StreamStats
from overlayd.model.wire_subscriptions import SubscriptionBody

NO_RATE = "-"
_ERROR_CHARS = 60
T = TypeVar("T")


class Snapshot(msgspec.Struct, frozen=True):
    """A node at one moment. `chain`: None where it follows none."""

    stats: StatsBody
    subscriptions: list[SubscriptionBody]
    sessions: list[SessionBody]
    chain: ChainBody | None = None


class Section(msgspec.Struct, frozen=True):
    """A table: rows of text, the most interesting first."""

    title: str
    head: Sequence[str]
    rows: Sequence[tuple[str, ...]]


class Frame(msgspec.Struct, frozen=True):
    """Everything that is shown at once."""

    lines: list[str]
    sections: list[Section]


def frame_of(before: Snapshot | None, now: Snapshot) -> Frame:
    """What to show. Rates are those between the two moments, by the node's clock; without an earlier one there are none,
    nor where the node was started anew in between."""
    rates = _Rates(before, now)
    sections = [_streams(rates), _subscriptions(rates), _sessions(rates)]
    return Frame(_lines(rates, now), [section for section in sections if section.rows])


class _Rates:
    """The two moments."""

    def __init__(self, before: Snapshot | None, now: Snapshot) -> None:
        self.now = now
        is_same = before is not None and before.stats.started_at == now.stats.started_at
        self.before = before if is_same else None
        self._seconds = (_time_of(now) - _time_of(self.before)) / 1e6 if self.before is not None else 0.0

    def of(self, before: T | None, now: T, figure: Callable[[T], int]) -> float | None:
        """How much a figure grew a second; None where that isn't known."""
        if before is None or self._seconds <= 0:
            return None
        return max(0, figure(now) - figure(before)) / self._seconds


def _time_of(snapshot: Snapshot) -> int:
    return parse_time_us(snapshot.stats.at)


def _lines(rates: _Rates, now: Snapshot) -> list[str]:
    stats, before = now.stats, rates.before.stats if rates.before is not None else None
    inward = rates.of(before, stats, lambda one: one.messages_in)
    outward = rates.of(before, stats, lambda one: one.messages_out)
    refused = rates.of(before, stats, lambda one: one.refused)
    up_s = (parse_time_us(stats.at) - parse_time_us(stats.started_at)) // 1_000_000
    sessions, waiting, disk = stats.sessions, stats.subscriptions, stats.storage
    lines = [
        f"{printable(stats.node)}  up {_shown_span(up_s)}  head {stats.head}  {stats.at[:19]}Z",
        f"packets    in {_shown_rate(inward)}, out {_shown_rate(outward)}, refused {_shown_rate(refused)}; since they are"
        f" counted {stats.messages_in} in, {stats.messages_out} out, {stats.refused} refused"
        + ("" if stats.error_rate is UNSET else f" ({stats.error_rate:.2%})"),
        f"sessions   {sessions.websocket} websocket, {sessions.sse} sse, {sessions.ndjson} ndjson; furthest behind"
        f" {sessions.lag_entries_max}",
        f"durable    {waiting.active} active, {waiting.paused} paused, {waiting.disabled} disabled; furthest behind"
        f" {waiting.lag_entries_max}, outstanding {waiting.outstanding}, dead letters {waiting.dead_letters}",
        f"disk       {'FULL: packets are refused; ' if disk.full else ''}{shown_bytes(disk.database_bytes)} database,"
        f" {shown_bytes(disk.wal_bytes)} write-ahead log, {shown_bytes(disk.disk_free_bytes)} free;"
        f" {disk.intake_packets} packets wait",
    ]
    if now.chain is not None:
        lines.append(_chain_line(now.chain, parse_time_us(stats.at)))
    return lines


def _chain_line(chain: ChainBody, now_us: int) -> str:
    age_s = max(0, now_us - parse_time_us(chain.tip.time)) // 1_000_000
    sources = ", ".join(f"{printable(one.name)} {one.state}" for one in chain.sources)
    return (
        f"chain      {chain.network} at {chain.tip.height}, newest block {_shown_span(age_s)} old; {chain.watched} watched,"
        f" {chain.unfunded} unpaid" + (f"; {sources}" if sources else "")
    )


def _streams(rates: _Rates) -> Section:
    known = {} if rates.before is None else {one.stream: one for one in rates.before.stats.streams}
    rows = []
    for one in rates.now.stats.streams:
        old = known.get(one.stream)
        inward = rates.of(old, one, lambda one: one.messages_in)
        outward = rates.of(old, one, lambda one: one.messages_out)
        rows.append(((inward or 0.0) + (outward or 0.0), one, inward, outward))
    rows.sort(key=lambda row: -row[0])
    head = ("STREAM", "STATE", "IN/S", "OUT/S", "IN", "OUT", "REFUSED", "FAILED", "LATENCY", "READERS", "LAST PACKET")
    count = rates.now.stats.stream_count
    return Section(f"streams ({count})", head, [_stream_row(one, inward, outward) for _, one, inward, outward in rows])


def _stream_row(one: StreamStats, inward: float | None, outward: float | None) -> tuple[str, ...]:
    latency = NO_RATE if one.latency_ms_mean is UNSET else f"{one.latency_ms_mean:.3g} ms"
    last = NO_RATE if one.last_packet_at is UNSET else f"{one.last_packet_at[:19]}Z"
    return (
        one.stream, one.state, _shown_number(inward), _shown_number(outward), str(one.messages_in),
        str(one.messages_out), str(one.refused), str(one.failed), latency, str(one.subscribers), last,
    )  # fmt: skip


def _subscriptions(rates: _Rates) -> Section:
    known = {} if rates.before is None else {one.id: one for one in rates.before.subscriptions}
    rows = []
    for one in sorted(rates.now.subscriptions, key=lambda one: -one.lag_entries):
        old = known.get(one.id)
        delivered = rates.of(old, one, _delivered)
        error = printable(one.last_error)[:_ERROR_CHARS] if one.last_error is not UNSET else NO_RATE
        rows.append(
            (
                printable(one.name), one.kind, one.state, str(one.lag_entries), str(one.outstanding),
                _shown_number(delivered), _shown(one.delivered), _shown(one.failed), str(one.dead_letters), error,
            )
        )  # fmt: skip
    head = ("SUBSCRIPTION", "KIND", "STATE", "LAG", "OUTSTANDING", "OUT/S", "OUT", "FAILED", "DEAD", "LAST ERROR")
    return Section(f"durable subscriptions ({len(rows)})", head, rows)


def _sessions(rates: _Rates) -> Section:
    known = {} if rates.before is None else {one.id: one for one in rates.before.sessions}
    rows = []
    for one in sorted(rates.now.sessions, key=_lag_of, reverse=True):
        old = known.get(one.id)
        sent = rates.of(old, one, lambda one: one.messages_sent)
        reads = "; ".join(describe_query(subscription.query) for subscription in one.subscriptions)
        rows.append(
            (
                one.id, one.transport, printable(one.principal), str(_lag_of(one)), _shown_number(sent),
                str(one.messages_sent), shown_bytes(one.bytes_sent), printable(reads)[:_ERROR_CHARS],
            )
        )  # fmt: skip
    head = ("SESSION", "TRANSPORT", "WHO", "LAG", "OUT/S", "OUT", "BYTES", "READS")
    return Section(f"live sessions ({len(rows)})", head, rows)


def _lag_of(session: SessionBody) -> int:
    return max((one.lag_entries for one in session.subscriptions), default=0)


def _delivered(subscription: SubscriptionBody) -> int:
    return 0 if isinstance(subscription.delivered, UnsetType) else subscription.delivered


def _shown(value: int | UnsetType) -> str:
    return NO_RATE if isinstance(value, UnsetType) else str(value)


def _shown_number(rate: float | None) -> str:
    if rate is None:
        return NO_RATE
    return f"{rate:.0f}" if rate >= 10 or rate == 0 else f"{rate:.1f}"


def _shown_rate(rate: float | None) -> str:
    return NO_RATE if rate is None else f"{_shown_number(rate)}/s"


def _shown_span(seconds: int) -> str:
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
