"""The operations about keys and tickets (openapi.py)."""

from overlayd.model import wire_access, wire_mutual
from overlayd.net.operations import JSON, LIMIT, TEXT, Answer, Operation, Parameter, query_of

_KEY = Parameter("key", "path", "Id of the key", TEXT, True)

ACCESS_OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "get", "/v1/keys", "List API keys", "access", (Answer(200, "Keys by id", {JSON: wire_access.KeyList}),),
        (query_of("owner", "Only this owner's"), LIMIT, query_of("after", "Id to go on from")), {}, (400, 401, 403), "admin",
    ),
    Operation(
        "post", "/v1/keys", "Make an API key; the answer is the only one that shows its secret", "access",
        (Answer(201, "The key with its secret", {JSON: wire_access.KeyMade}),), (), {JSON: wire_access.KeyIn},
        (400, 401, 403, 413, 415, 422, 429, 503, 507), "admin",
    ),
    Operation(
        "get", "/v1/keys/{key}", "One API key", "access", (Answer(200, "The key", {JSON: wire_access.KeyBody}),), (_KEY,), {},
        (401, 403, 404), "admin",
    ),
    Operation(
        "patch", "/v1/keys/{key}", "Change what a key may do, whose it is, when it ends", "access",
        (Answer(200, "The key", {JSON: wire_access.KeyBody}),), (_KEY,), {JSON: wire_access.KeyChangeIn},
        (400, 401, 403, 404, 409, 413, 415, 422, 503, 507), "admin",
    ),
    Operation(
        "delete", "/v1/keys/{key}", "Revoke an API key and end what it let in", "access", (Answer(204, "Revoked"),), (_KEY,), {},
        (401, 403, 404, 409, 503, 507), "admin",
    ),
    Operation(
        "post", "/v1/keys/{key}/rotate", "Give an API key another secret; the old ones go on for a while", "access",
        (Answer(200, "The key with its new secret", {JSON: wire_access.KeyMade}),), (_KEY,), {JSON: wire_access.KeyRotation},
        (400, 401, 403, 404, 409, 415, 422, 429, 503, 507), "admin", True,
    ),
    Operation(
        "post", "/v1/tickets", "A bearer for one live connection, for pages in a browser", "access",
        (Answer(201, "The ticket", {JSON: wire_access.TicketBody}),), (), {JSON: wire_access.TicketIn},
        (400, 401, 403, 413, 415, 422, 429), "any", True,
    ),
    Operation(
        "post", "/.well-known/auth", "Begin a session of mutual authentication (BRC-103, BRC-104)", "access",
        (Answer(200, "The node's half", {JSON: wire_mutual.HandshakeBody}),), (), {JSON: wire_mutual.HandshakeIn},
        (400, 401, 404, 408, 413, 415, 429, 503), "any",
    ),
)  # fmt: skip
