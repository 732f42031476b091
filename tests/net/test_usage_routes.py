"""Usage, quotas and policies over HTTP: who sees what, what is counted, and in which order it is told."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from metering_rig import ADMIN, LOOPBACK, START_US, MeteredNode, Wall, holder, open_metered

from overlayd.access.quotas import QuotaSettings
from overlayd.access.rates import RateSettings
from overlayd.access.usage import UsageSettings
from overlayd.model.errors import StorageFull
from overlayd.model.quota import HOUR_US, SEEDED_POLICIES
from overlayd.model.units import Duration
from overlayd.model.usage import EndedDelivery

ANNA = holder("key:anna", "standard")
BERT = holder("key:bert", "premium", "2001:db8::1")


async def use(node: MeteredNode) -> None:
    """Some publishing, reading and streaming."""
    assert (await node.publish("a", 2, who=ANNA)).status == 201
    assert (await node.publish("b", 1, who=BERT)).status == 201
    assert (await node.ask("GET", "/v1/streams/a/packets", who=ANNA)).status == 200
    usage = node.metering.usage
    usage.delivered("a", "key:anna", "websocket", packets=5, bytes=500, latency_us=6000, latencies=3)
    usage.delivered("a", "key:anna", "websocket", packets=1, bytes=100, latency_us=10_000, latencies=1)
    usage.ended(
        EndedDelivery(
            session="s1", stream="a", principal="key:anna", method="websocket", address="192.0.2.1",
            started_us=START_US - 1, ended_us=START_US, packets=6, bytes=600, errors=1, completed_ppm=500_000,
            reason="stalled", latency_us=2500,
        )
    )  # fmt: skip


async def test_usage_is_told_by_hour_principal_stream_and_method(tmp_path: Path) -> None:
    """Each kind of use has its row; what wasn't measured is left out."""
    async with open_metered(tmp_path) as node:
        await use(node)
        body = (await node.ask("GET", "/v1/usage", who=ANNA)).json
        assert (body["by"], body["to"]) == ("hour", "2026-01-02T04:00:00.000000Z")
        rows = {(row["stream"], row["method"]): row for row in body["usage"]}
        assert set(rows) == {("a", "publish"), ("a", "read"), ("a", "websocket")}
        assert (rows["a", "publish"]["packets"], rows["a", "publish"]["bytes"]) == (2, 20)
        assert rows["a", "read"]["bytes"] > 100
        live = rows["a", "websocket"]
        assert (live["packets"], live["bytes"], live["errors"], live["ended"]) == (6, 600, 1, 1)
        assert (live["latency_ms_mean"], live["latency_ms_max"], live["completed_percent"]) == (4.0, 10.0, 50.0)
        assert "latency_ms_mean" not in rows["a", "publish"]
        assert all(row["principal"] == "key:anna" for row in body["usage"])


async def test_others_usage_needs_the_right_to_manage(tmp_path: Path) -> None:
    """Without it one sees one's own, whatever one asks for."""
    async with open_metered(tmp_path) as node:
        await use(node)
        assert (await node.ask("GET", "/v1/usage?principal=key:bert", who=ANNA)).status == 403
        assert (await node.ask("GET", "/v1/quotas?principal=key:bert", who=ANNA)).status == 403
        assert (await node.ask("GET", "/v1/usage/deliveries?principal=key:bert", who=ANNA)).status == 403
        everybody = (await node.ask("GET", "/v1/usage?method=publish", who=ADMIN)).json["usage"]
        assert {row["principal"] for row in everybody} == {"key:anna", "key:bert"}
        one = (await node.ask("GET", "/v1/usage?principal=key:bert", who=ADMIN)).json["usage"]
        assert {row["principal"] for row in one} == {"key:bert"}
        quota = (await node.ask("GET", "/v1/quotas?principal=key:bert", who=ADMIN)).json
        assert (quota["policy"]["name"], quota["hour"]["bytes_used"]) == ("premium", 10)


