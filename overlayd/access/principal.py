"""Principals: who a request is from and which rights that gives (docs/security.md, Who may do what)."""

from typing import Literal

import msgspec

from overlayd.model.errors import Forbidden

Right = Literal["publish", "read", "subscribe", "manage", "admin"]
PrincipalKind = Literal["unix", "loopback", "open"]

EVERYDAY: frozenset[Right] = frozenset(("publish", "read", "subscribe"))
EVERYTHING: frozenset[Right] = EVERYDAY | {"manage", "admin"}


class Principal(msgspec.Struct, frozen=True):
    """Who asks.

    `name` is stored with what they publish and written to the access log: `unix:<uid>`, `loopback`,
    `open:<address>`. `address` is what limits per address count: an IP address, or `uid:<uid>` of a Unix
    peer. `may_create`: publishing to an unknown stream creates it. `policy`: name of the quota policy, "" for none.
    """

    name: str
    kind: PrincipalKind
    rights: frozenset[Right]
    address: str
    may_create: bool = False
    policy: str = ""


def require(principal: Principal, right: Right) -> None:
    """Raises Forbidden when the principal lacks the right."""
    if right in principal.rights:
        return
    raise Forbidden(
        f"{principal.name} may not {right} here", subject=right,
        hint="use the Unix socket overlayd.sock in the data directory, as the service's user or as root",
    )  # fmt: skip
