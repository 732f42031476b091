"""Judges where a request comes from, before anything else looks at it (docs/security.md, Who may do what).

Loopback is not an identity: a web page, a proxy or a rebound name can make a browser or a server on this
machine send requests. So the Host must be ours, an Origin must be ours, and a forwarding header from a peer
that isn't a trusted proxy takes the loopback privilege away.
"""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from overlayd.access.networks import Networks, parse_network
from overlayd.access.principal import ALWAYS, EVERYDAY, EVERYTHING, Principal, Standing
from overlayd.model.errors import BadRequest, Forbidden, ForeignHost, ForeignOrigin, ProxiedWithoutTrust

Headers = Iterable[tuple[bytes, bytes]]
"""Names in lower case."""

SAFE_METHODS = frozenset(("GET", "HEAD"))
FORWARDING = frozenset(
    (
        b"forwarded", b"x-forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-port", b"x-forwarded-proto",
        b"x-forwarded-server", b"x-real-ip", b"x-client-ip", b"x-cluster-client-ip", b"x-envoy-external-address",
        b"x-original-forwarded-for", b"cf-connecting-ip", b"true-client-ip", b"fastly-client-ip", b"cdn-loop", b"via",
    )
)  # fmt: skip
LOOKED_AT = FORWARDING | {b"host", b"origin", b"sec-fetch-site"}
_AUTHORITY = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9_.-]+)(?::(?P<port>[0-9]{1,5}))?", re.ASCII)
_FORWARDED_FOR = re.compile(r'(?:^|[;,])\s*for\s*=\s*(?:"([^"]*)"|([^\s;,"]+))', re.IGNORECASE)
_DEFAULT_PORTS = {"http": 80, "https": 443}


class PeerCertificate(msgspec.Struct, frozen=True):
    """A client certificate that an authority of the listener has signed.

    `subject` as in RFC 4514, the most specific part first: `CN=press-7,O=Example`. `names` are its subject alternative
    names: `DNS:press-7.example`, `URI:spiffe://example/press-7`, `email:a@b.example`, `IP:10.0.0.7`. `fingerprint` is
    `sha256:<hex>` of the whole certificate.
    """

    subject: str
    names: tuple[str, ...]
    fingerprint: str


class Peer(msgspec.Struct, frozen=True):
    """The far end of a connection, and what is certain about it. `local` is the address it was accepted on.

    Of a Unix socket's peer the kernel says uid, gid and further groups; -1 and () where it can't. `via`: the balancer
    that named the address (PROXY protocol); `address` is `unknown` when it named none.
    """

    family: Literal["tcp", "unix"]
    address: str = ""
    port: int = 0
    local: str = ""
    local_port: int = 0
    uid: int = -1
    gid: int = -1
    groups: tuple[int, ...] = ()
    is_tls: bool = False
    certificate: PeerCertificate | None = None
    via: str = ""


class AccessRules(msgspec.Struct, frozen=True):
    """What the settings say about who may come in without a key.

    `hosts`: further names the node goes by (`name` or `name:port`), lower case. `origins`: pages elsewhere that may use
    the API (`https://app.example`). `trusted`: networks of proxies; `is_unix_trusted`: peers of the Unix socket are
    proxies too. `denied`: networks that no client may come from, as far as proxies tell. `insecure`: anybody who
    reaches a listener may publish, read and subscribe. `auto_create`: publishing creates unknown streams.
    """

    service_uid: int
    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    trusted: Networks = Networks()
    is_unix_trusted: bool = False
    denied: Networks = Networks()
    insecure: bool = False
    auto_create: bool = True


class _Facts(msgspec.Struct):
    """The few headers that are looked at."""

    host: str | None = None
    origins: list[str] = []
    sites: list[str] = []
    forwarding: dict[bytes, str] = {}


def parse_trusted(texts: Sequence[str]) -> tuple[Networks, bool]:
    """Networks, and whether `unix` is among them. Raises ConfigInvalid."""
    hint = 'write for example "10.0.0.5", "10.0.0.0/8" or "unix"'
    named = [parse_network(text, "listen.trusted_proxies", hint) for text in texts if text != "unix"]
    return Networks(named), "unix" in texts


class Origin(msgspec.Struct, frozen=True):
    """Where a request comes from, as far as that is certain.

    `address`: the client's IP address, or `uid:<uid>` of a Unix socket's peer; of a proxied request the one that a
    trusted proxy names. `is_unix`: the peer itself is on a Unix socket, and no proxy stands in between.
    `is_foreign`: a proxy that isn't trusted stands in between, so nothing is known about the client; or a trusted one on
    another machine that speaks of its own loopback.
    """

    address: str
    is_unix: bool = False
    uid: int = -1
    gid: int = -1
    groups: tuple[int, ...] = ()
    is_foreign: bool = False

    @property
    def is_local(self) -> bool:
        """On this machine, by a Unix socket or by loopback, without a proxy that hides somebody else."""
        return not self.is_foreign and (self.is_unix or is_loopback_address(self.address))


