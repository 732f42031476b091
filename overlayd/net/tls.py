"""Certificates and keys of the TLS listeners: read at start, read anew when asked, with every mistake named."""

import ssl
import stat
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

from overlayd.access.origin import PeerCertificate
from overlayd.model.clock import Clock
from overlayd.model.errors import ConfigInvalid
from overlayd.model.metrics import Metrics
from overlayd.net.settings import TlsListener

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2: forward secrecy and authenticated encryption only. Those of 1.3 all are."""
PROTOCOLS = ("http/1.1",)
EXPIRES_SOON = timedelta(days=14)
_CERTIFICATE, _PRIVATE_KEY = "-----BEGIN CERTIFICATE-----", "PRIVATE KEY-----"
_log = structlog.get_logger("net.tls")


class _Encrypted(Exception):
    """The key wants a passphrase."""


class TlsEndpoint:
    """What one listener shows its clients, as it was last read."""

    def __init__(self, settings: TlsListener, clock: Clock) -> None:
        """Blocking, for as long as reading a few small files takes. Raises ConfigInvalid."""
        self.settings = settings
        self._clock = clock
        self.context, self.expires_at = make_context(settings, clock)

    def __repr__(self) -> str:
        return f"TlsEndpoint({self.settings.address!r}, expires {self.expires_at:%Y-%m-%d})"


class TlsEndpoints:
    """Those of all TLS listeners."""

    def __init__(self, listeners: Sequence[TlsListener], *, clock: Clock, metrics: Metrics | None = None) -> None:
        """Raises ConfigInvalid."""
        self._clock = clock
        self._expiry = metrics and metrics.gauge(
            "overlayd_tls_certificate_expiry_timestamp_seconds", "When a listener's certificate expires", "listener"
        )
        self._all = tuple(TlsEndpoint(settings, clock) for settings in listeners)
        self._note_expiry()

    def __iter__(self) -> Iterator[TlsEndpoint]:
        return iter(self._all)

    def reload(self) -> None:
        """Reads certificates, keys and authorities anew. Sessions go on as they are; those that begin use the new
        ones, and can't resume what was begun under the old. Blocking, shortly.

        Raises ConfigInvalid when something is wrong with one of them; then all stay as they were.
        """
        fresh = [make_context(endpoint.settings, self._clock) for endpoint in self._all]
        for endpoint, (context, expires_at) in zip(self._all, fresh, strict=True):
            endpoint.context, endpoint.expires_at = context, expires_at
        self._note_expiry()
        _log.info("certificates were read anew", listeners=[endpoint.settings.address for endpoint in self._all])

    def _note_expiry(self) -> None:
        for endpoint in self._all:
            if self._expiry:
                self._expiry.labels(endpoint.settings.address).set(endpoint.expires_at.timestamp())


def make_context(settings: TlsListener, clock: Clock) -> tuple[ssl.SSLContext, datetime]:
    """What OpenSSL needs to know of a listener, and when its certificate expires. Raises ConfigInvalid."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.num_tickets = 1  # a second one would serve only clients that resume several sessions at once
    context.set_alpn_protocols(list(PROTOCOLS))
    expires_at = _load_certificate(context, settings, _moment(clock))
    if settings.client_ca:
        is_required = settings.client_certificates == "required"
        context.verify_mode = ssl.CERT_REQUIRED if is_required else ssl.CERT_OPTIONAL
        _load_authorities(context, settings.client_ca)
    return context, expires_at


def certificate_facts(der: bytes, clock: Clock) -> PeerCertificate:
    """What a verified client certificate says. A resumed session isn't verified anew, so its time is looked at here.

    Raises ValueError for one that has expired or can't be read.
    """
    certificate = x509.load_der_x509_certificate(der)
    if certificate.not_valid_after_utc < _moment(clock):
        raise ValueError("the client's certificate has expired")
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        names = x509.SubjectAlternativeName([])
    return PeerCertificate(
        subject=certificate.subject.rfc4514_string(), names=tuple(filter(None, map(_name_of, names))),
        fingerprint=f"sha256:{certificate.fingerprint(SHA256()).hex()}",
    )  # fmt: skip


def _name_of(name: x509.GeneralName) -> str:
    if isinstance(name, x509.DNSName):
        return f"DNS:{name.value.lower()}"
    if isinstance(name, x509.UniformResourceIdentifier):
        return f"URI:{name.value}"
    if isinstance(name, x509.RFC822Name):
        return f"email:{name.value}"
    return f"IP:{name.value}" if isinstance(name, x509.IPAddress) else ""


def _moment(clock: Clock) -> datetime:
    return datetime.fromtimestamp(clock.now_us() / 1_000_000, UTC)


def _load_certificate(context: ssl.SSLContext, settings: TlsListener, now: datetime) -> datetime:
    cert_text, key_path = _read(settings.cert, "cert"), settings.key or settings.cert
    key_text = _read(key_path, "key")
    if _CERTIFICATE not in cert_text:
        raise _refusal("cert", f"there is no certificate in {settings.cert}", "it must be a PEM file")
    if _PRIVATE_KEY not in key_text:
        raise _refusal("key", f"there is no private key in {key_path}", "it must be a PEM file without a passphrase")
    try:
        context.load_cert_chain(settings.cert, key_path, password=_refuse_passphrase)
    except _Encrypted as err:
        raise _refusal("key", f"the key in {key_path} is encrypted", "nobody is there to type a passphrase") from err
    except ssl.SSLError as err:
        if err.reason == "KEY_VALUES_MISMATCH":
            words = f"the key in {key_path} isn't the one of the certificate in {settings.cert}"
            raise _refusal("key", words, "the node's own certificate must come first in its file") from err
        words = f"{settings.cert} with {key_path} can't be used: {(err.reason or str(err)).lower().replace('_', ' ')}"
        raise _refusal("cert", words) from err
    return _check_validity(settings, cert_text, key_path, now)


def _check_validity(settings: TlsListener, cert_text: str, key_path: str, now: datetime) -> datetime:
    try:
        certificate = x509.load_pem_x509_certificates(cert_text.encode())[0]
    except ValueError as err:
        raise _refusal("cert", f"the certificate in {settings.cert} can't be read: {err}") from err
    begins_at, expires_at = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if expires_at < now:
        raise _refusal("cert", f"the certificate in {settings.cert} expired on {expires_at:%Y-%m-%d %H:%M} UTC")
    if begins_at > now:
        words = f"the certificate in {settings.cert} isn't valid before {begins_at:%Y-%m-%d %H:%M} UTC"
        raise _refusal("cert", words, "is this machine's clock right?")
    if expires_at - now < EXPIRES_SOON:
        _log.warning("certificate expires soon", file=settings.cert, expires_at=f"{expires_at:%Y-%m-%d %H:%M} UTC")
    if Path(key_path).stat().st_mode & (stat.S_IROTH | stat.S_IWOTH):
        _log.warning("everybody on this machine can read the listener's key", file=key_path, advice="chmod 0600")
    return expires_at


def _load_authorities(context: ssl.SSLContext, path: str) -> None:
    if _CERTIFICATE not in _read(path, "client_ca"):
        raise _refusal("client_ca", f"there is no certificate in {path}", "it must be a PEM file")
    try:
        context.load_verify_locations(path)
    except ssl.SSLError as err:
        words = f"{path} can't be used: {(err.reason or str(err)).lower().replace('_', ' ')}"
        raise _refusal("client_ca", words) from err


def _read(path: str, key: str) -> str:
    try:
        return Path(path).read_text("utf-8", errors="replace")
    except OSError as err:
        raise _refusal(
            key, f"can't read {path}: {err.strerror}", "it is read as the user that the node runs as"
        ) from err


def _refusal(key: str, detail: str, hint: str = "") -> ConfigInvalid:
    return ConfigInvalid(detail, subject=f"listen.tls.{key}", hint=hint)


def _refuse_passphrase() -> str:
    raise _Encrypted
