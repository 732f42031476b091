"""What the node's parts do when the configuration changes under them: judge first, then take over."""

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

import trio

from overlayd.access.node_schemes import named_policies
from overlayd.chain.sources.remote import callback_tokens
from overlayd.config import Settings
from overlayd.daemon.declaring import check_streams, declare_streams
from overlayd.daemon.reloading import Commit, Step
from overlayd.delivery.subscriptions.declaring import check_declared, declare_subscriptions
from overlayd.model.access_lines import access_writer
from overlayd.model.logs import configure_logs

if TYPE_CHECKING:
    from overlayd.daemon.parts import Parts

ACCESS_ARRAYS = ("roles", "unix_users", "certificates", "jwt", "identities")


def reload_steps(parts: "Parts") -> Mapping[str, Step]:
    """By what the settings' changes are told as. Without one, a change waits for a restart."""
    taking = _Taking(parts)
    steps = {
        "log": Step(taking.log),
        "rates": Step(taking.rates),
        "access": Step(taking.access, (("keys",), *(("access", name) for name in ACCESS_ARRAYS))),
        "streams": Step(taking.streams, (("streams",),)),
        "subscriptions": Step(taking.subscriptions, (("subscriptions",),)),
    }
    if parts.chain is not None and parts.chain.remote is not None:
        steps["sources"] = Step(taking.sources, (("chain", "sources"),))
    return steps


class _Taking:
    """Each method judges and gives what takes over."""

    def __init__(self, parts: "Parts") -> None:
        self._parts = parts

    async def log(self, wanted: Settings) -> Commit:
        async def commit() -> None:
            clock = self._parts.clock
            configure_logs(wanted.log, clock=clock, environ=os.environ, stream=sys.stderr)
            write_line = access_writer(wanted.log, clock=clock, environ=os.environ, stream=sys.stderr)
            self._parts.request_log.write_with(write_line)

        return commit

    async def rates(self, wanted: Settings) -> Commit:
        async def commit() -> None:
            self._parts.metering.replace_rates(wanted.rates)
            self._parts.access.note_change()  # connections that nothing bounded may be bounded now

        return commit

    async def access(self, wanted: Settings) -> Commit:
        parts = self._parts
        policies = list(named_policies(wanted.access, wanted.keys))
        parts.metering.check_policies(policies)
        replace, _ = await trio.to_thread.run_sync(
            parts.access.prepare_reload, wanted.keys, wanted.access, parts.schemes
        )

        async def commit() -> None:
            await replace()
            parts.metering.require_policies(policies)

        return commit

    async def streams(self, wanted: Settings) -> Commit:
        parts = self._parts
        await check_streams(wanted.streams, parts.schemas, parts.settings.limits)

        async def commit() -> None:
            await declare_streams(parts.log, wanted, parts.schemas)

        return commit

    async def subscriptions(self, wanted: Settings) -> Commit:
        book = self._parts.durable.book
        check_declared(book, wanted.subscriptions)

        async def commit() -> None:
            await declare_subscriptions(book, wanted.subscriptions)

        return commit

    async def sources(self, wanted: Settings) -> Commit:
        parts = self._parts
        assert parts.chain is not None
        assert parts.chain.remote is not None
        replace = parts.chain.remote.prepare_sources(wanted.chain.sources)
        tokens = callback_tokens(wanted.chain, parts.sealing_key)

        async def commit() -> None:
            replace()
            parts.callbacks.replace_tokens(tokens)

        return commit
