"""The operations about usage and quotas (openapi.py)."""

from overlayd.model import wire_usage
from overlayd.model.quota import QuotaPolicy
from overlayd.net.operations import INTEGER, JSON, LIMIT, TEXT, Answer, Operation, Parameter, query_of

POLICY = Parameter("policy", "path", "Name of the policy", {"type": "string", "pattern": "^[a-z0-9_-]{1,64}$"}, True)
SESSION = Parameter("session", "path", "Id of the streaming session", TEXT, True)
RECEIPT = Parameter("receipt", "path", "Id of the receipt", {"type": "string", "maxLength": 128}, True)
RECEIPT_ELSEWHERE = (
    query_of("receiptId", "The receipt, where the body doesn't name it"),
    Parameter("X-Receipt-Id", "header", "The same", TEXT),
)
WHOSE = query_of("principal", "Whose; others than yourself need `manage`, which sees all of them without it")
TIME = {"type": "string", "format": "date-time"}

USAGE_OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "get", "/v1/usage", "What was published, read and delivered", "usage",
        (Answer(200, "Counts", {JSON: wire_usage.UsageBody}),),
        (
            WHOSE, query_of("stream", "Of one stream, or pattern as a reader named it"),
            query_of("method", "How", {"enum": ["publish", "read", "websocket", "sse", "ndjson", "pull", "webhook", "agent"]}),
            query_of("from", "From this hour on; default: 24 hours before `to`", TIME),
            query_of("to", "Up to this hour; default: now", TIME),
            query_of("by", "One row for each", {"enum": ["hour", "day", "total"]}), LIMIT,
            query_of("after", "What `next_after` said"),
        ),
        {}, (400, 403), "any",
    ),
    Operation(
        "get", "/v1/usage/deliveries", "Deliveries that are over, the newest first", "usage",
        (Answer(200, "Deliveries", {JSON: wire_usage.DeliveryList}),),
        (WHOSE, query_of("stream", "Of one stream, or pattern as a reader named it"), LIMIT,
         query_of("before", "What `next_before` said", INTEGER)),
        {}, (400, 403), "any",
    ),
    Operation(
        "get", "/v1/quotas", "What you used and have left", "usage",
        (Answer(200, "Windows of hour, day and month", {JSON: wire_usage.QuotaBody}),),
        (query_of("principal", "Somebody else's, with `manage`"),), {}, (400, 403), "any",
    ),
    Operation(
        "get", "/v1/quotas/policies", "All policies; without `manage` only your own", "usage",
        (Answer(200, "Policies", {JSON: wire_usage.PolicyList}),), (), {}, (400,), "any",
    ),
    Operation(
        "get", "/v1/quotas/policies/{policy}", "One policy", "usage", (Answer(200, "The policy", {JSON: QuotaPolicy}),),
        (POLICY,), {}, (403, 404), "manage",
    ),
    Operation(
        "put", "/v1/quotas/policies/{policy}", "Create a policy, or change it for everybody who has it", "usage",
        (Answer(201, "Created", {JSON: QuotaPolicy}), Answer(200, "Changed", {JSON: QuotaPolicy})),
        (POLICY,), {JSON: QuotaPolicy}, (400, 403, 413, 415, 422, 429), "admin",
    ),
    Operation(
        "delete", "/v1/quotas/policies/{policy}", "Take a policy away; whoever has it is refused", "usage",
        (Answer(204, "Gone"),), (POLICY,), {}, (403, 404, 409), "admin",
    ),
    Operation(
        "post", "/v1/streaming/sessions", "Begin a streaming session on a receipt", "streaming",
        (Answer(200, "Begun", {JSON: wire_usage.StreamingOpened}),), RECEIPT_ELSEWHERE,
        {JSON: wire_usage.StreamingOpen}, (400, 403, 413, 415, 422, 429), "subscribe",
    ),
    Operation(
        "get", "/v1/streaming/sessions/{session}", "A streaming session as it stands", "streaming",
        (Answer(200, "The session", {JSON: wire_usage.StreamingState}),), (SESSION,), {}, (403, 404), "subscribe",
    ),
    Operation(
        "get", "/v1/streaming/quotas/{receipt}", "Where a receipt stands", "streaming",
        (Answer(200, "Its windows", {JSON: wire_usage.ReceiptQuota}),), (RECEIPT,), {}, (403, 404), "subscribe",
    ),
    Operation(
        "post", "/v1/streaming/quotas/policies", "Create or change a policy", "streaming",
        (Answer(200, "The policy", {JSON: wire_usage.PolicyMade}),), (), {JSON: wire_usage.PolicyIn},
        (400, 403, 413, 415, 422, 429), "admin",
    ),
    Operation(
        "post", "/v1/agent/streaming/sessions", "Create, update or complete an agent's session", "streaming",
        (Answer(200, "The session after the step", {JSON: wire_usage.AgentSessionOut}),), RECEIPT_ELSEWHERE,
        {JSON: wire_usage.AgentSessionIn}, (400, 403, 404, 413, 415, 422, 429), "subscribe",
    ),
)  # fmt: skip
