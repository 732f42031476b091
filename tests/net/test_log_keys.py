"""The list of a log's keys: what a stranger believes of it, and every way in which it could lie."""

import base64
import itertools
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from route_rig import ADMIN, LOOPBACK, Node, open_node

from overlayd.client.trust import LogView
from overlayd.model.bodies import KeyChange, encode_node_body
from overlayd.model.errors import UnknownSigner, VerificationFailed
from overlayd.model.key_chain import KeyNote, LogKeyBody, LogKeysBody, decode_key_list, follow_keys, open_key_note
from overlayd.model.note import Ed25519Signer, VerifierKey, sign_note
from overlayd.model.proof import TrustedKeys, decode_proof, verify_checkpoint, verify_proof

SEQUENCE = itertools.count()


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    """A node whose log has a stream with some packets."""
    async with open_node(tmp_path) as running:
        await running.append("a", *(b"%d" % number for number in range(5)))
        yield running


async def pinned(node: Node) -> TrustedKeys:
    """What a stranger pins now."""
    body = (await node.ask("GET", "/v1/node", who=LOOPBACK)).json
    return TrustedKeys(log_keys=(VerifierKey.parse(body["keys"][0]),), log_id=body["log"])


async def listed(node: Node) -> LogKeysBody:
    """The list as the node gives it."""
    reply = await node.ask("GET", "/v1/log/keys", who=LOOPBACK)
    assert reply.status == 200
    return decode_key_list(reply.body)


async def rotate(node: Node) -> None:
    """Through the route, then one packet more."""
    reply = await node.ask("POST", "/v1/log/keys/rotate", who=ADMIN)
    assert reply.status == 200, reply.body
    await node.append("a", b'"x%d"' % next(SEQUENCE))
    await node.log.checkpoint(node.log.head)


async def test_only_administrators_rotate(node: Node) -> None:
    """Whoever publishes can't; and who may is written into the audit stream in the entry's transaction."""
    assert (await node.ask("POST", "/v1/log/keys/rotate", who=LOOPBACK)).status == 403
    assert len((await listed(node)).keys) == 1
    await rotate(node)
    entries = (await node.log.read_page(0)).entries
    (record,) = [entry for entry in entries if b"log.rotate_key" in entry.meta]
    assert msgspec.json.decode(record.body)["subject"] == (await listed(node)).keys[1].key


async def test_old_and_new_proofs_verify_from_either_end(node: Node) -> None:
    """Who pins the first key follows the list forward, who pins the last one backward; without it each knows its own."""
    first = await pinned(node)
    old = decode_proof((await node.ask("GET", "/v1/streams/a/packets/1/proof")).body)
    await rotate(node)
    await rotate(node)
    last, listing = await pinned(node), await listed(node)
    new = decode_proof((await node.ask("GET", "/v1/streams/a/packets/1/proof")).body)
    assert [key.state for key in listing.keys] == ["retired", "retired", "current"]
    verify_proof(old, first)
    verify_proof(new, last)
    with pytest.raises(UnknownSigner):
        verify_proof(new, first)
    with pytest.raises(UnknownSigner):
        verify_proof(old, last)
    for trusted in (first, last):
        known = follow_keys(listing, trusted)
        assert verify_proof(old, known).leaf_hash == verify_proof(new, known).leaf_hash
        assert len(known.log_keys) == 3


async def test_a_retired_key_signs_nothing_newer(node: Node, tmp_path: Path) -> None:
    """Whoever steals it later can't extend the log for those who know the list."""
    seed = find_seed(tmp_path)
    first = await pinned(node)
    await rotate(node)
    known = follow_keys(await listed(node), first)
    newest = (await node.ask("GET", "/v1/log/checkpoint")).body.decode()
    verify_checkpoint(newest, known)
    text = newest.partition("\n\n")[0] + "\n"
    forged = sign_note(text, [Ed25519Signer(text.partition("\n")[0], seed)])
    verify_checkpoint(forged, first)  # who knows nothing of the rotation can't tell
    with pytest.raises(VerificationFailed, match="didn't count at size"):
        verify_checkpoint(forged, known)


async def test_a_client_learns_the_new_key_by_itself(node: Node, tmp_path: Path) -> None:
    """From the list, with the consistency of the log; it keeps what it learned, also beside a pinned key."""
    first = await pinned(node)
    key = str(first.log_keys[0])
    view = LogView(tmp_path / "trust", keys=[key])
    await drive(node, view.take_checkpoint((await node.ask("GET", "/v1/log/checkpoint")).body.decode()))
    await rotate(node)
    newest = (await node.ask("GET", "/v1/log/checkpoint")).body.decode()
    await drive(node, view.take_checkpoint(newest))
    assert len(view.known.keys) == 2
    again = LogView(tmp_path / "trust", keys=[key])
    assert again.known.keys == view.known.keys
    assert again.trusted.spans == view.trusted.spans
    assert verify_checkpoint(newest, again.trusted).checkpoint.size == again.known.size


def find_seed(directory: Path) -> bytes:
    """Of the first key."""
    (file,) = directory.rglob("log.ed25519")
    return file.read_bytes()


async def drive(node: Node, steps: Any) -> Any:
    """Answers a client's calls."""
    from overlayd.client.calls import Answer

    reply = None
    try:
        while True:
            call = steps.send(reply)
            query = "&".join(f"{name}={value}" for name, value in call.params)
            got = await node.ask(call.method, call.path + (f"?{query}" if query else ""), who=LOOPBACK)
            reply = call.read(Answer(got.status, dict(got.headers), got.body))
    except StopIteration as done:
        return done.value


