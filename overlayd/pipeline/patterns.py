"""Regular expressions of strangers, judged before they are compiled.

The engine behind them runs in linear time, but its constant is the pattern's size after counted repetitions
are written out, and it holds the interpreter's lock while it works. So length and repetition are bounded here,
and how many places a pattern has is told, for whoever must foresee what matching costs. A pattern with
lookaround or back references is matched by backtracking, which gives up after a bounded number of steps.
"""

import re

import jsonschema_rs
import msgspec

COMPILED_BYTES = 1 << 20
BACKTRACKS = 5_000
"""Steps after which a backtracking match is given up; it then counts as no match."""
GROUPS_DEEP = 50

OPTIONS = jsonschema_rs.FancyRegexOptions(
    backtrack_limit=BACKTRACKS, size_limit=COMPILED_BYTES, dfa_size_limit=COMPILED_BYTES
)
LINEAR_OPTIONS = jsonschema_rs.RegexOptions(size_limit=COMPILED_BYTES, dfa_size_limit=COMPILED_BYTES)

_COUNT = re.compile(r"\{(\d{1,9})(?:,(\d{0,9}))?\}", re.ASCII)
_GROUP_HEAD = re.compile(r"\?(?:P?<[A-Za-z_]\w*>|:|=|!|<=|<!|>|([A-Za-z]*(?:-[A-Za-z]+)?)([:)]))", re.ASCII)
_CLASS_PLACES = 20  # \p{…}: Unicode classes compile into byte automata of some size


class PatternRefused(ValueError):
    """Why a pattern isn't taken. `limit`: "chars" or "repeats" where it hits one of these."""

    def __init__(self, detail: str, limit: str = "") -> None:
        super().__init__(detail)
        self.limit = limit


class PatternCost(msgspec.Struct, frozen=True, gc=False):
    """What a pattern weighs. `places`: characters and classes once counted repetitions are written out.

    `is_backtracking`: it needs lookaround or back references.
    """

    places: int
    is_backtracking: bool


class _Frame:
    """One open group: what its alternatives so far hold, and the atom that a quantifier would apply to."""

    __slots__ = ("atom_places", "atom_repeats", "places", "repeats")

    def __init__(self) -> None:
        self.places, self.repeats = 0, 1
        self.atom_places, self.atom_repeats = 0, 1

    def close_atom(self) -> None:
        self.places += self.atom_places
        self.repeats = max(self.repeats, self.atom_repeats)
        self.atom_places, self.atom_repeats = 0, 1

    def open_atom(self, places: int, repeats: int = 1) -> None:
        self.close_atom()
        self.atom_places, self.atom_repeats = places, repeats


