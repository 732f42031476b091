"""Decisions about streams with everything that counts: the name, the visibility, the owner."""

from collections.abc import Callable

import msgspec

from overlayd.access.principal import (
    Principal,
    StreamFacts,
    check_standing,
    may,
    require,
    sees_everything,
)
from overlayd.access.scopes import Right
from overlayd.model.errors import Forbidden
from overlayd.model.names import NODE_PREFIX, is_node_name
from overlayd.storage import Stream

FindStream = Callable[[str], Stream | None]
_READING: tuple[Right, ...] = ("read", "subscribe")


class Sight(msgspec.Struct, frozen=True):
    """What somebody may see of many streams. Equal sights see the same, so their readers can share work."""

    who: Principal
    right: Right


class StreamGuard:
    """Asks the one decision (`may`) about streams as they are now. One for the node.

    `owners`: who created a stream with a credential, by its name; filled by whoever knows.
    """

    def __init__(self, find_stream: FindStream) -> None:
        self._find = find_stream
        self.owners: dict[str, str] = {}
        self.generation = 0
        """Grows when an owner changes."""

    def facts(self, name: str, stream: Stream | None = None) -> StreamFacts:
        """What a decision about the stream looks at; of an unknown one that it is private."""
        found = stream or self._find(name)
        owner = "" if found is not None and found.is_deleted else self.owners.get(name, "")
        return StreamFacts(name, "private" if found is None else found.definition.visibility, owner)

    def may(self, principal: Principal, right: Right, name: str) -> bool:
        """Whether the principal has the right over the stream. The name alone mostly settles it."""
        if may(principal, right, name):
            return True
        if is_node_name(name) or (right not in _READING and right not in principal.grants.own):
            return False
        return may(principal, right, self.facts(name))

    def require(self, principal: Principal, right: Right, name: str) -> None:
        """Raises Forbidden when the principal lacks the right over the stream, known or not; Unauthorized when its
        credential has ended."""
        check_standing(principal)
        if not self.may(principal, right, name):
            require(principal, right, facts=self.facts(name))

    def require_define(self, principal: Principal, name: str) -> None:
        """As `require` with `manage`. Who may manage what they own may also create streams to own, under names that
        they may publish to. Raises Forbidden, Unauthorized."""
        is_new = self._find(name) is None and self.owners.get(name, principal.owner) == principal.owner
        if is_new and self.may_own(principal, name) and not is_node_name(name):
            check_standing(principal)
            return
        self.require(principal, "manage", name)

    def may_own(self, principal: Principal, name: str) -> bool:
        """Whether a stream that the principal creates becomes its owner's."""
        return bool(principal.owner) and "manage" in principal.grants.own and may(principal, "publish", name)

    def may_know(self, principal: Principal, stream: Stream) -> bool:
        """Whether the principal may learn that the stream exists: with any right over it."""
        facts = self.facts(stream.name, stream)
        return any(may(principal, right, facts) for right in ("read", "subscribe", "publish", "manage"))

    def sight(self, principal: Principal, right: Right, patterns: tuple[str, ...]) -> Sight | None:
        """What the principal may see of the streams under patterns (none: of all); None when that is every one.

        Raises Forbidden for a stream that is asked for by its own name and may not be seen.
        """
        check_standing(principal)
        for text in patterns:
            if "*" not in text and ">" not in text:
                self.require(principal, right, text)
        is_own_asked = any(text.split(".")[0] == NODE_PREFIX for text in patterns)
        if sees_everything(principal, right) or (right in principal.rights and not is_own_asked):
            return None
        if not may_see_some(principal, right):
            raise Forbidden(
                f"{principal.name} may not {right} here", subject=right,
                hint=f"the credential's scopes would have to hold {right}",
            )  # fmt: skip
        who = Principal(
            name="", kind="key", rights=principal.rights, address="", grants=principal.grants, owner=principal.owner
        )
        return Sight(who, right)

    def sees(self, sight: Sight, stream: Stream) -> bool:
        """Whether the stream is in sight now."""
        return may(sight.who, sight.right, self.facts(stream.name, stream))

    def own(self, name: str, owner: str) -> None:
        """The stream belongs to somebody from now on."""
        self.owners[name] = owner
        self.generation += 1

    def disown(self, name: str) -> None:
        """The stream is nobody's. Again does nothing."""
        if self.owners.pop(name, None) is not None:
            self.generation += 1


def may_see_some(principal: Principal, right: Right) -> bool:
    """Whether the principal may see anything: with the right over something, or with a credential at all, to whose
    holders public streams are open."""
    return bool(principal.owner) or right in principal.rights or right in principal.grants.rights
