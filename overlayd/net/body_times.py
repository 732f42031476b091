"""Times and durations that stand in a body as text."""

from msgspec import UnsetType

from overlayd.model.clock import parse_time_us
from overlayd.model.errors import BadParameter
from overlayd.model.units import Duration


def end_us_of(text: str | UnsetType, name: str) -> int:
    """When something ends, as Unix µs; 0, for never, when it is left out. Raises BadParameter."""
    if not isinstance(text, str):
        return 0
    try:
        return parse_time_us(text) or 1  # 0 would be "never"
    except (ValueError, OverflowError) as err:
        raise BadParameter(f"{name} must be an RFC 3339 time with a zone, not {text[:60]!r}", subject=name) from err


def seconds_of(text: str | UnsetType, name: str) -> float | None:
    """A duration of a body, None when it is left out. Raises BadParameter."""
    if not isinstance(text, str):
        return None
    try:
        return float(Duration.parse(text))
    except ValueError as err:
        raise BadParameter(f"{name}: {err}", subject=name) from err
