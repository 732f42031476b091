"""What the tests of outbound calls share."""

import ssl
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

import msgspec
import pytest
import trio

from overlayd.model.errors import OutboundFailure
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.outbound import Outbound, OutboundAnswer, OutboundRequest, OutboundSettings
from overlayd.outbound.networks import Address
from overlayd.outbound.reasons import Reason

LOOPBACK = ("127.0.0.0/8",)


class FixedResolver:
    """Gives what the test says, in turn; the last again and again."""

    is_full = False

    def __init__(self, *answers: tuple[str, ...]) -> None:
        self._answers = [tuple(ip_address(text) for text in answer) for answer in answers]
        self.asked: list[str] = []

    async def resolve(self, host: str) -> tuple[Address, ...]:
        self.asked.append(host)
        await trio.lowlevel.checkpoint()
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


class OutboundRig:
    """A client, its metrics, and short ways to call."""

    def __init__(
        self, *, resolver: Any = None, context: ssl.SSLContext | None = None, allow: tuple[str, ...] = LOOPBACK,
        ports: tuple[int, ...] = (), **limits: Any,
    ) -> None:  # fmt: skip
        self.metrics = Metrics()
        self.limits = msgspec.structs.replace(Limits(), **limits)
        settings = OutboundSettings(allow_private=allow, ports=ports)
        self.out = Outbound(self.limits, settings, self.metrics, resolver=resolver, context=context)

    async def post(self, url: str, body: bytes = b"{}", **options: Any) -> OutboundAnswer:
        """Posts and gives the answer."""
        return await self.out.send(OutboundRequest("POST", url, body=body, **options))

    async def refuse(self, url: str, body: bytes = b"{}", **options: Any) -> OutboundFailure:
        """Posts and gives the failure."""
        with pytest.raises(OutboundFailure) as caught:
            await self.post(url, body, **options)
        assert caught.value.reason in {str(reason) for reason in Reason}
        assert caught.value.detail
        return caught.value

    def count(self, name: str, **labels: str) -> float:
        """A metric's value."""
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    def hits(self, limit: str) -> float:
        """How often a limit was hit."""
        return self.count("overlayd_limit_hits_total", limit=limit)


RigMaker = Callable[..., OutboundRig]
