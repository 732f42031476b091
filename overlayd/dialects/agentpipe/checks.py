"""What a JSON value must look like, in the words of zod, with which AgentPipe describes its bodies.

A check looks at a value and notes issues; it never raises. Issues come in the order in which zod finds them, because the
first one is what an answer names.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import msgspec

from overlayd.model.clock import parse_time_us

Path: TypeAlias = tuple[str | int, ...]
Check: TypeAlias = "Callable[[Any, Path, Issues], None]"
Refine: TypeAlias = Callable[[dict[str, Any]], "tuple[Path, str] | None"]
"""What is wrong with an object whose members are right: where in it, and in words. None when nothing is."""

ISSUES_MAX = 50
"""Issues that one answer names; a body may hold any number of them."""
ABSENT: Any = object()
_WORDS: dict[type, str] = {str: "string", list: "array", dict: "object"}

_DATE = (
    r"(?:(?:\d\d[2468][048]|\d\d[13579][26]|\d\d0[48]|[02468][048]00|[13579][26]00)-02-29"
    r"|\d{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)"
    r"|02-(?:0[1-9]|1\d|2[0-8])))"
)
_TIMESTAMP = re.compile(_DATE + r"T(?:[01]\d|2[0-3]):[0-5]\d(?::[0-5]\d(?:\.\d+)?)?Z", re.ASCII)
"""zod 4's `datetime()`: Z and nothing else, seconds may be missing, days that exist."""


class Issue(msgspec.Struct, frozen=True):
    """One thing that is wrong. As it stands in an answer's `details`."""

    code: str
    path: list[str | int]
    message: str

    @property
    def field(self) -> str:
        """The place as one text: `data.summary.text`."""
        return ".".join(map(str, self.path))


class Issues:
    """What was found so far."""

    __slots__ = ("found",)

    def __init__(self) -> None:
        self.found: list[Issue] = []

    def add(self, path: Path, code: str, message: str) -> None:
        """Notes one, unless there are many already."""
        if len(self.found) < ISSUES_MAX:
            self.found.append(Issue(code, list(path), message))


def find_issues(check: Check, value: Any) -> list[Issue]:
    """Everything that is wrong with a value; nothing when it is right."""
    issues = Issues()
    check(value, (), issues)
    return issues.found


def utf16_units(text: str) -> int:
    """The text's length as JavaScript counts it."""
    return len(text) if text.isascii() else len(text.encode("utf-16-le", "surrogatepass")) // 2


def is_timestamp(text: str) -> bool:
    """Whether zod takes it for a date and time."""
    return _TIMESTAMP.fullmatch(text) is not None


def time_us_of(text: str) -> int:
    """Unix microseconds of a text that `is_timestamp`; finer fractions are cut. The year 0 counts as the year 1."""
    date, _, clock = text[:-1].partition("T")
    if clock.count(":") == 1:
        clock += ":00"
    whole, _, fraction = clock.partition(".")
    date = f"0001{date[4:]}" if date.startswith("0000") else date
    if date.startswith("0001-02-29"):
        date = "0001-02-28"
    return parse_time_us(f"{date}T{whole}.{fraction[:6]:0<6}Z")


def word_of(value: Any) -> str:
    """The kind of a value in zod's words."""
    if value is ABSENT:
        return "undefined"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, (int, float)):
        return "number"
    return _WORDS.get(type(value), "value")


def _mistyped(path: Path, expected: str, value: Any, issues: Issues) -> None:
    issues.add(path, "invalid_type", f"Invalid input: expected {expected}, received {word_of(value)}")


