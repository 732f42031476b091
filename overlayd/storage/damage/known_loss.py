"""Losses that are on record: how a mended log says what it lost, and how rows are told from those."""

from collections.abc import Iterable

import msgspec

from overlayd.model.definition import decode_definition
from overlayd.model.entry import ENTRY_BYTES, SALT_BYTES, stream_hash_of
from overlayd.model.errors import OverlaydError

LOST_FACT = "lost"
"""In the table `state`: JSON of the runs of offsets that are known to be lost, whole or in their content."""
RESTORED_FACT = "restored"
"""There, from a restore or a mending to the next start: the latest epoch that was known then."""
NO_ENTRY = bytes(ENTRY_BYTES)
"""In the column `e`, where nothing but the leaf is left of an entry. It is no entry's E, so it is never served."""
HOLLOW = b""
"""In the column `sealed`: the content is lost, which isn't the same as taken away."""

Runs = list[tuple[int, int]]


def read_runs(text: object) -> Runs:
    """Runs as the table `state` holds them; none for anything else."""
    try:
        return msgspec.json.decode(text if isinstance(text, str) else "[]", type=Runs)
    except msgspec.DecodeError:
        return []


def join_runs(runs: Iterable[tuple[int, int]]) -> Runs:
    """Ascending, and joined where they touch or overlap."""
    joined: Runs = []
    for low, high in sorted(runs):
        if joined and low <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(joined[-1][1], high))
        else:
            joined.append((low, high))
    return joined


def is_in_runs(runs: Runs, offset: int) -> bool:
    """Few runs are expected; they are looked at one by one."""
    return any(low <= offset <= high for low, high in runs)


def is_stream_row(name: object, stream_hash: bytes, ssalt: bytes, definition: bytes) -> bool:
    """Whether a row of the table of streams hangs together: its hash is that of its name."""
    try:
        decode_definition(definition)
        return isinstance(name, str) and len(ssalt) == SALT_BYTES and stream_hash_of(ssalt, name) == stream_hash
    except (msgspec.DecodeError, ValueError, OverlaydError):
        return False
