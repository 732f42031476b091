"""Table `[delivery]`: how live readers are served."""

from typing import Annotated

import msgspec
from msgspec import Meta

from overlayd.delivery.subscriptions.settings import SubscriptionSettings
from overlayd.model.units import Duration, Size


class DeliverySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Pace of live sessions. How many there may be is in `[limits]`."""

    heartbeat: Annotated[
        Duration, Meta(description="A session that got nothing for so long gets a heartbeat, unless it asks otherwise")
    ] = Duration(15)
    ping_interval: Annotated[
        Duration, Meta(description="Pause between pings to a WebSocket peer; it answers within limits.pong_timeout")
    ] = Duration(30)
    progress_interval: Annotated[
        Duration, Meta(description="A search that finds nothing moves the resume point at least this often")
    ] = Duration(30)
    progress_entries: Annotated[
        int, Meta(ge=1, description="A search that finds nothing moves the resume point after so many entries")
    ] = 10_000
    sse_retry: Annotated[Duration, Meta(description="SSE clients are told to wait so long before they reconnect")] = (
        Duration(3)
    )
    bye_retry: Annotated[
        Duration, Meta(description="At shutdown, sessions are told to wait so long before they reconnect")
    ] = Duration(2)
    close_timeout: Annotated[
        Duration, Meta(description="A WebSocket that is being closed may take so long to take its last frames")
    ] = Duration(2)
    frame_cache: Annotated[Size, Meta(description="Encoded frames kept for readers at the same place")] = Size(8 << 20)
    decoded_cache: Annotated[Size, Meta(description="Decoded entries kept for readers at the same place")] = Size(
        16 << 20
    )
    subscriptions: Annotated[SubscriptionSettings, Meta(description="How durable subscriptions are served")] = (
        SubscriptionSettings()
    )
