"""Drafts on their way to the log, and what became of them."""

from typing import Any, Literal

import msgspec

from overlayd.model.confirmation import BroughtTx, ConfirmationState
from overlayd.model.errors import OverlaydError
from overlayd.model.names import StreamName

Z16 = bytes(16)
Z32 = bytes(32)


class Draft(msgspec.Struct, gc=False):
    """A packet that passed the pipeline and isn't in the log yet.

    `sent` is the JSON text of `data` as the producer sent it (log-format, Body); `body` is what is
    stored, the same object unless a stage changed it. `topics` and `metadata` are JSON texts cut like
    `sent`, b"" when absent. Text fields are "" when absent. `index` is the packet's place in its request.
    `is_key_derived`: the stream's definition found the key in the data; the producer sent none. `signature` is the
    JSON text of the packet's signature, `brought` its own transaction, both checked. `is_redacted`: `body`, `metadata`,
    `source` and `key` are what the stream's rules left, and `…_unredacted` is what was sent.
    """

    index: int
    sent: bytes
    body: bytes
    id: str = ""
    type: str = ""
    time: str = ""
    source: str = ""
    key: str = ""
    topics: bytes = b""
    metadata: bytes = b""
    is_octets: bool = False
    csalt: bytes = b""
    hops: int = 0
    traceparent: str = ""
    principal: str = ""
    derived_from: tuple[int, ...] = ()
    is_key_derived: bool = False
    signature: bytes = b""
    brought: BroughtTx | None = None
    is_redacted: bool = False
    metadata_unredacted: bytes = b""
    source_unredacted: str = ""
    key_unredacted: str = ""

    @property
    def compared(self) -> bytes:
        """The data by which a repeat is told: as sent, but without what a redacting stage took out."""
        return self.body if self.is_redacted else self.sent

    @property
    def metadata_sent(self) -> bytes:
        """The metadata as the producer sent it, which its commitment covers."""
        return self.metadata_unredacted if self.is_redacted else self.metadata

    @property
    def source_sent(self) -> str:
        """The source as the producer sent it."""
        return self.source_unredacted if self.is_redacted else self.source

    @property
    def key_sent(self) -> str:
        """The key that the producer sent, which its commitment covers; "" where the definition found one."""
        return self.key_unredacted if self.is_redacted else self.key_compared

    @property
    def key_compared(self) -> str:
        """The key by which a repeat is told: what rules left of the one that was sent."""
        return "" if self.is_key_derived else self.key


class AppendRequest(msgspec.Struct, gc=False):
    """What one producer's request wants appended to one stream, judged as a whole (log-format, Appending).

    `atomic`: all or none. `expected_sequence`: the stream's last sequence before this request, or None.
    `may_create`: the stream may come into being with the node's defaults. `definition_version`: the
    version whose schema judged the drafts; the writer refuses with DefinitionConflict when the stream
    has another by then, and the caller judges again. 0 = judged without a definition (unknown stream).
    `along`: SQL and values that run in the same transaction if the request isn't refused; they mustn't fail.
    """

    stream: StreamName
    drafts: list[Draft]
    atomic: bool = False
    expected_sequence: int | None = None
    may_create: bool = False
    definition_version: int = 0
    along: tuple[tuple[str, tuple[Any, ...]], ...] = ()


class Receipt(msgspec.Struct, gc=False):
    """What a producer gets for a durable packet. `duplicate`: it was durable before this request.

    After retention took a packet, what is no longer known is b"" (content_hash, commitment). `txid` is in internal
    order, b"" while there is none.
    """

    index: int
    stream: StreamName
    sequence: int
    offset: int
    epoch: int
    packet_id: str
    content_hash: bytes
    leaf: bytes
    appended_us: int
    duplicate: bool = False
    commitment: bytes = b""
    txid: bytes = b""
    confirmation_status: ConfirmationState = "none"


class Refusal(msgspec.Struct, gc=False):
    """A draft that the writer didn't take, and why. Nothing of it is in the log."""

    index: int
    error: OverlaydError


class AppendResult(msgspec.Struct, gc=False):
    """One outcome per draft in the request's order, judged after the commit."""

    outcomes: list[Receipt | Refusal]
    head: int
    head_sequence: int
    created: bool = False


StreamStateName = Literal["active", "paused", "stopped"]
