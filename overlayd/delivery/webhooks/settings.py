"""Table `[webhooks]`: what may be called, and how long an old secret goes on counting. Bounds are in `[limits]`."""

from typing import Annotated

import msgspec
from msgspec import Meta

from overlayd.model.units import Duration
from overlayd.outbound.settings import OutboundSettings


class WebhookSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How webhooks are called."""

    outbound: Annotated[OutboundSettings, Meta(extra={"inline": True})] = OutboundSettings()
    secret_grace: Annotated[
        Duration, Meta(description="After a rotation requests are signed with the old secret, too, for so long")
    ] = Duration(86_400)
