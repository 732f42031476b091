"""Issuers and their tokens, made with joserfc and, for what it would never make, by hand."""

import base64
import hmac
import json
from pathlib import Path
from typing import Any

from access_rig import FakeHead, TurnedClock, head_with
from joserfc import jwt
from joserfc.jwk import ECKey, Key, OctKey, OKPKey
from joserfc.jws import JWSRegistry

from overlayd.access.jwt.keys import FixedKeys, IssuerKey, IssuerKeys, read_key_file
from overlayd.access.jwt.scheme import Issuer, JwtScheme
from overlayd.access.jwt.settings import Algorithm, JwtGrantSettings, JwtSettings
from overlayd.access.roles import RoleBook
from overlayd.access.settings import AccessSettings
from overlayd.model.metrics import Metrics

SECRET = OctKey.import_key(b"an issuer's secret of 32 bytes!!" * 2)
KEYS: dict[Algorithm, Key] = {
    "HS256": SECRET, "EdDSA": OKPKey.generate_key("Ed25519"), "ES256": ECKey.generate_key("P-256"),
}  # fmt: skip
ISSUER = "https://login.example"
NOW_S = 1_700_000_000


class AnyRegistry(JWSRegistry):
    """Signs with whatever is asked for, without a warning."""

    def __init__(self) -> None:
        super().__init__(strict_check_header=False)

    def get_alg(self, name: str) -> Any:
        return self.algorithms[name]


def claims_of(**changed: Any) -> dict[str, Any]:
    """Claims that count now; None takes one away."""
    claims = {"iss": ISSUER, "sub": "alice", "aud": "overlayd", "exp": NOW_S + 600, "iat": NOW_S, **changed}
    return {name: value for name, value in claims.items() if value is not None}


def make_token(
    algorithm: Algorithm = "EdDSA", *, key: Key | None = None, header: dict[str, Any] | None = None, **changed: Any
) -> str:
    """A token of the issuer."""
    named = {"alg": algorithm, **(header or {})}
    return jwt.encode(named, claims_of(**changed), key or KEYS[algorithm], registry=AnyRegistry())


def part(value: Any) -> str:
    """A part of a token: bytes as they are, everything else as JSON."""
    octets = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()


def by_hand(header: Any, claims: Any, secret: bytes = b"") -> str:
    """A token with HMAC, or without a signature where there is no secret."""
    signed = f"{part(header)}.{part(claims)}"
    return f"{signed}.{part(hmac.digest(secret, signed.encode(), 'sha256')) if secret else ''}"


def public_pem(algorithm: Algorithm) -> bytes:
    """The issuer's public key as a file has it."""
    key = KEYS[algorithm]
    assert isinstance(key, (ECKey, OKPKey))
    return key.as_pem(private=False)


def settings_of(algorithm: Algorithm = "EdDSA", **changed: Any) -> JwtSettings:
    """The issuer's settings."""
    members: dict[str, Any] = {
        "name": "login", "issuer": ISSUER, "algorithm": algorithm, "audience": ("overlayd",), "file": "x",
        "scopes": ("read",),
    }  # fmt: skip
    return JwtSettings(**members | changed)


class TokenRig:
    """A scheme with issuers, and a clock that tests turn."""

    def __init__(
        self, *issuers: JwtSettings, directory: Path, keys: dict[str, IssuerKeys] | None = None, **settings: Any
    ) -> None:
        """Keys of those that `keys` doesn't name come from files that are written for them."""
        self.clock = TurnedClock()
        self.metrics = Metrics()
        self.settings = AccessSettings(**settings)
        self.scheme = JwtScheme(
            [Issuer(one, (keys or {}).get(one.name) or self._file(one, directory)) for one in issuers],
            settings=self.settings, roles=RoleBook(), clock=self.clock, metrics=self.metrics, may_create=True,
        )  # fmt: skip

    @staticmethod
    def _file(issuer: JwtSettings, directory: Path) -> FixedKeys:
        path = directory / f"{issuer.name}.key"
        if issuer.algorithm == "HS256":
            path.write_bytes(SECRET.raw_value + b"\n")
        else:
            path.write_bytes(public_pem(issuer.algorithm))
        path.chmod(0o600)
        replaced = JwtSettings(
            **{name: getattr(issuer, name) for name in issuer.__struct_fields__} | {"file": str(path)}
        )
        return read_key_file(replaced, {}, 32)

    def limit_hits(self, limit: str) -> float:
        return self.metrics.registry.get_sample_value("overlayd_limit_hits_total", {"limit": limit}) or 0.0


def grant(claim: str, *scopes: str, value: str = "", roles: tuple[str, ...] = ()) -> JwtGrantSettings:
    """What a claim gives."""
    return JwtGrantSettings(claim=claim, value=value, scopes=scopes, roles=roles)


def bearing(token: str) -> FakeHead:
    """A request with the token."""
    return head_with(token)


__all__ = [
    "ISSUER", "KEYS", "NOW_S", "SECRET", "IssuerKey", "TokenRig", "bearing", "by_hand", "claims_of", "grant", "make_token",
    "part", "public_pem", "settings_of",
]  # fmt: skip
