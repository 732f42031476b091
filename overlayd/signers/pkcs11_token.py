"""Keys on tokens, through the token's PKCS#11 library. Blocking; every call may wait for a device.

What fails is told as SignerUnavailable, with the library's own word for it, and tried anew at the next call: the session is
opened again, and the library started again where it lost its token. Except for a PIN that was wrong: tokens lock themselves
after a few of those, so it isn't tried twice by one process.
"""

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import structlog

from overlayd.bsv.keys import CURVE_ORDER, DIGEST_BYTES, PublicKey
from overlayd.model.errors import ConfigInvalid, KeyNotSuited, MalformedChainData, SignerUnavailable
from overlayd.model.signer import PUBLIC_KEY_BYTES
from overlayd.signers.pkcs11_uri import TokenUri

T = TypeVar("T")
_HINT = "is the token there and unlocked? pkcs11-tool --module … -O lists what is on it"
_modules: dict[str, "TokenModule"] = {}
_modules_lock = threading.Lock()
_log = structlog.get_logger("signers.pkcs11")


def open_module(path: str) -> "TokenModule":
    """The library of that path, one for the process. Raises ConfigInvalid, SignerUnavailable."""
    with _modules_lock:
        module = _modules.get(path)
        if module is None:
            module = _modules[path] = TokenModule(path)
        return module


class TokenModule:
    """A PKCS#11 library. Its calls go one after the other."""

    def __init__(self, path: str) -> None:
        """Raises ConfigInvalid when it can't be loaded, or nothing is installed that could; SignerUnavailable when it is
        there and doesn't start, as some do without their token."""
        try:
            import pkcs11
        except ImportError as err:
            raise ConfigInvalid(
                "keys on tokens need the package python-pkcs11", subject="pkcs11", hint="pip install 'overlayd[pkcs11]'"
            ) from err
        self.api: Any = pkcs11
        self.lock = threading.RLock()
        self.generation = 0
        """Grows when the library is started again, which ends all sessions."""
        try:
            self.library: Any = pkcs11.lib(path)
        except (RuntimeError, OSError) as err:
            if (
                isinstance(err, pkcs11.PKCS11Error) and type(err) is not pkcs11.PKCS11Error
            ):  # the library itself said it
                raise SignerUnavailable(
                    f"{path} doesn't start: {_word_of(err)}", subject="pkcs11", hint=_HINT, retry_after_s=5.0
                ) from err
            raise ConfigInvalid(
                f"{path} can't be loaded as a PKCS#11 library: {_word_of(err)}", subject="pkcs11"
            ) from err

    def start_again(self) -> None:
        """Some libraries don't find a token that came back in any other way."""
        self.library.reinitialize()
        self.generation += 1


class TokenKey:
    """A private key on a token and the public one beside it."""

    is_quick = False

    def __init__(self, uri: TokenUri, read_pin: Callable[[], str]) -> None:
        """`read_pin`: gives "" where the token asks for none. The library is loaded with the first use."""
        self._uri = uri
        self._read_pin = read_pin
        self._opened: TokenModule | None = None
        self._session: Any = None
        self._generation = -1
        self._private: Any = None
        self._point = b""
        self._refused = ""
        self.trouble = ""
        """Why it couldn't be reached the last time; "" when it could."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._uri})"

    @property
    def _module(self) -> TokenModule:
        """Raises ConfigInvalid for a library that can't be loaded, SignerUnavailable for one that doesn't start."""
        if self._opened is None:
            self._opened = open_module(self._uri.module_path)
        return self._opened

    def point(self) -> bytes:
        """The public key's bytes, as the token holds them, without their wrapping. Raises SignerUnavailable."""
        if not self._point:
            self._call(lambda: b"")
        return self._point

    def sign_with(self, mechanism: str, message: bytes) -> bytes:
        """Raises SignerUnavailable."""
        return self._call(
            lambda: bytes(self._private.sign(message, mechanism=getattr(self._module.api.Mechanism, mechanism)))
        )

    def _call(self, ask: Callable[[], T]) -> T:
        try:
            found = self._try_call(ask)
        except SignerUnavailable as error:
            self.trouble = error.detail
            raise
        self.trouble = ""
        return found

    def _try_call(self, ask: Callable[[], T]) -> T:
        """Once more with a new session, and once more with the library started again, before it counts as gone."""
        failure: Exception | None = None
        with self._module.lock:
            for attempt in range(3):
                try:
                    if attempt == 2:
                        self._module.start_again()
                    self._connect()
                    return ask()
                except RuntimeError as err:  # root of the library's errors
                    failure = err
                    self._session = None
                    self._raise_if_refused(err)
        raise SignerUnavailable(f"{self._uri}: {_word_of(failure)}", subject="pkcs11", hint=_HINT, retry_after_s=5.0)

    def _connect(self) -> None:
        if self._session is not None and self._generation == self._module.generation:
            return
        if self._refused:
            raise SignerUnavailable(self._refused, subject="pkcs11", hint="correct the PIN, then restart the node")
        api, uri = self._module.api, self._uri
        named = {"token_label": uri.token or None, "token_serial": uri.serial or None}
        token = self._module.library.get_token(**{name: value for name, value in named.items() if value})
        pin = self._read_pin()
        self._generation = self._module.generation
        try:
            self._session = token.open(user_pin=pin or None)
        except api.UserAlreadyLoggedIn:  # by another key's session: a login counts for the whole token
            self._session = token.open()
        wanted = {"label": uri.label or None, "id": uri.id or None}
        search = {name: value for name, value in wanted.items() if value}
        self._private = self._session.get_key(object_class=api.ObjectClass.PRIVATE_KEY, **search)
        if not self._point:
            public = self._session.get_key(object_class=api.ObjectClass.PUBLIC_KEY, **search)
            self._point = _unwrapped(bytes(public[api.Attribute.EC_POINT]))

    def _raise_if_refused(self, err: Exception) -> None:
        api = self._module.api
        if isinstance(err, api.PinIncorrect | api.PinLocked | api.PinInvalid | api.PinLenRange | api.PinExpired):
            self._refused = f"{self._uri}: the token refuses the PIN ({_word_of(err)}); it isn't tried again"
            _log.error("the token refuses the PIN", key=str(self._uri), error=_word_of(err))
            raise SignerUnavailable(
                self._refused, subject="pkcs11", hint="correct the PIN, then restart the node"
            ) from err


