"""What a request to the live path asks for over HTTP: the same on the live lane and in the application."""

from collections.abc import Mapping
from urllib.parse import parse_qsl

import msgspec
from werkzeug.datastructures import MIMEAccept
from werkzeug.http import parse_accept_header

from overlayd.delivery.delivery import Delivery
from overlayd.delivery.event_stream import StreamForm, StreamTransport
from overlayd.delivery.query import LiveQuery
from overlayd.model.cursor import Cursor
from overlayd.model.errors import BadCursor, BadParameter, NotAcceptable
from overlayd.net.encoding import takes_gzip

LIVE_PATH = "/v1/live"
CONTENT_TYPES: dict[str, StreamTransport] = {
    "text/event-stream": "sse", "application/x-ndjson": "ndjson", "application/ndjson": "ndjson",
}  # fmt: skip
"""What a live answer can be; the first is what a client gets that takes anything."""
LAST_EVENT_ID = "last_event_id"
_ARGUMENTS_MAX = 256


class StreamAsk(msgspec.Struct, frozen=True):
    """A live answer that is wanted."""

    query: LiveQuery
    form: StreamForm
    content_type: str

    @property
    def headers(self) -> list[tuple[str, str]]:
        """What its head says about it."""
        encoding = [("content-encoding", "gzip")] if self.form.is_gzip else []
        return [
            ("content-type", f"{self.content_type}; charset=utf-8"), *encoding, ("vary", "Accept, Accept-Encoding"),
            ("x-accel-buffering", "no"),
        ]  # fmt: skip


def stream_ask(delivery: Delivery, query: str, headers: Mapping[str, str], *, is_chunked: bool) -> StreamAsk:
    """What the request asks for. `query` as it was sent; `headers` by their names in lower case. Raises BadParameter and
    others, NotAcceptable."""
    content_type = _choose(headers.get("accept", "*/*"))
    form = StreamForm(CONTENT_TYPES[content_type], takes_gzip(headers.get("accept-encoding", "")), is_chunked)
    pairs = split_query(query) if query else []
    asked = [value for name, value in pairs if name == LAST_EVENT_ID]
    pairs = [(name, value) for name, value in pairs if name != LAST_EVENT_ID]
    last_event_id = headers.get("last-event-id", "") or (asked[-1] if asked else "")
    if last_event_id:  # where a browser says that it got to beats what its URL says
        try:
            Cursor.parse(last_event_id)
        except BadCursor as err:
            raise BadCursor(f"Last-Event-ID: {err.detail}", subject="Last-Event-ID", hint=err.hint) from err
        pairs = [(name, value) for name, value in pairs if name not in ("after", "from")]
        pairs.append(("after", last_event_id))
    return StreamAsk(delivery.parse_arguments(pairs), form, content_type)


def split_query(query: str) -> list[tuple[str, str]]:
    """A URL's query, percent-decoded, in pairs; without the ticket, which the gate took. Raises BadParameter."""
    try:
        pairs = parse_qsl(
            query, keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=_ARGUMENTS_MAX
        )
        return [pair for pair in pairs if pair[0] != "ticket"]
    except UnicodeDecodeError as err:
        raise BadParameter("the URL's query isn't percent-encoded UTF-8", subject="query") from err
    except ValueError as err:
        raise BadParameter(
            f"the URL's query can't be read: it must be at most {_ARGUMENTS_MAX} pairs of name=value, joined by &",
            subject="query",
        ) from err


def _choose(accept: str) -> str:
    """The content type to answer with. Raises NotAcceptable."""
    chosen = parse_accept_header(accept, MIMEAccept).best_match(CONTENT_TYPES)
    if chosen is None:
        raise NotAcceptable(
            f"live packets don't come as {accept[:100]}", subject="Accept",
            hint="Accept: text/event-stream or application/x-ndjson, or a WebSocket with subprotocol overlayd.v1",
        )  # fmt: skip
    return chosen
