"""The lock files: complete, hashed, and silent about where packages are fetched."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCKS = sorted((ROOT / "requirements").glob("*.lock"))
_PIN = re.compile(r"^(?P<name>[a-z0-9-]+)==(?P<version>\S+) \\$", re.MULTILINE)


def read_pins(lock: Path) -> dict[str, str]:
    """Name to version of every pin in the file."""
    return {match["name"]: match["version"] for match in _PIN.finditer(lock.read_text())}


def read_wishes(name: str) -> list[Requirement]:
    """The requirements that a lock was made from."""
    if name == "base":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        return [Requirement(line) for line in project["dependencies"]]
    lines = (ROOT / f"requirements/{name}.in").read_text().splitlines()
    texts = [line.split("#")[0].strip() for line in lines]
    return [Requirement(text) for text in texts if text and not text.startswith("-")]


def needs_of(name: str) -> list[str]:
    """What an installed package needs on this machine, by canonical name."""
    requirements = [Requirement(text) for text in metadata.requires(name) or []]
    here = [item for item in requirements if item.marker is None or item.marker.evaluate({"extra": ""})]
    return [canonicalize_name(item.name) for item in here]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_every_pin_has_the_hashes_of_its_files(lock: Path) -> None:
    """Each package is pinned with at least one SHA-256, and binary ones with that of many platforms."""
    for block in re.split(r"\n(?=[a-z])", lock.read_text())[1:]:
        name = block.split("==")[0]
        hashes = re.findall(r"--hash=sha256:[0-9a-f]{64}\b", block)
        assert hashes, f"{name} has no hash in {lock.name}"
        if name in {"blake3", "cryptography", "httptools", "jsonschema-rs", "markupsafe", "msgspec"}:
            assert len(hashes) >= 10, f"{name}: only the files of one platform are listed in {lock.name}"


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_a_lock_names_no_index_and_no_place(lock: Path) -> None:
    """A lock holds no option, address or path of the machine that made it."""
    for line in lock.read_text().splitlines():
        assert not re.search(r"--(?!hash=)|://|@|\s/\w", line), line


@pytest.mark.parametrize(
    "name", ["base", "bench", "build", "demo", "dev", "fuse", "fuse-build", "oracle", "parquet", "tools"]
)
def test_a_lock_is_of_its_requirements(name: str) -> None:
    """Every requirement is pinned in its lock at a version that it allows."""
    pins = read_pins(ROOT / f"requirements/{name}.lock")
    for wish in read_wishes(name):
        pinned = pins.get(canonicalize_name(wish.name))
        assert pinned is not None, f"{wish} is not in {name}.lock; run `make lock`"
        assert wish.specifier.contains(pinned, prereleases=True), f"{wish} is locked at {pinned}; run `make lock`"


def test_dev_and_base_agree() -> None:
    """A package in both the base and the dev lock has one version."""
    base = read_pins(ROOT / "requirements/base.lock")
    for name, version in read_pins(ROOT / "requirements/dev.lock").items():
        assert base.get(name, version) == version, name


def test_the_base_lock_is_closed() -> None:
    """What a pinned package needs is pinned too, since nothing is resolved when installing; and nothing
    is pinned that nobody needs."""
    pins = read_pins(ROOT / "requirements/base.lock")
    reached: set[str] = set()
    waiting = [canonicalize_name(wish.name) for wish in read_wishes("base")]
    while waiting:
        name = waiting.pop()
        if name in reached:
            continue
        reached.add(name)
        assert name in pins, f"{name} is needed but not locked"
        waiting += needs_of(name)
    assert set(pins) == reached


def test_what_is_installed_is_what_is_locked() -> None:
    """The environment that the tests run in holds the locked versions."""
    pins = read_pins(ROOT / "requirements/base.lock") | read_pins(ROOT / "requirements/dev.lock")
    wrong = {name: metadata.version(name) for name, pin in pins.items() if metadata.version(name) != pin}
    assert not wrong, f"{wrong}: run `make venv`"
