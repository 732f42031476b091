"""What streams want: the rules by which their packets' confirmations are told, also those of ranges, which are all streams'."""

from collections.abc import Iterable
from typing import Protocol

import msgspec

from overlayd.model.definition import ConfirmRule, Definition
from overlayd.model.entry import Z32

DEFAULT_DEPTHS = (1,)


class AnyStream(Protocol):
    """What is needed of a stream."""

    @property
    def definition(self) -> Definition: ...

    @property
    def is_deleted(self) -> bool: ...


class Streams(Protocol):
    """What is needed of the log, to know them."""

    @property
    def streams_generation(self) -> int: ...

    def find_stream_by_hash(self, stream_hash: bytes) -> AnyStream | None: ...

    def list_streams(self) -> Iterable[AnyStream]: ...


class TurnRule(msgspec.Struct, frozen=True):
    """How a stream's confirmations are told. `depths` ascend and aren't empty."""

    depths: tuple[int, ...]
    is_in_sequence: bool = True
    is_verbose: bool = False


def turn_rule(rule: ConfirmRule) -> TurnRule:
    """The same, in the form that is used here."""
    depths = tuple(sorted(set(rule.depths))) or DEFAULT_DEPTHS
    return TurnRule(depths, rule.order == "sequence", rule.verbose)


class Rules:
    """The rules of all streams as they are now."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._generation = -1
        self._of_ranges = TurnRule(DEFAULT_DEPTHS)
        self._has_verbose = False

    @property
    def generation(self) -> int:
        """Grows when a stream comes, goes or is defined anew."""
        return self._streams.streams_generation

    def of(self, stream_hash: bytes) -> TurnRule | None:
        """A stream's; Z32: that of ranges. None when it was deleted."""
        if stream_hash == Z32:
            return self.of_ranges()
        stream = self._streams.find_stream_by_hash(stream_hash)
        return None if stream is None or stream.is_deleted else turn_rule(stream.definition.confirm)

    def has_verbose(self) -> bool:
        """Whether any stream wants to be told of everything."""
        self.of_ranges()
        return self._has_verbose

    def of_ranges(self) -> TurnRule:
        """In sequence, at every depth that a stream lists which commits in batches; never verbose."""
        if self._generation != self.generation:
            self._generation = self.generation
            rules = [stream.definition.confirm for stream in self._streams.list_streams()]
            batches = [rule for rule in rules if rule.commit == "batch"]
            depths = {depth for rule in batches for depth in turn_rule(rule).depths}
            self._of_ranges = TurnRule(tuple(sorted(depths)) or DEFAULT_DEPTHS)
            self._has_verbose = any(rule.verbose for rule in rules)
        return self._of_ranges
