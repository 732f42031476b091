"""Principals: who a request is from and which rights that gives (docs/security.md, Who may do what)."""

from typing import Literal

import msgspec

from overlayd.access.scopes import RIGHTS, Grants, Right, Scope, grants_of
from overlayd.model.errors import Forbidden
from overlayd.model.names import is_node_name

PrincipalKind = Literal["unix", "loopback", "open", "key", "jwt", "identity", "certificate", "ticket"]
Visibility = Literal["private", "public"]

EVERYDAY: frozenset[Right] = frozenset(("publish", "read", "subscribe"))
EVERYTHING: frozenset[Right] = frozenset(RIGHTS)
AUDIT_STREAM = "overlayd.audit"
NO_GRANTS = grants_of(())


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
    over the streams that their patterns name. `owner`: who the credential belongs to, "" without one.
    """

    name: str
    kind: PrincipalKind
    rights: frozenset[Right]
    address: str
    may_create: bool = False
    grants: Grants = NO_GRANTS
    owner: str = ""


def scoped_principal(
    name: str, kind: PrincipalKind, scopes: frozenset[Scope], *, address: str, owner: str, may_create: bool = False
) -> Principal:
    """A principal whose rights are those of its scopes."""
    grants = grants_of(scopes)
    return Principal(
        name=name, kind=kind, rights=grants.everywhere, address=address, may_create=may_create, grants=grants,
        owner=owner,
    )  # fmt: skip


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


def may_some(principal: Principal, right: Right) -> bool:
    """Whether the principal has the right over anything at all: what a request needs to be looked at further."""
    return right in principal.rights or right in principal.grants.rights


def require(principal: Principal, right: Right, *, stream: str | None = None, facts: StreamFacts | None = None) -> None:
    """Raises Forbidden when the principal lacks the right over the stream; without a stream, over the whole node.

    `facts` where the stream is known, so that its visibility and its owner count.
    """
    asked = stream if facts is None else facts
    if may(principal, right, asked):
        return
    name = asked.name if isinstance(asked, StreamFacts) else asked
    raise _refusal(principal, right, f"{right} {name}" if name else f"{right} here", name or right)


def require_some(principal: Principal, right: Right) -> None:
    """Raises Forbidden when the principal has the right over no stream at all."""
    if not may_some(principal, right):
        raise _refusal(principal, right, f"{right} here", right)


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
