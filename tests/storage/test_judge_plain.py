"""The short way for plain packets judges as the long one does."""

from pathlib import Path
from typing import Any

import pytest
from storage_rig import Rig, draft, per_minute

from overlayd.model.definition import Definition
from overlayd.model.draft import AppendRequest, Draft, Receipt
from overlayd.model.errors import OverlaydError
from overlayd.model.names import StreamName
from overlayd.storage import Log, jobs


def _requests() -> list[tuple[str, Draft, int | None]]:
    """New ones, repeats, an id used anew, commitments, keys, sequences, rates, paused and unknown streams."""
    salt, other = bytes(16), b"\1" * 16
    return [
        ("a", draft("1"), None), ("a", draft("1", id="x"), None), ("a", draft("1", id="x"), None),
        ("a", draft("2", id="x"), None), ("b", draft("1", id="x"), None), ("a", draft("3", id="y", key="k"), 2),
        ("a", draft("3", id="z"), 3), ("a", draft("3", id="z"), 99), ("a", draft("4", id="w"), 99),
        ("a", draft("5", id="s", csalt=salt), None), ("a", draft("5", id="s", csalt=salt), None),
        ("a", draft("5", id="t", csalt=salt), None), ("a", draft("5", id="t", csalt=other), None),
        *(("slow", draft(str(n), id=f"n{n}"), None) for n in range(4)), ("paused", draft("1"), None),
        ("overlayd.own", draft("1"), None), ("a", draft("last", id="end"), None),
    ]  # fmt: skip


async def _told(log: Log) -> list[Any]:
    """What became of each request; hashes differ because each log draws its own salts."""
    told: list[Any] = []
    await log.define_stream("a", Definition())
    await log.define_stream("slow", per_minute(2))
    await log.define_stream("paused", Definition())
    await log.set_stream_state("paused", "paused")
    for name, one, expected in _requests():
        found = log.find_stream(name)
        version = 0 if found is None else found.definition_version
        request = AppendRequest(
            StreamName(name), [one], may_create=True, expected_sequence=expected, definition_version=version
        )
        try:
            result = await log.append(request)
        except OverlaydError as error:
            told.append((error.code, error.detail, error.subject))
            continue
        for outcome in result.outcomes:
            if isinstance(outcome, Receipt):
                told.append((name, outcome.sequence, outcome.duplicate, outcome.content_hash, bool(outcome.commitment)))
            else:
                told.append((outcome.index, outcome.error.code, outcome.error.detail))
        told.append((result.head - log.head, result.head_sequence, result.created))
    return told + [(stream.name, stream.head_sequence, stream.packets, stream.bytes) for stream in log.list_streams()]


async def test_both_ways_judge_alike(rig: Rig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The same requests in the same order get the same answers and leave the same streams, short way or long way."""
    plain = jobs.judge_plain
    taken = []
    monkeypatch.setattr(jobs, "judge_plain", lambda *given: taken.append(plain(*given)) or taken[-1])
    async with rig.open() as log:
        short = await _told(log)
    assert sum(one is not None for one in taken) == 5
    assert sum(one is None for one in taken) >= 8
    monkeypatch.setattr(jobs, "judge_plain", lambda *_: None)
    async with Rig(tmp_path / "other").open() as log:
        assert await _told(log) == short
