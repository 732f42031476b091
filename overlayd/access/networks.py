"""Sets of networks, asked for every connection: as quick with ten thousand of them as with one."""

import socket
from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_network

from overlayd.model.errors import ConfigInvalid

Network = IPv4Network | IPv6Network
_HINT = 'write for example "10.0.0.5", "10.0.0.0/8" or "2001:db8::/32"'


def parse_networks(texts: Sequence[str], subject: str) -> "Networks":
    """Networks from addresses and CIDR texts. `subject` is the setting they stand in. Raises ConfigInvalid."""
    return Networks(parse_network(text, subject) for text in texts)


def parse_network(text: str, subject: str, hint: str = _HINT) -> Network:
    """One network; an IPv4 network mapped into IPv6 becomes IPv4. Raises ConfigInvalid."""
    try:
        network = ip_network(text, strict=False)
    except ValueError as err:
        raise ConfigInvalid(f"not an address or network: {text!r}", subject=subject, hint=hint) from err
    if isinstance(network, IPv6Network) and network.prefixlen >= 96:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return IPv4Network((mapped, network.prefixlen - 96))
    return network


class Networks:
    """Whether an address is in one of them. Unchanging."""

    __slots__ = ("_by_length", "members")

    def __init__(self, networks: Iterable[Network] = ()) -> None:
        self.members = tuple(dict.fromkeys(networks))
        self._by_length: dict[bool, dict[int, set[int]]] = {False: {}, True: {}}
        """By family (whether it is IPv6), then by how many low bits are free: the networks' high bits."""
        for network in self.members:
            free = network.max_prefixlen - network.prefixlen
            lengths = self._by_length[network.version == 6]
            lengths.setdefault(free, set()).add(int(network.network_address) >> free)

    def __bool__(self) -> bool:
        return bool(self.members)

    def __repr__(self) -> str:
        return f"Networks({', '.join(map(str, self.members[:5]))}{', …' if len(self.members) > 5 else ''})"

    def __contains__(self, address: str) -> bool:
        """False for what isn't an address. An IPv4 address mapped into IPv6 counts as IPv4."""
        if not self.members:
            return False
        parsed = _parse(address)
        if parsed is None:
            return False
        is_six, number = parsed
        return any(number >> free in known for free, known in self._by_length[is_six].items())

    def is_within(self, others: "Networks") -> bool:
        """Whether each of them lies in one of the others."""
        return all(
            any(own.version == other.version and own.subnet_of(other) for other in others.members)  # type: ignore[arg-type]  # of one version
            for own in self.members
        )

    def __or__(self, others: "Networks") -> "Networks":
        return Networks((*self.members, *others.members))


@lru_cache(maxsize=1024)
def _parse(address: str) -> tuple[bool, int] | None:
    """Whether it is IPv6, and the number."""
    text = address.partition("%")[0]
    try:
        if ":" not in text:
            return False, int.from_bytes(socket.inet_pton(socket.AF_INET, text), "big")
        raw = socket.inet_pton(socket.AF_INET6, text)
    except (OSError, ValueError):
        return None
    if raw[:12] == b"\0" * 10 + b"\xff\xff":
        return False, int.from_bytes(raw[12:], "big")
    return True, int.from_bytes(raw, "big")
