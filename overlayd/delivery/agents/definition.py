"""Judges what a subscription of kind agent says about its agent. Pure."""

from collections.abc import Iterator

import msgspec
from msgspec import UNSET

from overlayd.delivery.agents.predicate import PredicateError, predicate_to_cel
from overlayd.model.errors import OverlaydError, Violation
from overlayd.model.names import is_node_name, parse_stream_name
from overlayd.model.subscription import AgentRule, SubscriptionDefinition, WebhookRule
from overlayd.model.units import Duration

BATCH_SIZE = 100
BATCH_WAIT = Duration(1)
"""Of mode batch by webhook, where the definition doesn't say."""


def complete_agent(definition: SubscriptionDefinition) -> SubscriptionDefinition:
    """The definition with what goes without saying for an agent; any other as it is."""
    agent, webhook = definition.agent, definition.webhook
    if not isinstance(agent, AgentRule) or not isinstance(webhook, WebhookRule):
        return definition
    if agent.mode == "batch" and webhook.batch_size == 1:
        wait = webhook.batch_wait or BATCH_WAIT
        webhook = msgspec.structs.replace(webhook, batch_size=BATCH_SIZE, batch_wait=wait)
    if webhook.gaps is UNSET:
        webhook = msgspec.structs.replace(webhook, gaps=True)
    return msgspec.structs.replace(definition, webhook=webhook)


def effective_filter(definition: SubscriptionDefinition) -> str | None:
    """The filter and the trigger as one expression; None without any. Raises PredicateError."""
    found = [] if definition.filter is UNSET else [definition.filter]
    agent = definition.agent
    if isinstance(agent, AgentRule) and agent.trigger is not UNSET:
        trigger = agent.trigger if isinstance(agent.trigger, str) else predicate_to_cel(agent.trigger)
        if trigger != "true":
            found.append(trigger)
    return f"({found[0]}) && ({found[1]})" if len(found) == 2 else found[0] if found else None


def check_agent(definition: SubscriptionDefinition) -> Iterator[Violation]:
    """Everything that is wrong with its table `agent`, and with what doesn't go with it. Streams aren't looked up."""
    agent, webhook = definition.agent, definition.webhook
    if not isinstance(agent, AgentRule):
        if isinstance(webhook, WebhookRule) and webhook.format == "agent":
            yield _wrong("/webhook/format", "format agent goes with kind agent")
        return
    try:
        effective_filter(definition)
    except PredicateError as err:
        yield _wrong(f"/agent/trigger{err.pointer}", err.detail)
    if agent.output is not UNSET:
        yield from _output(agent.output)
    if isinstance(webhook, WebhookRule):
        yield from _webhook(agent, webhook)
    if agent.attach == "live":
        yield from _live(agent)


def _webhook(agent: AgentRule, webhook: WebhookRule) -> Iterator[Violation]:
    if agent.mode == "realtime" and webhook.batch_size != 1:
        yield _wrong("/webhook/batch_size", "an agent of mode realtime gets one packet a run; mode batch gets more")
    if webhook.format == "cloudevents":
        yield _wrong("/webhook/format", "events don't say who a packet is from, which agents are told; use packet")


def _live(agent: AgentRule) -> Iterator[Violation]:
    for name in ("runs_per_hour", "runs_per_day", "bytes_per_day"):
        if getattr(agent, name) is not UNSET:
            yield _wrong(f"/agent/{name}", "counts deliveries, which a live connection doesn't have")
    if agent.coalesce != "none":
        yield _wrong("/agent/coalesce", "goes with webhook and pull")
    if agent.mode == "batch":
        yield _wrong("/agent/mode", "a live connection is given packet after packet")


def _output(name: str) -> Iterator[Violation]:
    try:
        parse_stream_name(name)
    except OverlaydError as err:
        yield _wrong("/agent/output", err.detail)
        return
    if is_node_name(name):
        yield _wrong("/agent/output", "only the node itself appends to its own streams")


def _wrong(pointer: str, detail: str) -> Violation:
    return Violation(pointer, "subscription.member", detail)
