"""The operations about people and erasure (openapi.py)."""

from overlayd.model import wire_privacy as wire
from overlayd.net.operations import JSON, LIMIT, TEXT, Answer, Operation, Parameter, query_of

_SUBJECT = Parameter(
    "subject", "path", "Whom packets are about, as they name them", {"type": "string", "maxLength": 256}, True
)
_CONSENTS = (Answer(200, "The records", {JSON: wire.ConsentList}),)

PRIVACY_OPERATIONS = (
    Operation(
        "post", "/v1/erase", "Erase packets and everything that was made from them; answered when nothing of them is left",
        "privacy",
        (
            Answer(200, "Erased, or what would be erased", {JSON: wire.ErasureBody}),
            Answer(202, "Written down; it goes on, or waits for a hold to end", {JSON: wire.ErasureBody}),
        ),
        (), {JSON: wire.EraseIn}, (400, 401, 403, 404, 408, 409, 413, 415, 422, 503, 507), "manage",
    ),
    Operation(
        "get", "/v1/erase", "Erasures, the newest first", "privacy",
        (Answer(200, "A page", {JSON: wire.ErasureList}),),
        (LIMIT, query_of("before", "Id of the erasure to go on behind")), {}, (400, 401, 403), "manage",
    ),
    Operation(
        "get", "/v1/erase/{id}", "One erasure", "privacy", (Answer(200, "The erasure", {JSON: wire.ErasureBody}),),
        (Parameter("id", "path", "Id of the erasure", TEXT, True),), {}, (400, 401, 403, 404), "manage",
    ),
    Operation(
        "get", "/v1/subjects/{subject}", "Where packets about somebody are", "privacy",
        (Answer(200, "Streams and consents", {JSON: wire.SubjectBody}),), (_SUBJECT,), {}, (400, 401, 403, 503), "manage",
    ),
    Operation(
        "get", "/v1/subjects/{subject}/export", "The packets about somebody, a page at a time", "privacy",
        (Answer(200, "A page, by offset", {JSON: wire.SubjectExport}),),
        (_SUBJECT, LIMIT, query_of("after", "Offset to go on from", {"type": "integer", "minimum": 0})),
        {}, (400, 401, 403, 503), "manage",
    ),
    Operation(
        "get", "/v1/subjects/{subject}/consent", "What somebody consented to", "privacy", _CONSENTS, (_SUBJECT,), {},
        (400, 401, 403), "manage",
    ),
    Operation(
        "put", "/v1/subjects/{subject}/consent", "Record that somebody consented to a purpose, or doesn't any more",
        "privacy", (Answer(200, "The record", {JSON: wire.ConsentBody}),), (_SUBJECT,), {JSON: wire.ConsentIn},
        (400, 401, 403, 408, 413, 415, 422, 429, 503, 507), "manage",
    ),
    Operation(
        "post", "/v1/admin/rebuild/{part}", "Make an index anew from the log", "privacy",
        (Answer(202, "It is under way", {JSON: wire.RebuildBody}),),
        (Parameter("part", "path", "Which index", {"enum": ["subjects", "links"]}, True),), {}, (400, 401, 403, 503),
        "admin",
    ),
)  # fmt: skip
