"""Forgetting ids and keys that nobody can ask for any more, a whole run of their index at a time."""

import sqlite3

from overlayd.storage import queries
from overlayd.storage.group import LogState
from overlayd.storage.streams import Stream


def drop_expired(connection: sqlite3.Connection, state: LogState) -> None:
    """Drops runs of ids and keys older than every stream's window and than every packet that is kept.

    Never of commitments: these are used for ever. For the writer's thread, in a transaction whose step for both
    indexes this is. Costs a search over the log, and 10 µs for each stream if there is something to drop. Time is
    that of the newest entry, so a clock that runs ahead without appending anything drops nothing.
    """
    streams = state.book.list_active()
    window_s = max((max(s.definition.dedup.window, s.definition.retention.max_age) for s in streams), default=0.0)
    oldest_us = state.last_us - int(window_s * 1_000_000)
    floor = queries.find_offset_at(connection, state.minimum_index + 1, state.head.offset, oldest_us)
    if not (state.ids.has_run_before(floor) or state.keys.has_run_before(floor)):
        return
    kept = [_oldest_kept(connection, state, stream) for stream in streams if stream.packets]
    floor = min([floor, *kept])
    state.ids.drop_before(connection, floor)
    state.keys.drop_before(connection, floor)


def _oldest_kept(connection: sqlite3.Connection, state: LogState, stream: Stream) -> int:
    """No packet of the stream that is kept has a smaller offset."""
    return state.positions.find(connection, stream.id, stream.oldest_sequence) or 0
