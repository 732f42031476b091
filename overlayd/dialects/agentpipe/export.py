"""A conversation as a file: JSON, CSV for a spreadsheet, Markdown for people."""

import csv
import io
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from overlayd.dialects.agentpipe.bodies import ended_of, message_flat
from overlayd.dialects.agentpipe.queries import AgentRow, MessageRow, SessionRow
from overlayd.dialects.agentpipe.times import iso_ms, iso_ms_or_none

COLUMNS = (
    "timestamp", "agentName", "agentType", "role", "content", "model", "inputTokens", "outputTokens", "totalTokens",
    "cost", "duration",
)  # fmt: skip
_RISKY = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet would take for a formula at a cell's beginning."""

Format = Callable[[SessionRow, Sequence[AgentRow], Sequence[MessageRow]], bytes]


def as_json(row: SessionRow, agents: Sequence[AgentRow], messages: Sequence[MessageRow]) -> bytes:
    """Indented JSON."""
    ended = ended_of(row)
    body = {
        "id": row.id, "title": row.shown_name, "status": row.status, "source": row.source, "mode": row.mode,
        "initialPrompt": row.prompt, "createdAt": iso_ms(row.created_us), "startedAt": iso_ms(row.started_us),
        "completedAt": iso_ms_or_none(row.completed_us), "totalMessages": row.total_messages,
        "totalTokens": row.total_tokens, "totalCost": row.cost, "totalDuration": row.total_duration,
        "participants": [
            {"agentName": one.agent_name, "agentType": one.agent_type, "model": one.model or None} for one in agents
        ],
        "messages": [_message(one) for one in messages],
        "summaryText": ((ended.summary if ended else None) or {}).get("text"),
    }  # fmt: skip
    return msgspec.json.format(msgspec.json.encode(body), indent=2)


def as_csv(row: SessionRow, agents: Sequence[AgentRow], messages: Sequence[MessageRow]) -> bytes:
    """RFC 4180, a line a message. Texts that a spreadsheet would run as a formula begin with an apostrophe."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    for one in messages:
        body = _message(one)
        writer.writerow([_cell(body[name]) for name in COLUMNS])
    return out.getvalue().encode()


def as_markdown(row: SessionRow, agents: Sequence[AgentRow], messages: Sequence[MessageRow]) -> bytes:
    """Headings and quotes."""
    ended = ended_of(row)
    lines = [
        f"# {_line(row.shown_name)}", "", f"- Status: {row.status}", f"- Mode: {_line(row.mode) or 'unknown'}",
        f"- Started: {iso_ms(row.started_us)}", f"- Completed: {iso_ms_or_none(row.completed_us) or 'not yet'}",
        f"- Messages: {row.total_messages}, tokens: {row.total_tokens}, cost: ${row.cost:.6f}",
        f"- Participants: {', '.join(_line(one.agent_name or one.agent_id) for one in agents) or 'none'}", "",
    ]  # fmt: skip
    if row.prompt:
        lines += ["## Prompt", "", *_quoted(row.prompt), ""]
    lines += ["## Messages", ""]
    for one in messages:
        lines += [
            f"### {_line(one.agent_name or one.agent_type)} ({iso_ms(one.time_us)})",
            "",
            *_quoted(one.content),
            "",
        ]
    text = ((ended.summary if ended else None) or {}).get("text")
    if text:
        lines += ["## Summary", "", *_quoted(text), ""]
    return "\n".join(lines).encode()


FORMATS: dict[str, tuple[Format, str, str]] = {
    "json": (as_json, "application/json", "json"),
    "csv": (as_csv, "text/csv; charset=utf-8", "csv"),
    "markdown": (as_markdown, "text/markdown; charset=utf-8", "md"),
}
"""By name: how it is written, its media type, and how a file's name ends."""


def _message(one: MessageRow) -> dict[str, Any]:
    return {name: value for name, value in message_flat(one).items() if name not in ("id", "agentId")}


def _cell(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(_RISKY):
        return f"'{value}"
    return "" if value is None else value


def _line(text: str) -> str:
    """On one line, and nothing that Markdown would make something of at its beginning."""
    return " ".join(text.split()).replace("<", "&lt;")


def _quoted(text: str) -> list[str]:
    return [f"> {line}".rstrip() for line in text.replace("<", "&lt;").splitlines()]
