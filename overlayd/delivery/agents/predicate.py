"""Triggers written as a predicate, put into CEL. Pure.

`{"and": [p, …]}` · `{"or": [p, …]}` · `{"not": p}` · `{"gt": [path, value]}`, and the same with gte, lt, lte, eq and
includes. A path is dotted and leads into the payload; a step of digits is the index of a list. A comparison with a
member that is missing, or of another kind than the value, doesn't hold, and so its `not` does. CEL on its own would
give an error there, which no `not` turns around; so each comparison asks for the member and its kind first.
"""

import math
import re
from collections.abc import Callable
from typing import Any

ORDER = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
OPERATORS = ("and", "or", "not", *ORDER, "eq", "includes")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_WORDS = frozenset(("true", "false", "null", "in"))
_SPECIAL = frozenset("\\.+*?()|[]{}^$")
_BLANKS = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
DEPTH_MAX = 8
"""Nesting of a predicate."""


class PredicateError(ValueError):
    """What is wrong, and where: a JSON pointer into the predicate."""

    def __init__(self, pointer: str, detail: str) -> None:
        super().__init__(detail)
        self.pointer = pointer
        self.detail = detail


def predicate_to_cel(predicate: Any) -> str:
    """The expression that holds for the same payloads; "true" for an empty predicate. Raises PredicateError."""
    return _translate(predicate, "", DEPTH_MAX)


def _translate(predicate: Any, at: str, depth_left: int) -> str:
    if not isinstance(predicate, dict):
        raise PredicateError(at, "a predicate is an object with one operator")
    if not predicate:
        return "true"
    if depth_left <= 0:
        raise PredicateError(at, f"predicates nest at most {DEPTH_MAX} deep")
    if len(predicate) > 1:
        raise PredicateError(at, "a predicate has one operator; put several into and or or")
    ((operator, operand),) = predicate.items()
    at = f"{at}/{operator}"
    if operator in ("and", "or"):
        return _join(operator, operand, at, depth_left)
    if operator == "not":
        return f"!({_translate(operand, at, depth_left - 1)})"
    if operator not in OPERATORS:
        raise PredicateError(at, f"there is no operator {operator[:40]!r}; known are {', '.join(OPERATORS)}")
    if not isinstance(operand, list) or len(operand) != 2 or not isinstance(operand[0], str):
        raise PredicateError(at, f'{operator} takes a path and a value: {{"{operator}": ["a.b", 5]}}')
    path, value = _path_of(operand[0], f"{at}/0"), operand[1]
    return _COMPARISONS[operator](operator, path, value, f"{at}/1")


def _join(operator: str, operand: Any, at: str, depth_left: int) -> str:
    if not isinstance(operand, list):
        raise PredicateError(at, f"{operator} takes a list of predicates")
    if not operand:  # nothing that fails, and nothing that holds
        return "true" if operator == "and" else "false"
    parts = [_translate(one, f"{at}/{number}", depth_left - 1) for number, one in enumerate(operand)]
    return "(" + (" && " if operator == "and" else " || ").join(parts) + ")"


def _order(operator: str, path: str, value: Any, at: str) -> str:
    if isinstance(value, str):
        return f"(has({path}) && type({path}) == string && {path} {ORDER[operator]} {_literal(value)})"
    return f"(has({path}) && type({path}) in [int, uint, double] && {path} {ORDER[operator]} {_number(value, at)})"


def _equal(operator: str, path: str, value: Any, at: str) -> str:
    if value is None:
        literal = "null"
    elif isinstance(value, bool):
        literal = "true" if value else "false"
    elif isinstance(value, str):
        literal = _literal(value)
    else:
        literal = _number(value, at)
    return f"(has({path}) && {path} == {literal})"


def _includes(operator: str, path: str, value: Any, at: str) -> str:
    """A list has an item that is the value, a string has the text in it; upper and lower case are the same."""
    if not isinstance(value, str):
        literal = "null" if value is None else str(value).lower() if isinstance(value, bool) else _number(value, at)
        return f"(has({path}) && type({path}) == list && {path}.exists(i, i == {literal}))"
    pattern = _pattern(value)
    whole = _literal(f"(?i)^(?:{pattern})$")
    part = _literal(f"(?i){pattern}")
    return (
        f"(has({path}) && (type({path}) == list ? {path}.exists(i, type(i) == string && i.matches({whole}))"
        f" : type({path}) == string && {path}.matches({part})))"
    )


_COMPARISONS: dict[str, Callable[[str, str, Any, str], str]] = {
    **dict.fromkeys(ORDER, _order), "eq": _equal, "includes": _includes
}  # fmt: skip


def _path_of(text: str, at: str) -> str:
    steps = text.split(".")
    if not all(steps):
        raise PredicateError(at, "a path is member names joined by dots")
    out = "data"
    for step in steps:
        if step.isascii() and step.isdigit():
            out += f"[{int(step)}]"
        elif _NAME.fullmatch(step) and step not in _WORDS:
            out += f".{step}"
        else:
            out += f"[{_literal(step)}]"
    return out


def _number(value: Any, at: str) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise PredicateError(at, "the value is a string or a number")
    if isinstance(value, int) and -(1 << 63) < value < 1 << 63:
        return str(value)
    if not math.isfinite(value):
        raise PredicateError(at, "the number is out of range")
    return f"{float(value):.17g}" if "." in f"{float(value):.17g}" else f"{float(value):.1f}"


def _literal(text: str) -> str:
    """A CEL string; everything but plain ASCII is escaped."""
    out = []
    for char in text:
        if char in ('"', "\\"):
            out.append("\\" + char)
        elif " " <= char <= "~":
            out.append(char)
        else:
            out.append(f"\\U{ord(char):08x}")
    return '"' + "".join(out) + '"'


def _pattern(text: str) -> str:
    return "".join(f"\\{char}" if char in _SPECIAL else _BLANKS.get(char, char) for char in text)
