"""Takes out of a packet what its stream doesn't want to keep, before anything of it is stored.

The text is cut and put together again, so that everything that no rule names stays byte for byte as it was sent.
"""

from collections.abc import Callable, Iterable

import msgspec
from msgspec import Raw

from overlayd.model.privacy import EVERY, RedactAction, RedactRule, redact_pointer

MASKED = "***"
MASK = b'"***"'
Pseudonym = Callable[[str], str]
"""A keyed hash of a text, the same each time."""

_ORDER: dict[RedactAction, int] = {"pseudonymise": 0, "mask": 1, "drop": 2}
_members = msgspec.json.Decoder(dict[str, Raw]).decode
_elements = msgspec.json.Decoder(list[Raw]).decode
_value = msgspec.json.Decoder().decode
_text = msgspec.json.Encoder().encode


class _Node:
    """What happens at one place: an action, or what lies inside of it."""

    __slots__ = ("action", "inside")

    def __init__(self) -> None:
        self.action: RedactAction | None = None
        self.inside: dict[str, _Node] = {}

    def at(self, step: str) -> "list[_Node]":
        """The nodes that speak about a member or an element."""
        inside = self.inside
        return [node for node in (inside.get(step), inside.get(EVERY)) if node is not None]


class Redaction:
    """The rules of one definition version."""

    def __init__(self, rules: Iterable[RedactRule]) -> None:
        """Raises ValueError, in words, for a path that can't be."""
        self._roots: dict[str, _Node] = {}
        for rule in rules:
            pointer = redact_pointer(rule.path)
            node = self._roots.setdefault(pointer.root, _Node())
            for step in pointer.steps:
                node = node.inside.setdefault(step, _Node())
            if node.action is None or _ORDER[rule.action] > _ORDER[node.action]:
                node.action = rule.action

    def concerns(self, root: str) -> bool:
        """Whether a rule is about the member of the packet, or about something inside of it."""
        return root in self._roots

    def apply(self, root: str, text: bytes, pseudonym: Pseudonym) -> bytes:
        """The JSON text of the member, without what the rules take out; the same object where they take out nothing."""
        node = self._roots.get(root)
        if node is None or not text:
            return text
        left = _rewrite(text, [node], pseudonym)
        assert left is not None, "the root itself has no rule"
        return left

    def apply_text(self, root: str, text: str, pseudonym: Pseudonym) -> str:
        """What is left of a member that is a text, "" for nothing."""
        node = self._roots.get(root)
        if node is None or node.action is None or not text:
            return text
        if node.action == "drop":
            return ""
        return MASKED if node.action == "mask" else pseudonym(text)


def _rewrite(text: bytes, nodes: list[_Node], pseudonym: Pseudonym) -> bytes | None:
    """What is left of a value; None for nothing. The same object where nothing changes."""
    action = max((node.action for node in nodes if node.action is not None), key=_ORDER.__getitem__, default=None)
    if action is not None:
        return _act(text, action, pseudonym)
    first = text[:1]
    if first == b"{":
        return _rewrite_object(text, nodes, pseudonym)
    return _rewrite_array(text, nodes, pseudonym) if first == b"[" else text


def _rewrite_object(text: bytes, nodes: list[_Node], pseudonym: Pseudonym) -> bytes:
    members = _members(text)
    is_changed = False
    for name, raw in list(members.items()):
        inside = [found for node in nodes for found in node.at(name)]
        if not inside:
            continue
        value = bytes(raw)
        left = _rewrite(value, inside, pseudonym)
        if left is value:
            continue
        is_changed = True
        if left is None:
            del members[name]
        else:
            members[name] = Raw(left)
    return _text(members) if is_changed else text


def _rewrite_array(text: bytes, nodes: list[_Node], pseudonym: Pseudonym) -> bytes:
    left: list[Raw] = []
    is_changed = False
    for at, raw in enumerate(_elements(text)):
        inside = [found for node in nodes for found in node.at(str(at))]
        value = bytes(raw)
        rest = _rewrite(value, inside, pseudonym) if inside else value
        is_changed = is_changed or rest is not value
        if rest is not None:
            left.append(Raw(rest))
    return _text(left) if is_changed else text


def _act(text: bytes, action: RedactAction, pseudonym: Pseudonym) -> bytes | None:
    if action == "drop":
        return None
    if action == "mask":
        return MASK
    if text == b"null":  # nobody to hide
        return text
    value = _value(text) if text[:1] == b'"' else text.decode()
    return _text(pseudonym(value))
