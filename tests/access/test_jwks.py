"""Published keys: fetched beside everything else, anew when a token wants it, kept through an outage for a while."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from access_rig import THERE
from joserfc.jwk import Key, OKPKey
from token_maker import TokenRig, bearing, make_token, settings_of

from overlayd.access.jwt.published import PublishedKeys
from overlayd.access.origin import Origin
from overlayd.access.principal import Principal
from overlayd.access.settings import AccessSettings
from overlayd.model.errors import IssuerUnavailable, OutboundFailure, Unauthorized
from overlayd.model.metrics import Metrics
from overlayd.model.units import Duration
from overlayd.outbound.reasons import Reason

HOUR_S = 3600.0


class FakeIssuer:
    """Publishes keys, or fails to."""

    def __init__(self, *ids: str) -> None:
        self.keys: dict[str, Key] = {}
        self.publish(*ids)
        self.fetches = 0
        self.failure: OutboundFailure | None = None
        self.takes_s = 0.0
        self.content: bytes | None = None

    def publish(self, *ids: str) -> None:
        """These keys from now on; those that were there before stay the same."""
        self.keys = {id: self.keys.get(id) or OKPKey.generate_key("Ed25519") for id in ids}

    async def fetch(self, url: str, allow_private: tuple[str, ...]) -> bytes:
        self.fetches += 1
        await trio.sleep(self.takes_s)
        if self.failure is not None:
            raise self.failure
        if self.content is not None:
            return self.content
        members = [{**key.as_dict(private=False), "kid": id} for id, key in self.keys.items()]
        return json.dumps({"keys": members}).encode()

    def token(self, id: str, **changed: Any) -> str:
        """Signed with one of its keys."""
        return make_token(key=self.keys[id], header={"kid": id}, exp=4_000_000_000, **changed)


class Rig:
    """A scheme whose issuer publishes its keys."""

    def __init__(self, issuer: FakeIssuer, directory: Path, **changed: Any) -> None:
        self.metrics = Metrics()
        self.changes = 0
        settings = settings_of(file="", jwks_url="https://login.example/jwks")
        self.keys = PublishedKeys(
            settings, AccessSettings(jwks_keys_max=3, **changed), issuer.fetch, on_change=self.note_change, chance=random.Random(1),
            metrics=self.metrics,
        )  # fmt: skip
        self.tokens = TokenRig(settings, directory=directory, keys={"login": self.keys})

    def note_change(self) -> None:
        self.changes += 1

    async def claimed(self, token: str) -> Principal:
        return (await self.tokens.scheme.claim(bearing(token), THERE, Origin(THERE.address))).principal

    async def refusal(self, token: str) -> str:
        with pytest.raises(Unauthorized) as caught:
            await self.claimed(token)
        return caught.value.detail

    def limit_hits(self, limit: str) -> float:
        return self.metrics.registry.get_sample_value("overlayd_limit_hits_total", {"limit": limit}) or 0.0

    def fetches(self, outcome: str) -> float:
        labels = {"issuer": "login", "outcome": outcome}
        return self.metrics.registry.get_sample_value("overlayd_access_jwks_fetches_total", labels) or 0.0


async def test_keys_are_fetched_and_refreshed(
    tmp_path: Path, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """At start and then now and then, without anybody asking."""
    issuer = FakeIssuer("k1")
    rig = Rig(issuer, tmp_path)
    nursery.start_soon(rig.keys.run)
    await trio.sleep(HOUR_S + 1)
    assert issuer.fetches == 5
    who = await rig.claimed(issuer.token("k1"))
    assert who.name == "jwt:login/alice"
    assert (issuer.fetches, rig.fetches("fetched"), rig.fetches("failed")) == (5, 5, 0)


async def test_an_unknown_key_makes_one_fetch(
    tmp_path: Path, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """Those who come together wait for it together; made-up keys don't cause another one for a while."""
    issuer = FakeIssuer("k1")
    issuer.takes_s = 1.0
    rig = Rig(issuer, tmp_path)
    nursery.start_soon(rig.keys.run)
    await trio.sleep(60)
    issuer.publish("k1", "k2")
    token, names = issuer.token("k2"), []

    async def ask() -> None:
        names.append((await rig.claimed(token)).name)

    async with trio.open_nursery() as asking:
        for _ in range(5):
            asking.start_soon(ask)
    assert (names, issuer.fetches) == (["jwt:login/alice"] * 5, 2)
    issuer.keys["k9"] = OKPKey.generate_key("Ed25519")
    made_up = [issuer.token("k9", sub=f"u{number}") for number in range(20)]
    del issuer.keys["k9"]
    for one in made_up:
        assert "doesn't have" in await rig.refusal(one)
    assert issuer.fetches == 2
    assert rig.limit_hits("jwks_refetch_min") == 20
    await trio.sleep(31)
    await rig.refusal(made_up[0])
    assert issuer.fetches == 3


