"""What a stream's definition says about people: whom a packet is about, what is taken out of it, and whether its
subject consented. Pure but for the question to the book of consents.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import trio

from overlayd.model.definition import Definition
from overlayd.model.draft import Draft
from overlayd.model.errors import ConsentMissing, InvalidPacket, OverlaydError, Violation
from overlayd.model.privacy import EVERY, PacketPointer, RedactAction, redact_pointer, subject_pointer
from overlayd.pipeline.decode import Decoded
from overlayd.pipeline.json_text import parse_json
from overlayd.pipeline.redaction import Redaction

RULES_MAX = 64


class PeoplePrivacy(Protocol):
    """The node's keyed hashes and consents, as publishing needs them."""

    @property
    def generation(self) -> int:
        """Grows whenever a consent changes."""
        ...

    def pseudonym(self, stream: str, text: str) -> str:
        """Stands for a text in a stream, the same each time."""
        ...

    async def missing(self, purpose: str, subjects: Sequence[str]) -> frozenset[str]:
        """Those without consent to the purpose now. Checkpoint."""
        ...


class _Nobody:
    """Has no key and knows no consent: whatever would be pseudonymised is masked, and nobody consented."""

    generation = 0

    def pseudonym(self, stream: str, text: str) -> str:
        return "***"

    async def missing(self, purpose: str, subjects: Sequence[str]) -> frozenset[str]:
        await trio.lowlevel.checkpoint()
        return frozenset(subjects)


NOBODY: PeoplePrivacy = _Nobody()
"""For a pipeline without a node around it."""


class PrivacyRules:
    """A definition version's rules."""

    def __init__(self, definition: Definition, privacy: PeoplePrivacy, depth_max: int) -> None:
        self._privacy = privacy
        self._depth_max = depth_max
        self._redaction = Redaction(definition.redact) if definition.redact else None
        self._subject = subject_pointer(definition.subject) if definition.subject else None
        self.purpose = definition.purpose if definition.consent == "required" else ""
        """What a packet's subject must have consented to, "" for nothing."""

    def apply(self, decoded: Decoded, stream: str) -> None:
        """Notes whom the packet is about, then takes out of it what isn't kept. Raises InvalidPacket, ConsentMissing."""
        draft = decoded.draft
        if self.purpose:
            decoded.subject = self._find_subject(decoded)
            if not decoded.subject:
                raise _no_subject(self._subject.text if self._subject else "", self.purpose)
        redaction = self._redaction
        if redaction is None:
            return
        if draft.is_octets and redaction.concerns("data"):
            detail = "the stream takes something out of each packet's data, which it can't find in octets"
            raise InvalidPacket(
                detail, subject="/data_base64", violations=[Violation("/data_base64", "redact.octets", detail)]
            )

        def pseudonym(text: str) -> str:
            return self._privacy.pseudonym(stream, text)

        body = redaction.apply("data", draft.sent, pseudonym)
        metadata = redaction.apply("metadata", draft.metadata, pseudonym)
        source = redaction.apply_text("source", draft.source, pseudonym)
        key = draft.key if draft.is_key_derived else redaction.apply_text("key", draft.key, pseudonym)
        if body is draft.sent and metadata is draft.metadata and (source, key) == (draft.source, draft.key):
            return
        draft.source_unredacted, draft.key_unredacted = draft.source, draft.key_compared
        draft.is_redacted, draft.metadata_unredacted = True, draft.metadata
        draft.body, draft.metadata, draft.source, draft.key = body, metadata, source, key
        decoded.forget()

    def _find_subject(self, decoded: Decoded) -> str:
        pointer, draft = self._subject, decoded.draft
        if pointer is None:
            return ""
        if pointer.root == "key":
            return draft.key
        if pointer.root == "source":
            return draft.source
        if pointer.root == "metadata":
            return pointer.find(parse_json(draft.metadata, self._depth_max)) if draft.metadata else ""
        return pointer.find(decoded.data())


def restore(draft: Draft) -> None:
    """The draft as it was sent, to be judged by another definition."""
    if draft.is_redacted:
        draft.body, draft.metadata = draft.sent, draft.metadata_unredacted
        draft.source, draft.key, draft.is_key_derived = draft.source_unredacted, draft.key_unredacted, False
        draft.is_redacted, draft.metadata_unredacted = False, b""
        draft.source_unredacted = draft.key_unredacted = ""


async def refuse_without_consent(
    passed: list[Decoded], purpose: str, privacy: PeoplePrivacy, rejections: dict[int, OverlaydError]
) -> list[Decoded]:
    """Those whose subjects consented; what became of the others is noted. Returns in the same turn of the loop in which
    it knew. Checkpoint."""
    while True:
        generation = privacy.generation
        missing = await privacy.missing(purpose, [one.subject for one in passed])
        if generation == privacy.generation:
            break
    for one in passed:
        if one.subject in missing:
            rejections[one.draft.index] = ConsentMissing(
                f"the packet's subject has not consented to {purpose}", subject=purpose,
                hint="record the consent with PUT /v1/subjects/{subject}/consent, or leave the packet unsent",
            )  # fmt: skip
    return [one for one in passed if one.subject not in missing]


def find_privacy_flaws(definition: Definition) -> Iterator[Violation]:
    """What can't be of what a definition says about people."""
    subject = None
    if definition.subject:
        try:
            subject = subject_pointer(definition.subject)
        except ValueError as err:
            yield Violation("/subject", "definition.subject", str(err))
    if definition.consent == "required":
        for name in ("subject", "purpose"):
            if not getattr(definition, name):
                yield Violation(f"/{name}", "definition.consent", f"consent is required, so {name} must be said")
    if len(definition.redact) > RULES_MAX:
        detail = f"has {len(definition.redact)} rules; {RULES_MAX} are taken"
        yield Violation("/redact", "definition.redact", detail)
    for at, rule in enumerate(definition.redact[:RULES_MAX]):
        try:
            pointer = redact_pointer(rule.path)
        except ValueError as err:
            yield Violation(f"/redact/{at}/path", "definition.redact", str(err))
            continue
        if subject is not None and _takes_out(pointer, rule.action, subject):
            detail = f"takes the packet's subject out, {definition.subject}; only pseudonymise it as a whole"
            yield Violation(f"/redact/{at}", "definition.redact", detail)


def _takes_out(pointer: PacketPointer, action: RedactAction, subject: PacketPointer) -> bool:
    """Whether packets couldn't be found by their subject any more."""
    if pointer.root != subject.root or len(pointer.steps) > len(subject.steps):
        return False
    if len(pointer.steps) == len(subject.steps) and action == "pseudonymise":
        return False
    return all(left in (right, EVERY) for left, right in zip(pointer.steps, subject.steps, strict=False))


def _no_subject(pointer: str, purpose: str) -> ConsentMissing:
    detail = f"the packet doesn't say whom it is about, so nobody consented to {purpose}"
    return ConsentMissing(
        f"{pointer}: {detail}", subject=pointer, violations=[Violation(pointer, "consent.subject", detail)]
    )
