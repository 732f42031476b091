"""What tests of telemetry share."""

from collections.abc import Iterator

import pytest
from patient_clock import patient_clock as patient
from trio.testing import MockClock


@pytest.fixture
def patient_clock() -> Iterator[MockClock]:
    """Time jumps when nobody has anything to do, but not while bytes or a thread are on their way."""
    with patient() as clock:
        yield clock
