"""Proof files: what a verdict says, and that no byte of a proof can be changed."""

import base64
import json
from typing import Any

import independent_log_format as independent
import make_vectors
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlayd.model.bodies import encode_node_body
from overlayd.model.entry import Kind, StoredEntry
from overlayd.model.errors import VerificationFailed
from overlayd.model.meta import Meta, encode_meta
from overlayd.model.note import CheckpointText, Ed25519Signer, VerifierKey, log_id_of, origin_of, sign_note
from overlayd.model.proof import Proof, TrustedKeys, Verdict, build_proof, decode_proof, encode_proof, verify_proof
from overlayd.model.tlog_proof import decode_tlog_proof, encode_tlog_proof, proof_of_tlog, tlog_proof_of

PROOFS = {vector["name"]: vector for vector in make_vectors.proof_vectors()}
OPENED = PROOFS["opened, producer's commitment"]["json"].encode()
TRUSTED = TrustedKeys((make_vectors.SIGNER.key,))
WITNESS = make_vectors.WITNESS


def verify(raw: bytes, trusted: TrustedKeys = TRUSTED) -> Verdict:
    """The verdict on a proof file."""
    return verify_proof(decode_proof(raw), trusted)


def prove(log: list[StoredEntry], entry: StoredEntry, note: str | None = None, **more: Any) -> Proof:
    """A proof of one entry of a log, opened."""
    checkpoint = note or make_vectors.sign_log(log, make_vectors.SIGNER)
    path = make_vectors.path_of(entry, log)
    return build_proof(entry, stream="weather-001", ssalt=make_vectors.SSALT, path=path, checkpoint=checkpoint, **more)


def log_with(meta: Meta, body: bytes = b"1", **more: Any) -> tuple[list[StoredEntry], StoredEntry]:
    """The small log's first epoch and one more packet."""
    log = make_vectors.small_log()[:5]
    entry = make_vectors.make_entry(
        Kind.PACKET, 6, body, encode_meta(meta), stream_hash=log[3].stream_hash, sequence=3, prev=log[4].leaf, **more
    )
    return [*log, entry], entry


def test_verdict_of_an_opened_proof():
    """The verdict names log, place, stream and content, and that only the log itself signed."""
    verdict = verify(OPENED)
    assert verdict.level == "signed"
    assert verdict.origin == make_vectors.SIGNER.name
    assert verdict.log_id == make_vectors.LOG_ID
    assert (verdict.epoch, verdict.checkpoint_size) == ("1aebagbaf", 5)
    assert (verdict.kind, verdict.offset, verdict.stream, verdict.sequence) == ("packet", 4, "weather-001", 1)
    assert verdict.is_opened
    assert verdict.is_body_shown
    assert verdict.commitment == "recomputed"
    assert [signer.role for signer in verdict.signers] == ["log"]
    assert any("only the log's own key" in sentence for sentence in verdict.not_proven)
    assert "That what it says is true." in verdict.not_proven
    assert not any("anchor on" in sentence or "witnesses vouch" in sentence for sentence in verdict.not_proven)


def test_verdicts_are_plain_json():
    """A verdict can be shown to machines."""
    shown = json.loads(msgspec.json.encode(verify(OPENED)))
    assert shown["stream"] == "weather-001"
    assert shown["signers"][0]["role"] == "log"


def test_a_reduced_proof_names_no_stream():
    """With nothing opened the stream's name in the JSON is only a claim, so the verdict doesn't repeat it."""
    verdict = verify(PROOFS["reduced"]["json"].encode())
    assert (verdict.is_opened, verdict.stream, verdict.content_hash, verdict.commitment) == (
        False,
        "",
        "",
        "not opened",
    )
    assert any("nothing was opened" in sentence for sentence in verdict.not_proven)


def test_a_body_that_is_not_shown():
    """Seal and commitment are checked by the body's SHA-256; the verdict says that the body wasn't seen."""
    verdict = verify(PROOFS["body not shown"]["json"].encode())
    assert (verdict.is_opened, verdict.is_body_shown, verdict.commitment) == (True, False, "recomputed")
    assert any("it isn't in the proof" in sentence for sentence in verdict.not_proven)


