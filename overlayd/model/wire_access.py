"""The bodies about keys and tickets, as they travel (docs/api.md, Keys and tickets)."""

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from overlayd.model.wire import Time

Scopes = Annotated[
    list[Annotated[str, Meta(max_length=256)]],
    Meta(description="Rights, maybe over a pattern of streams", examples=[["publish:weather.*", "read"]], max_length=256),
]  # fmt: skip
Roles = Annotated[list[Annotated[str, Meta(max_length=64)]], Meta(description="Named sets of scopes", max_length=64)]
_Owner = Annotated[str, Meta(max_length=128, description="Whose it is")]


class KeySecretBody(msgspec.Struct, kw_only=True):
    """One secret of a key, which counts until its end."""

    prefix: Annotated[str, Meta(description="How it begins; empty where only its hash is known")]
    created_at: Time
    expires_at: Time | UnsetType = UNSET


class KeyBody(msgspec.Struct, kw_only=True):
    """An API key, without its secret."""

    id: Annotated[str, Meta(description="Id; principals of the key are called key:<id>")]
    kind: Literal["ovl", "ap"]
    title: str | UnsetType = UNSET
    owner: _Owner
    scopes: Scopes
    roles: Roles
    policy: Annotated[str, Meta(description="Quota policy")] | UnsetType = UNSET
    state: Annotated[Literal["active", "expired"], Meta(description="Whether it counts now")]
    created_at: Time
    created_by: Annotated[str, Meta(description="Principal that made it, or config")]
    expires_at: Time | UnsetType = UNSET
    last_used_at: Annotated[Time | UnsetType, Meta(description="Right to about a minute")] = UNSET
    declared_in: Annotated[str, Meta(description="Where the configuration declares it")] | UnsetType = UNSET
    secrets: list[KeySecretBody]


class KeyMade(KeyBody, kw_only=True):
    """A key with a new secret."""

    key: Annotated[str, Meta(description="The secret: shown now and never again")]


class KeyIn(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A key that is to be made."""

    kind: Annotated[Literal["ovl", "ap"], Meta(description="ap: for AgentPipe clients")] = "ovl"
    title: Annotated[str, Meta(max_length=200, description="For people")] = ""
    owner: Annotated[str, Meta(max_length=128, description="Whose it is; empty: whoever makes it")] = ""
    scopes: Scopes = []
    roles: Roles = []
    expires_at: Annotated[str, Meta(max_length=40, description="RFC 3339 time; left out: never")] | UnsetType = UNSET
    policy: Annotated[str, Meta(max_length=64, description="Quota policy; empty: the default one")] = ""


class KeyChangeIn(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What of a key is to be different. What is left out stays."""

    title: Annotated[str, Meta(max_length=200, description="For people")] | UnsetType = UNSET
    owner: Annotated[str, Meta(min_length=1, max_length=128, description="Whose it is")] | UnsetType = UNSET
    scopes: Scopes | UnsetType = UNSET
    roles: Roles | UnsetType = UNSET
    expires_at: Annotated[str, Meta(max_length=40, description="RFC 3339 time; null: never")] | UnsetType | None = UNSET
    policy: Annotated[str, Meta(max_length=64, description="Quota policy; empty: the default one")] | UnsetType = UNSET


class KeyRotation(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """How a key's secret is replaced."""

    grace: Annotated[str, Meta(max_length=32, description="How long old secrets go on, such as 1h; 0s: not at all")] | UnsetType = UNSET  # fmt: skip


class KeyList(msgspec.Struct, kw_only=True):
    """Answer of `GET /v1/keys`."""

    keys: list[KeyBody]
    next_after: Annotated[str | UnsetType, Meta(description="Give it as `after` to go on; left out at the end")] = UNSET


class TicketIn(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A ticket that is wanted."""

    scopes: Annotated[Scopes | UnsetType, Meta(description="Less than the asker's own; left out: all of them")] = UNSET
    ttl: Annotated[str, Meta(max_length=32, description="How long it may wait to be used, such as 30s")] | UnsetType = UNSET  # fmt: skip


class TicketBody(msgspec.Struct, kw_only=True):
    """A ticket: opens one live connection."""

    ticket: Annotated[str, Meta(description="Goes into the URL: /v1/live?ticket=…")]
    expires_at: Time
