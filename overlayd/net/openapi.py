"""The served OpenAPI 3.1 document: made from one table of operations and the structs that travel.

A test holds the table against the app's routes: an operation without a route, or a route without an
operation, fails.
"""

from collections.abc import Sequence
from typing import Any

import overlayd
from overlayd.model import wire, wire_admin
from overlayd.model.definition import Definition
from overlayd.model.errors import OverlaydError, error_classes
from overlayd.model.key_chain import LogKeysBody
from overlayd.model.wire_publish import PacketIn
from overlayd.model.wire_schema import schema_components
from overlayd.net.openapi_access import ACCESS_OPERATIONS
from overlayd.net.openapi_backup import BACKUP_OPERATIONS
from overlayd.net.openapi_chain import CHAIN_OPERATIONS
from overlayd.net.openapi_privacy import PRIVACY_OPERATIONS
from overlayd.net.openapi_retention import RETENTION_OPERATIONS
from overlayd.net.openapi_statistics import STATISTICS_OPERATIONS
from overlayd.net.openapi_subscriptions import SUBSCRIPTION_OPERATIONS
from overlayd.net.openapi_usage import USAGE_OPERATIONS
from overlayd.net.operations import (
    BOOLEAN,
    EPOCH,
    INTEGER,
    JSON,
    LIMIT,
    LIVE_QUERY,
    OCTETS,
    PUBLISH_QUERY,
    SEQUENCE,
    STREAM,
    TEXT,
    Answer,
    Operation,
    Parameter,
    query_of,
)

REF = "#/components/schemas/{name}"