def text(*, least: int = 0, most: int | None = None, pattern: str = "", code: str = "invalid_format") -> Check:
    """A string of so many UTF-16 code units. `code`: of what doesn't fit the pattern."""
    regex = re.compile(pattern, re.ASCII) if pattern else None

    def check(value: Any, path: Path, issues: Issues) -> None:
        if type(value) is not str:
            _mistyped(path, "string", value, issues)
            return
        units = utf16_units(value)
        if units < least:
            issues.add(path, "too_small", f"Too small: expected string to have >={least} characters")
        elif most is not None and units > most:
            issues.add(path, "too_big", f"Too big: expected string to have <={most} characters")
        elif regex is not None and regex.fullmatch(value) is None:
            issues.add(path, code, f"Invalid string: must match pattern /^{pattern}$/")

    return check


def timestamp(code: str = "invalid_format") -> Check:
    """An ISO date and time in UTC."""

    def check(value: Any, path: Path, issues: Issues) -> None:
        if type(value) is not str:
            _mistyped(path, "string", value, issues)
        elif not is_timestamp(value):
            issues.add(path, code, "Invalid ISO datetime")

    return check


def number(*, least: float | None = None, above: float | None = None, most: float | None = None,
           is_whole: bool = False) -> Check:  # fmt: skip
    """A number; `is_whole`: without a fraction."""

    def check(value: Any, path: Path, issues: Issues) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            _mistyped(path, "number", value, issues)
        elif is_whole and value != int(value):
            issues.add(path, "invalid_type", "Invalid input: expected int, received number")
        elif least is not None and value < least:
            issues.add(path, "too_small", f"Too small: expected number to be >={least:g}")
        elif above is not None and value <= above:
            issues.add(path, "too_small", f"Too small: expected number to be >{above:g}")
        elif most is not None and value > most:
            issues.add(path, "too_big", f"Too big: expected number to be <={most:g}")

    return check


def one_of(*choices: str, code: str = "invalid_value") -> Check:
    """One of these texts. `code`: zod 4's, or `invalid_enum_value` as zod 3 calls it."""
    shown = "|".join(f'"{choice}"' for choice in choices)

    def check(value: Any, path: Path, issues: Issues) -> None:
        if value is ABSENT or value not in choices:
            found = "invalid_type" if value is ABSENT and code == "invalid_enum_value" else code
            issues.add(path, found, f"Invalid option: expected one of {shown}")

    return check


def array(item: Check, *, least: int = 0, most: int | None = None) -> Check:
    """An array of so many items."""

    def check(value: Any, path: Path, issues: Issues) -> None:
        if type(value) is not list:
            _mistyped(path, "array", value, issues)
            return
        if len(value) < least:
            issues.add(path, "too_small", f"Too small: expected array to have >={least} items")
        elif most is not None and len(value) > most:
            issues.add(path, "too_big", f"Too big: expected array to have <={most} items")
            return
        for at, one in enumerate(value):
            item(one, (*path, at), issues)
            if len(issues.found) >= ISSUES_MAX:
                return

    return check


def record(value: Any, path: Path, issues: Issues) -> None:
    """Any object."""
    if type(value) is not dict:
        _mistyped(path, "object", value, issues)


def optional(inner: Check) -> Check:
    """May be missing; null is not missing."""

    def check(value: Any, path: Path, issues: Issues) -> None:
        if value is not ABSENT:
            inner(value, path, issues)

    return check


def either(*checks: Check) -> Check:
    """Fits one of them; else one issue, without saying which was meant."""

    def check(value: Any, path: Path, issues: Issues) -> None:
        if all(find_issues(one, value) for one in checks):
            issues.add(path, "invalid_union", "Invalid input")

    return check


def shape(members: Mapping[str, Check], refinements: Sequence[Refine] = ()) -> Check:
    """An object with these members, and any others. Refinements are asked in turn once the members are right."""

    def check(value: Any, path: Path, issues: Issues) -> None:
        if type(value) is not dict:
            _mistyped(path, "object", value, issues)
            return
        before = len(issues.found)
        for name, inner in members.items():
            inner(value.get(name, ABSENT), (*path, name), issues)
        if len(issues.found) > before:
            return
        for refine in refinements:
            wrong = refine(value)
            if wrong is not None:
                issues.add((*path, *wrong[0]), "custom", wrong[1])

    return check
