"""The guard: which addresses and ports may be called. Deny by default, so that nobody can aim the node at its inside.

Lists follow IANA's registries of special-purpose addresses (RFC 6890 and its updates). Pure.
"""

import ipaddress
from collections.abc import Iterable
from functools import lru_cache
from typing import TypeAlias

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

_DENIED_V4 = {
    "0.0.0.0/8": "unspecified, this host",
    "10.0.0.0/8": "private",
    "100.64.0.0/10": "carrier-grade NAT",
    "127.0.0.0/8": "loopback",
    "168.63.129.16/32": "a cloud's metadata service",
    "169.254.0.0/16": "link-local, a cloud's metadata service",
    "172.16.0.0/12": "private",
    "192.0.0.0/24": "reserved for protocols",
    "192.0.2.0/24": "for documentation",
    "192.31.196.0/24": "reserved for AS112",
    "192.52.193.0/24": "reserved for multicast tunnels",
    "192.88.99.0/24": "6to4 relay",
    "192.168.0.0/16": "private",
    "192.175.48.0/24": "reserved for AS112",
    "198.18.0.0/15": "for benchmarks",
    "198.51.100.0/24": "for documentation",
    "203.0.113.0/24": "for documentation",
    "224.0.0.0/4": "multicast",
    "240.0.0.0/4": "reserved, broadcast",
}
_GLOBAL_V6 = "2000::/3"
"""Only these IPv6 addresses are anybody's on the Internet; all others are refused without being listed."""
_DENIED_V6 = {
    "2001::/32": "Teredo: an IPv4 address inside an IPv6 one",
    "2001::/23": "reserved for protocols",
    "2001:db8::/32": "for documentation",
    "2002::/16": "6to4: an IPv4 address inside an IPv6 one",
    "2620:4f:8000::/48": "reserved for AS112",
    "3fff::/20": "for documentation",
    "::/128": "unspecified, this host",
    "::1/128": "loopback",
    "::ffff:0:0/96": "an IPv4 address inside an IPv6 one",
    "::ffff:0:0:0/96": "an IPv4 address inside an IPv6 one",
    "::/96": "an IPv4 address inside an IPv6 one",
    "64:ff9b::/96": "NAT64: an IPv4 address inside an IPv6 one",
    "64:ff9b:1::/48": "NAT64: an IPv4 address inside an IPv6 one",
    "100::/64": "discarded",
    "5f00::/16": "segment routing",
    "fc00::/7": "private",
    "fe80::/10": "link-local",
    "fec0::/10": "site-local",
    "ff00::/8": "multicast",
}
_EMBEDDING = tuple(
    (ipaddress.IPv6Network(text), shift)
    for text, shift in (
        ("::ffff:0:0/96", 0), ("::ffff:0:0:0/96", 0), ("::/96", 0), ("64:ff9b::/96", 0), ("2002::/16", 80),
    )
)  # fmt: skip
"""Where in an IPv6 address its IPv4 address stands: bits to its right."""

_TABLE: tuple[tuple[Network, str], ...] = tuple(
    (ipaddress.ip_network(text), why) for text, why in (_DENIED_V4 | _DENIED_V6).items()
)
_GLOBAL = ipaddress.IPv6Network(_GLOBAL_V6)

BAD_PORTS = frozenset({
    1, 7, 9, 11, 13, 15, 17, 19, 20, 21, 22, 23, 25, 37, 42, 43, 53, 69, 77, 79, 87, 95, 101, 102, 103, 104, 109, 110,
    111, 113, 115, 117, 119, 123, 135, 137, 139, 143, 161, 179, 389, 427, 465, 512, 513, 514, 515, 526, 530, 531, 532,
    540, 548, 554, 556, 563, 587, 601, 636, 989, 990, 993, 995, 1719, 1720, 1723, 2049, 3659, 4045, 4190, 5060, 5061,
    6000, 6379, 6566, 6665, 6666, 6667, 6668, 6669, 6679, 6697, 10080, 11211,
})  # fmt: skip
"""Ports of other protocols. A browser's list (WHATWG Fetch, "bad port"), with Redis' and memcached's."""


class NetworkPolicy:
    """Which addresses and ports may be called. Connections are shared only between callers of one `key`.

    `allow`: networks that may be called although they are on the list. `ports`: the only ones that may be called; empty:
    all but those of other protocols.
    """

    __slots__ = ("allow", "key", "ports")

    def __init__(self, allow: tuple[Network, ...] = (), ports: tuple[int, ...] = ()) -> None:
        self.allow = allow
        self.ports = ports
        self.key = f"{','.join(map(str, allow))} {','.join(map(str, ports))}"

    def __repr__(self) -> str:
        return f"NetworkPolicy({self.key!r})"


def parse_networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """Raises ValueError that says what to write; bits behind the prefix are a mistake."""
    found = []
    for text in texts:
        try:
            found.append(ipaddress.ip_network(text))
        except ValueError as err:
            raise ValueError(f'expected networks such as "127.0.0.0/8" or "fd00::/8": {err}') from err
    return tuple(found)


def refuse_address(address: Address, policy: NetworkPolicy) -> str:
    """Why an address isn't called, "" when it may be.

    An IPv6 address that carries an IPv4 one is called only if the policy allows the IPv6 network by name and the IPv4
    address isn't refused itself.
    """
    return _refuse(address, policy.allow)


def is_allowed_by_name(address: Address, policy: NetworkPolicy) -> bool:
    """Whether the configuration names a network with the address in it."""
    return _is_in(address, policy.allow)


def refuse_port(port: int, policy: NetworkPolicy) -> str:
    """Why a port isn't called, "" when it may be."""
    if policy.ports:
        return "" if port in policy.ports else f"port {port} isn't among those that the configuration allows"
    return f"port {port} belongs to another protocol than HTTP" if port in BAD_PORTS else ""


@lru_cache(maxsize=4096)
def _refuse(address: Address, allow: tuple[Network, ...]) -> str:
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            return "an address with a zone means something on one link only"
        inner = _embedded(address)
        if inner is not None and _is_in(address, allow):
            return _refuse(inner, allow)
    if _is_in(address, allow):
        return ""
    for network, why in _TABLE:
        if address.version == network.version and address in network:
            return why
    if isinstance(address, ipaddress.IPv6Address) and address not in _GLOBAL:
        return "not an address of the Internet"
    return ""


def _embedded(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    for network, shift in _EMBEDDING:
        if address in network and int(address) > 1:  # :: and ::1 carry nothing
            return ipaddress.IPv4Address(int(address) >> shift & 0xFFFF_FFFF)
    return None


def _is_in(address: Address, networks: tuple[Network, ...]) -> bool:
    return any(address.version == network.version and address in network for network in networks)
