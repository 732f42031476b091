"""The shape of the source: size of files and functions, names of files, tests that say what they show."""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("overlayd", "tests", "benchmarks", "examples")
FILES = sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))

FILE_LINES_MAX = 500
TEST_FILE_LINES_MAX = 650
"""A model or a second implementation is best read as one."""
FUNCTION_LINES_MAX = 70
LONG_ON_PURPOSE = {"must_fail_vectors"}
"""A table of broken inputs, which is nothing but long."""
ROLE_NAMES = {"utils", "util", "helpers", "helper", "handlers", "handler", "manager", "managers", "common", "misc", "base", "core", "lib"}  # fmt: skip
"""A file is named after the thing in it. A name such as these never stops growing."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def name_of(file: Path) -> str:
    """The path inside the project."""
    return str(file.relative_to(ROOT))


def functions_of(file: Path) -> Iterator[Function]:
    """Every function in a file, inner ones and methods included."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"), str(file))):
        if isinstance(node, Function):
            yield node


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_a_file_can_be_read_in_one_go(file: Path) -> None:
    """No file of the product is longer than 500 lines, no function longer than 70."""
    bound = FILE_LINES_MAX if file.is_relative_to(ROOT / "overlayd") else TEST_FILE_LINES_MAX
    assert len(file.read_text("utf-8").splitlines()) <= bound
    long = {one.name for one in functions_of(file) if (one.end_lineno or 0) - one.lineno >= FUNCTION_LINES_MAX}
    assert not long - LONG_ON_PURPOSE


def test_no_file_is_named_after_a_role() -> None:
    """There is no utils, helpers, handlers, manager or common, as file or folder."""
    named = {name_of(file) for file in FILES for part in file.relative_to(ROOT).parts if Path(part).stem in ROLE_NAMES}
    assert not named


def test_every_test_says_what_it_shows() -> None:
    """Each test has a docstring."""
    silent = [
        f"{name_of(file)}::{function.name}"
        for file in FILES
        if file.name.startswith("test_")
        for function in functions_of(file)
        if function.name.startswith("test_") and not ast.get_docstring(function)
    ]
    assert not silent


def test_module_names_are_unique_in_the_tests() -> None:
    """Two test modules of one name would hide each other, as tests have no packages."""
    names = [file.name for file in FILES if file.is_relative_to(ROOT / "tests")]
    assert sorted({name for name in names if names.count(name) > 1} - {"conftest.py"}) == []


def test_everything_in_the_package_is_installed() -> None:
    """Each file of the package that isn't Python is named as package data, and each folder is a package."""
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["overlayd"]
    files = [file for file in (ROOT / "overlayd").rglob("*") if file.is_file() and file.suffix not in {".py", ".pyc"}]
    assert {str(file.relative_to(ROOT / "overlayd")) for file in files} == set(data)
    folders = {file.parent for file in (ROOT / "overlayd").rglob("*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []
