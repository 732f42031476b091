"""Identity certificates (BRC-52): a certifier's signature over a subject's sealed fields.

Only the certifier's signature is checked here. The fields' values are encrypted for the subject; whether the
revocation outpoint is spent is for the chain to say.
"""

import base64
import binascii
import re
from collections.abc import Mapping

import msgspec

from overlayd.bsv.brc42 import derive_private, derive_public, invoice_number
from overlayd.bsv.keys import ANYONE, PrivateKey, PublicKey, is_strict_der
from overlayd.bsv.octets import U32_MAX, ByteReader, encode_varbytes, encode_varint
from overlayd.bsv.tx import OutPoint
from overlayd.model.errors import MalformedChainData
from overlayd.model.txid import TxId, format_hash, parse_txid

CERTIFICATE_BYTES_MAX = 64 << 10

_PROTOCOL = (2, "certificate signature")
_FIELD_BYTES_MIN = 2
_INDEX = re.compile(r"0|[1-9][0-9]{0,9}", re.ASCII)
NOT_REVOCABLE = OutPoint(TxId(bytes(32)), 0)
"""The outpoint of certificates that can't be revoked."""


class _Wire(msgspec.Struct, rename="camel"):
    """The JSON form."""

    type: str
    serial_number: str
    subject: str
    certifier: str
    revocation_outpoint: str
    fields: dict[str, str]
    signature: str


class Certificate(msgspec.Struct, frozen=True):
    """A certificate; `fields` maps names to encrypted values (base64), `type` and `serial` are 32 bytes each."""

    type: bytes
    serial: bytes
    subject: PublicKey
    certifier: PublicKey
    revocation: OutPoint
    fields: Mapping[str, str]
    signature: bytes = b""

    def encode_unsigned(self) -> bytes:
        """What the certifier signs."""
        parts = [
            self.type, self.serial, self.subject.encoded, self.certifier.encoded,
            self.revocation.txid[::-1], encode_varint(self.revocation.index), encode_varint(len(self.fields)),
        ]  # fmt: skip
        for name in sorted(self.fields, key=_sorting_key):
            parts += [encode_varbytes(name.encode()), encode_varbytes(self.fields[name].encode())]
        return b"".join(parts)

    def encode(self) -> bytes:
        """The binary form, signature last."""
        return self.encode_unsigned() + self.signature

    def encode_json(self) -> bytes:
        """The JSON form."""
        return msgspec.json.encode(
            _Wire(
                base64.b64encode(self.type).decode(), base64.b64encode(self.serial).decode(), self.subject.hex(),
                self.certifier.hex(), f"{format_hash(self.revocation.txid)}.{self.revocation.index}",
                dict(self.fields), self.signature.hex(),
            )
        )  # fmt: skip

    def verify(self) -> None:
        """Checks the certifier's signature. Raises SignatureInvalid."""
        derive_public(self.certifier, ANYONE, self._invoice()).verify(self.encode_unsigned(), self.signature)

    def signed_by(self, certifier: PrivateKey) -> "Certificate":
        """The same certificate with its certifier's signature."""
        assert certifier.public_key == self.certifier
        child = derive_private(certifier, ANYONE.public_key, self._invoice())
        return msgspec.structs.replace(self, signature=child.sign(self.encode_unsigned()))

    def _invoice(self) -> str:
        key_id = f"{base64.b64encode(self.type).decode()} {base64.b64encode(self.serial).decode()}"
        return invoice_number(*_PROTOCOL, key_id)


def parse_certificate(raw: bytes) -> Certificate:
    """Reads the binary form, whole and signed, fields ascending. Raises MalformedChainData."""
    if len(raw) > CERTIFICATE_BYTES_MAX:
        raise MalformedChainData(f"at most {CERTIFICATE_BYTES_MAX} bytes are taken", subject="certificate")
    reader = ByteReader(raw, "certificate")
    kind, serial = reader.take(32), reader.take(32)
    subject, certifier = PublicKey.parse(reader.take(33)), PublicKey.parse(reader.take(33))
    txid, index = TxId(reader.take(32)[::-1]), reader.varint()
    if index > U32_MAX:
        raise reader.fault(f"an output index of {index}")
    fields: dict[str, str] = {}
    last: bytes | None = None
    for _ in range(reader.count(_FIELD_BYTES_MIN)):
        name, value = _read_text(reader), _read_text(reader)
        key = _sorting_key(name)
        if last is not None and key <= last:
            raise reader.fault("its fields aren't in order")
        fields[name], last = value, key
    signature = reader.take(reader.remaining)
    return _checked(Certificate(kind, serial, subject, certifier, OutPoint(txid, index), fields, signature))


def parse_certificate_json(text: bytes | str) -> Certificate:
    """Reads the JSON form, signed. Raises MalformedChainData."""
    if len(text) > CERTIFICATE_BYTES_MAX:
        raise MalformedChainData(f"at most {CERTIFICATE_BYTES_MAX} bytes are taken", subject="certificate")
    try:
        wire = msgspec.json.decode(text, type=_Wire)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as err:
        raise MalformedChainData(f"not a certificate: {err}", subject="certificate") from err
    txid, _, index = wire.revocation_outpoint.rpartition(".")
    if not _INDEX.fullmatch(index) or int(index) > U32_MAX:
        raise MalformedChainData("a revocation outpoint is <txid>.<index>", subject="certificate")
    try:
        signature = bytes.fromhex(wire.signature)
        _ = [text.encode() for pair in wire.fields.items() for text in pair]
    except ValueError as err:
        raise MalformedChainData("its signature isn't hex, or a field isn't text", subject="certificate") from err
    return _checked(
        Certificate(
            _decode_base64(wire.type), _decode_base64(wire.serial_number), PublicKey.parse_hex(wire.subject),
            PublicKey.parse_hex(wire.certifier), OutPoint(parse_txid(txid), int(index)), wire.fields, signature,
        )
    )  # fmt: skip


def _checked(certificate: Certificate) -> Certificate:
    if not all(certificate.fields):
        raise MalformedChainData("a field has no name", subject="certificate")
    if not is_strict_der(certificate.signature):
        raise MalformedChainData("its signature isn't DER", subject="certificate")
    return certificate


def _sorting_key(name: str) -> bytes:
    """The order of JavaScript's sort, which the signed bytes follow: by UTF-16 units."""
    return name.encode("utf-16-be")


def _read_text(reader: ByteReader) -> str:
    octets = reader.varbytes()
    try:
        return octets.decode()
    except UnicodeDecodeError as err:
        raise reader.fault("a field isn't text") from err


def _decode_base64(text: str) -> bytes:
    """32 bytes of canonical base64."""
    try:
        octets = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        octets = b""
    if len(octets) != 32 or base64.b64encode(octets).decode() != text:
        raise MalformedChainData("its type and serial number are 32 bytes each, in base64", subject="certificate")
    return octets
