"""docs/errors.md lists the code of every single mistake that the source can name, and no others."""

import ast
import re
from pathlib import Path

from overlayd.model.errors import error_classes

ROOT = Path(__file__).parents[2]
CALLS = {"Violation": 1, "add": 1, "_Flaw": 0}
"""Which argument of these calls is a code."""


def codes_in_source() -> set[str]:
    """Every code that stands in a call; a code with a variable part ends in `<keyword>`."""
    found = set()
    for file in (ROOT / "overlayd").rglob("*.py"):
        if file.parent.name == "config":  # mistakes in the config file are told on the command line, by place
            continue
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name not in CALLS or len(node.args) <= CALLS[name]:
                continue
            if name == "add" and getattr(getattr(node.func, "value", None), "id", "") != "findings":
                continue
            code = node.args[CALLS[name]]
            if isinstance(code, ast.Constant) and isinstance(code.value, str):
                found.add(code.value)
            elif isinstance(code, ast.JoinedStr) and isinstance(code.values[0], ast.Constant):
                found.add(f"{code.values[0].value}<keyword>")
    return {code for code in found if re.fullmatch(r"[a-z]+\.[a-z_]+|[a-z]+\.<keyword>", code)}


def test_every_code_of_a_mistake_is_explained() -> None:
    """The list and the source name the same codes."""
    listed = set()
    for line in (ROOT / "docs" / "errors.md").read_text("utf-8").splitlines():
        if line.startswith("- `"):
            listed |= set(re.findall(r"`([a-z_.<>]+)`", line.partition(":")[0]))
    assert listed == codes_in_source() - {error.code for error in error_classes()}
