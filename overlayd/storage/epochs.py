"""Which epoch a log is in, and whether what was signed before still holds (docs/log-format.md, Epoch and cursor)."""

from itertools import pairwise

import msgspec

from overlayd.model.clock import Entropy
from overlayd.model.cursor import Epoch, epoch_counter, format_epoch, make_epoch
from overlayd.model.errors import LogDamaged, LogInconsistent
from overlayd.storage.files import HighWater

COUNTER_MAX = 8192
"""Beyond it, sequences (63 bits) would run out of room."""


class EpochRow(msgspec.Struct, frozen=True):
    """An epoch that the log has entries of, and the first of them."""

    epoch: Epoch
    first_offset: int


class Loss(msgspec.Struct, frozen=True):
    """The log is shorter than what was signed: a new epoch has to begin."""

    from_epoch: Epoch
    seen: HighWater | None


def ancestry_of(rows: list[EpochRow]) -> list[tuple[Epoch, int]]:
    """(ancestor, last offset in common with it), oldest first. The last row is the current epoch."""
    return [(row.epoch, later.first_offset - 1) for row, later in pairwise(rows)]


def judge_high_water(rows: list[EpochRow], mark: HighWater | None, size: int) -> Loss | int | None:
    """A loss; or the size whose root has to be compared with the mark's; or None when there is nothing to compare."""
    if mark is None:
        return None
    if not rows:
        return Loss(mark.epoch, mark) if mark.size else None
    common = dict(ancestry_of(rows))
    current = rows[-1].epoch
    if mark.epoch == current:
        return Loss(current, mark) if size < mark.size else mark.size
    if mark.epoch in common:
        # A restore that was committed, but not yet followed by a checkpoint: that loss is on record already.
        return mark.size if mark.size <= common[mark.epoch] else None
    return Loss(mark.epoch, mark)


def judge_restore(loss: Loss | None, restored: int | None, rows: list[EpochRow]) -> Loss | None:
    """The loss, a backup's being put in place included: what was signed since may be known to nobody here.

    `restored`: the latest epoch that was known then; None when nothing was restored since the last start.
    """
    if restored is None or not rows:
        return loss
    known = [rows[-1].epoch, Epoch(restored), *([loss.from_epoch] if loss is not None else [])]
    return Loss(max(known, key=epoch_counter), loss.seen if loss is not None else None)


def check_root(mark: HighWater, root: bytes) -> None:
    """Raises LogDamaged when the log isn't the one that was signed."""
    if root != mark.root:
        raise LogDamaged(
            f"the log's root at size {mark.size} is {root.hex()}, but {mark.root.hex()} was signed",
            subject="high-water",
            hint="this directory holds another history than the one signed; restore the right database, "
            "or move it away and start anew",
        )  # fmt: skip


def next_epoch(known: list[Epoch], entropy: Entropy) -> Epoch:
    """Counter 1 + the largest known."""
    counter = 1 + max((epoch_counter(epoch) for epoch in known), default=0)
    if counter > COUNTER_MAX:
        raise LogInconsistent(f"epoch {format_epoch(known[-1])} is the last that fits", subject="epoch")
    return make_epoch(counter, entropy.draw(5))
