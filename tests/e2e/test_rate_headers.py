"""A rate that was hit is told in the headers that clients can act on."""

import re

import httpx
from node_process import Node


def test_a_full_minute_is_told_with_its_rate(node: Node) -> None:
    """The answer says how many a minute are taken, that none is left, and when to come back."""
    transport = httpx.HTTPTransport(uds=str(node.directory / "overlayd.sock"))
    with httpx.Client(transport=transport, base_url="http://localhost") as client:
        definition = {"limits": {"packets_per_minute": 2}}
        assert client.put("/v1/streams/rates.a", json=definition).status_code == 201
        answers = [client.post("/v1/streams/rates.a/data", json=n) for n in range(7)]
    refused = [answer for answer in answers if answer.status_code == 429]
    # A new minute may begin in between, once.
    assert len(refused) >= 3
    for answer in refused:
        assert answer.headers["ratelimit-policy"] == '"packets_per_minute";q=2;w=60'
        assert re.fullmatch(r'"packets_per_minute";r=0;t=\d+', answer.headers["ratelimit"])
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert answer.json()["code"] == "limit.reached"
