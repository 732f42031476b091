"""Reports of the node's own faults, over real HTTP: where it happened, and nothing of what was in its hands."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import structlog
import trio
from chaos_sink import ChaosSink, Step, Turn, answer, close_silently, hang, open_sink
from trio.testing import MockClock, wait_all_tasks_blocked

from overlayd.model.clock import Entropy, SystemClock
from overlayd.model.errors import CommitFailed, ConfigInvalid, DirectoryInUse
from overlayd.model.limits import Limits
from overlayd.model.logs import LogSettings, configure_from, watch_faults
from overlayd.model.metrics import Metrics
from overlayd.model.supervise import contain
from overlayd.model.units import Duration
from overlayd.outbound import Outbound, OutboundSettings
from overlayd.telemetry.dsn import parse_dsn
from overlayd.telemetry.fault_reports import STOP_S, FaultReports
from overlayd.telemetry.settings import SentrySettings, TracesSettings
from overlayd.telemetry.telemetry import Telemetry, open_telemetry

KEY = "a1b2c3d4e5f6"
CANARY = "canary-0451"


class Rig:
    """Reports and the place that they go to."""

    def __init__(self, sink: ChaosSink, **settings: Any) -> None:
        self.sink = sink
        self.metrics = Metrics()
        self.outbound = Outbound(Limits(), OutboundSettings(), self.metrics)
        self.settings = SentrySettings(dsn=sink.origin.replace("://", f"://{KEY}@") + "/7", **settings)
        self.reports = FaultReports(
            self.settings, self.outbound, node="n1", clock=SystemClock(), entropy=Entropy(), metrics=self.metrics
        )

    def count(self, outcome: str) -> float:
        """Reports by what became of them."""
        return self.metrics.registry.get_sample_value("overlayd_fault_reports_total", {"outcome": outcome}) or 0.0

    async def events(self) -> list[dict[str, Any]]:
        """What arrived."""
        return [await event_of(turn) for turn in self.sink.turns]


async def event_of(turn: Turn) -> dict[str, Any]:
    """The event in an envelope, whose parts are as long as they say."""
    head, kind, item, rest = (await turn.body()).split(b"\n")
    assert rest == b""
    event: dict[str, Any] = json.loads(item)
    assert json.loads(head)["event_id"] == event["event_id"]
    assert json.loads(kind) == {"type": "event", "length": len(item), "content_type": "application/json"}
    return event


@asynccontextmanager
async def open_rig(*steps: Step, **settings: Any) -> AsyncIterator[Rig]:
    """A place that answers so."""
    async with open_sink() as sink:
        sink.play(*steps)
        rig = Rig(sink, **settings)
        try:
            yield rig
        finally:
            rig.outbound.close()


def fail(secret: str) -> None:
    """Goes wrong with a secret in its hands and on its lips."""
    password = f"password {secret}"
    raise ValueError(f"can't read {password}")


def fault(act: Callable[[str], None] = fail) -> Exception:
    """An error as it is caught."""
    try:
        act(CANARY)
    except Exception as error:
        return error
    raise AssertionError


def nested(secret: str) -> None:
    """A group whose member has a cause."""
    try:
        fail(secret)
    except ValueError as error:
        try:
            raise OSError(28, f"No space for {secret}", f"/home/{secret}") from error
        except OSError as other:
            raise ExceptionGroup(f"several {secret}", [other, CommitFailed(f"not written: {secret}")]) from None


@pytest.mark.parametrize("act", [fail, nested])
async def test_a_report_holds_nothing_of_what_was_in_hand(act: Callable[[str], None]) -> None:
    """Neither messages of exceptions nor variables nor paths: the canary is nowhere, the place in the code is."""
    async with open_rig(answer(200)) as rig:
        rig.reports.note(fault(act), "request failed", "net.app")
        await rig.reports.stop()
        (turn,) = rig.sink.turns
        body = await turn.body()
        assert CANARY.encode() not in body
        assert b"password" not in body
        assert b"/home" not in body
        event = await event_of(turn)
        errors = event["exception"]["values"]
        assert "ValueError" in [one["type"] for one in errors]
        frames = next(one for one in errors if one["type"] == "ValueError")["stacktrace"]["frames"]
        assert (frames[-1]["function"], frames[-1]["in_app"]) == ("fail", False)
        assert isinstance(frames[-1]["lineno"], int)
        assert set(frames[-1]) == {"filename", "function", "module", "lineno", "in_app"}


async def test_what_a_report_says() -> None:
    """Which part of which node, in the form and with the header that Sentry asks for."""
    async with open_rig(answer(200), environment="test") as rig:
        rig.reports.note(fault(nested), "task crashed", "supervise")
        await rig.reports.stop()
        (turn,) = rig.sink.turns
        assert (turn.method, turn.path) == ("POST", "/api/7/envelope/")
        assert turn.headers["content-type"] == "application/x-sentry-envelope"
        assert f"sentry_key={KEY}" in turn.headers["x-sentry-auth"]
        assert "sentry_version=7" in turn.headers["x-sentry-auth"]
        (event,) = await rig.events()
        assert len(event["event_id"]) == 32
        assert (event["transaction"], event["logger"], event["level"]) == ("task crashed", "supervise", "error")
        assert (event["server_name"], event["environment"], event["platform"]) == ("n1", "test", "python")
        values = {one["type"]: one["value"] for one in event["exception"]["values"]}
        assert values == {"ValueError": "", "OSError": "ENOSPC", "CommitFailed": "storage.failed", "ExceptionGroup": ""}
        assert event["exception"]["values"][-1]["type"] == "ExceptionGroup"
        assert rig.count("sent") == 1


async def test_a_fault_that_comes_again_is_told_once_in_a_while(patient_clock: MockClock) -> None:
    """A loop that fails doesn't fill anybody's disk."""
    async with open_rig(answer(200), repeat_pause=Duration(60)) as rig:
        for _ in range(50):
            rig.reports.note(fault(), "request failed", "net")
        rig.reports.note(fault(), "another event", "net")
        await rig.reports.stop()
        assert (rig.count("sent"), rig.count("repeated")) == (2, 49)
        await trio.sleep(61)
        rig.reports.note(fault(), "request failed", "net")
        await rig.reports.stop()
        assert rig.count("sent") == 3


async def test_reports_that_find_no_room_are_dropped() -> None:
    """And counted, as a limit that was hit."""
    async with open_rig(answer(200), reports_max=2) as rig:
        for number in range(5):
            rig.reports.note(fault(), f"event {number}", "net")
        assert rig.count("dropped") == 3
        assert rig.metrics.registry.get_sample_value("overlayd_limit_hits_total", {"limit": "reports_max"}) == 3
        await rig.reports.stop()
        assert rig.count("sent") == 2


async def test_a_place_that_asks_for_a_pause_gets_it(patient_clock: MockClock) -> None:
    """429 with Retry-After: the report is sent again afterwards."""
    async with open_rig(answer(429, **{"Retry-After": "30"}), answer(200)) as rig, trio.open_nursery() as nursery:
        nursery.start_soon(rig.reports.run)
        rig.reports.note(fault(), "request failed", "net")
        await trio.sleep(20)
        assert (len(rig.sink.turns), rig.count("sent")) == (1, 0)
        await trio.sleep(20)
        assert (len(rig.sink.turns), rig.count("sent")) == (2, 1)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("step", [close_silently, answer(500), answer(403)])
async def test_a_report_that_can_t_be_sent_is_lost(step: Step) -> None:
    """Nobody waits for it."""
    async with open_rig(step) as rig:
        rig.reports.note(fault(), "request failed", "net")
        await rig.reports.stop()
        assert (rig.count("failed"), rig.count("sent")) == (1, 0)


async def test_the_end_doesn_t_wait_for_the_place(patient_clock: MockClock) -> None:
    """A moment at most."""
    async with open_rig(hang) as rig:
        rig.reports.note(fault(), "request failed", "net")
        started = trio.current_time()
        await rig.reports.stop()
        assert trio.current_time() - started == pytest.approx(STOP_S, abs=0.5)


@asynccontextmanager
async def open_whole(rig: Rig) -> AsyncIterator[Telemetry]:
    """As the daemon opens it."""
    configure_from(LogSettings(), SystemClock())
    async with open_telemetry(
        TracesSettings(), rig.settings, rig.outbound, node="n1", clock=SystemClock(), entropy=Entropy(),
        metrics=Metrics(),
    ) as telemetry, trio.open_nursery() as nursery:  # fmt: skip
        nursery.start_soon(telemetry.run)
        yield telemetry
        nursery.cancel_scope.cancel()


async def test_crashed_tasks_are_reported_and_errors_in_words_are_not() -> None:
    """What is logged with its trace is a fault; a warning, or an error that the node foresaw, isn't."""
    async with open_rig(answer(200)) as rig:
        async with open_whole(rig):
            log = structlog.get_logger("test")
            log.warning("nothing special", error=CANARY)
            log.error("foreseen", error=CANARY)

            async def crash() -> None:
                fail(CANARY)

            await contain("some task", crash, on_crash=lambda name: None)
            await wait_all_tasks_blocked(0.05)
        (event,) = await rig.events()
        assert (event["transaction"], event["logger"]) == ("task crashed", "supervise")
        assert [one["type"] for one in event["exception"]["values"]] == ["ValueError", "ExceptionGroup"]
        structlog.get_logger("test").error("afterwards", exc_info=fault())
        assert len(rig.sink.turns) == 1


