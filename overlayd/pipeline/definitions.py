"""Definitions of streams, judged before they count, and the key that they find in a packet's data."""

from typing import Any

from overlayd.model.definition import ConfirmRule, Definition
from overlayd.model.errors import InvalidDefinition, Violation
from overlayd.model.limits import Limits
from overlayd.pipeline.members import TOPIC_CHARS, is_topic
from overlayd.pipeline.privacy_stage import find_privacy_flaws
from overlayd.pipeline.schema import SchemaCache

TAGS_MAX = 64
DEPTHS_MAX = 10
"""Each is an entry of every packet or batch."""
KEY_STEPS_MAX = 16
_KEY_ROOT = "data"


class KeyPath:
    """Where a definition says that a packet's key stands: `data.sensorId`, member names joined by dots."""

    __slots__ = ("steps", "text")

    def __init__(self, text: str) -> None:
        """Raises ValueError, in words."""
        root, *steps = text.split(".")
        if root != _KEY_ROOT or not steps or not all(steps):
            raise ValueError(f'{text[:100]!r} isn\'t a path into the data such as "data.sensorId"')
        if len(steps) > KEY_STEPS_MAX:
            raise ValueError(f"the path has {len(steps)} steps; {KEY_STEPS_MAX} are taken")
        self.text = text
        self.steps = tuple(steps)

    @property
    def pointer(self) -> str:
        """Where the key stands in a packet object."""
        return "/".join(("", _KEY_ROOT, *(step.replace("~", "~0").replace("/", "~1") for step in self.steps)))

    def find(self, value: Any) -> str:
        """The key in decoded data: a string that isn't empty, or an integer's digits; "" where there is neither."""
        for step in self.steps:
            if type(value) is not dict or step not in value:
                return ""
            value = value[step]
        if type(value) is str:
            return value
        return str(value) if type(value) is int else ""


async def check_definition(definition: Definition, schemas: SchemaCache, limits: Limits) -> None:
    """Passes a definition that the node can carry out. Checkpoint; compiles the schema to see that it can.

    Raises InvalidDefinition with pointers into the definition.
    """
    found = list(_find_flaws(definition, limits))
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise InvalidDefinition(
            f"{found[0].pointer}: {found[0].detail}{more}", subject=found[0].pointer, violations=found
        )
    await schemas.check(True if definition.schema is None else definition.schema)


def _find_flaws(definition: Definition, limits: Limits) -> list[Violation]:
    found: list[Violation] = []
    if definition.key:
        try:
            KeyPath(definition.key)
        except ValueError as err:
            found.append(Violation("/key", "definition.key", str(err)))
    if len(definition.topics) > limits.topics_max:
        detail = f"names {len(definition.topics)} topics; {limits.topics_max} are taken"
        found.append(Violation("/topics", "definition.topics", detail))
    for at, topic in enumerate(definition.topics):
        if not is_topic(topic):
            detail = f"must be tokens joined by dots, without spaces, * or >, of at most {TOPIC_CHARS} characters"
            found.append(Violation(f"/topics/{at}", "definition.topics", detail))
    if len(definition.tags) > TAGS_MAX:
        found.append(Violation("/tags", "definition.tags", f"has {len(definition.tags)} tags; {TAGS_MAX} are taken"))
    for at, tag in enumerate(definition.tags):
        if not tag.strip():
            found.append(Violation(f"/tags/{at}", "definition.tags", "is empty"))
    found += find_privacy_flaws(definition)
    return [*found, *_find_depth_flaws(definition.confirm), *_find_promises(definition)]


def _find_depth_flaws(rule: ConfirmRule) -> list[Violation]:
    if len(rule.depths) > DEPTHS_MAX:
        detail = f"names {len(rule.depths)} depths; {DEPTHS_MAX} are taken"
        return [Violation("/confirm/depths", "definition.depths", detail)]
    if rule.commit != "none" and not rule.depths:
        detail = "names no depth, so nothing would ever be confirmed"
        return [Violation("/confirm/depths", "definition.depths", detail)]
    return []


def _find_promises(definition: Definition) -> list[Violation]:
    """What this node can't do yet is refused, so that nobody waits for it."""
    found = []
    if definition.price.satoshis_per_packet:
        detail = "this node doesn't charge; only 0 is taken"
        found.append(Violation("/price/satoshis_per_packet", "definition.unsupported", detail))
    return found
