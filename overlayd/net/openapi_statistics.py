"""The operations about statistics (openapi.py)."""

from overlayd.model import wire_statistics
from overlayd.net.operations import JSON, LIMIT, STREAM, Answer, Operation, query_of

STATISTICS_OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "get", "/v1/stats", "What came in, went out and was refused, by stream and in all", "node",
        (Answer(200, "The node's figures and a page of its streams'", {JSON: wire_statistics.StatsBody}),),
        (
            LIMIT, query_of("after", "What `next_after` said; with order=name"),
            query_of("order", "name: every stream, page by page. recent: those that got a packet last", {"enum": ["name", "recent"]}),
        ),
        {}, (400, 401, 403), "manage",
    ),
    Operation(
        "get", "/v1/streams/{stream}/stats", "A stream's statistics", "streams",
        (Answer(200, "Its figures since it was created", {JSON: wire_statistics.StreamStats}),), (STREAM,), {},
        (400, 401, 403, 404), "read",
    ),
)  # fmt: skip
