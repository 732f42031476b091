"""Keys, signatures, addresses, and the hashes under them."""

import hashlib

import pytest
from bsv_samples import damaged, flipped, key_of, reads_or_refuses, refusal, secrets
from hypothesis import given, settings
from hypothesis import strategies as st

from overlayd.bsv import hashes, ripemd160
from overlayd.bsv.base58 import (
    TEXT_CHARS_MAX,
    address_of,
    decode_check,
    encode_check,
    format_address,
    format_wif,
    parse_address,
    parse_wif,
)
from overlayd.bsv.keys import CURVE_ORDER, PrivateKey, PublicKey, is_strict_der
from overlayd.bsv.network import MAINNET, REGTEST, TESTNET
from overlayd.model.errors import MalformedChainData, SignatureInvalid

KEY = key_of(11)
SIGNATURE = KEY.sign(b"hello")


@settings(max_examples=50)
@given(secrets, st.binary(max_size=100))
def test_signatures_verify_with_their_key_and_message_alone(key: PrivateKey, message: bytes) -> None:
    """A signature is strict DER, the same each time, holds for its message, and for no other."""
    signature = key.sign(message)
    assert is_strict_der(signature)
    assert signature == key.sign(message)
    key.public_key.verify(message, signature)
    with pytest.raises(SignatureInvalid):
        key.public_key.verify(message + b"!", signature)
    with pytest.raises(SignatureInvalid):
        key_of(12).public_key.verify(message, signature)


def test_no_byte_of_a_signature_can_change() -> None:
    """Each turned bit makes it fail."""
    for _, changed in flipped(SIGNATURE):
        with pytest.raises(SignatureInvalid):
            KEY.public_key.verify(b"hello", changed)


