"""Derived keys, signed messages and certificates."""

import base64
import json
from typing import Any

import msgspec
import pytest
from bsv_samples import damaged, flipped, key_of, load, reads_or_refuses, refusal, secrets
from hypothesis import given, settings
from hypothesis import strategies as st

from overlayd.bsv.brc42 import derive_private, derive_public, invoice_number
from overlayd.bsv.brc77 import SIGNATURE_BYTES_MAX, MessageSignature, parse_message_signature, sign_message
from overlayd.bsv.certificate import (
    CERTIFICATE_BYTES_MAX,
    NOT_REVOCABLE,
    Certificate,
    parse_certificate,
    parse_certificate_json,
)
from overlayd.bsv.keys import ANYONE, PrivateKey, PublicKey
from overlayd.bsv.tx import OutPoint
from overlayd.model.errors import MalformedChainData, SignatureInvalid
from overlayd.model.txid import TxId

SAMPLE = load("ts-sdk-2.1.0-generated")
MESSAGE = SAMPLE["brc77"]["msg"].encode()
FOR_ANYONE = bytes.fromhex(SAMPLE["brc77"]["anyone"])
FOR_ONE = bytes.fromhex(SAMPLE["brc77"]["toB"])
SIGNER, VERIFIER = key_of(11), key_of(12)
CERTIFICATE = bytes.fromhex(SAMPLE["cert"]["binHex"])
CERTIFICATE_JSON = {name: value for name, value in SAMPLE["cert"].items() if name not in ("masterKeyring", "binHex")}
SIGNING = [vector for vector in load("tsstack-authrite-signature")["vectors"] if not vector.get("skip")]


@pytest.mark.parametrize("vector", load("brc42-private"), ids=lambda vector: vector["privateKey"][:8])
def test_private_children(vector: dict[str, str]) -> None:
    """The children that another implementation derives."""
    own, other = PrivateKey.parse_hex(vector["recipientPrivateKey"]), PublicKey.parse_hex(vector["senderPublicKey"])
    child = derive_private(own, other, vector["invoiceNumber"])
    assert child.secret.hex() == vector["privateKey"]


@pytest.mark.parametrize("vector", load("brc42-public"), ids=lambda vector: vector["publicKey"][:8])
def test_public_children(vector: dict[str, str]) -> None:
    """The public halves that another implementation derives."""
    own, other = PrivateKey.parse_hex(vector["senderPrivateKey"]), PublicKey.parse_hex(vector["recipientPublicKey"])
    assert derive_public(other, own, vector["invoiceNumber"]).hex() == vector["publicKey"]


@settings(max_examples=50)
@given(secrets, secrets, st.text(max_size=30))
def test_both_sides_derive_one_key(one: PrivateKey, two: PrivateKey, invoice: str) -> None:
    """What one derives in private, the other derives in public."""
    try:
        assert derive_private(one, two.public_key, invoice).public_key == derive_public(one.public_key, two, invoice)
    except MalformedChainData:
        assert any(0xD800 <= ord(letter) < 0xE000 for letter in invoice)


@pytest.mark.parametrize("vector", SIGNING, ids=lambda vector: vector["id"].rsplit(".", 1)[1])
def test_signatures_with_derived_keys(vector: dict[str, Any]) -> None:
    """Signatures of the conformance vectors are made to the byte; those that must fail do."""
    given_key, arguments = PrivateKey.parse_hex(vector["input"]["root_key"]), vector["input"]["args"]
    counterparty = PublicKey.parse_hex(arguments["counterparty"])
    invoice = invoice_number(*arguments["protocolID"], arguments["keyID"])
    data = bytes.fromhex(arguments["data"])
    if vector["input"]["method"] == "createSignature":
        signature = derive_private(given_key, counterparty, invoice).sign(data)
        assert signature.hex() == vector["expected"]["signature"]
        return
    signature = bytes.fromhex(arguments["signature"])
    key = derive_public(counterparty, given_key, invoice)
    if vector["expected"].get("valid"):
        key.verify(data, signature)
    else:
        with pytest.raises(SignatureInvalid):
            key.verify(data, signature)


