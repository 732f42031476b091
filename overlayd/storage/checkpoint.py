"""What a checkpoint is to the rest of the node."""

import msgspec

from overlayd.model.cursor import Epoch


class Checkpoint(msgspec.Struct, frozen=True):
    """A signed statement of the log's size and root. `note` is the C2SP text."""

    epoch: Epoch
    size: int
    root: bytes
    note: str
