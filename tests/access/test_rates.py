"""Token buckets: never more than the rate allows, whatever the clock does, in bounded memory, over restarts."""

import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlayd.access.rate_tables import RATES_FEATURE, load_rates, save_rates
from overlayd.access.rates import Asker, Buckets, RateBook, RateSettings, address_group, named_rules, parse_rules
from overlayd.model.clock import Entropy
from overlayd.model.definition import Definition
from overlayd.model.errors import BatchTooLarge, BodyTooLarge, LimitReached, OverlaydError
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.model.units import Size
from overlayd.storage import StorageSettings, open_log

SECRET = b"s" * 32
ANNA = Asker("key:anna", "weather", "192.0.2.1")


class Hand:
    """A clock that is set by hand, in seconds."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def now_us(self) -> int:
        return int(self.now * 1e6)


def book_of(clock: Hand, metrics: Metrics | None = None, **rates: str) -> RateBook:
    """A book with these settings."""
    return RateBook.of_settings(RateSettings(**rates), now=clock, metrics=metrics or Metrics(), secret=SECRET)  # type: ignore[arg-type]


def is_taken(book: RateBook, name: str, who: Asker = ANNA, *, count: int = 1, size: int = 0) -> bool:
    """Whether it was let through."""
    try:
        book.take(name, who, count=count, size=size)
    except LimitReached:
        return False
    return True


steps = st.lists(st.tuples(st.floats(-1e4, 1e4), st.integers(1, 5)), max_size=80)


@given(steps, st.integers(1, 50), st.integers(1, 20))
def test_never_admits_more_than_the_rate_over_every_stretch_of_time(
    asked: list[tuple[float, int]], quota: int, burst: int
) -> None:
    """Between any two moments at most rate x time + burst is admitted, also when the clock jumps to and fro."""
    clock = Hand()
    book = book_of(clock, publish_per_principal=f"{quota}/min burst {burst}")
    admitted: list[tuple[float, int]] = []
    for jump_s, count in asked:
        clock.now += jump_s
        try:
            book.take("publish", ANNA, count=count)
        except (LimitReached, BatchTooLarge):
            continue
        admitted.append((book.now_s(), count))
    for at, (start, _) in enumerate(admitted):
        total = 0
        for moment, count in admitted[at:]:
            total += count
            assert total <= quota / 60 * (moment - start) + burst + 1e-3


@given(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=40), st.integers(0, 10))
def test_what_is_left_never_shrinks_by_itself(jumps: list[float], used: int) -> None:
    """While nothing is taken the bucket only fills, whatever the clock does."""
    clock = Hand()
    book = book_of(clock, publish_per_principal="10/min")
    for _ in range(used):
        book.take("publish", ANNA)
    lefts = []
    for jump_s in jumps:
        clock.now += jump_s
        told = book.tell("publish", ANNA)
        assert told is not None
        lefts.append(told.remaining)
    assert lefts == sorted(lefts)
    assert lefts[0] >= 10 - used


@given(st.integers(1, 30), st.integers(1, 30))
def test_a_full_bucket_gives_its_burst_and_no_more(quota: int, burst: int) -> None:
    """Nothing is refused that the rate allows: the whole burst comes at once, then one per interval."""
    clock = Hand()
    book = book_of(clock, publish_per_principal=f"{quota}/min burst {burst}")
    assert [is_taken(book, "publish") for _ in range(burst + 1)] == [True] * burst + [False]
    clock.now += 60 / quota
    assert is_taken(book, "publish")
    assert not is_taken(book, "publish")


def test_a_refusal_tells_rate_and_wait() -> None:
    """The error names the setting, what is left and after how long the same request would pass, and is counted."""
    clock, metrics = Hand(), Metrics()
    book = book_of(clock, metrics, publish_per_principal="60/min burst 10")
    book.take("publish", ANNA, count=7)
    with pytest.raises(LimitReached) as caught:
        book.take("publish", ANNA, count=5)
    error = caught.value
    assert error.subject == "publish_per_principal"
    assert error.rate is not None
    assert (error.rate.quota, error.rate.window_s, error.rate.remaining) == (60, 60, 3)
    assert error.retry_after_s == pytest.approx(2.0)
    hits = metrics.registry.get_sample_value("overlayd_limit_hits_total", {"limit": "publish_per_principal"})
    assert hits == 1
    clock.now += 2.0
    book.take("publish", ANNA, count=5)


def test_one_refused_bucket_leaves_the_others_alone() -> None:
    """What the address refuses isn't taken from the principal."""
    book = book_of(Hand(), publish_per_principal="5/min", publish_per_address="2/min")
    assert [is_taken(book, "publish") for _ in range(4)] == [True, True, False, False]
    elsewhere = Asker(ANNA.principal, ANNA.stream, "192.0.2.2")
    assert [is_taken(book, "publish", elsewhere) for _ in range(3)] == [True, True, False]
    third = Asker(ANNA.principal, ANNA.stream, "192.0.2.3")
    assert [is_taken(book, "publish", third) for _ in range(2)] == [True, False]


@pytest.mark.parametrize(("name", "action", "dimension"), list(named_rules()))
def test_each_setting_bounds_what_it_says(name: str, action: str, dimension: str) -> None:
    """The third of two allowed is refused to the same subject, and the subject's neighbour isn't touched."""
    book = book_of(Hand(), **{name: "2/h"})
    assert [is_taken(book, action) for _ in range(3)] == [True, True, False]
    other = {"principal": ANNA.principal, "stream": ANNA.stream, "address": ANNA.address, dimension: "198.51.100.1"}
    assert is_taken(book, action, Asker(**other))


