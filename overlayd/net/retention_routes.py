"""`/v1/streams/{stream}/holds` and `/v1/retention`: what nobody may take away, and how taking away stands."""

from msgspec import UNSET
from quart import Response, request
from quart_trio import QuartTrio

from overlayd.access import require
from overlayd.access.audit import AuditTrail
from overlayd.access.stream_guard import StreamGuard
from overlayd.model.clock import format_time_us
from overlayd.model.errors import BadParameter, UnknownHold
from overlayd.model.wire import encode_wire
from overlayd.model.wire_retention import HoldBody, HoldIn, HoldList, RetentionBody
from overlayd.net.app import answer, author_of, principal_of
from overlayd.net.json_body import JsonBodies
from overlayd.net.lane import Lane
from overlayd.net.parameters import Parameters
from overlayd.net.stream_routes import known_stream
from overlayd.storage import Log, Stream
from overlayd.storage.hold_book import NO_END, Hold


def add_retention_routes(
    app: QuartTrio, *, log: Log, lane: Lane, bodies: JsonBodies, streams: StreamGuard, trail: AuditTrail
) -> None:
    """Adds the routes."""
    routes = _RetentionRoutes(log, lane, bodies, streams, trail)
    holds = "/v1/streams/<stream>/holds"
    app.add_url_rule(holds, "holds.list", routes.list_holds, methods=["GET"])
    app.add_url_rule(holds, "holds.place", routes.place, methods=["POST"])
    app.add_url_rule(f"{holds}/<hold>", "holds.lift", routes.lift, methods=["DELETE"])
    app.add_url_rule("/v1/retention", "retention.show", routes.show, methods=["GET"])
    app.add_url_rule("/v1/retention/trust-clock", "retention.trust_clock", routes.trust_clock, methods=["POST"])


class _RetentionRoutes:
    """The routes with what they need."""

    def __init__(self, log: Log, lane: Lane, bodies: JsonBodies, streams: StreamGuard, trail: AuditTrail) -> None:
        self._log = log
        self._lane = lane
        self._bodies = bodies
        self._streams = streams
        self._trail = trail

    async def list_holds(self, stream: str) -> Response:
        """What holds the stream."""
        self._streams.require(principal_of(request), "manage", stream)
        Parameters(request, ())
        found = known_stream(self._log, stream)
        return answer(encode_wire(HoldList(holds=[_body(found, one) for one in self._log.holds.book.list_of(found)])))

    async def place(self, stream: str) -> Response:
        """Holds a range of sequences, or the whole stream."""
        require(principal_of(request), "admin")
        Parameters(request, ())
        found = known_stream(self._log, stream)
        wanted = await self._bodies.read(request, HoldIn, "the hold can't be placed")
        high = NO_END if wanted.to is UNSET else wanted.to
        if high < wanted.from_:
            raise BadParameter(f"the range ends at {high}, before it begins", subject="to")
        author = author_of(request)
        record = author.record("stream.hold", found.name, first=wanted.from_, reason=wanted.reason)
        if high != NO_END:
            record.detail["last"] = high
        async with self._lane.step_out():
            hold = await self._log.holds.place(
                found, wanted.from_, high, reason=wanted.reason, principal=author.principal.name,
                own=[self._trail.packet(record)],
            )  # fmt: skip
        return answer(encode_wire(_body(found, hold)), 201)

    async def lift(self, stream: str, hold: str) -> Response:
        """Lifts a hold; what it covered goes by the stream's rule from then on."""
        require(principal_of(request), "admin")
        Parameters(request, ())
        found = known_stream(self._log, stream)
        if not (hold.isascii() and hold.isdecimal()) or len(hold) > 18:
            raise UnknownHold(f"{found.name} has no hold {hold[:40]}", subject=hold[:40])
        packet = self._trail.packet(author_of(request).record("stream.release", found.name, hold=int(hold)))
        async with self._lane.step_out():
            await self._log.holds.lift(found, int(hold), own=[packet])
        self._log.retention.ask()
        return Response(b"", status=204)

    async def show(self) -> Response:
        """How taking away stands."""
        require(principal_of(request), "manage")
        Parameters(request, ())
        return answer(encode_wire(self._shown()))

    async def trust_clock(self) -> Response:
        """An admin says that the clock is right."""
        require(principal_of(request), "admin")
        Parameters(request, ())
        retention = self._log.retention
        async with self._lane.step_out():
            await self._trail.write(author_of(request).record("retention.trust_clock", retention.trust.trouble or "ok"))
            await retention.trust.settle(self._log.write)
        retention.ask()
        return answer(encode_wire(self._shown()))

    def _shown(self) -> RetentionBody:
        retention, stats = self._log.retention, self._log.stats()
        oldest = retention.oldest_us
        return RetentionBody(
            clock_trusted=retention.trust.is_trusted,
            clock_trouble=retention.trust.trouble or UNSET,
            oldest_at=format_time_us(oldest) if oldest else UNSET,
            minimum_index=self._log.minimum_index,
            holds=len(self._log.holds.book),
            disk=retention.disk_state,
            disk_free_bytes=stats.disk_free_bytes,
        )


def _body(stream: Stream, hold: Hold) -> HoldBody:
    return HoldBody(
        id=hold.id,
        stream=stream.name,
        from_=hold.from_sequence,
        to=UNSET if hold.is_open else hold.to_sequence,
        reason=hold.reason,
        placed_by=hold.principal,
        placed_at=format_time_us(hold.placed_us),
    )
