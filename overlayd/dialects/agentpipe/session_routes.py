"""Sessions as files, played again at their own pace, made anew; and how the surface is doing."""

import math
from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import Any

import msgspec
import trio
from quart import Blueprint, Response, request

from overlayd.access import require
from overlayd.access.audit import AuditTrail
from overlayd.delivery.session import Registry
from overlayd.dialects.agentpipe.answers import json_answer
from overlayd.dialects.agentpipe.bodies import ended_of, started_of
from overlayd.dialects.agentpipe.export import FORMATS
from overlayd.dialects.agentpipe.live import Listeners
from overlayd.dialects.agentpipe.queries import MessageRow, SessionRow, read_agents, read_messages
from overlayd.dialects.agentpipe.read_routes import ReadRoutes
from overlayd.dialects.agentpipe.surface import Surface
from overlayd.dialects.agentpipe.times import iso_ms
from overlayd.model.errors import BadParameter
from overlayd.net.app import author_of, principal_of

PAGE = 200
SPEED_MAX = 1000.0
PAUSE_MAX_S = 60.0
"""A pause of a conversation is played no longer than that."""
BY_TIME = "time_us, sequence IS NULL, sequence, id"
BEHIND_MAX = 10_000
"""Entries that the sessions may be behind the log before the node calls itself degraded."""
_encode = msgspec.json.Encoder().encode


def add_session_routes(
    blueprint: Blueprint, surface: Surface, listeners: Listeners, *, registry: Registry, trail: AuditTrail,
    trouble: Callable[[], str],
) -> None:  # fmt: skip
    """`trouble`: why the node can't take packets now, "" when it can."""
    routes = _SessionRoutes(surface, listeners, registry, trail, trouble)
    for path, name, view in (
        ("/api/conversations/<id>/export", "export_conversation", routes.export),
        ("/api/sessions/<id>/export", "export", routes.export),
        ("/api/sessions/<id>/replay", "replay", routes.replay),
        ("/api/conversations/<id>/replay", "replay_conversation", routes.replay),
        ("/api/realtime/stats", "stats", routes.stats),
        ("/api/health", "health", routes.health),
    ):
        blueprint.add_url_rule(path, name, view, methods=["GET"])
    blueprint.add_url_rule("/api/sessions/rebuild", "rebuild", routes.rebuild, methods=["POST"])


