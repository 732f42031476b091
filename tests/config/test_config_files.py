"""The line that a key stands on."""

import pytest

from overlayd.config.files import find_line, read_lines

TEXT = """\
# a comment = 1
top = 1
[storage]
dir = "x"
[defaults]
retention = { max_age = "1d" }
[ defaults . limits ]
"packet_bytes" = 3
[[streams]]
name = "a"
[streams.retention]
max_age = "1d"
[[ streams ]]
name = "b"
retention.max_age = "2d"
"""


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("top",), 2),
        (("storage",), 3),
        (("storage", "dir"), 4),
        (("defaults", "retention", "max_age"), 6),
        (("defaults", "limits", "packet_bytes"), 8),
        (("streams",), 9),
        (("streams", 0, "name"), 10),
        (("streams", 0, "retention", "max_age"), 12),
        (("streams", 1), 13),
        (("streams", 1, "name"), 14),
        (("streams", 1, "retention", "max_age"), 15),
        (("storage", "absent"), 3),
        (("absent",), None),
    ],
)
def test_a_key_is_found_where_it_stands(path: tuple[str | int, ...], line: int | None) -> None:
    """Headers, arrays of tables, dotted and quoted keys lead to the right line; else the nearest table's."""
    assert find_line(TEXT, path) == line


def test_lines_are_read_once_for_all_places() -> None:
    """A file of a thousand streams is asked for a place for each of them and for each of their keys."""
    lines = read_lines(
        "".join(f'[[streams]]\nname = "s{number}"\nretention.max_age = "1d"\n' for number in range(1000))
    )
    assert [lines.find(("streams", number)) for number in range(1000)] == list(range(1, 3000, 3))
    assert lines.find(("streams", 999, "retention", "max_age", "absent")) == 3000
    assert lines.find(("streams", 1000)) is None


def test_deep_paths_are_told_apart_so_far() -> None:
    """A key of ten thousand parts takes no memory for each beginning of it, and still has its line."""
    deep = tuple("a" * 10_000)
    lines = read_lines("b = 1\n" + ".".join(deep) + " = 1\n")
    assert len(lines.within) < 100
    assert lines.find(deep) == 2
