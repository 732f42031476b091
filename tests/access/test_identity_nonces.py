"""Nonces: each once, within their time, within bounds, and over restarts and crashes."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from access_rig import TurnedClock
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from standing_clock import NO_STEP

from overlayd.access.identity.nonces import KEPT_US, STEP_US, ClockNonces, DurableNonces
from overlayd.access.identity.settings import IdentitySettings
from overlayd.access.identity.tables import IDENTITY_FEATURE
from overlayd.access.settings import AccessSettings
from overlayd.model.clock import Entropy
from overlayd.model.definition import Definition
from overlayd.model.errors import LimitReached, StorageFull, Unauthorized
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.model.units import Duration, Size
from overlayd.storage import Log, StorageSettings, open_log

STORAGE = StorageSettings(reserve=Size(0), disk_high_water=Size(0), disk_low_water=Size(0), clock_step=NO_STEP)
ALICE, BOB = b"\x02" + b"a" * 32, b"\x02" + b"b" * 32
DIGEST = bytes(32)


class Rig:
    """Nonces over a real log; opened again and again on the same directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clock = TurnedClock()
        self.metrics = Metrics()
        self.settings = AccessSettings()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Log]:
        async with open_log(
            self.directory, settings=STORAGE, limits=Limits(), defaults=Definition(), clock=self.clock,
            entropy=Entropy(), metrics=Metrics(), features=(IDENTITY_FEATURE,),
        ) as log:  # fmt: skip
            yield log

    async def by_clock(self, store: Any) -> ClockNonces:
        self.metrics = Metrics()
        nonces = ClockNonces(
            self.settings, store=store, clock=self.clock, entropy=Entropy(), metrics=self.metrics
        )  # fmt: skip
        await nonces.start()
        return nonces

    def limit_hits(self, limit: str) -> float:
        return self.metrics.registry.get_sample_value("overlayd_limit_hits_total", {"limit": limit}) or 0.0

    def nonce(self, seconds: float = 0.0) -> str:
        """A time so far from now, in microseconds."""
        return str(self.clock.us + int(seconds * 1_000_000))


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    """On a directory of its own."""
    return Rig(tmp_path)


async def test_a_nonce_counts_once(rig: Rig) -> None:
    """For each identity; in another unit it is another nonce, which was signed, too."""
    async with rig.open() as log:
        nonces = await rig.by_clock(log)
        nonce = rig.nonce()
        nonces.check(ALICE, nonce)
        await nonces.use(ALICE, nonce, DIGEST)
        for _ in range(2):
            with pytest.raises(Unauthorized, match="used"):
                nonces.check(ALICE, nonce)
            with pytest.raises(Unauthorized, match="used"):
                await nonces.use(ALICE, nonce, DIGEST)
        await nonces.use(BOB, nonce, DIGEST)
        await nonces.use(ALICE, nonce + "000", DIGEST)


async def test_of_two_that_come_together_one_counts(rig: Rig) -> None:
    """Also while both wait for the first horizon to be stored."""
    async with rig.open() as log:
        nonces = await rig.by_clock(log)
        nonce, outcomes = rig.nonce(), []

        async def send() -> None:
            try:
                await nonces.use(ALICE, nonce, DIGEST)
                outcomes.append("taken")
            except Unauthorized:
                outcomes.append("refused")

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(send)
        assert sorted(outcomes) == ["refused"] * 4 + ["taken"]


@pytest.mark.parametrize("off_s", [-300.5, 300.5, -1e6, 1e6])
async def test_times_far_away_are_refused(rig: Rig, off_s: float) -> None:
    """Beyond the ttl in either direction; just within it they count."""
    async with rig.open() as log:
        nonces = await rig.by_clock(log)
        with pytest.raises(Unauthorized, match="300 s away"):
            await nonces.use(ALICE, rig.nonce(off_s), DIGEST)
        await nonces.use(ALICE, rig.nonce(299.0 if off_s > 0 else -299.0), DIGEST)


async def test_what_is_forgotten_is_out_of_reach(rig: Rig) -> None:
    """Memory is given back once a nonce's time is over; a clock that then goes back doesn't bring it into reach."""
    async with rig.open() as log:
        nonces = await rig.by_clock(log)
        taken = [rig.nonce(second) for second in range(5)]
        for nonce in taken:
            await nonces.use(ALICE, nonce, DIGEST)
        rig.clock.advance(1000)
        with pytest.raises(Unauthorized):
            nonces.check(ALICE, taken[0])
        assert repr(nonces) == "ClockNonces(0 of 500000)"
        rig.clock.advance(-1000)
        for nonce in taken:
            with pytest.raises(Unauthorized, match="left behind"):
                await nonces.use(ALICE, nonce, DIGEST)


