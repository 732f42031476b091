"""Rates and quotas where packets are published: on both lanes, exact, and told so that a client can keep to them."""

from pathlib import Path

import msgspec
import pytest
import trio
from metering_rig import ADMIN, LOOPBACK, Wall, holder, open_metered
from real_waiting import PATIENCE_S

from overlayd.access import bandwidth, metering
from overlayd.access.principal import Standing
from overlayd.access.quotas import QuotaSettings
from overlayd.access.rates import RateSettings
from overlayd.model.errors import Unauthorized
from overlayd.model.names import parse_stream_name
from overlayd.model.quota import HOUR_US
from overlayd.model.usage import Method
from overlayd.net.publish import Ask

lanes = pytest.mark.parametrize("is_fast", [True, False])


@lanes
async def test_a_rate_refuses_with_headers_that_say_how_to_keep_to_it(tmp_path: Path, is_fast: bool) -> None:
    """429 with RateLimit, RateLimit-Policy and Retry-After, the same through the lane and through Quart."""
    rates = RateSettings(publish_per_principal="6/min burst 3")
    async with open_metered(tmp_path, rates=rates, is_fast=is_fast) as node:
        assert (await node.publish("a", 2, who=holder())).status == 201
        refused = await node.publish("a", 2, who=holder())
        assert refused.status == 429
        assert refused.json["code"] == "limit.reached"
        assert refused.json["subject"] == "publish_per_principal"
        assert refused.headers["ratelimit-policy"] == '"publish_per_principal";q=6;w=60'
        assert refused.headers["ratelimit"] == '"publish_per_principal";r=1;t=10'
        assert refused.headers["retry-after"] == "10"
        assert (await node.publish("a", 1, who=holder())).status == 201
        assert (await node.publish("a", 1, who=holder("key:bert"))).status == 201
        too_many = await node.publish("a", 4, who=holder("key:carl"))
        assert (too_many.status, too_many.json["code"]) == (413, "batch.too_large")
        assert node.parts.log.find_stream("a").head_sequence == 4  # type: ignore[union-attr]


@lanes
async def test_local_clients_without_a_key_are_not_counted(tmp_path: Path, is_fast: bool) -> None:
    """Whatever is set for others, producers on this machine publish freely; `local` changes that."""
    rates = RateSettings(publish_per_principal="1/h", publish_per_stream="1/h", publish_per_address="1/h")
    async with open_metered(tmp_path, rates=rates, is_fast=is_fast) as node:
        for who in (ADMIN, LOOPBACK) * 3:
            assert (await node.publish("a", who=who)).status == 201
    rates = RateSettings(publish_per_principal="1/h", local=True)
    async with open_metered(tmp_path, rates=rates, is_fast=is_fast) as node:
        assert [(await node.publish("a", who=LOOPBACK)).status for _ in range(2)] == [201, 429]


@lanes
async def test_an_upload_is_counted_as_it_arrives(tmp_path: Path, is_fast: bool) -> None:
    """NDJSON counts once as an upload and with each packet; what was committed before the refusal stays."""
    rates = RateSettings(upload_per_principal="2/h", publish_per_principal="500/h")
    lines = b'{"data":1}\n' * 300
    async with open_metered(tmp_path, rates=rates, is_fast=is_fast) as node:
        post = "/v1/streams/a/packets"
        first = await node.ask("POST", post, lines, who=holder(), Content_Type="application/x-ndjson")
        assert (first.status, first.json["accepted"]) == (201, 300)
        second = await node.ask("POST", post, lines, who=holder(), Content_Type="application/x-ndjson")
        assert (second.status, second.json["subject"]) == (429, "publish_per_principal")
        assert node.parts.log.find_stream("a").head_sequence == 300 + second.json["accepted"]  # type: ignore[union-attr]
        third = await node.ask("POST", post, b'{"data":1}\n', who=holder(), Content_Type="application/x-ndjson")
        assert (third.status, third.json["subject"]) == (429, "upload_per_principal")


