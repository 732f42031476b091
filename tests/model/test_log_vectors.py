"""The vectors of docs/log-format.md, against the product and against a second implementation of the format."""

import json
from typing import Any

import independent_log_format as independent
import make_vectors
import pytest

from overlayd.model import entry, merkle
from overlayd.model.errors import VerificationFailed
from overlayd.model.meta import decode_meta, encode_meta
from overlayd.model.note import CheckpointText, VerifierKey, open_note
from overlayd.model.proof import TrustedKeys, decode_proof, verify_proof
from overlayd.model.tlog_proof import decode_tlog_proof, encode_tlog_proof, proof_of_tlog

VECTORS: dict[str, Any] = json.loads(make_vectors.VECTORS.read_text())
LOG = VECTORS["log"]
PUBLIC_KEY = bytes.fromhex(LOG["public_key"])
KEY = VerifierKey.parse(LOG["key"])
WITNESS = VerifierKey.parse(LOG["witness_key"])
TRUSTED = TrustedKeys((KEY,), (WITNESS,), log_id=LOG["log_id"])
NODE_ENTRIES = [vector for vector in VECTORS["others"] if vector["kind"] == 4]


def by_name(vectors: list[dict[str, Any]]) -> Any:
    """Parametrizes a test over vectors, shown by their names."""
    return pytest.mark.parametrize("vector", vectors, ids=lambda vector: vector["name"])


def of_hex(vector: dict[str, Any], *names: str) -> list[bytes]:
    """Some of a vector's members as bytes."""
    return [bytes.fromhex(vector[name]) for name in names]


def test_the_file_is_what_the_script_writes():
    """The committed vectors are those that the product makes today: the format didn't move."""
    assert make_vectors.VECTORS.read_text() == make_vectors.vectors_text()


@by_name(VECTORS["packets"])
def test_second_implementation_comes_to_the_same_packet(vector):
    """From the inputs alone the second implementation makes the same commitment, meta, seal, E and leaf."""
    fields = dict(vector["meta_fields"])
    for name in ("csalt", "txid"):
        if name in fields:
            fields[name] = bytes.fromhex(fields[name])
    if "unknown" in fields:
        fields["unknown"] = [(tag, bytes.fromhex(value)) for tag, value in fields["unknown"]]
    if "origin" in fields:
        texts = ("line", "stream")
        fields["origin"] = {
            name: value if name in texts else bytes.fromhex(value) for name, value in fields["origin"].items()
        }
    meta = independent.write_meta(fields)
    assert meta.hex() == vector["meta"]
    independent.read_meta(meta)
    salt, ssalt, prev = of_hex(vector, "salt", "ssalt", "prev")
    committed = bytes(32)
    form = fields.get("commitment_form", 0)
    if form:
        packet = {**fields, "stream": vector["stream"]}
        csalt = salt if form == 1 else make_vectors.CSALT
        committed = independent.commitment(csalt, packet, vector["sent"].encode())
    assert committed.hex() == vector["commitment"]
    place = {name: vector[name] for name in ("epoch", "offset", "appended_us", "sequence")}
    raw = independent.write_entry({
        "kind": 1, **place, "prev": prev, "stream_hash": independent.stream_hash(ssalt, vector["stream"]),
        "seal": independent.seal(salt, committed, vector["body"].encode(), meta),
    })  # fmt: skip
    assert raw.hex() == vector["entry"]
    assert independent.leaf(raw).hex() == vector["leaf"]
    assert independent.read_entry(raw)["offset"] == vector["offset"]


@by_name(VECTORS["packets"])
def test_product_reads_its_packets_back(vector):
    """The product decodes each packet vector, re-encodes it to the same bytes and finds leaf and seal right."""
    raw, leaf, salt, committed, content_hash, meta = of_hex(
        vector, "entry", "leaf", "salt", "commitment", "content_hash", "meta"
    )
    assert entry.EntryHeader.decode(raw).encode() == raw
    assert encode_meta(decode_meta(meta)) == meta
    row = entry.entry_of_row(raw, leaf, salt, committed, content_hash, meta, vector["body"].encode())
    entry.verify_entry(row, leaf)
    assert row.stream_hash == entry.stream_hash_of(bytes.fromhex(vector["ssalt"]), vector["stream"])