@pytest.mark.parametrize(
    ("level", "protocol", "key_id", "invoice"),
    [(2, "message signing", "x", "2-message signing-x"), (0, " Hello World 9 ", "1", "0-hello world 9-1")],
)
def test_invoice_numbers(level: int, protocol: str, key_id: str, invoice: str) -> None:
    """Names are trimmed and made small."""
    assert invoice_number(level, protocol, key_id) == invoice


@pytest.mark.parametrize(
    ("level", "protocol", "key_id"),
    [
        (3, "hello world", "1"), (-1, "hello world", "1"), (1, "four", "1"), (1, "a" * 401, "1"), (1, "hello  world", "1"),
        (1, "hello-world", "1"), (1, "héllo world", "1"), (1, "hello protocol", "1"), (1, "hello world", ""),
        (1, "hello world", "k" * 801),
    ],
)  # fmt: skip
def test_names_against_the_rules_are_refused(level: int, protocol: str, key_id: str) -> None:
    """Level, letters, length, spaces, the word protocol, and the key id."""
    with pytest.raises(MalformedChainData):
        invoice_number(level, protocol, key_id)


def test_messages_signed_by_wallets_verify() -> None:
    """Both forms made by @bsv/sdk hold, name their signer, and encode to the same bytes."""
    for raw, key in ((FOR_ANYONE, ANYONE), (FOR_ONE, VERIFIER)):
        signature = parse_message_signature(raw)
        assert signature.verify(MESSAGE, key) == SIGNER.public_key
        assert signature.encode() == raw
    assert sign_message(MESSAGE, SIGNER, parse_message_signature(FOR_ANYONE).key_id).encode() == FOR_ANYONE
    again = sign_message(MESSAGE, SIGNER, parse_message_signature(FOR_ONE).key_id, VERIFIER.public_key)
    assert again.encode() == FOR_ONE


def test_only_the_one_it_is_for_can_check_it() -> None:
    """A signature for one verifier says so to others, and another message fails."""
    signature = parse_message_signature(FOR_ONE)
    with pytest.raises(SignatureInvalid, match="only the holder"):
        signature.verify(MESSAGE)
    with pytest.raises(SignatureInvalid, match="only the holder"):
        parse_message_signature(FOR_ANYONE).verify(MESSAGE, VERIFIER)
    with pytest.raises(SignatureInvalid, match="doesn't verify"):
        signature.verify(MESSAGE + b".", VERIFIER)


@pytest.mark.parametrize(("raw", "key"), [(FOR_ANYONE, ANYONE), (FOR_ONE, VERIFIER)], ids=["anyone", "one"])
def test_no_byte_of_a_message_signature_can_change(raw: bytes, key: PrivateKey) -> None:
    """Mark, signer, verifier, key id and signature all count."""
    for _, changed in flipped(raw):
        with pytest.raises((MalformedChainData, SignatureInvalid)):
            parse_message_signature(changed).verify(MESSAGE, key)


@settings(max_examples=30)
@given(secrets, st.binary(max_size=50), st.binary(min_size=32, max_size=32), st.none() | secrets)
def test_signed_messages_come_back(key: PrivateKey, message: bytes, key_id: bytes, verifier: PrivateKey | None) -> None:
    """Any signature is read from its bytes and verifies for the one it was made for."""
    signature = sign_message(message, key, key_id, verifier.public_key if verifier else None)
    parsed = parse_message_signature(signature.encode())
    assert parsed == signature
    assert parsed.verify(message, verifier or ANYONE) == key.public_key


@given(st.one_of(damaged(FOR_ANYONE), damaged(FOR_ONE), st.binary(max_size=200)))
def test_any_bytes_are_a_message_signature_or_refused(raw: bytes) -> None:
    """Whatever the bytes, they are read or raise the one error; and never verify."""
    signature: MessageSignature | None = reads_or_refuses(parse_message_signature, raw)
    if signature is not None:
        assert signature.encode() == raw
        for key in (ANYONE, VERIFIER):
            with pytest.raises(SignatureInvalid):
                signature.verify(b"another message", key)
    assert "at most" in refusal(parse_message_signature, bytes(SIGNATURE_BYTES_MAX + 1))


def test_a_wallets_certificate_verifies() -> None:
    """The certificate made by @bsv/sdk holds in both forms, which say the same."""
    certificate = parse_certificate(CERTIFICATE)
    certificate.verify()
    assert certificate.encode() == CERTIFICATE
    assert parse_certificate_json(json.dumps(CERTIFICATE_JSON)) == certificate
    assert json.loads(certificate.encode_json()) == CERTIFICATE_JSON
    assert certificate.revocation == NOT_REVOCABLE
    assert set(certificate.fields) == {"name", "role"}


