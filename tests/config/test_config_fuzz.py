"""Whatever is written, the answer is settings or ConfigInvalid."""

from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from overlayd.config import load_settings
from overlayd.config.files import find_line
from overlayd.config.load import settings_shape
from overlayd.model.errors import ConfigInvalid

KEYS = sorted(key.name for key in settings_shape().keys.values())
TEXTS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["[", "{", "[[[1]]]", "[1,", "true", "-1", "1e400", "NaN", "9" * 300 + "d", "0s", "٣s", '"\\ud800"']
    ),
    st.integers().map(str),
)
WORDS = st.sampled_from(["node", "streams", "name", "storage", "dir", "limits", "schema", "x", "retention", "max_age"])
VALUES = st.recursive(
    st.one_of(st.integers(), st.booleans(), st.text(st.characters(codec="ascii", categories=["L"]), max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, max_size=3)),
    max_leaves=8,
)


def write_value(value: Any) -> str:
    """A value as inline TOML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{word} = {write_value(item)}" for word, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(write_value, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else str(value)


def refusal(config: Path | None = None, **environ: str) -> str:
    """What the configuration is refused with; "" when it isn't."""
    try:
        assert load_settings(config, environ=environ).rows()
    except ConfigInvalid as err:
        return err.detail
    return ""


@given(key=st.sampled_from(KEYS), text=TEXTS)
@settings(max_examples=100, deadline=None)
def test_any_text_in_a_variable(key: str, text: str) -> None:
    """A variable with any content is read, or refused by its name."""
    variable = "OVERLAYD_" + key.upper().replace(".", "__")
    said = refusal(**{variable: text})
    assert not said or said.startswith(f"{variable}: ")


@given(tree=st.dictionaries(WORDS, VALUES, max_size=4))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_tree_in_a_file(tmp_path: Path, tree: dict[str, Any]) -> None:
    """A file with any shape is read, or refused with its name."""
    file = tmp_path / "f.toml"
    file.write_text("\n".join(f"{word} = {write_value(value)}" for word, value in tree.items()))
    assert all(line.startswith(str(file)) for line in refusal(file).splitlines())


@given(
    text=st.text(st.sampled_from(list('[].="a\n ')), max_size=60), path=st.lists(st.sampled_from(["a", 0]), max_size=4)
)
@settings(max_examples=100, deadline=None)
def test_any_text_is_searched(text: str, path: list[str | int]) -> None:
    """Looking for a line never fails and never points outside the text."""
    line = find_line(text, tuple(path))
    assert line is None or 1 <= line <= len(text.splitlines())


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    """Ten thousand brackets are an error of the file, not of the program."""
    file = tmp_path / "f.toml"
    for text in ("a = " + "[" * 10_000, "a." * 10_000 + "b = 1", "[node]\nname = " + "{a=" * 10_000):
        file.write_text(text)
        assert 0 < len(refusal(file)) < 1000
    assert 0 < len(refusal(OVERLAYD_DEFAULTS__SCHEMA="[" * 100_000)) < 1000
