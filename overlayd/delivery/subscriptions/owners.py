"""Whose subscription it is, and what its owner may read: asked again at every delivery."""

from collections.abc import Callable

from overlayd.access.keys import Key
from overlayd.access.principal import Principal, check_standing, may_hold, may_some, require_some
from overlayd.access.scopes import EVERYWHERE, RIGHTS, Grants, Right, Scope, grants_of, parse_scope
from overlayd.access.stream_guard import StreamGuard
from overlayd.delivery.subscriptions.subscription import Reading, Subscription
from overlayd.model.errors import Forbidden, UnknownSubscription
from overlayd.model.subscription import AgentRule
from overlayd.storage import Stream

CONFIG = Reading("config", RIGHTS)
"""For whom the subscriptions of the configuration read: everything."""
READING: tuple[Right, ...] = ("subscribe", "read")
"""With either of them, packets are delivered."""
_KEY = "key:"
_DECLARED = ("identity:", "certificate:")
_PASSING = frozenset(("ticket", "jwt"))
"""Nobody can be asked later whether they still stand."""


class Owners:
    """Decides with the keys and streams as they are now."""

    def __init__(
        self, streams: StreamGuard, find_key: Callable[[str], Key | None],
        find_declared: Callable[[str], Grants | None] = lambda name: None,
    ) -> None:  # fmt: skip
        """`find_declared`: what the holders of identities and certificates may do by the settings now, by the principal's
        name."""
        self._streams = streams
        self._find_key = find_key
        self._find_declared = find_declared

    def may_read(self, reading: Reading, stream: Stream) -> bool:
        """Whether packets of the stream may be delivered to the owner. A key that was revoked, or whose secrets all
        expired, reads nothing; nor does an identity or certificate that the settings name no more."""
        who = self._principal_of(reading)
        if who is None:
            return False
        return any(self._streams.may(who, right, stream.name) for right in READING)

    def require_create(self, principal: Principal, streams: tuple[str, ...]) -> Reading:
        """For whom a new subscription reads. Raises Forbidden for streams that the principal may not subscribe to,
        and for a credential that doesn't last; Unauthorized for one that has ended."""
        check_standing(principal)
        if principal.kind in _PASSING:
            raise Forbidden(
                f"a {principal.kind} is for a while; a durable subscription needs a credential that lasts",
                subject="subscribe", hint="use a key, an identity or a client certificate",
            )  # fmt: skip
        self._streams.sight(principal, "subscribe", streams)
        return Reading(principal.name, tuple(sorted(principal.rights)), tuple(principal.grants.scopes), principal.owner)

    def require_agent(self, principal: Principal, output: str) -> None:
        """For whoever makes an agent. Raises Forbidden without the right `agent`, or to publish to its output."""
        require_some(principal, "agent")
        if output:
            self._streams.require(principal, "publish", output)

    def require_reply(self, principal: Principal, subscription: Subscription) -> None:
        """For whoever hands in a reply by pull or live: it is published in the agent's owner's name, and takes from them
        what making the agent takes. Raises Forbidden, Unauthorized."""
        agent = subscription.definition.agent
        if isinstance(agent, AgentRule) and isinstance(agent.output, str):
            self.require_agent(principal, agent.output)

    def may_reply(self, reading: Reading, output: str) -> bool:
        """Whether the owner may run agents and publish to the stream, now."""
        who = self._principal_of(reading)
        if who is None or not may_some(who, "agent"):
            return False
        return self._streams.may(who, "publish", output)

    def require_use(self, principal: Principal, subscription: Subscription) -> None:
        """For whoever made it, and for those who manage. Raises UnknownSubscription: others needn't learn of it."""
        check_standing(principal)
        if not self.may_use(principal, subscription):
            raise UnknownSubscription(f"there is no subscription {subscription.id!r}", subject=subscription.id)

    def may_use(self, principal: Principal, subscription: Subscription) -> bool:
        """Whether the subscription is the principal's, or everything is. Another key of the same owner must itself be
        let see all that is selected: who uses a subscription gets what is in it, and says where it is sent."""
        reading = subscription.reading
        if principal.name == reading.principal or "manage" in principal.rights:
            return True
        is_same_owner = bool(principal.owner) and principal.owner == reading.owner
        return is_same_owner and self._sees_all(principal, subscription)

    def _sees_all(self, principal: Principal, subscription: Subscription) -> bool:
        reader = self._principal_of(subscription.reading)
        held = () if reader is None else tuple(map(parse_scope, reader.grants.scopes))
        needed = [scope for scope in held if scope.right in READING]
        if needed and all(may_hold(principal, scope) for scope in needed):
            return True  # nothing is delivered that the principal's own subscription wouldn't get
        patterns = subscription.definition.streams or (EVERYWHERE,)
        return all(any(self._covers(principal, right, pattern) for right in READING) for pattern in patterns)

    def _covers(self, principal: Principal, right: Right, pattern: str) -> bool:
        if "*" in pattern or ">" in pattern:
            return may_hold(principal, Scope(right, pattern))
        return self._streams.may(principal, right, pattern)

    def _principal_of(self, reading: Reading) -> Principal | None:
        if reading.principal.startswith(_KEY):
            key = self._find_key(reading.principal.removeprefix(_KEY))
            if key is None or not key.standings:
                return None
            return Principal(
                name=reading.principal, kind="key", rights=key.grants.everywhere, address="", grants=key.grants,
                owner=key.record.owner,
            )  # fmt: skip
        if reading.principal.startswith(_DECLARED):
            grants = self._find_declared(reading.principal)
            if grants is None:
                return None
            return Principal(
                name=reading.principal, kind="open", rights=grants.everywhere, address="", grants=grants,
                owner=reading.owner,
            )  # fmt: skip
        return Principal(
            name=reading.principal, kind="open", rights=frozenset(right for right in RIGHTS if right in reading.rights),
            address="", grants=grants_of(parse_scope(text) for text in reading.scopes), owner=reading.owner,
        )  # fmt: skip
