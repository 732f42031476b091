"""What is left in memory of objects that nobody needs any more, before the collector comes by."""

import gc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def nothing_left_of(*kinds: type) -> Iterator[None]:
    """After the block there are no more objects of the classes than before it, with the collector standing still."""
    gc.collect()
    before = _count(kinds)
    gc.disable()
    try:
        yield
        assert _count(kinds) - before == Counter()
    finally:
        gc.enable()


def _count(kinds: tuple[type, ...]) -> Counter[str]:
    return Counter(type(one).__name__ for one in gc.get_objects() if type(one) in kinds)