def test_a_witness_counts_only_when_it_is_known():
    """The same proof is `witnessed` for who trusts the witness and `signed` for everybody else."""
    raw = PROOFS["witnessed"]["json"].encode()
    stranger = verify(raw)
    assert stranger.level == "signed"
    assert [signer.role for signer in stranger.signers] == ["log", "unknown"]
    assert any("1 signer(s) that weren't named" in sentence for sentence in stranger.not_proven)
    known = verify(raw, TrustedKeys(TRUSTED.log_keys, (WITNESS,)))
    assert known.level == "witnessed"
    assert known.signers[1].cosigned_s == 1_705_314_700
    assert any("the witnesses vouch" in sentence for sentence in known.not_proven)


def test_a_witness_policy_is_a_demand():
    """Asking for a witness refuses a proof without one, and one witness isn't two."""
    with pytest.raises(VerificationFailed, match="0 known witnesses"):
        verify(OPENED, TrustedKeys(TRUSTED.log_keys, (WITNESS,), 1))
    raw = PROOFS["witnessed"]["json"].encode()
    assert verify(raw, TrustedKeys(TRUSTED.log_keys, (WITNESS,), 1)).level == "witnessed"
    with pytest.raises(VerificationFailed, match="1 known witnesses"):
        verify(raw, TrustedKeys(TRUSTED.log_keys, (WITNESS, WITNESS), 2))


def test_the_log_cannot_witness_itself():
    """A cosignature by the log's own key doesn't count as a witness's."""
    log = make_vectors.small_log()[:5]
    own = VerifierKey("witness.example/w1", make_vectors.PUBLIC_KEY, 4)
    text = str(CheckpointText(make_vectors.SIGNER.name, 5, make_vectors.root_of([entry.leaf for entry in log])))
    signature = bytes(8) + make_vectors.SIGNER.sign(b"cosignature/v1\ntime 0\n" + text.encode())
    note = make_vectors.add_signature(sign_note(text, [make_vectors.SIGNER]), own, signature)
    proof = prove(log, log[3], note)
    assert verify_proof(proof, TrustedKeys(TRUSTED.log_keys, (own,))).level == "signed"


def test_a_witness_alone_is_not_the_log():
    """A checkpoint that only a witness signed proves nothing about the log."""
    log = make_vectors.small_log()[:5]
    note = make_vectors.cosign(make_vectors.sign_log(log, make_vectors.SIGNER), 5)
    text, _, lines = note.partition("\n\n")
    raw = encode_proof(prove(log, log[3], f"{text}\n\n{lines.splitlines()[1]}\n"))
    with pytest.raises(VerificationFailed, match="own key"):
        verify(raw, TrustedKeys(TRUSTED.log_keys, (WITNESS,)))


def test_whose_log_it_is():
    """Another log's key, no key, and another pinned log id are refused."""
    other = Ed25519Signer("x", bytes(32)).key.public_key
    key = VerifierKey(origin_of(log_id_of(other), make_vectors.EPOCH), other)
    for trusted in (TrustedKeys((key,)), TrustedKeys(()), TrustedKeys((VerifierKey("a.example", other),))):
        with pytest.raises(VerificationFailed, match="none of the known keys"):
            verify(OPENED, trusted)
    with pytest.raises(VerificationFailed, match="another log"):
        verify(OPENED, TrustedKeys(TRUSTED.log_keys, log_id=log_id_of(other)))


def test_a_key_counts_for_every_epoch_of_its_log():
    """Who pinned the key under the first epoch's name verifies later epochs without being told."""
    verdict = verify(PROOFS["of the later epoch"]["json"].encode())
    assert verdict.origin == make_vectors.LATER_SIGNER.name
    assert verdict.epoch == "26hzph5hv"


def test_an_ancestors_entry_needs_its_restore():
    """An older epoch's entry verifies under the new origin only with the restore entry that covers it."""
    vector = PROOFS["of an ancestor's epoch"]
    verdict = verify(vector["json"].encode())
    assert (verdict.epoch, verdict.checkpoint_size) == ("1aebagbaf", 7)
    assert any("when its epoch changed" in sentence for sentence in verdict.not_proven)
    proof = json.loads(vector["json"])
    del proof["restore"]
    with pytest.raises(VerificationFailed, match="epoch"):
        verify(json.dumps(proof).encode())