class _Judge:
    """Walks a pattern once. Where dialects read it differently, it takes the reading that costs more."""

    def __init__(self, text: str, repeats_max: int) -> None:
        self.text = text
        self.at = 0
        self.repeats_max = repeats_max
        self.frames = [_Frame()]
        self.is_backtracking = False

    def run(self) -> PatternCost:
        while self.at < len(self.text):
            self.step(self.text[self.at])
        if len(self.frames) > 1:
            raise PatternRefused("a group isn't closed")
        frame = self.frames[0]
        frame.close_atom()
        return PatternCost(frame.places, self.is_backtracking)

    def step(self, char: str) -> None:
        frame = self.frames[-1]
        if char == "\\":
            self.take_escape()
        elif char == "[":
            self.take_class()
        elif char == "(":
            self.open_group()
        elif char == ")":
            self.close_group()
        elif char == "|":
            frame.close_atom()
            self.at += 1
        elif char in "*+?{":
            self.take_quantifier(char)
        else:
            frame.open_atom(1)
            self.at += 1

    def take_escape(self) -> None:
        after = self.text[self.at + 1 : self.at + 2]
        if not after:
            raise PatternRefused("ends with a backslash")
        places = 1
        self.at += 2
        if after in "123456789k":
            self.is_backtracking = True
            places = _CLASS_PLACES
        if after in "pP":
            places = _CLASS_PLACES
        if after in "pPuxk" and self.text.startswith("{", self.at):
            self.at = self.text.find("}", self.at) + 1
            if not self.at:
                raise PatternRefused(f"\\{after}{{ isn't closed")
        self.frames[-1].open_atom(places)

    def take_class(self) -> None:
        start = self.at
        self.at += 2 if self.text.startswith("[^", self.at) else 1
        if self.text.startswith("]", self.at):
            raise PatternRefused("dialects disagree on ] right after [: escape it")
        places = 1
        while self.at < len(self.text) and self.text[self.at] != "]":
            if self.text[self.at] == "\\":
                places += _CLASS_PLACES * (self.text[self.at + 1 : self.at + 2] in ("p", "P"))
                self.at += 1
            self.at += 1
        if self.at >= len(self.text):
            raise PatternRefused(f"the class at character {start + 1} isn't closed")
        self.at += 1
        self.frames[-1].open_atom(places)

    def open_group(self) -> None:
        if len(self.frames) > GROUPS_DEEP:
            raise PatternRefused(f"groups nest over {GROUPS_DEEP} deep")
        self.at += 1
        if self.text.startswith("?", self.at):
            head = _GROUP_HEAD.match(self.text, self.at)
            if head is None or "x" in (head[1] or ""):
                raise PatternRefused(f"the group at character {self.at} is of a kind that isn't taken")
            self.at = head.end()
            if head[0] in ("?=", "?!", "?<=", "?<!", "?>"):
                self.is_backtracking = True
            if head[2] == ")":
                return  # flags for the rest of the group around it
        self.frames.append(_Frame())

    def close_group(self) -> None:
        if len(self.frames) == 1:
            raise PatternRefused("a ) closes nothing")
        self.at += 1
        inner = self.frames.pop()
        inner.close_atom()
        self.frames[-1].open_atom(inner.places + 1, inner.repeats)

    def take_quantifier(self, char: str) -> None:
        frame = self.frames[-1]
        count = _COUNT.match(self.text, self.at) if char == "{" else None
        if char == "{" and count is None:
            frame.open_atom(1)  # a brace that counts nothing is a character
            self.at += 1
            return
        self.at = count.end() if count else self.at + 1
        if self.text.startswith("?", self.at):
            self.at += 1  # lazy
        if count is None:
            return
        times = max(int(count[1]), int(count[2] or 0), 1)
        frame.atom_places *= times
        frame.atom_repeats *= times
        if frame.atom_repeats > self.repeats_max:
            raise PatternRefused(
                f"counted repetitions multiply to {frame.atom_repeats}; {self.repeats_max} are taken", "repeats"
            )


def judge_pattern(text: str, *, chars_max: int, repeats_max: int) -> PatternCost:
    """What a pattern costs. Raises PatternRefused, in words, for one that may not be compiled.

    It says nothing about whether the pattern is well formed in every other way: the engine does.
    """
    if len(text) > chars_max:
        raise PatternRefused(f"the pattern has {len(text)} characters; {chars_max} are taken", "chars")
    return _Judge(text, repeats_max).run()


class CompiledPattern:
    """A judged pattern without lookaround, compiled once, matched in linear time; `\\d` and `\\w` mean ASCII."""

    __slots__ = ("_is_valid", "cost", "text")

    def __init__(self, text: str, cost: PatternCost) -> None:
        """Raises PatternRefused."""
        if cost.is_backtracking:
            raise PatternRefused("lookaround and back references aren't taken here")
        try:
            validator = jsonschema_rs.Draft202012Validator(
                {"type": "string", "pattern": text}, pattern_options=LINEAR_OPTIONS
            )
        except ValueError as err:  # jsonschema_rs.ValidationError is one
            raise PatternRefused("not a regular expression that can be used, or too large once compiled") from err
        self.text = text
        self.cost = cost
        self._is_valid = validator.is_valid

    def is_match(self, text: str) -> bool:
        """Whether the pattern is found anywhere in the text."""
        return self._is_valid(text)
