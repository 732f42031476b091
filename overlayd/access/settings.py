"""Tables `[access]` and `[[keys]]`: who may come in, and what they may do."""

import re
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from overlayd.access.identity.settings import IdentitySettings, KnownIdentitySettings
from overlayd.access.jwt.settings import JwtSettings
from overlayd.access.mutual.settings import MutualSettings
from overlayd.access.named_scopes import POLICY_TEXT, ROLES_TEXT, SCOPES_TEXT, check_named_scopes
from overlayd.access.secret_text import parse_digest
from overlayd.model.clock import parse_time_us
from overlayd.model.errors import OverlaydError
from overlayd.model.units import Duration, Size


class RoleSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A named set of scopes. One with the name of a built-in role takes its place."""

    name: Annotated[str, Meta(max_length=64, description="What keys call it", examples=["weather-station"])]
    scopes: Annotated[tuple[str, ...], Meta(description=SCOPES_TEXT)] = ()

    def __post_init__(self) -> None:
        """Raises ValueError."""
        check_named_scopes(self.name, self.scopes)


class UnixUserSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What users of this machine may do over the Unix sockets without a key."""

    name: Annotated[str, Meta(max_length=64, description="What the node calls them", examples=["collectd"])]
    uid: Annotated[int, Meta(ge=-1, description="User id; -1: any")] = -1
    gid: Annotated[int, Meta(ge=-1, description="Group id, primary or further; -1: any")] = -1
    scopes: Annotated[tuple[str, ...], Meta(description=SCOPES_TEXT)] = ()
    roles: Annotated[tuple[str, ...], Meta(description=ROLES_TEXT)] = ()

    def __post_init__(self) -> None:
        """Raises ValueError."""
        check_named_scopes(self.name, self.scopes)
        if self.uid < 0 and self.gid < 0:
            raise ValueError(f"{self.name}: say which uid or gid it is")


class CertificateSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whose client certificates let in whom, and what they may do. What is given must fit; the first rule counts."""

    name: Annotated[
        str, Meta(max_length=64, description="What the node calls them: a-z, 0-9, _ and -", examples=["presses"])
    ]
    subject: Annotated[
        str,
        Meta(
            max_length=1024, examples=["CN=*,O=Example"],
            description='Subject as in RFC 4514, the most specific part first; "*" stands for letters, digits and -._@:/',
        ),
    ] = ""  # fmt: skip
    san: Annotated[
        str,
        Meta(max_length=1024, description='One of its alternative names: "DNS:press-7.example", "URI:…", "email:…", "IP:…"'),
    ] = ""  # fmt: skip
    fingerprint: Annotated[str, Meta(max_length=71, description='Of the whole certificate: "sha256:<64 hex>"')] = ""
    owner: Annotated[str, Meta(max_length=128, description="Whose it is; empty: its name and what * stood for")] = ""
    scopes: Annotated[tuple[str, ...], Meta(description=SCOPES_TEXT)] = ()
    roles: Annotated[tuple[str, ...], Meta(description=ROLES_TEXT)] = ()
    policy: Annotated[str, Meta(max_length=64, description=POLICY_TEXT)] = ""

    def __post_init__(self) -> None:
        """Raises ValueError."""
        check_named_scopes(self.name, self.scopes)
        if not (self.subject or self.san or self.fingerprint):
            raise ValueError(f"{self.name}: say which subject, san or fingerprint it is")
        if self.fingerprint and re.fullmatch(r"sha256:[0-9a-f]{64}", self.fingerprint) is None:
            raise ValueError(
                f"{self.name}: not a fingerprint; write sha256: and 64 digits of lower-case hex, no colons"
            )
        for text in (self.subject, self.san):
            if text.count("*") > 4 or "**" in text:
                raise ValueError(f"{self.name}: at most 4 stars, none beside another")
        if self.san and self.san.split(":")[0] not in ("DNS", "URI", "email", "IP"):
            raise ValueError(f"{self.name}: an alternative name begins with DNS:, URI:, email: or IP:")


class KeySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An API key that the configuration declares. Its secret stands elsewhere; several may count at once."""

    name: Annotated[str, Meta(max_length=64, description="The key's id: a-z, 0-9, _ and -", examples=["press-7"])]
    hashes: Annotated[
        tuple[str, ...],
        Meta(
            description='Hashes of its secrets, "sha256:<hex>"; `overlayd keys generate` draws one and shows its hash',
            extra={"secret": True},
        ),
    ] = ()  # fmt: skip
    file: Annotated[
        str, Meta(description="File with the secrets, one a line, readable by the service alone; empty: none")
    ] = ""
    credential: Annotated[
        str, Meta(max_length=255, description="The same as a credential of the service manager, by its name")
    ] = ""
    owner: Annotated[str, Meta(max_length=128, description="Whose it is; empty: the key's name")] = ""
    scopes: Annotated[tuple[str, ...], Meta(description=SCOPES_TEXT)] = ()
    roles: Annotated[tuple[str, ...], Meta(description=ROLES_TEXT)] = ()
    expires: Annotated[str, Meta(max_length=40, description="RFC 3339 time at which it ends; empty: never")] = ""
    policy: Annotated[str, Meta(max_length=64, description=POLICY_TEXT)] = ""
    declared_in: Annotated[str, Meta(extra={"filled_in": True})] = ""
    """File and line, for the answer to whoever wants to change it through the API."""

    def __post_init__(self) -> None:
        """Raises ValueError. What stands in the file and the credential is read when the node starts."""
        check_named_scopes(self.name, self.scopes)
        try:
            for text in self.hashes:
                parse_digest(text)
        except OverlaydError as err:
            raise ValueError(f"{self.name}: {err.detail}") from err
        if not (self.hashes or self.file or self.credential):
            raise ValueError(f"{self.name}: a key needs hashes, a file or a credential")
        if self.expires:
            parse_time_us(self.expires)

    @property
    def expires_us(self) -> int:
        """0 for never."""
        return (parse_time_us(self.expires) or 1) if self.expires else 0


class AccessSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who may come in, and how failing at it is answered."""

    loopback_free: Annotated[
        bool, Meta(description="Clients on this machine need no key to publish and read even though keys exist")
    ] = False
    signed_body_max: Annotated[Size, Meta(description="Body of a request whose signature covers it")] = Size(1 << 20)
    failures_per_address: Annotated[
        int, Meta(ge=1, description="Wrong credentials from one address (IPv6: one /64) before it is slowed down")
    ] = 10
    failure_forgiven: Annotated[Duration, Meta(description="One wrong credential is forgiven in this time")] = Duration(
        6
    )
    failure_addresses: Annotated[
        int, Meta(ge=16, description="Addresses whose wrong credentials are remembered; the oldest give way")
    ] = 10_000
    keys_max: Annotated[int, Meta(ge=1, description="API keys on the node")] = 200_000
    secrets_per_key: Annotated[int, Meta(ge=2, description="Secrets of one key that count at the same time")] = 4
    rotation_grace: Annotated[
        Duration, Meta(description="A secret goes on for so long after its key was rotated, unless the request says else")
    ] = Duration(86_400)  # fmt: skip
    rotation_grace_max: Annotated[Duration, Meta(description="Longest that a rotated secret may go on")] = Duration(
        30 * 86_400
    )
    ticket_ttl: Annotated[Duration, Meta(description="A ticket must be used within it, unless asked for otherwise")] = (
        Duration(60)
    )
    ticket_ttl_max: Annotated[Duration, Meta(description="Longest that a ticket may wait to be used")] = Duration(600)
    tickets_max: Annotated[int, Meta(ge=1, description="Tickets that wait to be used")] = 10_000
    tickets_per_principal: Annotated[
        int, Meta(ge=1, description="Tickets of one principal that wait to be used; fewer than in all")
    ] = 1000
    audit_pending: Annotated[int, Meta(ge=1, description="Audit records that wait to be written")] = 1024
    audit_repeats: Annotated[
        Duration, Meta(description="Equal audit records within it are written once, then counted")
    ] = Duration(60)
    audit_repeats_max: Annotated[
        int, Meta(ge=1, description="Different audit records that are being counted; more are counted together")
    ] = 1024
    roles: Annotated[tuple[RoleSettings, ...], Meta(description="A named set of scopes")] = ()
    unix_users: Annotated[
        tuple[UnixUserSettings, ...], Meta(description="A user or group of this machine, told by the Unix socket")
    ] = ()
    certificates: Annotated[
        tuple[CertificateSettings, ...],
        Meta(description="Holders of client certificates, as a [[listen.tls]] with `client_ca` asks for them"),
    ] = ()
    jwt: Annotated[tuple[JwtSettings, ...], Meta(description="An issuer of JSON Web Tokens whose word counts")] = ()
    jwt_bytes: Annotated[Size, Meta(description="A token; longer ones aren't looked at")] = Size(8 << 10)
    jwt_tokens_kept: Annotated[
        int, Meta(ge=0, description="Tokens that were checked and needn't be again; the one used longest ago gives way")
    ] = 10_000
    jwks_bytes: Annotated[Size, Meta(description="A set of keys that an issuer publishes")] = Size(256 << 10)
    jwks_keys_max: Annotated[int, Meta(ge=1, description="Usable keys of one issuer; further ones don't count")] = 32
    jwks_timeout: Annotated[Duration, Meta(description="Fetching a set of keys")] = Duration(10)
    jwks_refresh: Annotated[Duration, Meta(description="Published keys are fetched anew after it")] = Duration(900)
    jwks_stale_max: Annotated[
        Duration,
        Meta(description="Keys go on for so long while their issuer can't be reached; then its tokens don't count"),
    ] = Duration(86_400)
    jwks_refetch_min: Annotated[
        Duration, Meta(description="A token with an unknown key makes the node fetch the keys, at most this often")
    ] = Duration(30)
    signature_ttl: Annotated[
        Duration, Meta(description="How far X-Nonce, a time, may be from the node's clock, either way")
    ] = Duration(300)
    nonce_mode: Annotated[
        Literal["clock", "durable"],
        Meta(
            description='"clock": X-Nonce must be a Unix time; "durable": any text that this identity never sent before, '
            "all of which are stored for good"
        ),
    ] = "clock"
    identity: Annotated[
        IdentitySettings, Meta(description="Clients that sign their requests with a key of their own")
    ] = IdentitySettings()
    identities: Annotated[
        tuple[KnownIdentitySettings, ...], Meta(description="Somebody who is known by a public key on secp256k1")
    ] = ()
    mutual: Annotated[
        MutualSettings, Meta(description="Mutual authentication of identities and the node (BRC-103, BRC-104)")
    ] = MutualSettings()
