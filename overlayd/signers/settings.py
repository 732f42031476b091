"""`[node] …_key`: where the node's own keys lie."""

from typing import Annotated

import msgspec
from msgspec import Meta


class NodeKeySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Places of keys: `file:PATH`, `credential:NAME` or `pkcs11:…` (RFC 7512); empty: a file in the data directory."""

    checkpoint_key: Annotated[
        str,
        Meta(
            description="Ed25519 key that signs checkpoints: file:, credential: or pkcs11:; empty: DIR/keys/log.ed25519"
        ),
    ] = ""
    checkpoint_key_next: Annotated[
        str, Meta(description="The key that `overlayd keys rotate-node` changes to; empty: a new file in DIR/keys")
    ] = ""
    identity_key: Annotated[
        str,
        Meta(
            description="secp256k1 key by which others know the node: file: or credential:; empty: DIR/keys/identity.key"
        ),
    ] = ""
    wallet_key: Annotated[
        str,
        Meta(
            description="secp256k1 key that holds the node's coins: file:, credential: or pkcs11:; empty: DIR/keys/wallet.key"
        ),
    ] = ""