async def test_the_table_is_bounded(rig: Rig) -> None:
    """For one identity and for all; what is in it stays, so that it can't be sent again."""
    rig.settings = AccessSettings(
        signature_ttl=Duration(60), identity=IdentitySettings(clock_nonces_max=3, clock_nonces_each=2)
    )
    async with rig.open() as log:
        nonces = await rig.by_clock(log)
        taken = [rig.nonce(0), rig.nonce(1)]
        for nonce in taken:
            await nonces.use(ALICE, nonce, DIGEST)
        with pytest.raises(LimitReached, match="2 nonces"):
            await nonces.use(ALICE, rig.nonce(2), DIGEST)
        await nonces.use(BOB, taken[0], DIGEST)
        with pytest.raises(LimitReached, match="3 nonces"):
            await nonces.use(BOB, taken[1], DIGEST)
        assert (rig.limit_hits("clock_nonces_each"), rig.limit_hits("clock_nonces_max")) == (1, 1)
        with pytest.raises(Unauthorized, match="used"):
            await nonces.use(ALICE, taken[0], DIGEST)
        rig.clock.advance(200)
        await nonces.use(ALICE, rig.nonce(), DIGEST)


async def test_after_a_crash_nothing_counts_twice(rig: Rig) -> None:
    """What an identity sent before is refused, also with a clock ahead; what it signs a little later counts; others
    are not held up."""
    async with rig.open() as log:
        nonces = await rig.by_clock(log)
        taken = [rig.nonce(0), rig.nonce(250), rig.nonce(3)]
        for nonce in taken:
            await nonces.use(ALICE, nonce, DIGEST)
    rig.clock.advance(5)
    async with rig.open() as log:
        nonces = await rig.by_clock(log)
        for nonce in taken:
            with pytest.raises(Unauthorized, match="started"):
                await nonces.use(ALICE, nonce, DIGEST)
        await nonces.use(BOB, rig.nonce(), DIGEST)
        rig.clock.advance(250 + STEP_US / 1e6)
        await nonces.use(ALICE, rig.nonce(), DIGEST)


async def test_after_a_clean_stop_the_next_nonce_counts(rig: Rig) -> None:
    """The last one doesn't, nor one before it."""
    async with rig.open() as log:
        nonces = await rig.by_clock(log)
        last = rig.nonce()
        await nonces.use(ALICE, last, DIGEST)
        await nonces.stop()
    rig.clock.advance(0.5)
    async with rig.open() as log:
        nonces = await rig.by_clock(log)
        for nonce in (last, str(int(last) - 1)):
            with pytest.raises(Unauthorized, match="started"):
                await nonces.use(ALICE, nonce, DIGEST)
        await nonces.use(ALICE, rig.nonce(), DIGEST)


async def test_horizons_are_stored_in_steps_and_dropped(rig: Rig) -> None:
    """A write in STEP_US for each identity, not one for each request; rows that have no meaning any more go."""

    class Counting:
        def __init__(self, log: Log) -> None:
            self.log, self.writes = log, 0

        async def read(self, function: Any) -> Any:
            return await self.log.read(function)

        async def write(self, job: Any) -> Any:
            self.writes += 1
            return await self.log.write(job)

    def rows(connection: sqlite3.Connection) -> list[bytes]:
        return [row[0] for row in connection.execute("SELECT key FROM identity_horizon ORDER BY key")]

    async with rig.open() as log:
        store = Counting(log)
        nonces = await rig.by_clock(store)
        for _ in range(20):
            await nonces.use(ALICE, rig.nonce(), DIGEST)
            rig.clock.advance(1)
        assert store.writes == 2
        rig.clock.advance(1000)
        await nonces.use(BOB, rig.nonce(), DIGEST)
        assert await log.read(rows) == [ALICE, BOB]
        rig.clock.advance(KEPT_US / 1e6)
        await nonces.use(BOB, rig.nonce(), DIGEST)
        assert await log.read(rows) == [BOB]


async def test_a_clock_that_is_set_back_while_the_node_is_down_brings_nothing_back(rig: Rig) -> None:
    """Not even what was out of reach when the node stopped."""
    async with rig.open() as log:
        nonces = await rig.by_clock(log)
        nonce = rig.nonce()
        await nonces.use(ALICE, nonce, DIGEST)
        rig.clock.advance(3600)
        await nonces.use(BOB, rig.nonce(), DIGEST)
        await nonces.stop()
    rig.clock.advance(-3600)
    async with rig.open() as log:
        nonces = await rig.by_clock(log)
        with pytest.raises(Unauthorized, match="started"):
            await nonces.use(ALICE, nonce, DIGEST)


async def test_without_a_stored_horizon_nothing_counts(rig: Rig) -> None:
    """A full disk refuses the request instead of letting it in unremembered."""

    class Full:
        async def read(self, function: Any) -> Any:
            return {}

        async def write(self, job: Any) -> Any:
            await trio.lowlevel.checkpoint()
            raise StorageFull("the disk is full")

    nonces = await rig.by_clock(Full())
    nonce = rig.nonce()
    with pytest.raises(StorageFull):
        await nonces.use(ALICE, nonce, DIGEST)
    nonces.check(ALICE, nonce)
    await nonces.stop()