OPERATIONS: tuple[Operation, ...] = (
    *ACCESS_OPERATIONS,
    *BACKUP_OPERATIONS,
    *CHAIN_OPERATIONS,
    *RETENTION_OPERATIONS,
    *STATISTICS_OPERATIONS,
    *USAGE_OPERATIONS,
    *SUBSCRIPTION_OPERATIONS,
    *PRIVACY_OPERATIONS,
    Operation(
        "post", "/v1/streams/{stream}/packets", "Publish packets; answered when they are durable", "publish",
        (
            Answer(201, "Durable: the receipt, or what became of several packets", {JSON: (wire.ReceiptBody, wire.PublishBody)}),
            Answer(200, "Everything was durable before", {JSON: (wire.ReceiptBody, wire.PublishBody)}),
        ),
        (STREAM, *PUBLISH_QUERY),
        {
            JSON: (PacketIn, list[PacketIn]),
            "application/x-ndjson": TEXT,
            "application/cloudevents+json": {"type": "object"},
            "application/cloudevents-batch+json": {"type": "array", "items": {"type": "object"}},
        },
        (400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 503, 507), "publish",
    ),
    Operation(
        "post", "/v1/streams/{stream}/data", "Publish whatever body as the data of one packet", "publish",
        (Answer(201, "Durable", {JSON: wire.ReceiptBody}), Answer(200, "Durable before", {JSON: wire.ReceiptBody})),
        (
            STREAM, query_of("id", "The packet's id"), query_of("type", "The packet's type"), query_of("key", "The packet's key"),
            query_of("expected_sequence", "The stream's last sequence before this request", INTEGER),
            query_of("proof", "Receipt with checkpoint and inclusion path", BOOLEAN), PUBLISH_QUERY[-1],
        ),
        {"*/*": OCTETS},
        (400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 503, 507), "publish",
    ),
    Operation(
        "get", "/v1/streams/{stream}/packets", "Read or wait for packets of a stream", "read",
        (Answer(200, "Packets and gaps behind `after`", {JSON: wire.PacketsBody}),),
        (
            STREAM, query_of("after", "Sequence to go on from", INTEGER), LIMIT,
            query_of("wait", "Hold so long for a first packet, such as 30s; at most 55s"),
            query_of("deliver", "When a packet is given", {"enum": ["appended", "confirmed"]}),
        ),
        {}, (400, 403, 404, 429, 503), "read",
    ),
    Operation(
        "get", "/v1/streams/{stream}/packets/{sequence}", "One packet, as it stands now", "read",
        (Answer(200, "The packet", {JSON: wire.Packet}), Answer(304, "Not changed")),
        (STREAM, SEQUENCE), {}, (400, 403, 404, 410), "read",
    ),
    Operation(
        "get", "/v1/streams/{stream}/packets/{sequence}/data", "The packet's body, byte for byte", "read",
        (Answer(200, "The body", {JSON: OCTETS, "application/octet-stream": OCTETS}), Answer(304, "Not changed")),
        (STREAM, SEQUENCE), {}, (400, 403, 404, 410), "read",
    ),
    Operation(
        "get", "/v1/streams/{stream}/packets/{sequence}/proof", "A proof that stands alone", "proofs",
        (Answer(200, "The proof file", {JSON: {"type": "object"}, "text/plain": TEXT}),),
        (STREAM, SEQUENCE, query_of("format", "C2SP tlog-proof instead of JSON", {"enum": ["tlog-proof"]})),
        {}, (400, 403, 404, 410), "read",
    ),
    Operation(
        "get", "/v1/streams/{stream}/last", "The newest packet, also per key", "read",
        (Answer(200, "The packet", {JSON: wire.Packet}),),
        (STREAM, query_of("key", "Newest packet with this key")), {}, (400, 403, 404), "read",
    ),
    Operation(
        "get", "/v1/packets", "Packets by their id", "read", (Answer(200, "What the caller may read", {JSON: wire.PacketList}),),
        (query_of("id", "The producer's id"), query_of("txid", "Transaction id")), {}, (400, 403), "any",
    ),
    Operation(
        "get", "/v1/read", "Read messages of a live query, page by page", "read",
        (Answer(200, "Messages and a moved cursor", {JSON: wire.ReadBody}),),
        (*LIVE_QUERY, LIMIT, query_of("wait", "Hold so long for a first message; at most 55s")),
        {}, (400, 403, 404, 410, 422, 429, 503), "read",
    ),
    Operation(
        "get", "/v1/live", "Live packets as server-sent events or NDJSON (WebSocket: see /asyncapi.json)", "live",
        (Answer(200, "An endless answer", {"text/event-stream": TEXT, "application/x-ndjson": TEXT}),),
        (
            *LIVE_QUERY, query_of("heartbeat", "Such as 15s"), query_of("seen", "size:root last seen, to be told of a fork"),
            query_of("last_event_id", "As the Last-Event-ID header"),
            Parameter("Last-Event-ID", "header", "Cursor to resume from", TEXT),
        ),
        {}, (400, 403, 404, 406, 409, 410, 422, 426, 429, 503), "subscribe",
    ),
    Operation(
        "get", "/v1/streams", "List streams", "streams", (Answer(200, "Streams by name", {JSON: wire.StreamList}),),
        (
            query_of("q", "Text in name or title"), query_of("tag", "A tag"),
            query_of("state", "Only this state", {"enum": ["active", "paused", "stopped"]}), LIMIT, query_of("after", "Name to go on from"),
        ),
        {}, (400, 403), "any",
    ),
    Operation(
        "get", "/v1/streams/{stream}", "A stream and where it stands", "streams",
        (Answer(200, "The stream; its ETag is for If-Match", {JSON: wire.StreamBody}), Answer(304, "Not changed")),
        (STREAM,), {}, (400, 403, 404), "read",
    ),
    Operation(
        "put", "/v1/streams/{stream}", "Create or change a stream", "streams",
        (Answer(200, "As it is now", {JSON: wire.StreamBody}), Answer(201, "Created", {JSON: wire.StreamBody})),
        (STREAM, Parameter("If-Match", "header", "ETag of the definition to be replaced", TEXT)),
        {JSON: Definition}, (400, 401, 403, 409, 413, 415, 422, 429, 507), "manage",
    ),
    Operation(
        "delete", "/v1/streams/{stream}", "Delete a stream and its packets", "streams",
        (Answer(200, "What was removed", {JSON: wire.StreamRemoved}),),
        (
            STREAM, Parameter("confirm", "query", "The stream's name again", TEXT, True),
            query_of("expected_sequence", "Refused when its newest packet is another one; 0: when it has any", INTEGER),
            Parameter("If-Match", "header", "ETag of the definition that is meant", TEXT),
        ),
        {}, (400, 401, 403, 404, 409), "manage",
    ),
    Operation(
        "put", "/v1/streams/{stream}/state", "Pause, stop or resume a stream", "streams",
        (Answer(200, "As it is now", {JSON: wire.StreamBody}),), (STREAM,), {JSON: wire.StreamStateBody},
        (400, 401, 403, 404, 409, 415, 422), "manage",
    ),
    Operation(
        "get", "/v1/sessions", "Live connections", "live", (Answer(200, "Sessions", {JSON: wire.SessionList}),), (), {}, (401, 403), "manage",
    ),
    Operation(
        "delete", "/v1/sessions/{session}", "End a live connection", "live", (Answer(204, "Ended"),),
        (Parameter("session", "path", "Id of the session", TEXT, True),), {}, (401, 403, 404), "admin",
    ),
    Operation(
        "get", "/v1/log/checkpoint", "The newest signed checkpoint", "proofs", (Answer(200, "C2SP signed note", {"text/plain": TEXT}),),
        (), {}, (403,), "read",
    ),
    Operation(
        "get", "/v1/log/{epoch}/checkpoint", "The newest signed checkpoint of an epoch", "proofs",
        (Answer(200, "C2SP signed note", {"text/plain": TEXT}),), (EPOCH,), {}, (400, 403, 404, 410), "read",
    ),
    Operation(
        "get", "/v1/log/keys", "The log's keys, and what introduced each", "proofs",
        (Answer(200, "The first key first", {JSON: LogKeysBody}),), (), {}, (403,), "read",
    ),
    Operation(
        "post", "/v1/log/keys/rotate", "Change the key that signs checkpoints", "proofs",
        (Answer(200, "All keys, the new one the last", {JSON: LogKeysBody}),), (), {}, (403, 501, 503, 507), "admin",
    ),
    Operation(
        "get", "/v1/log/consistency", "That a newer log begins with an older one", "proofs",
        (Answer(200, "RFC 6962 consistency path", {JSON: wire.ConsistencyBody}),),
        (Parameter("from", "query", "Older size", INTEGER, True), query_of("to", "Newer size; default the newest checkpoint's", INTEGER)),
        {}, (400, 403, 410), "read",
    ),
    Operation(
        "get", "/v1/log/{epoch}/tile/{tile}", "C2SP tlog-tiles", "proofs",
        (Answer(200, "Hashes, or entries", {"application/octet-stream": OCTETS}),),
        (EPOCH, Parameter("tile", "path", "L/N, L/N.p/W or entries/N, N in groups of three digits", TEXT, True)),
        {}, (400, 403, 404), "read, audit for entries",
    ),
    Operation(
        "post", "/v1/admin/reload", "Read the configuration anew, without ending a session", "node",
        (Answer(200, "What changed, and what waits for a restart", {JSON: wire_admin.ReloadBody}),),
        (query_of("dry_run", "Only tell what would change", BOOLEAN),), {}, (400, 403, 422, 503, 507), "admin",
    ),
    Operation("get", "/healthz", "Alive", "node", (Answer(200, "Alive", {JSON: {"type": "object"}}),)),
    Operation(
        "get", "/readyz", "Can take packets", "node",
        (Answer(200, "Ready", {JSON: wire.ReadyBody}), Answer(503, "Not ready, and why", {JSON: wire.ReadyBody})),
    ),
    Operation("get", "/metrics", "OpenMetrics or Prometheus text", "node", (Answer(200, "Metrics", {"text/plain": TEXT}),), (), {}, (403,), "read"),
    Operation("get", "/v1/node", "Who this node is and where its log stands", "node", (Answer(200, "The node", {JSON: wire.NodeBody}),), (), {}, (403,), "any"),
    Operation("get", "/openapi.json", "This document", "node", (Answer(200, "OpenAPI 3.1", {JSON: {"type": "object"}}),)),
    Operation("get", "/asyncapi.json", "The live protocol", "node", (Answer(200, "AsyncAPI 3.0", {JSON: {"type": "object"}}),)),
    Operation("get", "/docs", "These documents for people", "node", (Answer(200, "A page", {"text/html": TEXT}),)),
    Operation("get", "/docs/errors", "What each error code means", "node", (Answer(200, "A page", {"text/html": TEXT}),)),
)  # fmt: skip


