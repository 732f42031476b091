"""Writes tests/data/rotation-vectors.json with the product's own code: `python tests/model/make_rotation_vectors.py`.

One log, whose key changes twice: what each step signs, the list of keys, and lists that must be refused. The seeds are public.
"""

import copy
import itertools
import json
from pathlib import Path
from typing import Any

from make_vectors import LOG_ID, SEED, SIGNER, make_entry, path_of

from overlayd.model.bodies import Boot, Genesis, KeyChange, encode_node_body
from overlayd.model.entry import Kind, StoredEntry
from overlayd.model.key_chain import sign_key_note
from overlayd.model.merkle import root_of
from overlayd.model.note import CheckpointText, Ed25519Signer, Signer, sign_note
from overlayd.model.proof import Proof, build_proof, encode_proof

VECTORS = Path(__file__).parent.parent / "data" / "rotation-vectors.json"
SEEDS = (SEED, bytes(range(32, 64)), bytes(range(64, 96)))
STRANGER = Ed25519Signer(SIGNER.name, bytes(range(200, 232)))
SIGNERS = tuple(Ed25519Signer(SIGNER.name, seed) for seed in SEEDS)


def make_log() -> list[StoredEntry]:
    """Genesis, boot, key, boot, boot, key, boot."""
    key_notes = [sign_key_note(old, new) for old, new in itertools.pairwise(SIGNERS)]
    boot = encode_node_body(Boot(version="0.1.0"))
    bodies = [
        encode_node_body(Genesis((str(SIGNER.key),))), boot, encode_node_body(KeyChange(key_notes[0])), boot, boot,
        encode_node_body(KeyChange(key_notes[1])), boot,
    ]  # fmt: skip
    return [make_entry(Kind.NODE, offset, body) for offset, body in enumerate(bodies, 1)]


def checkpoint(log: list[StoredEntry], size: int, *signers: Signer) -> str:
    """Over the first entries of the log."""
    root = root_of([entry.leaf for entry in log[:size]])
    return sign_note(str(CheckpointText(SIGNER.name, size, root)), signers)


def step(log: list[StoredEntry], offset: int, size: int, *signers: Signer) -> dict[str, Any]:
    """How a key came to be the log's."""
    return {"from_size": size, "introduced": json.loads(encode_proof(prove(log, offset, size, *signers)))}


def prove(log: list[StoredEntry], offset: int, size: int, *signers: Signer) -> Proof:
    """An entry under a checkpoint."""
    entry = log[offset - 1]
    note = checkpoint(log, size, *signers)
    return build_proof(entry, stream="", ssalt=b"", path=path_of(entry, log[:size]), checkpoint=note)


def key_list(log: list[StoredEntry]) -> dict[str, Any]:
    """As `GET /v1/log/keys` gives it."""
    first, second, third = SIGNERS
    return {
        "log": LOG_ID, "origin": SIGNER.name,
        "keys": [
            {"key": str(first.key), "state": "retired", "from_size": 0, "to_size": 4},
            {"key": str(second.key), "state": "retired", "to_size": 6, **step(log, 3, 4, first, second)},
            {"key": str(third.key), "state": "current", **step(log, 6, 6, second, third)},
        ],
    }  # fmt: skip


def must_fail(log: list[StoredEntry]) -> dict[str, Any]:
    """Lists that lie, by what is wrong about them."""
    first, second, third = SIGNERS
    good = key_list(log)

    def changed(at: int, **members: Any) -> dict[str, Any]:
        lie = copy.deepcopy(good)
        lie["keys"][at].update(members)
        return lie

    def without(at: int) -> dict[str, Any]:
        lie = copy.deepcopy(good)
        del lie["keys"][at]
        return lie

    return {
        "a checkpoint of the old key alone": changed(1, **step(log, 3, 4, first)),
        "a checkpoint of the new key alone": changed(1, **step(log, 3, 4, second)),
        "a checkpoint of strangers": changed(1, **step(log, 3, 4, STRANGER, third)),
        "a checkpoint from before the entry": changed(2, from_size=5),
        "another entry": changed(1, **step(log, 4, 4, first, second)),
        "the entry of the next change": changed(1, **step(log, 6, 6, first, second)),
        "another key than the note's": changed(2, key=str(STRANGER.key)),
        "a key in between left out": without(1),
        "the first key left out": without(0),
        "nothing that shows it": changed(2, introduced=None),
    }


def build_vectors() -> dict[str, Any]:
    """Everything, ready for JSON."""
    log = make_log()
    first, second, third = SIGNERS
    return {
        "about": "The rotation of docs/log-format.md. Seeds are hex.",
        "seeds": [seed.hex() for seed in SEEDS],
        "log_id": LOG_ID,
        "key_notes": [sign_key_note(first, second), sign_key_note(second, third)],
        "checkpoints": [
            {"size": 2, "signed_by": [0], "note": checkpoint(log, 2, first)},
            {"size": 4, "signed_by": [0, 1], "note": checkpoint(log, 4, first, second)},
            {"size": 5, "signed_by": [1], "note": checkpoint(log, 5, second)},
            {"size": 6, "signed_by": [1, 2], "note": checkpoint(log, 6, second, third)},
            {"size": 7, "signed_by": [2], "note": checkpoint(log, 7, third)},
        ],
        "retired": [checkpoint(log, 7, first), checkpoint(log, 7, second), checkpoint(log, 2, third)],
        "list": key_list(log),
        "must_fail": must_fail(log),
    }


def vectors_text() -> str:
    """The file's text."""
    return json.dumps(build_vectors(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    VECTORS.write_text(vectors_text())
