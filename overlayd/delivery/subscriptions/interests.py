"""Which subscriptions may want an entry: indexes by stream, then by key, type or topic; equal selections count once."""

from collections.abc import Iterator

from overlayd.delivery.matching import Matcher, PacketView
from overlayd.delivery.query import Selection
from overlayd.delivery.scanning import Judge
from overlayd.delivery.subscriptions.subscription import Subscription
from overlayd.model.names import Pattern

STREAMS_KEPT = 10_000


class Interest:
    """One distinct selection and the subscriptions that have it."""

    __slots__ = ("matcher", "members", "selection")

    def __init__(self, matcher: Matcher) -> None:
        self.matcher = matcher
        self.selection = matcher.selection
        self.members: dict[int, Subscription] = {}

    def __repr__(self) -> str:
        return f"Interest({self.selection!r}, members={len(self.members)})"

    @property
    def judge(self) -> Judge | None:
        """The filter, held by any of the members."""
        return next(iter(self.members.values())).judge if self.members else None

    @property
    def wants_status(self) -> bool:
        return self.selection.deliver != "appended"


class StreamInterests:
    """Everybody who wants something of one stream, by what they look at first."""

    def __init__(self, interests: list[Interest]) -> None:
        self.all = interests
        self.plain: list[Interest] = []
        self.by_key: dict[str, list[Interest]] = {}
        self.by_type: dict[str, list[Interest]] = {}
        self.by_topic: dict[str, list[Interest]] = {}
        for interest in interests:
            if interest.selection.deliver != "confirmed":
                self._place(interest)

    def _place(self, interest: Interest) -> None:
        chosen = interest.selection
        has_plain_topics = bool(chosen.topics) and not any("*" in text or ">" in text for text in chosen.topics)
        for table, words in (
            (self.by_key, chosen.keys), (self.by_type, chosen.types),
            (self.by_topic, chosen.topics if has_plain_topics else ()),
        ):  # fmt: skip
            if words:
                for word in words:
                    table.setdefault(word, []).append(interest)
                return
        self.plain.append(interest)

    def candidates(self, view: PacketView) -> Iterator[Interest]:
        """Those that may want the packet; one may come twice."""
        yield from self.plain
        if self.by_key:
            yield from self.by_key.get(view.meta.key, ())
        if self.by_type:
            yield from self.by_type.get(view.meta.type, ())
        if self.by_topic:
            for topic in view.topics:
                yield from self.by_topic.get(topic, ())


class InterestIndex:
    """All interests of the node."""

    def __init__(self) -> None:
        self._interests: dict[Selection, Interest] = {}
        self._by_name: dict[str, dict[Selection, Interest]] = {}
        self._wild: dict[Selection, Interest] = {}
        self._streams: dict[bytes, StreamInterests] = {}

    def __len__(self) -> int:
        return len(self._interests)

    def add(self, subscription: Subscription) -> None:
        """From now on the subscription is looked out for."""
        chosen = subscription.selection
        interest = self._interests.get(chosen)
        if interest is None:
            interest = self._interests[chosen] = Interest(subscription.matcher)
            for table in self._tables_of(chosen):
                table[chosen] = interest
            self._streams.clear()
        interest.members[subscription.number] = subscription

    def remove(self, subscription: Subscription) -> None:
        """Again does nothing."""
        chosen = subscription.selection
        interest = self._interests.get(chosen)
        if interest is None or interest.members.pop(subscription.number, None) is None or interest.members:
            return
        del self._interests[chosen]
        for table in self._tables_of(chosen):
            table.pop(chosen, None)
        for name in [name for name in chosen.streams if not self._by_name.get(name, True)]:
            del self._by_name[name]
        self._streams.clear()

    def find(self, stream_hash: bytes) -> StreamInterests | None:
        """As `of_stream` gave it last; None when it has to be asked."""
        return self._streams.get(stream_hash)

    def of_stream(self, stream_hash: bytes, name: str) -> StreamInterests:
        """Who wants something of the stream."""
        found = self._streams.get(stream_hash)
        if found is None:
            if len(self._streams) >= STREAMS_KEPT:
                self._streams.clear()
            interests = dict(self._by_name.get(name, {}))
            for chosen, interest in self._wild.items():
                if interest.matcher.is_name_match(name):
                    interests[chosen] = interest
            found = self._streams[stream_hash] = StreamInterests(list(interests.values()))
        return found

    def all(self) -> list[Interest]:
        return list(self._interests.values())

    def _tables_of(self, chosen: Selection) -> list[dict[Selection, Interest]]:
        """Where an interest with these stream patterns is found."""
        patterns = [Pattern(text) for text in chosen.streams]
        tables = [self._by_name.setdefault(pattern.text, {}) for pattern in patterns if pattern.is_exact]
        return tables if patterns and len(tables) == len(patterns) else [*tables, self._wild]
