"""Tests of real processes wait in one place; nothing else in tests/ lets real time pass."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
PASSING = re.compile(r"time\.sleep\(|Event\(\)\.wait\(|select\(\[\], \[\], \[\]|perf_counter\(\)")
ELSEWHERE = {
    "real_waiting.py",  # the place
    "data/make_schema_fixture.py",  # no test: it makes a test's data
    "storage/test_backup_runner.py",  # the text of a program that doesn't end by itself
}


def test_only_one_place_lets_real_time_pass() -> None:
    """What depends on how long something takes fails on another machine."""
    found = {
        str(path.relative_to(TESTS))
        for path in TESTS.rglob("*.py")
        if path != Path(__file__) and PASSING.search(path.read_text())
    }
    assert found <= ELSEWHERE
