"""Filters at work: equal expressions are compiled once and evaluated once per entry, and each has a price.

An evaluation can't be interrupted and holds the interpreter's lock, in a thread as well; filter_judge.py bounds
what one may cost. Dear ones run in a thread all the same, so that others get their turn between two of them, and
one that keeps taking too long is disabled.
"""

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Mapping
from typing import Any, Generic, Protocol, TypeVar

import cel
import msgspec
import trio
from msgspec import UNSET

from overlayd.model.entry import StoredEntry
from overlayd.model.errors import InvalidFilter, LimitReached
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.model.wire import Packet
from overlayd.pipeline.filter_judge import JudgedFilter, Path, judge_filter, refuse
from overlayd.pipeline.patterns import CompiledPattern

CACHED_BYTES = 4 << 20
CACHED_ENTRIES = 1024
ITEM_VALUE_CHARS = 1024
"""A string that a comprehension mentions for every item may be so long; it is copied each time."""

MATCH_STEPS_MAX = 5_000_000
SLICE_S = 0.001

_MEAN_WEIGHT = 1 / 16
_SLOW_START_US = 1.5  # what comprehensions start with, in units of filter_mean_us: first in a thread
_decode = msgspec.json.Decoder().decode

# What the engine raises for a missing member, a wrong type, overflow, a bad index or text: no match.
_NO_MATCH = (KeyError, TypeError, ValueError, RuntimeError, ArithmeticError, LookupError)


class Viewed(Protocol):
    """A packet that is being looked at."""

    @property
    def entry(self) -> StoredEntry: ...


V = TypeVar("V", bound=Viewed)
S = TypeVar("S", bound=Hashable)


class Filter:
    """One expression, shared by everybody who uses it. `mean_us`: what an evaluation takes, as a moving mean."""

    __slots__ = ("functions", "is_disabled", "item_keys", "judged", "keys", "mean_us", "overruns", "program", "users")

    def __init__(
        self, judged: JudgedFilter, program: cel.Program, keys: tuple[str, ...],
        functions: tuple[tuple[str, Callable[[Any], bool | None]], ...],
    ) -> None:  # fmt: skip
        self.judged = judged
        self.program = program
        self.keys = keys
        self.item_keys = tuple(keys[number] for number in sorted(judged.item_paths))
        self.functions = functions
        self.mean_us = 0.0
        self.overruns = 0
        self.is_disabled = False
        self.users: dict[str, int] = {}

    def __repr__(self) -> str:
        users = sum(self.users.values())
        return f"Filter({self.judged.text!r}, users={users}, mean_us={self.mean_us:.1f}, overruns={self.overruns})"


class _Subject:
    """An entry as filters see it: the paths they name, looked up once, and what they said already.

    `is_lent`: a thread is evaluating with its context, which nobody else may touch meanwhile.
    """

    __slots__ = ("body_bytes", "context", "functions", "generation", "is_lent", "values", "verdicts")

    def __init__(self, values: dict[str, Any], generation: int, body_bytes: int) -> None:
        self.values = values
        self.generation = generation
        self.body_bytes = body_bytes
        self.context = cel.Context({"data": values})
        self.functions: set[str] = set()
        self.is_lent = False
        self.verdicts: dict[Filter, bool] = {}


class FilterLease(Generic[V, S]):
    """A filter in somebody's use. Release it once."""

    __slots__ = ("_book", "_is_released", "_principal", "filter")

    def __init__(self, book: "FilterBook[V, S]", filter: Filter, principal: str) -> None:
        self._book = book
        self.filter = filter
        self._principal = principal
        self._is_released = False

    @property
    def judge(self) -> Callable[[V, S], Awaitable[bool | None]]:
        """Whether a packet matches; None once the filter is disabled. A checkpoint when it took long."""
        return self._judge

    async def _judge(self, view: V, state: S) -> bool | None:
        return await self._book.judge(self.filter, view, state)

    def release(self) -> None:
        if not self._is_released:
            self._is_released = True
            self._book.release(self.filter, self._principal)


