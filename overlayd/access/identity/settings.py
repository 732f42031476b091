"""`[access.identity]` and `[[access.identities]]`: clients that are known by a public key, and how they sign."""

import re
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from overlayd.access.named_scopes import POLICY_TEXT, ROLES_TEXT, SCOPES_TEXT, check_named_scopes

SchemeName = Literal["", "preimage-v1", "body-nonce"]
_SCHEMES = (
    '"preimage-v1" signs "Gitdata-Req|v1|", nonce, "|" and the body\'s SHA-256 in hex, "body-nonce" body and nonce'
)
_KEY = re.compile(r"0[23][0-9a-f]{64}", re.ASCII)


class KnownIdentitySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Somebody, and what they may do."""

    name: Annotated[
        str, Meta(max_length=64, description="What the node calls them: a-z, 0-9, _ and -", examples=["farm-1"])
    ]
    key: Annotated[
        str, Meta(max_length=66, description="Public key: 66 hex digits, compressed", examples=["02" + "ab" * 32])
    ]
    scheme: Annotated[
        SchemeName, Meta(description=f"How they sign X-Signature; empty: as [access.identity] says. {_SCHEMES}")
    ] = ""
    scopes: Annotated[tuple[str, ...], Meta(description=SCOPES_TEXT)] = ()
    roles: Annotated[tuple[str, ...], Meta(description=ROLES_TEXT)] = ()
    owner: Annotated[
        str, Meta(max_length=128, description="Who they are as an owner of streams; empty: their name")
    ] = ""
    policy: Annotated[str, Meta(max_length=64, description=POLICY_TEXT)] = ""

    def __post_init__(self) -> None:
        """Raises ValueError. Whether the key is a point of the curve shows when the node starts."""
        check_named_scopes(self.name, self.scopes)
        if _KEY.fullmatch(self.key) is None:
            raise ValueError(f"{self.name}: a key is 66 digits of lower-case hex that begin with 02 or 03")


class IdentitySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What holds for all of them."""

    scheme: Annotated[
        SchemeName,
        Meta(
            description="How X-Signature is made where an identity doesn't say; empty: the header isn't taken, and "
            f"identities come by mutual authentication alone. {_SCHEMES}"
        ),
    ] = ""
    anyone: Annotated[
        tuple[str, ...],
        Meta(description="Scopes of keys that [[access.identities]] doesn't list; empty: they aren't let in"),
    ] = ()
    anyone_policy: Annotated[
        str, Meta(max_length=64, description="Quota policy of such keys; empty: the default one")
    ] = ""
    clock_nonces_max: Annotated[
        int, Meta(ge=1, description="X-Nonces of the last time that are remembered; with more, nobody's request is taken")
    ] = 500_000  # fmt: skip
    clock_nonces_each: Annotated[int, Meta(ge=1, description="Of them, those of one identity")] = 100_000
    durable_nonces_each: Annotated[
        int, Meta(ge=1, description='X-Nonces of one identity that are stored for good with nonce_mode = "durable"')
    ] = 10_000_000

    def __post_init__(self) -> None:
        """Raises ValueError."""
        check_named_scopes("anyone", self.anyone)
