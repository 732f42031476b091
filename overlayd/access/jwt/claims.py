"""What the claims of a token are worth here: a name, scopes and a quota policy. Pure.

The issuer is trusted for what it says, but not every text in a claim was chosen by it: a user's name, say, may be
anything. So a text that is put into a scope must be what the scope's author reckoned with: one token of a stream's
name where it says {token}, a pattern where it says {pattern}.
"""

from collections.abc import Iterator
from typing import Any, TypeAlias

import msgspec

from overlayd.access.jwt.settings import SCOPE, JwtGrantSettings, JwtSettings
from overlayd.access.roles import RoleBook
from overlayd.access.scopes import Grants, Scope, grants_of, parse_scope
from overlayd.model.errors import BadParameter, Unauthorized
from overlayd.model.names import Pattern

Claims: TypeAlias = dict[str, Any]
NAME_CHARS_MAX = 128
VALUES_MAX = 100
"""Texts of one claim that are looked at."""
POLICY_CHARS_MAX = 64


class Worth(msgspec.Struct, frozen=True):
    """Who the token is about, and what they may do."""

    name: str
    grants: Grants
    policy: str


def judge_claims(claims: Claims, issuer: JwtSettings, roles: RoleBook) -> Worth:
    """Raises Unauthorized when the claims don't say who somebody is. Texts that fit no template give nothing."""
    scopes = set(roles.scopes_of(issuer.scopes, issuer.roles))
    for grant in issuer.grants:
        for text in _texts_of(find_claim(claims, grant.claim)):
            if not grant.value or text == grant.value:
                scopes |= _scopes_of(grant, text, roles)
    return Worth(_name_of(claims, issuer), grants_of(scopes), _policy_of(claims, issuer))


def find_claim(claims: Claims, name: str) -> Any:
    """A claim by its whole name, or else by the way to it through objects, with dots; None when it isn't there."""
    if name in claims:
        return claims[name]
    found: Any = claims
    for word in name.split("."):
        found = found.get(word) if isinstance(found, dict) else None
    return found


def _texts_of(value: Any) -> Iterator[str]:
    """A claim's texts: itself taken apart at spaces, as OAuth's `scope` is, or those of a list."""
    items = value.split(" ") if isinstance(value, str) else value if isinstance(value, list) else ()
    for item in items[:VALUES_MAX]:
        if isinstance(item, str) and item:
            yield item


def _scopes_of(grant: JwtGrantSettings, text: str, roles: RoleBook) -> frozenset[Scope]:
    found = set(roles.scopes_of((), grant.roles))
    for template in grant.scopes:
        scope = _fill(template, text)
        if scope is not None:
            found.add(scope)
    return frozenset(found)


def _fill(template: str, text: str) -> Scope | None:
    """The scope with the text in its places; None when the text doesn't fit."""
    try:
        if template == SCOPE:
            return parse_scope(text)
        if "{token}" in template and not _is_token(text):
            return None
        if "{pattern}" in template:
            Pattern(text)
        return parse_scope(template.replace("{token}", text).replace("{pattern}", text))
    except BadParameter:
        return None


def _is_token(text: str) -> bool:
    if "." in text or "*" in text or ">" in text:
        return False
    Pattern(text)
    return True


def _name_of(claims: Claims, issuer: JwtSettings) -> str:
    name = find_claim(claims, issuer.name_claim)
    if not isinstance(name, str) or not 0 < len(name) <= NAME_CHARS_MAX or not name.isprintable() or " " in name:
        raise Unauthorized(
            f"the token's claim {issuer.name_claim} doesn't name anybody", subject="token",
            hint=f"it must be a text of at most {NAME_CHARS_MAX} printable characters without spaces",
        )  # fmt: skip
    return name


def _policy_of(claims: Claims, issuer: JwtSettings) -> str:
    """An unknown policy isn't passed over: whoever has it is refused where quotas are asked."""
    named = find_claim(claims, issuer.policy_claim) if issuer.policy_claim else None
    if isinstance(named, str) and named:
        return named[:POLICY_CHARS_MAX]
    return issuer.policy
