"""Packets that bring a transaction of their own: from the packet object to its confirmation, and what is refused."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from chain_rig import KEY
from watch_rig import STREAM, Node, watching

from overlayd.bsv.brc77 import sign_message
from overlayd.bsv.tx import ExtendedTransaction
from overlayd.delivery.packets import find_confirmed_sequence, find_packet, find_paid, read_stream, show_present
from overlayd.model.definition import ConfirmRule, Definition
from overlayd.model.draft import Receipt
from overlayd.model.errors import CommitmentUsed, InvalidPacket
from overlayd.model.limits import Limits
from overlayd.model.meta import COMMITMENT_OPEN, decode_meta
from overlayd.model.metrics import Metrics
from overlayd.model.txid import format_hash
from overlayd.pipeline.decode import decode_packet
from overlayd.pipeline.intake import Intake, PublishAnswer, StreamAtHand, Terms
from overlayd.pipeline.schema import SchemaCache
from overlayd.storage import Stream
from overlayd.storage.lookup import draft_commitment


class Desk:
    """Publishes packet objects on a node that follows a chain."""

    def __init__(self, node: Node) -> None:
        self.node = node
        limits, metrics = Limits(), Metrics()
        self.intake = Intake(
            log=node.log, limits=limits, schemas=SchemaCache(limits, metrics), metrics=metrics,
            confirmations=node.reads,
        )  # fmt: skip

    async def define(self, rule: ConfirmRule) -> Stream:
        return (await self.node.log.define_stream(STREAM, Definition(confirm=rule)))[0]

    async def make(self, number: int) -> tuple[dict[str, Any], ExtendedTransaction]:
        """A packet, and the transaction that commits to it."""
        salt = base64.b64encode(number.to_bytes(16, "big")).decode()
        packet = {"data": {"n": number}, "id": f"p{number}", "salt": salt}
        draft = decode_packet(json.dumps(packet).encode(), 0, Limits()).draft
        return packet, await self.node.make_tx(draft_commitment(STREAM, draft))

    async def publish(self, *packets: dict[str, Any], atomic: bool = True) -> PublishAnswer:
        objects = [json.dumps(packet).encode() for packet in packets]
        return await self.intake.publish(STREAM, objects, principal="p", may_create=False, atomic=atomic)

    async def publish_one(self, packet: dict[str, Any]) -> Receipt:
        return (await self.publish(packet)).receipts[0]


async def test_a_brought_transaction_is_broadcast_and_confirms_its_packet(tmp_path: Path) -> None:
    """Raw, extended and by name; each packet shows its transaction at once, and its block once it has one."""
    async with watching(tmp_path) as node:
        desk = Desk(node)
        stream = await desk.define(ConfirmRule(commit="packet"))
        made = [await desk.make(number) for number in range(3)]
        receipts = [
            await desk.publish_one({**made[0][0], "tx": made[0][1].encode().hex()}),
            await desk.publish_one({**made[1][0], "tx": list(made[1][1].tx.raw)}),
            await desk.publish_one({**made[2][0], "txid": format_hash(made[2][1].tx.txid)}),
        ]
        await node.send(made[2][1])
        for receipt, (_, tx) in zip(receipts, made, strict=True):
            assert (receipt.confirmation_status, receipt.txid) == ("pending", tx.tx.txid)
            entry = await node.log.read_entry(receipt.offset)
            meta = decode_meta(entry.meta)
            assert (meta.commitment_form, meta.txid) == (COMMITMENT_OPEN, tx.tx.txid[::-1])
            assert entry.commitment == receipt.commitment
        assert await find_confirmed_sequence(node.log, node.reads, stream) is None
        await node.settle()
        again = await desk.publish_one({**made[0][0], "tx": made[0][1].encode().hex()})
        assert (again.duplicate, again.confirmation_status) == (True, "seen")
        await node.mine()
        page = await read_stream(node.log, node.reads, stream, 0, 10, is_confirmed=True)
        assert [packet.txid for packet in page.packets] == [format_hash(tx.tx.txid) for _, tx in made]
        assert {(packet.confirmation_status, packet.confirmations) for packet in page.packets} == {("confirmed", 1)}
        assert await find_confirmed_sequence(node.log, node.reads, stream) == 3
        await node.mine(2)
        shown = await show_present(node.reads, await find_packet(node.log, stream, 2), stream)
        assert shown.confirmations == 3
        (found,) = await find_paid(node.log, node.reads, made[1][1].tx.txid, lambda name: True, 10)
        assert found.packet_sequence == 2
        assert await find_paid(node.log, node.reads, made[1][1].tx.txid, lambda name: False, 10) == []


async def test_confirmed_packets_end_before_the_first_that_may_still_come(tmp_path: Path) -> None:
    """1 and 3 confirmed, 2 pending: only 1. Once 2 has failed it is passed over."""
    async with watching(tmp_path) as node:
        desk = Desk(node)
        stream = await desk.define(ConfirmRule(commit="packet", order="confirmation", timeout_blocks=3))
        made = [await desk.make(number) for number in range(3)]
        for place, (packet, tx) in enumerate(made):
            missing = {"txid": "ab" * 32} if place == 1 else {"tx": tx.encode().hex()}
            await desk.publish_one({**packet, **missing})
        await node.settle()
        await node.mine()
        page = await read_stream(node.log, node.reads, stream, 0, 10, is_confirmed=True)
        assert ([packet.packet_sequence for packet in page.packets], page.after) == ([1], 1)
        assert await find_confirmed_sequence(node.log, node.reads, stream) == 1
        await node.mine(5)
        shown = await show_present(node.reads, await find_packet(node.log, stream, 2), stream)
        assert shown.confirmation_status == "dropped"
        page = await read_stream(node.log, node.reads, stream, 0, 10, is_confirmed=True)
        assert ([packet.packet_sequence for packet in page.packets], page.after) == ([1, 3], 3)
        assert await find_confirmed_sequence(node.log, node.reads, stream) == 3


async def test_a_commitment_and_its_transaction_are_used_once(tmp_path: Path) -> None:
    """Another transaction for the same packet is another packet with its id; the same salt and content is no new one."""
    async with watching(tmp_path) as node:
        desk = Desk(node)
        await desk.define(ConfirmRule(commit="packet"))
        packet, tx = await desk.make(1)
        await desk.publish_one({**packet, "tx": tx.encode().hex()})
        other = await desk.make(1)
        with pytest.raises(InvalidPacket, match="another content"):
            await desk.publish({**packet, "tx": other[1].encode().hex()})
        bare = {"data": 1, "salt": packet["salt"]}
        await desk.publish(bare)
        with pytest.raises(CommitmentUsed):
            await desk.publish(bare)
        await node.log.define_stream("weather-002", Definition())
        with pytest.raises(InvalidPacket, match="commits nothing"):
            await desk.intake.publish(
                "weather-002", [json.dumps({**packet, "txid": "00" * 32}).encode()], principal="p", may_create=False,
                atomic=True,
            )  # fmt: skip


async def test_the_quick_way_leaves_what_concerns_the_chain(tmp_path: Path) -> None:
    """Packets of streams that commit, and packets with a signature, are judged where there is time."""
    async with watching(tmp_path) as node:
        desk = Desk(node)
        made = sign_message(b"", KEY, bytes(32))
        signature = base64.b64encode(made.encode()).decode()
        terms = Terms("p", may_create=True, atomic=True)
        at_hand = StreamAtHand(STREAM)
        assert desk.intake.judge_now(at_hand, b'{"data":1}', terms) is not None
        signed = {"data": 1, "id": "a", "salt": "A" * 22 + "==", "signature": signature}
        assert desk.intake.judge_now(at_hand, json.dumps(signed).encode(), terms) is None
        await desk.define(ConfirmRule(commit="batch"))
        assert desk.intake.judge_now(at_hand, b'{"data":1}', terms) is None
