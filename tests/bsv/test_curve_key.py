"""A secp256k1 key of the node: it signs, agrees and signs as its own child, and never shows itself."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlayd.bsv.brc42 import derive_private
from overlayd.bsv.curve_key import MemoryCurveKey
from overlayd.bsv.keys import CURVE_ORDER, PrivateKey, PublicKey
from overlayd.model.errors import MalformedChainData
from overlayd.model.signer import CurveKey

_SECRETS = st.integers(1, CURVE_ORDER - 1).map(lambda number: number.to_bytes(32, "big"))
DIGEST = hashlib.sha256(b"what is signed").digest()


@given(_SECRETS, _SECRETS)
def test_both_sides_agree_on_one_point(one: bytes, other: bytes) -> None:
    """The shared point is the same whoever computes it."""
    ours, theirs = MemoryCurveKey.parse(one), MemoryCurveKey.parse(other)
    assert ours.agree(theirs.public_key) == theirs.agree(ours.public_key)


@given(_SECRETS, _SECRETS)
def test_a_tweaked_signature_verifies_under_the_child(secret: bytes, tweak: bytes) -> None:
    """What is signed with a number added verifies under the public key plus that number, and not under the key."""
    key: CurveKey = MemoryCurveKey.parse(secret)
    if (int.from_bytes(secret, "big") + int.from_bytes(tweak, "big")) % CURVE_ORDER == 0:
        return
    child = PublicKey.parse(key.public_key).add(tweak)
    child.verify_digest(DIGEST, key.sign_digest(DIGEST, tweak))
    PublicKey.parse(key.public_key).verify_digest(DIGEST, key.sign_digest(DIGEST))


def test_children_are_those_of_brc42() -> None:
    """Agreeing and adding give the key that BRC-42 derives, so that a caller needs nothing but these two."""
    import hmac

    own, other = PrivateKey(b"\x11" * 32), PrivateKey(b"\x22" * 32).public_key
    key = MemoryCurveKey(own)
    tweak = int.from_bytes(hmac.digest(key.agree(other.encoded), b"2-some purpose-1", "sha256"), "big") % CURVE_ORDER
    assert key.child(tweak.to_bytes(32, "big")).secret == derive_private(own, other, "2-some purpose-1").secret


@pytest.mark.parametrize("secret", [b"", b"\0" * 32, b"\xff" * 32, b"\x01" * 31])
def test_what_is_no_key_is_refused_without_showing_it(secret: bytes) -> None:
    """A wrong secret isn't repeated in the error."""
    with pytest.raises(MalformedChainData) as refusal:
        MemoryCurveKey.parse(secret)
    assert secret.hex() not in str(refusal.value) or not secret


def test_a_tweak_that_gives_no_key_is_refused() -> None:
    """Neither a short number nor one that adds up to nothing."""
    key = MemoryCurveKey.parse((5).to_bytes(32, "big"))
    for tweak in (b"\x01", (CURVE_ORDER - 5).to_bytes(32, "big")):
        with pytest.raises(MalformedChainData):
            key.sign_digest(DIGEST, tweak)


def test_its_text_shows_no_secret() -> None:
    """Neither as a string nor as a representation."""
    secret = b"\x37" * 32
    key = MemoryCurveKey.parse(secret)
    assert secret.hex() not in f"{key!r} {key}"
