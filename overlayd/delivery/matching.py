"""Which entries a selection wants: streams first, then type, key and topic. Filters come after, in the reader.

Equal selections share one matcher, an entry's meta is decoded once for everybody.
"""

from collections.abc import Callable, Iterable
from functools import partial

import msgspec

from overlayd.access.stream_guard import StreamGuard
from overlayd.delivery.caching import ByteBounded
from overlayd.delivery.query import Selection, TopicPattern
from overlayd.model.entry import StoredEntry
from overlayd.model.errors import BadParameter
from overlayd.model.meta import Meta, decode_meta
from overlayd.model.names import Pattern
from overlayd.storage import Log, Stream

_HASHES_MAX = 4096
_MATCHERS_MAX = 512
_EVERYTHING = (Pattern(">"),)
InSight = Callable[[Selection, Stream], bool]
"""Whether whoever has the selection may see the stream now."""
_decode_topics = msgspec.json.Decoder(tuple[str, ...]).decode


class PacketView(msgspec.Struct, frozen=True, gc=False):
    """A packet's entry with its meta decoded. `topics`: the definition's, then the packet's, without repeats."""

    entry: StoredEntry
    stream: str
    meta: Meta
    topics: tuple[str, ...]


def view_packet(entry: StoredEntry, stream: str) -> PacketView:
    """The view of a packet entry that isn't reduced. Raises VerificationFailed for meta that nobody wrote."""
    meta = decode_meta(entry.meta)
    topics: tuple[str, ...] = ()
    if meta.definition_topics or meta.topics:
        named: Iterable[str] = ()
        for text in (meta.definition_topics, meta.topics):
            if text:
                named = (*named, *_decode_topics(text))
        topics = tuple(dict.fromkeys(named))
    return PacketView(entry, stream, meta, topics)


class ViewBook:
    """Views of the entries that were looked at last."""

    def __init__(self, capacity_bytes: int) -> None:
        self._views: ByteBounded[int, PacketView] = ByteBounded(capacity_bytes)

    def view(self, entry: StoredEntry, stream: str) -> PacketView:
        """As `view_packet`. The entry in hand decides: what was taken away is never found again in here."""
        assert not entry.is_reduced
        found = self._views.get(entry.offset)
        if found is None or found.entry.leaf != entry.leaf:
            found = view_packet(entry, stream)
            self._views.put(entry.offset, found, 2000 + len(entry.body) + 2 * len(entry.meta))
        return found

    def clear(self) -> None:
        self._views.clear()


class Matcher:
    """A selection, made quick. Shared by all readers of the selection."""

    def __init__(
        self, selection: Selection, find_by_hash: Callable[[bytes], Stream | None], in_sight: InSight | None = None
    ) -> None:
        """`in_sight`: for a selection with a sight, which may change with each definition of a stream."""
        self.selection = selection
        patterns = tuple(Pattern(text) for text in selection.streams) or _EVERYTHING
        self._exact = frozenset(pattern.text for pattern in patterns if pattern.is_exact)
        self._wild = tuple(pattern for pattern in patterns if not pattern.is_exact)
        self._topics = tuple(TopicPattern(text) for text in selection.topics)
        self._find_by_hash = find_by_hash
        self._by_hash: dict[bytes, Stream | None] = {}
        self._in_sight = in_sight

    def is_name_match(self, name: str) -> bool:
        return name in self._exact or any(pattern.is_match(name) for pattern in self._wild)

    def is_stream_match(self, stream: Stream) -> bool:
        """By its name, and whether it may be seen."""
        return self.is_name_match(stream.name) and (self._in_sight is None or self._in_sight(self.selection, stream))

    @property
    def exact_names(self) -> frozenset[str] | None:
        """The streams' names when no pattern could add any, else None."""
        return None if self._wild else self._exact

    def find_stream(self, stream_hash: bytes) -> Stream | None:
        """The stream if the selection covers it, None otherwise. A deleted stream is still covered by its name."""
        try:
            found = self._by_hash[stream_hash]
        except KeyError:
            found = self._look_up(stream_hash)
        if found is None or self._in_sight is None or self._in_sight(self.selection, found):
            return found
        return None

    def _look_up(self, stream_hash: bytes) -> Stream | None:
        """By the name alone."""
        stream = self._find_by_hash(stream_hash)
        if stream is None:
            return None  # not remembered: it may come
        if len(self._by_hash) >= _HASHES_MAX:
            self._by_hash.clear()
        found = stream if self.is_name_match(stream.name) else None
        self._by_hash[stream_hash] = found
        return found

    def is_view_match(self, view: PacketView) -> bool:
        """Type, key and topic; the stream was judged before."""
        chosen = self.selection
        if chosen.types and view.meta.type not in chosen.types:
            return False
        if chosen.keys and view.meta.key not in chosen.keys:
            return False
        if not self._topics:
            return True
        return any(pattern.is_match(topic) for topic in view.topics for pattern in self._topics)


class MatcherBook:
    """One matcher per distinct selection; the oldest are forgotten, those in use stay with their readers."""

    def __init__(self, log: Log, streams: StreamGuard | None = None) -> None:
        """`streams`: None where everybody may see everything."""
        self._log = log
        self._streams = streams
        self._matchers: dict[Selection, Matcher] = {}

    def matcher(self, selection: Selection) -> Matcher:
        found = self._matchers.get(selection)
        if found is None:
            if len(self._matchers) >= _MATCHERS_MAX:
                del self._matchers[next(iter(self._matchers))]
            found = self._matchers[selection] = self._make(selection)
        return found

    def _make(self, selection: Selection) -> Matcher:
        if selection.sight is None:
            return Matcher(selection, self._log.find_stream_by_hash)
        assert self._streams is not None
        return Matcher(selection, self._log.find_stream_by_hash, partial(_is_in_sight, self._streams))


def _is_in_sight(streams: StreamGuard, selection: Selection, stream: Stream) -> bool:
    return selection.sight is None or streams.sees(selection.sight, stream)


def depth_of(selection: Selection, stream: Stream) -> int | None:
    """The number of confirmations at which the stream's packets are delivered, None when they never are."""
    rule = stream.definition.confirm
    if rule.commit == "none" or not rule.depths:
        return None
    if selection.min_confirmations is None:
        return min(rule.depths)
    return selection.min_confirmations if selection.min_confirmations in rule.depths else None


def check_confirmations(matcher: Matcher, log: Log) -> list[str]:
    """Names of the streams under a pattern that will never confirm a packet as asked, ascending.

    Raises BadParameter for a stream that is asked for by its own name and never will.
    """
    selection = matcher.selection
    if selection.deliver == "appended":
        return []
    never = []
    for stream in log.list_streams():
        if not matcher.is_stream_match(stream) or depth_of(selection, stream) is not None:
            continue
        if stream.name in selection.streams:
            _refuse_confirmations(selection, stream)
        never.append(stream.name)
    return sorted(never)


def _refuse_confirmations(selection: Selection, stream: Stream) -> None:
    rule = stream.definition.confirm
    if rule.commit == "none":
        if selection.deliver == "both":
            return
        raise BadParameter(
            f"{stream.name} commits nothing to a chain (confirm.commit is none), so none of its packets will ever be "
            "confirmed", subject="deliver", hint="use deliver=appended",
        )  # fmt: skip
    depths = ", ".join(str(depth) for depth in sorted(rule.depths))
    raise BadParameter(
        f"{stream.name} announces confirmations at {depths or 'no depth'} only, not at {selection.min_confirmations}",
        subject="min_confirmations", extra={"depths": sorted(rule.depths)},
    )  # fmt: skip
