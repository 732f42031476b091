"""Sessions, conversations and messages as lists and by themselves, search and sums. Each answer has an ETag that holds
until the next write."""

from collections.abc import Callable
from functools import partial
from hashlib import blake2b
from typing import Any, TypeVar

from quart import Blueprint, Response, request

from overlayd.access import Principal
from overlayd.dialects.agentpipe import bodies
from overlayd.dialects.agentpipe.answers import Answered, json_answer, unknown_conversation
from overlayd.dialects.agentpipe.asked import (
    arguments_of,
    flag_of,
    number_of,
    ordered_of,
    page_of,
    search_of,
    wanted_of,
)
from overlayd.dialects.agentpipe.facts import PICO, STATUSES
from overlayd.dialects.agentpipe.queries import (
    SessionRow,
    read_agents,
    read_failures,
    read_messages,
    read_names,
    read_previews,
    read_recent,
    read_session,
    read_sessions,
    read_summary,
)
from overlayd.dialects.agentpipe.surface import Surface
from overlayd.dialects.agentpipe.throttle import RETRIEVAL
from overlayd.dialects.agentpipe.times import iso_ms
from overlayd.model.errors import BadParameter
from overlayd.net.app import principal_of

T = TypeVar("T")

RECENT_MAX = 50
FAILURES_SHOWN = 100
PREVIEWED = 3
PROMPT_CHARS = 200
MESSAGES_LIMIT = 100
SEARCH_BYTES = 64 << 10


def add_read_routes(blueprint: Blueprint, surface: Surface) -> None:
    """Adds what AgentPipe's page reads, but for what is live."""
    routes = ReadRoutes(surface)
    for path, name, view in (
        ("/api/sessions", "sessions", routes.sessions),
        ("/api/sessions/<id>", "session", routes.session),
        ("/api/conversations", "conversations", routes.conversations),
        ("/api/conversations/<id>", "conversation", routes.conversation),
        ("/api/conversations/<id>/messages", "messages", routes.messages),
        ("/api/messages/recent", "recent", routes.recent),
        ("/api/metrics/summary", "summary", routes.summary),
        ("/api/search", "search_names", routes.search_names),
    ):
        blueprint.add_url_rule(path, name, view, methods=["GET"])
    blueprint.add_url_rule("/api/search", "search", routes.search, methods=["POST"])


