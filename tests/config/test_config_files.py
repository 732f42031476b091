"""The line that a key stands on."""

import pytest

from overlayd.config.files import find_line

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