class TokenCheckpointKey(TokenKey):
    """An Ed25519 key on a token. Implements `CheckpointKey`."""

    @property
    def public_key(self) -> bytes:
        """Raises SignerUnavailable, KeyNotSuited for a key of another kind."""
        point = self.point()
        if len(point) != PUBLIC_KEY_BYTES:
            raise KeyNotSuited(f"{self._uri} isn't an Ed25519 key", subject="pkcs11")
        return point

    def sign(self, message: bytes) -> bytes:
        """Raises SignerUnavailable."""
        return self.sign_with("EDDSA", message)


class TokenCurveKey(TokenKey):
    """A secp256k1 key on a token: it signs, and derives nothing. Implements `CurveKey`."""

    can_derive = False

    def __init__(self, uri: TokenUri, read_pin: Callable[[], str], *, known: bytes = b"") -> None:
        """`known`: the public key that it had before, where the token needn't be there to say it."""
        super().__init__(uri, read_pin)
        self._known = known

    @property
    def public_key(self) -> bytes:
        """Raises SignerUnavailable, KeyNotSuited for a key of another kind."""
        return self._known or self._read_public_key()

    def _read_public_key(self) -> bytes:
        try:
            return PublicKey.parse(self.point()).encoded
        except MalformedChainData as err:
            raise KeyNotSuited(f"{self._uri} isn't a key on secp256k1", subject="pkcs11") from err

    def sign_digest(self, digest: bytes, tweak: bytes = b"") -> bytes:
        """Raises SignerUnavailable, KeyNotSuited with a tweak."""
        assert len(digest) == DIGEST_BYTES
        if tweak:
            raise KeyNotSuited(f"{self._uri}: a token can't sign with a child of its key", subject="pkcs11")
        if self._known and self._read_public_key() != self._known:
            self.trouble = f"{self._uri}: the token holds another key than before"
            raise SignerUnavailable(
                self.trouble, subject="pkcs11", hint="put the token back that was there, or restart the node with this one",
                retry_after_s=60.0,
            )  # fmt: skip
        raw = self.sign_with("ECDSA", digest)
        half = len(raw) // 2
        r, s = int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big")
        return _der(r, min(s, CURVE_ORDER - s))

    def agree(self, other: bytes) -> bytes:
        """Raises KeyNotSuited: tokens give away only half of the shared point."""
        raise KeyNotSuited(f"{self._uri}: a token doesn't agree on shared points", subject="pkcs11")


def _unwrapped(point: bytes) -> bytes:
    """Without the DER octet string around it, which some libraries leave out."""
    return point[2:] if len(point) > 2 and point[0] == 4 and point[1] == len(point) - 2 else point


def _der(r: int, s: int) -> bytes:
    parts = b""
    for number in (r, s):
        octets = number.to_bytes(number.bit_length() // 8 + 1, "big")
        parts += b"\x02" + bytes([len(octets)]) + octets
    return b"\x30" + bytes([len(parts)]) + parts


def _word_of(err: Exception | None) -> str:
    """The library's errors have their meaning in their class."""
    text = str(err or "").strip()
    return f"{type(err).__name__}: {text}" if text else type(err).__name__
