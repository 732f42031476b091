"""`Authorization: Bearer` with a JSON Web Token (RFC 7519), checked with joserfc.

Which issuer a token is from decides everything else: the one algorithm, the keys, the audience. Nothing that the token
says about how it is to be checked is followed but the name of the key, among those of its issuer.
"""

import json
import math
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import msgspec
from joserfc import jws, jwt
from joserfc.errors import ClaimError, ExpiredTokenError, InvalidClaimError, JoseError, MissingClaimError
from joserfc.jws import CompactSignature, JWSRegistry
from joserfc.jwt import JWTClaimsRegistry

from overlayd.access.bearers import bearer_of
from overlayd.access.gate import Claim, RequestHead
from overlayd.access.jwt.claims import Worth, judge_claims
from overlayd.access.jwt.keys import IssuerKey, IssuerKeys
from overlayd.access.jwt.settings import JwtSettings
from overlayd.access.origin import Origin, Peer
from overlayd.access.principal import Principal
from overlayd.access.roles import RoleBook
from overlayd.access.secret_text import digest_of
from overlayd.access.settings import AccessSettings
from overlayd.model.clock import Clock
from overlayd.model.errors import Unauthorized
from overlayd.model.metrics import Metrics

LIMIT = "jwt_bytes"
TYPES = frozenset(("jwt", "at+jwt", "application/jwt", "application/at+jwt"))
"""What `typ` may say, if it says anything: tokens made for something else don't let in (RFC 8725 3.11)."""
LATEST_S = 1 << 53
_BROKEN = (JoseError, ValueError, TypeError, KeyError, AttributeError, RecursionError)
"""What the library raises for what isn't a token."""


class Issuer(msgspec.Struct, frozen=True):
    """An issuer with its keys."""

    settings: JwtSettings
    keys: IssuerKeys


class _Registry(JWSRegistry):
    """Takes the one algorithm, by its name in the token. Sizes are bounded before. The library's own would warn with
    each token that EdDSA has a newer name."""

    def __init__(self, algorithm: str, bytes_max: int) -> None:
        super().__init__(algorithms=[algorithm], strict_check_header=False)
        self.max_header_length = self.max_payload_length = self.max_signature_length = bytes_max

    def get_alg(self, name: str) -> Any:
        if name not in (self.allowed or ()):
            raise ValueError("another algorithm than the issuer's")
        return self.algorithms[name]


class _Known(msgspec.Struct, frozen=True):
    """A token that was checked. `begin_us`, `end_us`: between them it counts."""

    worth: Worth
    issuer: str
    key: IssuerKey
    begin_us: int
    end_us: int


