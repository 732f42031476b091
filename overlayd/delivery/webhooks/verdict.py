"""What an answer means for a delivery. Pure."""

from overlayd.model.outlet import AttemptResult
from overlayd.outbound import OutboundAnswer
from overlayd.outbound.retry_after import parse_retry_after

GONE = 410
OBEYED = frozenset({429, 503})
"""Statuses whose Retry-After counts."""


def judge_answer(answer: OutboundAnswer, *, now_us: int, retry_after_max_s: float) -> AttemptResult:
    """2xx delivers, 410 ends the subscription, everything else is tried again."""
    status = answer.status
    if 200 <= status < 300:
        outcome, reason = "delivered", ""
    elif status == GONE:
        outcome, reason = "disable", "the receiver answered 410 Gone: it wants nothing more"
    elif 300 <= status < 400:
        outcome, reason = "retry", f"the receiver answered {status}; redirects aren't followed"
    else:
        outcome, reason = "retry", f"the receiver answered {status}"
    wait_s = None
    if status in OBEYED:
        wait_s = parse_retry_after(answer.header("retry-after"), now_us)
    return AttemptResult(
        outcome=outcome,  # type: ignore[arg-type] # one of the three, as written above
        reason=reason, status=status, retry_after_s=None if wait_s is None else min(wait_s, retry_after_max_s),
        response_excerpt=answer.body, duration_us=answer.duration_us,
    )  # fmt: skip
