"""A cache that is bounded by what it holds, in bytes."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class ByteBounded(Generic[K, V]):
    """Forgets the oldest values when the sum of their costs passes the capacity.

    First in, first out: readers at the head all want the newest ones, and a reader far behind walks away
    from what it used. A value that costs more than the capacity isn't kept.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        # A plain dict looks for its first member among all the places of those that left.
        self._values: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._bytes = 0

    def get(self, key: K) -> V | None:
        found = self._values.get(key)
        return None if found is None else found[0]

    def put(self, key: K, value: V, cost_bytes: int) -> None:
        """A key that is there already keeps its value."""
        if cost_bytes > self._capacity_bytes or key in self._values:
            return
        self._values[key] = (value, cost_bytes)
        self._bytes += cost_bytes
        while self._bytes > self._capacity_bytes:
            _, (_, oldest_bytes) = self._values.popitem(last=False)
            self._bytes -= oldest_bytes

    def clear(self) -> None:
        self._values.clear()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._values)

    @property
    def bytes(self) -> int:
        """Sum of the costs."""
        return self._bytes
