"""What a client knows of a log from before, so that the node can't show it another history. No I/O but its file."""

import os
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from overlayd.client import calls
from overlayd.client.calls import Call
from overlayd.model.errors import ForkDetected, UnknownSigner, VerificationFailed
from overlayd.model.key_chain import follow_keys
from overlayd.model.merkle import verify_consistency
from overlayd.model.note import VerifierKey, parse_origin
from overlayd.model.proof import (
    ChainCheck,
    KeySpan,
    SignedTree,
    TrustedKeys,
    decode_proof,
    verify_checkpoint,
    verify_proof,
)
from overlayd.model.verdict import Verdict
from overlayd.model.wire import ConsistencyBody, NodeBody, Packet, ReceiptBody, WelcomeMessage, parse_sha256

T = TypeVar("T")
_RESET_HINT = "if the log was replaced on purpose, remove the trust file; else ask its operator"


class KnownLog(msgspec.Struct):
    """What is kept: whose log, which keys, and size, root and note of the newest checkpoint that was checked.

    `spans`: for which sizes each key counts (KeySpan's members), once the log's list of keys was checked.
    """

    log_id: str = ""
    keys: tuple[str, ...] = ()
    spans: tuple[tuple[int, int | None], ...] = ()
    size: int = 0
    root: str = ""
    note: str = ""


