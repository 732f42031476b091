"""Spans on their way to a collector, over real HTTP: in OTLP's form, in batches, and lost rather than waited for."""

import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from chaos_sink import ChaosSink, Step, Turn, answer, close_silently, hang, open_sink
from trio.testing import MockClock

from overlayd.model.clock import Entropy, SystemClock
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.model.traces import Span, SpanBook
from overlayd.outbound import Outbound, OutboundSettings
from overlayd.telemetry.otlp import BATCH_SPANS, STOP_S, TRIES_MAX, TraceExporter, encode_spans
from overlayd.telemetry.settings import TracesSettings

ONE = Span(
    "0af7651916cd43dd8448eb211c80319c", "00f067aa0ba902b7", "b7ad6b7169203331", "append s", "internal",
    1_767_323_000_000_001, 1_767_323_000_000_002, (("messaging.system", "overlayd"), ("overlayd.offset", 1 << 60)),
)  # fmt: skip


class Rig:
    """An exporter and the collector that it tells."""

    def __init__(self, sink: ChaosSink, **settings: Any) -> None:
        self.sink = sink
        self.metrics = Metrics()
        outbound = Outbound(Limits(), OutboundSettings(), self.metrics)
        self.settings = TracesSettings(endpoint=sink.origin, **settings)
        self.book = SpanBook(
            sample=0.0, spans_max=5000, packets_max=10, clock=SystemClock(), entropy=Entropy(), chance=random.Random(1),
            metrics=self.metrics,
        )  # fmt: skip
        self.exporter = TraceExporter(self.book, self.settings, outbound, self.metrics, node="n1")
        self.outbound = outbound

    def count(self, outcome: str) -> float:
        """Spans by what became of them."""
        return self.metrics.registry.get_sample_value("overlayd_trace_spans_total", {"outcome": outcome}) or 0.0


@asynccontextmanager
async def open_rig(*steps: Step, **settings: Any) -> AsyncIterator[Rig]:
    """A collector that answers so, one step a request, the last one again and again."""
    async with open_sink() as sink:
        sink.play(*steps)
        rig = Rig(sink, **settings)
        try:
            yield rig
        finally:
            rig.outbound.close()


async def spans_of(turn: Turn) -> list[dict[str, Any]]:
    """The spans of a request."""
    body = json.loads(await turn.body())
    found: list[dict[str, Any]] = body["resourceSpans"][0]["scopeSpans"][0]["spans"]
    return found


def test_the_form_is_otlp_s_json() -> None:
    """Ids in hex, times and large numbers as text, kinds as numbers: opentelemetry-proto, JSON Protobuf Encoding."""
    body = json.loads(encode_spans([ONE, msgspec.structs.replace(ONE, parent="", error="retry", kind="client")], "n1"))
    (resource,) = body["resourceSpans"]
    told = {one["key"]: one["value"] for one in resource["resource"]["attributes"]}
    assert told["service.name"] == {"stringValue": "overlayd"}
    assert told["service.instance.id"] == {"stringValue": "n1"}
    first, second = resource["scopeSpans"][0]["spans"]
    assert first == {
        "traceId": ONE.trace, "spanId": ONE.id, "parentSpanId": ONE.parent, "name": "append s", "kind": 1,
        "startTimeUnixNano": "1767323000000001000", "endTimeUnixNano": "1767323000000002000",
        "attributes": [
            {"key": "messaging.system", "value": {"stringValue": "overlayd"}},
            {"key": "overlayd.offset", "value": {"intValue": str(1 << 60)}},
        ],
    }  # fmt: skip
    assert "parentSpanId" not in second
    assert (second["kind"], second["status"]) == (3, {"code": 2, "message": "retry"})


async def test_spans_go_out_in_batches() -> None:
    """To /v1/traces, as JSON, each once, in order."""
    async with open_rig(answer(200)) as rig:
        for number in range(BATCH_SPANS + 3):
            rig.book.add(msgspec.structs.replace(ONE, id=f"{number:016x}"))
        await rig.exporter.flush()
        first, second = rig.sink.turns
        assert (first.method, first.path) == ("POST", "/v1/traces")
        assert first.headers["content-type"] == "application/json"
        assert "authorization" not in first.headers
        ids = [span["spanId"] for turn in (first, second) for span in await spans_of(turn)]
        assert ids == [f"{number:016x}" for number in range(BATCH_SPANS + 3)]
        assert rig.count("exported") == BATCH_SPANS + 3
        assert len(rig.book) == 0


