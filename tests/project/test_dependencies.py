"""What is declared is used, and what is used is declared."""

import ast
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[2]


def canonical(name: str) -> str:
    """A distribution's name as pip writes it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def imports_in(folder: str) -> set[str]:
    """Top-level names that the files of a folder import."""
    found = set()
    for file in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.split(".")[0])
    return found - sys.stdlib_module_names - {"overlayd"}


def loaded_in(folder: str) -> set[str]:
    """Distributions that the files of a folder load by name, because they may be missing."""
    pattern = re.compile(r'importlib\.import_module\("(\w+)"\)')
    return {name for file in (ROOT / folder).rglob("*.py") for name in pattern.findall(file.read_text("utf-8"))}


def test_dependencies_are_those_that_are_imported() -> None:
    """The package declares exactly the distributions that its code imports."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    declared = {canonical(re.split(r"[<>=!~ \[;]", line)[0]) for line in (*project["dependencies"], *extras)}
    providers = metadata.packages_distributions()
    imported = {canonical(providers[name][0]) for name in imports_in("overlayd") if name in providers}
    imported |= {canonical(name) for name in loaded_in("overlayd")}
    assert imported - declared == set(), "imported without being declared"
    assert declared - imported == set(), "declared without being imported"


def test_everything_imported_is_installed() -> None:
    """No code imports what no distribution provides."""
    providers = metadata.packages_distributions()
    assert {name for name in imports_in("overlayd") if name not in providers} == set()
