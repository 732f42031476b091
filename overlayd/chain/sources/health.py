"""How a source is doing: what it failed at, and until when it is left alone."""

import random

import trio

from overlayd.chain.sources.faults import LASTING, Fault
from overlayd.chain.sources.settings import AskingSettings
from overlayd.model.metrics import Metrics


class SourceMetrics:
    """What is measured of all sources, by their names."""

    def __init__(self, metrics: Metrics) -> None:
        self.requests = metrics.counter(
            "overlayd_chain_source_requests", "Requests to sources of the chain", "source", "call"
        )
        self.errors = metrics.counter(
            "overlayd_chain_source_errors",
            "Times that a source gave nothing that can be used, by why",
            "source",
            "reason",
        )
        self.seconds = metrics.histogram(
            "overlayd_chain_source_seconds", "Requests to sources, from start to end", "source"
        )
        self.backoff = metrics.gauge(
            "overlayd_chain_source_backoff_seconds",
            "For how long a source is still left alone; 0: it is asked",
            "source",
        )
        self.tip = metrics.gauge(
            "overlayd_chain_source_tip_height", "Height of the newest block that a source named", "source"
        )
        self.limit_hit = metrics.count_limit_hit


class SourceHealth:
    """One source's. Failures in a row make its pauses longer; a good answer ends that."""

    def __init__(self, name: str, settings: AskingSettings, metrics: SourceMetrics, chance: random.Random) -> None:
        self.name = name
        self.last_fault = ""
        """Its word, of the last failure since the last good answer; empty when all is well."""
        self.last_detail = ""
        self.faults = 0
        """All that were ever noted."""
        self._settings = settings
        self._metrics = metrics
        self._chance = chance
        self._row = 0
        self._until_s = 0.0
        self._is_lasting = False
        metrics.backoff.labels(name).set_function(lambda: self.pause_s)

    def __repr__(self) -> str:
        return f"SourceHealth({self.name}, {self.last_fault or 'well'}, pause_s={self.pause_s:.1f})"

    @property
    def pause_s(self) -> float:
        """For how long it is still left alone."""
        # Metrics are read in a thread without a clock of trio's.
        try:
            return max(0.0, self._until_s - trio.current_time())
        except RuntimeError:
            return 0.0

    @property
    def is_lasting(self) -> bool:
        """Whether somebody has to mend something before it can be of use."""
        return self._is_lasting

    def note_good(self) -> None:
        """It answered as it should."""
        self._row, self._until_s = 0, 0.0
        self._is_lasting = False
        self.last_fault = self.last_detail = ""

    def note_fault(self, fault: Fault, detail: str, retry_after_s: float | None = None) -> None:
        """It failed, and is left alone for a while: longer with each time in a row, as long as it asks for."""
        self.count(fault, detail)
        self._row += 1
        longest_s = float(self._settings.backoff_max)
        if fault in LASTING:
            self._is_lasting = True
            pause_s = longest_s
        else:
            pause_s = min(float(self._settings.backoff_first) * 2.0 ** min(self._row - 1, 32), longest_s)
        pause_s *= 0.5 + self._chance.random() / 2
        if retry_after_s is not None:
            if retry_after_s > longest_s:
                self._metrics.limit_hit("backoff_max")
            pause_s = max(pause_s, min(retry_after_s, longest_s))
        self._until_s = max(self._until_s, trio.current_time() + pause_s)

    def count(self, fault: Fault, detail: str) -> None:
        """It failed at one thing; it is asked about others all the same."""
        self.faults += 1
        self.last_fault, self.last_detail = str(fault), detail
        self._metrics.errors.labels(self.name, str(fault)).inc()
