"""What a stream says about people, on the way in: redaction and consent in the one publish function."""

import json
from collections.abc import Sequence

import pytest
import trio
from fake_log import FakeLog

from overlayd.model.definition import Definition
from overlayd.model.draft import Draft
from overlayd.model.entry import commitment_of
from overlayd.model.errors import InvalidDefinition, InvalidPacket, OverlaydError
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.model.names import StreamName
from overlayd.model.privacy import RedactRule
from overlayd.pipeline.definitions import check_definition
from overlayd.pipeline.intake import Intake, PublishAnswer, StreamAtHand, Terms
from overlayd.pipeline.schema import SchemaCache
from overlayd.storage.fingerprint import fingerprint_of, is_same_as_sent
from overlayd.storage.lookup import draft_commitment

HIDING = Definition(
    redact=(
        RedactRule("/data/email", "drop"), RedactRule("/data/name", "mask"), RedactRule("/data/user", "pseudonymise"),
        RedactRule("/metadata/ip", "drop"),
    ),
    key="data.user",
)  # fmt: skip
ASKING = Definition(subject="/data/user", purpose="billing", consent="required")
SALT = "AAAAAAAAAAAAAAAAAAAAAA=="


class People:
    """Consents in a set; `changes` are made while somebody asks."""

    def __init__(self) -> None:
        self.generation = 0
        self.granted: set[tuple[str, str]] = set()
        self.changes: list[tuple[str, str]] = []
        self.asked = 0

    def pseudonym(self, stream: str, text: str) -> str:
        return f"{stream}:{len(text)}"

    async def missing(self, purpose: str, subjects: Sequence[str]) -> frozenset[str]:
        self.asked += 1
        answer = frozenset(one for one in subjects if (one, purpose) not in self.granted)
        await trio.lowlevel.checkpoint()
        while self.changes:
            self.granted.discard(self.changes.pop())
            self.generation += 1
        return answer


class Counter:
    """An intake over a list, and what came to lie in it."""

    def __init__(self, definition: Definition) -> None:
        self.people = People()
        self.log = FakeLog(definition)
        metrics, self.limits = Metrics(), Limits()
        self.intake = Intake(
            log=self.log, limits=self.limits, schemas=SchemaCache(self.limits, metrics), metrics=metrics,
            defaults=definition, privacy=self.people,
        )  # fmt: skip

    async def publish(self, *packets: object, atomic: bool = False) -> PublishAnswer:
        objects = [json.dumps(packet).encode() for packet in packets]
        return await self.intake.publish("s", objects, principal="p", may_create=True, atomic=atomic)

    @property
    def drafts(self) -> list[Draft]:
        return [draft for request in self.log.requests for draft in request.drafts]


def flaws(error: InvalidDefinition) -> list[str]:
    """Where they are."""
    return [one.pointer for one in error.violations]


async def test_what_is_stored_is_redacted() -> None:
    """Body, metadata and derived key hold nothing that a rule took out."""
    counter = Counter(HIDING)
    packet = {"data": {"user": "alice", "name": "Alice", "email": "a@b.c", "n": 1}, "metadata": {"ip": "::1", "x": 2}}
    await counter.publish(packet)
    (draft,) = counter.drafts
    assert json.loads(draft.body) == {"user": "s:5", "name": "***", "n": 1}
    assert json.loads(draft.metadata) == {"x": 2}
    assert draft.key == "s:5"


async def test_the_quick_way_redacts_too() -> None:
    """A packet that is judged without a wait is stored as any other."""
    counter = Counter(HIDING)
    terms = Terms("p", may_create=True, atomic=True)
    request = counter.intake.judge_now(StreamAtHand(StreamName("s")), b'{"data":{"user":"bob","email":"b"}}', terms)
    assert request is not None
    assert json.loads(request.drafts[0].body) == {"user": "s:3"}


async def test_a_producers_commitment_covers_what_was_sent() -> None:
    """The commitment is over the request; what tells repeats apart is not."""
    counter = Counter(HIDING)
    sent = b'{"user":"alice","email":"first@b.c"}'
    raw = b'{"id":"1","salt":"%b","metadata":{"ip":"::1"},"data":%b}' % (SALT.encode(), sent)
    await counter.intake.publish("s", [raw], principal="p", may_create=True, atomic=False)
    (draft,) = counter.drafts
    wanted = commitment_of(bytes(16), "s", "1", "", "", "", "", b"", b'{"ip":"::1"}', sent)
    assert draft_commitment("s", draft) == wanted
    await counter.publish({"id": "1", "salt": SALT, "metadata": {"ip": "::2"}, "data": {"user": "alice", "email": "x"}})
    other = counter.log.requests[-1].drafts[0]
    assert fingerprint_of(other, bytes(16)) == fingerprint_of(draft, bytes(16))


