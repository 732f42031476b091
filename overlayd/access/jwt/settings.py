"""`[[access.jwt]]`: an issuer of tokens, the one algorithm that it signs with, and what its claims are worth here."""

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from overlayd.access.named_scopes import POLICY_TEXT, ROLES_TEXT, SCOPES_TEXT, check_named_scopes
from overlayd.access.scopes import parse_scope
from overlayd.model.errors import OverlaydError
from overlayd.model.units import Duration

Algorithm = Literal["HS256", "EdDSA", "ES256"]
SCOPE = "{scope}"
PLACES = ("{token}", "{pattern}")
_PLACE = re.compile(r"\{[^}]*\}?")


class JwtGrantSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one claim of a token is worth. A claim holds texts: one, a list, or several with spaces between."""

    claim: Annotated[
        str,
        Meta(max_length=256, description='Its name; "realm.roles" also finds roles inside realm', examples=["groups"]),
    ]
    value: Annotated[str, Meta(max_length=256, description="Only this text counts; empty: each one")] = ""
    scopes: Annotated[
        tuple[str, ...],
        Meta(
            description='Scopes, in which {token} stands for the text as one token of a stream\'s name, and {pattern} for '
            'it as a pattern: "publish:site.{token}.>"; "{scope}" alone: the text is a scope itself'
        ),
    ] = ()  # fmt: skip
    roles: Annotated[tuple[str, ...], Meta(description=ROLES_TEXT)] = ()

    def __post_init__(self) -> None:
        """Raises ValueError."""
        if not self.claim:
            raise ValueError("say which claim it is")
        if not (self.scopes or self.roles):
            raise ValueError(f"{self.claim}: say which scopes or roles it gives")
        for template in self.scopes:
            _check_template(self.claim, template)


class JwtSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An issuer. Its keys come from a file, a credential or a URL."""

    name: Annotated[
        str, Meta(max_length=64, description="What the node calls it: a-z, 0-9, _ and -", examples=["login"])
    ]
    issuer: Annotated[
        str,
        Meta(max_length=1024, description="The claim iss of its tokens, exactly", examples=["https://login.example"]),
    ]
    algorithm: Annotated[
        Algorithm, Meta(description="What it signs with; tokens that say anything else are refused", examples=["EdDSA"])
    ]
    audience: Annotated[
        tuple[str, ...], Meta(description="One of them must be in the claim aud", examples=[("overlayd",)])
    ]
    file: Annotated[
        str,
        Meta(
            description="File with its public keys (PEM, JWK or a JWK set); for HS256 with the secret: 32 bytes or more, or a "
            "JWK, readable by the service alone"
        ),
    ] = ""
    credential: Annotated[
        str, Meta(max_length=255, description="The same as a credential of the service manager, by its name")
    ] = ""
    jwks_url: Annotated[str, Meta(max_length=2048, description="Where it publishes its keys; not for HS256")] = ""
    jwks_allow_private: Annotated[
        tuple[str, ...],
        Meta(description="Networks that jwks_url may lead to although they are private or loopback"),
    ] = ()
    clock_skew: Annotated[
        Duration, Meta(description="How far the issuer's clock may be off; 0s: not at all")
    ] = Duration(60)  # fmt: skip
    name_claim: Annotated[str, Meta(max_length=256, description="The claim that says who somebody is")] = "sub"
    scopes: Annotated[tuple[str, ...], Meta(description=f"Of each of its tokens. {SCOPES_TEXT}")] = ()
    roles: Annotated[tuple[str, ...], Meta(description=f"Of each of its tokens. {ROLES_TEXT}")] = ()
    policy: Annotated[str, Meta(max_length=64, description=POLICY_TEXT)] = ""
    policy_claim: Annotated[
        str, Meta(max_length=256, description="The claim that names a quota policy, which then counts; empty: none")
    ] = ""
    grants: Annotated[tuple[JwtGrantSettings, ...], Meta(description="What a claim of the issuer's tokens gives")] = ()

    def __post_init__(self) -> None:
        """Raises ValueError. Files, credentials and URLs are read when the node starts."""
        check_named_scopes(self.name, self.scopes)
        if not self.issuer or not self.audience or not all(self.audience):
            raise ValueError(f"{self.name}: say which issuer and audience its tokens name")
        if sum(map(bool, (self.file, self.credential, self.jwks_url))) != 1:
            raise ValueError(f"{self.name}: say one of file, credential and jwks_url")
        if not self.name_claim:
            raise ValueError(f"{self.name}: say which claim names somebody")
        if not (self.scopes or self.roles or self.grants):
            raise ValueError(f"{self.name}: its tokens would give nothing; set scopes, roles or grants")
        if self.jwks_url:
            self._check_url()

    def _check_url(self) -> None:
        if self.algorithm == "HS256":
            raise ValueError(f"{self.name}: a secret isn't published; with HS256 give a file or credential")
        try:
            url = urlsplit(self.jwks_url)
            host = url.hostname or ""
        except ValueError as err:
            raise ValueError(f"{self.name}: jwks_url can't be read: {err}") from err
        is_near = host in ("localhost", "127.0.0.1", "::1")
        if not host or url.username is not None or not (url.scheme == "https" or (url.scheme == "http" and is_near)):
            raise ValueError(f"{self.name}: jwks_url must be https, without a user; http only on this machine")


def _check_template(claim: str, template: str) -> None:
    if template == SCOPE:
        return
    places = _PLACE.findall(template)
    if any(place not in PLACES for place in places) or "}" in _PLACE.sub("", template):
        raise ValueError(f'{claim}: {template[:80]!r}: places are {{token}} and {{pattern}}, or "{{scope}}" alone')
    try:
        parse_scope(_PLACE.sub("x", template))
    except OverlaydError as err:
        raise ValueError(f"{claim}: {err.detail}") from err
