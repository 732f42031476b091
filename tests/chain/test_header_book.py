"""Headers kept on the disk: sources followed, proofs checked, restarts, cancellation."""

import json
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
import trio
from chain_rig import FileStore, FixedClock, book_of, branch, child_of, regtest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlayd.bsv.blocktree import BlockTree
from overlayd.bsv.hashes import hash256
from overlayd.bsv.header import BlockHeader, parse_header
from overlayd.bsv.network import MAINNET, REGTEST, Pin
from overlayd.chain.header_chain import HeldHeader
from overlayd.chain.header_tables import HEADERS_FEATURE
from overlayd.chain.headers import (
    HeaderBook,
    HeadersSettings,
    ProofUnknownBlock,
    Proven,
    first_header,
    open_headers,
)
from overlayd.model.chain_source import SourceTip
from overlayd.model.clock import Entropy
from overlayd.model.definition import Definition
from overlayd.model.errors import (
    ConfigInvalid,
    DamagedEntry,
    HeadersRejected,
    HeadersUnconnected,
    SourceUnavailable,
    VerificationFailed,
)
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.model.txid import BlockHash, TxId
from overlayd.model.units import Size
from overlayd.storage import StorageSettings, open_log

GENESIS = REGTEST.genesis
DATA = Path(__file__).parent.parent / "data" / "bsv"
HEADERS = [
    parse_header(bytes.fromhex(raw))
    for raw in json.loads((DATA / "mainnet-headers-0-379.json").read_text())["headers_hex"]
]


class ScriptedSource:
    """A source that knows one chain, from a height on."""

    name = "scripted"

    def __init__(self, headers: Sequence[BlockHeader], first_height: int = 0, headers_max: int = 7) -> None:
        self.headers = list(headers)
        self.first_height = first_height
        self.headers_max = headers_max
        self.asked: list[int] = []

    async def read_tip(self) -> SourceTip:
        await trio.lowlevel.checkpoint()
        return SourceTip(self.first_height + len(self.headers) - 1, self.headers[-1].hash)

    async def read_headers(self, from_height: int, count: int) -> list[bytes]:
        await trio.lowlevel.checkpoint()
        self.asked.append(from_height)
        start = max(0, from_height - self.first_height)
        return [header.raw for header in self.headers[start : start + count]]


def hashes_of(book: HeaderBook, heights: range) -> list[BlockHash | None]:
    """The best chain as memory has it."""
    return [held.hash if (held := book._chain.at(height)) else None for height in heights]


async def test_the_first_headers_of_mainnet_are_loaded(tmp_path: Path) -> None:
    """380 real headers are checked and kept, from the first block on, and are there after a restart."""
    store = FileStore(tmp_path / "a.sqlite3")
    book = await book_of(store, MAINNET, start="genesis")
    followed = await book.follow(ScriptedSource(HEADERS, headers_max=2000))
    assert (followed.added, followed.reorgs, followed.tip.height) == (379, (), 379)
    assert book.tip.chain_work == 380 * 0x100010001
    again = await book_of(FileStore(tmp_path / "a.sqlite3"), MAINNET, start="genesis")
    assert again.tip == book.tip
    for height in (0, 100, 379):
        held = await again.read_at(height)
        assert held is not None
        assert held.header == HEADERS[height]
    assert [held.header for held in await again.read_headers(370, 100)] == HEADERS[370:]
    assert (again.depth_of(379), again.depth_of(370), again.depth_of(380)) == (1, 10, 0)


async def test_mainnet_begins_at_a_pinned_block(tmp_path: Path) -> None:
    """Unless told otherwise, a new directory starts at the newest block that the program knows: no years to fetch."""
    book = await book_of(FileStore(tmp_path / "a.sqlite3"), MAINNET)
    assert (book.start.height, book.tip.height) == (948_351, 948_351)
    sample = json.loads((DATA / "mainnet-block-948351.json").read_text())
    raw = bytes.fromhex(sample["txids_internal_order_hex_coinbase_substituted"])
    txids = [TxId(raw[at : at + 32]) for at in range(0, len(raw), 32)]
    proof = BlockTree(948_351, txids).bump([txids[7]])
    assert await book.check_proof(txids[7], proof) == Proven(948_351, book.tip.hash)
    assert first_header(REGTEST, HeadersSettings()).header == GENESIS