async def test_usage_adds_up_over_hours_days_and_pages(tmp_path: Path) -> None:
    """The same total whichever way it is asked for, and no row twice or never when it is paged."""
    async with open_metered(tmp_path) as node:
        for hours in (0, 1, 30):
            node.clock.us = START_US + hours * HOUR_US
            for stream in ("a", "b", "c"):
                assert (await node.publish(stream, 2, who=ANNA)).status == 201
        span = "from=2026-01-01T00:00:00Z&to=2026-01-05T00:00:00Z"
        by_hour = (await node.ask("GET", f"/v1/usage?{span}", who=ANNA)).json["usage"]
        by_day = (await node.ask("GET", f"/v1/usage?{span}&by=day", who=ANNA)).json["usage"]
        total = (await node.ask("GET", f"/v1/usage?{span}&by=total&stream=a", who=ANNA)).json["usage"]
        assert [len(by_hour), len(by_day), len(total)] == [9, 6, 1]
        assert total[0]["packets"] == 6
        assert sum(row["bytes"] for row in by_hour) == sum(row["bytes"] for row in by_day) == 180
        assert {row["start"][:10] for row in by_day} == {"2026-01-02", "2026-01-03"}
        paged, after = [], ""
        while True:
            page = (await node.ask("GET", f"/v1/usage?{span}&limit=2{after}", who=ANNA)).json
            paged += page["usage"]
            if "next_after" not in page:
                break
            after = f"&after={page['next_after']}"
        assert paged == by_hour


@pytest.mark.parametrize(
    "query", ["by=week", "from=yesterday", "after=%21", "limit=0", "from=2026-01-02T00:00:00Z&to=2026-01-01T00:00:00Z"]
)
async def test_a_wrong_question_about_usage_is_refused(tmp_path: Path, query: str) -> None:
    """400 with the parameter's name."""
    async with open_metered(tmp_path) as node:
        assert (await node.ask("GET", f"/v1/usage?{query}")).status == 400


async def test_deliveries_that_are_over_are_told_without_addresses(tmp_path: Path) -> None:
    """Each with its figures; the address only as a keyed hash that is the same for the same network."""
    async with open_metered(tmp_path) as node:
        await use(node)
        found = (await node.ask("GET", "/v1/usage/deliveries", who=ANNA)).json["deliveries"]
        assert [(one["session"], one["packets"], one["completed_percent"], one["reason"]) for one in found] == [
            ("s1", 6, 50.0, "stalled")
        ]
        assert found[0]["latency_ms_mean"] == 2.5
        assert found[0]["address_hash"] == node.metering.usage.hash_address("192.0.2.1")
        assert len(found[0]["address_hash"]) == 16
        assert "192.0.2.1" not in str(found)
        assert (await node.ask("GET", "/v1/usage/deliveries", who=BERT)).json["deliveries"] == []


async def test_old_usage_is_forgotten(tmp_path: Path) -> None:
    """Counts and deliveries beyond their retention go with the next writing in a new hour."""
    settings = UsageSettings(retention=Duration(40 * 86_400), deliveries_retention=Duration(86_400))
    async with open_metered(tmp_path, usage=settings) as node:
        await use(node)
        await node.metering.flush()
        node.clock.us += 2 * 86_400_000_000
        await node.metering.flush()
        span = "from=2026-01-01T00:00:00Z&to=2027-01-01T00:00:00Z"
        assert (await node.ask("GET", "/v1/usage/deliveries")).json["deliveries"] == []
        assert (await node.ask("GET", f"/v1/usage?{span}")).json["usage"]
        node.clock.us += 40 * 86_400_000_000
        await node.metering.flush()
        assert (await node.ask("GET", f"/v1/usage?{span}")).json["usage"] == []


async def test_a_month_of_usage_must_be_kept() -> None:
    """Quotas are added up from it."""
    with pytest.raises(ValueError, match="32d"):
        UsageSettings(retention=Duration(31 * 86_400))


async def test_too_many_keys_are_counted_together(tmp_path: Path) -> None:
    """Memory stays bounded; what can't be told apart still counts in the sum."""
    async with open_metered(tmp_path, usage=UsageSettings(pending_max=3)) as node:
        for number in range(10):
            node.metering.usage.delivered(f"s{number}", "p", "sse", packets=1, bytes=1)
        assert node.hits("pending_max") == 7
        rows = (await node.ask("GET", "/v1/usage?method=sse", who=ADMIN)).json["usage"]
        assert {row["stream"]: row["packets"] for row in rows} == {"s0": 1, "s1": 1, "s2": 1, "": 7}