def test_no_byte_of_a_certificate_can_change() -> None:
    """With any byte turned it is refused or its signature fails."""
    for _, changed in flipped(CERTIFICATE):
        with pytest.raises((MalformedChainData, SignatureInvalid)):
            parse_certificate(changed).verify()


@settings(max_examples=30)
@given(
    secrets, secrets, st.binary(min_size=32, max_size=32), st.integers(0, 2**32 - 1),
    st.dictionaries(st.text(st.characters(codec="utf-8"), min_size=1, max_size=8), st.text(st.characters(codec="utf-8"), max_size=8), max_size=5),
)  # fmt: skip
def test_certificates_come_back(
    subject: PrivateKey, certifier: PrivateKey, number: bytes, index: int, fields: dict[str, str]
) -> None:
    """Whatever is signed is read from both forms, equal and valid."""
    unsigned = Certificate(
        number, number[::-1], subject.public_key, certifier.public_key, OutPoint(TxId(number), index), fields
    )
    certificate = unsigned.signed_by(certifier)
    for parsed in (parse_certificate(certificate.encode()), parse_certificate_json(certificate.encode_json())):
        assert parsed == certificate
        parsed.verify()
    other = msgspec.structs.replace(certificate, fields={**fields, "more": ""})
    if other.fields != certificate.fields:
        with pytest.raises(SignatureInvalid):
            other.verify()


@settings(max_examples=200)
@given(st.one_of(damaged(CERTIFICATE), st.binary(max_size=200)))
def test_any_bytes_are_a_certificate_or_refused(raw: bytes) -> None:
    """Whatever the bytes, they are a certificate that encodes to them again, or raise the one error."""
    certificate = reads_or_refuses(parse_certificate, raw)
    assert certificate is None or certificate.encode() == raw
    reads_or_refuses(parse_certificate_json, raw)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"type": "AQ=="}, "32 bytes each"),
        ({"serialNumber": "!" * 44}, "32 bytes each"),
        ({"type": base64.b64encode(bytes(32)).decode()[:-1]}, "32 bytes each"),
        ({"subject": "02" + "f" * 64}, "not a point"),
        ({"certifier": ""}, "a public key is"),
        ({"revocationOutpoint": "00"}, "revocation outpoint"),
        ({"revocationOutpoint": "0" * 64 + ".01"}, "revocation outpoint"),
        ({"revocationOutpoint": "0" * 64 + ".4294967296"}, "revocation outpoint"),
        ({"revocationOutpoint": "0" * 63 + ".0"}, "64 hex digits"),
        ({"fields": {"": "x"}}, "no name"),
        ({"fields": {"name": 1}}, "not a certificate"),
        ({"signature": "zz"}, "isn't hex"),
        ({"signature": "00"}, "isn't DER"),
        ({"signature": None}, "not a certificate"),
    ],
)
def test_broken_certificates_are_refused_for_their_reason(change: dict[str, Any], reason: str) -> None:
    """Each member is looked at."""
    assert reason in refusal(parse_certificate_json, json.dumps(CERTIFICATE_JSON | change))


def test_the_order_of_fields_counts_in_bytes_only() -> None:
    """Fields in another order are the same certificate; one that stands twice, or too many bytes, are refused."""
    certificate = parse_certificate(CERTIFICATE)
    start = CERTIFICATE.index(b"\x04name")
    end = CERTIFICATE.index(b"\x04role")
    swapped = CERTIFICATE[:start] + CERTIFICATE[end : -len(certificate.signature)] + CERTIFICATE[start:end]
    other = parse_certificate(swapped + certificate.signature)
    other.verify()
    assert other == certificate
    assert other.encode() == swapped + certificate.signature
    twice = CERTIFICATE[:start] + 2 * CERTIFICATE[start:end] + certificate.signature
    assert "stands twice" in refusal(parse_certificate, twice)
    assert "at most" in refusal(parse_certificate, bytes(CERTIFICATE_BYTES_MAX + 1))
    assert "at most" in refusal(parse_certificate_json, b" " * (CERTIFICATE_BYTES_MAX + 1))