async def test_an_upload_goes_on_though_a_group_is_larger_than_the_burst(tmp_path: Path) -> None:
    """The node cuts an upload into groups, so their size can't be the client's fault; the bucket is overdrawn."""
    rates = RateSettings(publish_per_principal="600/min burst 10")
    async with open_metered(tmp_path, rates=rates) as node:
        post = "/v1/streams/a/packets"
        lines = b'{"data":1}\n' * 100
        assert (await node.ask("POST", post, lines, who=holder(), Content_Type="application/x-ndjson")).status == 201
        refused = await node.publish("a", who=holder())
        assert refused.status == 429
        assert 5 <= int(refused.headers["retry-after"]) <= 10


@lanes
async def test_a_quota_refuses_with_what_is_left_and_when_it_begins_anew(tmp_path: Path, is_fast: bool) -> None:
    """429 `quota.exceeded`; the next hour lets the principal go on, the day's bound then stops it."""
    async with open_metered(tmp_path, is_fast=is_fast) as node:
        await node.put_policy(name="small", bytes_per_hour=100, bytes_per_day=150, requests_per_month=1000)
        anna = holder(policy="small")
        assert (await node.publish("a", 2, who=anna, size=40)).status == 201
        refused = await node.publish("a", 1, who=anna, size=40)
        assert (refused.status, refused.json["code"], refused.json["subject"]) == (
            429, "quota.exceeded", "bytes_per_hour",
        )  # fmt: skip
        assert refused.json["remaining_bytes"] == 20
        assert refused.json["remaining_requests"] == 999
        assert refused.json["resets_at"] == "2026-01-02T04:00:00.000000Z"
        assert refused.headers["ratelimit"] == '"bytes_per_hour";r=20;t=3400'
        assert int(refused.headers["retry-after"]) == 3400
        node.clock.us += HOUR_US
        assert (await node.publish("a", 1, who=anna, size=40)).status == 201
        refused = await node.publish("a", 1, who=anna, size=40)
        assert (refused.status, refused.json["subject"]) == (429, "bytes_per_day")
        assert refused.json["resets_at"] == "2026-01-03T00:00:00.000000Z"
        assert node.hits("bytes_per_hour") == node.hits("bytes_per_day") == 1


@pytest.mark.parametrize("window", ["hour", "day", "month"])
async def test_each_window_bounds_requests(tmp_path: Path, window: str) -> None:
    """Requests are counted whatever they carry, and forgotten when the window is over."""
    async with open_metered(tmp_path) as node:
        await node.put_policy(name="few", **{f"requests_per_{window}": 2})
        anna = holder(policy="few")
        assert [(await node.publish("a", 3, who=anna)).status for _ in range(3)] == [201, 201, 429]
        node.clock.us += {"hour": HOUR_US, "day": 24 * HOUR_US, "month": 31 * 24 * HOUR_US}[window]
        assert (await node.publish("a", who=anna)).status == 201


async def test_refused_packets_and_repeats_use_no_bytes(tmp_path: Path) -> None:
    """A quota counts what was appended; a rejected request still counts as a request."""
    async with open_metered(tmp_path) as node:
        await node.put_policy(name="small", bytes_per_hour=60)
        anna = holder(policy="small")
        post = "/v1/streams/a/packets"
        for _ in range(5):
            assert (await node.ask("POST", post, {"id": "1", "data": "12345678"}, who=anna)).status in (200, 201)
        assert (await node.ask("POST", post, {"nope": 1}, who=anna)).status == 422
        shown = (await node.ask("GET", "/v1/quotas", who=anna)).json
        assert shown["hour"]["bytes_used"] == 10
        assert shown["hour"]["requests_used"] == 6


