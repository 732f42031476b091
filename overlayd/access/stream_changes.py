"""Making, changing and deleting streams for somebody: each act in one transaction with its audit record."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

from overlayd.access.audit import AuditTrail
from overlayd.access.key_changes import Author
from overlayd.access.key_records import drop_owner, store_owner
from overlayd.access.stream_guard import StreamGuard
from overlayd.model.definition import Definition
from overlayd.model.draft import StreamStateName
from overlayd.model.errors import OwnedByConfig, UnderHold
from overlayd.storage import Log, Stream
from overlayd.storage.definitions import Unchanged
from overlayd.storage.group import Group
from overlayd.storage.own import append_own


class StreamChanges:
    """What may be done to streams through the API. Whether the author may is asked before."""

    def __init__(
        self, *, log: Log, streams: StreamGuard, trail: AuditTrail, on_change: Callable[[], None] = lambda: None
    ) -> None:
        """`on_change`: called after something changed that live readers were let in by."""
        self._log = log
        self._streams = streams
        self._trail = trail
        self._on_change = on_change
        self.declared_at: Callable[[str], str] = lambda name: ""
        """File and line of a stream that the configuration declares; the daemon sets it."""

    async def define(
        self, name: str, definition: Definition, *, if_version: int | None, author: Author
    ) -> tuple[Stream, bool]:
        """As `Log.define_stream`. A new stream belongs to the author's owner, if their scopes say so. Checkpoint."""
        streams, who = self._streams, author.principal
        is_owned = streams.may_own(who, name) and self._log.find_stream(name) is None

        def along(group: Group, is_new: bool) -> None:
            record = author.record(
                "stream.create" if is_new else "stream.define", name, visibility=definition.visibility
            )
            append_own(group, [self._trail.packet(record)])
            if is_new and is_owned:
                group.statements.append(store_owner(name, who.owner))
                group.on_adopt(lambda: streams.own(name, who.owner))
            elif is_new and name in streams.owners:  # of a stream that had the name before
                group.statements.append(drop_owner(name))
                group.on_adopt(lambda: streams.disown(name))

        with self._naming_place(name):
            defined = await self._log.define_stream(
                name, definition, if_version=if_version, principal=who.name, along=along
            )
        self._on_change()
        return defined

    async def set_state(self, name: str, state: StreamStateName, author: Author) -> Stream:
        """As `Log.set_stream_state`. Checkpoint."""
        packet = self._trail.packet(author.record("stream.state", name, state=state))
        return await self._log.set_stream_state(name, state, own=[packet])

    async def delete(self, name: str, author: Author, only: Unchanged | None = None) -> int:
        """As `Log.delete_stream`: the record goes in before anything is taken away. Checkpoint."""
        packet = self._trail.packet(author.record("stream.delete", name))
        try:
            with self._naming_place(name):
                removed = await self._log.delete_stream(name, own=[packet], only=only)
        except UnderHold:
            await self._trail.write(
                msgspec.structs.replace(author.record("stream.delete", name, reason="held"), result="refused")
            )
            raise
        if name in self._streams.owners:
            await self._log.append_own([], [drop_owner(name)], lambda: self._streams.disown(name))
        self._on_change()
        return removed

    @contextmanager
    def _naming_place(self, name: str) -> Iterator[None]:
        """Tells where a stream is declared to whom it is refused for that."""
        try:
            yield
        except OwnedByConfig as error:
            place = self.declared_at(name)
            if not place:
                raise
            raise OwnedByConfig(
                f"{name} is declared at {place}", subject=name, hint=error.hint, extra={"declared_in": place}
            ) from error
