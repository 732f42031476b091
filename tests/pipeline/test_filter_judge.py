"""What a filter may be: judged before the engine sees it, and never able to bring it down."""

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlayd.model.errors import InvalidFilter
from overlayd.model.limits import Limits
from overlayd.pipeline.filter_judge import FUNCTIONS, METHODS, NESTING_MAX, judge_filter

LIMITS = Limits()


def source_of(text: str) -> str:
    """What would be compiled, with paths and patterns numbered from 0."""
    judged = judge_filter(text, LIMITS)
    return judged.source(
        [f"p{at}" for at in range(len(judged.paths))], [f"rx{at}" for at in range(len(judged.patterns))]
    )


@pytest.mark.parametrize(
    ("text", "source", "paths"),
    [
        ("data.t > 21", "data.p0 > 21", [("data", "t")]),
        ("data > 21", "data.p0 > 21", [("data",)]),
        ('data.a["b c"][0].d == 1', "data.p0 == 1", [("data", "a", "b c", 0, "d")]),
        ("data.in == packet.type", "data.p0 == data.p1", [("data", "in"), ("packet", "type")]),
        ("data.a == 1 || data.a == 2", "data.p0 == 1 || data.p0 == 2", [("data", "a")]),
        ("data.a.size() > size(data.a)", "data.p0.size() > size(data.p0)", [("data", "a")]),
        ("data[data.i] == 1", "data.p0[data.p1] == 1", [("data",), ("data", "i")]),
        ("has(data.a.b)", "has(data.p0)", [("data", "a", "b")]),
        ("data.l.exists(x, x.t > 1)", "data.p0.exists(x, x.t > 1)", [("data", "l")]),
        ('"data.x" == \'packet\' // data.y', '"data.x" == \'packet\' // data.y', []),
        ('data.s.matches("^a{2}$")', "data.p0.rx0()", [("data", "s")]),
        ("data.s.matches(r'\\d+') && true", "data.p0.rx0() && true", [("data", "s")]),
        ('type(data.x) == int && "a" in packet.topics', 'type(data.p0) == int && "a" in data.p1', [("data", "x"), ("packet", "topics")]),
        ("packet.metadata.room == 'k'", "data.p0 == 'k'", [("packet", "metadata", "room")]),
    ],
)  # fmt: skip
def test_paths_become_flat_names(text: str, source: str, paths: list[tuple[str | int, ...]]) -> None:
    """Each path into the packet is one name, however it is spelled; texts and comments are left alone."""
    assert source_of(text) == source
    assert list(judge_filter(text, LIMITS).paths) == paths


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("// nothing", "empty"),
        ("true" + " " * 3000, "bytes"),
        ("data.a == #", "isn't understood"),
        ("data.a == \u00fc", "isn't understood"),
        ("(" * 30, "nest"),
        ("data.l.exists(x, " + "(" * 30, "nest"),
        ("(data.a == 1", "isn't closed"),
        ("data.a == 1)", "closes nothing"),
        ("(data.a == 1]", "closes nothing"),
        ("dta.a == 1", "did you mean data"),
        ("x == 1", "no name 'x'"),
        ("packet.typ == 'x'", "did you mean type"),
        ("packet.data_payload == 1", "no member"),
        ("len(data.a) == 1", "no function 'len'"),
        ("startsWith(data.a, 'x')", "called on a value"),
        ("data.a.lower() == 'x'", "no method 'lower'"),
        ("data.a.startWith('x')", "did you mean startsWith"),
        ("data.l.map(x, x + 1) == []", "map isn't taken"),
        ("data.l.filter(x, x > 1).size() > 1", "filter isn't taken"),
        ("data.l.exists(x, data.m.exists(y, y == x))", "inside a comprehension"),
        ("data.l.exists(x, [1].all(y, y == x))", "inside a comprehension"),
        ("data.l.exists(1, true)", "needs a name"),
        ("data.l.exists(data, true)", "can't name an item"),
        ("data.l.exists(x)", "needs a name"),
        ("data.l.exists(", "needs a name"),
        ("data.l.exists(x, x in data.m)", "can't search the packet"),
        ("&& ".join(["data.l.exists(x, true)"] * 5), "over 4 comprehensions"),
        ("data.l.exists(x, " + "||".join(["x == 1"] * 17) + ")", "mentioned over 16"),
        ("||".join(["data.a == 1"] * 33), "mentioned over 32"),
        ("+".join(["1"] * 18) + " == 1", "additions"),
        ("data.s.matches(data.p)", "written out"),
        ("data.s.matches('a' + 'b')", "written out"),
        ("data.s.matches()", "written out"),
        ("data.s.matches('" + "a" * 513 + "')", "characters"),
        ("data.s.matches('(a{20}){20}')", "repetitions"),
        ("data.s.matches('(a')", "isn't closed"),
        ("data.s.matches('(?=a)b')", "lookaround"),
        ("data.s.matches('\\\\Z')", "can be used"),
        ("true" + "||true" * 300, "over 600 words"),
        ("data.s.matches('(?:a{4}b{4}c{4}){25}') || data.s.matches('(?:a{4}b{4}c{4}){25}')", "together"),
        ("has(data)", "asks for a member"),
        ("size() == 1", "takes 1 argument, not 0"),
        ("data.a.size(1) == 1", "takes no argument, not 1"),
        ("data.a.contains('a', 'b')", "takes 1 argument, not 2"),
        ("data.l.exists(x, true, true)", "takes 1 argument, not 2"),
        ("has(data.a, data.b)", "takes 1 argument, not 2"),
        ('data.a == "\\q"', "escape"),
        ('data.a == "\\ud800"', "surrogate"),
        ('data.a == r"\\"', "isn't understood"),
        ('data.a == r"\\"a"', "raw string"),
        ("data" + ".a" * 40 + " == 1", "steps"),
        ('data.a == """x"""', "three quotes"),
        ('"""a"true""" == data.l.map(x, data.l) ""', "three quotes"),
        ("r'''a''' == data.b", "three quotes"),
        (".data.p0 == 1", "a dot"),
        ("(.data.p0) == 1", "a dot"),
        ("data.a[.data]", "a dot"),
        ("b'a' == data.b", "no name 'b'"),
    ],
)
def test_refusals_say_why(text: str, words: str) -> None:
    """Whatever isn't taken is refused at once, with the reason and, where it helps, the nearest right name."""
    with pytest.raises(InvalidFilter) as caught:
        judge_filter(text, LIMITS)
    assert words in caught.value.detail
    assert caught.value.violations[0].code == "filter.expression"


