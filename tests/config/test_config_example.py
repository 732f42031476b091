"""config.example.toml: every setting, its default, and nothing that isn't true any more."""

import re
import tomllib
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from overlayd.config import Settings, load_settings
from overlayd.config.convert import Given, Origin, Problems, build
from overlayd.config.example import render_example
from overlayd.config.load import settings_shape
from overlayd.config.schema import shape_of

FILE = Path(__file__).parents[2] / "config.example.toml"


def test_the_file_is_what_the_settings_say() -> None:
    """The file in the project is the one that would be written now."""
    assert FILE.read_text() == render_example(), "run `make config-example`"


def test_the_example_means_the_defaults() -> None:
    """Read back, the example changes nothing."""
    assert load_settings(FILE, environ={}).settings == load_settings(environ={}).settings


def test_the_commented_form_sets_nothing() -> None:
    """In the form that `init` writes no key is set, and with the comment signs taken away it is the example."""
    text = render_example(is_commented=True)
    assert not any(value for table in tomllib.loads(text).values() for value in table.values() if value != {})
    key = re.compile(r"^#(?=[a-z_]+ = (?!\{\}))", re.MULTILINE)  # what has no default is a comment in both forms
    assert key.sub("", text) == key.sub("", render_example())


def test_every_key_is_in_the_example_with_a_comment() -> None:
    """Each key of the structs stands under its table, below a comment with its description."""
    lines = FILE.read_text().splitlines()
    for key in settings_shape().keys.values():
        assert key.description, f"{key.name} has no description"
        header = lines.index(f"[{'.'.join(key.path[:-1])}]")
        at = next(i for i in range(header, len(lines)) if re.match(rf"#?{key.path[-1]} = ", lines[i]))
        assert lines[at - 1].startswith("# "), key.name


def test_every_table_is_described() -> None:
    """Each table says in a line what it is for."""
    assert all(description for table, description in settings_shape().tables.items() if table)
    assert {field.name for field in msgspec.structs.fields(Settings)} - {"streams", "subscriptions"} == {
        table[0] for table in (*settings_shape().tables, *settings_shape().arrays) if table
    }


def test_every_key_of_an_array_is_in_the_example() -> None:
    """Each array of tables is shown as a comment, with every key of its tables."""
    lines = FILE.read_text().splitlines()
    for array in settings_shape().arrays.values():
        at = lines.index(f"# [[{'.'.join(array.path)}]]")
        block = lines[at : lines.index("", at)]
        for key in array.shape.keys.values():
            assert key.description, key.name
            assert any(line.startswith(f"# {key.path[-1]} = ") for line in block), key.name


def test_secrets_are_not_repeated() -> None:
    """A wrong value of a secret setting isn't shown in the message."""

    class Box(msgspec.Struct):
        password: Annotated[str, Meta(min_length=20, description="x", extra={"secret": True})] = ""

    problems = Problems()
    given = {("password",): Given("hunter2", Origin("file", "f:1"))}
    assert build(Box, shape_of(Box), given, problems) is None
    (violation,) = problems.violations
    assert "hunter2" not in violation.detail
    assert violation.detail == "f:1: password: expected a text"


def test_a_structs_own_check_is_told() -> None:
    """A ValueError of a settings struct becomes a mistake of its table."""

    class Pair(msgspec.Struct, frozen=True):
        low: int = 0
        high: int = 1

        def __post_init__(self) -> None:
            if self.low > self.high:
                raise ValueError("low must not be above high")

    class Root(msgspec.Struct):
        pair: Pair = Pair()

    problems = Problems()
    given = {("pair", "low"): Given(5, Origin("file", "f:3"))}
    assert build(Root, shape_of(Root), given, problems) is None
    assert [violation.detail for violation in problems.violations] == ["f:3: pair: low must not be above high"]
