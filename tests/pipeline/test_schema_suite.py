"""The official JSON-Schema-Test-Suite, drafts 4 to 2020-12, with what is refused or differs in plain sight."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from overlayd.model.errors import InvalidDefinition, SchemaViolation
from overlayd.model.limits import Limits
from overlayd.pipeline.schema import DEFAULT_DRAFT, CompiledSchema, compile_schema

SUITE = Path(__file__).parent.parent / "data" / "json-schema-suite"
LIMITS = Limits()

# Groups whose schema refers to a document that would have to be fetched. Nothing is fetched, so they are refused.
REMOTE = {
    "dynamicRef": {
        "$ref and $dynamicAnchor are independent of order - $defs first",
        "$ref and $dynamicAnchor are independent of order - $ref first",
        "$ref to $dynamicRef finds detached $dynamicAnchor",
        "strict-tree schema, guards against misspelled properties",
        "tests for implementation dynamic anchor and reference link",
    },
    "refRemote": {
        "$ref to $ref finds detached $anchor",
        "$ref to $ref finds location-independent $id",
        "Location-independent identifier in remote ref",
        "anchor within remote ref",
        "base URI change",
        "base URI change - change folder",
        "base URI change - change folder in subschema",
        "fragment within remote ref",
        "ref within remote ref",
        "remote HTTP ref with different $id",
        "remote HTTP ref with different URN $id",
        "remote HTTP ref with nested absolute ref",
        "remote ref",
        "remote ref with ref to definitions",
        "remote ref with ref to defs",
        "retrieved nested refs resolve relative to their URI not $id",
        "root ref in remote ref",
    },
    "vocabulary": {
        "ignore unrecognized optional vocabulary",
        "schema that uses custom metaschema with with no validation vocabulary",
    },
}

# Formats are asserted here; by default 2020-12 takes them as annotations.
ASSERTED = "string is only an annotation by default"

# Per draft: tests passed, tests of refused groups, tests that differ because formats are asserted.
EXPECTED = {
    "draft4": ("http://json-schema.org/draft-04/schema#", 746, 17, 0),
    "draft6": ("http://json-schema.org/draft-06/schema#", 1020, 23, 0),
    "draft7": ("http://json-schema.org/draft-07/schema#", 1324, 23, 0),
    "draft2019-09": ("https://json-schema.org/draft/2019-09/schema", 1674, 36, 0),
    "draft2020-12": (DEFAULT_DRAFT, 1680, 49, 19),
}


def with_draft(schema: Any, draft: str) -> Any:
    """The schema under its draft's name, which the suite leaves out in older drafts."""
    if isinstance(schema, bool):
        return schema
    return {"$schema": draft, **schema}


def is_fit(compiled: CompiledSchema, value: Any) -> bool:
    """Whether a value fits; one that costs too much fails the test."""
    try:
        compiled.check(value, json.dumps(value).encode())
    except SchemaViolation as err:
        if err.violations[0].code == "schema.cost":
            raise
        return False
    return True


@pytest.mark.parametrize("name", EXPECTED)
def test_the_official_suite(name: str) -> None:
    """Every test passes, is refused for reaching outside, or differs because formats are asserted: counted exactly."""
    draft, *counts = EXPECTED[name]
    passed = refused = differ = 0
    for file, groups in json.loads(gzip.decompress((SUITE / f"{name}.json.gz").read_bytes())).items():
        for group in groups:
            try:
                compiled = compile_schema(with_draft(group["schema"], draft), LIMITS)
            except InvalidDefinition:
                assert group["description"] in REMOTE.get(file, ()), (file, group["description"])
                refused += len(group["tests"])
                continue
            for test in group["tests"]:
                is_valid = is_fit(compiled, test["data"])
                if is_valid == test["valid"]:
                    passed += 1
                else:
                    assert test["description"].endswith(ASSERTED), (file, group["description"], test["description"])
                    differ += 1
    assert [passed, refused, differ] == counts