class FilterBook(Generic[V, S]):
    """All filters of the node. `describe` gives a packet as consumers see it, from what is being looked at."""

    def __init__(self, *, limits: Limits, metrics: Metrics, describe: Callable[[V, S], Packet]) -> None:
        self._limits = limits
        self._metrics = metrics
        self._describe = describe
        self._filters: dict[str, Filter] = {}
        self._count_of: dict[str, int] = {}
        self._keys: dict[Path, str] = {}
        self._functions: dict[str, tuple[str, Callable[[Any], bool | None]]] = {}
        self._generation = 0
        self._subjects: OrderedDict[Hashable, _Subject] = OrderedDict()
        self._cached_bytes = 0
        self._serial = 0
        self._held_s = 0.0
        self._threads = trio.CapacityLimiter(1)
        metrics.gauge("overlayd_filters", "Distinct filters in use").set_function(lambda: len(self._filters))
        self._errors = metrics.counter(
            "overlayd_filter_errors", "Packets that a filter passed over for a missing member or a wrong type"
        )
        self._overruns = metrics.counter("overlayd_filter_overruns", "Evaluations of a filter that took too long")
        self._disabled = metrics.counter("overlayd_filters_disabled", "Filters that were disabled for taking too long")
        self._thread_seconds = metrics.histogram("overlayd_filter_seconds", "Evaluations of a filter in a thread")

    def lease(self, text: str, principal: str) -> FilterLease[V, S]:
        """The filter of an expression, compiled if nobody else uses it. Raises InvalidFilter, LimitReached."""
        found = self._filters.get(text)
        is_new_user = found is None or principal not in found.users
        if is_new_user and self._count_of.get(principal, 0) >= self._limits.filters_per_principal:
            raise self._limit("filters_per_principal", self._limits.filters_per_principal)
        if found is None:
            if len(self._filters) >= self._limits.filters_max:
                raise self._limit("filters_max", self._limits.filters_max)
            found = self._filters[text] = self._compile(self._judged(text))
        if is_new_user:
            self._count_of[principal] = self._count_of.get(principal, 0) + 1
        found.users[principal] = found.users.get(principal, 0) + 1
        return FilterLease(self, found, principal)

    def release(self, filter: Filter, principal: str) -> None:
        """Undoes one lease; the last one forgets the filter."""
        filter.users[principal] -= 1
        if filter.users[principal]:
            return
        del filter.users[principal]
        self._count_of[principal] -= 1
        if not self._count_of[principal]:
            del self._count_of[principal]
        if not filter.users:
            del self._filters[filter.judged.text]
            self._forget_names()

    async def judge(self, filter: Filter, view: V, state: S) -> bool | None:
        """Whether a packet matches; None once the filter is disabled. A checkpoint when it took long."""
        if filter.is_disabled:
            return None
        key = (view.entry.offset, view.entry.leaf, state)
        subject = self._find_subject(key)
        if subject is not None and (known := subject.verdicts.get(filter)) is not None:
            return known
        if subject is None or subject.is_lent:
            subject = None
        is_large = len(view.entry.body) > self._limits.filter_inline_bytes
        if is_large or filter.mean_us > self._limits.filter_mean_us:
            self._metrics.count_limit_hit("filter_inline_bytes" if is_large else "filter_mean_us")
            return await self._judge_in_thread(filter, subject, key, view, state)
        started = time.thread_time()
        if subject is None:
            subject = _open_subject(self._keys, self._generation, self._describe(view, state), self._limits)
            self._keep_subject(key, subject)
        verdict = _evaluate(filter, subject)
        took = time.thread_time() - started
        self._note_price(filter, took)
        self._held_s += took
        if self._held_s > SLICE_S:
            self._held_s = 0.0
            await trio.lowlevel.checkpoint()
        return self._settle(filter, subject, verdict)

    def clear(self) -> None:
        """Forgets what was kept of entries. For erasure, which promises that nothing of them is left."""
        self._subjects.clear()
        self._cached_bytes = 0

    def _judged(self, text: str) -> JudgedFilter:
        try:
            return judge_filter(text, self._limits)
        except InvalidFilter as err:
            if limit := err.extra.get("limit"):
                self._metrics.count_limit_hit(limit)
            raise

    def _compile(self, judged: JudgedFilter) -> Filter:
        keys = []
        for path in judged.paths:
            if path not in self._keys:
                self._keys[path] = self._next_name("p")
                self._generation += 1
            keys.append(self._keys[path])
        functions: list[tuple[str, Callable[[Any], bool | None]]] = []
        for pattern in judged.patterns:
            if pattern.text not in self._functions:
                self._functions[pattern.text] = (self._next_name("rx"), _matcher_of(pattern))
            functions.append(self._functions[pattern.text])
        source = judged.source(keys, [name for name, _ in functions])
        try:
            program = cel.compile(source)
        except _NO_MATCH as err:
            self._forget_names()
            refuse(_words_of(err, source, judged.text))
        filter = Filter(judged, program, tuple(keys), tuple(functions))
        if judged.has_comprehension:
            filter.mean_us = _SLOW_START_US * self._limits.filter_mean_us
        return filter

    def _next_name(self, prefix: str) -> str:
        self._serial += 1
        return f"{prefix}{self._serial}"

    def _forget_names(self) -> None:
        """Drops paths and patterns that no filter uses any more; names are never used again."""
        paths = {path for one in self._filters.values() for path in one.judged.paths}
        texts = {pattern.text for one in self._filters.values() for pattern in one.judged.patterns}
        self._keys = {path: key for path, key in self._keys.items() if path in paths}
        self._functions = {text: found for text, found in self._functions.items() if text in texts}

    def _find_subject(self, key: Hashable) -> _Subject | None:
        found = self._subjects.get(key)
        if found is not None and found.generation != self._generation:
            # A filter that came later may name paths that weren't looked up here.
            del self._subjects[key]
            self._cached_bytes -= found.body_bytes
            return None
        return found

    def _keep_subject(self, key: Hashable, subject: _Subject) -> None:
        if key in self._subjects or subject.generation != self._generation:
            return
        self._subjects[key] = subject
        self._cached_bytes += subject.body_bytes
        while len(self._subjects) > CACHED_ENTRIES or self._cached_bytes > CACHED_BYTES:
            _, oldest = self._subjects.popitem(last=False)
            self._cached_bytes -= oldest.body_bytes

    async def _judge_in_thread(
        self, filter: Filter, subject: _Subject | None, key: Hashable, view: V, state: S
    ) -> bool | None:
        """Evaluates in a thread and reckons with the processor time that it took there."""
        packet = self._describe(view, state) if subject is None else None
        generation, keys = self._generation, dict(self._keys)
        if subject is not None:
            subject.is_lent = True

        def work() -> tuple[_Subject, bool | None, float]:
            started = time.thread_time()
            used = subject
            if used is None:
                assert packet is not None
                used = _open_subject(keys, generation, packet, self._limits)
            return used, _evaluate(filter, used), time.thread_time() - started

        try:
            used, verdict, took = await trio.to_thread.run_sync(work, limiter=self._threads)
        finally:
            if subject is not None:
                subject.is_lent = False
        self._thread_seconds.observe(took)
        if used.body_bytes <= self._limits.filter_inline_bytes:
            self._keep_subject(key, used)
        self._note_price(filter, took)
        return self._settle(filter, used, verdict)

    def _settle(self, filter: Filter, subject: _Subject, verdict: bool | None) -> bool:
        if verdict is None:
            self._errors.inc()
        subject.verdicts[filter] = bool(verdict)
        return bool(verdict)

    def _note_price(self, filter: Filter, took_s: float) -> None:
        took_us = took_s * 1e6
        filter.mean_us += (took_us - filter.mean_us) * _MEAN_WEIGHT if filter.mean_us else took_us * _MEAN_WEIGHT
        if took_s <= self._limits.filter_timeout:
            return
        filter.overruns += 1
        self._overruns.inc()
        self._metrics.count_limit_hit("filter_timeout")
        if filter.overruns >= self._limits.filter_overruns and not filter.is_disabled:
            filter.is_disabled = True
            self._disabled.inc()
            self._metrics.count_limit_hit("filter_overruns")

    def _limit(self, name: str, count: int) -> LimitReached:
        self._metrics.count_limit_hit(name)
        whose = "of one principal" if name == "filters_per_principal" else "on this node"
        return LimitReached(
            f"there are {count} distinct filters {whose} already", subject=name,
            hint="equal expressions count once; narrow by stream, topic, type or key where that does",
        )  # fmt: skip


