"""JSON Schema, the first stage that knows its stream: compiled once per definition version, bounded, offline.

Drafts 4, 6, 7, 2019-09 and 2020-12, told apart by `$schema`; without one it is 2020-12. Formats are asserted,
unknown ones are ignored as the specification says. Nothing is ever fetched: what isn't in the document and
isn't a metaschema of those drafts is refused when the definition is made.
"""

from collections import OrderedDict
from functools import partial
from itertools import islice
from typing import Any, NoReturn

import jsonschema_rs
import trio

from overlayd.model.errors import InvalidDefinition, SchemaViolation, Violation
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.pipeline.json_text import pointer_of
from overlayd.pipeline.patterns import OPTIONS, PatternCost, PatternRefused, judge_pattern
from overlayd.pipeline.schema_cost import DATA_KEYWORDS, Path, SchemaCost, SchemaTooCostly, describe_path, foresee_cost

DEFAULT_DRAFT = "https://json-schema.org/draft/2020-12/schema"
DRAFTS: dict[str, type[jsonschema_rs.Validator]] = {
    "http://json-schema.org/draft-04/schema": jsonschema_rs.Draft4Validator,
    "http://json-schema.org/draft-06/schema": jsonschema_rs.Draft6Validator,
    "http://json-schema.org/draft-07/schema": jsonschema_rs.Draft7Validator,
    "https://json-schema.org/draft/2019-09/schema": jsonschema_rs.Draft201909Validator,
    DEFAULT_DRAFT: jsonschema_rs.Draft202012Validator,
}
VIOLATIONS_MAX = 20
"""Mistakes listed for one packet."""

_DETAIL_CHARS = 300
_DETAIL_APPLICATIONS = 2000
"""Naming a mistake takes about 10 µs and the validator names all of them or none; above this it names none."""

_FORMAT_REGEX_CHARS = 4096

Schema = dict[str, Any] | bool


class CompiledSchema:
    """A schema, ready to judge values. Immutable, may be used from any thread."""

    __slots__ = ("_bytes_within", "_cost", "_steps_max", "_validator")

    def __init__(self, validator: jsonschema_rs.Validator, cost: SchemaCost, steps_max: int) -> None:
        self._validator = validator
        self._cost = cost
        self._steps_max = steps_max
        self._bytes_within = cost.bytes_within(steps_max)

    def check(self, value: Any, raw: bytes, member: str = "data") -> None:
        """Passes a value that fits. `raw` is its JSON text, `member` where it stands in the packet.

        Raises SchemaViolation with pointers into the packet, also for a value that would take too long to judge.
        """
        if (
            len(raw) > self._bytes_within
            and self._cost.steps_for(raw) > self._steps_max
            and (steps := self._cost.steps_for(raw, is_exact=True)) > self._steps_max
        ):
            detail = f"judging it by the schema may take {steps:.1e} steps; {self._steps_max:.1e} are allowed"
            raise SchemaViolation(
                detail, subject=f"/{member}", violations=[Violation(f"/{member}", "schema.cost", detail)],
                hint="send smaller packets, or let the schema look at each place fewer times",
            )  # fmt: skip
        if not self._validator.is_valid(value):
            raise self._explain(value, raw, member)

    def _explain(self, value: Any, raw: bytes, member: str) -> SchemaViolation:
        if self._cost.applications_for(raw) > _DETAIL_APPLICATIONS:
            detail = "it breaks the schema somewhere; it is too large to say where"
            return SchemaViolation(
                detail, subject=f"/{member}", violations=[Violation(f"/{member}", "schema.invalid", detail)]
            )
        found = [_violation_of(err, member) for err in islice(self._validator.iter_errors(value), VIOLATIONS_MAX)]
        assert found, "a value that isn't valid breaks some rule"
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        return SchemaViolation(
            f"{found[0].pointer}: {found[0].detail}{more}", subject=found[0].pointer, violations=found
        )


def _violation_of(err: jsonschema_rs.ValidationError, member: str) -> Violation:
    message = err.message
    if len(message) > _DETAIL_CHARS:
        message = message[:_DETAIL_CHARS] + "…"
    return Violation(f"/{member}" + pointer_of(err.instance_path), f"schema.{err.kind.name}", message)


def compile_schema(schema: Schema, limits: Limits) -> CompiledSchema:
    """The schema, checked against its metaschema, bounded and compiled. Plain CPU work, of tens of milliseconds
    for the largest. Raises InvalidDefinition with pointers into the definition."""
    validator_cls = _draft_of(schema)
    _check_embedded_drafts(schema)
    try:
        cost = foresee_cost(schema, limits.json_depth_max, partial(_judge_pattern, limits))
    except SchemaTooCostly as err:
        _refuse(str(err), err.path, err, limit=err.limit)
    _check_steps(cost, limits)
    try:
        validator = validator_cls(
            schema, validate_formats=True, ignore_unknown_formats=True, formats={"regex": _is_regex},
            pattern_options=OPTIONS, retriever=_refuse_retrieval,
        )  # fmt: skip
    except jsonschema_rs.ValidationError as err:
        _refuse(err.message[:_DETAIL_CHARS], tuple(err.instance_path), err)
    except (ValueError, jsonschema_rs.ReferencingError) as err:
        _refuse(str(err)[:_DETAIL_CHARS], (), err)
    return CompiledSchema(validator, cost, limits.schema_steps)