async def test_the_documented_policies_are_there_once(tmp_path: Path) -> None:
    """standard, premium and enterprise with their figures; a deleted one doesn't come back with a restart."""
    async with open_metered(tmp_path) as node:
        found = (await node.ask("GET", "/v1/quotas/policies")).json["policies"]
        assert {one["name"] for one in found} == {"standard", "premium", "enterprise"}
        enterprise = next(one for one in found if one["name"] == "enterprise")
        assert (enterprise["bytes_per_hour"], enterprise["bytes_per_month"]) == (21474836480, 2147483648000)
        assert (enterprise["requests_per_day"], enterprise["max_concurrent_streams"]) == (20_000, 20)
        assert [policy.bytes_per_day for policy in SEEDED_POLICIES] == [10737418240, 53687091200, 214748364800]
        assert (await node.ask("DELETE", "/v1/quotas/policies/premium")).status == 204
        assert (await node.ask("DELETE", "/v1/quotas/policies/premium")).status == 404
    async with open_metered(tmp_path) as node:
        assert (await node.ask("GET", "/v1/quotas/policies/premium")).status == 404
        assert (await node.ask("GET", "/v1/quotas/policies/standard")).status == 200


async def test_policies_are_changed_by_administrators_only(tmp_path: Path) -> None:
    """Everybody else sees their own at most."""
    async with open_metered(tmp_path) as node:
        path, body = "/v1/quotas/policies/mine", {"name": "mine", "bytes_per_hour": 1}
        assert (await node.ask("PUT", path, body, who=ANNA)).status == 403
        assert (await node.ask("DELETE", path, who=LOOPBACK)).status == 403
        assert (await node.ask("PUT", path, body)).status == 201
        assert (await node.ask("PUT", path, body)).status == 200
        assert (await node.ask("PUT", "/v1/quotas/policies/other", body)).status == 400
        for wrong in ({"name": "mine", "byte_per_hour": 1}, {"name": "mine", "bytes_per_hour": -1}):
            assert (await node.ask("PUT", path, wrong)).status == 422
        own = (await node.ask("GET", "/v1/quotas/policies", who=ANNA)).json["policies"]
        assert [one["name"] for one in own] == ["standard"]
        assert (await node.ask("GET", "/v1/quotas/policies/standard", who=ANNA)).status == 200
        assert (await node.ask("GET", path, who=ANNA)).status == 403


async def test_policies_and_accounts_are_bounded(tmp_path: Path) -> None:
    """Another policy is refused, a changed one isn't; accounts that are idle leave the memory and come back exact."""
    async with open_metered(tmp_path, quotas=QuotaSettings(policies_max=4, accounts_max=2)) as node:
        await node.put_policy(name="fourth")
        assert (await node.ask("PUT", "/v1/quotas/policies/fifth", {"name": "fifth"})).status == 429
        await node.put_policy(name="fourth", bytes_per_day=1000)
        assert node.hits("policies_max") == 1
        node.metering.quotas._keep_s = 0.0
        for name in ("a", "b", "c", "d"):
            assert (await node.publish("s", 2, who=holder(name, "fourth"))).status == 201
        assert len(node.metering.quotas) <= 2
        assert node.hits("accounts_max") >= 1
        quota = (await node.ask("GET", "/v1/quotas", who=holder("a", "fourth"))).json
        assert (quota["day"]["bytes_used"], quota["day"]["requests_used"]) == (20, 1)


async def test_reads_are_held_to_rates_and_quotas(tmp_path: Path) -> None:
    """By requests before, by bytes afterwards; the answer that went over its bytes is the last for a while."""
    async with open_metered(tmp_path, rates=RateSettings(read_per_principal="3/h")) as node:
        await node.publish("a", 3, who=ADMIN)
        path = "/v1/streams/a/packets"
        told = [await node.ask("GET", path, who=holder()) for _ in range(4)]
        assert [reply.status for reply in told] == [200, 200, 200, 429]
        lefts = ['"read_per_principal";r=2', '"read_per_principal";r=1', '"read_per_principal";r=0']
        assert [reply.headers["ratelimit"].rpartition(";")[0] for reply in told[:3]] == lefts
        assert {reply.headers["ratelimit-policy"] for reply in told} == {'"read_per_principal";q=3;w=3600'}
        assert "ratelimit" not in (await node.ask("GET", path, who=LOOPBACK)).headers
        assert (await node.ask("GET", path, who=LOOPBACK)).status == 200
    async with open_metered(tmp_path, rates=RateSettings(read_per_stream="100B/h")) as node:
        assert [(await node.ask("GET", path, who=holder())).status for _ in range(2)] == [200, 429]
        assert (await node.ask("GET", "/v1/read?from=beginning", who=holder())).status == 200
    async with open_metered(tmp_path) as node:
        await node.put_policy(name="r", bytes_per_day=100, requests_per_hour=5)
        assert [(await node.ask("GET", path, who=holder("r", "r"))).status for _ in range(2)] == [200, 429]
        quota = (await node.ask("GET", "/v1/quotas", who=holder("r", "r"))).json
        assert (quota["day"]["bytes_left"], quota["hour"]["requests_used"]) == (0, 1)


