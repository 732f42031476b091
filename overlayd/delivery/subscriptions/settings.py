"""Table `[delivery.subscriptions]`: how durable subscriptions are served. How many there may be is in `[limits]`."""

from typing import Annotated

import msgspec
from msgspec import Meta

from overlayd.model.units import Duration


class SubscriptionSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Pace and patience of durable subscriptions."""

    disable_after: Annotated[
        Duration, Meta(description="A subscription with nothing but failures for so long is disabled")
    ] = Duration(5 * 86_400)
    dead_letter_retention: Annotated[Duration, Meta(description="Dead letters are kept for so long")] = Duration(
        168 * 3600
    )
    position_interval: Annotated[
        Duration, Meta(description="The position that idle subscriptions share is written down this often at most")
    ] = Duration(5)
    drain_timeout: Annotated[
        Duration, Meta(description="Shutdown waits so long for deliveries in flight; they are repeated otherwise")
    ] = Duration(5)
