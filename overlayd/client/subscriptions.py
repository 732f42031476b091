"""Durable subscriptions, for both clients: `client.subscriptions`."""

import builtins
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

from overlayd.client import subscription_calls
from overlayd.client.calls import HOLD_MAX_S, Call
from overlayd.model.wire_agents import AgentsBody
from overlayd.model.wire_subscriptions import AttemptBody, DeadLetterBody, FetchBody, SubscriptionBody, TestBody

T = TypeVar("T")


class AsyncSend(Protocol):
    """Sends a request and reads its answer. Raises OverlaydErrors."""

    async def __call__(self, call: Call[T]) -> T: ...


class SyncSend(Protocol):
    """The same, waiting."""

    def __call__(self, call: Call[T]) -> T: ...


class AsyncSubscriptions:
    """Durable subscriptions of a node. Everywhere `name` may be an id as well."""

    def __init__(self, send: AsyncSend) -> None:
        self._send = send

    async def list(self, *, kind: str = "", state: str = "") -> "builtins.list[SubscriptionBody]":
        """Your subscriptions by name; everybody's for who may manage."""
        found: builtins.list[SubscriptionBody] = []
        after = ""
        while True:
            page = await self._send(subscription_calls.subscriptions(kind=kind, state=state, after=after))
            found += page.subscriptions
            if not page.next_after:
                return found
            after = page.next_after

    async def dead_letters(self, name: str) -> "builtins.list[DeadLetterBody]":
        """Every dead letter, by number."""
        found: builtins.list[DeadLetterBody] = []
        after = 0
        while True:
            page = await self._send(subscription_calls.dead_letters(name, after=after))
            found += page.dead_letters
            if not page.next_after:
                return found
            after = page.next_after

    async def create(self, definition: Mapping[str, Any]) -> SubscriptionBody:
        """Makes a subscription, in the words of the API. A secret that was drawn is in the answer, this once."""
        return await self._send(subscription_calls.create(definition))

    async def get(self, name: str) -> SubscriptionBody:
        """One subscription, by id or name, and where it stands."""
        return await self._send(subscription_calls.subscription(name))

    async def patch(self, name: str, changes: Mapping[str, Any]) -> SubscriptionBody:
        """Changes members of the definition; None takes one away."""
        return await self._send(subscription_calls.patch(name, changes))

    async def delete(self, name: str) -> None:
        """Deletes it with its dead letters."""
        await self._send(subscription_calls.delete(name))

    async def pause(self, name: str) -> SubscriptionBody:
        """Begins nothing more; nothing is lost."""
        return await self._send(subscription_calls.set_state(name, is_paused=True))

    async def resume(self, name: str) -> SubscriptionBody:
        """Goes on, also after it was disabled."""
        return await self._send(subscription_calls.set_state(name, is_paused=False))

    async def seek(self, name: str, *, cursor: str = "", time: str = "") -> SubscriptionBody:
        """Goes on from a cursor or a time, forwards or back."""
        return await self._send(subscription_calls.seek(name, cursor=cursor, time=time))

    async def test(self, name: str) -> TestBody:
        """Has one delivery without packets sent, and says what came of it."""
        return await self._send(subscription_calls.test(name))

    async def rotate_secret(self, name: str, secret: str = "") -> str:
        """Another secret; the one before stays valid for a while."""
        return (await self._send(subscription_calls.rotate_secret(name, secret))).secret

    async def attempts(self, name: str) -> "builtins.list[AttemptBody]":
        """The last attempts, newest first."""
        return (await self._send(subscription_calls.attempts(name))).attempts

    async def dead_letter(self, name: str, number: int) -> DeadLetterBody:
        """One dead letter with its packets, as far as they are kept."""
        return await self._send(subscription_calls.dead_letter(name, number))

    async def redeliver(self, name: str, *, first: int | None = None, last: int | None = None) -> int:
        """Tries dead letters again, by number; without numbers all. Gives how many."""
        return (await self._send(subscription_calls.redeliver(name, first=first, last=last))).count

    async def delete_dead_letters(self, name: str, *, first: int | None = None, last: int | None = None) -> int:
        """Throws dead letters away, by number; without numbers all that are parked. Gives how many."""
        return (await self._send(subscription_calls.delete_dead_letters(name, first=first, last=last))).count

    async def fetch(self, name: str, count: int = 1, *, wait_s: float = 0.0) -> FetchBody:
        """Leases up to so many messages, waiting for a first one."""
        return await self._send(subscription_calls.fetch(name, count, min(wait_s, HOLD_MAX_S)))

    async def ack(
        self, name: str, leases: Sequence[str], *, reply: Mapping[str, Any] | None = None
    ) -> "builtins.list[str]":
        """Settles messages; per lease `ok` or `expired`. `reply`: an agent's, with a single lease."""
        return [*(await self._send(subscription_calls.settle(name, "ack", leases, reply=reply))).results]

    async def nack(self, name: str, leases: Sequence[str], *, delay_s: float = 0.0) -> "builtins.list[str]":
        """Gives messages back, to be fetched again after a while; per lease `ok` or `expired`."""
        return [*(await self._send(subscription_calls.settle(name, "nack", leases, delay_s))).results]

    async def extend(self, name: str, leases: Sequence[str], *, lease_s: float | None = None) -> "builtins.list[str]":
        """Makes leases last from now on; per lease `ok` or `expired`."""
        return [*(await self._send(subscription_calls.settle(name, "extend", leases, lease_s))).results]

    async def agents(self) -> AgentsBody:
        """Whether all agents are paused, since when and by whom."""
        return await self._send(subscription_calls.agents())

    async def pause_agents(self) -> AgentsBody:
        """Begins nothing more for any agent of the node; nothing is lost."""
        return await self._send(subscription_calls.switch_agents(is_paused=True))

    async def resume_agents(self) -> AgentsBody:
        """They go on where they stand."""
        return await self._send(subscription_calls.switch_agents(is_paused=False))


