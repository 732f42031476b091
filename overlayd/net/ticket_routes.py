"""`/v1/tickets`: a bearer for one live connection, for clients that can't send their credential along with it."""

from quart import Response, request
from quart_trio import QuartTrio

from overlayd.access.principal import check_standing
from overlayd.access.scopes import parse_scope
from overlayd.access.tickets import TicketBook
from overlayd.model.clock import Clock, format_time_us
from overlayd.model.wire import encode_wire
from overlayd.model.wire_access import TicketBody, TicketIn
from overlayd.net.app import answer, principal_of
from overlayd.net.body_times import seconds_of
from overlayd.net.json_body import JsonBodies
from overlayd.net.parameters import Parameters


def add_ticket_routes(app: QuartTrio, *, tickets: TicketBook, clock: Clock, bodies: JsonBodies) -> None:
    """Adds `/v1/tickets`."""

    async def issue() -> Response:
        """A ticket for whoever asks."""
        principal = principal_of(request)
        check_standing(principal)
        Parameters(request, ())
        wanted = await bodies.read_or(request, TicketIn, "the ticket can't be given out", TicketIn())
        scopes = [parse_scope(text) for text in wanted.scopes] if isinstance(wanted.scopes, list) else None
        text, ttl_s = tickets.issue(principal, scopes, seconds_of(wanted.ttl, "ttl"))
        expires_at = format_time_us(clock.now_us() + int(ttl_s * 1_000_000))
        return answer(encode_wire(TicketBody(ticket=text, expires_at=expires_at)), 201, cache_control="no-store")

    app.add_url_rule("/v1/tickets", "tickets.issue", issue, methods=["POST"])
