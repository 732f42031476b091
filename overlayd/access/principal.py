"""Principals: who a request is from and which rights that gives (docs/security.md, Who may do what)."""

from typing import Literal

import msgspec

from overlayd.access.scopes import RIGHTS, Grants, Right, Scope, grants_of
from overlayd.model.errors import Forbidden, Unauthorized
from overlayd.model.names import NODE_PREFIX, is_node_name

PrincipalKind = Literal["unix", "loopback", "open", "key", "jwt", "identity", "certificate", "ticket", "source"]
Visibility = Literal["private", "public"]

EVERYDAY: frozenset[Right] = frozenset(("publish", "read", "subscribe"))
EVERYTHING: frozenset[Right] = frozenset(RIGHTS)
AUDIT_STREAM = "overlayd.audit"
NO_GRANTS = grants_of(())


class Standing:
    """Whether a credential still counts: shared by everybody who was let in by it, ended once and for good.

    `ended`: why it doesn't count any more, `revoked`, `expired`, or `changed` when other rights go with it now.
    `is_used`: set with each request, for whoever notes when it was used last.
    """

    __slots__ = ("ended", "is_used")

    def __init__(self) -> None:
        self.ended: str = ""
        self.is_used = False

    def __repr__(self) -> str:
        return f"Standing({self.ended or 'good'})"


ALWAYS = Standing()
"""Of principals that nothing can end, such as the service's own user on the Unix socket."""


class StreamFacts(msgspec.Struct, frozen=True):
    """What a decision about one stream looks at. `owner`: who created it with a credential, "" for nobody."""

    name: str
    visibility: Visibility = "private"
    owner: str = ""


class Principal(msgspec.Struct, frozen=True):
    """Who asks.

    `name` is stored with what they publish and written to the access log: `unix:<uid>`, `loopback`,
    `open:<address>`, `key:<id>`. `address` is what limits per address count: an IP address, or `uid:<uid>` of a
    Unix peer. `may_create`: publishing to an unknown stream creates it. `rights` hold over every stream, `grants`
    over the streams that their patterns name. `owner`: who the credential belongs to, "" without one. `expires_us`:
    when the credential ends by itself, 0 for never. `policy`: name of the quota policy, "" for none.
    `identity_key`: the public key that was proven, 66 hex digits, "" for none.
    """

    name: str
    kind: PrincipalKind
    rights: frozenset[Right]
    address: str
    may_create: bool = False
    grants: Grants = NO_GRANTS
    owner: str = ""
    standing: Standing = ALWAYS
    expires_us: int = 0
    policy: str = ""
    identity_key: str = ""


def may(principal: Principal, right: Right, stream: str | StreamFacts | None = None) -> bool:
    """The one decision: whether the principal has the right over the stream; without one, over the whole node.

    A stream given by name alone counts as private and nobody's. A public stream may be read and subscribed to by
    every principal. Of the node's own streams, `overlayd.audit` is for those with `audit`, the others are for those
    whose pattern names them and for `admin`; nobody publishes into them or manages them.
    """
    if stream is None:
        return right in principal.rights
    name = stream if isinstance(stream, str) else stream.name
    if is_node_name(name):
        return _may_own_streams(principal, right, name)
    if right in principal.rights or principal.grants.is_over(right, name):
        return True
    if isinstance(stream, str):
        return False
    if stream.visibility == "public" and right in ("read", "subscribe"):
        return True
    return right in principal.grants.own and stream.owner != "" and stream.owner == principal.owner


def may_hold(principal: Principal, scope: Scope) -> bool:
    """Whether the principal has everything that the scope allows, so that it may hand the scope on."""
    if scope.right in principal.rights and scope.pattern.split(".")[0] != NODE_PREFIX:
        return True
    return principal.grants.is_wider(scope) or sees_everything(principal, scope.right)


def may_some(principal: Principal, right: Right) -> bool:
    """Whether the principal has the right over anything at all: what a request needs to be looked at further."""
    return right in principal.rights or right in principal.grants.rights


def require(principal: Principal, right: Right, *, stream: str | None = None, facts: StreamFacts | None = None) -> None:
    """Raises Forbidden when the principal lacks the right over the stream; without a stream, over the whole node.

    `facts` where the stream is known, so that its visibility and its owner count. Raises Unauthorized when the
    credential has ended since the principal was made: whoever works on for long asks again now and then.
    """
    check_standing(principal)
    asked = stream if facts is None else facts
    if may(principal, right, asked):
        return
    name = asked.name if isinstance(asked, StreamFacts) else asked
    raise _refusal(principal, right, f"{right} {name}" if name else f"{right} here", name or right)


def require_some(principal: Principal, right: Right) -> None:
    """Raises Forbidden when the principal has the right over no stream at all, Unauthorized as `require`."""
    check_standing(principal)
    if not may_some(principal, right):
        raise _refusal(principal, right, f"{right} here", right)


def check_standing(principal: Principal) -> None:
    """Raises Unauthorized when the credential doesn't count any more."""
    if principal.standing.ended:
        raise Unauthorized(
            f"the credential of {principal.name} was {principal.standing.ended} in the meantime",
            subject=principal.name, hint="connect again, with a credential that counts",
        )  # fmt: skip


def sees_everything(principal: Principal, right: Right) -> bool:
    """Whether no stream is hidden from the principal, the node's own included."""
    return right in principal.rights and "admin" in principal.rights and "audit" in principal.rights


def _may_own_streams(principal: Principal, right: Right, name: str) -> bool:
    if right not in ("read", "subscribe"):
        return False
    if name == AUDIT_STREAM:
        return "audit" in principal.rights
    return "admin" in principal.rights or principal.grants.is_over(right, name)


def _refusal(principal: Principal, right: Right, what: str, subject: str) -> Forbidden:
    if principal.kind in ("unix", "loopback", "open"):
        hint = (
            "use a key that has the right, or the Unix socket overlayd.sock in the data directory, as the service's "
            "user or as root"
        )
    else:
        hint = f"the credential's scopes would have to hold {right}"
    return Forbidden(f"{principal.name} may not {what}", subject=subject, hint=hint)
