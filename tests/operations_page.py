"""docs/operations.md as tests read it: chapters of blocks to run, and what each must print.

A block's info string says where it runs:

- ```sh: on any node, in a directory of its own (tests/e2e), and on the machine as well;
- ```sh machine: only on a machine with systemd and the Debian package (tests/packaging), as root;
- ```sh docker: nowhere here; the test skips it in plain sight;
- ```text: not run; its lines must come, in this order, in what the block before it printed. `…` stands for anything.

Anything else is a mistake. The blocks of a chapter (##) run in one shell, in their order. What the page's first block sets
counts in each.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/operations.md"
ANYWHERE, ON_MACHINE, DOCKER, OUTPUT = "sh", "sh machine", "sh docker", "text"
_FENCE = re.compile(r"^```(?P<mark>[^\n]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^(#{2,3}) (.+)$", re.MULTILINE)
_MARKER = "=== block of line "


class Block(msgspec.Struct):
    """A fenced block. `line` is that of its fence; `shown` what it must print, as patterns."""

    line: int
    mark: str
    text: str
    shown: list[str] = []


class Chapter(msgspec.Struct):
    """What stands below one heading of the second level."""

    title: str
    blocks: list[Block] = []

    def to_run(self, *marks: str) -> list[Block]:
        """Its blocks with one of these marks."""
        return [block for block in self.blocks if block.mark in marks]


def page_text() -> str:
    """The whole page."""
    return PAGE.read_text(encoding="utf-8")


def blocks_of(text: str) -> list[Block]:
    """Every fenced block; one of output belongs to the one before it, and isn't listed."""
    found: list[Block] = []
    for match in _FENCE.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        mark, content = match["mark"], match["text"]
        assert mark in (ANYWHERE, ON_MACHINE, DOCKER, OUTPUT), f"operations.md:{line}: a block can't be marked {mark!r}"
        if mark == OUTPUT:
            assert found, f"operations.md:{line}: there is no block that printed this"
            assert not found[-1].shown, f"operations.md:{line}: the block before it has its output already"
            found[-1].shown = content.splitlines()
        else:
            found.append(Block(line, mark, content))
    return found


def chapters(text: str) -> list[Chapter]:
    """The page by its headings of the second level. What stands before the first of them has no commands."""
    starts = [(match.start(), match[2]) for match in _HEADING.finditer(text) if match[1] == "##"]
    line_of = {start: text.count("\n", 0, start) for start, _ in starts}
    assert not blocks_of(text[: starts[0][0]]), "the page's first block stands under a heading"
    found = []
    for (start, title), (end, _) in zip(starts, [*starts[1:], (len(text), "")], strict=True):
        blocks = blocks_of(text[start:end])
        for block in blocks:
            block.line += line_of[start]
        found.append(Chapter(title, blocks))
    return found


def anchors(text: str) -> set[str]:
    """What a link can lead to: headings without code, as their letters, digits and hyphens."""
    bare = re.sub(_FENCE, "", text)
    return {re.sub(r"[^\w -]", "", match[2]).strip().lower().replace(" ", "-") for match in _HEADING.finditer(bare)}


def script(blocks: list[Block], *before: str) -> str:
    """One script that ends at the first command that fails, and says before each block which it is."""
    parts = ["set -euo pipefail", "exec 2>&1", *before]
    for block in blocks:
        parts += [f"echo '{_MARKER}{block.line}'", block.text]
    return "\n".join([*parts, "echo '=== end'"])


def judge(blocks: list[Block], code: int, said: str) -> None:
    """Every block ran, and printed what the page shows."""
    pieces = dict(_pieces(said))
    last = max(pieces, default=0)
    assert code == 0, f"operations.md:{last}: exit code {code}\n{pieces.get(last, said)[-3000:]}"
    assert said.endswith("=== end\n"), said[-1000:]
    for block in blocks:
        missing = first_missing(block.shown, pieces[block.line])
        assert not missing, f"operations.md:{block.line}: {missing!r} isn't in\n{pieces[block.line][-3000:]}"


def _pieces(said: str) -> Iterator[tuple[int, str]]:
    for piece in re.split(rf"^{_MARKER}", said, flags=re.MULTILINE)[1:]:
        number, _, text = piece.partition("\n")
        yield int(number), text.removesuffix("=== end\n")


def first_missing(shown: list[str], printed: str) -> str:
    """The first line that wasn't printed after those before it; empty when all were."""
    lines = iter(printed.splitlines())
    for line in shown:
        pattern = re.compile(".*".join(re.escape(part) for part in line.strip().split("…")))
        if not any(pattern.search(candidate) for candidate in lines):
            return line
    return ""


def commands_of(text: str) -> set[str]:
    """The subcommands of overlayd in a block's text, as `overlayd NAME`; options before them don't count."""
    return set(re.findall(r"(?:^|[\s/(])overlayd ([a-z][a-z-]*)", text, re.MULTILINE))
