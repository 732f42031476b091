"""`/v1/admin/reload`: the configuration read anew, while the node goes on."""

from collections.abc import Awaitable, Callable

from quart import Response, request
from quart_trio import QuartTrio

from overlayd.access import require
from overlayd.access.key_changes import Author
from overlayd.model.wire import encode_wire
from overlayd.model.wire_admin import ReloadBody
from overlayd.net.app import answer, author_of, principal_of
from overlayd.net.lane import Lane
from overlayd.net.parameters import Parameters

Reload = Callable[[Author, bool], Awaitable[ReloadBody]]
"""Who asks, and whether only to tell what would change. Raises ConfigInvalid, and then nothing is changed."""


def add_reload_routes(app: QuartTrio, *, reload: Reload, lane: Lane) -> None:
    """Adds `POST /v1/admin/reload`."""

    @app.post("/v1/admin/reload")
    async def reload_settings() -> Response:
        """Reads the configuration anew; answers when what can change without a restart has changed."""
        require(principal_of(request), "admin")
        is_dry = bool(Parameters(request, ("dry_run",)).flag("dry_run"))
        author = author_of(request)
        async with lane.step_out():
            return answer(encode_wire(await reload(author, is_dry)))
