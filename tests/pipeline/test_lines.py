"""NDJSON while it arrives: the same lines however the chunks fall, and never more held than a line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlayd.pipeline.lines import Line, LineSplitter


def lines_of(chunks: list[bytes], line_bytes_max: int = 10) -> list[Line]:
    """Everything a splitter gives for these chunks, checking what it holds after each."""
    splitter = LineSplitter(line_bytes_max)
    out = []
    for chunk in chunks:
        out += splitter.feed(chunk)
        assert splitter.held_bytes <= line_bytes_max + 1
    return out + splitter.finish()


def model_of(body: bytes, line_bytes_max: int) -> list[Line]:
    """What the lines of a whole body should be, written without regard to chunks."""
    out = []
    for number, text in enumerate(body.split(b"\n"), 1):
        bare = text.removesuffix(b"\r")
        if len(bare) > line_bytes_max:
            out.append(Line(number, None))
        elif bare.strip(b" \t\r"):
            out.append(Line(number, bare.strip(b" \t\r")))
    return out


@given(st.lists(st.text(alphabet="ab \t\r\n", max_size=30)), st.integers(1, 12))
def test_chunk_boundaries_do_not_matter(parts: list[str], line_bytes_max: int) -> None:
    """Any cutting of a body gives the lines of the whole body."""
    chunks = [part.encode() for part in parts]
    assert lines_of(chunks, line_bytes_max) == model_of(b"".join(chunks), line_bytes_max)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", []),
        (b"\n\r\n  \n", []),
        (b"a\nb", [Line(1, b"a"), Line(2, b"b")]),
        (b"a\r\n\r\n b \r\n", [Line(1, b"a"), Line(3, b"b")]),
        (b"0123456789\r\n", [Line(1, b"0123456789")]),
        (b"0123456789x\nb\n", [Line(1, None), Line(2, b"b")]),
        (b"0123456789x", [Line(1, None)]),
    ],
)
def test_lines_end_as_people_end_them(body: bytes, expected: list[Line]) -> None:
    """Either line end, no last line end, blank lines and overlong ones, whole or byte by byte."""
    assert lines_of([body]) == expected
    assert lines_of([body[at : at + 1] for at in range(len(body))]) == expected


def test_an_endless_line_is_not_kept() -> None:
    """A line that never ends costs no memory and is one error; the next line is fine."""
    splitter = LineSplitter(100)
    for _ in range(1000):
        assert splitter.feed(b"x" * 1000) == []
        assert splitter.held_bytes == 0
    assert splitter.feed(b"\n1\n") == [Line(1, None), Line(2, b"1")]
