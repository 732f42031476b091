"""Checks the parts of a proof file that are in the chain's formats: the anchor up to its block, and who signed the packet.

What it accepts has one spelling only, so that no bit of it can be changed: hex is lower-case, the BUMP is that of the one
transaction and written as we write it, and a header is one of those that were given.
"""

from hashlib import sha256

import msgspec

from overlayd.bsv.anchor import Anchor, AnchorKind, parse_anchor_script
from overlayd.bsv.brc77 import parse_message_signature
from overlayd.bsv.bump import extract_bump, parse_bump
from overlayd.bsv.header import BlockHeader, parse_header
from overlayd.bsv.known_headers import KnownHeaders
from overlayd.bsv.network import NETWORKS, Network
from overlayd.bsv.tx import Transaction, parse_transaction
from overlayd.model.entry import SIGNATURE_PREFIX
from overlayd.model.errors import MalformedChainData, RegtestAnchor, VerificationFailed
from overlayd.model.note import CheckpointText, decode_base64
from overlayd.model.proof_file import ProofAnchor
from overlayd.model.txid import format_hash
from overlayd.model.verdict import AnchorReport


class ChainCheck:
    """As `model.proof.ChainCheck`. `headers`: what the verifier believes; without them an anchor is only held against
    itself, and dates nothing."""

    def __init__(self, headers: KnownHeaders | None = None, *, allow_regtest: bool = False) -> None:
        self._headers = headers
        self._allow_regtest = allow_regtest

    def check_anchor(self, anchor: ProofAnchor, checkpoint: CheckpointText, commitment: bytes | None) -> AnchorReport:
        """As there. Raises RegtestAnchor where regtest isn't allowed, and VerificationFailed."""
        network = NETWORKS.get(anchor.network)
        if network is None:
            raise VerificationFailed(f"there is no network {anchor.network[:40]!r}", subject="anchor")
        try:
            tx = parse_transaction(_octets(anchor.tx, "tx"))
            covers = _judge_output(tx, anchor.output_index, checkpoint, commitment)
            header = parse_header(_octets(anchor.header, "header"))
            _check_path(tx, anchor, header)
        except MalformedChainData as err:
            raise VerificationFailed(f"{err.subject}: {err.detail}", subject="anchor") from err
        report = AnchorReport(
            network=network.name, is_checked=True, covers="checkpoint" if covers else "commitment",
            txid=format_hash(tx.txid), height=anchor.height, block=format_hash(header.hash), block_time_s=header.time_s,
        )  # fmt: skip
        report = self._place(report, header, network)
        if report.is_regtest and not self._allow_regtest:
            raise RegtestAnchor(
                "it is anchored on regtest, a chain that anybody makes at home, where a block proves nothing",
                subject="anchor", hint="for trying things out: --allow-regtest",
            )  # fmt: skip
        return report

    def _place(self, report: AnchorReport, header: BlockHeader, network: Network) -> AnchorReport:
        """In the headers that were given."""
        try:
            header.verify_work(network.limit_bits)
        except MalformedChainData as err:
            raise VerificationFailed(err.detail, subject="anchor") from err
        if self._headers is None:
            return report
        found, confirmations = self._headers.find(network, report.height)
        if found is None:
            return report
        if found.hash != header.hash:
            raise VerificationFailed(
                f"the given headers have another block at height {report.height}: {found}, not {header}", subject="anchor",
                hint="a reorg may have taken the packet back: fetch its proof again",
            )  # fmt: skip
        return msgspec.structs.replace(report, is_in_chain=True, confirmations=confirmations)

    def check_signature(self, signature: bytes, commitment: bytes) -> str:
        """As there."""
        try:
            text = msgspec.json.decode(signature, type=str)
            parsed = parse_message_signature(decode_base64(text, "signature"))
            if parsed.verifier is not None:
                raise VerificationFailed("the producer's signature is made for one verifier", subject="signature")
            return parsed.verify(SIGNATURE_PREFIX + commitment).encoded.hex()
        except (msgspec.DecodeError, MalformedChainData) as err:
            raise VerificationFailed(f"not a producer's signature: {err}", subject="signature") from err


def anchor_of(network: str, raw_tx: bytes, bump: bytes, header: bytes, height: int, output_index: int) -> ProofAnchor:
    """The member of a proof file, in its one spelling. Raises MalformedChainData."""
    tx, parsed = parse_transaction(raw_tx), parse_bump(bump)
    single = extract_bump(parsed, (tx.txid,))
    return ProofAnchor(
        network=network, tx=raw_tx.hex(), bump=single.encode().hex(), header=header.hex(), height=height,
        output_index=output_index,
    )  # fmt: skip


def _judge_output(tx: Transaction, index: int, checkpoint: CheckpointText, commitment: bytes | None) -> bool:
    """Whether the output commits to the checkpoint; else it does to the packet. Raises VerificationFailed."""
    if not 0 <= index < len(tx.outputs):
        raise VerificationFailed(f"the transaction has no output {index}", subject="anchor")
    found = parse_anchor_script(tx.outputs[index].script)
    if found is None:
        raise VerificationFailed(f"output {index} commits to nothing", subject="anchor")
    if found == Anchor(AnchorKind.CHECKPOINT, sha256(str(checkpoint).encode()).digest()):
        return True
    if commitment is not None and found == Anchor(AnchorKind.COMMITMENT, commitment):
        return False
    what = "checkpoint" if found.kind is AnchorKind.CHECKPOINT else "packet"
    raise VerificationFailed(f"output {index} commits to another {what}", subject="anchor")


def _check_path(tx: Transaction, anchor: ProofAnchor, header: BlockHeader) -> None:
    raw = _octets(anchor.bump, "bump")
    bump = parse_bump(raw)
    if bump.height != anchor.height:
        raise VerificationFailed(f"the path is of block {bump.height}, not {anchor.height}", subject="anchor")
    bump.verify(tx.txid, header.merkle_root)
    if bump.txids != [tx.txid] or extract_bump(bump, (tx.txid,)).encode() != raw:
        raise VerificationFailed("the path isn't that of the one transaction, in its shortest form", subject="anchor")


def _octets(text: str, name: str) -> bytes:
    """Of lower-case hex, which is the one spelling. Raises VerificationFailed."""
    try:
        octets = bytes.fromhex(text)
    except ValueError as err:
        raise VerificationFailed(f"{name} isn't hex", subject="anchor") from err
    if octets.hex() != text:
        raise VerificationFailed(f"{name} isn't lower-case hex", subject="anchor")
    return octets