async def test_it_begins_at_a_block_that_the_operator_trusts(tmp_path: Path) -> None:
    """A height and a header may be given; one without the network's work is refused."""
    start = f"300:{HEADERS[300].raw.hex()}"
    book = await book_of(FileStore(tmp_path / "a.sqlite3"), MAINNET, start=start)
    followed = await book.follow(ScriptedSource(HEADERS, headers_max=2000))
    assert (followed.added, book.start.height, book.tip.height) == (79, 300, 379)
    assert (await book_of(FileStore(tmp_path / "a.sqlite3"), MAINNET)).tip == book.tip
    with pytest.raises(ConfigInvalid, match="not a block of mainnet"):
        await book_of(FileStore(tmp_path / "b.sqlite3"), MAINNET, start=f"1:{GENESIS.raw.hex()}")
    for text in ("", "latest", "300:", f"x:{HEADERS[1].raw.hex()}", start + "0"):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert({"start": text}, HeadersSettings)


async def test_a_proof_is_held_against_the_best_chain(tmp_path: Path) -> None:
    """Proven, ahead of us, before our first block, on a branch we know, or nowhere: each is told apart."""
    book = await book_of(FileStore(tmp_path / "a.sqlite3"))
    txids = [TxId(hash256(bytes((number,)))) for number in range(3)]
    tree = BlockTree(2, txids)
    main = branch(GENESIS, 1)
    main.append(child_of(main[0], int.from_bytes(tree.root, "big")))
    side = branch(GENESIS, 4, 5)
    await book.accept(main)
    bump = tree.bump(txids[:1])
    assert await book.check_proof(txids[0], bump) == Proven(2, main[1].hash)
    with pytest.raises(VerificationFailed, match="isn't of this transaction"):
        await book.check_proof(TxId(bytes(32)), bump)
    foreign = BlockTree(2, txids[:2]).bump(txids[:1])
    assert await book.check_proof(txids[0], foreign) == ProofUnknownBlock(2, foreign.root, "foreign")
    ahead = BlockTree(9, txids).bump(txids[:1])
    assert await book.check_proof(txids[0], ahead) == ProofUnknownBlock(9, tree.root, "ahead")
    await book.accept(side)
    assert await book.check_proof(txids[0], bump) == ProofUnknownBlock(2, tree.root, "stale", main[1].hash)
    assert await book.read_roots([1, 2, 99]) == {1: side[0].merkle_root, 2: side[1].merkle_root}
    pinned = await book_of(FileStore(tmp_path / "b.sqlite3"), MAINNET)
    assert await pinned.check_proof(txids[0], bump) == ProofUnknownBlock(2, tree.root, "behind")


@settings(max_examples=25, deadline=None)
@given(data=st.data(), headers_max=st.integers(1, 9))
def test_following_any_source_gives_its_chain_or_keeps_ours(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, headers_max: int
) -> None:
    """Sources with branches of any length, followed in any order with restarts in between: the longest seen first wins."""
    path = tmp_path_factory.mktemp("book") / "a.sqlite3"

    async def main() -> None:
        chains = [[GENESIS]]
        best = chains[0]
        for number in range(data.draw(st.integers(1, 5))):
            base = data.draw(st.sampled_from(chains))
            kept = data.draw(st.integers(1, len(base)))
            chain = [*base[:kept], *branch(base[kept - 1], data.draw(st.integers(1, 25)), number + 1)]
            chains.append(chain)
            book = await book_of(FileStore(path))
            source = ScriptedSource(chain, headers_max=headers_max)
            followed = await book.follow(source)
            changed = len(chain) > len(best)
            assert len(followed.reorgs) <= 1
            assert bool(followed.reorgs) == (changed and best[-1] not in chain)
            best = chain if changed else best
            assert hashes_of(book, range(len(best) + 1)) == [*[header.hash for header in best], None]
            assert (await book.follow(source)).added == 0
            assert len(source.asked) <= len(chain) // headers_max + 14

    trio.run(main)


async def test_a_liar_changes_nothing(tmp_path: Path) -> None:
    """Bytes that aren't headers, headers without work, a tip that isn't there, an endless change of mind."""
    book = await book_of(FileStore(tmp_path / "a.sqlite3"))
    good = branch(GENESIS, 30)
    await book.follow(ScriptedSource([GENESIS, *good]))

    class Short(ScriptedSource):
        async def read_headers(self, from_height: int, count: int) -> list[bytes]:
            return [raw[:-1] for raw in await super().read_headers(from_height, count)]

    class Nothing(ScriptedSource):
        async def read_headers(self, from_height: int, count: int) -> list[bytes]:
            await trio.lowlevel.checkpoint()
            return []

    class Fickle(ScriptedSource):
        async def read_headers(self, from_height: int, count: int) -> list[bytes]:
            self.asked.append(from_height)
            await trio.lowlevel.checkpoint()
            return [branch(GENESIS, 2, len(self.asked))[1].raw] if len(self.asked) % 2 else [good[0].raw]

    other = [GENESIS, *branch(GENESIS, 40, 3)]
    with pytest.raises(SourceUnavailable, match="80 bytes"):
        await book.follow(Short(other))
    with pytest.raises(SourceUnavailable, match="no headers up to its own tip"):
        await book.follow(Nothing(other))
    weak = parse_header(other[-1].raw[:-4] + b"\xff\xff\xff\xff")
    while int.from_bytes(weak.hash, "little") <= weak.target:
        weak = parse_header(weak.raw[:-4] + (weak.nonce - 1).to_bytes(4, "little"))
    with pytest.raises(HeadersRejected, match="lacks the work"):
        await book.follow(ScriptedSource([*other[:-1], weak], headers_max=50))
    assert book.tip.header == good[-1]
    fickle = Fickle(other)
    with pytest.raises(SourceUnavailable, match="never came"):
        await book.follow(fickle)
    assert len(fickle.asked) < 100
    assert book.tip.header == good[-1]


