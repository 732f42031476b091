"""Signed notes, verifier keys, origins and checkpoints."""

import independent_log_format as independent
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlayd.model.cursor import make_epoch
from overlayd.model.errors import VerificationFailed
from overlayd.model.note import (
    ALGORITHM_COSIGNATURE,
    SIGNATURES_MAX,
    CheckpointText,
    Ed25519Signer,
    VerifierKey,
    add_signature,
    decode_base64,
    log_id_of,
    open_note,
    origin_of,
    parse_origin,
    sign_note,
)

SIGNER = Ed25519Signer("log.example/one", bytes(range(32)))
OTHER = Ed25519Signer("log.example/two", bytes(range(1, 33)))
TEXT = "log.example/one\n5\n" + "A" * 43 + "=\n"
ROOTS = st.binary(min_size=32, max_size=32)


def test_note_of_another_implementation():
    """The example of Go's note package, which made the format, opens here."""
    key = VerifierKey.parse("PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")
    text = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
    line = (
        "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
    )
    opened = open_note(f"{text}\n{line}", [key])
    assert opened.text == text
    assert opened.signatures[0].key == key


@settings(deadline=None, max_examples=20)
@given(st.text("ab é\n", max_size=20).map(lambda text: text + "\n"), st.binary(min_size=32, max_size=32))
def test_notes_open_in_both(text, seed):
    """Whatever text is signed, empty lines included, opens to itself in both implementations."""
    signer = Ed25519Signer("näme", seed)
    note = sign_note(text, [signer])
    assert open_note(note, [signer.key]).text == text
    second, signed = independent.open_note(note, [("näme", 1, signer.key.public_key)])
    assert second == text
    assert signed == [("näme", 1, None)]


@settings(deadline=None, max_examples=60)
@given(st.text("ab+ —\n=A", max_size=60))
def test_opening_raises_nothing_else(note):
    """Arbitrary text is refused, by VerificationFailed alone."""
    with pytest.raises(VerificationFailed):
        open_note(note, [SIGNER.key])


@settings(deadline=None, max_examples=40)
@given(st.text("ab/é", min_size=1, max_size=9), st.sampled_from([1, 4]), st.binary(min_size=32, max_size=32))
def test_verifier_keys_read_back(name, algorithm, public_key):
    """A verifier key's text form reads back in both implementations."""
    key = VerifierKey(name, public_key, algorithm)
    assert VerifierKey.parse(str(key)) == key
    assert independent.read_key(str(key)) == (name, algorithm, public_key)


@pytest.mark.parametrize("text", ["", "+", "++", "a+b", "a b+00000000+AA==", "a+00000000+é"])
def test_what_is_no_key(text):
    """Texts that aren't keys are refused with VerificationFailed, not with a decoder's error."""
    with pytest.raises(VerificationFailed):
        VerifierKey.parse(text)


def test_unknown_signers_are_kept_as_unknown():
    """A stranger's signature is ignored, whatever it holds, as long as somebody known signed."""
    note = add_signature(sign_note(TEXT, [SIGNER]), OTHER.key, b"nonsense")
    opened = open_note(note, [SIGNER.key])
    assert [signature.key for signature in opened.signatures] == [SIGNER.key, None]


def test_same_name_with_another_key_is_a_stranger():
    """A signer is known by name and key id together, not by its name."""
    impostor = Ed25519Signer(SIGNER.name, bytes(32))
    with pytest.raises(VerificationFailed, match="none of the known keys"):
        open_note(sign_note(TEXT, [impostor]), [SIGNER.key])


def test_a_known_signers_bad_signature_spoils_the_note():
    """Another good signature doesn't help."""
    note = add_signature(sign_note(TEXT, [SIGNER]), OTHER.key, bytes(64))
    with pytest.raises(VerificationFailed, match="doesn't verify"):
        open_note(note, [SIGNER.key, OTHER.key])


def test_many_signatures():
    """At least 16 signatures are taken; past the bound the note is refused rather than worked through."""
    signers = [Ed25519Signer(f"signer.example/{at}", bytes([at]) * 32) for at in range(SIGNATURES_MAX + 1)]
    note = sign_note(TEXT, signers[:SIGNATURES_MAX])
    assert len(open_note(note, [signers[15].key]).signatures) == SIGNATURES_MAX >= 16
    with pytest.raises(VerificationFailed, match="at most"):
        open_note(sign_note(TEXT, signers), [signers[0].key])