async def test_what_ends_the_node_is_reported_before_it_is_gone() -> None:
    """Also through a nursery, and unlike what an admin is told at the start anyway."""
    for error, count in ((CommitFailed("disk"), 1), (RuntimeError(CANARY), 1), (ConfigInvalid("no"), 0), (DirectoryInUse("no"), 0)):  # fmt: skip
        async with open_rig(answer(200)) as rig:
            with pytest.raises(BaseExceptionGroup):
                async with open_whole(rig):
                    raise error
            assert len(rig.sink.turns) == count, error
            for event in await rig.events():
                assert event["transaction"] == "the node ended"


def test_without_a_dsn_nothing_is_there() -> None:
    """Nor without an endpoint."""

    async def open_nothing() -> None:
        metrics = Metrics()
        outbound = Outbound(Limits(), OutboundSettings(), metrics)
        async with open_telemetry(
            TracesSettings(), SentrySettings(), outbound, node="n", clock=SystemClock(), entropy=Entropy(), metrics=metrics
        ) as telemetry:  # fmt: skip
            assert (telemetry.spans, telemetry.exporter, telemetry.reports) == (None, None, None)
            await telemetry.run()

    trio.run(open_nothing)
    watch_faults(None)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("https://k@sentry.example/1", "https://sentry.example/api/1/envelope/"),
        ("https://k:s@sentry.example/1", "https://sentry.example/api/1/envelope/"),
        ("http://k@127.0.0.1:9000/under/a/path/42", "http://127.0.0.1:9000/under/a/path/api/42/envelope/"),
    ],
)
def test_a_dsn_names_the_place(text: str, url: str) -> None:
    """With its key, which is shown nowhere."""
    dsn = parse_dsn(text)
    assert (dsn.url, dsn.key) == (url, "k")
    assert "k@" not in repr(dsn)
    assert "key" not in repr(dsn)


@pytest.mark.parametrize(
    "text", ["sentry.example/1", "https://sentry.example/1", "https://k@sentry.example", "ftp://k@h/1"]
)
def test_a_wrong_dsn_is_a_wrong_setting(text: str) -> None:
    """Told at the start, without repeating what may be a key."""
    with pytest.raises(ValueError, match="dsn") as caught:
        SentrySettings(dsn=text)
    assert text not in str(caught.value)
