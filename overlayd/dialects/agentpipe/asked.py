"""What a read request asks for: its query as AgentPipe's page writes it. Unknown parameters are passed over, as there."""

from collections.abc import Mapping, Sequence
from typing import Any

from overlayd.dialects.agentpipe.checks import is_timestamp, time_us_of
from overlayd.dialects.agentpipe.facts import STATUSES, pico, whole
from overlayd.dialects.agentpipe.queries import SORTS, Ordered, Wanted, escape_like, quote_search
from overlayd.model.clock import parse_time_us
from overlayd.model.errors import BadParameter

DAY = "T00:00:00Z"
PAGE_FIRST, LIMIT = 1, 20
QUERY_CHARS_MAX = 1000
LIST_MAX = 100


def number_of(arguments: Mapping[str, str], names: Sequence[str], default: int, *, most: int) -> int:
    """The first that is given of equal parameters, brought into 1 to `most`. Raises BadParameter."""
    for name in names:
        text = arguments.get(name, "")
        if text:
            if not text.isascii() or not text.lstrip("-").isdigit() or len(text) > 18:
                raise BadParameter(f"{name} must be a whole number, not {text[:40]!r}", subject=name)
            return max(1, min(most, int(text)))
    return default


def flag_of(arguments: Mapping[str, str], name: str) -> bool:
    """False when it isn't given."""
    return arguments.get(name, "").lower() in ("true", "1")


def page_of(arguments: Mapping[str, str], limit_max: int, limit_names: Sequence[str] = ("limit",)) -> tuple[int, int]:
    """Page and limit."""
    page = number_of(arguments, ("page",), PAGE_FIRST, most=1 << 40)
    return page, number_of(arguments, limit_names, min(LIMIT, limit_max), most=limit_max)


def ordered_of(arguments: Mapping[str, str], page: int, limit: int) -> Ordered:
    """The order that a list is asked for in. Raises BadParameter."""
    sort = arguments.get("sortBy") or arguments.get("sort") or "createdAt"
    order = arguments.get("sortOrder") or arguments.get("order") or "desc"
    if sort not in SORTS:
        raise BadParameter(f"sort must be one of {', '.join(SORTS)}, not {sort[:40]!r}", subject="sort")
    if order not in ("asc", "desc"):
        raise BadParameter(f"order must be asc or desc, not {order[:40]!r}", subject="order")
    return Ordered(sort, order == "desc", limit, (page - 1) * limit)


def wanted_of(arguments: Mapping[str, str], streams: tuple[str, ...] | None) -> Wanted:
    """The filters of a list. A status that there isn't is passed over, as AgentPipe's page expects. Raises BadParameter."""

    def one(name: str) -> tuple[str, ...]:
        return (arguments[name],) if arguments.get(name) else ()

    status = arguments.get("status", "")
    return Wanted(
        statuses=(status,) if status in STATUSES else (), modes=one("mode"), sources=one("source"),
        agent_types=one("agentType"), models=one("model"), start_us=_time(arguments.get("startDate"), "startDate"),
        end_us=_time(arguments.get("endDate"), "endDate"), streams=streams,
    )  # fmt: skip


def search_of(body: dict[str, Any], streams: tuple[str, ...] | None, terms_max: int) -> tuple[Wanted, bool]:
    """What `POST /api/search` looks for, and whether it has more words than are looked for. Raises BadParameter."""
    query, filters = body.get("query", ""), body.get("filters") or {}
    if not isinstance(query, str) or not isinstance(filters, dict):
        raise BadParameter("query must be a text and filters an object", subject="query")
    if len(query) > QUERY_CHARS_MAX:
        raise BadParameter(f"query has {len(query)} characters; {QUERY_CHARS_MAX} are taken", subject="query")
    query = query.replace("\0", " ")  # at which a pattern of LIKE would end
    text, words = quote_search(query, terms_max)
    wanted = Wanted(
        statuses=_texts(filters, "status"), agent_types=_texts(filters, "agentTypes"), models=_texts(filters, "models"),
        start_us=_time(filters.get("startDate"), "startDate"), end_us=_time(filters.get("endDate"), "endDate"),
        cost_min=_amount(filters, "minCost", is_cost=True), cost_max=_amount(filters, "maxCost", is_cost=True),
        tokens_min=_amount(filters, "minTokens"), tokens_max=_amount(filters, "maxTokens"), text=text,
        prompt=escape_like(query.strip()) if query.strip() else "", streams=streams,
    )  # fmt: skip
    return wanted, words > terms_max


def arguments_of(body: dict[str, Any]) -> dict[str, str]:
    """The paging members of a search's body, as if they stood in a query. Raises BadParameter."""
    found = {}
    for name in ("page", "limit", "sort", "order"):
        value = body.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise BadParameter(f"{name} must be a number or a text", subject=name)
        found[name] = str(value)
    return found


def _time(text: Any, name: str) -> int | None:
    """A time, or a day."""
    if text in (None, ""):
        return None
    if isinstance(text, str) and len(text) <= 40:
        whole_text = text + DAY if len(text) == 10 else text
        if is_timestamp(whole_text):
            return time_us_of(whole_text)
        try:
            return parse_time_us(whole_text)
        except (ValueError, OverflowError):
            pass
    raise BadParameter(f"{name} must be a date or a date and time with a zone", subject=name)


def _texts(filters: dict[str, Any], name: str) -> tuple[str, ...]:
    found = filters.get(name) or []
    if not isinstance(found, list) or len(found) > LIST_MAX or not all(isinstance(one, str) for one in found):
        raise BadParameter(f"filters.{name} must be a list of at most {LIST_MAX} texts", subject=name)
    return tuple(found)


def _amount(filters: dict[str, Any], name: str, *, is_cost: bool = False) -> int | None:
    value = filters.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadParameter(f"filters.{name} must be a number", subject=name)
    return pico(value) if is_cost else whole(value)
