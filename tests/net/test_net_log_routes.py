"""Checkpoints, consistency, tiles and proofs over HTTP, checked with nothing but the public key."""

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from route_rig import ADMIN, LOOPBACK, Node, open_node

from overlayd.model.entry import leaf_hash
from overlayd.model.errors import NotFound
from overlayd.model.merkle import root_of, verify_consistency
from overlayd.model.note import VerifierKey
from overlayd.model.proof import TrustedKeys, decode_proof, verify_checkpoint, verify_proof
from overlayd.model.tlog_proof import decode_tlog_proof, proof_of_tlog
from overlayd.model.wire import parse_sha256
from overlayd.net.log_routes import TileName, parse_tile_name


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    """A node whose log has a stream with 300 packets."""
    async with open_node(tmp_path) as running:
        await running.append("a", *(b"%d" % number for number in range(300)))
        yield running


async def trusted(node: Node) -> TrustedKeys:
    """What a stranger pins."""
    body = (await node.ask("GET", "/v1/node", who=LOOPBACK)).json
    return TrustedKeys(log_keys=(VerifierKey.parse(body["keys"][0]),), log_id=body["log"])


async def test_checkpoint(node: Node) -> None:
    """The newest checkpoint is a signed note, also by its epoch; other epochs are 410 or 400."""
    reply = await node.ask("GET", "/v1/log/checkpoint", who=LOOPBACK)
    assert reply.headers["content-type"].startswith("text/plain")
    tree = verify_checkpoint(reply.body.decode(), await trusted(node))
    assert tree.checkpoint.size <= node.log.head
    epoch = (await node.ask("GET", "/v1/node")).json["epoch"]
    assert (await node.ask("GET", f"/v1/log/{epoch}/checkpoint")).status == 200
    assert (await node.ask("GET", "/v1/log/9aaaaaaaa/checkpoint")).json["code"] == "cursor.epoch"
    assert (await node.ask("GET", "/v1/log/nonsense/checkpoint")).status == 400


async def test_consistency(node: Node) -> None:
    """A path between any two sizes verifies; without `to` it leads to a checkpoint."""
    keys = await trusted(node)
    for older, newer in ((0, 5), (1, 303), (7, 7), (256, 300), (3, None)):
        query = f"from={older}" + ("" if newer is None else f"&to={newer}")
        body = (await node.ask("GET", f"/v1/log/consistency?{query}", who=LOOPBACK)).json
        path = [parse_sha256(text) for text in body["path"]]
        verify_consistency(older, parse_sha256(body["from_root"]), body["to"], parse_sha256(body["to_root"]), path)
        if newer is None:
            tree = verify_checkpoint(body["checkpoint"], keys)
            assert (tree.checkpoint.size, tree.checkpoint.root) == (body["to"], parse_sha256(body["to_root"]))


@pytest.mark.parametrize(
    "query", ["", "to=3", "from=9999", "from=1&to=9999", "from=5&to=4", "from=-1", "from=x", "form=1"]
)
async def test_consistency_parameters(node: Node, query: str) -> None:
    """Sizes that the log hasn't, or that are the wrong way round, are 400."""
    assert (await node.ask("GET", f"/v1/log/consistency?{query}")).status == 400


async def test_tiles_build_the_root(node: Node) -> None:
    """Full and partial tiles of level 0 are the leaves; the entries are behind the right `admin`."""
    epoch = (await node.ask("GET", "/v1/node")).json["epoch"]
    head = node.log.head
    assert head > 256
    base = f"/v1/log/{epoch}/tile"
    full = await node.ask("GET", f"{base}/0/000", who=LOOPBACK)
    part = await node.ask("GET", f"{base}/0/001.p/{head - 256}", who=LOOPBACK)
    assert "immutable" in full.headers["cache-control"]
    octets = full.body + part.body
    leaves = [octets[at : at + 32] for at in range(0, len(octets), 32)]
    assert root_of(leaves) == await node.log.root_at(head)
    above = await node.ask("GET", f"{base}/1/000.p/1", who=LOOPBACK)
    assert above.body == root_of(leaves[:256])
    bundle = await node.ask("GET", f"{base}/entries/001.p/2", who=ADMIN)
    assert [leaf_hash(bundle.body[at + 2 : at + 148]) for at in (0, 148)] == leaves[256:258]
    assert hashlib.sha256(b"\0" + bundle.body[2:148]).digest() == leaves[256]
    assert (await node.ask("GET", f"{base}/entries/000", who=LOOPBACK)).status == 403


@pytest.mark.parametrize(
    "tile", ["0/002", "0/001", "0/001.p/255", "1/000", "0/000.p/256", "0/0", "0/000.p/0", "0/x000/001", "63/000", "64/000",
             "0/000/", "00/000", "-1/000", "0/x001", "entries/x001/x000/000", "0/000.p/1.p/1", "foo/000", "0/" + "x999/" * 9 + "999"],
)  # fmt: skip
async def test_tiles_that_are_not_there(node: Node, tile: str) -> None:
    """Tiles that the tree hasn't, and names that aren't C2SP's, are 404."""
    epoch = (await node.ask("GET", "/v1/node")).json["epoch"]
    assert (await node.ask("GET", f"/v1/log/{epoch}/tile/{tile}")).status == 404


def test_tile_names() -> None:
    """The index is in groups of three digits, all but the last after an x."""
    assert parse_tile_name("0/x001/x234/067") == TileName(0, 1_234_067, 256)
    assert parse_tile_name("entries/012.p/7") == TileName(None, 12, 7)
    assert parse_tile_name("2/001.p/3").leaves_end == (256 + 3) << 16
    with pytest.raises(NotFound):
        parse_tile_name("0/001/002")


async def test_proof(node: Node) -> None:
    """A packet's proof stands alone and is verified with the node's key; the C2SP form too."""
    keys = await trusted(node)
    for sequence in (1, 255, 300):
        reply = await node.ask("GET", f"/v1/streams/a/packets/{sequence}/proof", who=LOOPBACK)
        proof = decode_proof(reply.body)
        assert (proof.stream, proof.sequence) == ("a", sequence)
        verify_proof(proof, keys)
        reply = await node.ask("GET", f"/v1/streams/a/packets/{sequence}/proof?format=tlog-proof")
        assert reply.headers["content-type"].startswith("text/plain")
        verify_proof(proof_of_tlog(decode_tlog_proof(reply.body.decode())), keys)


async def test_proof_of_what_is_not_there(node: Node) -> None:
    """Unknown packets and streams are 404, numbers that aren't are 400."""
    assert (await node.ask("GET", "/v1/streams/a/packets/301/proof")).json["code"] == "packet.unknown"
    assert (await node.ask("GET", "/v1/streams/b/packets/1/proof")).json["code"] == "stream.unknown"
    for sequence in ("0", "-1", "x", "1e3", "9" * 30, "01"):
        assert (await node.ask("GET", f"/v1/streams/a/packets/{sequence}/proof")).status == 400
    assert (await node.ask("GET", "/v1/streams/a/packets/1/proof?format=pdf")).status == 400
