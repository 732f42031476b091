"""Every limit is counted when it is hit, and a test hits it; what isn't counted says why."""

import ast
from collections.abc import Iterator
from pathlib import Path

import msgspec

from overlayd.model.limits import Limits

ROOT = Path(__file__).parents[2]
EXCUSED = {
    "page_entries": "how much is read at once; every full page is one, and readers go on with the next",
    "page_bytes": "as page_entries",
    "tail_bytes": "memory that is full at all times once enough was published; what isn't in it is read from the disk",
    "read_packets_max": "a parameter's range: asking for more is refused as a bad parameter, which the answer says",
    "heartbeat_min": "as read_packets_max",
    "heartbeat_max": "as read_packets_max",
    "filter_list_items": "what filters see of a list; cutting it is what the documentation promises of every longer one",
    "handshake_threads": "a number of threads; who waits too long for one is counted as handshake_timeout",
    "outbound_idle_timeout": "the ordinary end of a connection that nobody needs",
    "outbound_name_age": "the ordinary end of an address that was looked up",
    "outbound_addresses": "how many of a name's addresses are tried; a name that has more is as good as one that hasn't",
}
"""Limits whose hits aren't counted, and why."""


def _literals(node: ast.AST) -> Iterator[str]:
    """The texts in a piece of code, beginnings of f-strings included."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
            yield inner.value


def _counted_at_once(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "count_limit_hit":
            for given in node.args:
                yield from _literals(given)


def _trees(place: str) -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted((ROOT / place).rglob("*.py")):
        yield path, ast.parse(path.read_text())


def _covers(texts: set[str], name: str) -> bool:
    """Whether one of the texts is the name, or the beginning that an f-string completes."""
    return name in texts or any(text.endswith("_") and name.startswith(text) for text in texts if len(text) > 8)


def test_every_limit_is_counted_or_excused() -> None:
    """Each field of Limits is named in the code, which is done only to count it or to carry its name to where that is
    done, or here with the reason why it isn't counted; never both."""
    trees = [tree for path, tree in _trees("overlayd") if path.name != "limits.py"]
    texts = {text for tree in trees for text in _literals(tree)}
    counted = {text for tree in trees for text in _counted_at_once(tree)}
    names = {field.name for field in msgspec.structs.fields(Limits)}
    assert {name for name in names if not _covers(texts, name)} - EXCUSED.keys() == set(), "neither counted nor excused"
    assert EXCUSED.keys() - names == set(), "excused, but no limit"
    assert EXCUSED.keys() & counted == set(), "excused, though it is counted"


def test_every_counted_limit_is_hit_by_a_test() -> None:
    """Each limit that is counted stands in a test that looks at what was counted."""
    texts = set()
    for path, tree in _trees("tests"):
        if path != Path(__file__) and "hits" in path.read_text():
            texts |= set(_literals(tree))
    names = {field.name for field in msgspec.structs.fields(Limits)} - EXCUSED.keys()
    assert {name for name in names if name not in texts} == set()
