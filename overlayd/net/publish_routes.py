"""`POST /v1/streams/{stream}/packets` and `…/data` on Quart."""

from pathlib import Path

from quart import Request, Response, request
from quart_trio import QuartTrio

from overlayd.access import Principal, require
from overlayd.model.errors import BadParameter
from overlayd.model.names import parse_stream_name
from overlayd.net.app import answer, body_reader, principal_of
from overlayd.net.parameters import Parameters
from overlayd.net.publish import Ask, DataAsk, Publisher
from overlayd.net.publish_answers import Published
from overlayd.net.publish_lines import LinesRun, PublishedLines
from overlayd.net.spool import Spool
from overlayd.pipeline.members import is_traceparent

PACKETS_QUERY = ("atomic", "expected_sequence", "stop_on_error", "proof", "receipts")
DATA_QUERY = ("id", "type", "key", "expected_sequence", "proof")


def add_publish_routes(app: QuartTrio, *, publisher: Publisher, spool_directory: Path) -> None:
    """Adds the two ways to publish. Receipts of long uploads are kept in `spool_directory` until they are sent."""
    routes = _PublishRoutes(publisher, spool_directory)
    app.add_url_rule("/v1/streams/<stream>/packets", "packets.publish", routes.packets, methods=["POST"])
    app.add_url_rule("/v1/streams/<stream>/data", "packets.publish_data", routes.data, methods=["POST"])


class _PublishRoutes:
    """The routes with what they need."""

    def __init__(self, publisher: Publisher, spool_directory: Path) -> None:
        self._publisher = publisher
        self._spool_directory = spool_directory

    async def packets(self, stream: str) -> Response:
        """Packet objects, NDJSON or CloudEvents."""
        principal = principal_of(request)
        require(principal, "publish")
        ask = _packets_ask(request, stream, principal)
        limits, bodies = self._publisher.limits, self._publisher.bodies
        with bodies.hold() as hold:
            if ask.is_lines:
                reader = body_reader(request, bodies, int(limits.upload_bytes), "upload_bytes")
                run = LinesRun(self._publisher, ask, reader, hold, lambda: Spool(self._spool_directory))
                return _answer(await run.run())
            reader = body_reader(request, bodies, int(limits.body_bytes), "body_bytes")
            return _answer(await self._publisher.publish(ask, reader, hold))

    async def data(self, stream: str) -> Response:
        """Whatever body, as the data of one packet."""
        principal = principal_of(request)
        require(principal, "publish")
        parameters = Parameters(request, DATA_QUERY)
        data = DataAsk(parameters.text("id"), parameters.text("type"), parameters.text("key"))
        ask = _ask(request, stream, principal, parameters)
        limits, bodies = self._publisher.limits, self._publisher.bodies
        with bodies.hold() as hold:
            reader = body_reader(request, bodies, int(limits.packet_bytes), "packet_bytes")
            return _answer(await self._publisher.publish_data(ask, data, reader, hold))


def _packets_ask(asked: Request, stream: str, principal: Principal) -> Ask:
    return _ask(asked, stream, principal, Parameters(asked, PACKETS_QUERY))


def _ask(asked: Request, stream: str, principal: Principal, parameters: Parameters) -> Ask:
    """The request without its body. Raises BadParameter."""
    keys = asked.headers.getlist("Idempotency-Key")
    if len(keys) > 1 or keys == [""]:
        raise BadParameter("Idempotency-Key must be one value that isn't empty", subject="Idempotency-Key")
    traceparent = asked.headers.get("traceparent", "")
    return Ask(
        stream=parse_stream_name(stream),
        principal=principal,
        content_type=asked.headers.get("Content-Type", ""),
        headers=list(asked.headers.items()),
        url=asked.base_url,
        atomic=parameters.flag("atomic"),
        expected_sequence=parameters.number("expected_sequence"),
        stop_on_error=bool(parameters.flag("stop_on_error")),
        with_proof=bool(parameters.flag("proof")),
        all_receipts=parameters.choice("receipts", ("all",)) == "all",
        idempotency_key=keys[0] if keys else "",
        traceparent=traceparent if is_traceparent(traceparent) else "",
    )


def _answer(published: Published | PublishedLines) -> Response:
    if isinstance(published, PublishedLines):
        return Response(published.lines, status=published.status, content_type=published.content_type)
    return answer(published.body, published.status, content_type=published.content_type)
