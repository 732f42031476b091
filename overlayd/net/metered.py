"""What read requests go through on Quart: asked before, counted afterwards. Publishing is asked where it is done."""

from typing import Any, cast

from quart import Response, request
from quart_trio import QuartTrio

from overlayd.access.metering import Metering
from overlayd.net.app import principal_of
from overlayd.net.problem import rate_headers

READ_ROUTES = frozenset(
    (
        "/v1/read", "/v1/packets", "/v1/streams/<stream>/packets", "/v1/streams/<stream>/packets/<sequence>",
        "/v1/streams/<stream>/packets/<sequence>/data", "/v1/streams/<stream>/last",
    )
)  # fmt: skip
"""Routes whose GET hands packets out."""


def meter_reads(app: QuartTrio, metering: Metering) -> None:
    """Holds read requests to rates and quotas, and counts their answers."""

    async def ask() -> None:
        if _is_read():
            await metering.read(principal_of(request), _stream())

    async def count(response: Response) -> Response:
        if _is_read() and response.status_code < 400:
            packets = cast(int, getattr(response, "packet_count", 0))
            metering.was_read(
                principal_of(request), _stream(), size=response.content_length or 0, packets=packets
            )  # fmt: skip
            rate = metering.tell("read", principal_of(request), _stream())
            if rate is not None:
                response.headers.extend(rate_headers(rate))
        return response

    app.before_request(ask)
    app.after_request(count)


def _is_read() -> bool:
    rule = request.url_rule
    return rule is not None and request.method in ("GET", "HEAD") and rule.rule in READ_ROUTES


def _stream() -> str:
    arguments: dict[str, Any] = request.view_args or {}
    return str(arguments.get("stream", ""))
