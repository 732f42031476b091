"""What durable subscriptions use: counted at each attempt and each fetch, and told as a whole when a run of them is over.

A run is what one subscription was given from one address in an hour or less: it ends when the hour is over, when the
address is another one, and when the subscription is paused, disabled or deleted, or the node ends.
"""

from collections.abc import Callable
from urllib.parse import urlsplit

import trio

from overlayd.delivery.subscriptions.content import Parcel, body_bytes
from overlayd.delivery.subscriptions.subscription import Subscription
from overlayd.model.clock import Clock
from overlayd.model.cursor import Cursor
from overlayd.model.outlet import AttemptResult
from overlayd.model.subscription import WebhookRule
from overlayd.model.usage import EndedDelivery, Method, UsageSink

RUN_S = 3600.0
_ALL_PPM = 1_000_000
_EVERYTHING = ">"
_SEVERAL = ""


class _Run:
    """Sums since `started_us`."""

    __slots__ = (
        "address", "bytes", "errors", "latencies", "latency_us", "method", "number", "over_at", "packets", "reason",
        "started_us",
    )  # fmt: skip

    def __init__(self, method: Method, address: str, started_us: int, number: int) -> None:
        self.method: Method = method
        self.address = address
        self.started_us = started_us
        self.number = number
        self.over_at = trio.current_time() + RUN_S
        self.packets = self.bytes = self.errors = self.latency_us = self.latencies = 0
        self.reason = ""


class SubscriptionUsage:
    """Tells a `UsageSink` what subscriptions were given, if anybody counts."""

    def __init__(
        self,
        sink: Callable[[], UsageSink | None],
        clock: Clock,
        position: Callable[[], Cursor],
        head: Callable[[], int],
    ) -> None:
        """`position`: the dispatcher's; `head`: of the log."""
        self._sink = sink
        self._clock = clock
        self._position = position
        self._head = head
        self._runs: dict[int, tuple[Subscription, _Run]] = {}
        self._made = 0

    def __repr__(self) -> str:
        return f"SubscriptionUsage(runs={len(self._runs)})"

    def note_attempt(self, subscription: Subscription, parcel: Parcel, result: AttemptResult) -> None:
        """An attempt to push ended."""
        sink, webhook = self._sink(), subscription.definition.webhook
        if sink is None:
            return
        method: Method = "agent" if subscription.definition.kind == "agent" else "webhook"
        is_taken = result.outcome == "delivered"
        packets = len(parcel.messages) if is_taken and parcel.kind == "packets" else 0
        size = body_bytes(parcel.messages) if is_taken else 0
        sink.delivered(
            parcel.stream, subscription.reading.principal, method, requests=1, errors=not is_taken, packets=packets,
            bytes=size, latency_us=result.duration_us, latencies=1,
        )  # fmt: skip
        address = (urlsplit(webhook.url).hostname or "") if isinstance(webhook, WebhookRule) else ""
        run = self._run(subscription, method, address)
        run.packets += packets
        run.bytes += size
        run.errors += not is_taken
        run.reason = result.reason
        run.latency_us += result.duration_us
        run.latencies += 1

    def note_fetched(self, subscription: Subscription, by_stream: dict[str, tuple[int, int]], address: str) -> None:
        """A worker fetched so many packets and bytes of each stream."""
        sink = self._sink()
        if sink is None:
            return
        method: Method = "agent" if subscription.definition.kind == "agent" else "pull"
        run = self._run(subscription, method, address)
        requests = 1
        for stream, (packets, size) in by_stream.items():
            sink.delivered(
                stream, subscription.reading.principal, method, packets=packets, bytes=size, requests=requests
            )  # fmt: skip
            requests = 0
            run.packets += packets
            run.bytes += size

    def note_lost(self, subscription: Subscription) -> None:
        """A lease ran out, or was given back."""
        sink = self._sink()
        if sink is not None:
            method: Method = "agent" if subscription.definition.kind == "agent" else "pull"
            sink.delivered(_SEVERAL, subscription.reading.principal, method, packets=0, bytes=0, errors=1)
            found = self._runs.get(subscription.number)
            if found is not None:
                found[1].errors += 1

    def close(self, subscription: Subscription, reason: str = "") -> None:
        """Nothing more is given to it for now. Again does nothing."""
        found = self._runs.pop(subscription.number, None)
        sink = self._sink()
        if found is not None and sink is not None:
            sink.ended(self._ended(subscription, found[1], reason))

    def close_old(self) -> None:
        """Ends the runs whose hour is over."""
        now = trio.current_time()
        for subscription, run in list(self._runs.values()):
            if run.over_at <= now:
                self.close(subscription)

    def close_all(self) -> None:
        """The node ends."""
        for subscription, _ in list(self._runs.values()):
            self.close(subscription, "the node ended")

    def _run(self, subscription: Subscription, method: Method, address: str) -> _Run:
        found = self._runs.get(subscription.number)
        if found is not None and found[1].address != address:
            self.close(subscription)
            found = None
        if found is None:
            self._made += 1
            found = (subscription, _Run(method, address, self._clock.now_us(), self._made))
            self._runs[subscription.number] = found
        return found[1]

    def _ended(self, subscription: Subscription, run: _Run, reason: str) -> EndedDelivery:
        head, floor = self._head(), subscription.floor(self._position()).offset
        streams = subscription.definition.streams or (_EVERYTHING,)
        return EndedDelivery(
            session=f"{subscription.id}-{run.number}", stream=streams[0] if len(streams) == 1 else _SEVERAL,
            principal=subscription.reading.principal, method=run.method, address=run.address,
            started_us=run.started_us, ended_us=self._clock.now_us(), packets=run.packets, bytes=run.bytes,
            errors=run.errors, errors_told=run.errors,
            completed_ppm=_ALL_PPM if floor >= head else floor * _ALL_PPM // head,
            reason=reason or run.reason, latency_us=run.latency_us // run.latencies if run.latencies else 0,
        )  # fmt: skip
