"""An issuer's keys: read from a file or a set of JSON Web Keys (RFC 7517), kept only if they fit the one algorithm.

A key that fits another algorithm, or that is for something else than signatures, can't be used by mistake: it isn't
there. So a token can't choose how it is checked.
"""

import json
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from joserfc.errors import JoseError, SecurityWarning
from joserfc.jwk import ECKey, Key, OctKey, OKPKey

from overlayd.access.guarded_files import find_credential, read_guarded
from overlayd.access.jwt.settings import Algorithm, JwtSettings
from overlayd.access.principal import Standing
from overlayd.model.errors import ConfigInvalid

SECRET_BYTES_MIN = 32
"""Of a secret for HS256 (RFC 7518 3.2)."""
_Members: TypeAlias = dict[str, Any]
_KINDS: dict[Algorithm, tuple[str, str]] = {"HS256": ("oct", ""), "EdDSA": ("OKP", "Ed25519"), "ES256": ("EC", "P-256")}
"""Key type and curve of each algorithm."""
_UNREADABLE = (JoseError, ValueError, TypeError, KeyError, AttributeError, UnsupportedAlgorithm)
"""What the libraries raise for what isn't a key, or is one of another kind than was asked for."""
_PRIVATE = b"PRIVATE KEY"
_PEM = b"-----BEGIN "


class IssuerKey(msgspec.Struct, frozen=True):
    """A key that verifies an issuer's tokens. `id`: its `kid`, "" for one without. `mark`: tells the same key again
    when it is read anew. `standing`: of everybody whose token it verified."""

    id: str
    key: Key
    mark: str
    standing: Standing

    def __repr__(self) -> str:
        return f"IssuerKey({self.id!r})"


class IssuerKeys(Protocol):
    """Where an issuer's keys come from."""

    def find(self, id: str) -> tuple[IssuerKey, ...]:
        """Those that a token which names this `kid` ("" for none) may be signed with."""
        ...

    def end(self) -> None:
        """They don't count any more, nor does what they let in."""
        ...

    async def want(self, id: str) -> None:
        """`find` gave nothing: looks for newer keys, if that may help. Raises IssuerUnavailable when there are none
        at all because the issuer can't be reached. Checkpoint if it waits."""
        ...


class FixedKeys:
    """Keys that stay while the node runs."""

    def __init__(self, keys: Iterable[IssuerKey]) -> None:
        self._keys = tuple(keys)

    def keep(self, before: "FixedKeys") -> None:
        """A key that was there before stays the same, with what it let in; the others of then are ended."""
        known = {key.mark: key for key in before._keys}
        self._keys = tuple(known.pop(key.mark, key) for key in self._keys)
        for gone in known.values():
            gone.standing.ended = "revoked"

    def find(self, id: str) -> tuple[IssuerKey, ...]:
        """Keys from a PEM file have no id and may be meant by any."""
        return choose(self._keys, id)

    def end(self) -> None:
        for key in self._keys:
            key.standing.ended = "revoked"

    async def want(self, id: str) -> None:
        """There are no others."""


def choose(keys: Iterable[IssuerKey], id: str) -> tuple[IssuerKey, ...]:
    """Those that a token may be signed with which names this `kid`: all of them when it names none."""
    return tuple(key for key in keys if not id or not key.id or key.id == id)


def read_key_file(settings: JwtSettings, environ: Mapping[str, str], keys_max: int) -> FixedKeys:
    """The keys of `file` or `credential`. Blocking. Raises ConfigInvalid, which repeats nothing of the content."""
    is_secret = settings.algorithm == "HS256"
    try:
        if settings.credential:
            content = read_guarded(find_credential(settings.credential, environ), is_secret=False)
        else:
            content = read_guarded(Path(settings.file), is_secret=is_secret)
        keys = [_issuer_key(key, id) for id, key in _keys_of(content, settings.algorithm)]
    except ConfigInvalid as err:
        raise ConfigInvalid(
            f"access.jwt {settings.name}: {err.detail}", subject=f"access.jwt {settings.name}", hint=err.hint
        ) from err
    if not 0 < len(keys) <= keys_max:
        found = f"{len(keys)} keys, and jwks_keys_max is {keys_max}" if keys else f"no key for {settings.algorithm}"
        raise ConfigInvalid(
            f"access.jwt {settings.name}: the file holds {found}", subject=f"access.jwt {settings.name}"
        )
    return FixedKeys(keys)


