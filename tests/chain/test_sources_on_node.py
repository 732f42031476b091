"""A whole node that follows a chain through sources alone: it pays, hears of blocks, proves, and loses one on the way."""

import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import chaos_sink as chaos
import httpx
import pytest
import trio
from e2e.node_process import Node
from real_waiting import PATIENCE_S, pause_async
from source_rig import SourceRig, source_rig

from overlayd.bsv.base58 import parse_address
from overlayd.bsv.network import REGTEST
from overlayd.bsv.script import lock_to_hash
from overlayd.model.clock import SystemClock
from overlayd.model.txid import parse_txid


class FollowingNode:
    """The node, asked over its Unix socket."""

    def __init__(self, node: Node, client: httpx.AsyncClient) -> None:
        self.node = node
        self._client = client

    async def ask(self, method: str, path: str, body: Any = None) -> Any:
        answer = await self._client.request(method, path, json=body)
        assert answer.status_code < 300, answer.text
        return answer.json()

    async def state(self, sequence: int) -> dict[str, Any]:
        found: dict[str, Any] = await self.ask("GET", f"/v1/streams/c/packets/{sequence}")
        return found

    async def wait_state(self, sequence: int, state: str) -> dict[str, Any]:
        """Until a packet stands so."""
        with trio.move_on_after(PATIENCE_S):
            while (packet := await self.state(sequence))["confirmation_status"] != state:
                await pause_async(0.05)
            return packet
        raise AssertionError((await self.state(sequence), await self.ask("GET", "/v1/chain")))

    async def wait_height(self, height: int) -> dict[str, Any]:
        """Until our headers have come so far."""
        with trio.fail_after(PATIENCE_S):
            while (chain := await self.ask("GET", "/v1/chain"))["tip"]["height"] < height:
                await pause_async(0.05)
            return dict(chain)


def free_port() -> int:
    """A port on loopback that nobody listens at just now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@asynccontextmanager
async def following(
    rig: SourceRig, directory: Path, *kinds: str, callbacks: bool = False, **asking: str
) -> AsyncIterator[FollowingNode]:
    """A node whose sources are the fakes."""
    port = free_port()
    lines = ["[chain]", 'network = "regtest"']
    if callbacks:
        lines.append(f'callback_url = "http://127.0.0.1:{port}"')
    lines += [
        "[chain.asking]",
        *(f'{name} = "{value}"' for name, value in asking.items()),
        "[chain.watch]",
        'poll_interval = "1h"',
    ]
    for kind in kinds:
        lines += [
            "[[chain.sources]]",
            f'kind = "{kind}"',
            f'url = "{rig.url(kind)}"',
            'allow_private = ["127.0.0.0/8"]',
            "rate = 1000.0",
        ]
    node = Node(directory / "node", "--listen", f"127.0.0.1:{port}", config="\n".join(lines))
    try:
        await trio.to_thread.run_sync(node.wait_ready)
        transport = httpx.AsyncHTTPTransport(uds=str(directory / "node" / "overlayd.sock"))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=PATIENCE_S) as client:
            yield FollowingNode(node, client)
    finally:
        with trio.CancelScope(shield=True):
            assert await trio.to_thread.run_sync(node.stop) == 0, "".join(node.output[-40:])


async def fund(rig: SourceRig, node: FollowingNode) -> None:
    """Coins for the node's wallet, in a block that it has heard of."""
    wallet = await node.ask("GET", "/v1/wallet")
    script = lock_to_hash(parse_address(wallet["address"], REGTEST))
    tx = await rig.chain.pay(script, 50_000, 5)
    await node.ask("POST", "/v1/wallet/deposits", {"tx": tx.raw.hex()})
    await rig.chain.mine()
    await node.wait_height((await rig.chain.read_tip()).height)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[SourceRig]:
    """The fakes before a chain whose blocks are of now."""
    async with source_rig(tmp_path, SystemClock()) as made:
        yield made


async def test_packets_are_confirmed_through_sources_alone(rig: SourceRig, tmp_path: Path) -> None:
    """Headers from one, broadcast by another, which fails; proof from a third; and a reorg takes it elsewhere."""
    async with following(
        rig, tmp_path, "arc", "whatsonchain", "headers", "node", header_interval="300ms", backoff_first="200ms"
    ) as node:
        await node.wait_height((await rig.chain.read_tip()).height)
        await fund(rig, node)
        await node.ask("PUT", "/v1/streams/c", {"confirm": {"commit": "packet", "depths": [1, 2]}})
        await node.ask("POST", "/v1/streams/c/packets", {"data": 1})
        first = await node.wait_state(1, "seen")
        assert parse_txid(first["txid"]) in rig.arc.known
        rig.arc.desk.always(".*", chaos.reset)
        rig.headers.desk.always(".*", chaos.hang)
        await node.ask("POST", "/v1/streams/c/packets", {"data": 2})
        await node.wait_state(2, "seen")
        await rig.chain.mine()
        packet = await node.wait_state(1, "confirmed")
        await node.wait_state(2, "confirmed")
        chain = await node.ask("GET", "/v1/chain")
        states = {source["name"]: source for source in chain["sources"]}
        assert set(states) == {"arc", "whatsonchain", "headers", "node"}
        await rig.chain.reorg(1, transactions="remine")
        with trio.fail_after(PATIENCE_S):
            while (again := await node.state(1)).get("block_hash", "") in ("", packet.get("block_hash")):
                await pause_async(0.05)
        assert again["txid"] == first["txid"]
        metrics = (await node._client.get("/metrics")).text
        assert 'overlayd_chain_source_errors_total{reason="unreachable",source="arc"}' in metrics


async def test_callbacks_make_it_look(rig: SourceRig, tmp_path: Path) -> None:
    """No interval would come in time: forged and lost ones do nothing, a true one brings proof and headers, twice is once."""
    async with following(rig, tmp_path, "arc", "headers", callbacks=True, header_interval="1h") as node:
        await node.wait_height((await rig.chain.read_tip()).height)
        wallet = await node.ask("GET", "/v1/wallet")
        script = lock_to_hash(parse_address(wallet["address"], REGTEST))
        deposit = await rig.chain.pay(script, 50_000, 5)
        await node.ask("POST", "/v1/wallet/deposits", {"tx": deposit.raw.hex()})
        with trio.fail_after(PATIENCE_S):
            while deposit.txid not in rig.arc.known:
                await pause_async(0.05)
        await rig.chain.mine()
        assert await rig.arc.call_back(deposit.txid) == [204]
        await node.wait_height((await rig.chain.read_tip()).height)
        await node.ask("PUT", "/v1/streams/c", {"confirm": {"commit": "packet", "depths": [1]}})
        await node.ask("POST", "/v1/streams/c/packets", {"data": 1})
        packet = await node.wait_state(1, "seen")
        txid = parse_txid(packet["txid"])
        await rig.chain.mine()
        assert await rig.arc.call_back(txid, token="ovl_callback_" + "A" * 32) == [401]
        assert await rig.arc.call_back(txid, token="ovl_live_" + "A" * 32) in ([401], [429])
        await pause_async(0.5)
        assert (await node.state(1))["confirmation_status"] == "seen"
        assert await rig.arc.call_back(txid, txid, is_batch=True) == [204]
        await node.wait_state(1, "confirmed")
        assert await rig.arc.call_back(txid) == [204]
        read = await node.ask("GET", "/v1/read?stream=c&deliver=confirmed&from=beginning&status=true")
        told = [message["type"] for message in read["messages"]]
        assert told.count("packet") == 1
        assert json.dumps(read).count('"confirmed"') >= 1
