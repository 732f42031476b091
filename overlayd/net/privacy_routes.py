"""`/v1/erase` and `/v1/subjects`: erasing packets, and what is kept about people (docs/privacy.md)."""

from functools import partial

import msgspec
import trio
from msgspec import UNSET, UnsetType
from quart import Response, request
from quart_trio import QuartTrio

from overlayd.access import require
from overlayd.access.audit import AuditTrail
from overlayd.access.key_changes import Author
from overlayd.access.principal import Principal, require_some
from overlayd.access.stream_guard import StreamGuard
from overlayd.delivery.packets import show_present
from overlayd.model.audit import AuditRecord
from overlayd.model.clock import Clock, format_time_us
from overlayd.model.confirmation import ConfirmationReads
from overlayd.model.errors import BadParameter, UnderHold
from overlayd.model.limits import Limits
from overlayd.model.wire import encode_wire
from overlayd.model.wire_privacy import (
    ConsentBody,
    ConsentIn,
    ConsentList,
    EraseIn,
    ErasureBody,
    ErasureList,
    RebuildBody,
    SubjectBody,
    SubjectExport,
    SubjectStream,
)
from overlayd.net.app import answer, author_of, principal_of
from overlayd.net.body_times import end_us_of
from overlayd.net.json_body import JsonBodies
from overlayd.net.lane import Lane
from overlayd.net.parameters import Parameters
from overlayd.net.stream_routes import known_stream
from overlayd.privacy.erasures import Erasures
from overlayd.privacy.people import People
from overlayd.privacy.planning import Plan, Planner
from overlayd.privacy.tables import ConsentRow
from overlayd.storage import Log

LIST_LIMIT = 100
LIST_LIMIT_MAX = 1000
SUBJECT_CHARS_MAX = 256
REBUILT = ("subjects", "links")


def add_privacy_routes(
    app: QuartTrio, *, log: Log, people: People, planner: Planner, erasures: Erasures, streams: StreamGuard,
    trail: AuditTrail, reads: ConfirmationReads, clock: Clock, limits: Limits, lane: Lane, bodies: JsonBodies,
) -> None:  # fmt: skip
    """Adds `/v1/erase`, `/v1/subjects/{subject}` and what is below them, and `/v1/admin/rebuild/{part}`."""
    erase = _EraseRoutes(log, people, planner, erasures, streams, trail, limits, lane, bodies)
    app.add_url_rule("/v1/erase", "erase.begin", erase.erase, methods=["POST"])
    app.add_url_rule("/v1/erase", "erase.list", erase.list_erasures, methods=["GET"])
    app.add_url_rule("/v1/erase/<id>", "erase.show", erase.show, methods=["GET"])
    about = _SubjectRoutes(log, people, trail, reads, clock, lane, bodies)
    one = "/v1/subjects/<subject>"
    app.add_url_rule(one, "subjects.show", about.show, methods=["GET"])
    app.add_url_rule(f"{one}/export", "subjects.export", about.export, methods=["GET"])
    app.add_url_rule(f"{one}/consent", "subjects.consents", about.list_consents, methods=["GET"])
    app.add_url_rule(f"{one}/consent", "subjects.put_consent", about.put_consent, methods=["PUT"])
    app.add_url_rule("/v1/admin/rebuild/<part>", "admin.rebuild", about.rebuild, methods=["POST"])


