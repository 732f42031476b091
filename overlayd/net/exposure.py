"""Who can reach the node, and whether that was meant: what is refused at start, and what is said about the rest."""

from collections.abc import Sequence

import msgspec

from overlayd.access.networks import Networks, parse_networks
from overlayd.access.origin import is_loopback_address, parse_trusted
from overlayd.model.errors import ConfigInvalid
from overlayd.net.peer_rules import PeerRules
from overlayd.net.settings import ListenSettings, TlsListener

LOOPBACK = parse_networks(("127.0.0.0/8", "::1"), "")


class Credentials(msgspec.Struct, frozen=True):
    """By what clients can show who they are, as far as the settings and the node's own list of keys say."""

    keys: int = 0
    jwt_issuers: int = 0
    has_identities: bool = False
    certificates: int = 0
    """Rules that map client certificates to rights."""

    @property
    def words(self) -> str:
        """`2 keys, client certificates`; "" for none."""
        named = [f"{self.keys} key{'s' if self.keys > 1 else ''}"] if self.keys else []
        named += [f"{self.jwt_issuers} JWT issuer{'s' if self.jwt_issuers > 1 else ''}"] if self.jwt_issuers else []
        named += ["identities"] if self.has_identities else []
        named += ["client certificates"] if self.certificates else []
        return ", ".join(named)


def check_exposure(
    text: str,
    address: str,
    rules: PeerRules,
    settings: ListenSettings,
    credentials: Credentials,
    tls: TlsListener | None,
) -> None:
    """Refuses a listener that other machines reach in clear text, or without a way to tell who they are.

    `insecure = true` lets it be, and so does an allow list of trusted proxies only. `text` is what was asked for.
    Raises ConfigInvalid.
    """
    if settings.insecure or is_loopback_address(address) or rules.is_only_for(_trusted(settings, rules) | LOOPBACK):
        return
    if tls is None:
        raise ConfigInvalid(
            f"{text} can be reached from other machines, in clear text" + ("" if credentials.words else ", and the node has no keys"),
            subject="listen.tcp",
            hint="listen on 127.0.0.1, use [[listen.tls]], let only [listen] trusted_proxies in by [listen] allow, or set "
            "[listen] insecure = true to do it all the same",
        )  # fmt: skip
    is_mutual = bool(tls.client_ca) and credentials.certificates > 0
    if not (credentials.keys or credentials.jwt_issuers or credentials.has_identities or is_mutual):
        raise ConfigInvalid(
            f"{text} can be reached from other machines, and the node has no keys: nobody could show who they are",
            subject="listen.tls",
            hint="add a key, a JWT issuer, an identity or client certificates with [[access.certificates]], or set "
            "[listen] insecure = true to let everybody there publish and read",
        )  # fmt: skip


def describe_exposure(urls: Sequence[str], settings: ListenSettings, credentials: Credentials) -> str:
    """Who gets in, in a line: for the log at start and for /readyz. `urls` are the listeners'."""
    hosts = [url.split("://", 1)[1].rpartition(":")[0].strip("[]") for url in urls if "://" in url]
    is_reachable = not all(is_loopback_address(host) for host in hosts)
    if credentials.words:
        return f"credentials are asked for: {credentials.words}"
    if settings.insecure and is_reachable:
        return "open to everybody who reaches it: insecure = true"
    if settings.insecure:
        return "open to local clients, and to whoever a proxy lets through: insecure = true"
    return "open to local clients only: no keys configured"


def _trusted(settings: ListenSettings, rules: PeerRules) -> Networks:
    """Who stands before the node on purpose."""
    return parse_trusted(settings.trusted_proxies)[0] | rules.balancers
