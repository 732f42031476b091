"""Statistics of each stream, kept over restarts: counted in memory (model/stream_tally.py), stored now and then.

Packets that come in are told apart by their sequences, so none is lost to a kill. What goes out, and what fails, is
stored every few seconds: a kill loses what was counted since.
"""

import msgspec
import structlog
import trio

from overlayd.model.errors import OverlaydError
from overlayd.model.metrics import Metrics
from overlayd.model.stream_tally import StreamTally, StreamTotals
from overlayd.storage import Log, Stream
from overlayd.telemetry.tables import read_totals, store_totals

FLUSH_S = 10.0
PUT_PER_TURN = 1000
_log = structlog.get_logger("telemetry.statistics")


class StreamFigures(msgspec.Struct, frozen=True):
    """What happened to a stream since it was created.

    `sent`: messages about its packets, each reader's counted. `latency_ms_mean`: from a packet's append until it was
    written to a live session that waited for it, or taken by what a durable subscription delivers to, counted from when
    it was its turn; None while there was none.
    """

    received: int
    sent: int
    refused: int
    failed: int
    latency_ms_mean: float | None

    @property
    def error_rate(self) -> float | None:
        """The share of packets that were refused, of all that were offered; None while there were none."""
        offered = self.received + self.refused
        return self.refused / offered if offered else None


class StreamStatistics:
    """Keeps the sums of all streams. One for the node; `load` once the log is open, `run` beside the rest."""

    def __init__(self, log: Log, metrics: Metrics) -> None:
        self.tally = StreamTally(self._find_id)
        self._log = log
        self._failures = metrics.counter(
            "overlayd_statistics_flush_failures", "Times that the statistics of streams couldn't be written out"
        )

    def __repr__(self) -> str:
        return f"StreamStatistics(streams={len(self.tally)})"

    async def load(self) -> None:
        """What was stored, brought up to what the log holds. Checkpoint."""
        stored = {totals.stream_id: totals for totals in await self._log.read(read_totals)}
        for number, stream in enumerate(self._log.list_streams(), 1):
            totals = stored.get(stream.id) or StreamTotals(stream.id)
            is_behind = totals.received_up_to != stream.head_sequence
            if is_behind:  # now, since a later epoch's sequences say nothing about the packets of this one
                _catch_up(totals, stream)
            if is_behind or stream.id in stored:
                self.tally.put(stream.name, totals, is_changed=is_behind)
            if number % PUT_PER_TURN == 0:
                await trio.lowlevel.checkpoint()

    def of(self, stream: Stream) -> StreamFigures:
        """The statistics of a stream up to now."""
        totals = self.tally.find(stream.name, stream.id)
        if totals is None:
            totals = StreamTotals(stream.id)
        return StreamFigures(
            totals.received_by(stream.head_sequence), totals.sent, totals.refused, totals.failed,
            round(totals.latency_us / totals.latencies / 1000, 3) if totals.latencies else None,
        )  # fmt: skip

    async def run(self) -> None:
        """Stores what was counted, now and then, until it is cancelled."""
        while True:
            await trio.sleep(FLUSH_S)
            await self.flush()

    async def flush(self) -> None:
        """Stores what was counted so far; durable when it returns. What can't be stored now is kept. Checkpoint."""
        changed = self.tally.take_changed()
        rows = [row for row in (self._row(name, totals) for name, totals in changed.items()) if row is not None]
        if not rows:
            await trio.lowlevel.checkpoint()
            return
        is_done = False
        try:
            await self._log.write(lambda connection: store_totals(connection, rows))
            is_done = True
        except OverlaydError as err:
            self._failures.inc()
            _log.warning("statistics not written", error=err.detail)
        finally:
            if not is_done:
                self.tally.put_back(changed)

    def _row(self, name: str, totals: StreamTotals) -> tuple[int, ...] | None:
        """None when the stream is gone; its sums go, too."""
        stream = self._log.find_stream(name)
        if stream is None or stream.id != totals.stream_id:
            self.tally.drop(name)
            return None
        _catch_up(totals, stream)
        return (
            totals.stream_id, totals.received, totals.received_up_to, totals.sent, totals.refused, totals.failed,
            totals.latency_us, totals.latencies,
        )  # fmt: skip

    def _find_id(self, name: str) -> int | None:
        stream = self._log.find_stream(name)
        return None if stream is None else stream.id


def _catch_up(totals: StreamTotals, stream: Stream) -> None:
    totals.received = totals.received_by(stream.head_sequence)
    totals.received_up_to = stream.head_sequence