def test_an_endless_note_is_refused():
    """A note over its bound is refused before it is parsed."""
    with pytest.raises(VerificationFailed, match="bytes"):
        open_note("a" * 300_000 + "\n\n— a AAAA\n", [SIGNER.key])


def test_a_note_with_half_a_character_is_refused():
    """Text that has no UTF-8 form can't be a note."""
    with pytest.raises(VerificationFailed):
        open_note("\ud800\n\n— a AAAA\n", [SIGNER.key])


def test_cosignatures():
    """A witness's signature covers its time and the text; another time doesn't verify."""
    witness = Ed25519Signer("w.example", bytes(32))
    key = VerifierKey("w.example", witness.key.public_key, ALGORITHM_COSIGNATURE)
    assert key.key_id != witness.key_id
    signature = witness.sign(b"cosignature/v1\ntime 1700000000\n" + TEXT.encode())
    note = add_signature(sign_note(TEXT, [SIGNER]), key, (1_700_000_000).to_bytes(8, "big") + signature)
    assert [signed.cosigned_s for signed in open_note(note, [SIGNER.key, key]).signatures] == [None, 1_700_000_000]
    late = add_signature(sign_note(TEXT, [SIGNER]), key, (1_700_000_001).to_bytes(8, "big") + signature)
    with pytest.raises(VerificationFailed, match="doesn't verify"):
        open_note(late, [SIGNER.key, key])


def test_example_of_the_cosignature_specification():
    """The example note of C2SP tlog-cosignature splits into its three lines and two signatures."""
    note = (
        "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n"
        "— example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n"
        "— witness.example.com/w1 jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA==\n"
    )
    with pytest.raises(VerificationFailed, match="none of the known keys"):
        open_note(note, [SIGNER.key])
    text = CheckpointText.parse(note.split("\n\n")[0] + "\n")
    assert (text.origin, text.size) == ("example.com/behind-the-sofa", 20852163)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, (1 << 64) - 1), ROOTS)
def test_checkpoints_read_back(size, root):
    """A checkpoint's three lines read back in both implementations."""
    text = CheckpointText("overlayd/x/y", size, root)
    assert CheckpointText.parse(str(text)) == text
    assert independent.read_checkpoint(str(text)) == ("overlayd/x/y", size, root)


@settings(deadline=None, max_examples=40)
@given(ROOTS, st.integers(1, (1 << 24) - 1), st.binary(min_size=5, max_size=5))
def test_origins_read_back(public_key, counter, chance):
    """Log id and epoch make an origin, and it gives them back, in both implementations."""
    log, epoch = log_id_of(public_key), make_epoch(counter, chance)
    assert parse_origin(origin_of(log, epoch)) == (log, epoch) == independent.read_origin(origin_of(log, epoch))
    assert log == independent.log_id(public_key)


@pytest.mark.parametrize(
    "origin",
    [
        "overlayd/n64k2gtdeoahwxryhobe2g2uoa", "overlayd/n64k2gtdeoahwxryhobe2g2uoa/0aebagbaf",
        "overlayd/n64k2gtdeoahwxryhobe2g2uob/1aebagbaf", "overlayd/n64k2gtdeoahwxryhobe2g2uoa/16777216aebagbaf",
        "overlayd/N64K2GTDEOAHWXRYHOBE2G2UOA/1aebagbaf", "overlayd/n64k2gtdeoahwxryhobe2g2uoa/01aebagbaf",
        "example.com/log", "overlayd/n64k2gtdeoahwxryhobe2g2uoa/1aebagbaf/",
    ],
)  # fmt: skip
def test_origins_have_one_form(origin):
    """Upper case, leading zeros, unused bits and missing parts are refused by both implementations."""
    with pytest.raises(VerificationFailed):
        parse_origin(origin)
    with pytest.raises(independent.Broken):
        independent.read_origin(origin)


@pytest.mark.parametrize("text", ["A", "AA", "AA=", "AB==", "A A=", "AA==\n", "AA-_", "é", "AAA=AAAA"])
def test_base64_is_strict(text):
    """Unpadded, loose, URL-safe and broken base64 is refused."""
    with pytest.raises(VerificationFailed):
        decode_base64(text, "test")


def test_signers_show_no_secret():
    """A signer's repr shows its public key and nothing of the seed."""
    assert repr(SIGNER) == f"Ed25519Signer({SIGNER.key})"
    assert bytes(range(32)).hex() not in repr(SIGNER)