def test_a_restore_covers_its_common_part_only():
    """An entry of the older epoch above the common size, or a restore that isn't the epoch's first, is refused."""
    log = make_vectors.small_log()
    late = make_vectors.make_entry(Kind.PACKET, 7, b"1", b"", stream_hash=log[3].stream_hash, sequence=9)
    forged = [*log[:6], late]
    note = make_vectors.sign_log(forged, make_vectors.LATER_SIGNER)
    restores = [(log[5], make_vectors.path_of(log[5], forged))]
    with pytest.raises(VerificationFailed, match="ancestor"):
        verify_proof(prove(forged, late, note, restores=restores), TRUSTED)
    body = {"type": "restore", "from_epoch": "1aebagbaf", "common_size": 4, "common_root": "r"}
    shifted = make_vectors.make_entry(Kind.NODE, 6, encode_node_body(body), epoch=make_vectors.LATER_EPOCH)
    forged = [*log[:5], shifted]
    note = make_vectors.sign_log(forged, make_vectors.LATER_SIGNER)
    restores = [(shifted, make_vectors.path_of(shifted, forged))]
    with pytest.raises(VerificationFailed, match="where its epoch begins"):
        verify_proof(prove(forged, log[3], note, restores=restores), TRUSTED)


@pytest.mark.parametrize("place", [0, 1, 3])
def test_only_restore_entries_are_restores(place):
    """Another node entry, or a packet, can't stand in for a restore entry."""
    log = make_vectors.small_log()
    note = make_vectors.sign_log(log, make_vectors.LATER_SIGNER)
    proof = prove(log, log[3], note, restores=[(log[place], make_vectors.path_of(log[place], log))])
    with pytest.raises(VerificationFailed):
        verify_proof(proof, TRUSTED)


ANCHOR = {"tx": "00", "bump": "00", "header": "00", "height": 1, "output_index": 0}


def test_anchors_that_nobody_checks_never_count():
    """Without what checks it, an anchor is reported as unchecked and the level stays; regtest is called by its name."""
    for network in ("mainnet", "regtest"):
        raw = json.dumps({**json.loads(OPENED), "anchor": {"network": network, **ANCHOR}}).encode()
        verdict = verify(raw)
        assert verdict.level == "signed"
        assert verdict.anchor is not None
        assert (verdict.anchor.network, verdict.anchor.is_checked) == (network, False)
        assert verdict.anchor.is_regtest == (network == "regtest")
        assert any(f"The anchor on {network}: it was not checked" in sentence for sentence in verdict.not_proven)
        assert any("anybody makes at home" in sentence for sentence in verdict.not_proven) == (network == "regtest")


@pytest.mark.parametrize(
    "change", [*({name: None} for name in ANCHOR), {"height": "1"}, {"more": 1}, {"network": None}]
)
def test_an_anchor_is_whole(change):
    """A member that is missing, unknown or of another kind makes the file no proof."""
    anchor = {"network": "regtest", **ANCHOR, **change}
    anchor = {name: value for name, value in anchor.items() if value is not None}
    with pytest.raises(VerificationFailed, match="not a proof"):
        verify(json.dumps({**json.loads(OPENED), "anchor": anchor}).encode())


def test_a_second_proof_is_not_checked():
    """`via` is named as unchecked."""
    raw = json.dumps({**json.loads(OPENED), "via": {}}).encode()
    assert any("`via`" in sentence for sentence in verify(raw).not_proven)


def test_signature_txid_and_unknown_tags_are_named():
    """A producer's signature, a transaction and unknown records are hashed, and the verdict says they weren't checked."""
    log, entry = log_with(Meta(signature=b'"c2ln"', txid=bytes(32), unknown=((99, b"x"),)))
    verdict = verify_proof(prove(log, entry), TRUSTED)
    assert verdict.unknown_tags == (99,)
    for words in ("signature is there but was not checked", "the proof doesn't show it", "tags 99"):
        assert any(words in sentence for sentence in verdict.not_proven)


