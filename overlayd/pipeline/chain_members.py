"""The members of a packet about the chain and its producer: `tx`, `txid` and `signature`.

Their form is judged with the packet's other members. What they claim is judged once the stream is known, because it is
about the packet's commitment, which names the stream.
"""

import base64
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from overlayd.bsv.anchor import Anchor, AnchorKind, encode_anchor_script, find_anchor
from overlayd.bsv.beef import Beef, BeefVersion
from overlayd.bsv.brc77 import MessageSignature, parse_message_signature
from overlayd.bsv.brought import Brought, parse_brought
from overlayd.model.confirmation import BroughtTx, ConfirmationReads
from overlayd.model.definition import ConfirmRule
from overlayd.model.draft import Draft, Receipt
from overlayd.model.entry import SIGNATURE_PREFIX
from overlayd.model.errors import MalformedChainData, SignatureInvalid
from overlayd.model.txid import TxId, format_hash, parse_txid
from overlayd.pipeline.members import Findings, is_base64, word_of
from overlayd.storage.lookup import draft_commitment

CHAIN_MEMBERS = ("tx", "txid", "signature")
_COMMITTED = ("salt", "id")


class Claim(msgspec.Struct, frozen=True, gc=False):
    """What a packet says, well-formed but not held against the packet yet. `txid` is that of `tx`, where it is given."""

    txid: TxId | None = None
    tx: Brought | None = None
    signature: MessageSignature | None = None


def read_claim(members: dict[str, Any], bytes_max: int, findings: Findings) -> Claim | None:
    """What the members say; None after a finding."""
    before = len(findings.violations)
    for name in CHAIN_MEMBERS:
        missing = [other for other in _COMMITTED if other not in members] if name in members else []
        if missing:
            findings.add(f"/{name}", "member.requires", f"{name} needs {' and '.join(missing)} beside it")
    tx = _read_tx(members["tx"], bytes_max, findings) if "tx" in members else None
    txid = _read_txid(members["txid"], findings) if "txid" in members else None
    signature = _read_signature(members["signature"], findings) if "signature" in members else None
    if tx is not None:
        if txid not in (None, tx.tx.txid):
            findings.add("/txid", "member.contradicts", f"tx is the transaction {format_hash(tx.tx.txid)}")
        txid = tx.tx.txid
    return Claim(txid, tx, signature) if len(findings.violations) == before else None


def judge_claim(draft: Draft, claim: Claim, stream: str, rule: ConfirmRule, *, has_chain: bool) -> None:
    """Holds the claim against the packet, and puts what it brought into the draft. Raises InvalidPacket."""
    findings = Findings(draft.index)
    draft.brought = None
    commitment = draft_commitment(stream, draft)
    if claim.txid is not None:
        name = "txid" if claim.tx is None else "tx"
        if refusal := _why_no_transaction(rule, has_chain=has_chain):
            findings.add(f"/{name}", "member.unsupported", f"{refusal}: leave {name} out")
        else:
            draft.brought = _bring(claim.txid, claim.tx, commitment, findings)
    if claim.signature is not None:
        _check_signature(claim.signature, commitment, findings)
    findings.raise_any()


async def note_confirmation(
    receipts: Sequence[Receipt],
    drafts: Iterable[Draft],
    stream_hash: bytes,
    rule: ConfirmRule,
    reads: ConfirmationReads,
) -> None:
    """What receipts say about the chain: new packets wait for it, repeats stand where they stand now. A checkpoint where
    there are repeats."""
    repeated = [receipt.offset for receipt in receipts if receipt.duplicate]
    now = await reads.statuses(stream_hash, rule, repeated) if repeated else {}
    brought = {draft.index: draft.brought.txid for draft in drafts if draft.brought is not None}
    for receipt in receipts:
        if receipt.duplicate:
            found = now[receipt.offset]
            receipt.confirmation_status, receipt.txid = found.state, found.txid or b""
        else:
            receipt.confirmation_status, receipt.txid = "pending", brought.get(receipt.index, b"")


def _why_no_transaction(rule: ConfirmRule, *, has_chain: bool) -> str:
    if not has_chain:
        return "this node follows no chain"
    if rule.commit == "batch":
        return "this stream commits its packets in batches (confirm.commit is batch), by transactions of the node"
    if rule.commit == "none":
        return "this stream commits nothing to a chain (confirm.commit is none)"
    return ""


def _bring(txid: TxId, brought: Brought | None, commitment: bytes, findings: Findings) -> BroughtTx | None:
    if brought is None:
        return BroughtTx(txid)
    anchor = Anchor(AnchorKind.COMMITMENT, commitment)
    vout = find_anchor(brought.tx, anchor)
    if vout is None:
        findings.add(
            "/tx", "tx.commitment",
            f"no output commits to this packet; one with the script {encode_anchor_script(anchor).hex()} is needed",
        )  # fmt: skip
        return None
    extended = None if brought.extended is None else brought.extended.encode()
    return BroughtTx(txid, brought.tx.raw, extended, None if brought.beef is None else _encode_beef(brought.beef), vout)


def _encode_beef(beef: Beef) -> bytes:
    """With the subject in front, which may stand anywhere; the second version where some are named by txid alone."""
    has_names = any(entry.tx is None for entry in beef.entries)
    return beef.encode(BeefVersion.V2 if has_names else BeefVersion.V1, is_atomic=True)


def _check_signature(signature: MessageSignature, commitment: bytes, findings: Findings) -> None:
    if signature.verifier is not None:
        findings.add("/signature", "signature.verifier", "is made for one verifier; only one for anyone can be checked")
        return
    try:
        signature.verify(SIGNATURE_PREFIX + commitment)
    except (SignatureInvalid, MalformedChainData):
        findings.add(
            "/signature", "signature.invalid",
            f"isn't {signature.signer.encoded.hex()}'s signature of the packet's commitment, {commitment.hex()}",
        )  # fmt: skip


def _read_tx(value: Any, bytes_max: int, findings: Findings) -> Brought | None:
    if type(value) is not str and type(value) is not list:
        findings.add("/tx", "member.type", f"must be hex digits or an array of numbers, is {word_of(value)}")
        return None
    try:
        return parse_brought(value, bytes_max=bytes_max)
    except MalformedChainData as error:
        findings.add("/tx", "tx.form", f"isn't a transaction (raw, Extended Format or BEEF): {error.detail}")
        return None


def _read_txid(value: Any, findings: Findings) -> TxId | None:
    if type(value) is not str:
        findings.add("/txid", "member.type", f"must be a string, is {word_of(value)}")
        return None
    try:
        return parse_txid(value)
    except MalformedChainData as error:
        findings.add("/txid", "member.format", error.detail)
        return None


def _read_signature(value: Any, findings: Findings) -> MessageSignature | None:
    if type(value) is not str:
        findings.add("/signature", "member.type", f"must be a string, is {word_of(value)}")
        return None
    if not is_base64(value):
        findings.add("/signature", "member.format", "must be canonical base64 of a BRC-77 signature")
        return None
    try:
        return parse_message_signature(base64.b64decode(value))
    except MalformedChainData as error:
        findings.add("/signature", "member.format", f"isn't a BRC-77 signature: {error.detail}")
        return None
