"""Logs: structlog on standard error, as JSON for machines or readable on a terminal.

The standard library's loggers (Hypercorn, Quart, trio-asyncio, warnings) are bridged into the same form.
"""

import contextlib
import io
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping, MutableMapping
from typing import Annotated, Any, Literal, TextIO, cast

import msgspec
import structlog
from msgspec import Meta

from overlayd.model.clock import Clock, format_time_us

Event = MutableMapping[str, Any]
Processor = Callable[[Any, str, Event], Any]

VALUE_CHARS_MAX = 4000
"""A longer text in a log line is cut; an exception's trace may have eight times as much."""

FaultWatch = Callable[[BaseException, str, str], None]
"""Gets an error that is logged with its trace, the fixed words of the line, and the logger's name."""

ACCESS_LOGGER = "access"
"""Name of the logger that writes one line for each request."""

_SECRET_NAMES = re.compile(
    r"authorization|cookie|passw(or)?d|secret|token|credential|private_key|api_?key|signing_key|\bseed\b|ssalt|csalt|^salt$",
    re.IGNORECASE,
)
_SECRET_TEXTS = re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{6,}")
_SUBJECTS = re.compile(r"(/v1/subjects/)[^/?\s\"]+")
_KEY_TEXTS = re.compile(r"((?:ovl|ap)_live_|ovl_ticket_)[A-Za-z0-9_-]{20,}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


class LogSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Table `[log]`: what the node writes to standard error."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="Least severe level that is written")
    ] = "info"
    format: Annotated[
        Literal["auto", "json", "text"],
        Meta(description="auto: text on a terminal, JSON lines under systemd and everywhere else"),
    ] = "auto"
    access: Annotated[bool, Meta(description="One line for each request, without its headers and body")] = True


_fault_watch: list[FaultWatch] = []
"""At most one. Beside structlog's own configuration, which is the process's too, and outlives a new one of that."""


def watch_faults(watch: FaultWatch | None) -> None:
    """From now on `watch` hears of each error that is logged with its trace; None: nobody."""
    _fault_watch[:] = [] if watch is None else [watch]


def configure_logs(settings: LogSettings, *, clock: Clock, environ: Mapping[str, str], stream: TextIO) -> None:
    """Sets up structlog and the standard library's logging for the whole process. Called once, at start."""
    sink = cast(TextIO, _Sink(stream))
    is_json = settings.format == "json" or (settings.format == "auto" and not is_terminal(stream, environ))
    level = getattr(logging, settings.level.upper())
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        _Stamp(clock),
        structlog.processors.format_exc_info,
        hide_secrets,
        cut_long_values,
    ]
    renderer = _render_json if is_json else _text_renderer(stream, environ)
    structlog.configure(
        processors=[_Naming(settings.access), _tell_fault, *shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *names: _NamedLogger(sink, *names),
        cache_logger_on_first_use=False,  # loggers made at import must follow a later configuration
    )
    handler = logging.StreamHandler(sink)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Below warnings the libraries speak about themselves, not about the node.
    root.setLevel(level if settings.level == "debug" else max(level, logging.WARNING))
    logging.captureWarnings(True)


def is_terminal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether a person reads the stream: a terminal that isn't systemd's journal."""
    return stream.isatty() and not environ.get("JOURNAL_STREAM")


def hide_secrets(logger: Any, method: str, event: Event) -> Event:
    """Replaces what must not be in a log: values under telling names, credentials inside texts."""
    for name, value in event.items():
        if _SECRET_NAMES.search(str(name)):
            event[name] = "(hidden)"
        elif isinstance(value, str):
            event[name] = hide_keys(_SECRET_TEXTS.sub(r"\1 (hidden)", value))
        elif isinstance(value, dict):
            event[name] = hide_secrets(logger, method, dict(value))
    return event


def hide_keys(text: str) -> str:
    """The text without the API keys and tickets in it, and without the subjects that paths name."""
    if "/v1/subjects/" in text:
        text = _SUBJECTS.sub(r"\1(hidden)", text)
    return _KEY_TEXTS.sub(r"\1(hidden)", text) if "_live_" in text or "_ticket_" in text else text


def cut_long_values(logger: Any, method: str, event: Event) -> Event:
    """Bounds each text of a line."""
    for name, value in event.items():
        bound = VALUE_CHARS_MAX * (8 if name == "exception" else 1)
        text = value if isinstance(value, str) else repr(value) if isinstance(value, (bytes, list, tuple)) else ""
        if len(text) > bound:
            event[name] = f"{text[:bound]}… ({len(text)} characters)"
    return event


class _Sink(io.TextIOBase):
    """A stream whose reader may be gone: a log line that can't be written must not stop the node."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


class _NamedLogger(structlog.WriteLogger):
    """A logger that knows what `get_logger` was called with."""

    def __init__(self, file: TextIO, name: str = "") -> None:
        super().__init__(file)
        self.name = name


class _Naming:
    """Adds the logger's name; drops the lines of requests when they aren't wanted."""

    def __init__(self, is_access_wanted: bool) -> None:
        self._is_access_wanted = is_access_wanted

    def __call__(self, logger: _NamedLogger, method: str, event: Event) -> Event:
        if logger.name == ACCESS_LOGGER and not self._is_access_wanted:
            raise structlog.DropEvent
        if logger.name:
            event["logger"] = logger.name
        return event


def _tell_fault(logger: _NamedLogger, method: str, event: Event) -> Event:
    error = event.get("exc_info")
    if isinstance(error, BaseException):
        for watch in _fault_watch:
            watch(error, str(event.get("event", "")), logger.name)
    return event


class _Stamp:
    """Adds the time, from the injected clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def __call__(self, logger: Any, method: str, event: Event) -> Event:
        event["timestamp"] = format_time_us(self._clock.now_us())
        return event


def _render_json(logger: Any, method: str, event: Event) -> str:
    """One line of ASCII JSON; never raises, whatever was logged."""
    first = {name: event.pop(name) for name in ("timestamp", "level", "event") if name in event}
    return json.dumps(first | dict(event), default=repr, skipkeys=True)


def _text_renderer(stream: TextIO, environ: Mapping[str, str]) -> Processor:
    colors = stream.isatty() and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"
    console = structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback)

    def render(logger: Any, method: str, event: Event) -> str:
        for name, value in event.items():
            if isinstance(value, str) and name != "exception":
                # What a client sent must not steer the terminal or forge a line.
                event[name] = _CONTROL.sub(_picture, value)
        return console(logger, method, event)

    return render


def _picture(match: re.Match[str]) -> str:
    """A visible sign for a control character: `␛` for escape, `␊` for a line end."""
    code = ord(match[0])
    return chr(0x2400 + code) if code < 0x20 else "\ufffd"


def configure_from(settings: LogSettings, clock: Clock) -> None:
    """`configure_logs` for this process: its environment and standard error."""
    configure_logs(settings, clock=clock, environ=os.environ, stream=sys.stderr)