@by_name(VECTORS["others"])
def test_second_implementation_comes_to_the_same_entry(vector):
    """Status, certificate, removal and node entries: the same E and leaf, and bodies of compact JSON."""
    body = vector["body"].encode()
    assert json.dumps(json.loads(body), separators=(",", ":"), ensure_ascii=False).encode() == body
    fields = {
        name: vector[name]
        for name in ("kind", "epoch", "offset", "appended_us", "target_from", "target_to")
        if name in vector
    }
    fields["stream_hash"] = bytes.fromhex(vector.get("stream_hash", "00" * 32))
    meta = bytes.fromhex(vector["meta"])
    independent.read_meta(meta)
    fields["seal"] = independent.seal(bytes.fromhex(vector["salt"]), bytes(32), body, meta)
    raw = independent.write_entry(fields)
    assert raw.hex() == vector["entry"]
    assert independent.leaf(raw).hex() == vector["leaf"]
    independent.read_entry(raw)
    assert entry.EntryHeader.decode(raw).encode() == raw


@pytest.mark.parametrize("vector", VECTORS["tree"]["checkpoints"], ids=lambda vector: str(vector["size"]))
def test_checkpoints(vector):
    """Both come to the same root over numbered leaves and find the log's signature under the three lines."""
    leaves = make_vectors.numbered_leaves(vector["size"])
    assert independent.tree_hash(leaves).hex() == vector["root"] == merkle.root_of(leaves).hex()
    opened = open_note(vector["note"], [KEY])
    text, signed = independent.open_note(vector["note"], [(LOG["origin"], 1, PUBLIC_KEY)])
    assert text == opened.text
    assert signed == [(LOG["origin"], 1, None)]
    root = bytes.fromhex(vector["root"])
    assert independent.read_checkpoint(text) == (LOG["origin"], vector["size"], root)
    assert CheckpointText.parse(text) == CheckpointText(LOG["origin"], vector["size"], root)


@pytest.mark.parametrize(
    "vector", VECTORS["tree"]["inclusion"], ids=lambda vector: f"{vector['index']}-{vector['size']}"
)
def test_inclusion_paths(vector):
    """The second implementation's audit path is the same, and both find it leading to the root."""
    index, size = vector["index"], vector["size"]
    leaves = make_vectors.numbered_leaves(size)
    path = [bytes.fromhex(step) for step in vector["path"]]
    assert independent.audit_path(index, leaves) == path
    root = merkle.root_of(leaves)
    assert independent.root_by_path(index, size, leaves[index], path) == root
    merkle.verify_inclusion(leaves[index], index, size, path, root)


@pytest.mark.parametrize(
    "vector", VECTORS["tree"]["consistency"], ids=lambda vector: f"{vector['old']}-{vector['new']}"
)
def test_consistency_paths(vector):
    """The second implementation's consistency proof is the same, and both accept it."""
    old, new = vector["old"], vector["new"]
    leaves = make_vectors.numbered_leaves(new)
    path = [bytes.fromhex(step) for step in vector["path"]]
    assert (independent.consistency_proof(old, leaves) if old else []) == path
    roots = merkle.root_of(leaves[:old]), merkle.root_of(leaves)
    independent.check_consistency(old, roots[0], new, roots[1], path)
    merkle.verify_consistency(old, roots[0], new, roots[1], path)


def test_heads():
    """Both come to the same root over the streams' last packets, whatever order they are given in."""
    rows = [
        (bytes.fromhex(stream), sequence, bytes.fromhex(leaf)) for stream, sequence, leaf in VECTORS["heads"]["rows"]
    ]
    assert independent.heads(rows).hex() == VECTORS["heads"]["root"]
    assert entry.heads_root(rows).hex() == entry.heads_root(rows[::-1]).hex() == VECTORS["heads"]["root"]


