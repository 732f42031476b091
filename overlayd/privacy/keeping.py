"""The tasks about people and erasure, kept alive."""

import random
from functools import partial

import trio

from overlayd.model.metrics import Metrics
from overlayd.model.supervise import supervise
from overlayd.privacy.erasures import Erasures
from overlayd.privacy.people import People
from overlayd.storage import Log


async def keep_privacy(
    people: People, erasures: Erasures, log: Log, metrics: Metrics, chance: random.Random,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:  # fmt: skip
    """Follows the log for the index of subjects, links older entries with what they were made from, and carries erasures
    out, until cancelled. Started once every erasure that was cut short by the last stop was tried."""
    crashes = metrics.counter("overlayd_privacy_crashes", "Tasks about people and erasure that a fault ended", "task")

    def note_crash(name: str) -> None:
        crashes.labels(name).inc()

    async with trio.open_nursery() as nursery:
        await erasures.resume()
        task_status.started()
        tasks = (("subjects", people.subjects.run), ("links", log.erasing.older.keep), ("erasures", erasures.run))
        for name, run in tasks:
            nursery.start_soon(partial(supervise, name, run, chance=chance, on_crash=note_crash))
