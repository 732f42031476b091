"""Every durable subscription of the node: made, changed, moved, deleted; read back at the start."""

import base64
from collections.abc import Callable, Mapping, Sequence

import msgspec
import structlog
import trio
from blake3 import blake3

from overlayd.delivery.delivery import FilterLease, LeaseFilter
from overlayd.delivery.matching import check_confirmations
from overlayd.delivery.query import At, Beginning, Now, Selection
from overlayd.delivery.subscriptions import tables
from overlayd.delivery.subscriptions.deciding import Decision
from overlayd.delivery.subscriptions.definition import (
    Asked,
    CheckWebhook,
    ParseQuery,
    Start,
    is_id,
    judge,
)
from overlayd.delivery.subscriptions.engine import Engine
from overlayd.delivery.subscriptions.ledger import Ledger
from overlayd.delivery.subscriptions.letters import unit_of
from overlayd.delivery.subscriptions.reviving import common_of, due_of, ledger_rules
from overlayd.delivery.subscriptions.rounds import write_whole
from overlayd.delivery.subscriptions.storing import (
    Deletion,
    has_plain_values,
    insert_statements,
    joined,
    place_statements,
    put_statements,
    stored_selection,
    with_values,
)
from overlayd.delivery.subscriptions.subscription import (
    Created,
    Reading,
    Subscription,
    for_endpoint,
    in_state,
    rules_of,
    sought,
)
from overlayd.delivery.subscriptions.tables import Rest, State, StoredSubscription
from overlayd.delivery.subscriptions.tags import IfMatch, SubscriptionTags
from overlayd.model.clock import Entropy
from overlayd.model.cursor import Cursor
from overlayd.model.errors import (
    BadParameter,
    InvalidSubscription,
    LimitReached,
    OverlaydError,
    OwnedByConfig,
    SealBroken,
    SubscriptionConflict,
    UnknownEpoch,
    UnknownSubscription,
    Violation,
)
from overlayd.model.outlet import HeaderKeeper, SecretKeeper, Statements
from overlayd.model.subscription import SubscriptionDefinition, decode_subscription
from overlayd.storage.own import OwnPacket

ID_BYTES = 10
API = "api"
Tell = Callable[[Subscription], OwnPacket]
"""Makes what the audit is told of a change, for its transaction."""
_log = structlog.get_logger("delivery.subscriptions")


