"""For logs whose wall clock stands still, or moves only when the test says so."""

from overlayd.model.units import Duration

NO_STEP = Duration(365 * 86_400)
"""`clock_step` of such a log: real time that passes between two looks, because the machine held the test up, would be a
step of the clock, and an entry in the log that no test counts on."""