def build_openapi(more: Sequence[Operation] = ()) -> dict[str, Any]:
    """The whole document. It depends on nothing but this version of the code. `more`: operations of dialects."""
    operations = (*OPERATIONS, *more)
    kinds: list[Any] = [wire.Problem]
    for operation in operations:
        for content in (operation.request, *(answer.content for answer in operation.answers)):
            for kind in content.values():
                kinds += [] if isinstance(kind, dict) else _alternatives(kind)
    schemas, components = schema_components(kinds, ref_template=REF)
    by_kind = {_key(kind): schema for kind, schema in zip(kinds, schemas, strict=True)}
    paths: dict[str, Any] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation, by_kind)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "overlayd", "version": overlayd.__version__,
            "description": "A durable, verifiable event broker for an edge node.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "tags": [{"name": name} for name in dict.fromkeys(operation.tag for operation in operations)],
        "paths": paths,
        "components": {"schemas": components},
    }  # fmt: skip


def _alternatives(kind: Any) -> list[Any]:
    return list(kind) if isinstance(kind, tuple) else [kind]


def _key(kind: Any) -> str:
    return repr(kind)


def _content(content: dict[str, Any], by_kind: dict[str, Any]) -> dict[str, Any]:
    return {name: {"schema": _schema(kind, by_kind)} for name, kind in content.items()}