def test_bytes_and_counts_are_bounded_side_by_side() -> None:
    """A text may hold a rate of each kind; both must let a request through."""
    book = book_of(Hand(), publish_per_principal="100/min, 1KiB/min")
    assert is_taken(book, "publish", count=1, size=1000)
    assert not is_taken(book, "publish", count=1, size=100)
    assert is_taken(book, "publish", count=1, size=24)


@pytest.mark.parametrize(
    ("rate", "count", "size", "kind"), [("5/min", 6, 0, BatchTooLarge), ("5B/min", 1, 6, BodyTooLarge)]
)
def test_more_than_ever_comes_at_once_is_not_told_to_wait(
    rate: str, count: int, size: int, kind: type[OverlaydError]
) -> None:
    """Waiting wouldn't help, so it is no 429."""
    book = book_of(Hand(), publish_per_principal=rate)
    with pytest.raises(kind):
        book.take("publish", ANNA, count=count, size=size)
    assert is_taken(book, "publish", count=1, size=size and 5)


def test_what_was_used_already_makes_the_next_one_wait() -> None:
    """`spend` goes below empty, `check` refuses until the bucket has one again."""
    clock = Hand()
    book = book_of(clock, read_per_principal="100B/s")
    book.check("read", ANNA)
    book.spend("read", ANNA, size=300)
    with pytest.raises(LimitReached):
        book.check("read", ANNA)
    clock.now += 2.5
    book.check("read", ANNA)


@pytest.mark.parametrize("text", ["100", "100/year", "0/min", "5/min burst 1KiB", "x/min", "5/min burst 0", "/min"])
def test_a_text_that_is_no_rate_is_refused_at_start(text: str) -> None:
    """A typing error in the settings isn't taken for no bound."""
    with pytest.raises(ValueError, match="publish_per_principal"):
        RateSettings(publish_per_principal=text)


def test_rates_are_read_as_written() -> None:
    """Counts, sizes, windows and bursts."""
    found = parse_rules("r", "publish", "stream", "100/min, 1MiB/s burst 8MiB")
    assert [(rule.quota, rule.window_s, rule.burst, rule.is_bytes) for rule in found] == [
        (100, 60, 100, False),
        (1 << 20, 1, 8 << 20, True),
    ]
    assert [str(rule) for rule in found] == ["100/min", "1MiB/s"]


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("uid:0", "uid:1000", False),
    ],
)
def test_ipv6_addresses_count_by_their_network(one: str, other: str, is_same: bool) -> None:
    """A household has 2^64 of them; changing among them gains nothing."""
    assert (address_group(one) == address_group(other)) is is_same


def test_a_flood_of_addresses_takes_no_more_memory() -> None:
    """The table has its size from the start; a flood of addresses pushes itself out, not the one that did much."""
    clock = Hand()
    book = RateBook.of_settings(
        RateSettings(connect_per_address="10/min", buckets=4096), now=clock, metrics=Metrics(), secret=SECRET
    )
    heavy = Asker("", "", "192.0.2.1")
    for _ in range(10):
        book.take("connect", heavy)
    address_group.cache_clear()
    tracemalloc.start()
    try:
        buckets, before = book.addresses, tracemalloc.get_traced_memory()[0]
        for number in range(6000):
            book.take("connect", Asker("", "", f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"))
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(buckets) == 4096
    assert buckets.forgotten > 1000
    assert grown < 4_000_000  # the bounded cache of parsed addresses, nothing else
    with pytest.raises(LimitReached):
        book.take("connect", heavy)


@pytest.mark.parametrize("count", [100_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_a_million_keys_stay_within_the_table(count: int) -> None:
    """Many different keys in a small table: as many places as before, each put in constant work."""
    buckets = Buckets(1024)
    for key in range(1, count + 1):
        buckets.put(key * 0x9E3779B97F4A7C15 & (1 << 64) - 1, 5.0, 1.0)
    assert len(buckets) == 1024
    assert len(buckets.debts(1.0, 0.0)) <= 1024


async def test_used_up_rates_outlast_a_restart(tmp_path: Path) -> None:
    """What was used is still used after a restart, less what the time in between gave back; no address is stored."""
    settings = StorageSettings(reserve=Size(0), disk_high_water=Size(0), disk_low_water=Size(0))
    clock = Hand(1_700_000_000.0)

    async def run(wanted: list[bool]) -> None:
        async with open_log(
            tmp_path, settings=settings, limits=Limits(), defaults=Definition(), clock=clock, entropy=Entropy(),
            metrics=Metrics(), features=(RATES_FEATURE,),
        ) as log:  # fmt: skip
            saved = await load_rates(log, Entropy())
            started = clock.now
            book = RateBook.of_settings(
                RateSettings(publish_per_address="4/min"), now=lambda: clock.now - started, metrics=Metrics(),
                secret=saved.secret,
            )  # fmt: skip
            saved.restore(book, clock.now_us())
            assert [is_taken(book, "publish", Asker("", "", "203.0.113.77")) for _ in wanted] == wanted
            await save_rates(log, book, clock)

    await run([True] * 4 + [False])
    clock.now += 31.0
    await run([True] * 2 + [False])
    clock.now -= 500.0  # the wall clock is set back: nothing is given back for it
    await run([False])
    assert b"203.0.113.77" not in (tmp_path / "log.sqlite3").read_bytes()
