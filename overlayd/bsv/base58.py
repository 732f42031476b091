"""Base58Check, P2PKH addresses and private keys as wallets write them (WIF)."""

from overlayd.bsv.hashes import hash256
from overlayd.bsv.keys import PrivateKey, PublicKey
from overlayd.bsv.network import Network
from overlayd.model.errors import MalformedChainData

TEXT_CHARS_MAX = 128
"""Decoding takes time with the square of the length."""

_ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_DIGITS = {letter: value for value, letter in enumerate(_ALPHABET)}
_CHECKSUM_BYTES = 4


def encode_check(payload: bytes) -> str:
    """A payload and its checksum in base 58."""
    octets = payload + hash256(payload)[:_CHECKSUM_BYTES]
    number = int.from_bytes(octets, "big")
    letters = []
    while number:
        number, digit = divmod(number, 58)
        letters.append(_ALPHABET[digit])
    zeros = len(octets) - len(octets.lstrip(b"\0"))
    return "1" * zeros + "".join(reversed(letters))


def decode_check(text: str, *, subject: str = "base58") -> bytes:
    """The payload, its checksum checked. Raises MalformedChainData, which repeats none of the text."""
    if len(text) > TEXT_CHARS_MAX:
        raise MalformedChainData(f"{len(text)} characters; at most {TEXT_CHARS_MAX} are taken", subject=subject)
    number = 0
    for letter in text:
        digit = _DIGITS.get(letter)
        if digit is None:
            raise MalformedChainData("holds a character that base 58 hasn't", subject=subject)
        number = number * 58 + digit
    zeros = len(text) - len(text.lstrip("1"))
    octets = bytes(zeros) + number.to_bytes((number.bit_length() + 7) // 8, "big")
    payload, checksum = octets[:-_CHECKSUM_BYTES], octets[-_CHECKSUM_BYTES:]
    if len(octets) < _CHECKSUM_BYTES or hash256(payload)[:_CHECKSUM_BYTES] != checksum:
        raise MalformedChainData("the checksum is wrong", subject=subject)
    return payload


def format_address(key_hash: bytes, network: Network) -> str:
    """The P2PKH address of a key hash."""
    assert len(key_hash) == 20
    return encode_check(bytes((network.address_prefix,)) + key_hash)


def address_of(key: PublicKey, network: Network) -> str:
    """The P2PKH address of a key in its compressed form."""
    return format_address(key.key_hash, network)


def parse_address(text: str, network: Network) -> bytes:
    """The key hash of a P2PKH address. Raises MalformedChainData, also for another network's."""
    payload = decode_check(text, subject="address")
    if len(payload) != 21:
        raise MalformedChainData("an address holds 20 bytes and its network", subject="address")
    if payload[0] != network.address_prefix:
        raise MalformedChainData(f"the address isn't one of {network.name}", subject="address")
    return payload[1:]


def format_wif(key: PrivateKey, network: Network) -> str:
    """The private key as wallets export it, for a compressed public key. A secret."""
    return encode_check(bytes((network.key_prefix,)) + key.secret + b"\x01")


def parse_wif(text: str, network: Network) -> PrivateKey:
    """Reads an exported private key. Raises MalformedChainData, which repeats none of it.

    Keys of uncompressed public keys are refused: their addresses would differ from those that are used here.
    """
    payload = decode_check(text, subject="private key")
    if len(payload) not in (33, 34) or payload[0] != network.key_prefix:
        raise MalformedChainData(f"not a private key of {network.name}", subject="private key")
    if len(payload) != 34 or payload[-1] != 1:
        raise MalformedChainData("the key is for an uncompressed public key", subject="private key")
    return PrivateKey(payload[1:33])
