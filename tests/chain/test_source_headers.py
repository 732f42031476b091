"""Headers from each kind of source: pages, the end, archives, stale ones among them, and another network's."""

from collections.abc import AsyncIterator
from pathlib import Path

import chaos_sink as chaos
import pytest
from chain_rig import FileStore, book_of, child_of
from fakes.fake_desk import Reply
from source_rig import SourceRig, only, source_rig

from overlayd.bsv.header import BlockHeader, parse_header
from overlayd.bsv.network import MAINNET, REGTEST, TESTNET
from overlayd.chain.sources import raw_headers, whatsonchain
from overlayd.chain.sources.faults import Fault
from overlayd.model.errors import MalformedChainData, SourceUnavailable
from overlayd.model.txid import BlockHash, format_hash

KINDS = ("arcade", "whatsonchain", "headers", "node")


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[SourceRig]:
    """The fakes and what asks them."""
    async with source_rig(tmp_path) as made:
        yield made


@pytest.mark.parametrize("kind", KINDS)
async def test_headers_are_the_chains(rig: SourceRig, kind: str) -> None:
    """From the first, from the middle, up to the tip and beyond: byte for byte those of the chain."""
    source = only(rig.remote(kind))
    tip = await source.read_tip()
    assert tip == await rig.chain.read_tip()
    every = await rig.chain.read_headers(0, tip.height + 1)
    for start, count in [(0, 5), (1, 3), (37, 8), (tip.height - 3, 50), (tip.height, 1)]:
        assert (await source.read_headers(start, count))[:count] == every[start : start + count], (start, count)
    assert await source.read_headers(tip.height + 1, 10) == []
    assert source.health.faults == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_a_book_follows_from_the_first_block_to_the_tip(rig: SourceRig, kind: str, tmp_path: Path) -> None:
    """Page by page, as large as the source's pages are; then block by block; and through a reorg."""
    remote = rig.remote(kind, book=await book_of(FileStore(tmp_path / "own.sqlite3")))
    book = remote.sync._book
    await remote.sync.follow_all()
    assert book.tip.hash == (await rig.chain.read_tip()).block_hash
    await rig.chain.mine(2)
    await remote.sync.follow_all()
    assert book.tip.hash == (await rig.chain.read_tip()).block_hash
    await rig.chain.reorg(3)
    await remote.sync.follow_all()
    assert book.tip.hash == (await rig.chain.read_tip()).block_hash
    assert rig.count("overlayd_chain_reorg_blocks_count") == 0  # the book's own metrics are elsewhere
    assert only(remote).health.faults == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_a_first_sync_is_small(rig: SourceRig, kind: str) -> None:
    """From a pinned block, a header costs 80 bytes in bytes and at most 480 in JSON: weeks of blocks in a megabyte."""
    await rig.chain.mine(200)
    source, sent = only(rig.remote(kind)), 0
    encode = Reply.encode

    def count(self: Reply) -> bytes:
        nonlocal sent
        octets = encode(self)
        sent += len(octets)
        return octets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reply, "encode", count)
        headers = await source.read_headers(102, 201)
    assert len(headers) == 201
    assert sent < {"arcade": 90, "whatsonchain": 90, "headers": 480, "node": 480}[kind] * 201