class JwtScheme:
    """A `Scheme` of the gate."""

    name = "jwt"
    headers = frozenset((b"authorization",))
    is_ambient = False
    is_costly = False
    """A signature takes less than the rest of a request, and a token that was seen before a look-up."""

    def __init__(
        self, issuers: Iterable[Issuer], *, settings: AccessSettings, roles: RoleBook, clock: Clock, metrics: Metrics,
        may_create: bool,
    ) -> None:  # fmt: skip
        """`may_create`: publishing from this machine creates unknown streams."""
        self._bytes_max = int(settings.jwt_bytes)
        self._kept_max = settings.jwt_tokens_kept
        self._roles = roles
        self._clock = clock
        self._metrics = metrics
        self._may_create = may_create
        self._issuers: dict[str, Issuer] = {}
        self._registries: dict[str, _Registry] = {}
        self._reading = _Registry("", self._bytes_max)
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        metrics.gauge("overlayd_access_jwts", "Tokens that were checked and are kept").set_function(
            lambda: len(self._known)
        )
        self.adopt(issuers)

    def adopt(self, issuers: Iterable[Issuer]) -> None:
        """These issuers from now on. Tokens that were checked are checked anew; ending what they let in is for whoever
        takes an issuer's keys away."""
        self._issuers = {issuer.settings.issuer: issuer for issuer in issuers}
        self._registries = {
            name: _Registry(issuer.settings.algorithm, self._bytes_max) for name, issuer in self._issuers.items()
        }
        self._known.clear()

    def __repr__(self) -> str:
        return f"JwtScheme(issuers={len(self)}, known={len(self._known)})"

    def __len__(self) -> int:
        return len(self._issuers)

    @property
    def is_configured(self) -> bool:
        return bool(self._issuers)

    def is_brought(self, head: RequestHead, peer: Peer) -> bool:
        token = bearer_of(head)
        return token is not None and token.count(".") == 2

    async def claim(self, head: RequestHead, peer: Peer, origin: Origin) -> Claim:
        token = bearer_of(head) or ""
        if len(token) > self._bytes_max:
            self._metrics.count_limit_hit(LIMIT)
            raise _refusal(f"the token is over {self._bytes_max} bytes")
        seen = digest_of(token)
        known = self._known.get(seen)
        if known is None or known.key.standing.ended:
            known = await self._check(token)
            self._keep(seen, known)
        else:
            self._known.move_to_end(seen)
        now_us = self._clock.now_us()
        if known.end_us <= now_us:
            raise _refusal("the token has expired")
        if known.begin_us > now_us:
            raise _refusal("the token doesn't count yet")
        return Claim(self._principal(known, origin))

    def _keep(self, seen: bytes, known: _Known) -> None:
        self._known[seen] = known
        while len(self._known) > self._kept_max:
            self._metrics.count_limit_hit("jwt_tokens_kept")
            self._known.popitem(last=False)

    async def _check(self, token: str) -> _Known:
        """A checkpoint only when keys are waited for. Raises Unauthorized, IssuerUnavailable."""
        try:
            parts = jws.extract_compact(token.encode("ascii"), registry=self._reading)
            claims = json.loads(parts.payload or b"")
        except _BROKEN as err:
            raise _refusal("the token can't be read") from err
        named = claims.get("iss") if isinstance(claims, dict) else None
        issuer = self._issuers.get(named) if isinstance(named, str) else None
        if issuer is None:
            raise _refusal("the token's issuer isn't known here")
        id = _check_header(parts, issuer.settings)
        keys = issuer.keys.find(id)
        if not keys:
            await issuer.keys.want(id)
            keys = issuer.keys.find(id)
        if not keys:
            raise _refusal("the token names a key that its issuer doesn't have")
        return self._verify(token, issuer.settings, keys)

    def _verify(self, token: str, issuer: JwtSettings, keys: tuple[IssuerKey, ...]) -> _Known:
        registry = self._registries[issuer.issuer]
        for key in keys:
            try:
                claims = jwt.decode(token, key.key, registry=registry).claims
            except _BROKEN:
                continue
            return self._judge(claims, issuer, key)
        raise _refusal("the token's signature doesn't verify")

    def _judge(self, claims: dict[str, Any], issuer: JwtSettings, key: IssuerKey) -> _Known:
        """What is verified now: who it is about, and from when to when it counts."""
        skew_s = float(issuer.clock_skew)
        now_s = self._clock.now_us() // 1_000_000
        wanted = JWTClaimsRegistry(
            now=now_s, leeway=math.ceil(skew_s), iss={"essential": True, "value": issuer.issuer},
            aud={"essential": True, "values": list(issuer.audience)}, exp={"essential": True},
        )  # fmt: skip
        try:
            wanted.validate(claims)
        except ClaimError as err:
            raise _refusal(_words_of(err)) from err
        end_s, begin_s = min(claims["exp"], LATEST_S) + skew_s, min(claims.get("nbf", 0), LATEST_S) - skew_s
        return _Known(
            judge_claims(claims, issuer, self._roles), issuer.name, key, int(begin_s * 1e6), int(end_s * 1e6)
        )  # fmt: skip

    def _principal(self, known: _Known, origin: Origin) -> Principal:
        name = f"jwt:{known.issuer}/{known.worth.name}"
        grants = known.worth.grants
        return Principal(
            name=name, kind="jwt", rights=grants.everywhere, address=origin.address,
            may_create=self._may_create and origin.is_local, grants=grants, owner=name, standing=known.key.standing,
            expires_us=known.end_us, policy=known.worth.policy,
        )  # fmt: skip


def _check_header(parts: CompactSignature, issuer: JwtSettings) -> str:
    """The name of the key, "" for none. Raises Unauthorized for a header that asks for anything else."""
    header = parts.headers()
    if header.get("alg") != issuer.algorithm:
        raise _refusal(f"the token isn't signed with {issuer.algorithm}, as its issuer's are")
    if "crit" in header or "b64" in header:
        raise _refusal("the token's header wants something to be understood that isn't understood here (crit)")
    kind = header.get("typ", "JWT")
    if not isinstance(kind, str) or kind.lower() not in TYPES:
        raise _refusal("the token was made for something else (typ)")
    id = header.get("kid", "")
    if not isinstance(id, str):
        raise _refusal("the token's header can't be read (kid)")
    return id


def _words_of(error: ClaimError) -> str:
    if isinstance(error, ExpiredTokenError):
        return "the token has expired"
    if isinstance(error, MissingClaimError):
        return f"the token lacks the claim {error.claim}"
    if isinstance(error, InvalidClaimError) and error.claim == "nbf":
        return "the token doesn't count yet"
    return f"the token's claim {error.claim} isn't as it must be"


def _refusal(detail: str) -> Unauthorized:
    return Unauthorized(
        detail, subject="token", hint="fetch a new token from the issuer, for this node as its audience"
    )