def with_step(listing: LogKeysBody, **members: Any) -> LogKeysBody:
    """The list with another last key."""
    step = msgspec.structs.replace(listing.keys[-1], **members)
    return msgspec.structs.replace(listing, keys=(*listing.keys[:-1], step))


def with_body(step: LogKeyBody, note: str) -> LogKeyBody:
    """The key with another note in its entry."""
    assert step.introduced is not None
    assert step.introduced.sealed is not None
    body = base64.b64encode(encode_node_body(KeyChange(note))).decode()
    sealed = msgspec.structs.replace(step.introduced.sealed, body=body)
    return msgspec.structs.replace(step, introduced=msgspec.structs.replace(step.introduced, sealed=sealed))


STRANGER = Ed25519Signer("overlayd/" + "a" * 26 + "/1aaaaaaaa", b"\x07" * 32)


def stranger_of(listing: LogKeysBody) -> VerifierKey:
    """A key that the log never had, under its name."""
    return VerifierKey(listing.origin, STRANGER.key.public_key)


LIES: dict[str, Callable[[LogKeysBody], LogKeysBody]] = {
    "nothing shows the new key": lambda list_: with_step(list_, introduced=None),
    "another key in the new one's place": lambda list_: with_step(list_, key=str(stranger_of(list_))),
    "an earlier size": lambda list_: with_step(list_, from_size=list_.keys[-1].from_size - 1),  # type: ignore[operator]
    "another first key": lambda list_: msgspec.structs.replace(
        list_, keys=(msgspec.structs.replace(list_.keys[0], key=str(stranger_of(list_))), *list_.keys[1:])
    ),
    "the first key left out": lambda list_: msgspec.structs.replace(list_, keys=list_.keys[1:]),
    "the last one twice": lambda list_: msgspec.structs.replace(list_, keys=(*list_.keys, list_.keys[-1])),
    "no keys": lambda list_: msgspec.structs.replace(list_, keys=()),
    "another log": lambda list_: msgspec.structs.replace(list_, log="a" * 26),
    "another note": lambda list_: msgspec.structs.replace(
        list_, keys=(*list_.keys[:-1], with_body(list_.keys[-1], "overlayd/key/1\n…\n"))
    ),
    "a checkpoint that only the old key signed": lambda list_: signed_by_one(list_, 1),
    "a checkpoint that only the new key signed": lambda list_: signed_by_one(list_, 0),
}  # fmt: skip


def signed_by_one(listing: LogKeysBody, left_out: int) -> LogKeysBody:
    """The list with one signature less on the checkpoint of its last key."""
    proof = listing.keys[-1].introduced
    assert proof is not None
    less = msgspec.structs.replace(proof, checkpoint=without_signature(proof.checkpoint, left_out))
    return with_step(listing, introduced=less)


def without_signature(note: str, number: int) -> str:
    """The note with one of its signature lines left out."""
    text, _, lines = note.partition("\n\n")
    kept = [line for at, line in enumerate(lines.splitlines()) if at != number]
    return text + "\n\n" + "".join(f"{line}\n" for line in kept)


@pytest.mark.parametrize("lie", LIES)
async def test_a_list_that_lies_is_refused(node: Node, lie: str) -> None:
    """Whatever is changed about it, by somebody who has neither key."""
    first = await pinned(node)
    await rotate(node)
    listing = await listed(node)
    follow_keys(listing, first)
    with pytest.raises(VerificationFailed):
        follow_keys(LIES[lie](listing), first)


async def test_a_list_that_leaves_out_a_known_key_is_refused(node: Node) -> None:
    """Somebody with the first key alone made another history of it."""
    first = await pinned(node)
    before = await listed(node)
    await rotate(node)
    known = follow_keys(await listed(node), first)
    with pytest.raises(VerificationFailed, match="doesn't lead over the keys"):
        follow_keys(before, known)


@pytest.mark.parametrize("signers", [(0,), (1,), (0, 0), (1, 1), ()])
def test_a_key_note_needs_both_signatures(signers: tuple[int, ...]) -> None:
    """One key alone neither hands the log over nor takes it."""
    origin = STRANGER.name
    both = [STRANGER, Ed25519Signer(origin, b"\x08" * 32)]
    text = str(KeyNote(origin, both[0].key, both[1].key))
    note = sign_note(text, [both[at] for at in signers]) if signers else text
    with pytest.raises(VerificationFailed):
        open_key_note(note)
    open_key_note(sign_note(text, both))


def test_a_key_note_has_one_form() -> None:
    """Other heads, other names, more lines and the same key twice are refused, however well they are signed."""
    origin = STRANGER.name
    both = [STRANGER, Ed25519Signer(origin, b"\x08" * 32)]
    old, new = (signer.key for signer in both)
    elsewhere = VerifierKey("overlayd/" + "a" * 26 + "/2aaaaaaaa", new.public_key)
    texts = [
        f"overlayd/key/2\n{origin}\n{old}\n{new}\n",
        f"overlayd/key/1\n{origin}\n{old}\n{new}\nmore\n",
        f"overlayd/key/1\n{origin}\n{old}\n",
        f"overlayd/key/1\n{origin}\n{old}\n{old}\n",
        f"overlayd/key/1\n{origin}\n{old}\n{elsewhere}\n",
        f"overlayd/key/1\nsomebody\n{old}\n{new}\n",
        f"overlayd/key/1\n{origin}\n{old} \n{new}\n",
    ]
    for text in texts:
        with pytest.raises(VerificationFailed):
            open_key_note(sign_note(text, both))