def test_string_escapes_are_read_as_cel_reads_them() -> None:
    """A pattern in a quoted literal is unescaped before it is judged; in a raw one it isn't."""
    judged = judge_filter(r"""data.s.matches("\u0061\x62\143\\d\n") || data.s.matches(r'\d')""", LIMITS)
    assert [pattern.text for pattern in judged.patterns] == ["abc\\d\n", "\\d"]


words = st.sampled_from(
    ["data", "packet", ".", "a", "type", "(", ")", "[", "]", "{", "}", "!", "-", "+", "&&", "||", "==", "?", ":", ",", "in",
     "1", "1.5", "0x1f", "5u", "'s'", '"\\n"', "r'\\d'", "true", "null", "has", "size", ".exists(x,", ".all(x,", "x", ".matches('a')",
     ".size()", "int", "//", "\n", " ", "data.l", "packet.topics", ".map(", "timestamp('2024-01-01T00:00:00Z')", "<", "%", "/", "*"]
)  # fmt: skip


@given(st.lists(words, max_size=40).map(" ".join) | st.text(max_size=60))
def test_the_judge_raises_nothing_else(text: str) -> None:
    """Any text is either a filter or an InvalidFilter."""
    with contextlib.suppress(InvalidFilter):
        judge_filter(text, LIMITS)


