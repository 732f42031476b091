"""The words in which the table of the API's operations is written (openapi.py)."""

from typing import Any, Literal

import msgspec

JSON = "application/json"


class Parameter(msgspec.Struct, frozen=True):
    """A query, path or header parameter."""

    name: str
    place: Literal["query", "path", "header"]
    description: str
    schema: dict[str, Any]
    is_required: bool = False


class Answer(msgspec.Struct, frozen=True):
    """A successful answer: status, words, and its body by content type: a type, several in a tuple, or a bare schema."""

    status: int
    description: str
    content: dict[str, Any] = {}


class Operation(msgspec.Struct, frozen=True):
    """One method on one path. `is_bare_allowed`: it may come without a body. `error_schema`: of errors that aren't told
    as problems."""

    method: Literal["get", "put", "post", "patch", "delete"]
    path: str
    summary: str
    tag: str
    answers: tuple[Answer, ...]
    parameters: tuple[Parameter, ...] = ()
    request: dict[str, Any] = {}
    errors: tuple[int, ...] = ()
    right: str = ""
    is_bare_allowed: bool = False
    error_schema: dict[str, Any] = {}


TEXT: dict[str, Any] = {"type": "string"}
INTEGER: dict[str, Any] = {"type": "integer", "minimum": 0}
BOOLEAN: dict[str, Any] = {"type": "boolean"}
OCTETS: dict[str, Any] = {}
NAME_SCHEMA = {"type": "string", "maxLength": 128, "pattern": r"^[a-z0-9_-]{1,64}(\.[a-z0-9_-]{1,64})*$"}

STREAM = Parameter("stream", "path", "Name of the stream", NAME_SCHEMA, True)
SEQUENCE = Parameter("sequence", "path", "Sequence of the packet", {"type": "integer", "minimum": 1}, True)
EPOCH = Parameter("epoch", "path", "Epoch of the log", {"type": "string", "pattern": "^[1-9][0-9]*[a-z2-7]{8}$"}, True)
LIMIT = Parameter("limit", "query", "At most so many", {"type": "integer", "minimum": 1, "maximum": 1000})


def query_of(name: str, description: str, schema: dict[str, Any] = TEXT) -> Parameter:
    """A query parameter."""
    return Parameter(name, "query", description, schema)


def many_of(name: str, description: str) -> Parameter:
    """A query parameter that may be given several times."""
    return Parameter(name, "query", description, {"type": "array", "items": TEXT})


LIVE_QUERY = (
    many_of("stream", "Pattern over stream names; * one token, > the rest"),
    many_of("topic", "Pattern over topics"),
    many_of("type", "Packet type"),
    many_of("key", "Packet key"),
    query_of("deliver", "When a packet is given", {"enum": ["appended", "confirmed", "both"]}),
    query_of("min_confirmations", "Depth, one of the stream's list", {"type": "integer", "minimum": 1}),
    query_of("filter", "A CEL expression over packet and data"),
    query_of("after", "Cursor to go on from"),
    query_of("from", "now, beginning, last or an RFC 3339 time"),
    query_of("format", "Form of the messages", {"enum": ["packet", "cloudevents"]}),
    query_of("status", "Status changes too", BOOLEAN),
    query_of("on_gap", "Announce a gap, or fail on it", {"enum": ["message", "error"]}),
)

PUBLISH_QUERY = (
    query_of("atomic", "All or none; default true for arrays and CloudEvents batches", BOOLEAN),
    query_of("expected_sequence", "The stream's last sequence before this request", INTEGER),
    query_of("stop_on_error", "NDJSON: stop at the first rejected line", BOOLEAN),
    query_of("proof", "Receipts with checkpoint and inclusion path", BOOLEAN),
    query_of("receipts", "NDJSON: write all receipts as NDJSON", {"enum": ["all"]}),
    Parameter("Idempotency-Key", "header", "Stands for id on a single packet", {"type": "string", "maxLength": 128}),
)