class ReadRoutes:
    """The routes with what they need."""

    def __init__(self, surface: Surface) -> None:
        self._surface = surface

    async def sessions(self) -> Response:
        """Sessions, newest first."""
        tag = await self.begin()
        arguments = _arguments()
        page, limit = page_of(arguments, self._surface.settings.page_max)
        rows, agents, total = await self._list(arguments, page, limit)
        data = [bodies.session_line(row, agents[row.id]) for row in rows]
        return _tagged({"data": data, "pagination": _pagination(page, limit, total)}, tag)

    async def session(self, id: str) -> Response:
        """One session, with messages if they are asked for."""
        tag = await self.begin()
        row, arguments = await self.known(id), _arguments()
        most = self._surface.settings.messages_shown
        limit = number_of(arguments, ("messageLimit",), min(MESSAGES_LIMIT, most), most=most)
        read = partial(read_messages, session=id, limit=limit)
        messages = await self.read(read) if flag_of(arguments, "includeMessages") else None
        agents = (await self.read(partial(read_agents, sessions=[id])))[id]
        failures = await self.read(partial(read_failures, session=id, limit=FAILURES_SHOWN))
        return _tagged(bodies.session_whole(row, agents, messages, failures), tag)

    async def conversations(self) -> Response:
        """The same as AgentPipe's page lists them."""
        tag = await self.begin()
        arguments = _arguments()
        page, limit = page_of(arguments, self._surface.settings.page_max, ("pageSize", "limit"))
        rows, agents, total = await self._list(arguments, page, limit)
        pages = -(-total // limit)
        return _tagged(
            {
                "conversations": [bodies.conversation_line(row, agents[row.id]) for row in rows],
                "pagination": {
                    "page": page, "pageSize": limit, "totalCount": total, "totalPages": pages,
                    "hasNextPage": page < pages, "hasPreviousPage": page > 1,
                },
            },
            tag,
        )  # fmt: skip

    async def conversation(self, id: str) -> Response:
        """One of them, with its messages."""
        tag = await self.begin()
        row = await self.known(id)
        messages = await self.read(partial(read_messages, session=id, limit=self._surface.settings.messages_shown))
        agents = (await self.read(partial(read_agents, sessions=[id])))[id]
        failures = await self.read(partial(read_failures, session=id, limit=FAILURES_SHOWN))
        return _tagged(bodies.conversation_whole(row, agents, messages, failures), tag)

    async def messages(self, id: str) -> Response:
        """Messages of a conversation by their times."""
        tag = await self.begin()
        row, arguments = await self.known(id), _arguments()
        most = self._surface.settings.page_max
        page = number_of(arguments, ("page",), 1, most=1 << 40)
        limit = number_of(arguments, ("limit",), min(50, most), most=most)
        read = partial(read_messages, session=id, limit=limit, offset=(page - 1) * limit, order="time_us, id")
        data = [{**bodies.message_flat(one), "conversationId": id} for one in await self.read(read)]
        return _tagged({"data": data, "pagination": _pagination(page, limit, row.messages)}, tag)

    async def recent(self) -> Response:
        """The newest messages of all conversations of a status."""
        tag = await self.begin()
        arguments = _arguments()
        limit = number_of(arguments, ("limit",), 10, most=RECENT_MAX)
        status = arguments.get("status") or "ACTIVE"
        if status not in STATUSES:
            raise BadParameter(f"status must be one of {', '.join(STATUSES)}, not {status[:40]!r}", subject="status")
        wanted = wanted_of({"status": status}, self._visible())
        found = await self.read(partial(read_recent, wanted=wanted, limit=limit))
        messages = [
            {
                **bodies.message_flat(message), "conversationId": row.id, "conversationName": row.shown_name,
                "conversationStatus": row.status,
            }
            for message, row in found
        ]  # fmt: skip
        return _tagged({"messages": messages, "count": len(messages)}, tag)

    async def summary(self) -> Response:
        """What all sessions come to."""
        tag = await self.begin()
        dates = {name: value for name, value in _arguments().items() if name in ("startDate", "endDate")}
        found = await self.read(partial(read_summary, wanted=wanted_of(dates, self._visible())))
        return _tagged(
            {
                "totalConversations": found.sessions, "activeConversations": found.active,
                "totalMessages": found.messages, "totalTokens": found.tokens, "totalCost": found.cost / PICO,
                "averageConversationDuration": round(found.duration_mean),
                "topAgents": [
                    {"type": name, "count": count, "totalCost": cost / PICO} for name, count, cost in found.agents
                ],
            },
            tag,
        )  # fmt: skip

    async def search(self) -> Response:
        """Sessions whose name, prompt or messages hold what is looked for."""
        surface = self._surface
        await self.begin(is_tagged=False)
        with surface.hold() as hold:
            raw = await surface.read_body(request, hold, SEARCH_BYTES, "agentpipe.search_bytes")
        body = await surface.parse(raw or b"{}")
        if not isinstance(body, dict):
            raise BadParameter("the body must be an object with a query", subject="query")
        wanted, is_cut = search_of(body, self._visible(), surface.settings.search_terms)
        if is_cut:
            surface.metrics.count_limit_hit("agentpipe.search_terms")
            raise BadParameter(
                f"query has over {surface.settings.search_terms} words", subject="query", hint="look for fewer"
            )
        arguments = arguments_of(body)
        page, limit = page_of(arguments, surface.settings.page_max)
        rows, total = await self.read(
            partial(read_sessions, wanted=wanted, ordered=ordered_of(arguments, page, limit))
        )  # fmt: skip
        ids = [row.id for row in rows]
        agents = await self.read(partial(read_agents, sessions=ids))
        previews = await self.read(partial(read_previews, sessions=ids, count=PREVIEWED))
        results = [
            {
                "id": row.id, "name": row.shown_name, "createdAt": iso_ms(row.created_us), "status": row.status,
                "mode": row.mode, "initialPrompt": row.prompt[:PROMPT_CHARS], "totalMessages": row.total_messages,
                "totalTokens": row.total_tokens, "totalCost": row.cost, "totalDuration": row.total_duration,
                "participants": [
                    {"agentType": one.agent_type, "agentName": one.agent_name, "model": one.model or None}
                    for one in agents[row.id]
                ],
                "messagePreview": [
                    {"id": one.id, "agentName": one.agent_name, "content": one.content, "timestamp": iso_ms(one.time_us)}
                    for one in previews[row.id]
                ],
            }
            for row in rows
        ]  # fmt: skip
        return json_answer({"results": results, "pagination": _pagination(page, limit, total)})

    async def search_names(self) -> Response:
        """The agents' types or models that a search can ask for."""
        tag = await self.begin()
        kind = _arguments().get("type", "")
        if kind not in ("agents", "models"):
            raise BadParameter("type must be agents or models", subject="type")
        column, word = ("agent_type", "type") if kind == "agents" else ("model", "model")
        names = await self.read(partial(read_names, column=column, wanted=wanted_of({}, self._visible())))
        return _tagged({kind: [{word: name, "count": count} for name, count in names]}, tag)

    # What they have in common.

    async def begin(self, *, is_tagged: bool = True) -> str:
        """The answer's ETag. Checkpoint. Raises LimitReached, Forbidden, and Answered with 304 when the client has it."""
        surface, principal = self._surface, principal_of(request)
        if surface.visible_streams(principal) == ():
            surface.streams.require(principal, "read", "sessions.any")
        surface.throttle.take(RETRIEVAL, principal)
        await surface.catch_up()
        tag = _tag_of(surface.follower.version, principal)
        if is_tagged and request.if_none_match.contains(tag):
            raise Answered(_tagged(None, tag))
        return tag

    async def known(self, id: str) -> SessionRow:
        """The session. Raises Answered with 404 when there is none that the asker may see."""
        row = await self.read(partial(read_session, id=id))
        if row is None or not self._surface.may_read(principal_of(request), row.stream):
            raise Answered(json_answer(unknown_conversation(id), 404))
        return row

    async def read(self, function: Callable[..., T]) -> T:
        """Reads the tables; the request holds no place in the lane meanwhile. Checkpoint."""
        async with self._surface.lane.step_out():
            return await self._surface.log.read(function)

    def _visible(self) -> tuple[str, ...] | None:
        return self._surface.visible_streams(principal_of(request))

    async def _list(self, arguments: dict[str, str], page: int, limit: int) -> Any:
        wanted = wanted_of(arguments, self._visible())
        ordered = ordered_of(arguments, page, limit)
        rows, total = await self.read(partial(read_sessions, wanted=wanted, ordered=ordered))
        agents = await self.read(partial(read_agents, sessions=[row.id for row in rows]))
        return rows, agents, total


def _arguments() -> dict[str, str]:
    return dict(request.args.items())


def _pagination(page: int, limit: int, total: int) -> dict[str, int]:
    return {"page": page, "limit": limit, "total": total, "pages": -(-total // limit)}


def _tag_of(version: str, principal: Principal) -> str:
    """What the answer depends on: the sessions, the URL, and who asks."""
    whose = f"{sorted(principal.rights)}{principal.grants.scopes}{principal.owner}"
    text = f"{version}\0{request.full_path}\0{whose}"
    return blake2b(text.encode("utf-8", "surrogateescape"), digest_size=12).hexdigest()


def _tagged(body: Any, tag: str) -> Response:
    response = Response(b"", status=304) if body is None else json_answer(body)
    response.headers["ETag"] = f'"{tag}"'
    response.headers["Cache-Control"] = "private, no-cache"
    response.headers["Vary"] = "Authorization"
    return response
