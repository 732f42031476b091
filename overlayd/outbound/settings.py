"""How other servers are called. The bounds are in `[limits]`; which table the rest stands in is the caller's choice."""

from typing import Annotated

import msgspec
from msgspec import Meta

from overlayd.outbound.networks import parse_networks


class OutboundSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What may be called, and whom we trust there."""

    allow_private: Annotated[
        tuple[str, ...],
        Meta(
            description='Networks that may be called although they are private, loopback or reserved: ["127.0.0.0/8"]. Whoever may subscribe can then have requests sent there'
        ),
    ] = ()
    ports: Annotated[
        tuple[Annotated[int, Meta(ge=1, le=65535)], ...],
        Meta(
            description="The only ports that may be called; empty: all but those of other protocols, such as 22 and 25"
        ),
    ] = ()
    ca_file: Annotated[
        str,
        Meta(description="File of further certificate authorities (PEM) to trust; empty: the system's alone"),
    ] = ""

    def __post_init__(self) -> None:
        """Raises ValueError for networks that make no sense."""
        parse_networks(self.allow_private)