def test_a_closed_commitment_is_not_opened():
    """Where the stored form differs from what was sent, the commitment is sealed but not recomputed."""
    log, entry = log_with(Meta(id="a", commitment_form=3), commitment=bytes(range(32)))
    verdict = verify_proof(prove(log, entry), TRUSTED)
    assert verdict.commitment == "not opened"
    assert any("not opened" in sentence for sentence in verdict.not_proven)


def test_a_forwarded_packet_is_named():
    """The sending node's record isn't checked, and neither is the commitment that it belongs to."""
    log = make_vectors.small_log()
    log, entry = log_with(Meta(origin=make_vectors.origin_record(log), commitment_form=1), commitment=b"c" * 32)
    verdict = verify_proof(prove(log, entry), TRUSTED)
    assert verdict.commitment == "not opened"
    assert any("forwarded from" in sentence for sentence in verdict.not_proven)


@pytest.mark.parametrize(("meta", "commitment"), [
    (Meta(commitment_form=1), bytes(32)), (Meta(), b"c" * 32), (Meta(id="a", commitment_form=1), b"c" * 32),
    (Meta(id="a", commitment_form=2, csalt=bytes(16)), b"c" * 32),
])  # fmt: skip
def test_a_commitment_must_be_what_meta_says(meta, commitment):
    """A commitment without a form, a form without one, and one over other values are refused though the seal opens."""
    log, entry = log_with(meta, commitment=commitment)
    raw = encode_proof(prove(log, entry))
    with pytest.raises(VerificationFailed):
        verify(raw)
    with pytest.raises(independent.Broken):
        independent.check_proof(raw, make_vectors.PUBLIC_KEY, make_vectors.LOG_ID)


def test_only_packets_commit():
    """A node entry with a commitment is refused though its seal opens."""
    log = make_vectors.small_log()[:5]
    meta = encode_meta(Meta(commitment_form=3))
    log.append(make_vectors.make_entry(Kind.NODE, 6, b"{}", meta, b"c" * 32))
    path, note = make_vectors.path_of(log[5], log), make_vectors.sign_log(log, make_vectors.SIGNER)
    proof = build_proof(log[5], stream="", ssalt=b"", path=path, checkpoint=note)
    with pytest.raises(VerificationFailed, match="only packets"):
        verify_proof(proof, TRUSTED)


def test_entries_without_a_stream():
    """A node entry is proven with no stream; claiming one for it is refused."""
    log = make_vectors.small_log()[:5]
    path, note = make_vectors.path_of(log[0], log), make_vectors.sign_log(log, make_vectors.SIGNER)
    proof = build_proof(log[0], stream="", ssalt=b"", path=path, checkpoint=note)
    assert verify_proof(proof, TRUSTED).kind == "node"
    with pytest.raises(VerificationFailed, match="no stream"):
        verify_proof(msgspec.structs.replace(proof, stream="weather-001"), TRUSTED)


def flip(octets: bytes, at: int, bit: int) -> bytes:
    """The octets with one bit changed."""
    return octets[:at] + bytes([octets[at] ^ 1 << bit]) + octets[at + 1 :]


def changed(path: list[str], value: str) -> bytes:
    """The opened proof with one member changed."""
    proof = json.loads(OPENED)
    inner = proof
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    return json.dumps(proof, ensure_ascii=False).encode()


@pytest.mark.parametrize(
    "path", [["entry"], ["sealed", "meta"], ["sealed", "body"], ["sealed", "salt"], ["sealed", "ssalt"]]
)
def test_every_byte_behind_base64_is_proven(path):
    """Each bit of E, meta, body and salts, flipped and encoded well again, breaks the proof."""
    proof = json.loads(OPENED)
    octets = base64.b64decode(proof[path[0]] if len(path) == 1 else proof[path[0]][path[1]])
    for at in range(len(octets)):
        broken = changed(path, base64.b64encode(flip(octets, at, at % 8)).decode())
        with pytest.raises(VerificationFailed):
            verify(broken)


def test_every_byte_of_the_note_is_proven():
    """One bit of each byte of the checkpoint's note, flipped, breaks the proof."""
    note = json.loads(OPENED)["checkpoint"].encode()
    for at in range(len(note)):
        broken = flip(note, at, at % 7).decode("utf-8", "replace")
        with pytest.raises(VerificationFailed):
            verify(changed(["checkpoint"], broken))