class _SessionRoutes:
    """The routes with what they need."""

    def __init__(
        self, surface: Surface, listeners: Listeners, registry: Registry, trail: AuditTrail,
        trouble: Callable[[], str],
    ) -> None:  # fmt: skip
        self._surface = surface
        self._listeners = listeners
        self._registry = registry
        self._trail = trail
        self._trouble = trouble
        self._reads = ReadRoutes(surface)

    async def export(self, id: str) -> Response:
        """A whole conversation as a file."""
        tag = await self._reads.begin()
        row = await self._reads.known(id)
        name = request.args.get("format") or "json"
        if name not in FORMATS:
            raise BadParameter("Invalid format. Must be json, csv, or markdown", subject="format")
        write, media_type, ending = FORMATS[name]
        limit = self._surface.settings.messages_shown
        messages = await self._reads.read(partial(read_messages, session=id, limit=limit, order=BY_TIME))
        agents = (await self._reads.read(partial(read_agents, sessions=[id])))[id]
        body = await self._surface.in_thread(partial(write, row, agents, messages))
        response = Response(body, content_type=media_type)
        day = iso_ms(self._surface.clock.now_us())[:10]
        shown = "".join(char if char.isascii() and (char.isalnum() or char in "-_") else "_" for char in id[:80])
        response.headers["Content-Disposition"] = f'attachment; filename="conversation-{shown}-{day}.{ending}"'
        response.headers["Cache-Control"] = "private, no-cache"
        response.headers["ETag"] = f'"{tag}"'
        return response

    async def replay(self, id: str) -> Response:
        """The conversation as it went, so many times as fast; `speed=0` without any pauses."""
        await self._reads.begin(is_tagged=False)
        row, principal = await self._reads.known(id), principal_of(request)
        speed = _speed_of(request.args.get("speed") or "1")
        self._listeners.enter(principal.address, id)
        body = _Closing(self._play(row, speed), partial(self._listeners.leave, principal.address, id))
        response = Response(body, content_type="text/event-stream")
        response.timeout = None
        response.headers["Cache-Control"] = "no-cache, no-transform"
        response.headers["X-Accel-Buffering"] = "no"
        return response

    async def stats(self) -> Response:
        """How many listen."""
        await self._reads.begin(is_tagged=False)
        by_conversation = self._listeners.by_conversation
        named = sum(by_conversation.values())
        capacity = self._surface.settings.sse_replayed
        return json_answer(
            {
                "globalListeners": self._listeners.count - named, "conversationListeners": named,
                "totalListeners": self._listeners.count, "conversations": len(by_conversation),
                "bufferedEvents": min(capacity, len(self._surface.follower.recent)), "bufferCapacity": capacity,
                "timestamp": iso_ms(self._surface.clock.now_us()),
            }
        )  # fmt: skip

    async def health(self) -> Response:
        """Whether the node works, for probes; asked without a key."""
        surface = self._surface
        trouble = self._trouble()
        behind = surface.follower.behind
        is_slow = behind > BEHIND_MAX
        await trio.lowlevel.checkpoint()
        checks: dict[str, Any] = {
            "database": {"status": "unhealthy", "message": trouble} if trouble else {"status": "healthy"},
            "redis": {"status": "not_used"},
            "sse": {
                "status": "healthy", "connections": self._listeners.count,
                "capacity": surface.settings.sse_connections,
            },
            "sessions": {"status": "degraded" if is_slow else "healthy", "behind": behind},
        }  # fmt: skip
        is_well = not trouble and not is_slow
        body = {
            "status": "healthy" if is_well else "degraded", "timestamp": iso_ms(surface.clock.now_us()), "checks": checks,
            "message": "operational" if is_well else trouble or "the sessions are behind the log",
        }  # fmt: skip
        return json_answer(body, 503 if trouble else 200)

    async def rebuild(self) -> Response:
        """Takes the sessions away and makes them again from the log, which goes on behind the answer."""
        require(principal_of(request), "admin")
        async with self._surface.lane.step_out():
            await self._trail.write(author_of(request).record("rebuild", "sessions"))
            await self._surface.follower.rebuild()
        return json_answer({"success": True, "head": self._surface.log.head})

    async def _play(self, row: SessionRow, speed: float) -> AsyncGenerator[bytes, None]:
        started = started_of(row)
        now_us = row.started_us
        begin = {
            "conversation_id": row.id, "name": row.shown_name, "mode": row.mode, "initial_prompt": row.prompt,
            "participants": [
                {"agent_id": one.agent_id, "agent_type": one.agent_type, "name": one.name}
                for one in (started.agents if started else ())
            ],
        }  # fmt: skip
        yield _frame("conversation.started", iso_ms(row.started_us), begin)
        place = 0
        while True:
            read = partial(read_messages, session=row.id, limit=PAGE, offset=place, order=BY_TIME)
            messages = await self._surface.log.read(read)
            for message in messages:
                if await self._pause((message.time_us - now_us) / 1e6, speed):
                    return
                now_us = max(now_us, message.time_us)
                yield _frame("message.created", message.time, _message_data(message))
            place += len(messages)
            if len(messages) < PAGE:
                break
        ended = ended_of(row)
        if ended is not None:
            if await self._pause(((row.completed_us or now_us) - now_us) / 1e6, speed):
                return
            data = {
                "conversation_id": row.id, "status": row.status.lower(), "total_messages": row.total_messages,
                "total_tokens": row.total_tokens, "total_cost": row.cost, "duration_seconds": row.total_duration / 1000,
            }  # fmt: skip
            yield _frame("conversation.completed", ended.time, data)

    async def _pause(self, seconds: float, speed: float) -> bool:
        """Waits as long as the conversation did; whether the node is stopping. Checkpoint."""
        if not speed or seconds <= 0:
            await trio.lowlevel.checkpoint()
            return False
        until = trio.current_time() + min(seconds, PAUSE_MAX_S) / speed
        with self._registry.waiting(until):
            await trio.sleep_forever()
        return trio.current_time() < until


class _Closing:
    """Pieces of an answer, and what is to be done once at its end, also when nobody ever asked for a piece."""

    def __init__(self, pieces: AsyncGenerator[bytes, None], close: Callable[[], None]) -> None:
        self._pieces = pieces
        self._close: Callable[[], None] | None = close

    def __aiter__(self) -> "_Closing":
        return self

    async def __anext__(self) -> bytes:
        try:
            return await self._pieces.__anext__()
        except BaseException:
            self.close()
            raise

    async def aclose(self) -> None:
        """Not a checkpoint: the pieces hold nothing that has to be waited for."""
        self.close()
        await self._pieces.aclose()

    def close(self) -> None:
        """Again does nothing."""
        close, self._close = self._close, None
        if close is not None:
            close()

    def __del__(self) -> None:
        # A response that is dropped before its body was asked for is never closed by the framework.
        self.close()


def _frame(kind: str, time: str, data: dict[str, Any]) -> bytes:
    return b"data: %s\n\n" % _encode({"type": kind, "timestamp": time, "data": data})


def _message_data(row: MessageRow) -> dict[str, Any]:
    """As the client's own dialect has it, which leaves out what there isn't."""
    found = {
        "agent_name": row.agent_name, "sequence_number": row.sequence, "turn_number": row.turn,
        "tokens_used": row.tokens, "input_tokens": row.input_tokens, "output_tokens": row.output_tokens,
        "cost": row.cost, "model": row.model, "duration_ms": row.duration_ms,
    }  # fmt: skip
    data: dict[str, Any] = {
        "conversation_id": row.session, "message_id": row.id, "agent_id": row.agent_id, "agent_type": row.agent_type,
        "content": row.content, "role": row.role,
    }  # fmt: skip
    return data | {name: value for name, value in found.items() if value not in (None, "")}


def _speed_of(text: str) -> float:
    """Raises BadParameter."""
    try:
        speed = float(text)
    except ValueError:
        speed = math.nan
    if not 0 <= speed <= SPEED_MAX:
        raise BadParameter(f"speed must be a number from 0 to {SPEED_MAX:g}, not {text[:40]!r}", subject="speed")
    return speed
