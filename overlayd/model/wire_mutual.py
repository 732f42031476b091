"""The bodies of handshakes of mutual authentication (BRC-103, BRC-104), as `@bsv/sdk` writes and reads them."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

_Key = Annotated[str, Meta(description="Public key: 66 hex digits, compressed", max_length=66)]
_Nonce = Annotated[str, Meta(description="16 to 64 bytes in base64; 48 are best: they need no padding", max_length=128)]
_Version = Annotated[str, Meta(description="Of the protocol", examples=["0.1"], max_length=16)]


class HandshakeIn(msgspec.Struct, frozen=True, rename="camel"):
    """The first message of a session. Further members are passed over: the node has no certificates to show."""

    version: _Version
    message_type: Annotated[str, Meta(description="initialRequest", max_length=64)]
    identity_key: _Key = ""
    initial_nonce: _Nonce = ""


class RequestedCertificates(msgspec.Struct, frozen=True):
    """Nothing: the node asks for no certificates."""

    certifiers: Annotated[tuple[str, ...], Meta(description="Nobody's")] = ()
    types: Annotated[dict[str, Any], Meta(description="None")] = {}


class HandshakeBody(msgspec.Struct, frozen=True, rename="camel"):
    """The node's answer: its nonce names the session."""

    version: _Version
    message_type: Literal["initialResponse"]
    identity_key: Annotated[str, Meta(description="The node's public key: 66 hex digits, compressed")]
    initial_nonce: Annotated[str, Meta(description="The node's nonce, 48 bytes in base64")]
    your_nonce: Annotated[str, Meta(description="The client's nonce")]
    requested_certificates: RequestedCertificates
    signature: Annotated[
        list[int], Meta(description="DER signature over both nonces, with a key that only both sides can derive")
    ]
