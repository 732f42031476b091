"""Stream names and patterns, as in NATS: tokens joined by dots, `*` one token, `>` the rest."""

import base64
import re
from typing import NewType

from blake3 import blake3

from overlayd.model.errors import BadParameter

StreamName = NewType("StreamName", str)

NAME_CHARS_MAX = 128
TOKEN_CHARS_MAX = 64
NODE_PREFIX = "overlayd"
"""First token of the node's own streams. Nobody publishes into them and no bare wildcard matches them."""

_NAME = re.compile(r"[a-z0-9_-]{1,64}(?:\.[a-z0-9_-]{1,64})*", re.ASCII)
_PATTERN = re.compile(r"(?:[a-z0-9_-]{1,64}|\*)(?:\.(?:[a-z0-9_-]{1,64}|\*))*(?:\.>)?|>", re.ASCII)
_NAME_HINT = "tokens of a-z, 0-9, _ and - (at most 64 characters) joined by dots, at most 128 characters"


def parse_stream_name(text: str) -> StreamName:
    """The name, checked. Raises BadParameter."""
    if len(text) > NAME_CHARS_MAX or _NAME.fullmatch(text) is None:
        raise BadParameter(f"not a stream name: {text[:200]!r}", subject="stream", hint=_NAME_HINT)
    return StreamName(text)


def is_node_name(name: str) -> bool:
    """Whether the name belongs to the node itself (`overlayd` or `overlayd.*`)."""
    return name == NODE_PREFIX or name.startswith(NODE_PREFIX + ".")


def name_of_foreign_id(foreign_id: str) -> StreamName:
    """A stream name for an id that another system made up.

    Lower-cased and kept when it then fits a single token, else `x-` and 26 base32 characters of its
    BLAKE3. The original belongs in the stream's definition, because the second form can't be undone.
    """
    lowered = foreign_id.lower()
    if re.fullmatch(r"[a-z0-9_-]{1,64}", lowered, re.ASCII):
        return StreamName(lowered)
    digest = blake3(foreign_id.encode("utf-8", "surrogatepass")).digest()
    return StreamName("x-" + base64.b32encode(digest).decode().lower()[:26])


class Pattern:
    """A pattern over stream names or topics: `weather.*`, `plant.>`, or a plain name.

    A pattern whose first token is a wildcard never matches the node's own names.
    """

    __slots__ = ("_regex", "is_exact", "text")

    def __init__(self, text: str) -> None:
        """Raises BadParameter."""
        if len(text) > NAME_CHARS_MAX or _PATTERN.fullmatch(text) is None:
            raise BadParameter(
                f"not a pattern: {text[:200]!r}", subject="stream",
                hint=f"{_NAME_HINT}; * stands for one token, > for the rest and only at the end",
            )  # fmt: skip
        self.text = text
        self.is_exact = "*" not in text and ">" not in text
        body = re.escape(text).replace(r"\*", r"[^.]+").replace(">", r".+")
        guard = "" if text[0] not in "*>" else rf"(?!{NODE_PREFIX}(?:\.|$))"
        self._regex = re.compile(guard + body, re.ASCII)

    def is_match(self, name: str) -> bool:
        """Whether the name falls under the pattern."""
        return name == self.text if self.is_exact else self._regex.fullmatch(name) is not None

    def __repr__(self) -> str:
        return f"Pattern({self.text!r})"
