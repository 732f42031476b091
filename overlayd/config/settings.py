"""What the node is told before it starts: the tables of the TOML, composed from the components' settings."""

from typing import Annotated

import msgspec
from msgspec import Meta

from overlayd.access.quotas import QuotaSettings
from overlayd.access.rates import RateSettings
from overlayd.access.settings import AccessSettings, KeySettings
from overlayd.access.usage import UsageSettings
from overlayd.chain.settings import ChainSettings
from overlayd.config.dialects import AgentPipeSettings
from overlayd.delivery.settings import DeliverySettings
from overlayd.delivery.subscriptions.declaring import DeclaredSubscription
from overlayd.delivery.webhooks.settings import WebhookSettings
from overlayd.model.definition import Definition
from overlayd.model.limits import Limits
from overlayd.model.logs import LogSettings
from overlayd.model.names import StreamName
from overlayd.net.settings import ListenSettings
from overlayd.signers.settings import NodeKeySettings
from overlayd.storage.backup.settings import BackupSettings
from overlayd.storage.retention.settings import RetentionSettings
from overlayd.storage.settings import StorageSettings
from overlayd.telemetry.settings import SentrySettings, TracesSettings

INLINE = Meta(extra={"inline": True})
"""Marks a struct whose keys stand in the table of the struct that holds it."""


class NodeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the node is called, and where its keys lie."""

    name: Annotated[str, Meta(max_length=128, description="Name shown to clients; empty: the host's name")] = ""
    keys: Annotated[NodeKeySettings, INLINE] = NodeKeySettings()


class MetricsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the node tells about itself."""

    enabled: Annotated[bool, Meta(description="Serve /metrics")] = True


class DefaultsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a stream is like when its definition doesn't say, and whether publishing creates one."""

    auto_create: Annotated[
        bool, Meta(description="Publishing to an unknown stream creates it (loopback and Unix clients only)")
    ] = True
    definition: Annotated[Definition, INLINE] = Definition()


class StreamSettings(msgspec.Struct, frozen=True):
    """One `[[streams]]`: a name and a definition, the rest of it from `[defaults]`."""

    name: StreamName
    definition: Definition
    declared_in: str
    """File and line, for the answer to whoever wants to change it through the API."""


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything the daemon is started with."""

    node: Annotated[NodeSettings, Meta(description="What the node is called, and where its keys lie")] = NodeSettings()
    listen: Annotated[ListenSettings, Meta(description="Where the node listens and whom it believes")] = (
        ListenSettings()
    )
    storage: Annotated[StorageSettings, Meta(description="Where the log lies and how hard it is held on to")] = (
        StorageSettings()
    )
    backup: Annotated[BackupSettings, Meta(description="Where copies of the log go, and what making one may take")] = (
        BackupSettings()
    )
    retention: Annotated[
        RetentionSettings, Meta(description="How what is too old or too much is taken away; the rules are the streams'")
    ] = RetentionSettings()
    limits: Annotated[Limits, Meta(description="Bounds on every queue, body, count, time and rate")] = Limits()
    defaults: Annotated[DefaultsSettings, Meta(description="What a stream is like when its definition doesn't say")] = (
        DefaultsSettings()
    )
    delivery: Annotated[DeliverySettings, Meta(description="How packets reach live readers")] = DeliverySettings()
    access: Annotated[AccessSettings, Meta(description="Who may come in, and how failing at it is answered")] = (
        AccessSettings()
    )
    keys: Annotated[tuple[KeySettings, ...], Meta(description="An API key; its secret stands elsewhere")] = ()
    rates: Annotated[RateSettings, Meta(description="How much a principal, stream or address may do per time")] = (
        RateSettings()
    )
    quotas: Annotated[QuotaSettings, Meta(description="Who is held to which quota")] = QuotaSettings()
    usage: Annotated[UsageSettings, Meta(description="What is remembered of who used how much")] = UsageSettings()
    webhooks: Annotated[WebhookSettings, Meta(description="What webhooks may call, and how their secrets change")] = (
        WebhookSettings()
    )
    chain: Annotated[
        ChainSettings, Meta(description="Which chain packets are confirmed on, and who is asked about it")
    ] = ChainSettings()
    agentpipe: Annotated[
        AgentPipeSettings, Meta(description="Being the server that AgentPipe's client streams conversations to")
    ] = AgentPipeSettings()
    log: Annotated[LogSettings, Meta(description="What the node writes to standard error")] = LogSettings()
    metrics: Annotated[MetricsSettings, Meta(description="What the node tells about itself")] = MetricsSettings()
    traces: Annotated[TracesSettings, Meta(description="Traces of packets, told to an OpenTelemetry collector")] = (
        TracesSettings()
    )
    sentry: Annotated[
        SentrySettings, Meta(description="Reports of the node's own faults, without what was in its hands")
    ] = SentrySettings()
    streams: tuple[StreamSettings, ...] = ()
    subscriptions: tuple[DeclaredSubscription, ...] = ()