class SyncSubscriptions:
    """Durable subscriptions of a node. Everywhere `name` may be an id as well."""

    def __init__(self, send: SyncSend) -> None:
        self._send = send

    def list(self, *, kind: str = "", state: str = "") -> "builtins.list[SubscriptionBody]":
        """Your subscriptions by name; everybody's for who may manage."""
        found: builtins.list[SubscriptionBody] = []
        after = ""
        while True:
            page = self._send(subscription_calls.subscriptions(kind=kind, state=state, after=after))
            found += page.subscriptions
            if not page.next_after:
                return found
            after = page.next_after

    def dead_letters(self, name: str) -> "builtins.list[DeadLetterBody]":
        """Every dead letter, by number."""
        found: builtins.list[DeadLetterBody] = []
        after = 0
        while True:
            page = self._send(subscription_calls.dead_letters(name, after=after))
            found += page.dead_letters
            if not page.next_after:
                return found
            after = page.next_after

    def create(self, definition: Mapping[str, Any]) -> SubscriptionBody:
        """Makes a subscription, in the words of the API. A secret that was drawn is in the answer, this once."""
        return self._send(subscription_calls.create(definition))

    def get(self, name: str) -> SubscriptionBody:
        """One subscription, by id or name, and where it stands."""
        return self._send(subscription_calls.subscription(name))

    def patch(self, name: str, changes: Mapping[str, Any]) -> SubscriptionBody:
        """Changes members of the definition; None takes one away."""
        return self._send(subscription_calls.patch(name, changes))

    def delete(self, name: str) -> None:
        """Deletes it with its dead letters."""
        self._send(subscription_calls.delete(name))

    def pause(self, name: str) -> SubscriptionBody:
        """Begins nothing more; nothing is lost."""
        return self._send(subscription_calls.set_state(name, is_paused=True))

    def resume(self, name: str) -> SubscriptionBody:
        """Goes on, also after it was disabled."""
        return self._send(subscription_calls.set_state(name, is_paused=False))

    def seek(self, name: str, *, cursor: str = "", time: str = "") -> SubscriptionBody:
        """Goes on from a cursor or a time, forwards or back."""
        return self._send(subscription_calls.seek(name, cursor=cursor, time=time))

    def test(self, name: str) -> TestBody:
        """Has one delivery without packets sent, and says what came of it."""
        return self._send(subscription_calls.test(name))

    def rotate_secret(self, name: str, secret: str = "") -> str:
        """Another secret; the one before stays valid for a while."""
        return (self._send(subscription_calls.rotate_secret(name, secret))).secret

    def attempts(self, name: str) -> "builtins.list[AttemptBody]":
        """The last attempts, newest first."""
        return (self._send(subscription_calls.attempts(name))).attempts

    def dead_letter(self, name: str, number: int) -> DeadLetterBody:
        """One dead letter with its packets, as far as they are kept."""
        return self._send(subscription_calls.dead_letter(name, number))

    def redeliver(self, name: str, *, first: int | None = None, last: int | None = None) -> int:
        """Tries dead letters again, by number; without numbers all. Gives how many."""
        return (self._send(subscription_calls.redeliver(name, first=first, last=last))).count

    def delete_dead_letters(self, name: str, *, first: int | None = None, last: int | None = None) -> int:
        """Throws dead letters away, by number; without numbers all that are parked. Gives how many."""
        return (self._send(subscription_calls.delete_dead_letters(name, first=first, last=last))).count

    def fetch(self, name: str, count: int = 1, *, wait_s: float = 0.0) -> FetchBody:
        """Leases up to so many messages, waiting for a first one."""
        return self._send(subscription_calls.fetch(name, count, min(wait_s, HOLD_MAX_S)))

    def ack(self, name: str, leases: Sequence[str], *, reply: Mapping[str, Any] | None = None) -> "builtins.list[str]":
        """Settles messages; per lease `ok` or `expired`. `reply`: an agent's, with a single lease."""
        return [*(self._send(subscription_calls.settle(name, "ack", leases, reply=reply))).results]

    def nack(self, name: str, leases: Sequence[str], *, delay_s: float = 0.0) -> "builtins.list[str]":
        """Gives messages back, to be fetched again after a while; per lease `ok` or `expired`."""
        return [*(self._send(subscription_calls.settle(name, "nack", leases, delay_s))).results]

    def extend(self, name: str, leases: Sequence[str], *, lease_s: float | None = None) -> "builtins.list[str]":
        """Makes leases last from now on; per lease `ok` or `expired`."""
        return [*(self._send(subscription_calls.settle(name, "extend", leases, lease_s))).results]

    def agents(self) -> AgentsBody:
        """Whether all agents are paused, since when and by whom."""
        return self._send(subscription_calls.agents())

    def pause_agents(self) -> AgentsBody:
        """Begins nothing more for any agent of the node; nothing is lost."""
        return self._send(subscription_calls.switch_agents(is_paused=True))

    def resume_agents(self) -> AgentsBody:
        """They go on where they stand."""
        return self._send(subscription_calls.switch_agents(is_paused=False))