async def test_a_token_comes_from_its_file(tmp_path: Path, patient_clock: MockClock) -> None:
    """Read each time, so that it can be changed; one that can't be read costs spans, no more."""
    file = tmp_path / "token"
    file.write_text("Bearer abc\n")
    async with open_rig(answer(200), file=str(file)) as rig:
        rig.book.add(ONE)
        await rig.exporter.flush()
        assert rig.sink.turns[0].headers["authorization"] == "Bearer abc"
        file.unlink()
        rig.book.add(ONE)
        await rig.exporter.flush()
        assert len(rig.sink.turns) == 1
        assert rig.count("given_up") == 1


async def test_an_endpoint_may_end_in_the_path() -> None:
    """It isn't added twice."""
    async with open_rig(answer(200)) as rig:
        rig.settings = msgspec.structs.replace(rig.settings, endpoint=rig.sink.origin + "/v1/traces/")
        exporter = TraceExporter(rig.book, rig.settings, rig.outbound, Metrics(), node="n")
        rig.book.add(ONE)
        await exporter.flush()
        assert rig.sink.turns[0].path == "/v1/traces"


async def test_a_collector_that_is_away_for_a_moment_costs_nothing(patient_clock: MockClock) -> None:
    """The same batch is sent again, after pauses that grow."""
    async with open_rig(answer(503), close_silently, answer(429), answer(200)) as rig:
        rig.book.add(ONE)
        await rig.exporter.flush()
        assert rig.count("exported") == 1
        assert len(rig.sink.turns) >= 4
        assert await spans_of(rig.sink.turns[0]) == await spans_of(rig.sink.turns[-1])


async def test_a_collector_that_stays_away_costs_spans(patient_clock: MockClock) -> None:
    """After a few tries a batch is given up, so that the next ones have a chance."""
    async with open_rig(answer(503)) as rig:
        rig.book.add(ONE)
        await rig.exporter.flush()
        assert (rig.count("given_up"), rig.count("exported")) == (1, 0)
        assert len(rig.sink.turns) == TRIES_MAX


async def test_what_the_collector_refuses_isn_t_sent_again() -> None:
    """A 400 stays one."""
    async with open_rig(answer(400), answer(200)) as rig:
        rig.book.add(ONE)
        await rig.exporter.flush()
        assert rig.count("refused") == 1
        assert len(rig.sink.turns) == 1


async def test_the_end_doesn_t_wait_for_a_collector(patient_clock: MockClock) -> None:
    """What can't be sent in a moment is lost."""
    async with open_rig(hang) as rig:
        rig.book.add(ONE)
        started = trio.current_time()
        await rig.exporter.stop()
        assert trio.current_time() - started == pytest.approx(STOP_S, abs=0.5)


async def test_it_runs_until_it_is_cancelled_and_keeps_what_was_in_its_hands(patient_clock: MockClock) -> None:
    """A batch that was on its way when the node stopped is sent by the stop."""
    async with open_rig(hang, answer(200)) as rig:
        rig.book.add(ONE)
        with trio.move_on_after(float(rig.settings.interval) + 1):
            await rig.exporter.run()
        assert len(rig.sink.turns) == 1
        await rig.exporter.stop()
        assert rig.count("exported") == 1


async def test_only_networks_that_are_allowed_are_called(patient_clock: MockClock) -> None:
    """Loopback is, unless the settings say otherwise."""
    async with open_rig(answer(200), allow_private=()) as rig:
        rig.book.add(ONE)
        await rig.exporter.flush()
        assert rig.count("given_up") == 1
        assert rig.sink.connections == 0


@pytest.mark.parametrize("endpoint", ["localhost:4318", "ftp://collector", "http://user:pass@collector", "http://"])
def test_an_endpoint_that_can_t_be_called_is_a_wrong_setting(endpoint: str) -> None:
    """Told at the start."""
    with pytest.raises(ValueError, match="endpoint"):
        TracesSettings(endpoint=endpoint)