def _open_subject(keys: Mapping[Path, str], generation: int, packet: Packet, limits: Limits) -> _Subject:
    values = look_up(keys, packet, limits.filter_list_items)
    return _Subject(values, generation, len(bytes(packet.data_payload)))


def _evaluate(filter: Filter, subject: _Subject) -> bool | None:
    """The verdict; None where something is missing or of a wrong type."""
    for key in filter.item_keys:
        value = subject.values.get(key)
        if isinstance(value, (list, dict)) or (isinstance(value, str) and len(value) > ITEM_VALUE_CHARS):
            return None
    for name, function in filter.functions:
        if name not in subject.functions:
            subject.context.add_function(name, function)
            subject.functions.add(name)
    try:
        outcome = filter.program.execute(subject.context)
    except _NO_MATCH:
        return None
    return outcome if isinstance(outcome, bool) else None


def look_up(keys: Mapping[Path, str], packet: Packet, items_max: int) -> dict[str, Any]:
    """What stands at each path, under its key; a path that breaks off is left out.

    Lists and objects are cut after `items_max` members.
    """
    values: dict[str, Any] = {}
    text = bytes(packet.data_payload)
    payload: Any = UNSET
    is_long = text.count(b",") + (0 if packet.metadata is UNSET else bytes(packet.metadata).count(b",")) >= items_max
    for path, key in keys.items():
        if path[0] == "data":
            if payload is UNSET:
                payload = _decode(text)
            here, steps = payload, path[1:]
        else:
            here, steps = _member_of(packet, path), path[2:]
        for step in steps:
            here = _step_into(here, step)
        if here is not UNSET:
            values[key] = _cut(here, items_max) if is_long else here
    return values


