"""A log in a list: what publishing needs of the real one, judged by the same contract tests (test_intake.py)."""

from typing import Any

import trio

from overlayd.model.definition import Definition
from overlayd.model.draft import AppendRequest, AppendResult, Draft, Receipt, Refusal
from overlayd.model.errors import (
    DefinitionConflict,
    Forbidden,
    IdReused,
    OverlaydError,
    SequenceMismatch,
    StreamPaused,
    UnknownStream,
    Violation,
)
from overlayd.model.names import is_node_name
from overlayd.pipeline.intake import combine_errors


class FakeStream:
    """What the pipeline reads of a stream."""

    def __init__(self, name: str, definition: Definition) -> None:
        self.name = name
        self.stream_hash = name.encode().ljust(32, b"\0")[:32]
        self.definition = definition
        self.definition_version = 1
        self.state = "active"
        self.head_sequence = 0
        self.drafts: list[Draft] = []


class FakeLog:
    """Appends to lists, durable for as long as the test runs."""

    def __init__(self, defaults: Definition = Definition()) -> None:  # noqa: B008 - frozen
        self.defaults = defaults
        self.streams: dict[str, FakeStream] = {}
        self.requests: list[AppendRequest] = []
        self.head = 0

    def find_stream(self, name: str) -> Any:
        return self.streams.get(name)

    async def define_stream(self, name: str, definition: Definition) -> Any:
        await trio.lowlevel.checkpoint()
        found = self.streams.get(name)
        if found is None:
            self.streams[name] = FakeStream(name, definition)
        else:
            found.definition, found.definition_version = definition, found.definition_version + 1
        return self.streams[name], found is None

    async def set_stream_state(self, name: str, state: str) -> Any:
        await trio.lowlevel.checkpoint()
        self.streams[name].state = state
        return self.streams[name]

    async def append(self, request: AppendRequest) -> AppendResult:
        await trio.lowlevel.checkpoint()
        self.requests.append(request)
        stream = self.streams.get(request.stream)
        if is_node_name(request.stream):
            raise Forbidden("the node's own")
        if stream is None:
            if not request.may_create:
                raise UnknownStream("no such stream")
            stream = FakeStream(request.stream, self.defaults)
        if request.definition_version not in (0, stream.definition_version):
            raise DefinitionConflict("another version")
        if request.definition_version == 0 and request.stream in self.streams:
            raise DefinitionConflict("it came into being")
        taken: list[Draft] = []
        outcomes = [self._judge(stream, draft, taken) for draft in request.drafts]
        if request.atomic and (refused := {one.index: one.error for one in outcomes if isinstance(one, Refusal)}):
            raise combine_errors(refused, 100)
        if taken and request.expected_sequence not in (None, stream.head_sequence):
            raise SequenceMismatch("not there")
        if taken and stream.state != "active":
            raise StreamPaused("not now")
        self.streams[request.stream] = stream
        stream.drafts += taken
        stream.head_sequence += len(taken)
        self.head += len(taken)
        return AppendResult(outcomes, self.head, stream.head_sequence)

    def _judge(self, stream: FakeStream, draft: Draft, taken: list[Draft]) -> Receipt | Refusal:
        known = stream.drafts + taken if draft.id else []
        for at, earlier in enumerate(known if draft.id else ()):
            if earlier.id == draft.id:
                if (earlier.sent, earlier.type, earlier.key_sent) != (draft.sent, draft.type, draft.key_sent):
                    return Refusal(draft.index, _reused(draft))
                return self._receipt(stream, draft, at + 1, is_duplicate=True)
        taken.append(draft)
        return self._receipt(stream, draft, len(stream.drafts) + len(taken), is_duplicate=False)

    def _receipt(self, stream: FakeStream, draft: Draft, sequence: int, *, is_duplicate: bool) -> Receipt:
        return Receipt(
            draft.index, stream.name, sequence, self.head + 1, 1 << 40, draft.id or f"x-{sequence}", b"\1" * 32,
            b"\2" * 32, 1, is_duplicate,
        )  # type: ignore[arg-type]  # fmt: skip


def _reused(draft: Draft) -> OverlaydError:
    return IdReused(
        "other content", violations=[Violation("/id", "packet.id_reused", "other content", index=draft.index)]
    )
