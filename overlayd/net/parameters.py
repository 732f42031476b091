"""Query parameters: each at most once, none that nobody reads, values checked."""

from collections.abc import Collection
from difflib import get_close_matches
from urllib.parse import parse_qsl

from quart import Request

from overlayd.model.errors import BadParameter

_WORDS = {"true": True, "1": True, "false": False, "0": False}


class Parameters:
    """A request's query. A parameter that isn't known is refused: a typing error would change what is done."""

    def __init__(self, query: Request | str, known: Collection[str]) -> None:
        """`query`: a request, or its query as it was sent. Raises BadParameter."""
        self._values: dict[str, str] = {}
        if not query:
            return
        text = query if isinstance(query, str) else query.query_string.decode("ascii", "replace")
        for name, value in _parse(text):
            if name not in known:
                near = get_close_matches(name, known, 1)
                raise BadParameter(
                    f"there is no parameter {name[:80]!r} here", subject=name[:80],
                    hint=f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(known)) or 'none'}",
                )  # fmt: skip
            if name in self._values:
                raise BadParameter(f"{name} is given twice", subject=name)
            self._values[name] = value

    def text(self, name: str, default: str = "") -> str:
        return self._values.get(name, default)

    def has(self, name: str) -> bool:
        """Whether it was given, even if empty."""
        return name in self._values

    def flag(self, name: str) -> bool | None:
        """None when it isn't given. Raises BadParameter."""
        if name not in self._values:
            return None
        word = self._values[name].lower()
        if word not in _WORDS:
            raise BadParameter(f"{name} must be true or false, not {word[:40]!r}", subject=name)
        return _WORDS[word]

    def number(self, name: str, *, minimum: int = 0, maximum: int = (1 << 63) - 1) -> int | None:
        """None when it isn't given. Raises BadParameter."""
        if name not in self._values:
            return None
        text = self._values[name]
        if not text.isascii() or not text.isdigit() or len(text) > 19 or not minimum <= int(text) <= maximum:
            raise BadParameter(
                f"{name} must be a whole number from {minimum} to {maximum}, not {text[:40]!r}", subject=name
            )
        return int(text)

    def choice(self, name: str, choices: Collection[str]) -> str:
        """ "" when it isn't given. Raises BadParameter."""
        if name not in self._values:
            return ""
        value = self._values[name]
        if value not in choices:
            raise BadParameter(f"{name} must be one of {', '.join(choices)}, not {value[:40]!r}", subject=name)
        return value


def _parse(text: str) -> list[tuple[str, str]]:
    """Raises BadParameter for percent codes that aren't UTF-8: replacing them would make different ids the same."""
    try:
        return parse_qsl(text, keep_blank_values=True, errors="strict")
    except UnicodeDecodeError as err:
        raise BadParameter("the URL's query isn't percent-encoded UTF-8", subject="query") from err