def _member_of(packet: Packet, path: Path) -> Any:
    if len(path) == 1:
        members = {name: _member_of(packet, ("packet", name)) for name in packet.__struct_fields__}
        del members["data_payload"]
        return {name: member for name, member in members.items() if member is not UNSET}
    member = getattr(packet, str(path[1]))
    return _decode(bytes(member)) if isinstance(member, msgspec.Raw) else member


def _step_into(here: Any, step: str | int) -> Any:
    if isinstance(step, str):
        return here.get(step, UNSET) if type(here) is dict else UNSET
    return here[step] if type(here) is list and step < len(here) else UNSET


def _cut(value: Any, items_max: int) -> Any:
    if type(value) is list:
        return [_cut(item, items_max) for item in value[:items_max]]
    if type(value) is dict:
        return {name: _cut(member, items_max) for name, member in list(value.items())[:items_max]}
    return value


def _matcher_of(pattern: CompiledPattern) -> Callable[[Any], bool | None]:
    steps = 0.2 if pattern.cost.places <= 12 else 0.6 * pattern.cost.places

    def match(text: Any) -> bool | None:
        """None, which is no boolean, for what can't be matched: the engine logs what a function raises."""
        if type(text) is not str or len(text) * steps > MATCH_STEPS_MAX:
            return None
        return pattern.is_match(text)

    return match


def _words_of(err: BaseException, source: str, text: str) -> str:
    """The engine's own words without the rewritten source, which means nothing to the one who wrote the filter."""
    lines = str(err).replace(f"'{source}'", f"'{text}'").splitlines()
    words = lines[0].partition("ERROR: ")[2] or lines[0]
    _, _, reason = words.rpartition(": ") if "<input>" in words else ("", "", words)
    reason = reason.partition(" expecting ")[0].replace("mismatched input '<EOF>'", "it ends too early")
    return f"not a CEL expression: {reason[:200]}"
