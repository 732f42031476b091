"""Filters in CEL, judged before they are compiled.

The engine behind them parses recursively, clones whatever a name stands for each time it is mentioned, builds
lists by copying them at every step, compiles a pattern anew at every match, and holds the interpreter's lock
throughout. So an expression is read here first: its nesting and the number of its parts are bounded, `map` and
`filter` aren't taken, and names, functions and patterns must be known ones. What passes is rewritten so that
each path into the packet is one flat name (`data.a.b` becomes `data.p7`), looked up once per packet, and each
`matches` is a function of its own, with the pattern compiled once.
"""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import NoReturn

import msgspec

from overlayd.model.errors import InvalidFilter, Violation
from overlayd.model.limits import Limits
from overlayd.model.wire import Packet
from overlayd.pipeline.patterns import CompiledPattern, PatternRefused, judge_pattern

NESTING_MAX = 24
TOKENS_MAX = 600
"""A chain such as `1 == 1 == 1` is as deep as it is long; 1,000 of them end half a megabyte of stack."""

COMPREHENSIONS_MAX = 4
MENTIONS_MAX = 32
"""Mentions of the packet in one expression; each one copies what it stands for."""

ITEM_MENTIONS_MAX = 16
PLUS_MAX = 16
PLACES_MAX = 400
PATH_STEPS_MAX = 32

COMPREHENSIONS = frozenset(("all", "exists", "exists_one", "existsOne"))
BUILDERS = frozenset(("map", "filter"))
FUNCTIONS = frozenset(
    ("has", "size", "int", "uint", "double", "string", "bytes", "type", "dyn", "timestamp", "duration")
)
METHODS = frozenset(
    ("size", "contains", "startsWith", "endsWith", "matches", "getFullYear", "getMonth", "getDate", "getDayOfMonth",
     "getDayOfWeek", "getDayOfYear", "getHours", "getMinutes", "getSeconds", "getMilliseconds")
)  # fmt: skip
WORDS = frozenset(
    ("true", "false", "null", "int", "uint", "double", "bool", "string", "bytes", "list", "map", "null_type")
)
PACKET_MEMBERS = tuple(name for name in Packet.__struct_fields__ if name != "data_payload")
"""What can be asked of `packet`; its payload is `data`."""