def parse_key_set(content: bytes, algorithm: Algorithm) -> list[IssuerKey]:
    """The keys of a published set that fit, in its order; others are passed over. Raises ValueError when it isn't a set
    of keys at all."""
    members = _json_of(content)
    listed = members.get("keys") if members is not None else None
    if not isinstance(listed, list):
        raise ValueError("not a JSON object with a list of keys")
    found = []
    for item in listed:
        if not isinstance(item, dict) or "d" in item or "k" in item:
            continue  # what is private and published is anybody's
        fitting = _fitting(item, algorithm)
        if fitting is not None:
            found.append(_issuer_key(fitting, _id_of(item)))
    return found


def _keys_of(content: bytes, algorithm: Algorithm) -> list[tuple[str, Key]]:
    """Ids and keys of a file. Raises ConfigInvalid."""
    members = _json_of(content)
    if members is None:
        return [("", _secret_key(content) if algorithm == "HS256" else _pem_key(content, algorithm))]
    listed = members.get("keys", [members])
    items = [item for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
    if algorithm != "HS256" and any("d" in item for item in items):
        raise _private_key()
    found = []
    for item in items:
        key = _fitting(item, algorithm)
        if key is not None:
            if isinstance(key, OctKey):
                _check_secret(key.raw_value)
            found.append((_id_of(item), key))
    return found


def _fitting(members: _Members, algorithm: Algorithm) -> Key | None:
    """The key if it is for signatures with this algorithm."""
    kind, curve = _KINDS[algorithm]
    operations = members.get("key_ops", ["verify"])
    if (
        members.get("kty") != kind
        or members.get("crv", "") != curve
        or members.get("use", "sig") != "sig"
        or members.get("alg", algorithm) not in (algorithm, curve)
        or not (isinstance(operations, list) and "verify" in operations)
        or not isinstance(members.get("kid", ""), str)
    ):
        return None
    # What else stands in it is none of our business, and the library is particular about it.
    bare = {name: members[name] for name in ("kty", "crv", "x", "y", "k") if name in members}
    try:
        return _import(kind, bare)
    except _UNREADABLE:
        return None


def _import(kind: str, value: Any) -> Key:
    if kind == "oct":
        with warnings.catch_warnings():  # about short ones, which are refused
            warnings.simplefilter("ignore", SecurityWarning)
            return OctKey.import_key(value)
    return OKPKey.import_key(value) if kind == "OKP" else ECKey.import_key(value)


def _secret_key(content: bytes) -> Key:
    secret = content.rstrip(b"\r\n")
    if secret.lstrip().startswith(_PEM):
        raise ConfigInvalid("HS256 wants a secret, and this is a key or certificate in PEM")
    _check_secret(secret)
    try:
        return _import("oct", secret)
    except _UNREADABLE as err:
        raise ConfigInvalid("HS256 wants a secret, and this is a key or certificate") from err


def _check_secret(secret: bytes) -> None:
    if len(secret) < SECRET_BYTES_MIN:
        raise ConfigInvalid(
            f"a secret for HS256 has {SECRET_BYTES_MIN} bytes or more", hint="head -c 32 /dev/urandom > FILE draws one"
        )


def _pem_key(content: bytes, algorithm: Algorithm) -> Key:
    if _PRIVATE in content:
        raise _private_key()
    kind, curve = _KINDS[algorithm]
    try:
        key = _import(kind, content)
        fits = key.key_type == kind and getattr(key, "curve_name", "") == curve
    except _UNREADABLE as err:
        raise ConfigInvalid("neither a public key in PEM nor JSON Web Keys can be read from it") from err
    if not fits:
        raise ConfigInvalid(f"the key isn't one for {algorithm}, which takes {curve}")
    return key


def _private_key() -> ConfigInvalid:
    return ConfigInvalid(
        "it holds a private key, with which whoever reads it can make tokens", hint="give the node the public key alone"
    )


def _issuer_key(key: Key, id: str) -> IssuerKey:
    return IssuerKey(id, key, f"{id} {key.thumbprint()}", Standing())


def _id_of(members: _Members) -> str:
    return str(members.get("kid", ""))


def _json_of(content: bytes) -> _Members | None:
    """The JSON object, None for what isn't one."""
    if not content.lstrip().startswith(b"{"):
        return None
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
