"""The rotation's vectors, against the product and against a second reading of docs/log-format.md."""

import json
from typing import Any

import independent_log_format as independent
import make_rotation_vectors
import pytest

from overlayd.model.errors import VerificationFailed
from overlayd.model.key_chain import decode_key_list, follow_keys, open_key_note
from overlayd.model.note import VerifierKey
from overlayd.model.proof import TrustedKeys, verify_checkpoint

VECTORS: dict[str, Any] = json.loads(make_rotation_vectors.VECTORS.read_text())
LIST = VECTORS["list"]
KEYS = [VerifierKey.parse(key["key"]) for key in LIST["keys"]]


def second_reading(listed: Any) -> list[bytes]:
    """The list's keys, followed with nothing but the format's second implementation and the log's id."""
    first = independent.read_key(listed["keys"][0]["key"])[2]
    independent.demand(independent.log_id(first) == VECTORS["log_id"], "the first key names the log")
    keys = [first]
    for step in listed["keys"][1:]:
        new = independent.read_key(step["key"])[2]
        independent.demand(isinstance(step["introduced"], dict), "introduced")
        raw = json.dumps(step["introduced"]).encode()
        for key in (keys[-1], new):
            shown = independent.check_proof(raw, key, VECTORS["log_id"])
            independent.demand(shown["size"] == step["from_size"], "size")
        body = json.loads(independent.canonical_base64(step["introduced"]["sealed"]["body"]))
        independent.demand(body["type"] == "key", "kind of the entry")
        lines = body["note"].split("\n\n")[0].split("\n")
        independent.demand(lines[0] == "overlayd/key/1" and len(lines) == 4, "form of the note")
        old_key, new_key = independent.read_key(lines[2]), independent.read_key(lines[3])
        independent.demand((old_key[2], new_key[2]) == (keys[-1], new), "keys of the note")
        _, signed = independent.open_note(body["note"], [old_key, new_key])
        independent.demand(len(signed) == 2, "both signed")
        keys.append(new)
    return keys


def test_the_file_is_what_the_script_writes() -> None:
    """The committed vectors are those that the product makes today."""
    assert make_rotation_vectors.VECTORS.read_text() == make_rotation_vectors.vectors_text()


def test_both_follow_the_list() -> None:
    """From any of the keys to all of them."""
    listed = decode_key_list(json.dumps(LIST).encode())
    for pinned in KEYS:
        known = follow_keys(listed, TrustedKeys((pinned,)))
        assert [key.public_key for key in known.log_keys] == second_reading(LIST)
        assert [(span.from_size, span.to_size) for span in known.spans] == [(0, 4), (4, 6), (6, None)]


@pytest.mark.parametrize("name", VECTORS["must_fail"])
def test_both_refuse_a_list_that_lies(name: str) -> None:
    """Each for what it is called."""
    lie = VECTORS["must_fail"][name]
    with pytest.raises(VerificationFailed):
        follow_keys(decode_key_list(json.dumps(lie).encode()), TrustedKeys((KEYS[0],), log_id=VECTORS["log_id"]))
    with pytest.raises((independent.Broken, KeyError)):
        second_reading(lie)


@pytest.mark.parametrize("note", VECTORS["key_notes"])
def test_key_notes(note: str) -> None:
    """Each names its keys in order."""
    opened = open_key_note(note)
    assert KEYS.index(opened.new) == KEYS.index(opened.old) + 1


@pytest.mark.parametrize("vector", VECTORS["checkpoints"], ids=lambda vector: str(vector["size"]))
def test_checkpoints_over_the_rotation(vector: dict[str, Any]) -> None:
    """Each verifies with every key that signed it and with the list, and with no other key."""
    known = follow_keys(decode_key_list(json.dumps(LIST).encode()), TrustedKeys((KEYS[0],)))
    verify_checkpoint(vector["note"], known)
    for at, key in enumerate(KEYS):
        if at in vector["signed_by"]:
            verify_checkpoint(vector["note"], TrustedKeys((key,)))
        else:
            with pytest.raises(VerificationFailed):
                verify_checkpoint(vector["note"], TrustedKeys((key,)))


@pytest.mark.parametrize("note", VECTORS["retired"])
def test_a_key_counts_for_its_sizes_only(note: str) -> None:
    """Neither after it was retired nor before it was introduced."""
    known = follow_keys(decode_key_list(json.dumps(LIST).encode()), TrustedKeys((KEYS[0],)))
    with pytest.raises(VerificationFailed, match="didn't count at size"):
        verify_checkpoint(note, known)
