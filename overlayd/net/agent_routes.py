"""The switch of all agents over HTTP."""

from msgspec import UNSET
from quart import Response, request
from quart_trio import QuartTrio

from overlayd.access.audit import PackAudit
from overlayd.access.principal import Principal, require
from overlayd.delivery.agents.switch import AgentSwitch
from overlayd.model.clock import format_time_us
from overlayd.model.wire import encode_wire
from overlayd.model.wire_agents import AgentsBody
from overlayd.net.app import answer, author_of, principal_of
from overlayd.net.lane import Lane
from overlayd.net.parameters import Parameters


def add_agent_routes(app: QuartTrio, *, switch: AgentSwitch, lane: Lane, audit: PackAudit) -> None:
    """Adds `/v1/agents` and what pauses and resumes them. `audit` makes packets of records, for the transaction of what
    they tell."""
    routes = _AgentRoutes(switch, lane, audit)
    app.add_url_rule("/v1/agents", "agents.show", routes.show, methods=["GET"])
    app.add_url_rule("/v1/agents/pause", "agents.pause", routes.pause, methods=["POST"])
    app.add_url_rule("/v1/agents/resume", "agents.resume", routes.resume, methods=["POST"])


class _AgentRoutes:
    """The routes with what they need."""

    def __init__(self, switch: AgentSwitch, lane: Lane, audit: PackAudit) -> None:
        self._switch = switch
        self._lane = lane
        self._audit = audit

    async def show(self) -> Response:
        """Whether agents are paused."""
        self._principal()
        return self._answer()

    async def pause(self) -> Response:
        """Nothing is begun for any agent until they are resumed; nothing is lost."""
        return await self._put(is_paused=True)

    async def resume(self) -> Response:
        """They go on where they stand."""
        return await self._put(is_paused=False)

    async def _put(self, *, is_paused: bool) -> Response:
        principal = self._principal()
        async with self._lane.step_out():
            record = author_of(request).record("agents.pause" if is_paused else "agents.resume", "")
            await self._switch.put(is_paused, principal.name, [self._audit(record)])
        return self._answer()

    def _principal(self) -> Principal:
        principal = principal_of(request)
        require(principal, "admin" if "admin" in principal.rights else "manage")
        Parameters(request, ())
        return principal

    def _answer(self) -> Response:
        state = self._switch.state
        body = AgentsBody(
            paused=state.is_paused, since=format_time_us(state.since_us) if state.since_us else UNSET,
            by=state.principal or UNSET, agents=self._switch.agents,
        )  # fmt: skip
        return answer(encode_wire(body))
