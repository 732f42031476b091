"""Client certificates: which of those that a TLS listener has verified are whom, and what they may do."""

import re
from collections.abc import Iterable

from overlayd.access.gate import Claim, RequestHead
from overlayd.access.origin import Origin, Peer, PeerCertificate
from overlayd.access.principal import Principal, Standing
from overlayd.access.roles import RoleBook
from overlayd.access.scopes import Grants, grants_of
from overlayd.access.settings import CertificateSettings
from overlayd.model.errors import BadParameter, ConfigInvalid, Unauthorized

_STAR = "([A-Za-z0-9._@:/-]+)"
"""What a star stands for. None of it separates the parts of a subject, whose author may be anybody with a certificate."""
_SHOWN_CHARS = 200


class _Rule:
    """One entry of the settings, made ready."""

    def __init__(self, settings: CertificateSettings, roles: RoleBook) -> None:
        self.settings = settings
        self._subject = _pattern_of(settings.subject)
        self._san = _pattern_of(settings.san)
        self.grants: Grants = grants_of(roles.scopes_of(settings.scopes, settings.roles))
        self.standing = Standing()

    def find(self, certificate: PeerCertificate) -> str | None:
        """The name of whom the certificate is about; None when the rule doesn't fit."""
        if self.settings.fingerprint and self.settings.fingerprint != certificate.fingerprint:
            return None
        stars: list[str] = []
        for pattern, texts in ((self._subject, (certificate.subject,)), (self._san, certificate.names)):
            if pattern is None:
                continue
            match = next((found for text in texts if (found := pattern.fullmatch(text))), None)
            if match is None:
                return None
            stars += match.groups()
        return "/".join((self.settings.name, *stars))


class CertificateScheme:
    """Whoever holds the key of a certificate that `[[access.certificates]]` names. A `Scheme` of the gate."""

    name = "certificate"
    headers: frozenset[bytes] = frozenset()
    is_ambient = True
    is_costly = False

    def __init__(self, rules: Iterable[CertificateSettings], roles: RoleBook | None = None, *, is_asked: bool) -> None:
        """`is_asked`: some listener asks for client certificates. Raises ConfigInvalid for a role that there isn't,
        and for rules that no listener could ever use."""
        roles = roles or RoleBook()
        for rule in rules:
            try:
                roles.check(rule.roles)
            except BadParameter as err:
                raise ConfigInvalid(
                    f"access.certificates {rule.name}: {err.detail}", subject=rule.name, hint=err.hint
                ) from err
        self.is_asked = is_asked
        self._rules = [_Rule(rule, roles) for rule in rules]
        if self._rules and not is_asked:
            raise ConfigInvalid(
                "[[access.certificates]] is about client certificates, and no listener asks for any",
                subject="access.certificates", hint="set client_ca of a [[listen.tls]]",
            )  # fmt: skip

    def __repr__(self) -> str:
        return f"CertificateScheme(rules={len(self)})"

    def __len__(self) -> int:
        return len(self._rules)

    def adopt(self, other: "CertificateScheme") -> None:
        """The other's rules from now on. Whoever was let in by any of these is let in anew if they differ, because another
        rule may come first now."""
        if [(rule.settings, rule.grants) for rule in self._rules] == [(r.settings, r.grants) for r in other._rules]:
            return
        for rule in self._rules:
            rule.standing.ended = "changed"
        self._rules = other._rules

    def find_grants(self, name: str) -> Grants | None:
        """What the rule that once gave a name gives now; None when there is none of its name any more."""
        return next((rule.grants for rule in self._rules if rule.settings.name == name.split("/")[0]), None)

    @property
    def is_configured(self) -> bool:
        return bool(self._rules)

    def is_brought(self, head: RequestHead, peer: Peer) -> bool:
        return peer.certificate is not None and bool(self._rules)

    async def claim(self, head: RequestHead, peer: Peer, origin: Origin) -> Claim:
        certificate = peer.certificate
        assert certificate is not None
        for rule in self._rules:
            name = rule.find(certificate)
            if name is not None:
                return Claim(_principal_of(rule, name, origin))
        raise Unauthorized(
            f"the client certificate of {certificate.subject[:_SHOWN_CHARS]!r} is nobody's here", subject="certificate",
            hint="[[access.certificates]] names subjects, alternative names or fingerprints; or send an API key with it",
        )  # fmt: skip


def _principal_of(rule: _Rule, name: str, origin: Origin) -> Principal:
    return Principal(
        name=f"certificate:{name}", kind="certificate", rights=rule.grants.everywhere, address=origin.address,
        grants=rule.grants, owner=rule.settings.owner or name, policy=rule.settings.policy, standing=rule.standing,
    )  # fmt: skip


def _pattern_of(text: str) -> re.Pattern[str] | None:
    if not text:
        return None
    if text.startswith("DNS:"):
        text = "DNS:" + text.removeprefix("DNS:").lower()
    return re.compile(_STAR.join(re.escape(part) for part in text.split("*")), re.ASCII)
