"""docs/log-format.md says what the vectors say."""

import re
from pathlib import Path

import make_vectors
import pytest

DOC = (Path(__file__).parents[2] / "docs" / "log-format.md").read_text()
VECTORS = make_vectors.VECTORS.read_text()
HEX = sorted(set(re.findall(r"\b[0-9a-f]{18,}\b", DOC)))


def test_every_value_is_in_the_vectors():
    """Each hash, meta and E that the page shows stands in the vector file."""
    assert len(HEX) > 25
    assert [value for value in HEX if value not in VECTORS] == []


@pytest.mark.parametrize("size", [2])
def test_the_checkpoint_is_in_the_vectors(size):
    """The note that the page shows is that of the vectors, byte for byte."""
    note = make_vectors.tree_vectors()["checkpoints"][make_vectors.TREE_SIZES.index(size)]["note"]
    assert note in DOC


def test_the_pages_python_is_right():
    """The ten lines that compute a commitment give the vectors' value."""
    code = re.search(r"```python\n(.*?)```", DOC, re.DOTALL)
    assert code is not None
    names: dict[str, object] = {}
    exec(code[1], names)
    made = names["commitment"](make_vectors.SALT, b"weather-001", id=b"a", sent=b'{"t":21}')
    vector = next(one for one in make_vectors.packet_vectors() if one["name"] == "commitment of the node")
    assert made.hex() == vector["commitment"]


def test_the_layout_of_e_is_the_products():
    """The table of E's fields adds up and names the product's fields in their order."""
    table = re.search(r"\| at \| bytes \|.*?\n\n", DOC, re.DOTALL)
    assert table is not None
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in table[0].splitlines()[2:] if line]
    at = 0
    for start, width, _ in rows:
        assert int(start) == at
        at += int(width)
    assert at == 146
    assert [name for _, _, name in rows][1:] == list(make_vectors.EntryHeader.__struct_fields__)


def test_every_node_type_is_described():
    """Each type of node entry that the product writes has a row with its members in their order."""
    for kind in make_vectors.NODE_TYPES:
        config = kind.__struct_config__
        row = re.search(rf"\| `{config.tag}` \| (.*?) \|", DOC)
        assert row is not None, config.tag
        told = re.sub(r":.*?(?=,|$)|\?|`", "", row[1].replace(": {size, root}", ""))
        assert [name.strip() for name in told.split(",")] == list(kind.__struct_fields__)
