"""What packets bring for the chain: transactions in every form, names of transactions, signatures; and what is refused."""

import base64
import json
from collections.abc import Iterable
from typing import Any

import msgspec
import pytest

from overlayd.bsv.anchor import Anchor, AnchorKind, anchor_output
from overlayd.bsv.beef import Beef, BeefEntry, BeefVersion
from overlayd.bsv.brc77 import sign_message
from overlayd.bsv.keys import PrivateKey
from overlayd.bsv.tx import ExtendedTransaction, OutPoint, Transaction, TxInput, TxOutput
from overlayd.model.confirmation import BroughtTx, ConfirmationNow, ConfirmationState, NothingConfirmed
from overlayd.model.definition import ConfirmRule
from overlayd.model.draft import Draft, Receipt
from overlayd.model.entry import SIGNATURE_PREFIX
from overlayd.model.errors import InvalidPacket
from overlayd.model.limits import Limits
from overlayd.model.names import StreamName
from overlayd.model.txid import TxId, format_hash
from overlayd.pipeline.chain_members import judge_claim, note_confirmation
from overlayd.pipeline.decode import decode_packet
from overlayd.storage.lookup import draft_commitment

SALT = base64.b64encode(bytes(range(16))).decode()
PACKET = {"data": {"t": 21}, "id": "a", "salt": SALT}
STREAM = "weather-001"
PACKET_RULE = ConfirmRule(commit="packet")
KEY = PrivateKey((5).to_bytes(32, "big"))
PARENT = Transaction((TxInput(OutPoint(TxId(bytes(31) + b"\1"), 0)),), (TxOutput(1000, b"\x51"),))


def commitment_of_packet(packet: dict[str, Any] = PACKET, stream: str = STREAM) -> bytes:
    """What a producer computes before it publishes."""
    return draft_commitment(stream, decode_packet(json.dumps(packet).encode(), 0, Limits()).draft)


def make_tx(commitment: bytes) -> Transaction:
    """It commits in its second output."""
    outputs = (TxOutput(900, b"\x51"), anchor_output(Anchor(AnchorKind.COMMITMENT, commitment)))
    return Transaction((TxInput(OutPoint(PARENT.txid, 0)),), outputs)


def judged(rule: ConfirmRule = PACKET_RULE, *, has_chain: bool = True, **members: Any) -> Draft:
    """The draft of a packet with these members, if it is taken."""
    decoded = decode_packet(json.dumps({**PACKET, **members}).encode(), 3, Limits())
    assert decoded.claim is not None
    judge_claim(decoded.draft, decoded.claim, STREAM, rule, has_chain=has_chain)
    return decoded.draft


def refusal(rule: ConfirmRule = PACKET_RULE, *, has_chain: bool = True, **members: Any) -> list[tuple[str, str]]:
    """Places and codes of what is wrong."""
    with pytest.raises(InvalidPacket) as caught:
        judged(rule, has_chain=has_chain, **members)
    assert {found.index for found in caught.value.violations} == {3}
    return [(found.pointer, found.code) for found in caught.value.violations]


TX = make_tx(commitment_of_packet())
EXTENDED = ExtendedTransaction(TX, (PARENT.outputs[0],)).encode()
BEEF = Beef((), (BeefEntry(PARENT.txid, PARENT), BeefEntry(TX.txid, TX)), TX.txid)
"""Without a proof of the parent: whether anything is proven is no matter of its form."""


@pytest.mark.parametrize(
    ("octets", "has_parents", "is_beef"),
    [
        (TX.raw, False, False), (EXTENDED, True, False), (BEEF.encode(), True, True),
        (BEEF.encode(BeefVersion.V2), True, True), (BEEF.encode(is_atomic=True), True, True),
    ],
)  # fmt: skip
@pytest.mark.parametrize("is_hex", [True, False])
def test_every_form_of_a_transaction_is_taken(octets: bytes, has_parents: bool, is_beef: bool, is_hex: bool) -> None:
    """Raw, Extended Format and BEEF give the same transaction and the output that commits; what came along is kept."""
    brought = judged(tx=octets.hex() if is_hex else list(octets)).brought
    assert brought is not None
    assert (brought.txid, brought.raw, brought.vout) == (TX.txid, TX.raw, 1)
    assert brought.extended == (EXTENDED if has_parents else None)
    assert brought.beef == (BEEF.encode(is_atomic=True) if is_beef else None)


def test_a_name_alone_is_taken_and_must_agree_with_the_bytes() -> None:
    """`txid` is watched without its bytes; beside `tx` it has to be the same one."""
    assert judged(txid=format_hash(TX.txid)).brought == BroughtTx(TX.txid)
    both = judged(txid=format_hash(TX.txid).upper(), tx=TX.raw.hex()).brought
    assert both is not None
    assert both.raw == TX.raw
    assert refusal(txid="0" * 64, tx=TX.raw.hex()) == [("/txid", "member.contradicts")]