def _check_steps(cost: SchemaCost, limits: Limits) -> None:
    steps = cost.steps_for(b"0")
    if steps > limits.schema_steps:
        _refuse(f"even the smallest packet may take {steps:.1e} steps to judge", (), limit="schema_steps")


def _draft_of(schema: Schema) -> type[jsonschema_rs.Validator]:
    if isinstance(schema, bool) or "$schema" not in schema:
        return DRAFTS[DEFAULT_DRAFT]
    return _known_draft(schema["$schema"], ("$schema",))


def _known_draft(name: Any, path: Path) -> type[jsonschema_rs.Validator]:
    found = DRAFTS.get(name.removesuffix("#")) if isinstance(name, str) else None
    if found is None:
        _refuse(f"{str(name)[:120]!r} isn't one of the drafts taken here: {', '.join(DRAFTS)}", path)
    return found


def _check_embedded_drafts(schema: Any) -> None:
    """A `$schema` inside must name a known draft too; any other one would have to be fetched."""
    stack: list[tuple[Any, Path]] = [(schema, ())]
    while stack:
        here, path = stack.pop()
        if isinstance(here, dict):
            # In the map of an object's properties, `$schema` is a property's name.
            if "$schema" in here and not isinstance(here["$schema"], dict | bool):
                _known_draft(here["$schema"], (*path, "$schema"))
            stack.extend((member, (*path, name)) for name, member in here.items() if name not in DATA_KEYWORDS)
        elif isinstance(here, list):
            stack.extend((member, (*path, at)) for at, member in enumerate(here))


def _judge_pattern(limits: Limits, pattern: str, path: Path) -> PatternCost:
    try:
        return judge_pattern(pattern, chars_max=limits.schema_pattern_chars, repeats_max=limits.schema_pattern_repeats)
    except PatternRefused as err:
        raise SchemaTooCostly(str(err), path, err.limit and f"schema_pattern_{err.limit}") from err


def _is_regex(text: str) -> bool:
    """Format `regex`, for texts of a length that is checked in no time."""
    return len(text) <= _FORMAT_REGEX_CHARS and _REGEX_FORMAT.is_valid(text)


def _refuse_retrieval(uri: str) -> NoReturn:
    raise ValueError(f"nothing is fetched, so {uri[:200]} can't be referred to")


def _refuse(detail: str, path: Path, cause: BaseException | None = None, *, limit: str = "") -> NoReturn:
    pointer = describe_path(path)
    raise InvalidDefinition(
        f"{pointer}: {detail}", subject=pointer, violations=[Violation(pointer, "definition.schema", detail)],
        extra={"limit": limit} if limit else None,
    ) from cause  # fmt: skip


_REGEX_FORMAT = jsonschema_rs.Draft202012Validator({"format": "regex"}, validate_formats=True)


class SchemaCache:
    """Compiled schemas by stream and definition version; the least recently used go first.

    One thread compiles at a time, so that a burst of new definitions can't take all of the node's.
    """

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self._limits = limits
        self._metrics = metrics
        self._kept: OrderedDict[tuple[bytes, int], CompiledSchema] = OrderedDict()
        self._turn = trio.Lock()
        self._threads = trio.CapacityLimiter(1)
        self._seconds = metrics.histogram("overlayd_schema_compile_seconds", "Time to compile a stream's schema")

    def find(self, stream_hash: bytes, version: int) -> CompiledSchema | None:
        """The compiled schema if it is at hand. Doesn't wait."""
        found = self._kept.get((stream_hash, version))
        if found is not None:
            self._kept.move_to_end((stream_hash, version))
        return found

    async def compiled(self, stream_hash: bytes, version: int, schema: Schema) -> CompiledSchema:
        """The compiled schema of a definition version. A checkpoint. Raises InvalidDefinition."""
        async with self._turn:
            if (found := self.find(stream_hash, version)) is not None:
                return found
            compiled = await self._compile(schema)
            self._kept[stream_hash, version] = compiled
            if len(self._kept) > self._limits.schemas_compiled:
                self._kept.popitem(last=False)
                self._metrics.count_limit_hit("schemas_compiled")
            return compiled

    async def _compile(self, schema: Schema) -> CompiledSchema:
        started = trio.current_time()
        try:
            compiled = await trio.to_thread.run_sync(compile_schema, schema, self._limits, limiter=self._threads)
        except InvalidDefinition as err:
            if limit := err.extra.get("limit"):
                self._metrics.count_limit_hit(limit)
            raise
        self._seconds.observe(trio.current_time() - started)
        return compiled

    async def check(self, schema: Schema) -> None:
        """Compiles a schema that isn't anybody's yet. A checkpoint. Raises InvalidDefinition."""
        async with self._turn:
            await self._compile(schema)
