"""Whether the pages that lead to all others are in order: a few of each thousand, looked at before every start. Blocking.

A broken leaf page hides its own rows, which readers are told of; a broken page above hides thousands that are sound. SQLite
finds it only when somebody asks for them.
"""

from pathlib import Path

from overlayd.storage.damage.pages import (
    INTERIOR_TABLE,
    LEAF_TABLE,
    BadPage,
    PageImage,
    cells_in,
    children_of,
    decode_record,
    find_leaves,
    header_at,
    read_cells,
)
from overlayd.storage.damage.schema import cookie_of, follows_on, load_schema, read_schema

CHECKED_TABLES = ("entry", "tile")


def find_broken_structure(database: Path, directory: Path) -> str:
    """What is wrong with the ways to entries and tiles, in words; "" for nothing, and for a file that isn't there.

    Not beside a connection of this process (pages.py). Reads one page of about five hundred.
    """
    try:
        with PageImage(database) as image:
            if not image.count:
                return ""
            if image.read(1)[:16] != b"SQLite format 3\0":
                return f"{database} is not a database"
            saved = load_schema(directory)
            roots = {row.name: row.root for row in read_schema(image, saved)}
            if saved.rows and saved.cookie == cookie_of(image) and not follows_on(_read_versions(image, roots), saved):
                return "the list of the schema's versions isn't what was stored"
            for name in CHECKED_TABLES:
                if roots.get(name):
                    _check_ways(image, roots[name])
    except FileNotFoundError:
        return ""
    except (OSError, BadPage) as error:
        return str(error)
    return ""


def _read_versions(image: PageImage, roots: dict[str, int]) -> dict[object, object]:
    """A changed number there would be taken for another version's database."""
    versions: dict[object, object] = {}
    for number, error in find_leaves(image, roots.get("schema_version", 0)):
        if error is None:
            for cell in read_cells(image, number):
                feature, version = decode_record(cell.payload)[:2]
                versions[feature] = version
    return versions


def _check_ways(image: PageImage, root: int) -> None:
    """Raises BadPage at an interior page that leads astray. Leaves are only looked at where a page could be either.

    Ten million entries have two million leaves, so these are only counted: half a microsecond and a byte for each.
    """
    depth = _depth_of(image, root)
    seen = bytearray(image.last + 1)
    seen[root] = 1
    waiting = [(root, depth)] if depth else []
    while waiting:
        number, depth = waiting.pop()
        page = image.read(number)
        if page[header_at(number)] != INTERIOR_TABLE:
            raise BadPage(f"page {number} should lead to others and doesn't")
        children = children_of(image, number, page)
        if len(children) != cells_in(number, page) + 1:
            raise BadPage(f"page {number} leads to fewer pages than it says")
        if any(map(seen.__getitem__, children)):
            raise BadPage(f"page {number} leads to a page that is reached twice")
        for child in children:
            seen[child] = 1
        if depth > 1:
            waiting += [(child, depth - 1) for child in children]


def _depth_of(image: PageImage, root: int) -> int:
    """Levels above the leaves, by the leftmost way."""
    number, depth = root, 0
    while True:
        page = image.read(number)
        kind = page[header_at(number)]
        if kind == LEAF_TABLE:
            return depth
        if kind != INTERIOR_TABLE or depth > 20:
            raise BadPage(f"page {number} is none of a table")
        number, depth = children_of(image, number, page)[0], depth + 1
