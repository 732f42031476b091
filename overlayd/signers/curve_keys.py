"""The node's keys on secp256k1: identity and wallet. Blocking."""

from collections.abc import Mapping
from pathlib import Path

from overlayd.bsv.curve_key import MemoryCurveKey
from overlayd.model.clock import Entropy
from overlayd.model.errors import ConfigInvalid, MalformedChainData
from overlayd.model.signer import CurveKey
from overlayd.signers.pins import pin_reader
from overlayd.signers.source import SECRET_BYTES, parse_source, read_secret_source
from overlayd.storage import files


def open_curve_key(
    setting: str, text: str, *, file_name: str, directory: Path, environ: Mapping[str, str], entropy: Entropy,
    must_derive: bool,
) -> CurveKey:  # fmt: skip
    """The key that a setting names; without one, `DIR/keys/<file_name>`, drawn on first use.

    `must_derive`: whoever needs it signs with its children, which no token can. Raises ConfigInvalid, LogInconsistent,
    SignerUnavailable.
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
    _ = key.public_key  # known from here on, so that nobody has to wait for it
    return key


def _in_memory(secret: bytes, what: str) -> MemoryCurveKey:
    try:
        return MemoryCurveKey.parse(secret)
    except MalformedChainData as err:
        raise ConfigInvalid(f"{what} holds no private key", subject=what) from err
