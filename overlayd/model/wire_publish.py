"""What producers send over HTTP, as the served documents and clients know it."""

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from overlayd.model.wire import TxIdText


class PacketIn(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A packet object as producers send it. Exactly one of `data` and `data_base64`.

    For the served documents and for clients; the node's decoder (pipeline/decode.py) is stricter.
    """

    data: Annotated[Raw, Meta(description="Any JSON value")] | UnsetType = UNSET
    data_base64: Annotated[str, Meta(description="Octets instead of data, canonical base64")] | UnsetType = UNSET
    id: Annotated[str, Meta(min_length=1, max_length=128, description="Repeats of it are recognized")] | UnsetType = (
        UNSET
    )
    type: Annotated[str, Meta(min_length=1, max_length=128)] | UnsetType = UNSET
    time: Annotated[str, Meta(description="RFC 3339 with a zone")] | UnsetType = UNSET
    source: Annotated[str, Meta(min_length=1)] | UnsetType = UNSET
    key: Annotated[str, Meta(min_length=1, max_length=128)] | UnsetType = UNSET
    topics: list[Annotated[str, Meta(max_length=128)]] | UnsetType = UNSET
    metadata: dict[str, Any] | UnsetType = UNSET
    salt: Annotated[str, Meta(description="16 bytes, canonical base64: asks for a commitment")] | UnsetType = UNSET
    tx: (
        Annotated[
            str | list[Annotated[int, Meta(ge=0, le=255)]],
            Meta(description="The packet's own transaction (raw, Extended Format, BEEF), hex or an array of numbers"),
        ]
        | UnsetType
    ) = UNSET
    txid: TxIdText | UnsetType = UNSET
    signature: Annotated[str, Meta(description="BRC-77 over the commitment, canonical base64")] | UnsetType = UNSET
