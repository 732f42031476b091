"""Which selections want an entry, found without asking each of them.

Selections stand on a shelf per stream, and on it by what they ask for most narrowly: keys, types, plain topics. What
is found still has to be judged in full; what isn't found can't match.
"""

from collections.abc import Collection, Iterable
from typing import Generic, Protocol, TypeVar

from overlayd.delivery.matching import Matcher, ViewBook
from overlayd.model.entry import Z32, Kind, StoredEntry
from overlayd.model.errors import VerificationFailed
from overlayd.storage import Log

_SHELVES_MAX = 4096


class Shelved(Protocol):
    """What wants entries."""

    @property
    def matcher(self) -> Matcher: ...


C = TypeVar("C", bound=Shelved)


class _Shelf(Generic[C]):
    """Everybody who wants something of one stream."""

    __slots__ = ("by_key", "by_topic", "by_type", "every", "name", "others", "statuses")

    def __init__(self, name: str, members: Iterable[C]) -> None:
        self.name = name
        self.every = tuple(members)
        self.statuses: list[C] = []
        self.by_key: dict[str, list[C]] = {}
        self.by_type: dict[str, list[C]] = {}
        self.by_topic: dict[str, list[C]] = {}
        self.others: list[C] = []
        for one in self.every:
            chosen = one.matcher.selection
            if chosen.status or chosen.deliver != "appended":
                self.statuses.append(one)
            if chosen.deliver == "confirmed":
                continue
            if chosen.keys:
                _put(self.by_key, chosen.keys, one)
            elif chosen.types:
                _put(self.by_type, chosen.types, one)
            elif chosen.topics and not any("*" in topic or ">" in topic for topic in chosen.topics):
                _put(self.by_topic, chosen.topics, one)
            else:
                self.others.append(one)

    @property
    def has_details(self) -> bool:
        return bool(self.by_key or self.by_type or self.by_topic)


class Shelves(Generic[C]):
    """All selections that follow the head."""

    def __init__(self, log: Log, views: ViewBook) -> None:
        self._log = log
        self._views = views
        self._by_name: dict[str, dict[C, None]] = {}
        self._wild: dict[C, None] = {}
        self._shelves: dict[bytes, _Shelf[C]] = {}
        self._hashes: dict[str, list[bytes]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        return f"Shelves(selections={self._count}, streams={len(self._shelves)})"

    def add(self, one: C) -> None:
        """From the next entry on it is found."""
        names = one.matcher.exact_names
        if names is None:
            self._wild[one] = None
            self._clear()
        else:
            for name in names:
                self._by_name.setdefault(name, {})[one] = None
                self._forget(name)
        self._count += 1

    def remove(self, one: C) -> None:
        """It isn't found any more. Once."""
        names = one.matcher.exact_names
        if names is None:
            del self._wild[one]
            self._clear()
        else:
            for name in names:
                del self._by_name[name][one]
                if not self._by_name[name]:
                    del self._by_name[name]
                self._forget(name)
        self._count -= 1

    def every(self) -> list[C]:
        """All of them."""
        found = dict(self._wild)
        for named in self._by_name.values():
            found.update(named)
        return list(found)

    def find(self, entry: StoredEntry) -> Collection[C]:
        """Those that may want the entry; each once."""
        if entry.kind == Kind.STATUS and entry.stream_hash == Z32:
            return [one for one in self.every() if _wants_statuses(one)]
        if entry.kind not in (Kind.PACKET, Kind.STATUS, Kind.REMOVAL):
            return ()
        shelf = self._shelves.get(entry.stream_hash) or self._build(entry.stream_hash)
        if shelf is None or not shelf.every:
            return ()
        if entry.kind == Kind.STATUS:
            return shelf.statuses
        if entry.kind == Kind.REMOVAL or entry.is_reduced:
            return shelf.every
        return self._find_by_details(shelf, entry) if shelf.has_details else shelf.others

    def _find_by_details(self, shelf: _Shelf[C], entry: StoredEntry) -> Collection[C]:
        try:
            view = self._views.view(entry, shelf.name)
        except VerificationFailed:
            return shelf.every  # each is told of the damage
        found = dict.fromkeys(shelf.others)
        meta = view.meta
        found.update(dict.fromkeys(shelf.by_key.get(meta.key, ())))
        found.update(dict.fromkeys(shelf.by_type.get(meta.type, ())))
        if shelf.by_topic:
            for topic in view.topics:
                found.update(dict.fromkeys(shelf.by_topic.get(topic, ())))
        return found

    def _build(self, stream_hash: bytes) -> _Shelf[C] | None:
        stream = self._log.find_stream_by_hash(stream_hash)
        if stream is None:
            return None  # not remembered: it may come
        name = stream.name
        members = dict(self._by_name.get(name, ()))
        members.update(dict.fromkeys(one for one in self._wild if one.matcher.is_name_match(name)))
        if len(self._shelves) >= _SHELVES_MAX:
            self._clear()
        shelf = self._shelves[stream_hash] = _Shelf(name, members)
        self._hashes.setdefault(name, []).append(stream_hash)
        return shelf

    def _forget(self, name: str) -> None:
        for stream_hash in self._hashes.pop(name, ()):
            self._shelves.pop(stream_hash, None)

    def _clear(self) -> None:
        self._shelves.clear()
        self._hashes.clear()


def _put(places: dict[str, list[C]], names: Iterable[str], one: C) -> None:
    for name in names:
        places.setdefault(name, []).append(one)


def _wants_statuses(one: Shelved) -> bool:
    chosen = one.matcher.selection
    return chosen.status or chosen.deliver != "appended"