def _der(r: int, s: int) -> bytes:
    parts = b""
    for number in (r, s):
        octets = number.to_bytes(number.bit_length() // 8 + 1, "big")
        parts += bytes((2, len(octets))) + octets
    return bytes((0x30, len(parts))) + parts


def test_the_other_half_of_signatures_is_refused() -> None:
    """High S verifies mathematically; taking it would give one message two signatures."""
    r_bytes = SIGNATURE[3]
    r, s = int.from_bytes(SIGNATURE[4 : 4 + r_bytes], "big"), int.from_bytes(SIGNATURE[6 + r_bytes :], "big")
    assert _der(r, s) == SIGNATURE
    high = _der(r, CURVE_ORDER - s)
    assert is_strict_der(high)
    with pytest.raises(SignatureInvalid, match="doesn't verify"):
        KEY.public_key.verify(b"hello", high)


@given(st.one_of(damaged(SIGNATURE), st.binary(max_size=80)))
def test_any_bytes_are_a_signature_or_not(signature: bytes) -> None:
    """Whatever the bytes, verifying raises its one error, and strict DER is judged without raising."""
    with pytest.raises(SignatureInvalid):
        KEY.public_key.verify(b"another message", signature)
    if is_strict_der(signature):
        r_bytes = signature[3]
        r, s = int.from_bytes(signature[4 : 4 + r_bytes], "big"), int.from_bytes(signature[6 + r_bytes :], "big")
        assert _der(r, s) == signature


@given(secrets)
def test_keys_come_back_from_their_bytes(key: PrivateKey) -> None:
    """Public and private keys are read from what they encode to; the uncompressed form is the same key."""
    assert PublicKey.parse(key.public_key.encoded) == key.public_key
    assert PublicKey.parse_hex(key.public_key.hex()) == key.public_key
    assert PrivateKey(key.secret).public_key == key.public_key
    assert PrivateKey.parse_hex(key.secret.hex()).public_key == key.public_key
    long = key.public_key._point.format(compressed=False)
    assert PublicKey.parse(long) == key.public_key
    assert hash(PublicKey.parse(long)) == hash(key.public_key)
    assert "hybrid" not in refusal(PublicKey.parse, bytes((6 + long[-1] % 2,)) + long[1:])


@given(st.one_of(damaged(KEY.public_key.encoded), st.binary(max_size=70), st.binary(min_size=33, max_size=33)))
def test_any_bytes_are_a_key_or_refused(octets: bytes) -> None:
    """Public keys are points of the curve; anything else raises the one error."""
    key = reads_or_refuses(PublicKey.parse, octets)
    assert key is None or octets in (key.encoded, key._point.format(compressed=False))


@pytest.mark.parametrize("secret", [0, CURVE_ORDER, CURVE_ORDER + 1, 2**256 - 1])
def test_impossible_secrets_are_refused(secret: int) -> None:
    """Zero and what isn't below the order is no private key."""
    assert "between 1 and" in refusal(PrivateKey, secret.to_bytes(32, "big"))
    assert "between 1 and" in refusal(PrivateKey.parse_hex, secret.to_bytes(32, "big").hex())


@pytest.mark.parametrize("text", ["", "00", "zz" * 32, "11" * 31, " " + "1" * 63])
def test_hex_that_is_no_key_is_refused_without_repeating_it(text: str) -> None:
    """Errors about private keys don't show them."""
    detail = refusal(PrivateKey.parse_hex, text)
    assert not text or text not in detail
    refusal(PublicKey.parse_hex, text)


def test_secrets_are_not_shown() -> None:
    """The text forms of a private key hold only the public one."""
    assert KEY.secret.hex() not in repr(KEY) + str(KEY)
    assert KEY.public_key.hex() in repr(KEY)


@pytest.mark.parametrize(
    ("secret", "network", "address", "wif"),
    [
        # The address and key that Bitcoin's documentation shows for 1, and the test networks' prefixes.
        (1, MAINNET, "1BgGZ9tcN4rm9KBzDn7KprQz87SZ26SAMH", "KwDiBf89QgGbjEhKnhXJuH7LrciVrZi3qYjgd9M7rFU73sVHnoWn"),
        (1, TESTNET, "mrCDrCybB6J1vRfbwM5hemdJz73FwDBC8r", "cMahea7zqjxrtgAbB7LSGbcQUr1uX1ojuat9jZodMN87JcbXMTcA"),
        (1, REGTEST, "mrCDrCybB6J1vRfbwM5hemdJz73FwDBC8r", "cMahea7zqjxrtgAbB7LSGbcQUr1uX1ojuat9jZodMN87JcbXMTcA"),
    ],
)
def test_known_addresses(secret: int, network, address: str, wif: str) -> None:  # type: ignore[no-untyped-def]
    """The first key has the addresses that everybody knows."""
    key = key_of(secret)
    assert address_of(key.public_key, network) == address
    assert parse_address(address, network) == key.public_key.key_hash
    assert format_wif(key, network) == wif
    assert parse_wif(wif, network).secret == key.secret


@given(st.binary(max_size=60))
def test_base58_comes_back(payload: bytes) -> None:
    """Any payload, leading zeros included, is read from its text."""
    assert decode_check(encode_check(payload)) == payload


@given(st.text(max_size=60), secrets)
def test_any_text_is_an_address_or_refused(text: str, key: PrivateKey) -> None:
    """Whatever the text, addresses and keys are read or raise the one error; a changed letter is noticed."""
    for parse in (parse_address, parse_wif):
        reads_or_refuses(lambda raw, parse=parse: parse(raw, MAINNET), text)  # type: ignore[misc]
    address = address_of(key.public_key, MAINNET)
    changed = ("2" if address[5] != "2" else "3").join((address[:5], address[6:]))
    assert "checksum" in refusal(lambda text: parse_address(text, MAINNET), changed)


def test_addresses_and_keys_of_another_kind_are_refused() -> None:
    """Another network, another length, or a key for the uncompressed form isn't taken."""
    address, wif = address_of(KEY.public_key, MAINNET), format_wif(KEY, MAINNET)
    assert "isn't one of testnet" in refusal(lambda text: parse_address(text, TESTNET), address)
    assert "not a private key of testnet" in refusal(lambda text: parse_wif(text, TESTNET), wif)
    assert "20 bytes" in refusal(lambda text: parse_address(text, MAINNET), wif)
    uncompressed = encode_check(b"\x80" + KEY.secret)
    assert "uncompressed" in refusal(lambda text: parse_wif(text, MAINNET), uncompressed)
    assert "uncompressed" in refusal(lambda text: parse_wif(text, MAINNET), encode_check(b"\x80" + KEY.secret + b"\2"))
    assert "at most" in refusal(decode_check, "1" * (TEXT_CHARS_MAX + 1))
    assert "checksum" in refusal(decode_check, "1" * TEXT_CHARS_MAX)
    assert format_address(KEY.public_key.key_hash, MAINNET) == address


@given(st.binary(max_size=200))
def test_ripemd160_is_that_of_openssl(message: bytes) -> None:
    """The one in Python, used where OpenSSL has none, gives the same digests."""
    assert ripemd160.digest(message) == hashlib.new("ripemd160", message).digest()


def test_hash160_works_without_openssl(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where OpenSSL offers no RIPEMD-160 the addresses are the same."""
    expected = hashes.hash160(b"key")
    monkeypatch.setattr(hashes, "_RIPEMD160_IS_NATIVE", False)
    assert hashes.hash160(b"key") == expected


def test_adding_the_opposite_point_is_refused() -> None:
    """The sum that would be the point at infinity raises the one error."""
    with pytest.raises(MalformedChainData, match="no point"):
        KEY.public_key.add((CURVE_ORDER - 11).to_bytes(32, "big"))
