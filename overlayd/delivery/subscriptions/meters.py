"""What durable subscriptions count."""

import trio

from overlayd.delivery.subscriptions.units import Unit
from overlayd.model.metrics import Metrics
from overlayd.model.stream_tally import NO_TALLY, StreamTally

OUTCOMES = ("delivered", "retry", "disable", "undeliverable", "crashed")


class SubscriptionMeters:
    """Counters of the node, over all subscriptions: labels never hold names that clients make up."""

    def __init__(self, metrics: Metrics, tally: StreamTally = NO_TALLY) -> None:
        self.metrics = metrics
        self.tally = tally
        attempts = metrics.counter("overlayd_delivery_attempts", "Attempts to deliver, by how they ended", "outcome")
        self.attempts = {name: attempts.labels(name) for name in OUTCOMES}
        self.attempt_seconds = metrics.histogram("overlayd_delivery_attempt_seconds", "One attempt to deliver")
        self.delivered = metrics.counter(
            "overlayd_subscription_delivered", "Packets and notices that durable subscriptions took", "kind"
        )
        self.dead = metrics.counter("overlayd_dead_letters_made", "Deliveries that exhausted their retries")
        self.dead_dropped = metrics.counter(
            "overlayd_dead_letters_dropped", "Dead letters taken away because of their age or number", "cause"
        )
        self.disabled = metrics.counter("overlayd_subscriptions_disabled", "Subscriptions that were disabled")
        self.gaps_untold = metrics.counter(
            "overlayd_delivery_gaps_untold", "Gaps that stand in a subscription's attempts alone"
        )
        self.withheld = metrics.counter(
            "overlayd_delivery_withheld", "Packets passed over because the subscription's owner may not read them"
        )
        self.crashes = metrics.counter("overlayd_delivery_crashes", "Tasks of durable subscriptions that crashed")
        self.looked = metrics.counter(
            "overlayd_dispatch_entries", "Entries that the dispatcher looked at for durable subscriptions"
        )
        self.judged = metrics.counter(
            "overlayd_dispatch_judgements", "Distinct selections that the dispatcher held an entry against"
        )
        self.woken = metrics.counter("overlayd_dispatch_wakes", "Subscriptions that the dispatcher woke")

    def tell_stream(self, unit: Unit, outcome: str) -> None:
        """An attempt to push the unit ended. How long it took is measured from when it was its turn, and only of those
        that are taken at once."""
        stream = unit.items[0].stream
        if not stream:
            return
        if outcome != "delivered":
            self.tally.count_failed(stream)
            return
        count = len(unit.items)
        if unit.attempts:
            self.tally.count_sent(stream, count)
            return
        took_s = count * trio.current_time() - sum([item.arrived for item in unit.items])
        self.tally.count_sent(stream, count, round(took_s * 1e6), count)
