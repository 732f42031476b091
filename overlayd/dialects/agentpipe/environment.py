"""The variables by which AgentPipe's own web server is set up, as settings of this node. They count only while the
surface is on, and less than a variable of the node's own."""

import json
from collections.abc import Callable, Mapping

import msgspec


class ForeignVariable(msgspec.Struct, frozen=True):
    """A setting that another system's variable gives: the dotted key, its value as text, the variable."""

    key: str
    text: str
    variable: str


def _origins(text: str) -> str:
    return json.dumps([origin.strip() for origin in text.split(",") if origin.strip()])


def _milliseconds(text: str) -> str:
    return f"{text.strip()}ms"


_SINGLE: dict[str, tuple[str, Callable[[str], str]]] = {
    "AGENTPIPE_BRIDGE_API_KEY": ("agentpipe.bridge_key", str.strip),
    "ALLOWED_ORIGINS": ("listen.origins", _origins),
    "SSE_MAX_CONNECTIONS": ("agentpipe.sse_connections", str.strip),
    "SSE_HEARTBEAT_INTERVAL": ("agentpipe.sse_heartbeat", _milliseconds),
    "ENABLE_METRICS": ("metrics.enabled", lambda text: text.strip().lower()),
    "LOG_LEVEL": ("log.level", lambda text: {"warn": "warning"}.get(text.strip().lower(), text.strip().lower())),
    "LOG_FORMAT": ("log.format", lambda text: text.strip().lower()),
}
RATE_COUNT, RATE_WINDOW = "RATE_LIMIT_MAX_REQUESTS", "RATE_LIMIT_WINDOW_SECONDS"
VARIABLES = (*_SINGLE, RATE_COUNT, RATE_WINDOW)
_COUNT_DEFAULT, _WINDOW_DEFAULT = "100", "60"
_WINDOWS = {1: "s", 60: "min", 3600: "h", 86_400: "d"}


def read_variables(environ: Mapping[str, str]) -> list[ForeignVariable]:
    """Those of AgentPipe's variables that are set. Empty ones count as not set."""
    found = [
        ForeignVariable(key, convert(environ[variable]), variable)
        for variable, (key, convert) in _SINGLE.items()
        if environ.get(variable, "").strip()
    ]
    count, window = environ.get(RATE_COUNT, "").strip(), environ.get(RATE_WINDOW, "").strip()
    if count or window:
        text = _rate_of(count or _COUNT_DEFAULT, window or _WINDOW_DEFAULT)
        found.append(ForeignVariable("agentpipe.ingest_rate", text, RATE_COUNT if count else RATE_WINDOW))
    return found


def _rate_of(count: str, window: str) -> str:
    """As the settings write a rate; a window without a name of its own is spread over an hour."""
    if not (count.isascii() and count.isdigit() and window.isascii() and window.isdigit() and int(window)):
        return f"{count}/{window} seconds"  # which is no rate, and is told with the variable's name
    seconds = int(window)
    if seconds in _WINDOWS:
        return f"{count}/{_WINDOWS[seconds]}"
    return f"{max(1, int(count) * 3600 // seconds)}/h burst {count}"