def test_every_byte_of_a_proof_counts():
    """One bit of each byte of the file, flipped, breaks it: JSON syntax, member names, numbers, hashes, signature."""
    for at in range(len(OPENED)):
        with pytest.raises(VerificationFailed):
            verify(flip(OPENED, at, (at * 5) % 8))


@pytest.mark.slow
def test_every_bit_of_a_proof_counts_in_both():
    """All bits of the file, in both implementations. Slow: some 16,000 proofs, a few thousand signatures by hand."""
    for at in range(len(OPENED)):
        for bit in range(8):
            broken = flip(OPENED, at, bit)
            with pytest.raises(VerificationFailed):
                verify(broken)
            with pytest.raises(independent.Broken):
                independent.check_proof(broken, make_vectors.PUBLIC_KEY, make_vectors.LOG_ID)


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=60) | st.text('{}[]":,v1stream0e', max_size=60).map(str.encode))
def test_decoding_raises_nothing_else(raw):
    """Arbitrary bytes aren't a proof, and say so by VerificationFailed alone."""
    with pytest.raises(VerificationFailed):
        verify(raw)


@pytest.mark.parametrize("raw", [
    b"", b"\xff", b"[]", b"null", b"1" * 5000, b"[" * 100_000, b'{"v":NaN}', b'\xef\xbb\xbf{"v":1}', OPENED + b"}",
    OPENED.decode().encode("utf-16"),
], ids=lambda raw: repr(raw[:8]))  # fmt: skip
def test_hostile_json_is_refused(raw):
    """Deep nesting, huge numbers, other encodings and trailing garbage are refused like any broken proof."""
    with pytest.raises(VerificationFailed):
        decode_proof(raw)


def test_an_endless_path_is_refused():
    """A path longer than any tree is refused before it is walked."""
    proof = json.loads(OPENED)
    proof["inclusion_path"] = ["sha256:" + "00" * 32] * 10_000
    with pytest.raises(VerificationFailed, match="too long"):
        verify(json.dumps(proof).encode())


def test_tlog_proof_in_full():
    """The C2SP form is laid out as its specification says, and carries E so that it stands alone."""
    proof = decode_proof(OPENED)
    lines = encode_tlog_proof(tlog_proof_of(proof)).split("\n")
    assert lines[0] == "c2sp.org/tlog-proof@v1"
    assert lines[1] == f"extra {proof.entry}"
    assert lines[2] == "index 3"
    assert len(lines[3]) == 44
    empty = lines.index("")
    assert empty == 3 + len(proof.inclusion_path)
    assert "\n".join(lines[empty + 1 :]) == proof.checkpoint


@pytest.mark.parametrize("change", [
    ("index 3", "index 03"), ("index 3", "index -3"), ("index 3", "index"), ("index 3", "index 4"), ("@v1", "@v2"),
    ("extra ", "extra"), ("extra AQ", "extra Ag"), ("\n\n", "\n"), ("index 3\n", "index 3\nAAAA\n"),
    ("index 3", "index ٣"), ("index 3", "index 99999999999999999999999"),
])  # fmt: skip
def test_broken_tlog_proofs_are_refused(change):
    """Each change to the C2SP form's layout is refused by both implementations."""
    text = PROOFS["opened, producer's commitment"]["tlog"].replace(*change, 1)
    with pytest.raises(VerificationFailed):
        verify_proof(proof_of_tlog(decode_tlog_proof(text)), TRUSTED)
    with pytest.raises(independent.Broken):
        independent.check_tlog_proof(text, make_vectors.PUBLIC_KEY)


@settings(deadline=None, max_examples=60)
@given(st.text("c2sp.org/tlog-proof@v1 extraindx0=A\n", max_size=80))
def test_reading_tlog_proofs_raises_nothing_else(text):
    """Arbitrary text after the header is refused by VerificationFailed alone."""
    for tried in (text, "c2sp.org/tlog-proof@v1\n" + text):
        with pytest.raises(VerificationFailed):
            verify_proof(proof_of_tlog(decode_tlog_proof(tried)), TRUSTED)
