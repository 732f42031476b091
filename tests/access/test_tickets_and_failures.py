"""Tickets: used once, in time, for no more than was asked; failures: counted in a bounded table, forgiven in time."""

from typing import Any

import msgspec
import pytest
from access_rig import TurnedClock, principal_of

from overlayd.access.failures import FailureBook
from overlayd.access.principal import Standing
from overlayd.access.scopes import parse_scope
from overlayd.access.settings import AccessSettings
from overlayd.access.tickets import TicketBook, narrow
from overlayd.model.clock import Entropy
from overlayd.model.errors import BadParameter, Forbidden, LimitReached, Unauthorized
from overlayd.model.metrics import Metrics
from overlayd.model.units import Duration

WHO = principal_of("subscribe:a.*", "publish")


class Books:
    """Both books on one clock."""

    def __init__(self, **settings: Any) -> None:
        self.clock, self.metrics = TurnedClock(), Metrics()
        named = AccessSettings(**settings)
        self.tickets = TicketBook(named, Entropy(), self.metrics, self.clock.now_s)
        self.failures = FailureBook(named, self.metrics, self.clock.now_s)

    def hits(self, limit: str) -> float:
        return self.metrics.registry.get_sample_value("overlayd_limit_hits_total", {"limit": limit}) or 0.0


def test_a_ticket_counts_once() -> None:
    """For whoever asked for it."""
    books = Books()
    text, ttl_s = books.tickets.issue(WHO, None, None)
    assert (ttl_s, len(books.tickets)) == (60, 1)
    assert books.tickets.redeem(text) == WHO
    with pytest.raises(Unauthorized):
        books.tickets.redeem(text)
    assert len(books.tickets) == 0


def test_a_ticket_counts_in_time() -> None:
    """And ends with the credential that it was asked for with."""
    books = Books()
    text, _ = books.tickets.issue(WHO, None, 5)
    books.clock.advance(5)
    with pytest.raises(Unauthorized):
        books.tickets.redeem(text)
    standing = Standing()
    text, _ = books.tickets.issue(msgspec.structs.replace(WHO, standing=standing), None, None)
    standing.ended = "revoked"
    with pytest.raises(Unauthorized):
        books.tickets.redeem(text)
    with pytest.raises(Unauthorized):
        books.tickets.redeem("ovl_ticket_" + "A" * 32)


def test_a_ticket_is_for_no_more_than_its_owner_has() -> None:
    """It may be for less."""
    assert narrow(WHO, [parse_scope("subscribe:a.b")]).grants.scopes == ("subscribe:a.b",)
    assert narrow(WHO, [parse_scope("publish:x")]).rights == frozenset()
    for scope in ("subscribe:b", "subscribe", "manage:a", "audit"):
        with pytest.raises(Forbidden):
            narrow(WHO, [parse_scope(scope)])


def test_limits_of_tickets() -> None:
    """In all, per principal, and how long they wait; late ones give their places back."""
    books = Books(tickets_max=3, tickets_per_principal=2, ticket_ttl_max=Duration(100))
    for ttl_s in (0.0, 101.0):
        with pytest.raises(BadParameter):
            books.tickets.issue(WHO, None, ttl_s)
    for _ in range(2):
        books.tickets.issue(WHO, None, 10)
    with pytest.raises(LimitReached):
        books.tickets.issue(WHO, None, None)
    other = msgspec.structs.replace(WHO, name="key:other")
    books.tickets.issue(other, None, 10)
    with pytest.raises(LimitReached):
        books.tickets.issue(msgspec.structs.replace(WHO, name="key:third"), None, None)
    assert [books.hits(name) for name in ("tickets_max", "tickets_per_principal", "ticket_ttl_max")] == [1, 1, 2]
    books.clock.advance(10)
    books.tickets.issue(WHO, None, None)
    assert len(books.tickets) == 1


def test_failures_are_forgiven_one_by_one() -> None:
    """A client that is wrong now and then is never slowed down."""
    books = Books(failures_per_address=3, failure_forgiven=Duration(10))
    for _ in range(20):
        books.failures.note("192.0.2.9")
        books.clock.advance(10)
    assert books.failures.wait_s("192.0.2.9") == 0
    for _ in range(3):
        assert books.failures.wait_s("192.0.2.9") == 0
        books.failures.note("192.0.2.9")
    assert books.failures.wait_s("192.0.2.9") == pytest.approx(10)
    assert books.failures.wait_s("192.0.2.10") == 0
    books.clock.advance(10)
    assert books.failures.wait_s("192.0.2.9") == 0


def test_one_household_is_one_address() -> None:
    """An IPv6 /64 can't be used up address by address."""
    books = Books(failures_per_address=1)
    books.failures.note("2001:db8::1")
    assert books.failures.wait_s("2001:db8::ffff") > 0
    assert books.failures.wait_s("2001:db8:0:1::1") == 0


def test_failures_of_a_million_addresses_are_bounded() -> None:
    """The oldest give way, and that is counted; forgiven ones go by themselves."""
    books = Books(failure_addresses=16)
    for number in range(100):
        books.failures.note(f"198.51.100.{number}")
    assert "addresses=16" in repr(books.failures)
    assert books.hits("failure_addresses") == 84
    books.clock.advance(1000)
    books.failures.note("192.0.2.1")
    assert "addresses=1" in repr(books.failures)
    refusal = books.failures.refusal("192.0.2.1", 3.0)
    assert refusal.rate is not None
    assert (refusal.retry_after_s, refusal.rate.remaining) == (3.0, 0)
