"""What checking a proof showed and, in plain words, what it did not (docs/log-format.md, What this does not prove)."""

from typing import Literal

import msgspec

Role = Literal["log", "witness", "unknown"]


class SignerReport(msgspec.Struct, frozen=True):
    """A signature on the checkpoint. Those of `log` and `witness` were verified, `unknown` ones weren't looked at."""

    name: str
    key_id: str
    role: Role
    cosigned_s: int | None = None


class AnchorReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was found of a proof's anchor.

    `is_checked`: output, transaction, path and header fit each other. `is_in_chain`: and the header is the one that given
    headers have at that height, with `confirmations` blocks up to their newest, itself counted. `covers`: the packet's
    commitment alone, or the checkpoint and so everything before it. Hashes are hex in display order, `block_time_s` is
    what the block's miner said, in Unix seconds.
    """

    network: str
    is_checked: bool = False
    is_in_chain: bool = False
    covers: Literal["", "commitment", "checkpoint"] = ""
    txid: str = ""
    height: int = 0
    block: str = ""
    block_time_s: int = 0
    confirmations: int = 0

    @property
    def is_regtest(self) -> bool:
        return self.network == "regtest"


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """A proof that holds, as far as it says here. A broken one gives no verdict but VerificationFailed.

    `level` is the strongest thing that was verified: `signed` by the log's own key alone, `witnessed` as well, or
    `anchored` in a block of the given headers (`is_witnessed` tells whether by a witness, too). `stream` is "" where
    nothing opened its pseudonym. `commitment` is `none` where the packet has none. `producer`: the key, in hex, whose
    signature of the commitment was checked.
    """

    level: Literal["signed", "witnessed", "anchored"]
    is_witnessed: bool
    origin: str
    log_id: str
    epoch: str
    checkpoint_size: int
    checkpoint_root: str
    kind: str
    offset: int
    appended_us: int
    leaf_hash: str
    stream: str
    sequence: int
    signers: tuple[SignerReport, ...]
    is_opened: bool
    is_body_shown: bool
    content_hash: str
    commitment: Literal["recomputed", "not opened", "none"]
    producer: str
    unknown_tags: tuple[int, ...]
    anchor: AnchorReport | None
    not_proven: tuple[str, ...]


class Doubts(msgspec.Struct, frozen=True, kw_only=True):
    """What decides which sentences `list_not_proven` gives."""

    is_packet: bool
    is_witnessed: bool
    unknown_signers: int
    is_opened: bool
    is_body_shown: bool
    is_commitment_closed: bool
    is_signed_by_producer: bool
    producer: str
    has_txid: bool
    is_forwarded: bool
    has_via: bool
    is_restored: bool
    unknown_tags: tuple[int, ...]
    anchor: AnchorReport | None


def list_not_proven(doubts: Doubts) -> tuple[str, ...]:
    """One sentence for each thing that a reader might take for proven and that isn't."""
    return tuple(sentence for sentence, holds in (*_of_history(doubts), *_of_content(doubts)) if holds)


def _of_history(doubts: Doubts) -> tuple[tuple[str, bool], ...]:
    anchor = doubts.anchor
    is_dated = anchor is not None and anchor.is_in_chain
    is_history_dated = is_dated and anchor is not None and anchor.covers == "checkpoint"
    return (
        ("That everybody is shown the same history: only the log's own key was checked, and until a witness or an "
         "anchor saw it, its operator may have rewritten it.", not doubts.is_witnessed and not is_history_dated),
        ("That there is only this history: the witnesses vouch for the one they saw, and for nothing after it.",
         doubts.is_witnessed),
        ("That there is only this history: a block dates the one that it saw; others may have been shown another one.",
         is_history_dated),
        (f"Signatures of {doubts.unknown_signers} signer(s) that weren't named as trusted: ignored.",
         doubts.unknown_signers > 0),
        ("When it happened: appended_at is the node's own word, and no block dates this proof.", not is_dated),
        *_of_block(anchor),
        ("That the log's key is in its owner's hands alone: whoever steals it can sign, and rotate, too.", True),
        ("That the log was continued honestly when its epoch changed: what was lost then is the node's own word.",
         doubts.is_restored),
        ("That nothing was left out: packets that were refused, never acknowledged, or that follow this one.", True),
    )  # fmt: skip


def _of_block(anchor: AnchorReport | None) -> tuple[tuple[str, bool], ...]:
    if anchor is None:
        return ()
    is_dated, covers_checkpoint = anchor.is_in_chain, anchor.covers == "checkpoint"
    return (
        (f"The anchor on {anchor.network}: it was not checked here and counts for nothing.", not anchor.is_checked),
        (f"That the block is one of {anchor.network}: transaction and path fit its header, but the header was compared "
         "with no others, and anybody can write one.", anchor.is_checked and not is_dated),
        ("When it happened: the block only says that it was not later, and its time is its miner's word, good to some "
         "hours; appended_at is the node's own.", is_dated),
        ("The packet's place in the log, and when it got there: the block holds its commitment alone.",
         is_dated and not covers_checkpoint),
        (f"That the headers are those of {anchor.network}: they follow each other and carry their work, but who gave them "
         "is believed.", is_dated and not anchor.is_regtest),
        (f"That the block stays: {anchor.confirmations} block(s) of the given headers confirm it.", is_dated),
        ("Regtest is a chain that anybody makes at home: a block of it dates nothing.", anchor.is_regtest),
    )  # fmt: skip


def _of_content(doubts: Doubts) -> tuple[tuple[str, bool], ...]:
    tags = ", ".join(map(str, doubts.unknown_tags))
    return (
        ("What the entry says and which stream it belongs to: nothing was opened.", not doubts.is_opened),
        ("What the body is: it isn't in the proof, and its content hash is only claimed under the seal.",
         doubts.is_opened and not doubts.is_body_shown),
        ("That the commitment covers these values: what was stored differs from what the producer sent, so it was "
         "not opened.", doubts.is_commitment_closed),
        ("Who wrote it: the producer's signature is there but was not checked here.",
         doubts.is_signed_by_producer and not doubts.producer),
        ("Whose key the producer signed with: the signature holds, but who has that key is for others to say.",
         doubts.producer != ""),
        ("Who wrote it: there is no producer's signature.",
         doubts.is_packet and doubts.is_opened and not doubts.is_signed_by_producer),
        ("The transaction that the packet names: the proof doesn't show it, so it may be in no block.", doubts.has_txid),
        ("Where it was forwarded from: the sending node's record is not checked by this version.",
         doubts.is_forwarded),
        ("The second proof under `via`: it is not checked by this version.", doubts.has_via),
        (f"Records of meta that this version doesn't know (tags {tags}): hashed, not understood.",
         bool(doubts.unknown_tags)),
        ("That what it says is true.", True),
    )  # fmt: skip
