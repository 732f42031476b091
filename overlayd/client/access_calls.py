"""The requests about keys and tickets as values (calls.py)."""

from collections.abc import Sequence
from urllib.parse import quote

import msgspec
from msgspec import UNSET

from overlayd.client.calls import JSON, Call, decoder_of
from overlayd.model.wire_access import (
    KeyBody,
    KeyChangeIn,
    KeyIn,
    KeyList,
    KeyMade,
    KeyRotation,
    TicketBody,
    TicketIn,
)

_KEYS = decoder_of(KeyList)
_KEY = decoder_of(KeyBody)
_MADE = decoder_of(KeyMade)
_TICKET = decoder_of(TicketBody)
_HEADERS = (("Content-Type", JSON),)


def list_keys(*, owner: str = "", limit: int = 0, after: str = "") -> Call[KeyList]:
    """One page of the node's API keys, by id."""
    named = (("owner", owner), ("limit", str(limit or "")), ("after", after))
    return Call("GET", "/v1/keys", _KEYS, params=tuple(pair for pair in named if pair[1]))


def show_key(id: str) -> Call[KeyBody]:
    """One API key."""
    return Call("GET", _path(id), _KEY)


def create_key(wanted: KeyIn) -> Call[KeyMade]:
    """Makes an API key; the answer is the only one that shows its secret."""
    return Call(
        "POST", "/v1/keys", _MADE, headers=_HEADERS, content=msgspec.json.encode(wanted), is_repeatable=False
    )  # fmt: skip


def change_key(id: str, wanted: KeyChangeIn) -> Call[KeyBody]:
    """Changes what an API key may do, whose it is, when it ends; at once for what it let in, too."""
    return Call("PATCH", _path(id), _KEY, headers=_HEADERS, content=msgspec.json.encode(wanted))


def rotate_key(id: str, grace: str = "") -> Call[KeyMade]:
    """Gives an API key another secret; the old one goes on for the grace ("": as the node is set)."""
    content = msgspec.json.encode(KeyRotation(grace=grace or UNSET))
    return Call("POST", f"{_path(id)}/rotate", _MADE, headers=_HEADERS, content=content, is_repeatable=False)


def revoke_key(id: str) -> Call[None]:
    """Ends an API key, and what it let in."""
    return Call("DELETE", _path(id), lambda answer: None, is_repeatable=False)


def issue_ticket(scopes: Sequence[str] | None = None, ttl: str = "") -> Call[TicketBody]:
    """A bearer for one live connection. `scopes`: less than one's own."""
    wanted = TicketIn(scopes=UNSET if scopes is None else list(scopes), ttl=ttl or UNSET)
    return Call(
        "POST", "/v1/tickets", _TICKET, headers=_HEADERS, content=msgspec.json.encode(wanted), is_repeatable=False
    )  # fmt: skip


def _path(id: str) -> str:
    return f"/v1/keys/{quote(id, safe='')}"
