"""Tables `[traces]` and `[sentry]`: whom the node tells of what it does, and of its own faults."""

from typing import Annotated

import msgspec
from msgspec import Meta

from overlayd.model.errors import OutboundFailure
from overlayd.model.units import Duration
from overlayd.outbound.networks import parse_networks
from overlayd.outbound.url import parse_url
from overlayd.telemetry.dsn import parse_dsn

LOOPBACK = ("127.0.0.0/8", "::1/128")
_Private = Annotated[
    tuple[str, ...],
    Meta(description="Networks that may be called for it although they are private or loopback"),
]


class TracesSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Traces of packets, told to an OpenTelemetry collector."""

    endpoint: Annotated[
        str,
        Meta(
            description="Where the collector takes OTLP over HTTP, up to what /v1/traces follows; empty: no traces",
            examples=["http://127.0.0.1:4318"],
        ),
    ] = ""
    sample: Annotated[
        float,
        Meta(
            ge=0, le=1,
            description="Share of publish requests without a trace of their own that begin one; those that come with one decide themselves",
        ),
    ] = 0.01  # fmt: skip
    spans_max: Annotated[int, Meta(ge=1, description="Spans that wait to be sent; further ones are dropped")] = 10_000
    packets_max: Annotated[
        int, Meta(ge=1, description="Packets of one request, or of one write to readers, that are followed")
    ] = 100
    interval: Annotated[Duration, Meta(description="Spans are sent so often")] = Duration(2)
    timeout: Annotated[Duration, Meta(description="One request to the collector, from start to end")] = Duration(10)
    file: Annotated[
        str, Meta(description="File with the value of the Authorization header that the collector wants; empty: none")
    ] = ""
    allow_private: _Private = LOOPBACK

    def __post_init__(self) -> None:
        """Raises ValueError for an endpoint that can't be called."""
        parse_networks(self.allow_private)
        if self.endpoint:
            try:
                parse_url(self.endpoint)
            except OutboundFailure as err:
                raise ValueError(f"endpoint: {err.detail}") from err


class SentrySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Reports of the node's own faults, without what was in its hands."""

    dsn: Annotated[
        str,
        Meta(
            description="Where unforeseen errors are reported, as Sentry and what speaks like it name the place; empty: nowhere",
            examples=["https://KEY@sentry.example/1"], extra={"secret": True},
        ),
    ] = ""  # fmt: skip
    environment: Annotated[str, Meta(max_length=64, description="Told along, to tell nodes apart")] = "production"
    reports_max: Annotated[int, Meta(ge=1, description="Reports that wait to be sent; further ones are dropped")] = 100
    repeat_pause: Annotated[Duration, Meta(description="The same fault is reported so often at most")] = Duration(60)
    timeout: Annotated[Duration, Meta(description="One request, from start to end")] = Duration(10)
    allow_private: _Private = LOOPBACK

    def __post_init__(self) -> None:
        """Raises ValueError for a DSN that is none."""
        parse_networks(self.allow_private)
        if self.dsn:
            parse_dsn(self.dsn)