NAMELESS = Definition(
    redact=(RedactRule("/key", "pseudonymise"), RedactRule("/source", "mask")), subject="/key", key="data.user"
)


async def test_key_and_source_are_redacted() -> None:
    """What is stored, indexed and compared is what is left of them; the producer's commitment covers what it sent."""
    counter = Counter(NAMELESS)
    packet = {"id": "1", "salt": SALT, "key": "alice", "source": "alice's phone", "data": {"user": "bob"}}
    raw = json.dumps(packet).encode()
    await counter.intake.publish("s", [raw], principal="p", may_create=True, atomic=False)
    (draft,) = counter.drafts
    assert (draft.key, draft.source, draft.is_redacted) == ("s:5", "***", True)
    wanted = commitment_of(bytes(16), "s", "1", "", "", "alice's phone", "alice", b"", b"", b'{"user": "bob"}')
    assert draft_commitment("s", draft) == wanted
    await counter.publish(packet | {"source": "alice's watch"})
    other = counter.drafts[1]
    assert fingerprint_of(other, bytes(16)) == fingerprint_of(draft, bytes(16))
    assert is_same_as_sent(other, draft)
    assert draft_commitment("s", other) != wanted


async def test_a_key_that_is_dropped_is_found_in_the_data() -> None:
    """As if the producer had sent none; and a packet with neither is as it was."""
    counter = Counter(Definition(redact=(RedactRule("/key", "drop"), RedactRule("/source", "drop")), key="data.user"))
    await counter.publish({"key": "alice", "data": {"user": "u1"}}, {"source": "x", "data": 1}, {"data": 2})
    first, second, third = counter.drafts
    assert (first.key, first.key_sent, first.is_key_derived) == ("u1", "alice", True)
    assert (second.source, second.source_sent) == ("", "x")
    assert not third.is_redacted


async def test_texts_are_judged_anew_as_they_were_sent() -> None:
    """By the rules of a definition that came in between, on what the producer sent."""
    counter = Counter(NAMELESS)
    await counter.log.define_stream("s", NAMELESS)
    append, is_first = counter.log.append, True

    async def interrupt(request: object) -> object:
        nonlocal is_first
        if is_first:
            is_first = False
            await counter.log.define_stream("s", Definition(redact=(RedactRule("/source", "pseudonymise"),)))
        return await append(request)  # type: ignore[arg-type]

    counter.log.append = interrupt  # type: ignore[method-assign,assignment]
    await counter.publish({"key": "alice", "source": "phone", "data": 1})
    stored = counter.drafts[-1]
    assert (stored.key, stored.source, stored.key_sent, stored.source_sent) == ("alice", "s:5", "alice", "phone")


async def test_octets_are_refused_where_something_is_taken_out() -> None:
    """Nobody can look into them."""
    counter = Counter(HIDING)
    with pytest.raises(InvalidPacket) as caught:
        await counter.publish({"data_base64": "AAAA"}, atomic=True)
    assert [one.code for one in caught.value.violations] == ["redact.octets"]


async def test_another_definition_judges_what_was_sent() -> None:
    """A stream defined anew between judging and appending: the rules of the newer one count, on the original."""
    counter = Counter(HIDING)
    await counter.log.define_stream("s", HIDING)
    append, is_first = counter.log.append, True

    async def interrupt(request: object) -> object:
        nonlocal is_first
        if is_first:
            is_first = False
            await counter.log.define_stream("s", Definition(redact=(RedactRule("/data/n", "drop"),)))
        return await append(request)  # type: ignore[arg-type]

    counter.log.append = interrupt  # type: ignore[method-assign,assignment]
    await counter.publish({"data": {"user": "alice", "email": "a", "n": 1}})
    stored = counter.drafts[-1]
    assert json.loads(stored.body) == {"user": "alice", "email": "a"}
    assert stored.key == ""


