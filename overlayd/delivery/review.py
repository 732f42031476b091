"""Whether those who are in may stay: asked when keys, rights or streams have changed."""

import trio

from overlayd.access import Principal
from overlayd.access.stream_guard import StreamGuard
from overlayd.delivery.session import (
    CLOSE_FORBIDDEN,
    CLOSE_GOING_AWAY,
    CLOSE_UNAUTHORIZED,
    Ending,
    Registry,
    Session,
)

SESSIONS_PER_TURN = 500
CHANGED = Ending(CLOSE_GOING_AWAY, "access.changed", 0.0)
"""Other rights go with the same credential now: who connects again gets them."""
FORBIDDEN = Ending(CLOSE_FORBIDDEN, "access.forbidden")


async def review_sessions(registry: Registry, streams: StreamGuard, now_us: int) -> int | None:
    """Ends the sessions that have lost what they were let in by; gives when the next one will expire, None for never.

    Lets others run between some of them. Checkpoint.
    """
    next_us: int | None = None
    for number, session in enumerate(registry.sessions()):
        if number % SESSIONS_PER_TURN == 0:
            await trio.lowlevel.checkpoint()
        if session.ending is not None or session.who is None:
            continue
        ending = _judge(session, session.who, streams, now_us)
        if ending is not None:
            session.end(ending)
        elif session.who.expires_us:
            next_us = min(next_us or session.who.expires_us, session.who.expires_us)
    await trio.lowlevel.checkpoint()
    return next_us


def _judge(session: Session, who: Principal, streams: StreamGuard, now_us: int) -> Ending | None:
    if who.standing.ended:
        changed = who.standing.ended == "changed"
        return CHANGED if changed else Ending(CLOSE_UNAUTHORIZED, f"access.{who.standing.ended}")
    if who.expires_us and who.expires_us <= now_us:
        return Ending(CLOSE_UNAUTHORIZED, "access.expired")
    for reading in session.readers.values():
        for name in reading.query.selection.streams:
            if "*" not in name and ">" not in name and not streams.may(who, "subscribe", name):
                return FORBIDDEN
    return None