class LogView:
    """The keys that a client trusts for one log, and the newest checkpoint it has seen of it.

    With `keys` (verifier keys as their owner published them) these are pinned. Without, the first node that is
    asked is believed, and every later answer is held against that: trust on first use. A key that takes over later is
    believed when the log's list of keys shows that it was introduced by one that is. `path` keeps it all over restarts;
    without one it lasts as long as this object.
    """

    def __init__(self, path: Path | None = None, *, keys: Sequence[str] = ()) -> None:
        """Raises VerificationFailed for a key or a file that can't be read."""
        self._path = path
        self.known = _load(path)
        if keys:
            pinned = tuple(str(VerifierKey.parse(key)) for key in keys)
            log_id, _ = parse_origin(VerifierKey.parse(pinned[0]).name)
            if self.known.log_id not in ("", log_id):
                raise VerificationFailed("the keys are of another log than the trust file", subject="key")
            if not _lead_over(self.known.keys, pinned):
                self.known.keys, self.known.spans = pinned, ()
            self.known.log_id = log_id

    @property
    def trusted(self) -> TrustedKeys:
        """For the verifiers of model/proof.py."""
        keys = tuple(VerifierKey.parse(key) for key in self.known.keys)
        spans = tuple(KeySpan(key.public_key, *span) for key, span in zip(keys, self.known.spans, strict=False))
        return TrustedKeys(keys, log_id=self.known.log_id, spans=spans)

    @property
    def seen(self) -> str:
        """`<size>:<root>` of the newest known checkpoint, for a live query; empty if there is none."""
        return f"{self.known.size}:{self.known.root}" if self.known.size else ""

    def adopt(self, node: NodeBody) -> None:
        """Believes the node's keys if none are known yet. Raises ForkDetected if it shows another log."""
        if not self.known.keys:
            for key in node.keys:
                VerifierKey.parse(key)
            self.known.log_id, self.known.keys = node.log, tuple(node.keys)
            self._save()
        elif node.log != self.known.log_id:
            raise ForkDetected(
                f"the node shows log {node.log}, not {self.known.log_id}", subject="log", hint=_RESET_HINT
            )

    def take_checkpoint(self, note: str) -> Generator[Call[Any], Any, SignedTree]:
        """Checks a checkpoint against the keys and against what was seen before, and remembers the newer one.

        Yields the calls it needs the answers of. Raises VerificationFailed or ForkDetected.
        """
        if not self.known.keys:
            self.adopt((yield calls.node()))
        tree = yield from self.verify(lambda: verify_checkpoint(note, self.trusted))
        low, high = sorted((self.known.size, tree.checkpoint.size))
        if low and low != high:
            body: ConsistencyBody = yield calls.consistency(low, high)
            self._extend(tree, note, body.path)
        else:
            self._extend(tree, note, [])
        return tree

    def take_welcome(self, welcome: WelcomeMessage) -> None:
        """Checks the answer to `seen`. Raises ForkDetected, also if the node gives none."""
        body, loss = welcome.consistency, welcome.loss
        if loss:
            raise ForkDetected(
                f"the node was restored and lost entries {loss.common_size + 1} to {loss.seen_size}, which were seen",
                subject="log", hint=_RESET_HINT,
            )  # fmt: skip
        if not body:
            raise ForkDetected("the node gave no proof that its log extends what was seen", subject="log")
        if body.from_ != self.known.size:
            raise ForkDetected("the node proved something about another size than was asked", subject="log")
        try:
            tree = verify_checkpoint(body.checkpoint, self.trusted) if body.checkpoint else None
        except UnknownSigner:  # a key that took over: the history is compared, the key is learned by `take_checkpoint`
            tree = None
        if tree is not None and body.checkpoint:
            self._extend(tree, body.checkpoint, body.path)
        else:
            _compare(self.known, body.to, parse_sha256(body.to_root), body.path)

    def learn_keys(self) -> Generator[Call[Any], Any, None]:
        """Fetches the log's list of keys, checks that it leads over those that are trusted, and believes it.

        Raises VerificationFailed.
        """
        trusted = follow_keys((yield calls.log_keys()), self.trusted)
        self.known.log_id, self.known.keys = trusted.log_id, tuple(map(str, trusted.log_keys))
        self.known.spans = tuple((span.from_size, span.to_size) for span in trusted.spans)
        self._save()

    def verify(self, verify: Callable[[], T]) -> Generator[Call[Any], Any, T]:
        """What `verify` gives; when none of the known keys signed, once more with the log's list of keys."""
        try:
            return verify()
        except UnknownSigner:
            yield from self.learn_keys()
            return verify()

    def _extend(self, tree: SignedTree, note: str, path: Sequence[str]) -> None:
        seen = tree.checkpoint
        if self.known.size:
            _compare(self.known, seen.size, seen.root, path)
        if seen.size > self.known.size:
            self.known.size, self.known.root, self.known.note = seen.size, seen.root.hex(), note
            self._save()

    def _save(self) -> None:
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        new = self._path.with_name(self._path.name + ".new")
        with new.open("wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(self.known), indent=2) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._path)


def _lead_over(learned: Sequence[str], pinned: Sequence[str]) -> bool:
    """Whether what was learned since rests on all the pinned keys. A key's name changes with the epoch."""
    known = {VerifierKey.parse(key).public_key for key in learned}
    return all(VerifierKey.parse(key).public_key in known for key in pinned)


def _load(path: Path | None) -> KnownLog:
    if path is None or not path.exists():
        return KnownLog()
    try:
        return msgspec.json.decode(path.read_bytes(), type=KnownLog)
    except (OSError, msgspec.DecodeError) as err:
        raise VerificationFailed(f"the trust file {path} can't be read: {err}", subject="trust") from err


def _compare(known: KnownLog, size: int, root: bytes, path: Sequence[str]) -> None:
    """The two trees are one history. Raises ForkDetected."""
    old, new = (known.size, bytes.fromhex(known.root)), (size, root)
    if old > new and old[0] != new[0]:
        old, new = new, old
    try:
        verify_consistency(*old, *new, [parse_sha256(text) for text in path])
    except (VerificationFailed, ValueError) as err:
        raise ForkDetected(
            f"the log of size {new[0]} doesn't begin with the one of size {old[0]} that was seen: {err}",
            subject="log", hint=_RESET_HINT,
        ) from err  # fmt: skip


def check_proof(
    view: LogView, stream: str, sequence: int, subject: Packet | ReceiptBody | None = None,
    chain: ChainCheck | None = None,
) -> Generator[Call[Any], Any, Verdict]:  # fmt: skip
    """Fetches a packet's proof and checks all of it against the view. Yields the calls it needs the answers of.

    `subject`: what the node said about the packet before, which must agree. `chain`: checks its block, too. Raises
    VerificationFailed or ForkDetected.
    """
    if not view.known.keys:
        view.adopt((yield calls.node()))
    raw: bytes = yield calls.proof(stream, sequence)
    proof = decode_proof(raw)
    verdict = yield from view.verify(lambda: verify_proof(proof, view.trusted, chain))
    if (verdict.stream, verdict.sequence) != (stream, sequence):
        raise VerificationFailed(
            f"the proof is about {verdict.stream or 'an unnamed stream'} {verdict.sequence}, not {stream} {sequence}",
            subject="proof",
        )
    if subject is not None:
        said = (subject.leaf_hash, subject.content_hash or verdict.content_hash, subject.offset)
        if said != (verdict.leaf_hash, verdict.content_hash, verdict.offset):
            raise VerificationFailed("the proof is about other content than the node gave before", subject="proof")
    yield from view.take_checkpoint(proof.checkpoint)
    return verdict