async def test_a_burst_goes_beyond_the_hour_once(tmp_path: Path) -> None:
    """The allowance lasts its minutes, then it is over until the next hour, also after a restart."""
    clock = Wall()
    async with open_metered(tmp_path, clock=clock) as node:
        await node.put_policy(name="b", bytes_per_hour=100, burst_bytes_allowance=100, burst_duration_minutes=5)
        anna = holder(policy="b")
        assert (await node.publish("a", 10, who=anna)).status == 201
        assert (await node.publish("a", 5, who=anna)).status == 201
        shown = (await node.ask("GET", "/v1/quotas", who=anna)).json
        assert shown["burst"] == {
            "bytes_allowance": 100, "bytes_used": 50, "duration_minutes": 5, "until": "2026-01-02T03:08:20.000000Z",
        }  # fmt: skip
        assert (await node.publish("a", 6, who=anna)).status == 429
        assert (await node.publish("a", 2, who=anna)).status == 201
        clock.us += 301 * 1_000_000
        assert (await node.publish("a", 1, who=anna)).status == 429
    async with open_metered(tmp_path, clock=clock) as node:
        assert (await node.publish("a", 1, who=anna)).status == 429
        clock.us += HOUR_US
        assert (await node.publish("a", 9, who=anna)).status == 201


async def test_an_unknown_or_inactive_policy_lets_nothing_through(tmp_path: Path) -> None:
    """For want of a policy nobody may use more than with one."""
    async with open_metered(tmp_path, quotas=QuotaSettings(default_policy="lost")) as node:
        assert (await node.publish("a", who=holder())).status == 403
        assert (await node.publish("a", who=LOOPBACK)).status == 201
        await node.put_policy(name="lost", is_active=False)
        assert (await node.publish("a", who=holder())).status == 403
        await node.put_policy(name="lost")
        assert (await node.publish("a", who=holder())).status == 201
        assert (await node.ask("DELETE", "/v1/quotas/policies/lost")).status == 204
        assert (await node.publish("a", who=holder())).status == 403


async def test_usage_outlasts_a_restart_to_the_byte(tmp_path: Path) -> None:
    """A new process goes on counting where the old one ended."""
    clock, anna = Wall(), holder(policy="standard")
    async with open_metered(tmp_path, clock=clock) as node:
        for _ in range(3):
            assert (await node.publish("a", 7, who=anna, size=13)).status == 201
    async with open_metered(tmp_path, clock=clock) as node:
        assert (await node.publish("b", 1, who=anna, size=5)).status == 201
        shown = (await node.ask("GET", "/v1/quotas", who=anna)).json
        for window in ("hour", "day", "month"):
            assert (shown[window]["bytes_used"], shown[window]["requests_used"]) == (3 * 7 * 13 + 5, 4)
        assert shown["hour"]["bytes_left"] == (1 << 30) - 278
        rows = (await node.ask("GET", "/v1/usage", who=anna)).json["usage"]
        told = {row["stream"]: (row["requests"], row["packets"], row["bytes"]) for row in rows if row["bytes"]}
        assert told == {"a": (3, 21, 273), "b": (1, 1, 5)}
        methods: set[Method] = {row["method"] for row in rows}
        assert methods == {"publish"}


@pytest.mark.parametrize("is_fast", [True, False])
async def test_what_was_taken_tells_the_rate(tmp_path: Path, is_fast: bool) -> None:
    """How much is left, of the rate with the least; nothing to those whom none concerns."""
    rates = RateSettings(publish_per_principal="10/h", upload_per_principal="2/h")
    async with open_metered(tmp_path, rates=rates, is_fast=is_fast) as node:
        first = await node.publish("a", 3, who=holder())
        assert (first.status, first.headers["ratelimit-policy"]) == (201, '"publish_per_principal";q=10;w=3600')
        assert first.headers["ratelimit"].startswith('"publish_per_principal";r=7;')
        data = await node.ask("POST", "/v1/streams/a/data", b"1", who=holder())
        assert data.headers["ratelimit"].startswith('"publish_per_principal";r=6;')
        lines = await node.ask(
            "POST", "/v1/streams/a/packets", b'{"data":1}\n', who=holder(), Content_Type="application/x-ndjson"
        )
        assert lines.status == 201
        assert lines.headers["ratelimit"].startswith(('"upload_per_principal";r=1;', '"publish_per_principal";r=5;'))
        local = await node.publish("a", who=LOOPBACK)
        assert "ratelimit" not in local.headers


