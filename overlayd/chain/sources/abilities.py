"""What a source can do, declared by itself, and the Protocol that all of them share."""

from enum import StrEnum
from typing import Protocol

from overlayd.bsv.network import Network
from overlayd.chain.sources.health import SourceHealth


class Ability(StrEnum):
    """One thing that may be asked of a source."""

    SUBMIT = "submit"
    """Broadcasts transactions."""
    STATUS = "status"
    """Tells what became of a transaction."""
    PROOFS = "proofs"
    """Proves that a transaction is mined, along with its status."""
    RAW = "raw"
    """Gives the bytes of transactions."""
    HEADERS = "headers"
    """Lists the best chain's headers."""
    POLICY = "policy"
    """Tells its fee and its largest transaction."""
    EVENTS = "events"
    """Tells what happens as it happens."""


class RemoteSource(Protocol):
    """Somebody who is asked about the chain. Which methods of the model's Protocols it has follows from `abilities`."""

    @property
    def name(self) -> str: ...

    @property
    def abilities(self) -> frozenset[Ability]: ...

    @property
    def health(self) -> SourceHealth: ...

    async def is_on(self, network: Network) -> bool | None:
        """Whether it answers for that network; None when it can't be asked. A checkpoint. Raises SourceUnavailable."""
        ...