async def test_a_source_that_branched_off_before_the_window_is_refused(tmp_path: Path) -> None:
    """A deeper reorg than memory holds isn't followed, however long the other branch is."""
    book = await book_of(FileStore(tmp_path / "a.sqlite3"), window=500)
    await book.follow(ScriptedSource([GENESIS, *branch(GENESIS, 800)], headers_max=400))
    with pytest.raises(HeadersUnconnected):
        await book.follow(ScriptedSource([GENESIS, *branch(GENESIS, 810, 4)], headers_max=400))
    assert book.tip.height == 800


async def test_old_blocks_come_from_the_disk(tmp_path: Path) -> None:
    """Heights below the window are read, also after a restart, and proofs of them hold."""
    headers = branch(GENESIS, 700)
    book = await book_of(FileStore(tmp_path / "a.sqlite3"), window=500)
    await book.accept(headers)
    for opened in (book, await book_of(FileStore(tmp_path / "a.sqlite3"), window=500)):
        assert opened._chain.at(3) is None
        held = await opened.read_at(3)
        assert held is not None
        assert (held.header, held.height) == (headers[2], 3)
        assert await opened.read_at(701) is None
        assert await opened.read_at(-1) is None
        assert await opened.read_roots([3]) == {3: headers[2].merkle_root}


@pytest.mark.parametrize("depth", [1, 3, 6])
async def test_cancelled_following_leaves_a_chain_that_goes_on(tmp_path: Path, depth: int) -> None:
    """Cancelled at every checkpoint of a reorg, memory and disk each hold one whole chain, and the next try ends right."""
    common, old, new = branch(GENESIS, 10), None, None
    old, new = branch(common[-1], depth, 1), branch(common[-1], depth + 2, 2)
    for stop_after in range(12):
        path = tmp_path / f"{stop_after}.sqlite3"
        book = await book_of(FileStore(path))
        await book.follow(ScriptedSource([GENESIS, *common, *old]))
        source = ScriptedSource([GENESIS, *common, *new], headers_max=3)
        with trio.CancelScope() as scope:
            calls = 0
            real = trio.lowlevel.checkpoint

            async def counted() -> None:
                nonlocal calls
                calls += 1
                if calls > stop_after:  # noqa: B023
                    scope.cancel()
                await real()  # noqa: B023

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(trio.lowlevel, "checkpoint", counted)
                await book.follow(source)
        reopened = await book_of(FileStore(path))
        for one in (book, reopened):
            assert one.tip.header in (old[-1], *new)
            await one.follow(ScriptedSource([GENESIS, *common, *new, *branch(new[-1], 1, 2)]))
            assert one.tip.header.previous == new[-1].hash
        rows = FileStore(path).connection.execute("SELECT height, hash FROM chain_header WHERE is_best ORDER BY height")
        expected = [GENESIS, *common, *new, *branch(new[-1], 1, 2)]
        assert rows.fetchall() == [(height, header.hash) for height, header in enumerate(expected)]


async def test_waiting_for_a_move(tmp_path: Path) -> None:
    """A task that waits wakes with the new tip; one that is late gets it at once; a lost branch wakes nobody."""
    book = await book_of(FileStore(tmp_path / "a.sqlite3"))
    first = book.tip
    seen: list[HeldHeader] = []

    async def wait() -> None:
        seen.append(await book.wait_moved(first))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        assert not seen
        await book.accept(branch(GENESIS, 2))
    assert seen == [book.tip]
    assert await book.wait_moved(first) == book.tip
    with trio.move_on_after(0) as scope:
        await book.accept(branch(GENESIS, 1, 7))
        await book.wait_moved(book.tip)
    assert scope.cancelled_caught