def _schema(kind: Any, by_kind: dict[str, Any]) -> dict[str, Any]:
    if isinstance(kind, dict):
        return kind
    schemas = [by_kind[_key(one)] for one in _alternatives(kind)]
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


def _operation(operation: Operation, by_kind: dict[str, Any]) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for answer in operation.answers:
        responses[str(answer.status)] = {"description": answer.description} | (
            {"content": _content(answer.content, by_kind)} if answer.content else {}
        )
    problem = {"application/problem+json": {"schema": by_kind[_key(wire.Problem)]}}
    if operation.error_schema:
        problem = {JSON: {"schema": operation.error_schema}}
    for status in operation.errors:
        responses[str(status)] = {"description": _error_words(status), "content": problem}
    responses["default"] = {"description": "A problem", "content": problem}
    document: dict[str, Any] = {
        "operationId": _operation_id(operation), "summary": operation.summary, "tags": [operation.tag], "responses": responses,
    }  # fmt: skip
    if operation.right:
        is_any = operation.right == "any"
        document["description"] = "For everybody who is let in." if is_any else f"Needs the right `{operation.right}`."
    if operation.parameters:
        document["parameters"] = [
            {"name": p.name, "in": p.place, "description": p.description, "required": p.is_required, "schema": p.schema}
            for p in operation.parameters
        ]
    if operation.request:
        document["requestBody"] = {
            "required": not operation.is_bare_allowed,
            "content": _content(operation.request, by_kind),
        }
    return document


def _operation_id(operation: Operation) -> str:
    words = [word.strip("{}").replace(".", "_") for word in operation.path.split("/") if word]
    return "_".join([operation.method, *words])


def _error_words(status: int) -> str:
    codes: Sequence[type[OverlaydError]] = [kind for kind in error_classes() if kind.status == status]
    return "; ".join(f"{kind.code}: {kind.title}" for kind in codes) or "A problem"
