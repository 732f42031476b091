"""Bodies that the two schemas of AgentPipe were asked about, and what is made of them here."""

import json
from pathlib import Path
from typing import Any

import pytest

from overlayd.dialects.agentpipe.events import Event, Refused, read_event
from overlayd.dialects.agentpipe.uploads import Upload, read_upload

DATA = Path(__file__).parents[1] / "data" / "agentpipe"
MORE_IS_TAKEN = {"completed-summary-without-input_tokens", "completed-summary-without-total_tokens"}
"""The client leaves zeros out; AgentPipe's server refuses its summary then."""


def unfold(value: Any) -> Any:
    """The body with its long texts written out."""
    if isinstance(value, dict):
        if set(value) == {"$repeat"}:
            text, count = value["$repeat"]
            return text * count
        return {name: unfold(member) for name, member in value.items()}
    return [unfold(member) for member in value] if isinstance(value, list) else value


def verdicts(kind: str) -> list[Any]:
    """Those of one kind of body."""
    lines = [json.loads(line) for line in (DATA / "ingest-verdicts.jsonl").read_text().splitlines()]
    return [pytest.param(line, id=line["name"]) for line in lines if line["kind"] == kind]


def judge(body: Any) -> Event | Refused:
    """One event, as the ingest route judges it."""
    return read_event(body, json.dumps(body).encode(), draw_id=lambda: "c" + "0" * 24, now="2026-01-01T00:00:00Z")


@pytest.mark.parametrize("verdict", verdicts("ingest"))
def test_an_event_is_taken_when_either_schema_takes_it(verdict: dict[str, Any]) -> None:
    """And the summary with zeros left out; what is refused names the member that the schema names first."""
    found = judge(unfold(verdict["body"]))
    web, documents = verdict["implemented_schema"], verdict["documented_schema"]
    is_expected = web["accepted"] or documents["accepted"] or verdict["name"] in MORE_IS_TAKEN
    assert isinstance(found, Event) is is_expected, found
    if isinstance(found, Refused):
        said = web if found.dialect == "wire" else documents
        assert found.issues[0].field == said["first_path"]
        assert found.issues[0].code == said["first_code"] or found.issues[0].field == "type"
    elif verdict["name"] not in MORE_IS_TAKEN:
        assert (found.dialect == "wire") is web["accepted"]


@pytest.mark.parametrize("verdict", verdicts("upload"))
def test_an_upload_is_taken_when_either_schema_takes_it(verdict: dict[str, Any]) -> None:
    """In the shape that its first member names."""
    found = read_upload(unfold(verdict["body"]), "c" + "0" * 24, messages_max=10_000)
    web, documents = verdict["implemented_schema"], verdict["documented_schema"]
    assert isinstance(found, Upload) is (web["accepted"] or documents["accepted"]), found
    if isinstance(found, list):
        said = web if "conversation" in verdict["body"] else documents
        assert (found[0].field, found[0].code) == (said["first_path"], said["first_code"])
