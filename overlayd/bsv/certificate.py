"""Identity certificates (BRC-52): a certifier's signature over a subject's sealed fields.

Only the certifier's signature is checked here. The fields' values are encrypted for the subject; whether the
revocation outpoint is spent is for the chain to say.

What is signed holds the fields in order of their names. Implementations disagree on that order once names mix capital
and small letters: the specification's text sorts by code, @bsv/sdk as an English dictionary does. We write the first
and take both.
"""

import base64
import binascii
import re
from collections.abc import Mapping, Sequence

import msgspec

from overlayd.bsv.brc42 import derive_private, derive_public, invoice_number
from overlayd.bsv.keys import ANYONE, PrivateKey, PublicKey, is_strict_der
from overlayd.bsv.octets import U32_MAX, ByteReader, encode_varbytes, encode_varint
from overlayd.bsv.tx import OutPoint
from overlayd.model.errors import MalformedChainData, SignatureInvalid
from overlayd.model.txid import TxId, format_hash, parse_txid

CERTIFICATE_BYTES_MAX = 64 << 10

_PROTOCOL = (2, "certificate signature")
_FIELD_BYTES_MIN = 2
_INDEX = re.compile(r"0|[1-9][0-9]{0,9}", re.ASCII)
_DICTIONARY = " _-,;:!?.'\"()[]{}@*/\\&#%`^+<=>|~$0123456789abcdefghijklmnopqrstuvwxyz"
"""The order of the Unicode Collation Algorithm (root, CLDR) for printable ASCII."""
_RANKS = {letter: rank for rank, letter in enumerate(_DICTIONARY)}
_RANK_OTHER = len(_DICTIONARY)
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
    """A certificate; `fields` maps names to encrypted values (base64), `type` and `serial` are 32 bytes each.

    The binary form has the fields in the order in which they stand here.
    """

    type: bytes
    serial: bytes
    subject: PublicKey
    certifier: PublicKey
    revocation: OutPoint
    fields: Mapping[str, str]
    signature: bytes = b""

    def encode_unsigned(self, order: Sequence[str] | None = None) -> bytes:
        """What the certifier signs, the fields in an order."""
        parts = [
            self.type, self.serial, self.subject.encoded, self.certifier.encoded,
            self.revocation.txid[::-1], encode_varint(self.revocation.index), encode_varint(len(self.fields)),
        ]  # fmt: skip
        for name in self.fields if order is None else order:
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
        key = derive_public(self.certifier, ANYONE, self._invoice())
        orders = (tuple(self.fields), tuple(sorted(self.fields)), tuple(sorted(self.fields, key=dictionary_key)))
        forms = dict.fromkeys(self.encode_unsigned(order) for order in orders)
        for form in forms:
            try:
                return key.verify(form, self.signature)
            except SignatureInvalid as err:
                last = err
        raise last

    def signed_by(self, certifier: PrivateKey) -> "Certificate":
        """The same certificate, its fields ascending, with its certifier's signature."""
        assert certifier.public_key == self.certifier
        ordered = msgspec.structs.replace(self, fields={name: self.fields[name] for name in sorted(self.fields)})
        child = derive_private(certifier, ANYONE.public_key, self._invoice())
        return msgspec.structs.replace(ordered, signature=child.sign(ordered.encode_unsigned()))

    def _invoice(self) -> str:
        key_id = f"{base64.b64encode(self.type).decode()} {base64.b64encode(self.serial).decode()}"
        return invoice_number(*_PROTOCOL, key_id)


def parse_certificate(raw: bytes) -> Certificate:
    """Reads the binary form, whole and signed. Raises MalformedChainData."""
    if len(raw) > CERTIFICATE_BYTES_MAX:
        raise MalformedChainData(f"at most {CERTIFICATE_BYTES_MAX} bytes are taken", subject="certificate")
    reader = ByteReader(raw, "certificate")
    kind, serial = reader.take(32), reader.take(32)
    subject, certifier = PublicKey.parse(reader.take(33)), PublicKey.parse(reader.take(33))
    txid, index = TxId(reader.take(32)[::-1]), reader.varint()
    if index > U32_MAX:
        raise reader.fault(f"an output index of {index}")
    fields: dict[str, str] = {}
    for _ in range(reader.count(_FIELD_BYTES_MIN)):
        name, value = _read_text(reader), _read_text(reader)
        if name in fields:
            raise reader.fault("a field stands twice")
        fields[name] = value
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


def dictionary_key(name: str) -> tuple[list[int], list[bool]]:
    """Sorts ASCII names as JavaScript's localeCompare does in English: letters without case first, then small ones."""
    return [_RANKS.get(letter.lower(), _RANK_OTHER + ord(letter)) for letter in name], [
        letter.isupper() for letter in name
    ]


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
