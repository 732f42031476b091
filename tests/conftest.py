"""What all tests share: property tests that no busy machine can fail, and files that leave nothing open."""

import gc
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from late_threads import make_late
from patient_clock import patient_clock as patient
from trio.testing import MockClock

# A machine that is busy with other things makes single examples slow; that says nothing about the code. The quick tests try
# the same examples each time, so that a change fails by what it changed; OVERLAYD_EXPLORE=1, and the slow set, try new ones.
settings.register_profile("steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("exploring", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("exploring" if os.environ.get("OVERLAYD_EXPLORE") else "steady")


@pytest.fixture(scope="session", autouse=True)
def late_threads() -> Iterator[None]:
    """Makes threads late for the whole run where that is asked for."""
    with pytest.MonkeyPatch.context() as patch:
        if most_s := os.environ.get("OVERLAYD_LATE_THREADS"):
            make_late(patch, float(most_s))
        yield


@pytest.fixture
def autojump_clock() -> Iterator[MockClock]:
    """In place of pytest-trio's: time jumps as soon as everybody waits, but not while a thread is at work."""
    with patient(0) as clock:
        yield clock


@pytest.fixture
def patient_clock() -> Iterator[MockClock]:
    """Time jumps when nobody has anything to do, but not while bytes or a thread are on their way."""
    with patient() as clock:
        yield clock


def pytest_collection_finish() -> None:
    """What was imported and collected stays to the end: no collection of garbage need look at it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def leaves_nothing_open() -> Iterator[None]:
    """Collects garbage behind a module's other fixtures, so that a socket nobody closed fails the last test of the file
    that left it open, and not one of a later file that happens to collect it."""
    yield
    gc.collect()
