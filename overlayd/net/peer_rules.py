"""Whose connections a listener takes: networks that may come, that may not, and balancers that speak for others."""

from typing import Literal

import msgspec

from overlayd.access.networks import Networks, parse_networks
from overlayd.net.settings import ListenSettings, PlainListener, TlsListener

Denial = Literal["", "denied", "not_allowed"]


class PeerRules(msgspec.Struct, frozen=True):
    """The rules of one listener, the general ones among them. `allows`: an address must be in each that isn't empty."""

    allows: tuple[Networks, ...] = ()
    denied: Networks = Networks()
    balancers: Networks = Networks()

    def judge(self, address: str) -> Denial:
        """Why a peer may not connect; "" when it may."""
        if address in self.denied:
            return "denied"
        if any(address not in allow for allow in self.allows):
            return "not_allowed"
        return ""

    def judge_client(self, address: str) -> Denial:
        """The same for a client that a balancer names. `allow` is about who connects, and that was the balancer."""
        return "denied" if address in self.denied else ""

    def is_only_for(self, networks: Networks) -> bool:
        """Whether nobody else can connect."""
        return any(allow.is_within(networks) for allow in self.allows)


def peer_rules_of(settings: ListenSettings, listener: PlainListener | TlsListener | None = None) -> PeerRules:
    """The rules of a listener; without one, those of a listener that has none of its own. Raises ConfigInvalid."""
    allows = [parse_networks(settings.allow, "listen.allow")]
    denied = parse_networks(settings.deny, "listen.deny")
    balancers = parse_networks(settings.proxy_protocol, "listen.proxy_protocol")
    if listener is not None:
        table = "listen.tls" if isinstance(listener, TlsListener) else "listen.plain"
        allows.append(parse_networks(listener.allow, f"{table}.allow"))
        denied |= parse_networks(listener.deny, f"{table}.deny")
        balancers |= parse_networks(listener.proxy_protocol, f"{table}.proxy_protocol")
    return PeerRules(tuple(allow for allow in allows if allow), denied, balancers)
