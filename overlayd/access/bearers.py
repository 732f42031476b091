"""The schemes of the node's own secrets: API keys in the Authorization header, tickets in the query of a live path."""

from urllib.parse import unquote

import msgspec

from overlayd.access.gate import Claim, RequestHead
from overlayd.access.keys import KeyBook
from overlayd.access.origin import Origin, Peer
from overlayd.access.secret_text import is_ticket
from overlayd.access.tickets import TicketBook
from overlayd.model.callback import is_callback_token
from overlayd.model.clock import Clock
from overlayd.model.errors import Unauthorized

BEARER = "bearer "
TICKET = "ticket="
TICKET_PATHS = frozenset(("/v1/live",))
TOKEN_CHARS_MAX = 512


def bearer_of(head: RequestHead) -> str | None:
    """The token of `Authorization: Bearer`, None without one."""
    value = head.get(b"authorization")
    if value is None or value[: len(BEARER)].lower() != BEARER:
        return None
    return value[len(BEARER) :].strip()


class KeyScheme:
    """`Authorization: Bearer ovl_live_…` or `ap_live_…`, or a key in whatever form the configuration declares one."""

    name = "key"
    headers = frozenset((b"authorization",))
    is_ambient = False
    is_costly = False

    def __init__(self, keys: KeyBook, clock: Clock, *, may_create: bool) -> None:
        """`may_create`: publishing from this machine creates unknown streams."""
        self._keys = keys
        self._clock = clock
        self._may_create = may_create

    @property
    def is_configured(self) -> bool:
        return self._keys.has_living

    def is_brought(self, head: RequestHead, peer: Peer) -> bool:
        token = bearer_of(head)
        # A token with dots is a JWT, whether or not somebody here knows what to do with it.
        return token is not None and token.count(".") != 2 and not is_callback_token(token)

    async def claim(self, head: RequestHead, peer: Peer, origin: Origin) -> Claim:
        """All that is wrong with a key is told in the same words, so that nobody learns which keys there are."""
        token = bearer_of(head) or ""
        found = self._keys.find(token) if len(token) <= TOKEN_CHARS_MAX else None
        end_us = 0 if found is None else found.key.ends_us(found.secret)
        if found is None or (end_us and end_us <= self._clock.now_us()):
            raise Unauthorized(
                "the API key isn't valid", subject="key",
                hint="keys begin with ovl_live_ or ap_live_; it may have expired, or have been rotated or revoked",
            )  # fmt: skip
        may_create = self._may_create and origin.is_local
        return Claim(found.key.principal(found.secret, origin.address, may_create=may_create))


class TicketScheme:
    """`?ticket=…`, for connections that a browser opens and that can't carry a header."""

    name = "ticket"
    headers: frozenset[bytes] = frozenset()
    is_ambient = False
    is_costly = False
    is_configured = False
    """Tickets are given to those who are in already."""

    def __init__(self, tickets: TicketBook, paths: frozenset[str] = TICKET_PATHS) -> None:
        """`paths`: those of live connections."""
        self._tickets = tickets
        self._paths = paths

    def is_brought(self, head: RequestHead, peer: Peer) -> bool:
        return TICKET in head.query and ticket_of(head.query) is not None

    async def claim(self, head: RequestHead, peer: Peer, origin: Origin) -> Claim:
        text = ticket_of(head.query) or ""
        if head.path not in self._paths or head.method != "GET":
            raise Unauthorized(
                "a ticket opens live connections only", subject="ticket",
                hint="send Authorization: Bearer and an API key, or use /v1/live",
            )  # fmt: skip
        if not is_ticket(text):
            raise Unauthorized("that isn't a ticket", subject="ticket", hint="POST /v1/tickets gives one")
        principal = self._tickets.redeem(text)
        may_create = principal.may_create and origin.is_local
        named = msgspec.structs.replace(principal, address=origin.address, may_create=may_create)
        return Claim(named, is_lasting=False)


def ticket_of(query: str) -> str | None:
    """The ticket in a query, None without one."""
    for pair in query.split("&"):
        name, is_pair, value = pair.partition("=")
        if is_pair and name == "ticket":
            return unquote(value)
    return None
