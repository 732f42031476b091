"""What an entry means for the derived state: where its stream stands, its id, key, commitment and position."""

from overlayd.model.entry import Kind, StoredEntry
from overlayd.model.meta import decode_meta
from overlayd.storage.group import LogState, id_key, producers_commitment
from overlayd.storage.record import sealed_bytes


def replay_entry(state: LogState, entry: StoredEntry) -> None:
    """Adds a verified entry to memory. Each index leaves out what it has written out already."""
    if entry.kind != Kind.PACKET:
        return
    stream = state.book.find_by_hash(entry.stream_hash)
    if stream is None:
        return
    state.positions.add(stream.id, entry.sequence, entry.offset)
    head = stream.head
    if entry.offset > head.as_of:
        state.changed.add(stream)  # its stored row is behind, and a flush that skipped it would leave it so for ever
        head.sequence, head.leaf, head.last_packet_us = entry.sequence, entry.leaf, entry.appended_us
        if not entry.is_reduced:
            head.oldest_sequence = head.oldest_sequence or entry.sequence
            head.packets += 1
            head.bytes += sealed_bytes(entry)
    if entry.is_reduced:
        return  # its names are gone; `HashIndex.hold` kept the pairs that still count
    meta = decode_meta(entry.meta)
    if meta.id:
        state.ids.add(id_key(state.ids, entry.stream_hash, meta.id), entry.offset)
    if meta.key:
        state.keys.add(state.keys.key(meta.key.encode(), entry.stream_hash), entry.offset)
    commitment = producers_commitment(entry, meta)
    if commitment:
        state.commitments.add(state.commitments.key(commitment), entry.offset)
