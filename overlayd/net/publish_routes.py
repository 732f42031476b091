"""`POST /v1/streams/{stream}/packets` and `…/data` on Quart."""

from pathlib import Path

from quart import Request, Response, request
from quart_trio import QuartTrio

from overlayd.net.app import answer, body_reader, principal_of
from overlayd.net.publish import Ask, Publisher
from overlayd.net.publish_answers import Published
from overlayd.net.publish_ask import data_ask, packets_ask
from overlayd.net.publish_lines import LinesRun, PublishedLines
from overlayd.net.spool import Spool


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
        self._publisher.streams.require(principal, "publish", stream)
        ask = packets_ask(
            stream, principal, _headers_of(request), request.query_string.decode("ascii", "replace"), request.base_url
        )
        limits, bodies = self._publisher.limits, self._publisher.bodies
        with bodies.hold() as hold:
            if ask.is_lines:
                reader = body_reader(request, bodies, int(limits.upload_bytes), "upload_bytes")
                run = LinesRun(self._publisher, ask, reader, hold, lambda: Spool(self._spool_directory))
                return self._answer(await run.run(), ask)
            reader = body_reader(request, bodies, int(limits.body_bytes), "body_bytes")
            return self._answer(await self._publisher.publish(ask, reader, hold), ask)

    async def data(self, stream: str) -> Response:
        """Whatever body, as the data of one packet."""
        principal = principal_of(request)
        self._publisher.streams.require(principal, "publish", stream)
        ask, data = data_ask(
            stream, principal, _headers_of(request), request.query_string.decode("ascii", "replace"), request.base_url
        )
        limits, bodies = self._publisher.limits, self._publisher.bodies
        with bodies.hold() as hold:
            reader = body_reader(request, bodies, int(limits.packet_bytes), "packet_bytes")
            return self._answer(await self._publisher.publish_data(ask, data, reader, hold), ask)

    def _answer(self, published: Published | PublishedLines, ask: Ask) -> Response:
        if isinstance(published, PublishedLines):
            response = Response(published.lines, status=published.status, content_type=published.content_type)
        else:
            response = answer(published.body, published.status, content_type=published.content_type)
        response.headers.extend(self._publisher.tell_rate(ask.principal, ask.stream, ask.content_type))
        return response


def _headers_of(asked: Request) -> list[tuple[bytes, bytes]]:
    return [(name.lower(), value) for name, value in asked.scope["headers"]]