class SubscriptionBook:
    """All of them, by id and name. Changes are made one after the other; what they give is durable, together with what
    `tell` makes of it."""

    def __init__(
        self, engine: Engine, *, entropy: Entropy, lease_filter: LeaseFilter, check_webhook: CheckWebhook,
        secrets: Mapping[str, SecretKeeper], headers: HeaderKeeper,
    ) -> None:  # fmt: skip
        """`secrets`: who keeps the secrets of a kind of subscription; `headers`: who keeps the values of headers."""
        self.engine = engine
        self.parse_query: ParseQuery = engine.delivery.parse_message
        self.check_webhook = check_webhook
        self._entropy = entropy
        self.tags = SubscriptionTags(entropy)
        self._lease_filter = lease_filter
        self._secrets = secrets
        self._headers = headers
        self._log = engine.delivery.log
        self._limits = engine.delivery.limits
        self._clock = engine.delivery.clock
        self._by_id: dict[str, Subscription] = {}
        self._by_name: dict[str, Subscription] = {}
        self._leases: dict[int, FilterLease] = {}
        self.on_redefined: Callable[[Subscription], None] = lambda subscription: None
        self._changing = trio.Lock()
        self._last_number = 0

    def __repr__(self) -> str:
        return f"SubscriptionBook(subscriptions={len(self._by_id)})"

    def __len__(self) -> int:
        return len(self._by_id)

    def find(self, text: str) -> Subscription:
        """By its id or its name. Raises UnknownSubscription."""
        found = self._by_id.get(text) or self._by_name.get(text)
        if found is None:
            raise UnknownSubscription(f"there is no subscription {text[:80]!r}", subject=text[:80])
        return found

    def all(self) -> list[Subscription]:
        """By name."""
        return [self._by_name[name] for name in sorted(self._by_name)]

    async def load(self) -> None:
        """Reads everything back, before anything runs. Checkpoint."""
        loaded = await self._log.read(tables.load)
        self._last_number, self.engine.last_dead_id = loaded.last_number, loaded.last_dead_id
        position = loaded.position
        is_position_ours = position is not None and position.epoch == self._log.epoch
        if position is not None and is_position_ours:
            self.engine.rounds.stored_position = position
        headers = await self._headers.open_all()
        plain: list[Subscription] = []
        for stored in loaded.subscriptions:
            subscription = self._revive(stored, position, headers.get(stored.id))
            if stored.id not in headers and has_plain_values(subscription.definition):
                plain.append(subscription)
            subscription.dead_letters = loaded.dead_counts.get(stored.number, 0)
            self._enter(subscription)
        if any(subscription.is_tracked for subscription in self._by_id.values()):
            assert position is not None
            self.engine.dispatcher.begin_at(min(position.offset, self._log.head))
        now = trio.current_time()
        for letter in loaded.queued:
            owner = self.engine.subscriptions.get(letter.number)
            if owner is not None:
                owner.dead_queued[letter.id] = letter
                owner.ledger.add_dead(unit_of(letter), now)
        for subscription in plain:  # as earlier versions left them
            await self._log.write(put_statements(subscription, subscription.definition, self._headers))
        for subscription in self._by_id.values():
            self.engine.wake(subscription)

    async def create(
        self, asked: Asked, reading: Reading, owner: str = API, *, tell: Tell | None = None
    ) -> Created:  # fmt: skip
        """A new subscription, active at once. Checkpoint.

        Raises SubscriptionConflict for a name that is taken, LimitReached, InvalidFilter, InvalidSubscription,
        BadCursor, FutureCursor, UnknownEpoch, and as `Log.write`.
        """
        async with self._changing:
            definition = asked.definition
            self._check_room(definition, reading)
            matcher = self.engine.delivery.matcher(asked.selection)
            try:
                never = check_confirmations(matcher, self._log)
            except BadParameter as err:
                raise InvalidSubscription(
                    err.detail, violations=[Violation(f"/{err.subject}", "subscription.member", err.detail)]
                ) from err
            number, id = self._last_number + 1, self._draw_id()
            lease = self._lease(asked.selection, reading)
            try:
                floor = await self._place(asked.start, asked.selection)
                rest = Rest(start=floor.offset)
                secret, statements = self._make_secret(definition, id, asked.secret)
                subscription = self._build(
                    number, id, owner, reading, self._clock.now_us(), definition, asked.selection, rest,
                    Ledger(floor, **ledger_rules(rules_of(definition), self._limits)),
                )  # fmt: skip
                own = _told(tell, subscription)
                await write_whole(self._log, insert_statements(subscription, floor, self._headers, statements), own)
            except BaseException:
                if lease is not None:
                    lease.release()
                raise
            self._last_number = number
            self._keep_lease(subscription, lease)
            self._enter(subscription)
            self.engine.wake(subscription)
            return Created(subscription, secret, never)

    async def patch(
        self, subscription: Subscription, asked: Asked, *, tell: Tell | None = None, if_match: IfMatch = None
    ) -> None:  # fmt: skip
        """Gives it another definition; where it stands, and what is outstanding, stays. Checkpoint. Raises OwnedByConfig,
        SubscriptionConflict for one that has none of the tags `if_match`, and as `create`."""
        async with self._changing:
            self.check_ours(subscription, if_match)
            await self._redefine(subscription, asked, own=_told(tell, subscription))

    async def declare(self, asked: Asked, reading: Reading, place: str) -> None:
        """A subscription of the configuration: made, or brought in line. Checkpoint. Raises as `create`."""
        digest = blake3(asked.secret.encode()).hexdigest() if asked.secret else ""
        present = self._by_name.get(asked.definition.name)
        if present is None:
            present = (await self.create(asked, reading, place)).subscription
            present.change(declared=digest)
            await self.engine.rounds.mark(present).wait_or_raise()
            return
        async with self._changing:
            if present.definition.kind != asked.definition.kind:
                raise SubscriptionConflict(
                    f"{present.name} is of kind {present.definition.kind}; the kind of a subscription stays",
                    subject=present.name, hint="delete it first, or choose another name",
                )  # fmt: skip
            keeper, rotate = self._secrets.get(present.definition.reached_by), None
            if keeper is not None and digest not in ("", present.rest.declared):
                _, rotate = keeper.rotate(present.id, asked.secret)
            await self._redefine(present, asked, owner=place, reading=reading, rotate=rotate)
            if rotate is not None:
                present.change(declared=digest)
                await self.engine.rounds.mark(present).wait_or_raise()

    async def release(self, subscription: Subscription) -> None:
        """The configuration declares it no more: from now on the API may change it. Checkpoint."""
        async with self._changing:
            await write_whole(
                self._log, put_statements(subscription, subscription.definition, self._headers, owner=API)
            )
            subscription.owner = API

    async def delete(
        self, subscription: Subscription, *, tell: Tell | None = None, if_match: IfMatch = None
    ) -> None:  # fmt: skip
        """Takes it away with everything it left behind; `tell` goes in with the first that is taken. Checkpoint. Raises
        OwnedByConfig, SubscriptionConflict as `patch`, and as `Log.write`."""
        async with self._changing:
            self.check_ours(subscription, if_match)
            dead_letters, subscription.is_gone = subscription.dead_letters, True
            try:
                await self.engine.halt(subscription)
                subscription.ring()
                await self.engine.rounds.mark(subscription).wait_or_raise()  # an older one would put rows back
                keeper = self._secrets.get(subscription.definition.reached_by)
                forget = None if keeper is None else keeper.forget(subscription.id)
                slices = Deletion(subscription, self._headers, forget)
                own = _told(tell, subscription)
                while not slices.is_over:
                    await write_whole(self._log, slices.write, own)
                    subscription.forget_letters(slices.letters)
                    own = []
            except BaseException:
                subscription.is_gone = False
                if subscription.dead_letters != dead_letters:
                    self._succeed(subscription)
                self.engine.wake(subscription)
                self.engine.rounds.mark(subscription)  # rounds passed over it meanwhile
                raise
            self._leave(subscription)

    async def set_state(self, subscription: Subscription, state: State, *, tell: Tell | None = None) -> None:
        """Pauses it, or goes on. What is in flight ends as it ends. Checkpoint. Raises StorageFull."""
        shop = self.engine.shop

        def follow() -> None:
            subscription.set_state(state)
            if state == "active":
                self.engine.wake(subscription)
            else:
                shop.usage.close(subscription, state)

        def draft(position: Cursor) -> Statements:
            return place_statements(subscription, subscription.floor(position), in_state(subscription.rest, state))

        async with self._changing:
            await self.engine.decide(Decision(subscription, draft, follow, own=_told(tell, subscription)))

    async def seek(self, subscription: Subscription, start: Start, *, tell: Tell | None = None) -> Cursor:
        """Goes on from somewhere else, forwards or back; what was outstanding is forgotten, leases end. Gives the new
        floor. Checkpoint. Raises BadCursor, FutureCursor, UnknownEpoch, StorageFull."""
        async with self._changing:
            floor = await self._place(start, subscription.selection)

            def rest() -> Rest:
                return sought(subscription.rest, subscription.ledger.position, floor)

            def follow() -> None:
                subscription.rest = rest()
                subscription.shared_row = False
                self._stand_on(
                    subscription, Ledger(floor, **ledger_rules(subscription.rules, self._limits)), is_anew=True
                )

            decision = Decision(
                subscription, lambda position: place_statements(subscription, floor, rest(), is_anew=True), follow,
                own=_told(tell, subscription),
            )  # fmt: skip
            await self.engine.decide(decision, is_still=True)
            return floor

    async def rotate_secret(
        self, subscription: Subscription, given: str | None, *, tell: Tell | None = None
    ) -> str:  # fmt: skip
        """Another secret, shown this once; the one before stays valid for a while. Checkpoint. Raises
        SubscriptionConflict where there is none, InvalidSubscription."""
        keeper = self._secrets.get(subscription.definition.reached_by)
        if keeper is None:
            kind = subscription.definition.reached_by
            raise SubscriptionConflict(f"a {kind} subscription has no secret", subject="secret")
        secret, statements = keeper.rotate(subscription.id, given)
        await write_whole(self._log, statements, _told(tell, subscription))
        return secret

    def check_ours(self, subscription: Subscription, if_match: IfMatch = None) -> None:
        """Raises OwnedByConfig for one that the configuration declares, SubscriptionConflict for one that has none of
        the tags."""
        self.tags.check(subscription, if_match)
        if subscription.owner != API:
            raise OwnedByConfig(
                f"{subscription.name} is declared in {subscription.owner}", subject=subscription.name,
                hint="change it there, or take it out there first",
            )  # fmt: skip

    def judge(self, definition: SubscriptionDefinition, start: Start) -> Asked:
        """As `definition.judge`."""
        return judge(definition, self.parse_query, self.check_webhook, start)

    async def _redefine(
        self, subscription: Subscription, asked: Asked, *, owner: str = "", reading: Reading | None = None,
        rotate: Statements | None = None, own: Sequence[OwnPacket] = (),
    ) -> None:  # fmt: skip
        """Another definition, and whatever else is given, in one transaction; memory follows once it is durable."""
        definition, is_other = asked.definition, asked.definition != subscription.definition
        is_other_filter = asked.selection.filter != subscription.selection.filter
        lease = self._lease(asked.selection, reading or subscription.reading) if is_other_filter else None

        def draft(position: Cursor) -> Statements:
            put = put_statements(subscription, definition, self._headers, owner=owner, reading=reading)
            rest = for_endpoint(subscription.rest, subscription.definition, definition)
            return joined(put, place_statements(subscription, subscription.floor(position), rest), rotate)

        def follow() -> None:
            subscription.owner, subscription.reading = owner or subscription.owner, reading or subscription.reading
            if is_other:
                self.engine.dispatcher.remove(subscription)
                subscription.rest = for_endpoint(subscription.rest, subscription.definition, definition)
                subscription.redefine(definition, self.engine.delivery.matcher(asked.selection))
            if is_other_filter:
                self._drop_lease(subscription)
                self._keep_lease(subscription, lease)
            if is_other:
                self._succeed(subscription)
                self._look_out_for(subscription)
                self.on_redefined(subscription)

        def drop() -> None:
            if lease is not None:
                lease.release()

        await self.engine.decide(Decision(subscription, draft, follow, drop, own), is_still=is_other)

    def _succeed(self, subscription: Subscription) -> None:
        """Another ledger, by other rules, for what the present one holds, written down or not."""
        before = subscription.ledger
        changes = before.drain()
        floor = subscription.floor(self.engine.dispatcher.position)
        ledger = Ledger(floor, before.export(), **ledger_rules(subscription.rules, self._limits))
        ledger.owe(changes)
        ledger.coalesced = before.coalesced
        self._stand_on(subscription, ledger)

    def _stand_on(self, subscription: Subscription, ledger: Ledger, *, is_anew: bool = False) -> None:
        """From now on this ledger counts. Dead letters that are being tried again go on being tried; `is_anew`: nobody
        has a lease any more."""
        before, now = subscription.ledger, trio.current_time()
        subscription.ledger = ledger
        subscription.is_tracked = False
        for unit in before.dead():
            if unit.dead_id not in subscription.dead_queued:
                continue
            is_begun_anew = unit.state == "flying" or (unit.state == "leased" and is_anew)
            if is_begun_anew:
                unit.state = "waiting"
            ledger.add_dead(unit, now if is_begun_anew else unit.due)
        self.engine.wake(subscription)

    async def _place(self, start: Start, selection: Selection) -> Cursor:
        """The floor that a start means."""
        log = self._log
        if isinstance(start, Now):
            return Cursor(log.epoch, log.head)
        if isinstance(start, Beginning):
            return Cursor(log.epoch, 0)
        if isinstance(start, At):
            offset = await log.find_offset_at(start.time_us)
            return Cursor(log.epoch, max(0, min(offset - 1, log.head)))
        await self.engine.delivery.follow(self.engine.delivery.matcher(selection), start, None)
        return start

    def _revive(
        self, stored: StoredSubscription, position: Cursor | None, headers: dict[str, str] | SealBroken | None
    ) -> Subscription:
        definition = decode_subscription(stored.definition)
        if isinstance(headers, dict):
            definition = with_values(definition, headers)
        rest, floor = stored.state.rest, stored.state.floor
        selection, rules = stored_selection(definition), rules_of(definition)
        is_shared = stored.state.is_shared and position is not None
        common, now_us = common_of(self._log, floor), self._clock.now_us()
        if is_shared and position is not None and position.epoch == floor.epoch:
            floor = max(floor, position, key=lambda cursor: (cursor.offset, cursor.index is None))
        rows = [
            (row, due_of(row, rules, now_us, is_pull=definition.reached_by == "pull"))
            for row in stored.rows
            if row.keys[-1][0] <= common
        ]
        reading = msgspec.json.decode(stored.principal, type=Reading)
        subscription = self._build(
            stored.number, stored.id, stored.owner, reading, stored.created_us, definition, selection, rest,
            Ledger(floor, rows, **ledger_rules(rules, self._limits)),
        )  # fmt: skip
        subscription.shared_row = stored.state.is_shared
        subscription.ledger.discard(row.key for row in stored.rows if row.keys[-1][0] > common)
        subscription.is_tracked = (
            is_shared and position is not None and position.epoch == self._log.epoch == floor.epoch
            and definition.reached_by != "live"
        )  # fmt: skip
        try:
            self._keep_lease(subscription, self._lease(selection, reading))
            if common < 0:
                raise UnknownEpoch("its position is of another log", subject=stored.id)
            if isinstance(headers, SealBroken):
                raise headers
        except OverlaydError as err:
            _log.error("a subscription can't be served", subscription=stored.id, error=err.detail)
            subscription.set_state("disabled", f"it can't be served: {err.detail}", self._clock.now_us())
        return subscription

    def _build(
        self, number: int, id: str, owner: str, reading: Reading, created_us: int, definition: SubscriptionDefinition,
        selection: Selection, rest: Rest, ledger: Ledger,
    ) -> Subscription:  # fmt: skip
        return Subscription(
            number=number, id=id, owner=owner, reading=reading, created_us=created_us, definition=definition,
            selection=selection, matcher=self.engine.delivery.matcher(selection), rest=rest, ledger=ledger, limits=self._limits,
        )  # fmt: skip

    def _enter(self, subscription: Subscription) -> None:
        self._by_id[subscription.id] = self._by_name[subscription.name] = subscription
        subscription.is_held = self.engine.are_agents_paused and subscription.definition.kind == "agent"
        self.engine.subscriptions[subscription.number] = subscription
        self._look_out_for(subscription)

    def _look_out_for(self, subscription: Subscription) -> None:
        if subscription.definition.reached_by != "live":
            self.engine.dispatcher.add(subscription)

    def _leave(self, subscription: Subscription) -> None:
        self.engine.shop.usage.close(subscription, "deleted")
        del self._by_id[subscription.id], self._by_name[subscription.name]
        del self.engine.subscriptions[subscription.number]
        self.engine.dispatcher.remove(subscription)
        self.engine.desks.pop(subscription.number, None)
        self.engine.rounds.busy.pop(subscription.number, None)
        self._drop_lease(subscription)

    def _lease(self, selection: Selection, reading: Reading) -> FilterLease | None:
        return None if selection.filter is None else self._lease_filter(selection.filter, reading.principal)

    def _keep_lease(self, subscription: Subscription, lease: FilterLease | None) -> None:
        subscription.judge = None if lease is None else lease.judge
        if lease is not None:
            self._leases[subscription.number] = lease

    def _drop_lease(self, subscription: Subscription) -> None:
        lease = self._leases.pop(subscription.number, None)
        if lease is not None:
            lease.release()

    def _check_room(self, definition: SubscriptionDefinition, reading: Reading) -> None:
        if definition.name in self._by_name:
            raise SubscriptionConflict(f"the name {definition.name} is taken", subject=definition.name)
        limits = self._limits
        theirs = sum(one.reading.principal == reading.principal for one in self._by_id.values())
        for name, count in (("subscriptions_max", len(self._by_id)), ("subscriptions_per_principal", theirs)):
            if count >= getattr(limits, name):
                self.engine.delivery.metrics.count_limit_hit(name)
                raise LimitReached(f"there are {count} durable subscriptions already", subject=name)

    def _draw_id(self) -> str:
        while True:
            id = base64.b32encode(self._entropy.draw(ID_BYTES)).decode().lower()
            if id not in self._by_id:
                assert is_id(id)
                return id

    def _make_secret(self, definition: SubscriptionDefinition, id: str, given: str) -> tuple[str, Statements | None]:
        keeper = self._secrets.get(definition.reached_by)
        return ("", None) if keeper is None else keeper.create(id, given or None)


def _told(tell: Tell | None, subscription: Subscription) -> list[OwnPacket]:
    return [] if tell is None else [tell(subscription)]
