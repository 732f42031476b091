"""Where a packet says whom it is about, and what is taken out of it: JSON pointers into packet objects."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

STEPS_MAX = 16
EVERY = "*"
"""A step that stands for every member of an object, or every element of an array."""

RedactAction = Literal["drop", "mask", "pseudonymise"]


class RedactRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What happens to one place of each packet before it is stored."""

    path: Annotated[
        str,
        Meta(max_length=512, description="JSON pointer into the packet, such as /data/user/email; * is every element"),
    ]
    action: Annotated[
        RedactAction,
        Meta(
            description="drop takes it out, mask puts *** in its place, pseudonymise a keyed hash that is the same each time"
        ),
    ]


class PacketPointer:
    """A JSON pointer (RFC 6901) into a packet object. `root` is the member, `steps` lead on inside of it."""

    __slots__ = ("root", "steps", "text")

    def __init__(self, text: str, roots: tuple[str, ...]) -> None:
        """Raises ValueError, in words."""
        if not text.startswith("/"):
            raise ValueError(f"{text[:100]!r} isn't a JSON pointer: it begins with /")
        root, *steps = (_unescape(part) for part in text[1:].split("/"))
        if root not in roots:
            raise ValueError(f"the pointer begins with {root[:100]!r}; it may begin with {', '.join(roots)}")
        if len(steps) > STEPS_MAX:
            raise ValueError(f"the pointer has {len(steps)} steps; {STEPS_MAX} are taken")
        self.text = text
        self.root = root
        self.steps = tuple(steps)

    def find(self, value: Any) -> str:
        """The text at the steps inside the root's value: a string, or an integer's digits; "" where there is neither."""
        for step in self.steps:
            if type(value) is dict and step in value:
                value = value[step]
            elif type(value) is list and step.isascii() and step.isdigit() and int(step) < len(value):
                value = value[int(step)]
            else:
                return ""
        if type(value) is str:
            return value
        return str(value) if type(value) is int else ""


SUBJECT_ROOTS = ("data", "metadata", "key", "source")
TEXT_ROOTS = ("key", "source")
"""Members that are texts: nothing stands inside of them."""
REDACT_ROOTS = ("data", "metadata", *TEXT_ROOTS)


def subject_pointer(text: str) -> PacketPointer:
    """Where a definition says that a packet's subject stands. Raises ValueError, in words."""
    pointer = PacketPointer(text, SUBJECT_ROOTS)
    if pointer.root in TEXT_ROOTS and pointer.steps:
        raise ValueError(f"{pointer.root} is a text: nothing stands inside of it")
    if pointer.root not in TEXT_ROOTS and not pointer.steps:
        raise ValueError(f"the pointer ends at {pointer.root}; it must lead to a text or an integer inside of it")
    if EVERY in pointer.steps:
        raise ValueError("a packet has one subject: * can't stand in the pointer")
    return pointer


def redact_pointer(text: str) -> PacketPointer:
    """What a rule takes out. Raises ValueError, in words."""
    pointer = PacketPointer(text, REDACT_ROOTS)
    if pointer.root in TEXT_ROOTS and pointer.steps:
        raise ValueError(f"{pointer.root} is a text: nothing stands inside of it")
    if pointer.root not in TEXT_ROOTS and not pointer.steps:
        raise ValueError(f"the pointer names all of {pointer.root}; it must lead inside of it")
    return pointer


def _unescape(part: str) -> str:
    return part.replace("~1", "/").replace("~0", "~")