async def test_whatsonchain_takes_what_is_cheapest(rig: SourceRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last ten in JSON, some more as bytes, old ones out of archives, of whose links only the name counts."""
    source, desk = only(rig.remote("whatsonchain")), rig.woc.desk
    base = "/v1/bsv/main/block/headers"
    monkeypatch.setattr(whatsonchain, "LATEST_MAX", 30)
    tip = (await rig.chain.read_tip()).height
    every = await rig.chain.read_headers(0, tip + 1)
    for start, path in [
        (tip - 5, base), (tip - 25, f"{base}/latest"), (3, f"{base}/0_40_headers.bin"), (41, f"{base}/41_80_headers.bin"),
        (81, f"{base}/latest"),
    ]:  # fmt: skip
        monkeypatch.setattr(whatsonchain, "LATEST_MAX", 30 if start != 81 else 5)
        desk.asked.clear()
        found = await source.read_headers(start, 2000)
        assert found == every[start : start + len(found)], start
        assert len(found) >= 10 or start == tip - 5
        assert desk.asked[-1].path == path


async def test_newest_bytes_that_dont_end_at_the_tip_arent_used(rig: SourceRig) -> None:
    """Without heights, only the tip tells which they are; else the archives are asked."""
    source = only(rig.remote("whatsonchain"))
    tip = (await rig.chain.read_tip()).height
    every = await rig.chain.read_headers(0, tip + 1)
    rig.woc.desk.trick(".*/latest", chaos.answer(200, b"".join(every[:21])))
    assert await source.read_headers(tip - 20, 5) == every[tip - 20 : tip - 15]
    assert rig.woc.desk.count(".*/resources") == 1


async def test_stale_headers_among_those_of_a_service_are_left_out(rig: SourceRig) -> None:
    """It lists by height whatever it has: one way leads to its tip."""
    source = only(rig.remote("headers"))
    tip = (await rig.chain.read_tip()).height
    every = [parse_header(raw) for raw in await rig.chain.read_headers(0, tip + 1)]
    lost = child_of(every[50], 7)
    rig.headers.stale = [(51, lost), (52, child_of(lost, 8)), (tip, child_of(every[tip - 1], 9))]
    await source.read_tip()
    assert await source.read_headers(40, 100) == [header.raw for header in every[40:]]
    assert await source.read_headers(45, 8) == [header.raw for header in every[45:53]][:6]
    assert await source.read_headers(tip, 1) == [every[tip].raw]


def test_the_longest_run_is_found() -> None:
    """Up to a tip that is there; otherwise as far as only one way leads on."""
    chain = [REGTEST.genesis]
    for _ in range(5):
        chain.append(child_of(chain[-1]))
    rival = child_of(chain[3], 5)
    mixed = [chain[4], rival, *chain[:4], chain[5]]
    run = raw_headers.longest_run
    assert run(mixed, chain[5].hash) == chain
    assert run(mixed, None) == chain
    assert run(mixed[:-1], None) == chain[:4]
    assert run(mixed[:-1], rival.hash) == [*chain[:4], rival]
    assert run([], None) == []


@pytest.mark.parametrize("kind", KINDS)
async def test_a_source_of_another_network_is_known(rig: SourceRig, kind: str) -> None:
    """By its first header, or by the root of a block that the network must have."""
    source = only(rig.remote(kind))
    assert await source.is_on(REGTEST) is True
    assert await source.is_on(TESTNET) is False
    assert await source.is_on(MAINNET) is (None if kind == "headers" else False)  # it hasn't come so far as our pin


async def test_an_arc_cant_be_asked_for_its_network(rig: SourceRig) -> None:
    """It knows transactions only; it is taken for right, and its proofs are checked like all others."""
    assert await only(rig.remote("arc")).is_on(MAINNET) is None


def _json(header: BlockHeader, **changes: object) -> raw_headers.JsonHeader:
    members = {
        "hash": format_hash(header.hash), "version": header.version, "merkleroot": format_hash(header.merkle_root),
        "time": header.time_s, "bits": f"{header.bits:08x}", "nonce": header.nonce,
        "previousblockhash": format_hash(header.previous), **changes,
    }  # fmt: skip
    return raw_headers.JsonHeader(**members)  # type: ignore[arg-type] # wrong members are what is tried


def test_headers_in_json_are_held_against_their_hash() -> None:
    """Members that don't make up the hash, or that no header can have, are refused; both ways to write bits are read."""
    header = child_of(REGTEST.genesis)
    assert _json(header).rebuild() == header
    assert _json(header, bits=header.bits).rebuild() == header
    assert _json(REGTEST.genesis, previousblockhash="").rebuild() == REGTEST.genesis
    for changes in (
        {"nonce": header.nonce + 1}, {"hash": "00" * 32}, {"bits": "xyz"}, {"time": -1}, {"nonce": 1 << 32},
        {"version": -(1 << 31) - 1}, {"merkleroot": "ab"}, {"previousblockhash": "ab"}, {"bits": 1 << 40},
    ):  # fmt: skip
        with pytest.raises(MalformedChainData):
            _json(header, **changes).rebuild()
    with pytest.raises(MalformedChainData, match="80"):
        raw_headers.split_headers(bytes(81))


def test_versions_with_a_sign_are_read() -> None:
    """A service writes versions above 2^31 as negative numbers."""
    raw = bytearray(REGTEST.genesis.raw)
    raw[3] = 0xE0
    header = parse_header(bytes(raw))
    rebuilt = raw_headers.rebuild_header(
        format_hash(header.hash), version=header.version - (1 << 32), previous=format_hash(header.previous),
        merkle_root=format_hash(header.merkle_root), time_s=header.time_s, bits=header.bits, nonce=header.nonce,
    )  # fmt: skip
    assert rebuilt == header


@pytest.mark.parametrize("kind", ["arcade", "node"])
async def test_bytes_that_arent_headers_are_nonsense(rig: SourceRig, kind: str) -> None:
    """79 bytes, or hex that isn't."""
    source = only(rig.remote(kind))
    if kind == "arcade":
        rig.arcade.desk.trick(".*/headers", chaos.answer(200, bytes(79)))
    else:
        rig.node.desk.trick("/", chaos.answer(200, b'[{"result":"' + b"00" * 32 + b'","error":null,"id":0}]'))
        rig.node.desk.trick("/", chaos.answer(200, b'[{"result":"zz","error":null,"id":0}]'))
    with pytest.raises(SourceUnavailable) as caught:
        await source.read_headers(5, 1)
    assert caught.value.extra["reason"] == Fault.MALFORMED


async def test_roots_are_confirmed_by_a_headers_service(rig: SourceRig) -> None:
    """CONFIRMED, INVALID, or not so far yet: the worst for all."""
    source = only(rig.remote("headers"))
    header = await rig.world.header(7)
    assert header is not None
    good = (7, header.merkle_root)
    assert await source.verify_roots([good]) == "CONFIRMED"
    assert await source.verify_roots([good, (8, header.merkle_root)]) == "INVALID"
    assert await source.verify_roots([good, (9_999, bytes(32))]) == "UNABLE_TO_VERIFY"


def test_no_tip_among_headers() -> None:
    """A tip that isn't among them doesn't matter."""
    chain = [REGTEST.genesis, child_of(REGTEST.genesis)]
    assert raw_headers.longest_run(chain, BlockHash(bytes(32))) == chain
