"""Everything that is installed with the node is under a licence that the Open Source Initiative approved.

Judged by the licence files that the packages ship, not only by what their metadata says.
"""

import re
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

APPROVED = frozenset(
    {"0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT", "MIT-0", "MPL-2.0", "Python-2.0", "Unlicense", "Zlib"}
)  # fmt: skip
"""SPDX names, https://opensource.org/licenses."""

EXPLAINED = {"PSF-2.0": "the first of the licences that OSI's Python-2.0 consists of, without the historical ones"}

WITHOUT_FILE = {"jsonschema-rs": "its wheels hold no licence file; metadata and repository say MIT"}

TEXTS = {
    "Apache-2.0": r"apache license,? version 2\.0",
    "MIT": r"permission is hereby granted, free of charge, to any person obtaining a copy .{0,900}subject to the following conditions",
    "MIT-0": r"permission is hereby granted, free of charge, to any person obtaining a copy (?:(?!subject to the following).){0,900}the software is provided",
    "BSD-2-Clause": r"redistributions of source code must retain (?:(?!neither the name|names? of (?:the )?\S+ (?:may|nor)).)*$",
    "BSD-3-Clause": r"redistributions of source code must retain .*(?:neither the name|may not be used to endorse|nor the names)",
    "MPL-2.0": r"mozilla public license,? (?:version|v\.) ?2\.0",
    "ISC": r"permission to use, copy, modify, and(?:/or)? distribute this software for any purpose with or without fee is hereby granted",
    "PSF-2.0": r"python software foundation license version 2",
    "CC0-1.0": r"cc0 1\.0 universal",
}  # fmt: skip
"""What each licence says, on one line in small letters."""

POINTER = re.compile(r"under the terms of \*?either\*? of the licenses? found in")
RESTRICTION = re.compile(
    r"can only be used|only be used (?:on|for|with)|field.of.use|commons clause|non-?commercial|business source license"
    r"|server side public license|elastic license|bitcoin sv|shall be used for good"
)

METADATA = {"MIT License": "MIT", "The MIT License (MIT)": "MIT", "Apache 2.0": "Apache-2.0", "ISC License": "ISC",
            "MIT -or- Apache License 2.0": "MIT OR Apache-2.0"}  # fmt: skip
"""What some packages write where an SPDX expression belongs."""


def base_packages() -> list[str]:
    """Names in the base lock."""
    return re.findall(r"^([a-z0-9-]+)==", (ROOT / "requirements/base.lock").read_text(), re.MULTILINE)


def normalize(text: str) -> str:
    """One line, small letters, without comment signs and underlines."""
    return re.sub(r"[\s#*=>]+", " ", text).lower()


def identify(text: str) -> set[str]:
    """The SPDX names of the licences in a text; empty when none is recognized or it restricts the use."""
    line = normalize(text)
    if RESTRICTION.search(line):
        return set()
    return {name for name, pattern in TEXTS.items() if re.search(pattern, line)}


def licence_files(package: str) -> dict[str, str]:
    """Name and text of each licence file of an installed package."""
    found = {}
    for file in metadata.distribution(package).files or []:
        is_licence = re.match(r"(?i)(licen[cs]e|copying)", file.name) and not file.name.endswith((".py", ".pyc"))
        if is_licence and ".dist-info" in file.parts[0]:
            found[str(file)] = file.locate().read_text("utf-8", "replace")
    return found


def is_approved(expression: str) -> bool:
    """Whether an SPDX expression leaves an approved way; AND binds stronger than OR."""
    ways = [[part.strip(" ()") for part in way.split(" AND ")] for way in expression.split(" OR ")]
    return any(all(part in APPROVED or part in EXPLAINED for part in way) for way in ways)


def stated_licence(package: str) -> str:
    """What the metadata says: an SPDX expression, or "" when it only has a text or a classifier."""
    fields = metadata.metadata(package)
    stated = (fields.get("License-Expression") or fields.get("License") or "").strip()
    stated = stated.splitlines()[0].strip() if stated else ""
    return METADATA.get(stated, stated)


@pytest.mark.parametrize("package", base_packages())
def test_a_package_is_under_an_approved_licence(package: str) -> None:
    """Its files are recognized and approved, or leave an approved choice; its metadata doesn't contradict."""
    stated, files = stated_licence(package), licence_files(package)
    if stated:
        assert is_approved(stated), f"{package} says {stated}"
    if not files:
        assert stated, f"{package} says nothing about its licence"
        assert package in WITHOUT_FILE, f"{package} ships no licence file"
        return
    has_choice = " OR " in stated
    for name, text in files.items():
        if POINTER.search(normalize(text)):
            continue
        found = identify(text)
        assert found, f"{name}: not recognized, or restricts the use"
        assert has_choice or found <= APPROVED | EXPLAINED.keys(), f"{name}: {found}"
    everything = set().union(*(identify(text) for text in files.values()))
    assert everything & (APPROVED | EXPLAINED.keys()), f"{package}: none of {everything} is approved"
    if stated:
        named = set(re.findall(r"[A-Za-z0-9][A-Za-z0-9.-]+", stated)) - {"OR", "AND"}
        assert named & everything, f"{package} says {stated}, its files say {everything}"


def test_a_field_of_use_licence_is_not_taken_for_mit() -> None:
    """A text that begins as MIT and then says what the software may be used for isn't approved."""
    grant = "Permission is hereby granted, free of charge, to any person obtaining a copy of this software, subject to the following conditions: "
    assert identify(grant) == {"MIT"}
    assert identify(grant + "3 - The Software can only be used on the Bitcoin SV blockchains.") == set()
    assert identify("All rights reserved.") == set()
    assert not is_approved("Open-BSV-4")
    assert not is_approved("MIT AND Proprietary")
    assert is_approved("CC0-1.0 OR Apache-2.0")


def test_our_own_licence_is_whole() -> None:
    """LICENSE is the Apache License 2.0, and the package says so."""
    assert identify((ROOT / "LICENSE").read_text()) == {"Apache-2.0"}
    assert metadata.metadata("overlayd")["License-Expression"] == "Apache-2.0"
    assert len((ROOT / "LICENSE").read_text()) > 11_000
