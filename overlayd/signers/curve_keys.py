"""The node's keys on secp256k1: identity and wallet. Blocking."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import structlog

from overlayd.bsv.curve_key import MemoryCurveKey
from overlayd.bsv.keys import PublicKey
from overlayd.model.clock import Entropy
from overlayd.model.errors import ConfigInvalid, MalformedChainData, SignerUnavailable
from overlayd.model.signer import CurveKey
from overlayd.signers.pins import pin_reader
from overlayd.signers.source import SECRET_BYTES, parse_source, read_secret_source
from overlayd.storage import files

_log = structlog.get_logger("signers")


def open_curve_key(
    setting: str, text: str, *, file_name: str, directory: Path, environ: Mapping[str, str], entropy: Entropy,
    must_derive: bool,
) -> CurveKey:  # fmt: skip
    """The key that a setting names; without one, `DIR/keys/<file_name>`, drawn on first use.

    `must_derive`: whoever needs it signs with its children, which no token can. Raises ConfigInvalid, LogInconsistent,
    SignerUnavailable for a token that isn't there and never was.
    """
    if not text:
        secret, _ = files.read_or_make_secret(directory / "keys" / file_name, SECRET_BYTES, entropy)
        return _in_memory(secret, str(directory / "keys" / file_name))
    source = parse_source(setting, text)
    if source.token is None:
        try:
            return _in_memory(read_secret_source(source, directory, environ), setting)
        except FileNotFoundError as err:
            raise ConfigInvalid(f"{source}: there is no such file", subject=setting) from err
    if must_derive:
        raise ConfigInvalid(
            f"{setting} can't lie on a token: it signs with keys that are derived from it, and tokens don't",
            subject=setting, hint="put it into a file or a credential",
        )  # fmt: skip
    from overlayd.signers.pkcs11_token import TokenCurveKey

    key = TokenCurveKey(source.token, pin_reader(source, directory, environ))
    note = directory / "keys" / f"{file_name}.token"
    try:
        public_key = key.public_key  # known from here on, so that nobody has to wait for it
    except SignerUnavailable as error:
        known = _read_note(note, text)
        if not known:
            raise
        _log.warning("a token isn't there; what it signs for waits", setting=setting, reason=error.detail)
        key = TokenCurveKey(source.token, pin_reader(source, directory, environ), known=known)
        key.trouble = error.detail
        return key
    _write_note(note, text, public_key)
    return key


def _read_note(path: Path, text: str) -> bytes:
    """The public key that was found at this very place before; b"" for none."""
    try:
        place, _, public_key = files.read_file(path).decode("ascii").strip().partition(" ")
        return PublicKey.parse_hex(public_key).encoded if place == _mark(text) else b""
    except (FileNotFoundError, UnicodeDecodeError, MalformedChainData):
        return b""


def _write_note(path: Path, text: str, public_key: bytes) -> None:
    """So that the node can start while the token is away. Nothing in it is secret."""
    if _read_note(path, text) != public_key:
        files.make_directory(path.parent.parent)
        files.replace_file(path, f"{_mark(text)} {public_key.hex()}\n".encode("ascii"))


def _mark(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _in_memory(secret: bytes, what: str) -> MemoryCurveKey:
    try:
        return MemoryCurveKey.parse(secret)
    except MalformedChainData as err:
        raise ConfigInvalid(f"{what} holds no private key", subject=what) from err