@pytest.mark.parametrize("next_definition", [Definition(), Definition(key="data.user")])
async def test_a_definition_without_rules_stores_what_was_sent(next_definition: Definition) -> None:
    """The same where the newer definition takes nothing out."""
    counter = Counter(HIDING)
    await counter.log.define_stream("s", HIDING)
    append, is_first = counter.log.append, True

    async def interrupt(request: object) -> object:
        nonlocal is_first
        if is_first:
            is_first = False
            await counter.log.define_stream("s", next_definition)
        return await append(request)  # type: ignore[arg-type]

    counter.log.append = interrupt  # type: ignore[method-assign,assignment]
    await counter.publish({"data": {"user": "alice", "email": "a"}})
    assert json.loads(counter.drafts[-1].body) == {"user": "alice", "email": "a"}


async def test_without_consent_a_packet_is_refused() -> None:
    """By its code, each packet for itself; the quick way leaves it to the other one."""
    counter = Counter(ASKING)
    counter.people.granted.add(("alice", "billing"))
    answer = await counter.publish({"data": {"user": "alice"}}, {"data": {"user": "bob"}}, {"data": {"n": 1}})
    assert [(at, error.code) for at, error in answer.rejections] == [(1, "consent.missing"), (2, "consent.missing")]
    assert [draft.sent for draft in counter.drafts] == [b'{"user": "alice"}']
    terms = Terms("p", may_create=True, atomic=True)
    assert counter.intake.judge_now(StreamAtHand(StreamName("s")), b'{"data":{"user":"alice"}}', terms) is None
    with pytest.raises(OverlaydError) as caught:
        await counter.publish({"data": {"user": "bob"}}, atomic=True)
    assert (caught.value.code, caught.value.status) == ("consent.missing", 422)


async def test_a_consent_that_ends_while_it_is_looked_up() -> None:
    """The book is asked again, so that nothing goes in on an answer of before."""
    counter = Counter(ASKING)
    counter.people.granted.add(("alice", "billing"))
    counter.people.changes.append(("alice", "billing"))
    answer = await counter.publish({"data": {"user": "alice"}})
    assert [error.code for _, error in answer.rejections] == ["consent.missing"]
    assert counter.people.asked == 2


async def test_the_subject_of_a_consent_is_the_one_that_was_sent() -> None:
    """Though it is stored as a pseudonym."""
    definition = Definition(
        subject="/data/user", purpose="billing", consent="required", redact=(RedactRule("/data/user", "pseudonymise"),)
    )
    counter = Counter(definition)
    counter.people.granted.add(("alice", "billing"))
    answer = await counter.publish({"data": {"user": "alice"}})
    assert answer.accepted == 1
    assert counter.drafts[0].body == b'{"user":"s:5"}'


@pytest.mark.parametrize("place", ["key", "source", "metadata/who"])
async def test_subjects_outside_of_the_data(place: str) -> None:
    """The key, the source or the metadata can say whom a packet is about."""
    counter = Counter(Definition(subject=f"/{place}", purpose="billing", consent="required"))
    counter.people.granted.add(("alice", "billing"))
    packet = {"data": 1, "metadata": {"who": "alice"}} if "/" in place else {"data": 1, place: "alice"}
    answer = await counter.publish(packet, {"data": 1})
    assert [at for at, _ in answer.rejections] == [1]


@pytest.mark.parametrize(
    ("definition", "pointers"),
    [
        (Definition(consent="required"), ["/subject", "/purpose"]),
        (Definition(subject="user"), ["/subject"]),
        (Definition(redact=(RedactRule("/id", "drop"),)), ["/redact/0/path"]),
        (Definition(subject="/data/a/b", redact=(RedactRule("/data/a", "pseudonymise"),)), ["/redact/0"]),
        (Definition(subject="/data/a/b", redact=(RedactRule("/data/*/b", "mask"),)), ["/redact/0"]),
        (Definition(redact=tuple(RedactRule(f"/data/{n}", "drop") for n in range(65))), ["/redact"]),
    ],
)
async def test_definitions_that_cannot_be(definition: Definition, pointers: list[str]) -> None:
    """Each flaw is named by its place."""
    limits, metrics = Limits(), Metrics()
    with pytest.raises(InvalidDefinition) as caught:
        await check_definition(definition, SchemaCache(limits, metrics), limits)
    assert flaws(caught.value) == pointers


async def test_a_subject_may_be_pseudonymised_as_a_whole() -> None:
    """Its packets are found by the pseudonym."""
    limits, metrics = Limits(), Metrics()
    good = Definition(subject="/data/a", redact=(RedactRule("/data/a", "pseudonymise"), RedactRule("/data/b", "drop")))
    await check_definition(good, SchemaCache(limits, metrics), limits)