_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n\f]+|//[^\r\n]*)
    |(?P<string>[rR]?(?:"(?:[^"\\\r\n]|\\[^\r\n])*"|'(?:[^'\\\r\n]|\\[^\r\n])*'))
    |(?P<number>0x[0-9a-fA-F]+[uU]?|(?:[0-9]+\.[0-9]+|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[0-9]+(?:[eE][+-]?[0-9]+|[uU])?)
    |(?P<name>[A-Za-z_][A-Za-z0-9_]*)
    |(?P<op>&&|\|\||==|!=|<=|>=|[-<>+*/%!?:.,()\[\]{}])""",
    re.VERBOSE | re.ASCII,
)
_ESCAPE = re.compile(
    r"\\(?:([abfnrtv\\?\"'`])|[xX]([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-3][0-7]{2}))"
)
_ESCAPED = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_CLOSING = {"(": ")", "[": "]", "{": "}"}

Path = tuple[str | int, ...]
"""From `data` or `packet` down: member names, and indexes of lists."""


class JudgedFilter(msgspec.Struct, frozen=True):
    """An expression that may be compiled.

    `item_paths`: those of `paths` that are mentioned for each item of a list; they must be short values.
    `changes`: from character, to character, and which path or pattern stands there.
    """

    text: str
    paths: tuple[Path, ...]
    item_paths: frozenset[int]
    patterns: tuple[CompiledPattern, ...]
    changes: tuple[tuple[int, int, str, int], ...]
    has_comprehension: bool

    def source(self, path_names: Sequence[str], pattern_names: Sequence[str]) -> str:
        """What to compile: paths are members of the variable `data`, patterns are methods, under these names."""
        parts: list[str] = []
        at = 0
        for start, end, kind, number in self.changes:
            name = f"data.{path_names[number]}" if kind == "path" else f"{pattern_names[number]}()"
            parts += (self.text[at:start], name)
            at = end
        return "".join((*parts, self.text[at:]))


class _Token(msgspec.Struct, frozen=True):
    kind: str
    text: str
    start: int
    end: int


class _Open(msgspec.Struct):
    """A bracket that isn't closed. `item`: the variable of the comprehension that it opens. `call`: what it calls,
    with `arguments` of them, or None."""

    bracket: str
    item: str = ""
    mentions: int = 0
    call: str = ""
    arguments: int = 0
    commas: int = 0


def judge_filter(text: str, limits: Limits) -> JudgedFilter:
    """The expression, if the node may take it on. Raises InvalidFilter, which says where and why not."""
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > limits.filter_bytes:
        refuse(f"the filter has {size} bytes; {int(limits.filter_bytes)} are taken", limit="filter_bytes")
    return _Judge(text, _tokens_of(text), limits).run()


def refuse(detail: str, at: int | None = None, *, limit: str = "") -> NoReturn:
    """Raises InvalidFilter. `at`: the character, from 0. `limit`: the setting that it hits, if it is one."""
    where = "" if at is None else f" (character {at + 1})"
    raise InvalidFilter(
        f"{detail}{where}", subject="filter", violations=[Violation("/filter", "filter.expression", detail + where)],
        extra={"limit": limit} if limit else None,
    )  # fmt: skip


def _tokens_of(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            refuse(f"{text[at]!r} isn't understood here", at)
        kind = match.lastgroup
        assert kind is not None
        if kind == "string" and match[0][-2:] in ('""', "''") and text.startswith(match[0][-1], match.end()):
            refuse("three quotes in a row", at)  # CEL would read on to the next three
        at = match.end()
        if kind != "space":
            tokens.append(_Token(kind, match[0], match.start(), at))
        if len(tokens) > TOKENS_MAX:
            refuse(f"the filter has over {TOKENS_MAX} words and signs", at - 1)
    if not tokens:
        refuse("the filter is empty")
    return tokens


class _Judge:
    """Goes through the tokens once, keeping the open brackets in hand."""

    def __init__(self, text: str, tokens: list[_Token], limits: Limits) -> None:
        self.text = text
        self.tokens = tokens
        self.limits = limits
        self.at = 0
        self.open: list[_Open] = []
        self.paths: dict[Path, int] = {}
        self.item_paths: set[int] = set()
        self.patterns: list[CompiledPattern] = []
        self.changes: list[tuple[int, int, str, int]] = []
        self.comprehensions = 0
        self.mentions = 0
        self.pluses = 0
        self.call: tuple[str, int] = ("", 0)

    def run(self) -> JudgedFilter:
        while self.at < len(self.tokens):
            token = self.tokens[self.at]
            if token.kind == "name":
                self.take_name(token)
            elif token.kind == "op":
                self.take_operator(token)
            else:
                if token.kind == "string":
                    _value_of(token)
                self.at += 1
        if self.open:
            refuse(f"{self.open[-1].bracket} isn't closed")
        return JudgedFilter(
            self.text, tuple(self.paths), frozenset(self.item_paths), tuple(self.patterns), tuple(self.changes),
            bool(self.comprehensions),
        )  # fmt: skip

    def peek(self, ahead: int = 1) -> str:
        """The text of a token further on; "" behind the last one."""
        where = self.at + ahead
        return self.tokens[where].text if 0 <= where < len(self.tokens) else ""

    def take_operator(self, token: _Token) -> None:
        if token.text in _CLOSING:
            if len(self.open) >= NESTING_MAX:
                refuse(f"brackets nest over {NESTING_MAX} deep", token.start)
            name, arguments = self.call
            self.call = ("", 0)
            self.open.append(_Open(token.text, call=name, arguments=arguments))
        elif token.text in (")", "]", "}"):
            self.close_bracket(token)
        elif token.text == "," and self.open:
            self.open[-1].commas += 1
        elif token.text == ".":
            before = self.tokens[self.at - 1] if self.at else None
            if before is None or (before.kind == "op" and before.text not in (")", "]", "}")):
                refuse("a dot that belongs to nothing", token.start)
        elif token.text == "+":
            self.pluses += 1
            if self.pluses > PLUS_MAX:
                refuse(f"over {PLUS_MAX} additions", token.start)
        self.at += 1

    def close_bracket(self, token: _Token) -> None:
        opened = self.open.pop() if self.open else None
        if opened is None or _CLOSING[opened.bracket] != token.text:
            refuse(f"{token.text} closes nothing", token.start)
        given = 0 if self.peek(-1) == opened.bracket else opened.commas + 1
        if opened.call and given != opened.arguments:
            refuse(f"{opened.call} takes {opened.arguments or 'no'} argument, not {given}", token.start)

    def take_name(self, token: _Token) -> None:
        is_call = self.peek() == "("
        if self.peek(-1) == ".":
            if is_call:
                self.take_method(token)
            else:
                self.at += 1  # a member of an item or of a result
        elif is_call:
            self.take_function(token)
        elif token.text in ("data", "packet"):
            self.take_path(token)
        else:
            self.take_word(token)

    def take_function(self, token: _Token) -> None:
        if token.text not in FUNCTIONS:
            if token.text in METHODS or token.text in COMPREHENSIONS:
                refuse(f"{token.text} is called on a value: x.{token.text}(…)", token.start)
            _refuse_name("function", token, FUNCTIONS)
        if token.text == "has" and self.peek(2) in ("data", "packet") and self.peek(3) == ")":
            refuse("has() asks for a member: has(data.name)", token.start)
        self.call = (token.text, 1)
        self.at += 1

    def take_method(self, token: _Token) -> None:
        if token.text in COMPREHENSIONS:
            self.open_comprehension(token)
        elif token.text == "matches":
            self.take_pattern(token)
        elif token.text in BUILDERS:
            refuse(
                f"{token.text} isn't taken, for it copies the list at every step; use exists, exists_one or all",
                token.start,
            )
        elif token.text not in METHODS:
            _refuse_name("method", token, METHODS | COMPREHENSIONS)
        else:
            self.call = (token.text, int(token.text in ("contains", "startsWith", "endsWith")))
            self.at += 1

    def open_comprehension(self, token: _Token) -> None:
        if self.items():
            refuse("a comprehension inside a comprehension", token.start)
        self.comprehensions += 1
        if self.comprehensions > COMPREHENSIONS_MAX:
            refuse(f"over {COMPREHENSIONS_MAX} comprehensions", token.start)
        item = self.tokens[self.at + 2] if self.at + 3 < len(self.tokens) else None
        if item is None or item.kind != "name" or self.peek(3) != ",":
            refuse(f"{token.text} needs a name for the item: x.{token.text}(item, condition)", token.start)
        if item.text in ("data", "packet") or item.text in WORDS:
            refuse(f"{item.text} can't name an item", item.start)
        if len(self.open) >= NESTING_MAX:
            refuse(f"brackets nest over {NESTING_MAX} deep", token.start)
        self.open.append(_Open("(", item.text, call=token.text, arguments=1))
        self.at += 4

    def items(self) -> list[_Open]:
        """The comprehensions that are open here: none or one."""
        return [one for one in self.open if one.item]

    def take_pattern(self, token: _Token) -> None:
        literal = self.tokens[self.at + 2] if self.at + 3 < len(self.tokens) else None
        if literal is None or literal.kind != "string" or self.peek(3) != ")":
            refuse('matches takes a pattern written out: x.matches("^a+$")', token.start)
        pattern = _value_of(literal)
        try:
            cost = judge_pattern(
                pattern, chars_max=self.limits.filter_pattern_chars, repeats_max=self.limits.filter_pattern_repeats
            )
            if sum(one.cost.places for one in self.patterns) + cost.places > PLACES_MAX:
                refuse(f"the patterns together have over {PLACES_MAX} characters and classes", literal.start)
            compiled = CompiledPattern(pattern, cost)
        except PatternRefused as err:
            refuse(str(err), literal.start, limit=err.limit and f"filter_pattern_{err.limit}")
        self.changes.append((token.start, self.tokens[self.at + 3].end, "pattern", len(self.patterns)))
        self.patterns.append(compiled)
        self.at += 4

    def take_path(self, token: _Token) -> None:
        self.mentions += 1
        if self.mentions > MENTIONS_MAX:
            refuse(f"data and packet are mentioned over {MENTIONS_MAX} times", token.start)
        is_after_in = self.peek(-1) == "in"
        end = token.end
        path: list[str | int] = [token.text]
        self.at += 1
        while (step := self.next_step()) is not None:
            path.append(step[0])
            self.at += step[1]
            end = self.tokens[self.at - 1].end
        if len(path) > PATH_STEPS_MAX:
            refuse(f"a path over {PATH_STEPS_MAX} steps", token.start)
        if token.text == "packet" and len(path) > 1 and path[1] not in PACKET_MEMBERS:
            near = get_close_matches(str(path[1]), PACKET_MEMBERS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(PACKET_MEMBERS)}; the payload is data"
            refuse(f"packet has no member {str(path[1])!r}; {hint}", token.start)
        number = self.paths.setdefault(tuple(path), len(self.paths))
        if self.items():
            if is_after_in:
                refuse("in a comprehension, `in` can't search the packet; name the values", token.start)
            self.item_paths.add(number)
        self.changes.append((token.start, end, "path", number))

    def next_step(self) -> tuple[str | int, int] | None:
        """The next step of a path and how many tokens it takes."""
        here, name, after = self.peek(0), self.peek(1), self.peek(2)
        if here == "." and self.at + 1 < len(self.tokens) and self.tokens[self.at + 1].kind == "name" and after != "(":
            return name, 2
        if here == "[" and after == "]":
            token = self.tokens[self.at + 1]
            if token.kind == "string":
                return _value_of(token), 3
            if token.kind == "number" and token.text.isdigit():
                return int(token.text), 3
        return None

    def take_word(self, token: _Token) -> None:
        for one in self.items():
            if one.item == token.text:
                one.mentions += 1
                if one.mentions > ITEM_MENTIONS_MAX:
                    refuse(f"{one.item} is mentioned over {ITEM_MENTIONS_MAX} times", token.start)
                self.at += 1
                return
        if token.text not in WORDS and token.text != "in":
            _refuse_name("name", token, WORDS | {"data", "packet"})
        self.at += 1


def _refuse_name(what: str, token: _Token, known: frozenset[str]) -> NoReturn:
    near = get_close_matches(token.text, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}"
    refuse(f"there is no {what} {token.text[:60]!r}; {hint}", token.start)


def _value_of(token: _Token) -> str:
    """The text that a string literal stands for."""
    if token.text[0] in "rR":
        if "\\" + token.text[1] in token.text[2:-1]:
            refuse("a raw string ends at its first quote, whatever stands before it", token.start)
        return token.text[2:-1]
    inner = token.text[1:-1]
    if "\\" not in inner:
        return inner
    rest = _ESCAPE.sub("", inner)
    if "\\" in rest:
        refuse("an escape that CEL doesn't know; in patterns write \\\\ for one backslash", token.start)
    value = _ESCAPE.sub(_unescaped, inner)
    if any("\ud800" <= char <= "\udfff" for char in value):
        refuse("an escape for half of a surrogate pair", token.start)
    return value


def _unescaped(match: re.Match[str]) -> str:
    if match[1]:
        return _ESCAPED.get(match[1], match[1])
    if match[5]:
        return chr(int(match[5], 8))
    code = int(match[2] or match[3] or match[4], 16)
    return chr(code) if code <= 0x10FFFF else "\ud800"
