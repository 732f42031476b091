"""docs/security.md names every action that the audit is told of."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
MAKERS = frozenset(("record", "AuditRecord"))
ACTION = re.compile(r"[a-z_]+(\.[a-z_-]+)*")


def documented() -> set[str]:
    """The first column of the table; `.change` after `key.create` is `key.change`."""
    page = (ROOT / "docs" / "security.md").read_text()
    section = page.partition("\n## Audit\n")[2].partition("\n## ")[0]
    found: set[str] = set()
    for line in section.splitlines():
        if line.startswith("| `"):
            before = ""
            for name in re.findall(r"`([^`]+)`", line.split("|")[1]):
                before = name if not name.startswith(".") else before
                found.add(before.rpartition(".")[0] + name if name.startswith(".") else name)
    return found


def told() -> Iterator[str]:
    """Actions that the code names where it makes a record."""
    for path in sorted((ROOT / "overlayd").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in MAKERS or (name == "_tell" and path.name == "subscription_routes.py"):
                first = node.args[0]
                parts = [first.body, first.orelse] if isinstance(first, ast.IfExp) else [first]
                for part in parts:
                    if isinstance(part, ast.Constant) and isinstance(part.value, str) and ACTION.fullmatch(part.value):
                        yield part.value


def test_every_action_is_documented() -> None:
    """So that an auditor knows what to look for."""
    actions = set(told())
    assert {"key.create", "config.reload", "subscription.create", "stream.delete", "access.failed"} <= actions
    assert actions - documented() == set()
