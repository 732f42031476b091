"""Tables `[[chain.sources]]` and `[chain.asking]`: who is asked about the chain, and how."""

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from overlayd.model.errors import OutboundFailure
from overlayd.model.units import Duration, Size
from overlayd.outbound.networks import parse_networks
from overlayd.outbound.url import parse_url

SourceKind = Literal["arc", "arcade", "whatsonchain", "headers", "node"]

RATES: dict[SourceKind, float] = {"arc": 20.0, "arcade": 50.0, "whatsonchain": 3.0, "headers": 20.0, "node": 100.0}
"""Requests a second where nobody says otherwise. WhatsOnChain's is what it grants without a contract."""
_NAME = re.compile(r"[a-z0-9_-]{1,64}", re.ASCII)


class ChainSourceSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Somebody who is asked about the chain. Several are asked in the order in which they stand."""

    kind: Annotated[
        SourceKind,
        Meta(
            description="What it speaks: ARC, Arcade, WhatsOnChain, Block Headers Service, or an SV node's JSON-RPC",
            examples=["arc"],
        ),
    ]
    name: Annotated[str, Meta(max_length=64, description="What logs and metrics call it; empty: its kind")] = ""
    url: Annotated[
        str,
        Meta(
            description="Where it answers, up to what its own paths begin with; empty: WhatsOnChain's public service",
            examples=["https://arc.example"],
        ),
    ] = ""
    events_url: Annotated[str, Meta(description="Where an Arcade sends its events, if elsewhere than at url")] = ""
    headers_url: Annotated[str, Meta(description="Where an Arcade keeps its headers, if elsewhere than at url")] = ""
    file: Annotated[
        str,
        Meta(
            description="File with its token, or a node's user:password or cookie file; empty: none. Read when needed"
        ),
    ] = ""
    credential: Annotated[
        str, Meta(max_length=255, description="The same as a credential of the service manager, by its name")
    ] = ""
    rate: Annotated[
        float, Meta(ge=0, description="Requests a second; 0: 3 for WhatsOnChain, 20 to 100 for the others")
    ] = 0.0
    timeout: Annotated[Duration, Meta(description="One request, from its start to the last byte")] = Duration(10)
    allow_private: Annotated[
        tuple[str, ...],
        Meta(description='Networks that may be called for it although they are private or loopback: ["127.0.0.0/8"]'),
    ] = ()

    def __post_init__(self) -> None:
        """Raises ValueError."""
        if self.name and not _NAME.fullmatch(self.name):
            raise ValueError(f"{self.name!r}: a source's name is made of a-z, 0-9, _ and -")
        if not self.url and self.kind != "whatsonchain":
            raise ValueError(f"a source of the kind {self.kind} needs a url")
        if (self.events_url or self.headers_url) and self.kind != "arcade":
            raise ValueError("events_url and headers_url are an Arcade's")
        if self.file and self.credential:
            raise ValueError("the token is in a file or in a credential, not in both")
        for url in filter(None, (self.url, self.events_url, self.headers_url)):
            _check_url(url)
        parse_networks(self.allow_private)

    @property
    def requests_per_s(self) -> float:
        """The rate that counts."""
        return self.rate or RATES[self.kind]


class AskingSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How sources of the chain are asked."""

    source_requests: Annotated[int, Meta(ge=1, le=256, description="Requests to one source at the same time")] = 8
    source_wait: Annotated[
        Duration,
        Meta(description="Longest wait for a source's rate to allow a request; after it the next one is asked"),
    ] = Duration(10)
    source_answer_bytes: Annotated[Size, Meta(description="Body of one answer of a source")] = Size(8 << 20)
    backoff_first: Annotated[Duration, Meta(description="A source that failed is left alone for about so long")] = (
        Duration(1)
    )
    backoff_max: Annotated[
        Duration, Meta(description="The same after many failures; also the longest pause that a source can ask for")
    ] = Duration(300)
    header_interval: Annotated[Duration, Meta(description="Sources are asked for new blocks so often")] = Duration(30)
    tip_stale_after: Annotated[
        Duration, Meta(description="/readyz says so when the newest block is older than this")
    ] = Duration(7200)
    source_events: Annotated[
        int, Meta(ge=1, le=100_000, description="Events of sources that wait to be looked at; more are polled for")
    ] = 1000
    callback_entries: Annotated[
        int, Meta(ge=1, le=100_000, description="Transactions of one callback; more are refused")
    ] = 1000
    callback_bytes: Annotated[Size, Meta(description="Body of one callback")] = Size(4 << 20)


def _check_url(url: str) -> None:
    try:
        parse_url(url)
    except OutboundFailure as err:
        raise ValueError(f"{err.detail}, not {url!r}") from err
    if urlsplit(url).query:
        raise ValueError(f"a source's url has no query, but {url!r} does")
