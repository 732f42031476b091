"""Tickets: bearers for a single live connection, for clients that can't send headers, such as pages in a browser.

They live in memory alone: a restart ends them, and whoever has none asks for another.
"""

import heapq
from collections import Counter
from collections.abc import Callable, Iterable

import msgspec

from overlayd.access.principal import Principal, may_hold
from overlayd.access.scopes import Scope, grants_of
from overlayd.access.secret_text import digest_of, draw_ticket, is_same
from overlayd.access.settings import AccessSettings
from overlayd.model.clock import Entropy
from overlayd.model.errors import BadParameter, Forbidden, LimitReached, Unauthorized
from overlayd.model.metrics import Metrics


class Ticket(msgspec.Struct, frozen=True):
    """A ticket that wasn't used yet. `deadline_s`: monotonic."""

    digest: bytes
    principal: Principal
    deadline_s: float


class TicketBook:
    """Tickets that wait to be used."""

    def __init__(
        self, settings: AccessSettings, entropy: Entropy, metrics: Metrics, now_s: Callable[[], float]
    ) -> None:  # fmt: skip
        self._settings = settings
        self._entropy = entropy
        self._metrics = metrics
        self._now_s = now_s
        self._tickets: dict[bytes, Ticket] = {}
        self._by_name: Counter[str] = Counter()
        self._ends: list[tuple[float, bytes]] = []
        waiting = metrics.gauge("overlayd_access_tickets", "Tickets that wait to be used")
        waiting.set_function(lambda: len(self._tickets))

    def __len__(self) -> int:
        return len(self._tickets)

    def adopt(self, settings: AccessSettings) -> None:
        """Its limits are these from now on."""
        self._settings = settings

    def issue(self, principal: Principal, scopes: Iterable[Scope] | None, ttl_s: float | None) -> tuple[str, float]:
        """The ticket and the seconds in which it must be used. `scopes`: less than the principal has, None for all.

        Raises Forbidden for scopes that the principal doesn't have, BadParameter, LimitReached.
        """
        ttl_s = float(self._settings.ticket_ttl) if ttl_s is None else ttl_s
        if not 0 < ttl_s <= self._settings.ticket_ttl_max:
            self._metrics.count_limit_hit("ticket_ttl_max")
            raise BadParameter(
                f"a ticket waits at most {self._settings.ticket_ttl_max} to be used", subject="ttl",
                hint="the connection that it opens may last longer",
            )  # fmt: skip
        self._forget_late()
        for limit, count, most in (
            ("tickets_max", len(self._tickets), self._settings.tickets_max),
            ("tickets_per_principal", self._by_name[principal.name], self._settings.tickets_per_principal),
        ):
            if count >= most:
                self._metrics.count_limit_hit(limit)
                raise LimitReached(f"{most} tickets wait to be used already", subject=limit, retry_after_s=5.0)
        narrowed = principal if scopes is None else narrow(principal, scopes)
        secret = draw_ticket(self._entropy)
        ticket = Ticket(secret.digest, narrowed, self._now_s() + ttl_s)
        self._tickets[ticket.digest] = ticket
        self._by_name[principal.name] += 1
        heapq.heappush(self._ends, (ticket.deadline_s, ticket.digest))
        return secret.text, ttl_s

    def redeem(self, text: str) -> Principal:
        """Who the ticket was given to. It can't be used again. Raises Unauthorized."""
        digest = digest_of(text)
        ticket = self._tickets.get(digest)
        if ticket is None or not is_same(ticket.digest, digest):
            raise _invalid()
        self._drop(ticket)
        if ticket.deadline_s <= self._now_s() or ticket.principal.standing.ended:
            raise _invalid()
        return ticket.principal

    def _forget_late(self) -> None:
        now = self._now_s()
        while self._ends and self._ends[0][0] <= now:
            ticket = self._tickets.get(heapq.heappop(self._ends)[1])
            if ticket is not None:
                self._drop(ticket)

    def _drop(self, ticket: Ticket) -> None:
        del self._tickets[ticket.digest]
        self._by_name[ticket.principal.name] -= 1
        if not self._by_name[ticket.principal.name]:
            del self._by_name[ticket.principal.name]


def narrow(principal: Principal, scopes: Iterable[Scope]) -> Principal:
    """The same principal with fewer rights. Raises Forbidden for one that it doesn't have."""
    wanted = list(scopes)
    for scope in wanted:
        if not may_hold(principal, scope):
            raise Forbidden(
                f"{principal.name} doesn't have the scope {scope} itself", subject=str(scope),
                hint="ask for less than the credential has",
            )  # fmt: skip
    grants = grants_of(wanted)
    return msgspec.structs.replace(principal, rights=grants.everywhere, grants=grants)


def _invalid() -> Unauthorized:
    return Unauthorized(
        "the ticket isn't valid: each opens one connection, soon after it was given out", subject="ticket",
        hint="ask for another with POST /v1/tickets",
    )  # fmt: skip
