"""What an answer means for a delivery. Pure."""

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from overlayd.model.outlet import AttemptResult
from overlayd.outbound import OutboundAnswer

GONE = 410
OBEYED = frozenset({429, 503})
"""Statuses whose Retry-After counts."""
_SECONDS = re.compile(r"[0-9]{1,10}", re.ASCII)


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


def parse_retry_after(text: str, now_us: int) -> float | None:
    """Seconds from now: given as such, or as an HTTP date (RFC 9110, 10.2.3). None for anything else."""
    text = text.strip()
    if _SECONDS.fullmatch(text):
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() - now_us / 1e6)