async def test_a_request_that_is_cancelled_takes_no_nonce(rig: Rig) -> None:
    """Its client may send it again."""
    async with rig.open() as log:
        nonces = await rig.by_clock(log)
        with trio.CancelScope() as scope:
            scope.cancel()
            await nonces.use(ALICE, rig.nonce(), DIGEST)
        assert scope.cancelled_caught
        await nonces.use(ALICE, rig.nonce(), DIGEST)


async def test_durable_nonces_count_once_for_good(rig: Rig) -> None:
    """Any text; over restarts and years; for each identity."""
    for _ in range(2):
        async with rig.open() as log:
            nonces = DurableNonces(rig.settings, store=log, metrics=rig.metrics)
            await nonces.start()
            nonces.check(ALICE, "deadbeef")
            if rig.clock.s == 1000.0:
                await nonces.use(ALICE, "deadbeef", b"1" * 32)
                await nonces.use(BOB, "deadbeef", b"1" * 32)
            for who in (ALICE, BOB):
                with pytest.raises(Unauthorized, match="used"):
                    await nonces.use(who, "deadbeef", b"2" * 32)
            await nonces.stop()
        rig.clock.advance(1e8)


async def test_durable_nonces_remember_what_was_signed(rig: Rig) -> None:
    """With body and nonce signed one behind the other, the border between them could be moved."""
    async with rig.open() as log:
        nonces = DurableNonces(rig.settings, store=log, metrics=rig.metrics)
        await nonces.use(ALICE, "bc", b"1" * 32)
        with pytest.raises(Unauthorized, match="used"):
            await nonces.use(ALICE, "abc", b"1" * 32)


async def test_durable_nonces_are_bounded(rig: Rig) -> None:
    """Each identity by itself; the bound is told, and what is stored stays refused."""
    rig.settings = AccessSettings(identity=IdentitySettings(durable_nonces_each=2))
    async with rig.open() as log:
        nonces = DurableNonces(rig.settings, store=log, metrics=rig.metrics)
        for number in range(2):
            await nonces.use(ALICE, f"n{number}", bytes([number]) * 32)
        with pytest.raises(LimitReached, match="2 nonces"):
            await nonces.use(ALICE, "n2", b"2" * 32)
        assert rig.limit_hits("durable_nonces_each") == 1
        with pytest.raises(Unauthorized, match="used"):
            await nonces.use(ALICE, "n0", b"0" * 32)
        await nonces.use(BOB, "n2", b"2" * 32)


class ReplayMachine(RuleBasedStateMachine):
    """Times, clocks that step, crashes and clean stops: no nonce is ever taken twice."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = TurnedClock()
        self.stored: dict[bytes, int] = {}
        self.taken: set[tuple[bytes, str]] = set()
        self.nonces = self.open()

    def open(self) -> ClockNonces:
        machine = self

        class Table:
            async def read(self, function: Any) -> Any:
                return dict(machine.stored)

            async def write(self, job: Any) -> Any:
                connection = sqlite3.connect(":memory:")
                connection.execute("CREATE TABLE identity_horizon (key BLOB PRIMARY KEY, until_us INTEGER)")
                connection.executemany("INSERT INTO identity_horizon VALUES (?, ?)", machine.stored.items())
                job(connection)
                machine.stored = dict(connection.execute("SELECT key, until_us FROM identity_horizon"))
                connection.close()

        nonces = ClockNonces(
            AccessSettings(signature_ttl=Duration(60)),
            store=Table(),
            clock=self.clock,
            entropy=Entropy(),
            metrics=Metrics(),
        )
        trio.run(nonces.start)
        return nonces

    @rule(who=st.sampled_from((ALICE, BOB)), off=st.integers(-70, 70), digits=st.sampled_from((0, 3, 6)))
    def send(self, who: bytes, off: int, digits: int) -> None:
        nonce = str((self.clock.us // 1_000_000 + off) * 10**digits)
        try:
            trio.run(self.nonces.use, who, nonce, DIGEST)
        except Unauthorized:
            return
        assert (who, nonce) not in self.taken
        self.taken.add((who, nonce))

    @rule(seconds=st.integers(0, 100))
    def wait(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @rule(seconds=st.integers(1, 100))
    def step_back(self, seconds: int) -> None:
        self.clock.advance(-seconds)

    @rule()
    def crash(self) -> None:
        self.clock.advance(1)
        self.nonces = self.open()

    @rule()
    def restart(self) -> None:
        trio.run(self.nonces.stop)
        self.nonces = self.open()

    @invariant()
    def counts_what_it_holds(self) -> None:
        assert self.nonces._total == sum(map(len, self.nonces._seen.values()))


TestReplays = ReplayMachine.TestCase
