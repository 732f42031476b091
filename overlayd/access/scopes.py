"""Scopes: a right over the streams under a pattern, as keys and roles name them (docs/security.md, Scopes and roles)."""

from collections.abc import Iterable
from typing import Literal, get_args

import msgspec

from overlayd.model.errors import BadParameter
from overlayd.model.names import NODE_PREFIX, Pattern

Right = Literal["publish", "read", "subscribe", "manage", "admin", "agent", "audit"]

RIGHTS: tuple[Right, ...] = get_args(Right)
NODE_RIGHTS: frozenset[Right] = frozenset(("admin", "agent", "audit"))
"""Rights over the node itself: they take no pattern."""
EVERYWHERE = ">"
OWN = "@own"
"""Stands where a pattern stands: the streams that the principal's owner created."""
DECISIONS_KEPT = 4096
GRANTS_KEPT = 1024
_HINT = (
    "a scope is a right (publish, read, subscribe, manage, admin, agent, audit), and for the first four maybe a colon "
    "and a pattern over streams such as weather.*, or @own"
)


class Scope(msgspec.Struct, frozen=True):
    """One right over the streams under one pattern."""

    right: Right
    pattern: str = EVERYWHERE

    def __str__(self) -> str:
        return self.right if self.pattern == EVERYWHERE else f"{self.right}:{self.pattern}"


def parse_scope(text: str) -> Scope:
    """From `read` or `read:weather.*` or `manage:@own`. Raises BadParameter."""
    word, colon, pattern = text.partition(":")
    right = next((known for known in RIGHTS if known == word), None)
    if right is None or (colon and (not pattern or right in NODE_RIGHTS)):
        raise BadParameter(f"not a scope: {text[:200]!r}", subject="scopes", hint=_HINT)
    if not colon:
        return Scope(right)
    if pattern != OWN:
        try:
            Pattern(pattern)
        except BadParameter as err:
            raise BadParameter(f"not a scope: {text[:200]!r}: {err.detail}", subject="scopes", hint=_HINT) from err
    return Scope(right, pattern)


class Grants:
    """What a set of scopes allows, made quick. Equal sets share one object (`grants_of`)."""

    __slots__ = ("_decisions", "_patterns", "everywhere", "own", "rights", "scopes")

    def __init__(self, scopes: frozenset[Scope]) -> None:
        self.scopes = tuple(sorted(map(str, scopes)))
        self.rights: frozenset[Right] = frozenset(scope.right for scope in scopes)
        """Held over something, however little."""
        self.everywhere: frozenset[Right] = frozenset(scope.right for scope in scopes if scope.pattern == EVERYWHERE)
        self.own: frozenset[Right] = frozenset(scope.right for scope in scopes if scope.pattern == OWN)
        self._patterns: dict[Right, list[Pattern]] = {}
        for scope in sorted(scopes, key=str):
            if scope.pattern != OWN:
                self._patterns.setdefault(scope.right, []).append(Pattern(scope.pattern))
        self._decisions: dict[tuple[Right, str], bool] = {}

    def is_over(self, right: Right, stream: str) -> bool:
        """Whether a pattern of the right covers the stream's name. Streams of the node itself fall only under
        patterns that begin with `overlayd`."""
        found = self._decisions.get((right, stream))
        if found is None:
            if len(self._decisions) >= DECISIONS_KEPT:
                self._decisions.clear()
            found = any(pattern.is_match(stream) for pattern in self._patterns.get(right, ()))
            self._decisions[right, stream] = found
        return found

    def is_wider(self, scope: Scope) -> bool:
        """Whether everything that the scope allows is allowed."""
        if scope.pattern == OWN:
            return scope.right in self.own or scope.right in self.everywhere
        return any(is_within(scope.pattern, pattern.text) for pattern in self._patterns.get(scope.right, ()))

    def __repr__(self) -> str:
        return f"Grants({' '.join(self.scopes)})"


def is_within(inner: str, outer: str) -> bool:
    """Whether every name under one pattern is under the other. A wildcard in front stands for no name of the node."""
    ours, theirs = inner.split("."), outer.split(".")
    if ours[0] == NODE_PREFIX and theirs[0] in ("*", ">"):
        return False
    for at, word in enumerate(theirs):
        if word == ">":
            return len(ours) > at
        if at >= len(ours) or ours[at] == ">" or word not in ("*", ours[at]):
            return False
    return len(ours) == len(theirs)


_shared: dict[frozenset[Scope], Grants] = {}


def grants_of(scopes: Iterable[Scope]) -> Grants:
    """The grants of these scopes; the same object for the same scopes as long as it is kept."""
    wanted = frozenset(scopes)
    found = _shared.get(wanted)
    if found is None:
        if len(_shared) >= GRANTS_KEPT:
            _shared.clear()
        found = _shared[wanted] = Grants(wanted)
    return found