class _EraseRoutes:
    """Erasures with what they need."""

    def __init__(
        self, log: Log, people: People, planner: Planner, erasures: Erasures, streams: StreamGuard, trail: AuditTrail,
        limits: Limits, lane: Lane, bodies: JsonBodies,
    ) -> None:  # fmt: skip
        self._log = log
        self._people = people
        self._planner = planner
        self._erasures = erasures
        self._streams = streams
        self._trail = trail
        self._limits = limits
        self._lane = lane
        self._bodies = bodies

    async def erase(self) -> Response:
        """Erases packets, or says what would be erased."""
        principal, author = principal_of(request), author_of(request)
        if "manage" not in principal.grants.own:  # which streams it is about stands in the body
            require_some(principal, "manage")
        Parameters(request, ())
        ask = await self._bodies.read(request, EraseIn, "nothing can be erased")
        async with self._lane.step_out():
            try:
                plan = await self._plan(ask, principal)
            except UnderHold as error:
                held = author.record("erase.refused", error.subject, reason=error.detail)
                await self._trail.write(msgspec.structs.replace(held, result="refused"))
                raise
            if ask.dry_run or not plan.packets:
                report = await self._erasures.describe(plan)
                await self._trail.write_once(self._record("erase.plan", author, ask, "", report))
                return _answer(report)
            id = await self._erasures.begin(plan, partial(self._record, "erase.begin", author, ask))
            with trio.move_on_after(float(self._limits.wait_max)):
                await self._erasures.wait(id)
            report = await self._erasures.show(id)
        return _answer(report, 202 if report.state in ("working", "held") else 200)

    async def list_erasures(self) -> Response:
        """The newest erasures."""
        _require_office(principal_of(request))
        parameters = Parameters(request, ("limit", "before"))
        limit = parameters.number("limit", minimum=1, maximum=LIST_LIMIT_MAX) or LIST_LIMIT
        found, is_more = await self._erasures.list_newest(parameters.text("before"), limit)
        return answer(encode_wire(ErasureList(erasures=found, next_before=found[-1].id if is_more else UNSET)))

    async def show(self, id: str) -> Response:
        """One erasure."""
        _require_office(principal_of(request))
        Parameters(request, ())
        return _answer(await self._erasures.show(id))

    async def _plan(self, ask: EraseIn, principal: Principal) -> Plan:
        check = partial(self._streams.require, principal, "manage")
        if ask.subject is not UNSET:
            _refuse_others("subject", ask, ("stream", "sequence", "from_", "to"))
            _require_office(principal)
            return await self._planner.of_subject(ask.subject, check)
        if ask.stream is UNSET:
            raise BadParameter("name a stream with sequences, or a subject", subject="stream")
        check(ask.stream)
        stream = known_stream(self._log, ask.stream)
        if ask.sequence is not UNSET:
            _refuse_others("sequence", ask, ("from_", "to"))
            return await self._planner.of_range(stream, ask.sequence, ask.sequence, check)
        if ask.from_ is UNSET or ask.to is UNSET:
            raise BadParameter("say which packets: sequence, or from and to", subject="sequence")
        return await self._planner.of_range(stream, ask.from_, ask.to, check)

    def _record(self, action: str, author: Author, ask: EraseIn, id: str, report: ErasureBody) -> AuditRecord:
        counts = {"packets": report.packets, "derived": report.derived}
        if ask.subject is not UNSET:
            return author.record(action, id, about=self._people.hashes.reference(ask.subject), **counts)
        low = ask.from_ if ask.sequence is UNSET else ask.sequence
        high = ask.to if ask.sequence is UNSET else ask.sequence
        return author.record(action, id, stream=str(ask.stream), first=_int(low), last=_int(high), **counts)


