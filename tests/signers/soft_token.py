"""A token in software (SoftHSM2), with keys made on it. Where that isn't installed, its tests skip."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

LIBRARY = next(
    (path for path in ("/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/pkcs11/libsofthsm2.so") if Path(path).exists()),
    "",
)
NAME = "overlayd test"
PIN = "canary-pin-77b3c1"
_CURVES = {"ed25519": "1.3.101.112", "secp256k1": "1.3.132.0.10", "secp256r1": "1.2.840.10045.3.1.7"}


class SoftToken:
    """One token in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.tokens = directory / "tokens"
        self.tokens.mkdir()
        self.pin_file = directory / "pin"
        self.pin_file.write_text(PIN + "\n")
        self.pin_file.chmod(0o600)
        self.config = directory / "softhsm2.conf"
        self.config.write_text(f"directories.tokendir = {self.tokens}\nlog.level = ERROR\n")

    def create(self) -> None:
        """Once SOFTHSM2_CONF names the configuration."""
        run = ["softhsm2-util", "--init-token", "--free", "--label", NAME, "--so-pin", "87654321", "--pin", PIN]
        subprocess.run(run, check=True, capture_output=True)

    def make_key(self, label: str, curve: str) -> None:
        """A key pair on the token."""
        import pkcs11
        from pkcs11.util.ec import encode_named_curve_parameters

        from overlayd.signers.pkcs11_token import open_module

        module = open_module(LIBRARY)
        kind = pkcs11.KeyType.EC_EDWARDS if curve == "ed25519" else pkcs11.KeyType.EC
        with module.library.get_token(token_label=NAME).open(user_pin=PIN, rw=True) as session:
            params = {pkcs11.Attribute.EC_PARAMS: encode_named_curve_parameters(_CURVES[curve])}
            domain = session.create_domain_parameters(kind, params, local=True)
            domain.generate_keypair(store=True, label=label)
        module.start_again()

    def uri(self, label: str, *, pin: str = "") -> str:
        """What the settings say."""
        source = pin or f"file:{self.pin_file}"
        return f"pkcs11:token={NAME.replace(' ', '%20')};object={label}?module-path={LIBRARY}&pin-source={source}"

    def take_away(self) -> None:
        """Somebody pulls it out."""
        self.tokens.rename(self.tokens.with_name("away"))

    def put_back(self) -> None:
        """And in again."""
        self.tokens.with_name("away").rename(self.tokens)


def soft_token(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SoftToken]:
    """As a fixture."""
    pytest.importorskip("pkcs11")
    if not LIBRARY or shutil.which("softhsm2-util") is None:
        pytest.skip("SoftHSM2 isn't installed (Debian: apt-get install softhsm2)")
    from overlayd.signers.pkcs11_token import open_module

    token = SoftToken(directory)
    monkeypatch.setenv("SOFTHSM2_CONF", str(token.config))
    token.create()
    open_module(LIBRARY).start_again()  # it reads its configuration when it starts
    yield token
