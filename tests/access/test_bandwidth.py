"""The pace of an account: what it owes goes by the rate that holds now."""

import pytest
import trio

from overlayd.access.bandwidth import AHEAD_S, Bandwidth
from overlayd.access.quotas import Account
from overlayd.model.quota import QuotaPolicy

THOUSAND_BYTES_A_SECOND = 0.008


class Book:
    """Policies that a test changes."""

    def __init__(self) -> None:
        self.policies: dict[str, QuotaPolicy] = {}

    def bound(self, mbps: float) -> None:
        """The account's policy from now on."""
        self.policies["thin"] = QuotaPolicy(name="thin", max_bandwidth_mbps=mbps)


@pytest.fixture
def book() -> Book:
    """A policy of a thousand bytes a second."""
    made = Book()
    made.bound(THOUSAND_BYTES_A_SECOND)
    return made


@pytest.fixture
def pace(book: Book) -> Bandwidth:
    """An account under it."""
    account = Account("somebody", {}, (0, 0))
    account.policy = "thin"
    return Bandwidth(account, book)


async def test_what_is_sent_takes_its_time(pace: Bandwidth, autojump_clock: trio.testing.MockClock) -> None:
    """Ten thousand bytes are through after ten seconds, of which one may be ahead."""
    pace.spend(10_000)
    assert pace.wait_s() == pytest.approx(10 - AHEAD_S)
    await trio.sleep(4)
    assert pace.wait_s() == pytest.approx(6 - AHEAD_S)


@pytest.mark.parametrize(("times", "left_s"), [(10, 1.0), (0.5, 20.0), (0, AHEAD_S)])
async def test_another_rate_counts_at_once(
    pace: Bandwidth, book: Book, times: float, left_s: float, autojump_clock: trio.testing.MockClock
) -> None:
    """What is owed at ten times the rate takes a tenth of the time, and without a bound none."""
    pace.spend(10_000)
    book.bound(THOUSAND_BYTES_A_SECOND * times)
    assert pace.wait_s() == pytest.approx(left_s - AHEAD_S)


async def test_a_policy_that_is_gone_holds_nobody(pace: Bandwidth, book: Book) -> None:
    """Neither does what was sent without one count later."""
    pace.spend(1_000_000)
    book.policies.clear()
    assert pace.wait_s() == 0
    pace.spend(1_000_000)
    book.bound(THOUSAND_BYTES_A_SECOND)
    assert pace.wait_s() == 0
