"""What durable subscriptions count."""

from overlayd.model.metrics import Metrics

OUTCOMES = ("delivered", "retry", "disable", "undeliverable", "crashed")


class SubscriptionMeters:
    """Counters of the node, over all subscriptions: labels never hold names that clients make up."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics
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