@pytest.mark.parametrize(
    "packet",
    [{**PACKET, "id": "b"}, {**PACKET, "data": {"t": 22}}, {**PACKET, "salt": base64.b64encode(bytes(16)).decode()}],
)
def test_a_transaction_that_commits_to_something_else_is_refused(packet: dict[str, Any]) -> None:
    """Another id, other data or another salt is another commitment; the answer shows the script that is needed."""
    other = make_tx(commitment_of_packet(packet))
    assert refusal(tx=other.raw.hex()) == [("/tx", "tx.commitment")]
    assert refusal(tx=make_tx(commitment_of_packet(stream="weather-002")).raw.hex()) == [("/tx", "tx.commitment")]
    with pytest.raises(InvalidPacket, match="006a086f7665726c6179640101" + "20" + commitment_of_packet().hex()):
        judged(tx=other.raw.hex())


@pytest.mark.parametrize(
    ("rule", "has_chain", "words"),
    [
        (ConfirmRule(), True, "commits nothing"), (ConfirmRule(commit="batch"), True, "in batches"),
        (PACKET_RULE, False, "follows no chain"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["tx", "txid"])
def test_transactions_are_for_streams_that_commit_each_packet(
    rule: ConfirmRule, has_chain: bool, words: str, name: str
) -> None:
    """Elsewhere they are refused, and the answer says why."""
    members = {name: TX.raw.hex() if name == "tx" else format_hash(TX.txid)}
    assert refusal(rule, has_chain=has_chain, **members) == [(f"/{name}", "member.unsupported")]
    with pytest.raises(InvalidPacket, match=words):
        judged(rule, has_chain=has_chain, **members)


def sign(commitment: bytes, verifier: PrivateKey | None = None) -> str:
    """A producer's signature."""
    made = sign_message(
        SIGNATURE_PREFIX + commitment, KEY, bytes(32), None if verifier is None else verifier.public_key
    )
    return base64.b64encode(made.encode()).decode()


@pytest.mark.parametrize("rule", [ConfirmRule(), PACKET_RULE, ConfirmRule(commit="batch")])
@pytest.mark.parametrize("has_chain", [True, False])
def test_a_signature_is_checked_and_kept(rule: ConfirmRule, has_chain: bool) -> None:
    """It needs no chain: it says who made the packet. It is stored as it was sent."""
    text = sign(commitment_of_packet())
    assert judged(rule, has_chain=has_chain, signature=text).signature == json.dumps(text).encode()


def test_wrong_signatures_are_refused() -> None:
    """One of another packet, one for a single verifier, and one with a flipped byte."""
    good = sign(commitment_of_packet())
    flipped = bytearray(base64.b64decode(good))
    flipped[50] ^= 1
    assert refusal(signature=sign(bytes(32))) == [("/signature", "signature.invalid")]
    assert refusal(signature=sign(commitment_of_packet(), KEY)) == [("/signature", "signature.verifier")]
    assert refusal(signature=base64.b64encode(flipped).decode()) == [("/signature", "signature.invalid")]
    assert refusal(signature=sign(bytes(32)), tx=PARENT.raw.hex()) == [
        ("/tx", "tx.commitment"), ("/signature", "signature.invalid"),
    ]  # fmt: skip


class Stands(NothingConfirmed):
    """Reads that say one thing of every packet."""

    def __init__(self, state: ConfirmationState, txid: TxId) -> None:
        self.now = ConfirmationNow(state, txid=txid)

    async def statuses(
        self, stream_hash: bytes, rule: ConfirmRule, offsets: Iterable[int]
    ) -> dict[int, ConfirmationNow]:
        return dict.fromkeys(offsets, self.now)


async def test_receipts_say_how_packets_stand() -> None:
    """A new packet is pending, with the transaction that it brought; a repeat says how the first one stands now."""
    receipts = [
        Receipt(at, StreamName(STREAM), at + 1, at + 9, 1, "x", b"", b"", 1, duplicate=at == 2) for at in range(3)
    ]
    brought = msgspec.structs.replace(Draft(1, b"1", b"1"), brought=BroughtTx(TX.txid))
    reads = Stands("mined", PARENT.txid)
    await note_confirmation(receipts, [Draft(0, b"1", b"1"), brought], bytes(32), PACKET_RULE, reads)
    assert [(receipt.confirmation_status, receipt.txid) for receipt in receipts] == [
        ("pending", b""), ("pending", TX.txid), ("mined", PARENT.txid),
    ]  # fmt: skip
