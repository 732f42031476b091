"""Rotation of a log's key: the note that both keys sign, and the list that leads from the first key to the present one.

(docs/log-format.md, Rotation.) A key counts from the first checkpoint on that covers its `key` entry and carries the
signatures of both. So each step of the list is a proof of that entry under that checkpoint, and nobody has to be believed.
"""

from collections.abc import Sequence
from typing import Literal

import msgspec

from overlayd.model.bodies import KeyChange, decode_node_body
from overlayd.model.errors import VerificationFailed
from overlayd.model.note import (
    ALGORITHM_ED25519,
    Signer,
    VerifierKey,
    decode_base64,
    log_id_of,
    open_note,
    parse_origin,
    sign_note,
)
from overlayd.model.proof import KeySpan, Proof, TrustedKeys, verify_checkpoint, verify_proof

ROTATIONS_MAX = 1000
"""Steps that a verifier follows; one a day for almost three years."""
_HEAD = "overlayd/key/1"
KeyState = Literal["current", "retired", "pending", "abandoned"]


class KeyNote(msgspec.Struct, frozen=True):
    """That a log's key gives way to another, under the origin of that time."""

    origin: str
    old: VerifierKey
    new: VerifierKey

    def __str__(self) -> str:
        return f"{_HEAD}\n{self.origin}\n{self.old}\n{self.new}\n"


class LogKeyBody(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One key of a log, as `GET /v1/log/keys` tells it.

    It counts for checkpoints of `from_size` to `to_size` entries, inclusive; a key that doesn't count yet, or never did,
    has neither. `introduced` proves its `key` entry under the checkpoint of `from_size`, which both keys signed.
    """

    key: str
    state: KeyState
    from_size: int | None = None
    to_size: int | None = None
    introduced: Proof | None = None


class LogKeysBody(msgspec.Struct, frozen=True, kw_only=True):
    """A log's keys, the first one first."""

    log: str
    origin: str
    keys: tuple[LogKeyBody, ...]


def sign_key_note(old: Signer, new: Signer) -> str:
    """The note of a rotation. Both keys have the origin as their name."""
    assert old.key.name == new.key.name
    assert old.key.public_key != new.key.public_key
    return sign_note(str(KeyNote(old.key.name, old.key, new.key)), [old, new])


def open_key_note(note: str) -> KeyNote:
    """Checks both signatures and the form. Whether the old key is the log's is for the caller. Raises VerificationFailed."""
    lines = note.partition("\n\n")[0].split("\n")
    if len(lines) != 4 or lines[0] != _HEAD:
        raise VerificationFailed("a key note has exactly four lines", subject="key")
    parsed = KeyNote(lines[1], VerifierKey.parse(lines[2]), VerifierKey.parse(lines[3]))
    parse_origin(parsed.origin)
    for key in (parsed.old, parsed.new):
        if key.name != parsed.origin or key.algorithm != ALGORITHM_ED25519:
            raise VerificationFailed("a key note is about keys of its own log", subject="key")
    if parsed.old.public_key == parsed.new.public_key:
        raise VerificationFailed("a key note that changes nothing", subject="key")
    opened = open_note(note, (parsed.old, parsed.new))
    signed = {signature.key.public_key for signature in opened.signatures if signature.key is not None}
    if opened.text != str(parsed):
        raise VerificationFailed("the key note isn't in its one form", subject="key")
    if len(signed) != 2:
        raise VerificationFailed("a key note is signed by the old key and by the new one", subject="key")
    return parsed


def decode_key_list(raw: bytes) -> LogKeysBody:
    """Raises VerificationFailed. The caller bounds the size."""
    try:
        return msgspec.json.decode(raw, type=LogKeysBody)
    except (msgspec.DecodeError, RecursionError) as err:
        raise VerificationFailed(f"not a list of a log's keys: {err}", subject="keys") from err


def follow_keys(listed: LogKeysBody, trusted: TrustedKeys) -> TrustedKeys:
    """Whom to believe once the list is checked: every key of the log that counts or counted, each for its sizes.

    The list must begin with the key that the log is named after, introduce each further one as it must be, and lead over
    every log key that is trusted already. Raises VerificationFailed.
    """
    counted = [key for key in listed.keys if key.state in ("current", "retired")]
    if not counted or len(counted) > ROTATIONS_MAX:
        raise VerificationFailed(f"a log has 1 to {ROTATIONS_MAX} keys", subject="keys")
    if trusted.log_id and listed.log != trusted.log_id:
        raise VerificationFailed(f"the list is of log {listed.log}, not {trusted.log_id}", subject="keys")
    first = VerifierKey.parse(counted[0].key)
    if log_id_of(first.public_key) != listed.log or first.algorithm != ALGORITHM_ED25519:
        raise VerificationFailed("the list doesn't begin with the key that the log is named after", subject="keys")
    keys, spans = [first], [KeySpan(first.public_key)]
    for step in counted[1:]:
        key, size = _follow_step(step, listed.log, keys[-1])
        if size <= spans[-1].from_size or any(key.public_key == known.public_key for known in keys):
            raise VerificationFailed("the list's keys aren't in the order in which they came", subject="keys")
        spans[-1] = KeySpan(keys[-1].public_key, spans[-1].from_size, size)
        keys.append(key)
        spans.append(KeySpan(key.public_key, size))
    _check_anchored(keys, listed.log, trusted.log_keys)
    return msgspec.structs.replace(trusted, log_keys=tuple(keys), log_id=listed.log, spans=tuple(spans))


def _follow_step(step: LogKeyBody, log_id: str, old: VerifierKey) -> tuple[VerifierKey, int]:
    """The key that takes over, and from which size on. Raises VerificationFailed."""
    new, proof = VerifierKey.parse(step.key), step.introduced
    if proof is None or proof.sealed is None or proof.sealed.body is None:
        raise VerificationFailed(f"nothing shows how {new} came to be the log's key", subject="keys")
    verdict = verify_proof(proof, TrustedKeys((old,), log_id=log_id))
    origin, _, _ = proof.checkpoint.partition("\n")
    named = VerifierKey(origin, new.public_key)
    size = verify_checkpoint(proof.checkpoint, TrustedKeys((named,), log_id=log_id)).checkpoint.size
    body = decode_node_body(decode_base64(proof.sealed.body, "sealed")) if verdict.kind == "node" else None
    if not isinstance(body, KeyChange):
        raise VerificationFailed("what should introduce a key is another entry", subject="keys")
    note = open_key_note(body.note)
    if note.old.public_key != old.public_key or note.new.public_key != new.public_key:
        raise VerificationFailed("the key note is about other keys", subject="keys")
    if parse_origin(note.origin)[0] != log_id:
        raise VerificationFailed("the key note is about another log", subject="keys")
    if step.from_size != size:
        raise VerificationFailed(
            "the list names another size than the checkpoint that both keys signed", subject="keys"
        )
    return new, size


def _check_anchored(keys: Sequence[VerifierKey], log_id: str, trusted: Sequence[VerifierKey]) -> None:
    """A list that leaves out a key that is trusted is of another history. Raises VerificationFailed."""
    listed = {key.public_key for key in keys}
    own = [key for key in trusted if parse_origin(key.name)[0] == log_id]
    if not own or any(key.public_key not in listed for key in own):
        raise VerificationFailed(
            "the list doesn't lead over the keys that are trusted", subject="keys",
            hint="somebody else may have rotated the key; ask the log's owner",
        )  # fmt: skip
