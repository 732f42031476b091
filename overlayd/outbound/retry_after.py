"""Retry-After: when another server wants to be asked again. Pure."""

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_SECONDS = re.compile(r"[0-9]{1,10}", re.ASCII)


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