def judge_origin(
    rules: AccessRules, peer: Peer, *, method: str, headers: Headers, is_websocket: bool = False,
    is_credentialed: bool = False,
) -> Origin:  # fmt: skip
    """Where a request comes from. `is_credentialed`: it carries a credential that no browser adds by itself.

    Such a request may call the node by any name and come through any proxy: a page can point a name at the node, but
    it can't know the credential. Raises ForeignHost, ForeignOrigin, ProxiedWithoutTrust, Forbidden or BadRequest.
    """
    facts = _facts_of(headers)
    if peer.family == "tcp" and not is_credentialed:
        _check_host(rules, peer, facts)
    _check_site(rules, facts, is_change=is_websocket or method not in SAFE_METHODS)
    if facts.forwarding:
        return _judge_forwarded(rules, peer, facts.forwarding, is_credentialed=is_credentialed)
    return _direct_origin(peer)


def keyless_principal(rules: AccessRules, origin: Origin, standing: Standing = ALWAYS) -> Principal:
    """Who asks without a credential, on a node that has none. Raises Forbidden."""
    if origin.is_unix:
        is_ours = origin.uid in (0, rules.service_uid)
        return Principal(
            name=f"unix:{origin.uid}", kind="unix", rights=EVERYTHING if is_ours else EVERYDAY, address=origin.address,
            may_create=rules.auto_create, standing=ALWAYS if is_ours else standing,
        )  # fmt: skip
    if origin.is_local:
        return Principal(
            name="loopback", kind="loopback", rights=EVERYDAY, address=origin.address, may_create=rules.auto_create,
            standing=standing,
        )  # fmt: skip
    if rules.insecure:
        return Principal(
            name=f"open:{origin.address}", kind="open", rights=EVERYDAY, address=origin.address, standing=standing
        )
    raise Forbidden(
        f"clients from {origin.address} need a key and the node has none", subject=origin.address,
        hint="set [listen] insecure = true to let everybody who reaches the node publish and read",
    )  # fmt: skip


def judge_request(
    rules: AccessRules, peer: Peer, *, method: str, headers: Headers, is_websocket: bool = False
) -> Principal:
    """The principal of a request on a keyless listener.

    Raises ForeignHost, ForeignOrigin, ProxiedWithoutTrust, Forbidden or BadRequest.
    """
    origin = judge_origin(rules, peer, method=method, headers=headers, is_websocket=is_websocket)
    return keyless_principal(rules, origin)


