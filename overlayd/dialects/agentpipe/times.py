"""Times as AgentPipe's page reads them: what JavaScript's `toISOString` writes."""

from overlayd.model.clock import format_time_us


def iso_ms(time_us: int) -> str:
    """`2026-01-02T03:04:05.678Z`."""
    return f"{format_time_us(time_us)[:-4]}Z"


def iso_ms_or_none(time_us: int | None) -> str | None:
    """None stays None."""
    return None if time_us is None else iso_ms(time_us)
