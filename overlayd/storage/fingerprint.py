"""Whether a packet is the same as one that was sent before: 16 salted bytes over its members as sent."""

import struct

from blake3 import blake3

from overlayd.model.draft import Draft
from overlayd.storage.record import FINGERPRINT_BYTES

_pack_lengths = struct.Struct(">9IB").pack


def fingerprint_of(draft: Draft, salt: bytes) -> bytes:
    """Salted with the entry's salt, so that it gives nothing away once the entry is erased."""
    if not (draft.type or draft.time or draft.source or draft.key or draft.topics or draft.metadata or draft.csalt):
        # The same bytes as below for what comes most, an id and data, without encoding seven empty members.
        packet_id, sent = draft.id.encode(), draft.compared
        lengths = _pack_lengths(len(packet_id), 0, 0, 0, 0, 0, 0, len(sent), 0, draft.is_octets)
        return blake3(b"".join((salt, lengths, packet_id, sent))).digest(FINGERPRINT_BYTES)
    members = (
        draft.id.encode(), draft.type.encode(), draft.time.encode(), draft.source.encode(), draft.key_compared.encode(),
        draft.topics, draft.metadata, draft.compared, draft.csalt,
    )  # fmt: skip
    lengths = _pack_lengths(*map(len, members), draft.is_octets)
    return blake3(b"".join((salt, lengths, *members, *_chain_members(draft)))).digest(FINGERPRINT_BYTES)


def is_same_as_sent(left: Draft, right: Draft) -> bool:
    """The same question for two drafts in hand."""
    return (
        left.compared == right.compared and left.type == right.type and left.time == right.time
        and left.source == right.source and left.key_compared == right.key_compared and left.topics == right.topics
        and left.metadata == right.metadata and left.is_octets == right.is_octets and left.csalt == right.csalt
        and left.id == right.id and _chain_members(left) == _chain_members(right)
    )  # fmt: skip


def _chain_members(draft: Draft) -> tuple[bytes, ...]:
    """What was sent about the chain: the transaction, however it was given, and the signature. They stand behind the
    data, whose length is told; packets with neither keep the fingerprint that they have."""
    if draft.brought is None and not draft.signature:
        return ()
    txid = b"" if draft.brought is None else draft.brought.txid
    return bytes((len(txid),)), txid, draft.signature
