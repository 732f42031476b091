"""Packets by what they are called: the newest of a stream or key, and those with an id."""

from collections.abc import Awaitable, Callable
from functools import partial

import structlog
import trio

from overlayd.model.entry import StoredEntry
from overlayd.model.errors import DamagedEntry
from overlayd.model.meta import decode_meta
from overlayd.storage import queries
from overlayd.storage.group import LogState, id_key
from overlayd.storage.judge import is_packet_of
from overlayd.storage.positions import read_stored_back
from overlayd.storage.readers import ReaderPool
from overlayd.storage.streams import Stream

ReadEntry = Callable[[int], Awaitable[StoredEntry]]

BACK_ROWS = 1000
"""Packets looked at in one step towards the newest one that is kept."""

_log = structlog.get_logger("storage.searching")


async def find_last(
    state: LogState, readers: ReaderPool, read_entry: ReadEntry, stream: Stream, key: str | None
) -> StoredEntry | None:
    """The newest packet that is kept, of a key if one is given; None when there is none. A checkpoint."""
    if key is None:
        offset = await _find_newest_kept(state, readers, stream)
        offsets = [] if offset is None else [offset]
    else:
        keys, name = state.keys, key.encode()
        hashed = keys.key(name, stream.stream_hash)
        found = set(keys.recent(hashed))
        if keys.maybe_stored(hashed):
            found.update((await readers.read(lambda c: keys.read_stored(c, [hashed])))[hashed])
        offsets = sorted(found, reverse=True)
    await trio.lowlevel.checkpoint()
    for offset in offsets:
        if not state.minimum_index < offset <= state.head.offset:
            continue
        entry = await read_entry(offset)
        if entry.is_reduced or entry.stream_hash != stream.stream_hash:
            continue
        if key is None or decode_meta(entry.meta).key == key:
            return entry
    return None


async def find_by_id(state: LogState, readers: ReaderPool, read_entry: ReadEntry, packet_id: str) -> list[StoredEntry]:
    """The kept packets with this id in any stream, oldest first; damaged ones are left out. A checkpoint."""
    ids = state.ids
    prefix = ids.prefix(packet_id.encode())
    pairs = set(ids.recent_like(prefix))
    pairs.update(await readers.read(lambda c: ids.read_stored_like(c, prefix)))
    entries = []
    for hashed, offset in sorted(pairs, key=lambda pair: pair[1]):
        if not state.minimum_index < offset <= state.head.offset:
            continue
        try:
            entry = await read_entry(offset)
        except DamagedEntry:  # it may be another packet whose hash collides, and the others are sound
            _log.error("damaged entry left out of a search", offset=offset)
            continue
        if entry.is_reduced or id_key(ids, entry.stream_hash, packet_id) != hashed:
            continue
        if is_packet_of(entry, entry.stream_hash, packet_id):
            entries.append(entry)
    return entries


async def _find_newest_kept(state: LogState, readers: ReaderPool, stream: Stream) -> int | None:
    """Where the newest packet that isn't reduced stands; looks backwards, a bounded step at a time."""
    positions, sequence, limit = state.positions, stream.head_sequence, 1
    while stream.packets and sequence >= stream.oldest_sequence:
        found = positions.read_recent_back(stream.id, sequence, limit)
        if not found:
            read = partial(read_stored_back, stream=stream.id, sequence=sequence, limit=limit)
            found = await readers.read(read)
        if not found:
            return None
        newest = state.tail.find(found[0][1])
        if newest is not None and not newest.is_reduced:
            return newest.offset
        kept = await readers.read(partial(queries.find_kept, offsets=[offset for _, offset in found]))
        if kept is not None:
            return kept
        sequence, limit = found[-1][0] - 1, BACK_ROWS
    return None
