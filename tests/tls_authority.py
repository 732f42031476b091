"""An authority that signs whatever certificates a test wants."""

import datetime
import ipaddress
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from overlayd.model.clock import SystemClock

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
NOW = datetime.datetime.fromtimestamp(SystemClock().now_us() / 1e6, datetime.UTC)
DAY = datetime.timedelta(days=1)


class Authority:
    """A root certificate with its key. Files go into one directory, closed to others."""

    def __init__(self, directory: Path, name: str = "test authority") -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = name_of(name)
        self.certificate = self._sign(self._name, self._key, [], NOW - DAY, NOW + 30 * DAY, is_authority=True)
        self.file = directory / f"{name.replace(' ', '-')}.pem"
        self.file.write_bytes(pem_of(self.certificate))

    def issue(
        self, name: str, *names: x509.GeneralName, begins: datetime.datetime = NOW - DAY,
        ends: datetime.datetime = NOW + 30 * DAY, key: Key | None = None, organization: str = "", is_rsa: bool = False,
    ) -> Path:  # fmt: skip
        """A file with a certificate and its key. Without names it is for localhost and 127.0.0.1."""
        if key is None:
            key = rsa.generate_private_key(65537, 2048) if is_rsa else ec.generate_private_key(ec.SECP256R1())
        sans = names or (x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
        signed = self._sign(name_of(name, organization), key, list(sans), begins, ends, is_authority=False)
        file = self._directory / f"{name}.pem"
        file.write_bytes(pem_of(signed) + key_pem_of(key))
        file.chmod(0o600)
        return file

    def client_context(self, certificate: Path | None = None) -> ssl.SSLContext:
        """What a client that trusts the authority uses."""
        context = ssl.create_default_context(cafile=str(self.file))
        if certificate is not None:
            context.load_cert_chain(certificate)
        return context

    def _sign(
        self, subject: x509.Name, key: Key, names: list[x509.GeneralName], begins: datetime.datetime,
        ends: datetime.datetime, *, is_authority: bool,
    ) -> x509.Certificate:  # fmt: skip
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begins)
            .not_valid_after(ends)
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        if not is_authority:
            issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
            builder = builder.add_extension(issuer, critical=False)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256())


def name_of(common: str, organization: str = "") -> x509.Name:
    """A subject."""
    parts = [x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, organization)] if organization else []
    return x509.Name([*parts, x509.NameAttribute(x509.NameOID.COMMON_NAME, common)])


def pem_of(certificate: x509.Certificate) -> bytes:
    """As in a file."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def key_pem_of(key: Key, passphrase: bytes = b"") -> bytes:
    """As in a file."""
    sealing = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, sealing)