async def test_another_network_and_damage_are_noticed_at_the_start(tmp_path: Path) -> None:
    """A directory is of one network; rows that are missing, changed or against a pinned block stop the start."""
    path = tmp_path / "a.sqlite3"
    book = await book_of(FileStore(path))
    headers = branch(GENESIS, 20)
    await book.accept(headers)
    with pytest.raises(ConfigInvalid, match="of regtest, not of mainnet"):
        await book_of(FileStore(path), MAINNET)
    other = msgspec.structs.replace(REGTEST, pins=(Pin(7, branch(GENESIS, 7, 9)[-1]),))
    with pytest.raises(HeadersRejected, match="pinned height 7"):
        await book_of(FileStore(path), other, start="genesis")
    store = FileStore(path)
    for statement, reason in (
        ("UPDATE chain_header SET work = zeroblob(32) WHERE height = 10", "don't follow"),
        ("UPDATE chain_header SET raw = zeroblob(80) WHERE height = 10", "doesn't have its hash"),
        ("DELETE FROM chain_header WHERE height = 10", "missing"),
    ):
        store.connection.execute("BEGIN")
        store.connection.execute(statement)
        with pytest.raises(DamagedEntry, match=reason):
            await book_of(store)
        store.connection.execute("ROLLBACK")
    assert (await book_of(store)).tip.header == headers[-1]


async def test_branches_below_the_window_leave_the_disk(tmp_path: Path) -> None:
    """Nobody can fork off them any more."""
    store = FileStore(tmp_path / "a.sqlite3")
    book = await book_of(store, window=500)
    headers = branch(GENESIS, 700)
    await book.accept(headers[:10])
    await book.accept(branch(GENESIS, 3, 5))
    count = "SELECT count(*) FROM chain_header WHERE NOT is_best"
    assert store.connection.execute(count).fetchone() == (3,)
    await book.accept(headers)
    assert store.connection.execute(count).fetchone() == (0,)


async def test_hits_of_the_bound_on_branches_are_counted(tmp_path: Path) -> None:
    """Too many headers off the best chain are refused, and the metric says so."""
    metrics = Metrics()
    book = await book_of(FileStore(tmp_path / "a.sqlite3"), branch_headers_max=100, metrics=metrics)
    await book.accept(branch(GENESIS, 60))
    await book.accept(branch(GENESIS, 55, 1))
    with pytest.raises(HeadersRejected, match="too many"):
        await book.accept(branch(GENESIS, 55, 2))
    assert metrics.registry.get_sample_value("overlayd_limit_hits_total", {"limit": "branch_headers_max"}) == 1


async def test_metrics_show_the_tip_and_reorgs(tmp_path: Path) -> None:
    """Height, age by the header's time, and how many blocks a reorg took back."""
    metrics, clock = Metrics(), FixedClock()
    book = await book_of(FileStore(tmp_path / "a.sqlite3"), metrics=metrics, clock=clock)
    await book.accept(branch(GENESIS, 3))
    await book.accept(branch(GENESIS, 4, 1))
    value = metrics.registry.get_sample_value
    assert value("overlayd_chain_tip_height") == 4
    assert value("overlayd_chain_tip_age_seconds") == pytest.approx(clock.us / 1e6 - book.tip.time_s)
    assert value("overlayd_chain_reorg_blocks_bucket", {"le": "3.0"}) == 1
    assert value("overlayd_chain_reorg_blocks_bucket", {"le": "2.0"}) == 0


async def test_the_embedded_chain_is_followed_like_any_other(tmp_path: Path) -> None:
    """Its headers pass the same rules, block for block, through reorgs."""
    async with regtest(tmp_path) as chain:
        book = await book_of(FileStore(tmp_path / "headers.sqlite3"))
        for depth in range(7):
            if depth:
                await chain.reorg(depth)
            await chain.mine(2)
            followed = await book.follow(chain)
            assert [reorg.depth for reorg in followed.reorgs] == ([depth] if depth else [])
            assert book.tip.hash == (await chain.read_tip()).block_hash


async def test_it_lives_in_the_logs_database(tmp_path: Path) -> None:
    """Over the real log, headers and a reorg are kept by its writer and there after a restart."""
    settings = StorageSettings(reserve=Size(0), disk_high_water=Size(0), disk_low_water=Size(0))
    tips = []
    for _ in range(2):
        async with (
            regtest(tmp_path) as chain,
            open_log(
                tmp_path / "data", settings=settings, limits=Limits(), defaults=Definition(), clock=FixedClock(),
                entropy=Entropy(), metrics=Metrics(), features=(HEADERS_FEATURE,),
            ) as log,
        ):  # fmt: skip
            book = await open_headers(log, REGTEST, settings=HeadersSettings(), clock=FixedClock(), metrics=Metrics())
            tips.append(book.tip)
            await book.follow(chain)
            await chain.reorg(3)
            assert [reorg.depth for reorg in (await book.follow(chain)).reorgs] == [3]
            tips.append(book.tip)
    assert [tip.height for tip in tips] == [0, 102, 102, 103]
    assert tips[1] == tips[2]