NASTY = r"""
import random, sys, threading
from overlayd.model.errors import InvalidFilter
from overlayd.model.limits import Limits
from overlayd.pipeline.filter_judge import FUNCTIONS, METHODS, NESTING_MAX, judge_filter
import cel

limits = Limits()
value = {"p%d" % at: one for at, one in enumerate([1, "abc", [1, 2], {"a": 1}, None, 1.5, True, [], 2**64 - 1, -2**63])}

def attempt(text):
    try:
        judged = judge_filter(text, limits)
    except InvalidFilter:
        return False
    try:
        program = cel.compile(judged.source(["p%d" % (at % 10) for at in range(99)], ["rx"] * 9))
        context = cel.Context({"data": value})
        context.add_function("rx", lambda text: True)
        program.execute(context)
    except Exception:
        pass
    return True

def shapes():
    n = NESTING_MAX
    for opening, closing in (("(", ")"), ("[", "]"), ("{1:", "}"), ("size(", ")"), ("(!", ")"), ("(-", ")"), ("data[", "]"),
                             ("(true?", ":1)"), ("(1+", ")"), ("[(", ")]"), ("int(", ")")):
        yield opening * n + "1" + closing * n
        yield opening * (n // 2) + "1" + closing * (n // 2)
    for part in ("!", "-", "- ", "true?", "true?true:", "1?", ".a", ".size()", "&&", "||", "1<", "1==", "1 in ", "data.a+", "1+", "1*", "true||",
                 "true&&", "1-", "[0]", "{}", "//\n", "'a'", "data"):
        for head in ("", "true", "data", "1", "data.a"):
            for tail in ("", "true", "1", ":1", "1:1"):
                for count in (10, 100, (2040 - len(head) - len(tail)) // len(part)):
                    yield head + part * count + tail
                    yield head + part * count + tail + ":1" * min(count, 100)

parts = ["data", "packet", ".", "a", "type", "(", ")", "[", "]", "{", "}", "!", "-", "+", "&&", "||", "==", "?", ":", ",", "in", "1", "1.5",
         "5u", "'s'", "true", "null", "has(", "x", ".exists(x,", ".all(x,", ".exists_one(x,", ".matches('a')", ".size()", "<", "%", "/", "*",
         "9223372036854775807", "duration('1h')", "timestamp('9999-12-31T23:59:59Z')", "data.a", "data.b.c", ")", ")", "]"]
parts += [name + "(" for name in FUNCTIONS] + ["." + name + "(" for name in METHODS]
counts = [0, 0]

def run():
    for text in shapes():
        counts[0] += attempt(text)
    chance = random.Random(int(sys.argv[1]))
    for _ in range(int(sys.argv[2])):
        counts[1] += attempt(" ".join(chance.choice(parts) for _ in range(chance.randint(1, 14))))

threading.stack_size(512 * 1024)
thread = threading.Thread(target=run)
thread.start()
thread.join()
print(*counts)
"""


def nasty_run(tmp_path: Path, seed: int, count: int) -> list[int]:
    """Attempts nasty expressions in another process, in a thread with a small stack: how many were let in."""
    script = tmp_path / "nasty.py"
    script.write_text(NASTY)
    ran = subprocess.run(
        [sys.executable, str(script), str(seed), str(count)], capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    return [int(count) for count in ran.stdout.split()]


def test_what_passes_the_judge_does_not_end_the_process(tmp_path: Path) -> None:
    """The deepest and longest shapes that are let in, and random ones, are compiled and run on half a megabyte of stack."""
    shapes, random_ones = nasty_run(tmp_path, 1, 2000)
    assert shapes > 50
    assert random_ones > 20


@pytest.mark.slow
def test_many_random_filters_do_not_end_the_process(tmp_path: Path) -> None:
    """The same for a hundred thousand random expressions; slow because there are so many."""
    assert nasty_run(tmp_path, 2, 100_000)[1] > 1000


def test_names_that_are_taken_are_known_to_the_engine() -> None:
    """The lists of functions and methods hold what filters can use and nothing that builds values."""
    assert not (FUNCTIONS | METHODS) & {"map", "filter", "bind", "format", "join", "replace", "split"}
    assert NESTING_MAX <= 24