async def test_an_outage_keeps_the_keys_for_a_while(
    tmp_path: Path, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """Then tokens count no more, who was let in by one is ended, and 503 says why; it all comes back by itself."""
    issuer = FakeIssuer("k1")
    rig = Rig(issuer, tmp_path, jwks_stale_max=Duration(2 * HOUR_S))
    nursery.start_soon(rig.keys.run)
    await trio.sleep(10)
    token = issuer.token("k1")
    who = await rig.claimed(token)
    issuer.failure = OutboundFailure.of(Reason.CONNECT_REFUSED, "nobody listens there")
    await trio.sleep(1.9 * HOUR_S)
    assert (await rig.claimed(token)).standing is who.standing
    assert not who.standing.ended
    await trio.sleep(0.2 * HOUR_S)
    assert (who.standing.ended, rig.changes) == ("revoked", 1)
    assert rig.limit_hits("jwks_stale_max") == 1
    with pytest.raises(IssuerUnavailable) as caught:
        await rig.claimed(token)
    assert (caught.value.status, caught.value.retryable) == (503, True)
    issuer.failure = None
    await trio.sleep(31)
    again = await rig.claimed(token)
    assert again.standing is not who.standing
    assert not again.standing.ended


async def test_a_key_that_is_withdrawn_counts_no_more(
    tmp_path: Path, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """Nor what it let in, though the token was checked before; others go on."""
    issuer = FakeIssuer("k1", "k2")
    rig = Rig(issuer, tmp_path)
    nursery.start_soon(rig.keys.run)
    await trio.sleep(1)
    gone, stays = issuer.token("k1"), issuer.token("k2")
    first, second = await rig.claimed(gone), await rig.claimed(stays)
    issuer.publish("k2", "k3")
    await trio.sleep(1000)
    assert (first.standing.ended, second.standing.ended) == ("revoked", "")
    assert rig.changes == 1
    assert "doesn't have" in await rig.refusal(gone)
    assert (await rig.claimed(stays)).standing is second.standing


async def test_before_the_first_fetch_a_token_waits(
    tmp_path: Path, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """Not longer than a fetch may take."""
    issuer = FakeIssuer("k1")
    issuer.takes_s = 2.0
    rig = Rig(issuer, tmp_path)
    nursery.start_soon(rig.keys.run)
    await trio.testing.wait_all_tasks_blocked()
    await rig.claimed(issuer.token("k1"))
    assert trio.current_time() == pytest.approx(2.0)
    slow = FakeIssuer("k1")
    slow.takes_s = HOUR_S
    other = Rig(slow, tmp_path)
    nursery.start_soon(other.keys.run)
    with pytest.raises(IssuerUnavailable):
        await other.claimed(slow.token("k1"))
    assert trio.current_time() == pytest.approx(12.0)


@pytest.mark.parametrize(
    ("failure", "limit"),
    [
        (OutboundFailure.of(Reason.BODY_TOO_LARGE, "the body is too large"), "jwks_bytes"),
        (OutboundFailure.of(Reason.ANSWER_TIMEOUT, "no answer in time"), "jwks_timeout"),
        (OutboundFailure.of(Reason.CONNECT_REFUSED, "nobody listens there"), ""),
    ],
)  # fmt: skip
async def test_failures_back_off(
    tmp_path: Path, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock, failure: OutboundFailure, limit: str
) -> None:
    """Soon at first, then as often as keys are refreshed; limits that ended a fetch are counted."""
    issuer = FakeIssuer("k1")
    issuer.failure = failure
    rig = Rig(issuer, tmp_path)
    nursery.start_soon(rig.keys.run)
    await trio.sleep(HOUR_S)
    assert 9 <= issuer.fetches <= 16
    assert rig.fetches("failed") == issuer.fetches
    assert not limit or rig.limit_hits(limit) == issuer.fetches


@pytest.mark.parametrize("content", [b"", b"<html>", b"[]", b'{"keys": []}', b'{"keys": [{"kty": "RSA"}]}'])
async def test_what_is_no_set_of_keys_changes_nothing(
    tmp_path: Path, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock, content: bytes
) -> None:
    """A login page in its place, or a set without any key that fits, isn't a withdrawal."""
    issuer = FakeIssuer("k1")
    rig = Rig(issuer, tmp_path)
    nursery.start_soon(rig.keys.run)
    await trio.sleep(1)
    issuer.content = content
    await trio.sleep(HOUR_S)
    assert (await rig.claimed(issuer.token("k1"))).name
    assert rig.fetches("failed") > 3


async def test_keys_beyond_the_bound_dont_count(
    tmp_path: Path, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """The first ones do."""
    issuer = FakeIssuer("k1", "k2", "k3", "k4")
    rig = Rig(issuer, tmp_path)
    nursery.start_soon(rig.keys.run)
    await trio.sleep(1)
    await rig.claimed(issuer.token("k3"))
    await rig.refusal(issuer.token("k4"))
    assert rig.limit_hits("jwks_keys_max") == 2


async def test_a_token_without_a_kid_is_tried_with_every_key(
    tmp_path: Path, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """They are few."""
    issuer = FakeIssuer("k1", "k2")
    rig = Rig(issuer, tmp_path)
    nursery.start_soon(rig.keys.run)
    await trio.sleep(1)
    await rig.claimed(make_token(key=issuer.keys["k2"], exp=4_000_000_000))
    assert "verify" in await rig.refusal(make_token(key=OKPKey.generate_key("Ed25519"), exp=4_000_000_000))