async def test_what_cannot_be_written_is_kept(tmp_path: Path) -> None:
    """A full disk loses no counts: they are written with the next flush."""
    clock = Wall()
    async with open_metered(tmp_path, clock=clock) as node:
        await use(node)
        real = node.metering.usage._store

        class Full:
            async def write(self, job: object) -> None:
                raise StorageFull("no room")

            read = real.read

        node.metering.usage._store = Full()
        await node.metering.usage.flush()
        assert node.parts.metrics.registry.get_sample_value("overlayd_usage_flush_failures_total") == 1
        node.metering.usage._store = real
        rows = (await node.ask("GET", "/v1/usage?method=websocket", who=ANNA)).json["usage"]
        assert [(row["packets"], row["latency_ms_max"]) for row in rows] == [(6, 10.0)]
        assert len((await node.ask("GET", "/v1/usage/deliveries", who=ANNA)).json["deliveries"]) == 1


async def test_changes_of_policies_are_in_the_audit_with_the_answer(tmp_path: Path) -> None:
    """In one transaction: nobody sees the one without the other, also when the log takes nothing."""
    async with open_metered(tmp_path) as node:
        log = node.parts.log

        async def audited() -> list[tuple[str, str]]:
            stream = log.find_stream("overlayd.audit")
            entries = [] if stream is None else await log.read_packets(stream, 0, 100)
            records = [msgspec.json.decode(entry.body) for entry in entries]
            return [(record["action"], record["subject"]) for record in records]

        await node.put_policy(name="p", bytes_per_day=1)
        await node.put_policy(name="p", bytes_per_day=2)
        assert (await node.ask("DELETE", "/v1/quotas/policies/p")).status == 204
        assert await audited() == [("quota.create", "p"), ("quota.change", "p"), ("quota.delete", "p")]
        assert (await node.ask("DELETE", "/v1/quotas/policies/p")).status == 404
        append = log.append_own

        async def fail(*given: object) -> list[int]:
            raise StorageFull("no room")

        log.append_own = fail  # type: ignore[method-assign]
        refused = await node.ask("PUT", "/v1/quotas/policies/q", {"name": "q"})
        kept = await node.ask("DELETE", "/v1/quotas/policies/premium")
        log.append_own = append  # type: ignore[method-assign]
        assert (refused.status, kept.status) == (507, 507)
        assert "q" not in node.metering.quotas.policies
        assert "premium" in node.metering.quotas.policies
        assert len(await audited()) == 3


async def test_who_leaves_while_usage_is_written_doesnt_have_it_counted_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the writer has it, it is written, and never again."""
    async with open_metered(tmp_path) as node:
        usage = node.metering.usage
        write = node.parts.log.write
        usage.delivered("a", "key:anna", "sse", packets=3, bytes=30)
        async with trio.open_nursery() as nursery:

            async def write_and_be_left(job: Callable[[sqlite3.Connection], Any]) -> Any:
                given = await write(job)
                nursery.cancel_scope.cancel()
                await trio.lowlevel.checkpoint()
                return given

            monkeypatch.setattr(node.parts.log, "write", write_and_be_left)
            nursery.start_soon(usage.flush)
        monkeypatch.undo()
        await usage.flush()
        body = (await node.ask("GET", "/v1/usage?by=total&principal=key:anna")).json
        assert [(row["packets"], row["bytes"]) for row in body["usage"]] == [(3, 30)]