@lanes
async def test_bandwidth_holds_for_all_that_an_account_sends_and_reads(tmp_path: Path, is_fast: bool) -> None:
    """Ahead by a second and by one body; then 429 until the rate has caught up, for reading too."""
    async with open_metered(tmp_path, is_fast=is_fast) as node:
        await node.put_policy(name="thin", max_bandwidth_mbps=0.008)  # 1,000 bytes a second
        anna = holder(policy="thin")
        assert (await node.publish("a", 1, size=3000, who=anna)).status == 201
        refused = await node.publish("a", 1, size=10, who=anna)
        assert (refused.status, refused.json["subject"]) == (429, "max_bandwidth_mbps")
        assert refused.headers["ratelimit-policy"] == '"max_bandwidth_mbps";q=1000;w=1'
        wait_s = int(refused.headers["retry-after"])
        assert 2 <= wait_s <= 3
        assert (await node.ask("GET", "/v1/streams/a/packets", who=anna)).status == 429
        assert node.hits("max_bandwidth_mbps") == 2
        assert (await node.publish("a", 1, who=holder("key:bert", policy="thin"))).status == 201
        account = node.metering.quotas.find(anna.name)
        assert account is not None
        account.paid_until_s -= wait_s  # so much later
        read = await node.ask("GET", "/v1/streams/a/packets", who=anna)
        assert read.status == 200
        assert (await node.publish("a", 1, size=10, who=anna)).status == 429
        await node.put_policy(name="thin", max_bandwidth_mbps=0)
        for _ in range(3):
            assert (await node.publish("a", 1, size=3000, who=anna)).status == 201


@lanes
async def test_an_upload_goes_on_at_the_bandwidth(
    tmp_path: Path, is_fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """It isn't cut off: the node takes more of it when the account may send more."""
    monkeypatch.setattr(bandwidth, "AHEAD_S", 0.0)
    async with open_metered(tmp_path, is_fast=is_fast) as node:
        await node.put_policy(name="thin", max_bandwidth_mbps=40)  # 5,000,000 bytes a second
        line = b'{"data":"' + b"x" * 9989 + b'"}\n'
        begun_s = trio.current_time()
        reply = await node.ask(
            "POST", "/v1/streams/a/packets", line * 250, who=holder(policy="thin"), Content_Type="application/x-ndjson"
        )
        assert (reply.status, reply.json["accepted"]) == (201, 250)
        assert trio.current_time() - begun_s >= 0.3
        assert node.hits("max_bandwidth_mbps") > 0


@pytest.mark.parametrize("is_ended", [True, False])
async def test_an_upload_that_waits_sees_what_changes(
    tmp_path: Path, is_ended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had to wait an hour; a wider policy lets it go on soon, and with its right gone it is refused."""
    monkeypatch.setattr(metering, "LOOK_S", 0.01)
    async with open_metered(tmp_path) as node, trio.open_nursery() as nursery:
        await node.put_policy(name="thin", max_bandwidth_mbps=40)
        assert (await node.publish("a", 1, who=holder(policy="thin"))).status == 201
        account = node.metering.quotas.find("key:anna")
        assert account is not None
        sender = msgspec.structs.replace(holder(policy="thin"), standing=Standing())
        seen: list[str] = []

        async def go_on() -> None:
            publisher = node.parts.publisher
            ask = Ask(parse_stream_name("a"), sender, "application/x-ndjson", (), "")
            try:
                given = await publisher.submit(ask, [b'{"data":1}'], atomic=False, first_index=1)
                seen.append(f"took {given.accepted}")
            except Unauthorized:
                seen.append("refused")

        account.paid_until_s = trio.current_time() + 3600
        nursery.start_soon(go_on)
        with trio.fail_after(PATIENCE_S):
            while not node.hits("max_bandwidth_mbps"):
                await trio.lowlevel.checkpoint()
            assert not seen
            if is_ended:
                sender.standing.ended = "revoked"
            else:
                await node.put_policy(name="thin", max_bandwidth_mbps=0)
            while not seen:
                await trio.lowlevel.checkpoint()
        assert seen == ["refused" if is_ended else "took 1"]
