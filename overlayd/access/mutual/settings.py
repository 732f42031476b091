"""`[access.mutual]`: sessions of clients and the node that have proven to each other who they are."""

from typing import Annotated

import msgspec
from msgspec import Meta

from overlayd.model.units import Duration, Size


class MutualSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many sessions there may be, for how long, and what they may hold."""

    enabled: Annotated[bool, Meta(description="Identities may come in by mutual authentication")] = True
    handshake_ttl: Annotated[Duration, Meta(description="From a handshake to the first request that proves it")] = (
        Duration(60)
    )
    handshakes_max: Annotated[
        int, Meta(ge=1, description="Sessions that nothing has proven yet; with more, the oldest gives way")
    ] = 10_000
    handshake_bytes: Annotated[Size, Meta(description="A message of the handshake")] = Size(16 << 10)
    session_ttl: Annotated[Duration, Meta(description="A session ends, and the client shakes hands again")] = Duration(
        43_200
    )
    session_idle: Annotated[Duration, Meta(description="A session without requests ends after it")] = Duration(3600)
    peer_sessions_max: Annotated[
        int, Meta(ge=1, description="Sessions; with more, the one used longest ago gives way")
    ] = 10_000
    peer_sessions_each: Annotated[int, Meta(ge=1, description="Of them, those of one identity")] = 100
    requests_per_session: Annotated[int, Meta(ge=1, description="Requests after which a session ends")] = 50_000
    peer_nonces_max: Annotated[
        int, Meta(ge=1, description="Nonces that all sessions remember; with more, the session used longest ago gives way")
    ] = 1_000_000  # fmt: skip
    signed_answer_bytes: Annotated[
        Size, Meta(description="An answer that the node signs, which it holds whole for that")
    ] = Size(8 << 20)
