"""A document at a URL that the settings name: fetched whole, or not at all."""

from overlayd.model.errors import OutboundFailure
from overlayd.outbound.client import Outbound
from overlayd.outbound.networks import NetworkPolicy, parse_networks
from overlayd.outbound.request import OutboundRequest

STATUS = "answer.status"


async def fetch_document(
    outbound: Outbound, url: str, allow_private: tuple[str, ...], *, timeout_s: float, bytes_max: int
) -> bytes:  # fmt: skip
    """The body of a 200. `allow_private`: networks that the URL may lead into. Checkpoint. Raises OutboundFailure; also
    for any other status, since redirects aren't followed."""
    request = OutboundRequest(
        "GET", url, headers=(("Accept", "application/json"),), timeout_s=timeout_s, body_max=bytes_max,
        policy=NetworkPolicy(parse_networks(allow_private)),
    )  # fmt: skip
    answer = await outbound.send(request)
    if answer.status != 200:
        raise OutboundFailure.of(STATUS, f"the answer is {answer.status}, not 200", subject=url)
    return answer.body