class _SubjectRoutes:
    """What is kept about people, with what it needs."""

    def __init__(
        self, log: Log, people: People, trail: AuditTrail, reads: ConfirmationReads, clock: Clock, lane: Lane,
        bodies: JsonBodies,
    ) -> None:  # fmt: skip
        self._log = log
        self._people = people
        self._trail = trail
        self._reads = reads
        self._clock = clock
        self._lane = lane
        self._bodies = bodies

    async def show(self, subject: str) -> Response:
        """Where packets about somebody are, and what they consented to."""
        _require_office(principal_of(request))
        Parameters(request, ())
        _check_subject(subject)
        async with self._lane.step_out():
            counts, is_complete = await self._people.count_packets(subject)
            consents = await self._people.consents.list_of(subject)
            await self._note("subject.read", subject)
        shown = [
            SubjectStream(
                stream=one.stream.name, packets=one.packets, first_sequence=one.first_sequence,
                last_sequence=one.last_sequence,
            )
            for one in counts
        ]  # fmt: skip
        searched = sorted(stream.name for stream, _ in self._people.subjects.declared().values())
        body = SubjectBody(
            streams=shown, complete=is_complete, searched=searched, consents=list(map(_consent_body, consents))
        )
        return answer(encode_wire(body), cache_control="no-store")

    async def export(self, subject: str) -> Response:
        """The packets about somebody, a page at a time."""
        principal = principal_of(request)
        _require_office(principal)
        require(principal, "read")
        parameters = Parameters(request, ("after", "limit"))
        _check_subject(subject)
        after = parameters.number("after", minimum=0) or 0
        limit = parameters.number("limit", minimum=1, maximum=LIST_LIMIT_MAX) or LIST_LIMIT
        async with self._lane.step_out():
            found, next_after = await self._people.read_packets(subject, after, limit)
            packets = [await show_present(self._reads, entry, stream) for stream, entry in found]
            await self._note("subject.export", subject)
        body = SubjectExport(packets=packets, next_after=UNSET if next_after is None else next_after)
        return answer(encode_wire(body), cache_control="no-store")

    async def list_consents(self, subject: str) -> Response:
        """What somebody consented to, and what not."""
        _require_office(principal_of(request))
        Parameters(request, ())
        _check_subject(subject)
        rows = await self._people.consents.list_of(subject)
        await self._note("consent.read", subject)
        return answer(encode_wire(ConsentList(consents=list(map(_consent_body, rows)))), cache_control="no-store")

    async def put_consent(self, subject: str) -> Response:
        """Records that somebody consented to a purpose, or doesn't any more."""
        principal, author = principal_of(request), author_of(request)
        _require_office(principal)
        Parameters(request, ())
        _check_subject(subject)
        ask = await self._bodies.read(request, ConsentIn, "the consent can't be recorded")
        row = ConsentRow(
            ask.purpose, ask.granted, self._clock.now_us(), end_us_of(ask.until, "until"), ask.reference, principal.name
        )
        action = "consent.grant" if ask.granted else "consent.withdraw"

        def tell(reference: str) -> AuditRecord:
            return author.record(action, reference, purpose=ask.purpose)

        async with self._lane.step_out():
            await self._people.consents.put(subject, row, lambda reference: self._trail.packet(tell(reference)))
        return answer(encode_wire(_consent_body(row)), cache_control="no-store")

    async def rebuild(self, part: str) -> Response:
        """Has an index made anew from the log: `subjects`, or `links` between packets and what was made from them."""
        require(principal_of(request), "admin")
        Parameters(request, ())
        if part not in REBUILT:
            raise BadParameter(f"nothing called {part[:40]!r} can be rebuilt", subject="part", hint=", ".join(REBUILT))
        async with self._lane.step_out():
            await self._trail.write(author_of(request).record("rebuild", part))
            if part == "links":
                older = self._log.erasing.older
                await older.begin_anew(self._log.head)
                behind = await older.count_behind()
            else:
                await self._people.subjects.rebuild()
                behind = self._people.subjects.behind
        return answer(encode_wire(RebuildBody(part=part, behind=behind)), 202)

    async def _note(self, action: str, subject: str) -> None:
        await self._trail.write_once(author_of(request).record(action, self._people.hashes.reference(subject)))


def _require_office(principal: Principal) -> None:
    """Whoever answers for people: administers the node, or manages every stream."""
    require(principal, "admin" if "admin" in principal.rights else "manage")


def _check_subject(subject: str) -> None:
    if not 1 <= len(subject) <= SUBJECT_CHARS_MAX:
        raise BadParameter(f"a subject has 1 to {SUBJECT_CHARS_MAX} characters", subject="subject")
    if "\ufffd" in subject:  # what stands for bytes that aren't UTF-8, whichever they were: two people would be one
        raise BadParameter("the subject isn't percent-encoded UTF-8", subject="subject")


def _refuse_others(name: str, ask: EraseIn, others: tuple[str, ...]) -> None:
    for other in others:
        if getattr(ask, other) is not UNSET:
            raise BadParameter(f"{name} goes without {other.strip('_')}", subject=other.strip("_"))


def _int(number: int | UnsetType) -> int:
    return number if isinstance(number, int) else 0


def _consent_body(row: ConsentRow) -> ConsentBody:
    return ConsentBody(
        purpose=row.purpose, granted=row.is_granted, changed_at=format_time_us(row.changed_us),
        until=format_time_us(row.until_us) if row.until_us else UNSET, reference=row.reference or UNSET,
        by=row.principal,
    )  # fmt: skip


def _answer(report: ErasureBody, status: int = 200) -> Response:
    return answer(encode_wire(report), status, cache_control="no-store")