def test_names_of_the_log():
    """Log id, epoch text, origin and verifier key follow from the public key and the epoch's number."""
    assert independent.log_id(PUBLIC_KEY) == LOG["log_id"]
    assert independent.epoch_text(LOG["epoch"]) == LOG["epoch_text"]
    assert LOG["origin"] == f"overlayd/{LOG['log_id']}/{LOG['epoch_text']}"
    assert independent.read_origin(LOG["origin"]) == (LOG["log_id"], LOG["epoch"])
    assert independent.read_key(LOG["key"]) == (LOG["origin"], 1, PUBLIC_KEY)
    assert independent.read_key(LOG["witness_key"]) == (WITNESS.name, 4, WITNESS.public_key)


@by_name(VECTORS["proofs"])
def test_proofs(vector):
    """A proof file verifies in both, knowing the log's public key only, with the same findings."""
    raw = vector["json"].encode()
    verdict = verify_proof(decode_proof(raw), TRUSTED)
    found = independent.check_proof(raw, PUBLIC_KEY, LOG["log_id"], [(WITNESS.name, 4, WITNESS.public_key)])
    assert verdict.commitment == vector["commitment"] == (found["opened"] or "not opened")
    assert (verdict.level == "witnessed") == vector["is_witnessed"] == any(kind == 4 for _, kind, _ in found["signed"])
    assert (verdict.offset, verdict.sequence) == (found["fields"]["offset"], found["fields"]["sequence"])


@by_name(VECTORS["proofs"])
def test_tlog_proofs(vector):
    """The C2SP form reads back, and both find the same entry at the same index, unless its epoch needs `restore`."""
    tlog = decode_tlog_proof(vector["tlog"])
    assert encode_tlog_proof(tlog) == vector["tlog"]
    if vector["name"] == "of an ancestor's epoch":
        with pytest.raises(independent.Broken):
            independent.check_tlog_proof(vector["tlog"], PUBLIC_KEY)
        with pytest.raises(VerificationFailed):
            verify_proof(proof_of_tlog(tlog), TRUSTED)
        return
    assert independent.check_tlog_proof(vector["tlog"], PUBLIC_KEY) == (tlog.index, tlog.extra)
    assert not verify_proof(proof_of_tlog(tlog), TRUSTED).is_opened


def _product_judges(what: str, value: str) -> None:
    if what == "entry":
        entry.EntryHeader.decode(bytes.fromhex(value))
    elif what == "meta":
        decode_meta(bytes.fromhex(value))
    elif what == "checkpoint":
        CheckpointText.parse(value)
    elif what == "note":
        open_note(value, [KEY, WITNESS])
    elif what == "key":
        VerifierKey.parse(value)
    else:
        assert what == "proof"
        verify_proof(decode_proof(value.encode()), TRUSTED)


def _second_judges(what: str, value: str) -> None:
    if what == "entry":
        independent.read_entry(bytes.fromhex(value))
    elif what == "meta":
        independent.read_meta(bytes.fromhex(value))
    elif what == "checkpoint":
        independent.read_checkpoint(value)
    elif what == "note":
        independent.open_note(value, [(LOG["origin"], 1, PUBLIC_KEY), (WITNESS.name, 4, WITNESS.public_key)])
    elif what == "key":
        independent.read_key(value)
    else:
        independent.check_proof(value.encode(), PUBLIC_KEY, LOG["log_id"])


@pytest.mark.parametrize("vector", VECTORS["must_fail"], ids=lambda vector: f"{vector['what']}: {vector['name']}")
def test_what_must_fail_fails_in_both(vector):
    """Each broken entry, meta, checkpoint, note, key and proof is refused by both implementations."""
    with pytest.raises(VerificationFailed):
        _product_judges(vector["what"], vector["value"])
    with pytest.raises(independent.Broken):
        _second_judges(vector["what"], vector["value"])
