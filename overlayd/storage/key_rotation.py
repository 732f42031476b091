"""The log's keys, as everybody else sees them."""

from collections.abc import Callable

from overlayd.storage.checkpoints import CheckpointSigner
from overlayd.storage.group import Group
from overlayd.storage.log_keys import KeyRing, LogKeyFacts


class LogKeys:
    """Which keys the log had and has, and how it gets another."""

    def __init__(self, ring: KeyRing, signer: CheckpointSigner) -> None:
        self._ring = ring
        self._signer = signer

    @property
    def vkey(self) -> str:
        """What verifies the checkpoints that are signed now."""
        return self._ring.vkey

    @property
    def trouble(self) -> str:
        """Why checkpoints can't be signed now; "" while they can."""
        return self._signer.trouble

    def facts(self) -> list[LogKeyFacts]:
        """Every key, the first one first."""
        return self._ring.facts()

    async def rotate(self, tell: Callable[[Group, str], None] = lambda group, vkey: None) -> LogKeyFacts:
        """Changes the log's key; gives the new one, which signs alone from here on. As `CheckpointSigner.rotate`."""
        await self._signer.rotate(tell)
        return self._ring.facts()[-1]
