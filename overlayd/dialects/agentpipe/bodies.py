"""Sessions and messages as answers hold them: members and their names are those of AgentPipe's API."""

from typing import Any

import msgspec

from overlayd.dialects.agentpipe.facts import Ended, Failure, Started
from overlayd.dialects.agentpipe.queries import AgentRow, MessageRow, SessionRow
from overlayd.dialects.agentpipe.times import iso_ms, iso_ms_or_none

_started = msgspec.json.Decoder(Started).decode
_ended = msgspec.json.Decoder(Ended).decode
_failure = msgspec.json.Decoder(Failure).decode
_any = msgspec.json.Decoder().decode


def started_of(row: SessionRow) -> Started | None:
    """How the session began, if that came."""
    return None if row.started is None else _started(row.started)


def ended_of(row: SessionRow) -> Ended | None:
    """How the session ended, if that came."""
    return None if row.ended is None else _ended(row.ended)


def session_line(row: SessionRow, agents: list[AgentRow]) -> dict[str, Any]:
    """A session in a list of `/api/sessions`."""
    return {
        "id": row.id, "name": row.shown_name, "status": row.status, "mode": row.mode, "source": row.source,
        "createdAt": iso_ms(row.created_us), "startedAt": iso_ms(row.started_us),
        "completedAt": iso_ms_or_none(row.completed_us), "totalMessages": row.total_messages,
        "totalTokens": row.total_tokens, "totalCost": row.cost, "totalDuration": row.total_duration,
        "participantCount": len(agents), "participantTypes": list(dict.fromkeys(one.agent_type for one in agents)),
        "errorCount": row.errors, "lastError": row.error or None,
    }  # fmt: skip


def session_whole(
    row: SessionRow, agents: list[AgentRow], messages: list[MessageRow] | None, failures: list[bytes]
) -> dict[str, Any]:
    """A session by itself. `messages` None: not asked for."""
    started, ended = started_of(row), ended_of(row)
    body = session_line(row, agents) | {
        "updatedAt": iso_ms(row.updated_us), "maxTurns": _whole(started.max_turns if started else None),
        "initialPrompt": row.prompt, "metadata": (started.metadata if started else None) or {},
        "originalId": row.original_id or None, "stream": row.stream, "messageCount": row.messages,
        "totalTurns": _whole(ended.turns if ended else None), "completionReason": (ended.reason if ended else "") or None,
        "command": started.command if started else None,
        "participants": [participant(one) for one in agents], "errors": [_error(text) for text in failures],
    }  # fmt: skip
    if messages is not None:
        body["messages"] = [message_nested(one) for one in messages]
    return body


def conversation_line(row: SessionRow, agents: list[AgentRow]) -> dict[str, Any]:
    """A session in a list of `/api/conversations`."""
    ended = ended_of(row)
    summary = (ended.summary if ended else None) or {}
    return {
        "id": row.id, "name": row.shown_name, "mode": row.mode, "status": row.status, "source": row.source,
        "startedAt": iso_ms(row.started_us), "completedAt": iso_ms_or_none(row.completed_us),
        "initialPrompt": row.prompt, "summaryText": summary.get("text"), "summaryAgentType": summary.get("agent_type"),
        "summaryModel": summary.get("model"), "totalMessages": row.total_messages, "totalTokens": row.total_tokens,
        "totalCost": row.cost, "totalDuration": row.total_duration, "errorMessage": row.error or None,
        "participants": [{"agentType": one.agent_type, "agentName": one.agent_name} for one in agents],
        "messageCount": row.messages,
    }  # fmt: skip


def conversation_whole(
    row: SessionRow, agents: list[AgentRow], messages: list[MessageRow], failures: list[bytes]
) -> dict[str, Any]:
    """A session as AgentPipe's page shows it."""
    started, ended = started_of(row), ended_of(row)
    system = (started.system_info if started else None) or {}
    summary = (ended.summary if ended else None) or {}
    return conversation_line(row, agents) | {
        "createdAt": iso_ms(row.created_us), "updatedAt": iso_ms(row.updated_us),
        "maxTurns": _whole(started.max_turns if started else None),
        "metadata": (started.metadata if started else None) or {}, "agentpipeVersion": system.get("agentpipe_version"),
        "systemOS": system.get("os"), "systemOSVersion": system.get("os_version"),
        "systemGoVersion": system.get("go_version"),
        "systemArchitecture": system.get("architecture") or system.get("arch"),
        "summaryInputTokens": summary.get("input_tokens"), "summaryOutputTokens": summary.get("output_tokens"),
        "summaryTotalTokens": summary.get("total_tokens"), "summaryCost": summary.get("cost"),
        "summaryDuration": summary.get("duration_ms"), "summaryShortText": summary.get("short_text"),
        "summaryGeneratedAt": iso_ms_or_none(row.completed_us) if summary else None,
        "errorCount": row.errors, "errors": [_error(text) for text in failures],
        "participants": [participant(one) for one in agents], "messages": [message_flat(one) for one in messages],
    }  # fmt: skip


def participant(row: AgentRow) -> dict[str, Any]:
    """Somebody who takes part."""
    body = _any(row.body)
    return {
        "id": f"{row.session}:{row.agent_id}", "agentId": row.agent_id, "agentType": row.agent_type,
        "agentName": row.agent_name, "agentVersion": body.get("version"), "model": row.model or None,
        "prompt": body.get("prompt"), "announcement": body.get("announcement"), "settings": body.get("settings") or {},
        "cliVersion": body.get("cli_version"),
    }  # fmt: skip


def message_flat(row: MessageRow) -> dict[str, Any]:
    """A message as AgentPipe's page shows it."""
    return {
        "id": row.id, "agentId": row.agent_id, "agentName": row.agent_name, "agentType": row.agent_type,
        "agentVersion": row.agent_version or None, "content": row.content, "role": row.role,
        "timestamp": iso_ms(row.time_us), "sequenceNumber": _whole(row.sequence), "turnNumber": _whole(row.turn),
        "duration": _whole(row.duration_ms), "inputTokens": _whole(row.input_tokens),
        "outputTokens": _whole(row.output_tokens), "totalTokens": _whole(row.tokens), "model": row.model or None,
        "cost": row.cost,
    }  # fmt: skip


def message_nested(row: MessageRow) -> dict[str, Any]:
    """A message of `/api/sessions`, whose numbers stand in `metrics`."""
    return {
        "id": row.id, "agentId": row.agent_id, "agentName": row.agent_name, "agentType": row.agent_type,
        "agentVersion": row.agent_version or None, "content": row.content, "role": row.role, "timestamp": row.time,
        "sequenceNumber": _whole(row.sequence), "turnNumber": _whole(row.turn),
        "metrics": {
            "duration": _whole(row.duration_ms), "inputTokens": _whole(row.input_tokens),
            "outputTokens": _whole(row.output_tokens), "totalTokens": _whole(row.tokens), "model": row.model or None,
            "cost": row.cost,
        },
    }  # fmt: skip


def _error(text: bytes) -> dict[str, Any]:
    failure = _failure(text)
    return {
        "timestamp": failure.time, "message": failure.message, "type": failure.kind or None,
        "agent": failure.agent or None,
    }  # fmt: skip


def _whole(value: float | None) -> float | int | None:
    """Numbers came as doubles; whole ones go out without a fraction."""
    return int(value) if value is not None and value == int(value) else value
