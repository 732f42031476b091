"""`/v1/chain/callback`: single and batch, and all that isn't one. Nothing of a callback but its txids is used."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from route_rig import ADMIN, LOOPBACK, STRANGER, Node, open_node, scoped

from overlayd.access.principal import Principal
from overlayd.chain.sources.settings import AskingSettings
from overlayd.model.errors import BadRequest
from overlayd.model.metrics import Metrics
from overlayd.model.txid import TxId, format_hash
from overlayd.model.units import Size
from overlayd.net.chain_callback_routes import add_chain_callback_routes, read_callback
from overlayd.net.content import Bodies

SOURCE = Principal(name="source:arc", kind="source", rights=frozenset(), address="192.0.2.9")
PATH = "/v1/chain/callback"
ONE = "48ccf56b16ec11ddd9cfafc4f28492fb7e989d58594a0acd150a1592570ccd13"
MINED = {
    "timestamp": "2024-03-26T16:02:29.655390092Z", "txid": ONE, "txStatus": "MINED",
    "merklePath": "fe12c70c000c020a008d1c719355d718dad0ccc...", "blockHeight": 837394,
    "blockHash": "0000000000000000064cbaac5cedf71a5447771573ba585501952c023873817b",
}  # fmt: skip
"""As ARC's contract shows it, with a proof that is cut off: nobody looks at it."""


class CallbackNode:
    """A node with the route, its metrics, and the hints that came."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.metrics = Metrics()
        self.hints: list[str] = []
        add_chain_callback_routes(
            node.app, bodies=Bodies(node.limits, node.lane, self.metrics), metrics=self.metrics,
            settings=AskingSettings(callback_entries=3, callback_bytes=Size(2000)),
            on_hint=lambda txid: self.hints.append(format_hash(txid)),
        )  # fmt: skip

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[CallbackNode]:
    """A node with the route."""
    async with open_node(tmp_path) as running:
        yield CallbackNode(running)


async def call(rig: CallbackNode, body: Any, who: Principal = SOURCE) -> int:
    """Posts a callback; the status."""
    text = body if isinstance(body, str) else json.dumps(body)
    reply = await rig.node.ask("POST", PATH, text, who=who, Content_Type="application/json; charset=UTF-8")
    return reply.status


def count(rig: CallbackNode, outcome: str) -> float:
    """Callbacks with an outcome."""
    return rig.count("overlayd_chain_callbacks_total", source="arc", outcome=outcome)


async def test_single_and_batch_callbacks_are_hints(node: CallbackNode) -> None:
    """Each txid is a hint, as often as it comes; unknown members are passed over."""
    assert await call(node, MINED) == 204
    assert await call(node, MINED) == 204
    other = {**MINED, "txid": "ab" * 32, "txStatus": "REJECTED", "extraInfo": None, "competingTxs": ["x"]}
    assert await call(node, {"count": 2, "callbacks": [MINED, other]}) == 204
    assert node.hints == [ONE, ONE, ONE, "ab" * 32]
    assert count(node, "taken") == 3


@pytest.mark.parametrize(
    "body",
    [
        "", "{", "[]", "7", '"x"', {}, {"txid": 7}, {"txid": "zz"}, {"txid": ONE[:-2]}, {"callbacks": [{"no": 1}]},
        {"callbacks": [{"txid": ONE}, {"txid": "zz"}]}, {"callbacks": {"txid": ONE}}, {"count": 1}, "[" * 900,
    ],
    ids=str,
)  # fmt: skip
async def test_what_isnt_a_callback_is_refused_whole(node: CallbackNode, body: Any) -> None:
    """Nothing of it is a hint, not even the good half; it is counted, and the next one is taken."""
    assert await call(node, body) == 400
    assert node.hints == []
    assert count(node, "refused") == 1
    assert await call(node, MINED) == 204


async def test_callbacks_are_bounded(node: CallbackNode) -> None:
    """In transactions and in bytes, each with its limit counted."""
    many = {"count": 4, "callbacks": [{"txid": ONE}] * 4}
    assert await call(node, many) == 413
    assert await call(node, {**MINED, "merklePath": "0" * 3000}) == 413
    for limit in ("callback_entries", "callback_bytes"):
        assert node.count("overlayd_limit_hits_total", limit=limit) == 1, "hits"
    assert (node.hints, count(node, "refused")) == ([], 2)


@pytest.mark.parametrize("who", [ADMIN, LOOPBACK, STRANGER, scoped("admin", "publish")], ids=lambda who: who.name)
async def test_nobody_else_calls_back(node: CallbackNode, who: Principal) -> None:
    """Not even who may do everything: only a source has a source's token."""
    assert await call(node, MINED, who) == 403
    assert node.hints == []


@given(st.binary(max_size=300) | st.recursive(st.none() | st.text() | st.integers(), st.lists).map(lambda x: json.dumps(x).encode()))  # fmt: skip
def test_any_body_is_read_or_refused(raw: bytes) -> None:
    """No other error, whatever comes."""
    try:
        txids = read_callback(raw)
    except BadRequest:
        return
    assert all(len(txid) == 32 for txid in txids)


@given(st.lists(st.binary(min_size=32, max_size=32).map(TxId), min_size=1, max_size=20))
def test_every_txid_is_read(txids: list[TxId]) -> None:
    """In order, repeats included."""
    members = [{"txid": format_hash(txid)} for txid in txids]
    assert read_callback(json.dumps({"count": len(members), "callbacks": members}).encode()) == txids
    assert read_callback(json.dumps(members[0]).encode()) == txids[:1]
