"""Names of a subscription as it is defined at one moment, for changes that mean only that: ETag and If-Match."""

from collections.abc import Sequence
from typing import TypeAlias

from blake3 import blake3

from overlayd.delivery.subscriptions.subscription import Subscription
from overlayd.model.clock import Entropy
from overlayd.model.errors import SubscriptionConflict
from overlayd.model.subscription import encode_subscription

_BYTES = 8
IfMatch: TypeAlias = Sequence[str] | None
"""What a change is only meant for; None: whatever there is."""


class SubscriptionTags:
    """Makes and compares them. They hold until the node is started again."""

    def __init__(self, entropy: Entropy) -> None:
        self._key = entropy.draw(blake3.key_size)

    def of(self, subscription: Subscription) -> str:
        """Which subscription, and a keyed hash of its definition: values of headers, which nobody is shown, are in it."""
        text = encode_subscription(subscription.definition)
        return f'"{subscription.id}-{blake3(text, key=self._key).hexdigest(_BYTES)}"'

    def check(self, subscription: Subscription, wanted: IfMatch) -> None:
        """Raises SubscriptionConflict for a subscription that is another, or defined in another way."""
        if wanted is None or "*" in wanted or self.of(subscription) in wanted:
            return
        raise SubscriptionConflict(
            f"{subscription.name} isn't what If-Match names: its ETag is {self.of(subscription)}",
            subject=subscription.name, hint="read the subscription again and decide anew",
        )  # fmt: skip
