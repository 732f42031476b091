"""What a publish request asks for, read from its query and headers. Every lane reads it here."""

from collections.abc import Sequence

from overlayd.access import Principal
from overlayd.model.errors import BadParameter
from overlayd.model.names import parse_stream_name
from overlayd.net.parameters import Parameters
from overlayd.net.publish import Ask, DataAsk
from overlayd.pipeline.members import is_traceparent

PACKETS_QUERY = ("atomic", "expected_sequence", "stop_on_error", "proof", "receipts")
DATA_QUERY = ("id", "type", "key", "expected_sequence", "proof")


def packets_ask(stream: str, principal: Principal, headers: Sequence[tuple[bytes, bytes]], query: str, url: str) -> Ask:
    """A request to `…/packets`. Names of headers are in lower case. Raises BadParameter, InvalidName."""
    return _ask(stream, principal, headers, Parameters(query, PACKETS_QUERY), url)


def data_ask(
    stream: str, principal: Principal, headers: Sequence[tuple[bytes, bytes]], query: str, url: str
) -> tuple[Ask, DataAsk]:
    """A request to `…/data`, and what its query says about the packet. Raises BadParameter, InvalidName."""
    parameters = Parameters(query, DATA_QUERY)
    data = DataAsk(parameters.text("id"), parameters.text("type"), parameters.text("key"))
    return _ask(stream, principal, headers, parameters, url), data


def encoding_of(headers: Sequence[tuple[bytes, bytes]]) -> str:
    """The body's content encoding, "" without one."""
    for name, value in headers:
        if name == b"content-encoding":
            return value.decode("latin-1")
    return ""


def _ask(
    stream: str, principal: Principal, headers: Sequence[tuple[bytes, bytes]], parameters: Parameters, url: str
) -> Ask:
    """Where a header comes twice, the first one counts, but an Idempotency-Key may not."""
    content_type: str | None = None
    traceparent: str | None = None
    keys: list[str] = []
    is_binary_event = False
    for name, value in headers:
        if name == b"content-type":
            content_type = value.decode("latin-1") if content_type is None else content_type
        elif name == b"idempotency-key":
            keys.append(_key_of(value))
        elif name == b"traceparent":
            traceparent = value.decode("latin-1") if traceparent is None else traceparent
        elif name == b"ce-specversion":
            is_binary_event = True
    if len(keys) > 1 or keys == [""]:
        raise BadParameter("Idempotency-Key must be one value that isn't empty", subject="Idempotency-Key")
    return Ask(
        stream=parse_stream_name(stream),
        principal=principal,
        content_type=content_type or "",
        event_headers=_texts(headers) if is_binary_event else (),
        url=url,
        atomic=parameters.flag("atomic"),
        expected_sequence=parameters.number("expected_sequence"),
        stop_on_error=bool(parameters.flag("stop_on_error")),
        with_proof=bool(parameters.flag("proof")),
        all_receipts=parameters.choice("receipts", ("all",)) == "all",
        idempotency_key=keys[0] if keys else "",
        traceparent=traceparent if traceparent is not None and is_traceparent(traceparent) else "",
    )


def _texts(headers: Sequence[tuple[bytes, bytes]]) -> tuple[tuple[str, str], ...]:
    return tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in headers)


def _key_of(value: bytes) -> str:
    """An Idempotency-Key, which stands for an id and so is UTF-8 like one. Raises BadParameter."""
    try:
        return value.decode()
    except UnicodeDecodeError as err:
        raise BadParameter("Idempotency-Key isn't UTF-8", subject="Idempotency-Key") from err