def normalize_address(text: str) -> str:
    """The address without scope, an IPv4 address mapped into IPv6 as IPv4. Raises ValueError."""
    address = ip_address(text.partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return str(address)


@lru_cache(maxsize=1024)
def is_loopback_address(text: str) -> bool:
    """Whether it's an address of this machine's loopback; False for what isn't an address."""
    try:
        return ip_address(normalize_address(text)).is_loopback
    except ValueError:
        return False


def _facts_of(headers: Headers) -> _Facts:
    facts = _Facts()
    for name, raw in headers:
        if name not in LOOKED_AT:
            continue
        value = raw.decode("latin-1").strip()
        if name == b"host":
            facts.host = value
        elif name == b"origin":
            facts.origins.append(value)
        elif name == b"sec-fetch-site":
            facts.sites.append(value.lower())
        else:
            known = facts.forwarding.get(name)
            facts.forwarding[name] = value if known is None else f"{known}, {value}"
    return facts


def _check_host(rules: AccessRules, peer: Peer, facts: _Facts) -> None:
    """A web page can point a name of its own at 127.0.0.1, but it can't choose the Host its browser sends.
    Clients of HTTP/1.0 may leave it out; browsers never do."""
    if facts.host is None:
        return
    parts = _split_authority(facts.host.lower())
    if parts is None:
        raise BadRequest("the Host header isn't a host name or address", subject="Host")
    name, port = parts
    if _is_loopback_name(name) or _is_listed(rules, name, port) or name.strip("[]") == peer.local:
        return
    raise ForeignHost(
        f"the node doesn't go by the name {facts.host[:200]!r}", subject=facts.host[:200],
        hint=f'if it should, add it to the settings: [listen] hosts = ["{name[:200]}"]',
    )  # fmt: skip


def _check_site(rules: AccessRules, facts: _Facts, *, is_change: bool) -> None:
    if facts.origins and all(origin in rules.origins for origin in facts.origins):
        return  # then Sec-Fetch-Site says nothing new
    refused = ("cross-site", "same-site") if is_change else ("cross-site",)
    foreign = next((site for site in facts.sites if site in refused), None)
    if foreign is not None:
        raise ForeignOrigin(
            f"a page of another site sent this request (Sec-Fetch-Site: {foreign})", subject="Sec-Fetch-Site",
            hint="serve the page under a name listed in [listen] hosts, behind a proxy of the same origin",
        )  # fmt: skip
    for origin in facts.origins:
        if not _is_own_origin(rules, facts.host, origin):
            raise ForeignOrigin(
                f"a page of {origin[:200]!r} sent this request", subject=origin[:200],
                hint="if the page is yours, add its origin to the settings: [listen] origins, or hosts where the node "
                "itself goes by that name",
            )  # fmt: skip


def _is_own_origin(rules: AccessRules, host: str | None, origin: str) -> bool:
    """An origin is ours when its authority is the request's Host, or its host is listed. `null` never is."""
    try:
        url = urlsplit(origin)
        port = url.port
    except ValueError:
        return False
    default = _DEFAULT_PORTS.get(url.scheme)
    if default is None or url.hostname is None or url.path or url.query or url.fragment or url.username:
        return False
    name = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
    if _is_listed(rules, name, port):
        return True
    parts = _split_authority((host or "").lower())
    return parts is not None and parts[0] == name and (parts[1] or default) == (port or default)


def _is_listed(rules: AccessRules, name: str, port: int | None) -> bool:
    return bool(rules.hosts) and (name in rules.hosts or f"{name}:{port}" in rules.hosts)


@lru_cache(maxsize=1024)
def _split_authority(text: str) -> tuple[str, int | None] | None:
    match = _AUTHORITY.fullmatch(text)
    if match is None:
        return None
    port = match["port"]
    if port is not None and int(port) > 65535:
        return None
    return match["host"], None if port is None else int(port)


@lru_cache(maxsize=1024)
def _is_loopback_name(name: str) -> bool:
    """`localhost`, names under it (RFC 6761), 127.0.0.0/8 and [::1]."""
    bare = name.strip("[]").rstrip(".")
    return bare == "localhost" or bare.endswith(".localhost") or is_loopback_address(bare)


def _direct_origin(peer: Peer) -> Origin:
    if peer.family == "unix":
        return Origin(f"uid:{peer.uid}", is_unix=True, uid=peer.uid, gid=peer.gid, groups=peer.groups)
    return Origin(peer.address)


def _judge_forwarded(
    rules: AccessRules, peer: Peer, forwarding: dict[bytes, str], *, is_credentialed: bool
) -> Origin:  # fmt: skip
    is_trusted = rules.is_unix_trusted if peer.family == "unix" else peer.address in rules.trusted
    if not is_trusted and is_credentialed:
        return Origin(_direct_origin(peer).address, is_foreign=True)
    if not is_trusted:
        named = ", ".join(sorted(name.decode() for name in forwarding))
        raise ProxiedWithoutTrust(
            f"a proxy that the node doesn't trust sent this request ({named})", subject=named,
            hint="name the proxy in the settings: [listen] trusted_proxies; the clients behind it then "
            "count by their own address",
        )  # fmt: skip
    claims = {_claimed_address(rules, chain) for chain in _chains_of(forwarding)}
    if not claims:
        return _direct_origin(peer)
    if len(claims) > 1:
        # A proxy that writes one of these headers and passes the others on lets the client choose one.
        raise ProxiedWithoutTrust(
            "the forwarding headers name different clients", subject=", ".join(sorted(claims))[:200],
            hint="let the proxy set or remove Forwarded, X-Forwarded-For and X-Real-IP alike",
        )  # fmt: skip
    address = claims.pop()
    if address in rules.denied:
        raise Forbidden(f"clients from {address} are kept out", subject=address, hint="[listen] deny names them")
    # The loopback that a proxy on another machine speaks of is that machine's own.
    is_elsewhere = peer.family == "tcp" and not is_loopback_address(peer.address)
    return Origin(address, is_foreign=is_elsewhere and is_loopback_address(address))


def _claimed_address(rules: AccessRules, chain: list[str]) -> str:
    """The last address of the chain that isn't a trusted proxy; `unknown` when it is hidden (RFC 7239)."""
    address = "unknown"
    for text in reversed(chain):
        try:
            address = normalize_address(text)
        except ValueError:
            return "unknown"
        if address not in rules.trusted:
            break
    return address


def _chains_of(forwarding: dict[bytes, str]) -> list[list[str]]:
    """What each header says, from the client's address to the nearest proxy's."""
    chains = []
    if b"forwarded" in forwarding:
        chains.append([quoted or plain for quoted, plain in _FORWARDED_FOR.findall(forwarding[b"forwarded"])])
    if b"x-forwarded-for" in forwarding:
        chains.append(forwarding[b"x-forwarded-for"].split(","))
    if b"x-real-ip" in forwarding:
        chains.append([forwarding[b"x-real-ip"]])
    return [[_strip_port(text.strip()) for text in chain] for chain in chains]


def _strip_port(text: str) -> str:
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text
