"""The operations about legal holds and retention (openapi.py)."""

from overlayd.model import wire_retention
from overlayd.net.operations import JSON, STREAM, TEXT, Answer, Operation, Parameter

_HOLD = Parameter("hold", "path", "Number of the hold", TEXT, True)

RETENTION_OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "get", "/v1/streams/{stream}/holds", "What holds a stream's packets", "streams",
        (Answer(200, "The holds, oldest first", {JSON: wire_retention.HoldList}),), (STREAM,), {}, (400, 401, 403, 404),
        "manage",
    ),
    Operation(
        "post", "/v1/streams/{stream}/holds", "Hold packets: nothing takes them away until the hold is lifted", "streams",
        (Answer(201, "The hold", {JSON: wire_retention.HoldBody}),), (STREAM,), {JSON: wire_retention.HoldIn},
        (400, 401, 403, 404, 413, 415, 422, 429, 503, 507), "admin",
    ),
    Operation(
        "delete", "/v1/streams/{stream}/holds/{hold}", "Lift a hold", "streams", (Answer(204, "Lifted"),),
        (STREAM, _HOLD), {}, (400, 401, 403, 404, 503, 507), "admin",
    ),
    Operation(
        "get", "/v1/retention", "How taking packets away stands", "node",
        (Answer(200, "Clock, disk, holds", {JSON: wire_retention.RetentionBody}),), (), {}, (400, 401, 403), "manage",
    ),
    Operation(
        "post", "/v1/retention/trust-clock", "Say that the clock is right, so that packets age again", "node",
        (Answer(200, "How it stands now", {JSON: wire_retention.RetentionBody}),), (), {},
        (400, 401, 403, 503, 507), "admin",
    ),
)  # fmt: skip
