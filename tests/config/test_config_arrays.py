"""Arrays of tables: rows from files, variables and conf.d, mistakes named by row."""

from pathlib import Path
from typing import Annotated

import msgspec
import pytest
from msgspec import Meta

from overlayd.config import load_settings
from overlayd.config.convert import Origin, Problems, build, spread
from overlayd.config.schema import shape_of
from overlayd.model.errors import ConfigInvalid


class Door(msgspec.Struct, frozen=True):
    """A row."""

    name: Annotated[str, Meta(description="What it is called", examples=["front"])]
    width: Annotated[int, Meta(ge=1, description="Centimetres")] = 90

    def __post_init__(self) -> None:
        if self.name == "wall":
            raise ValueError("a wall is no door")


class House(msgspec.Struct, frozen=True):
    """A table that holds rows."""

    doors: Annotated[tuple[Door, ...], Meta(description="Ways in")] = ()
    floors: Annotated[int, Meta(description="Floors")] = 1


class Root(msgspec.Struct, frozen=True):
    """All of it."""

    house: Annotated[House, Meta(description="A house")] = House()


def read(data: object) -> tuple[Root | None, list[str]]:
    """The settings, and what is wrong with them."""
    shape, problems = shape_of(Root), Problems()

    def origin_of(path: tuple[str | int, ...]) -> Origin:
        return Origin("file", "f:" + "/".join(map(str, path)))

    given = spread(shape, {"house": data}, origin_of, problems)
    return build(Root, shape, given, problems), [violation.detail for violation in problems.violations]


def test_rows_become_structs() -> None:
    """Each table is one struct, with defaults for the rest."""
    root, problems = read({"doors": [{"name": "front"}, {"name": "back", "width": 70}], "floors": 2})
    assert not problems
    assert root == Root(House((Door("front"), Door("back", 70)), 2))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"doors": {"name": "x"}}, "f:house/doors: house.doors: expected an array of tables, each under its own [[house.doors]] header"),
        ({"doors": [1]}, "f:house/doors: house.doors: expected an array of tables, each under its own [[house.doors]] header"),
        ({"doors": [{"name": "a"}, {}]}, "f:house/doors/1: house.doors[1].name: expected a text"),
        ({"doors": [{"name": "a", "width": 0}]}, "f:house/doors/0/width: house.doors[0].width: expected a whole number, at least 1; got 0"),
        ({"doors": [{"name": "a", "widht": 1}]}, "f:house/doors/0/widht: house.doors[0].widht: no such key; did you mean house.doors[0].width?"),
        ({"doors": [{"name": "wall"}]}, "f:house/doors/0/name: house.doors[0]: a wall is no door"),
        ({"dors": []}, "f:house/dors: house.dors: no such key; did you mean house.doors?"),
    ],
)  # fmt: skip
def test_mistakes_name_the_row(data: object, expected: str) -> None:
    """Place, row and key of what is wrong."""
    assert read(data)[1] == [expected]


def test_files_add_rows(tmp_path: Path) -> None:
    """A later file's rows stand behind an earlier one's, other keys replace."""
    (tmp_path / "conf.d").mkdir()
    row = '[[listen.tls]]\naddress = "127.0.0.1:{}"\ncert = "c.pem"\n'
    (tmp_path / "overlayd.toml").write_text(row.format(1))
    (tmp_path / "conf.d" / "more.toml").write_text(row.format(2))
    loaded = load_settings(tmp_path / "overlayd.toml", environ={})
    assert [one.address for one in loaded.settings.listen.tls] == ["127.0.0.1:1", "127.0.0.1:2"]
    assert loaded.origins["listen.tls[1]"].place.endswith("more.toml:1")
    assert ("listen.tls[1].address", '"127.0.0.1:2"', str(loaded.origins["listen.tls[1]"])) in loaded.rows()


@pytest.mark.parametrize("text", ['[{address = "127.0.0.1:1", cert = "c"}]', '[{"address":"127.0.0.1:1","cert":"c"}]'])
def test_a_variable_holds_rows(text: str) -> None:
    """In TOML or JSON; nonsense is named."""
    loaded = load_settings(environ={"OVERLAYD_LISTEN__TLS": text})
    assert loaded.settings.listen.tls[0].address == "127.0.0.1:1"
    with pytest.raises(ConfigInvalid, match=r"listen\.tls: expected an array of tables"):
        load_settings(environ={"OVERLAYD_LISTEN__TLS": "here"})
