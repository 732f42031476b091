"""Streaming sessions and receipts in the words of the systems that use them, counted against the receipt's quota."""

from pathlib import Path
from typing import Any

import pytest
import trio
from metering_rig import ADMIN, MeteredNode, Wall, holder, open_metered

from overlayd.access.quotas import QuotaSettings

ANNA = holder("key:anna")
SESSIONS, AGENT = "/v1/streaming/sessions", "/v1/agent/streaming/sessions"


async def create(node: MeteredNode, receipt: str = "r-1", **members: Any) -> str:
    """An agent's session; its id."""
    body = {"agentId": "ag", "receiptId": receipt, "action": "create", **members}
    reply = await node.ask("POST", AGENT, body, who=ANNA)
    assert reply.status == 200, reply
    return str(reply.json["agentSessionId"])


async def step(node: MeteredNode, session: str, action: str = "update", receipt: str = "r-1", **members: Any) -> Any:
    """One step of it."""
    body = {"agentId": "ag", "receiptId": receipt, "agentSessionId": session, "action": action, **members}
    return await node.ask("POST", AGENT, body, who=ANNA)


async def test_a_session_begins_with_its_receipt(tmp_path: Path) -> None:
    """The answer has every member of the contract, and its cost by the whole megabyte."""
    async with open_metered(tmp_path) as node:
        body = {
            "receiptId": "r-1", "agentId": "ag", "webhookUrl": "https://agent.example/in", "sessionType": "bulk",
            "qualityRequirements": {"maxLatencyMs": 50}, "estimatedBytes": 2_999_999,
        }  # fmt: skip
        reply = await node.ask("POST", SESSIONS, body, who=ANNA)
        made = reply.json
        assert set(made) == {
            "sessionId", "agentSessionId", "receiptId", "sessionType", "qualityRequirements", "estimatedBytes",
            "estimatedCostSatoshis", "quotaStatus", "status",
        }  # fmt: skip
        assert (made["status"], made["estimatedCostSatoshis"]) == ("created", 200)
        assert made["qualityRequirements"] == {"maxLatencyMs": 50, "webhookUrl": "https://agent.example/in"}
        assert made["quotaStatus"]["policyName"] == "standard"
        shown = (await node.ask("GET", f"{SESSIONS}/{made['sessionId']}", who=ANNA)).json
        assert (shown["status"], shown["totalContentBytes"], shown["bytesProcessed"]) == ("active", 2_999_999, 0)
        stranger = holder("key:bert")
        assert (await node.ask("GET", f"{SESSIONS}/{made['sessionId']}", who=stranger)).status == 404
        assert (await node.ask("GET", "/v1/streaming/quotas/r-1", who=stranger)).status == 404
        assert (await node.ask("POST", SESSIONS, {"receiptId": "r-1"}, who=stranger)).status == 403
        assert (await node.ask("GET", f"{SESSIONS}/{made['sessionId']}", who=ADMIN)).status == 200


@pytest.mark.parametrize("place", ["query", "header"])
async def test_the_receipt_may_stand_elsewhere(tmp_path: Path, place: str) -> None:
    """In the query or in X-Receipt-Id; nowhere is a 400 that says so."""
    async with open_metered(tmp_path) as node:
        path, headers = (f"{SESSIONS}?receiptId=r-9", {}) if place == "query" else (SESSIONS, {"X_Receipt_Id": "r-9"})
        assert (await node.ask("POST", path, {}, who=ANNA, **headers)).json["receiptId"] == "r-9"
        refused = await node.ask("POST", SESSIONS, {}, who=ANNA)
        assert (refused.status, refused.json["error"]) == (400, "Receipt ID required")
        agent = await node.ask("POST", SESSIONS, {"receiptId": "r", "agentId": "ag"}, who=ANNA)
        assert (agent.status, agent.json["error"]) == (400, "Webhook URL required for agent sessions")


async def test_progress_is_counted_on_the_receipt(tmp_path: Path) -> None:
    """Totals only grow; what they grew by is the receipt's usage, also after a restart."""
    clock = Wall()
    async with open_metered(tmp_path, clock=clock) as node:
        session = await create(node, totalContentBytes=1000)
        first = await step(node, session, bytesProcessed=400, packetsProcessed=4, lastSequence=17)
        assert first.json == {
            "agentSessionId": session, "status": "updated", "estimatedCost": 0, "bytesProcessed": 400,
            "packetsProcessed": 4, "lastSequence": 17,
        }  # fmt: skip
        assert (await step(node, session, bytesProcessed=399)).status == 400
        assert (await step(node, session, lastSequence=20)).json["bytesProcessed"] == 400
    async with open_metered(tmp_path, clock=clock) as node:
        done = await step(node, session, "complete", bytesProcessed=500, packetsProcessed=5)
        assert (done.json["status"], done.json["lastSequence"]) == ("completed", 20)
        assert (await step(node, session, bytesProcessed=600)).status == 400
        hour = (await node.ask("GET", "/v1/streaming/quotas/r-1", who=ANNA)).json["windows"]["hour"]
        assert (hour["bytesUsed"], hour["requestsUsed"], hour["bytesAllowed"]) == (500, 1, 1 << 30)
        rows = (await node.ask("GET", "/v1/usage?principal=receipt:r-1", who=ADMIN)).json["usage"]
        assert [(row["method"], row["packets"], row["bytes"], row["completed_percent"]) for row in rows] == [
            ("agent", 5, 500, 50.0)
        ]
        ended = (await node.ask("GET", "/v1/usage/deliveries", who=ADMIN)).json["deliveries"]
        assert [(one["session"], one["bytes"], one["method"]) for one in ended] == [(session, 500, "agent")]


async def test_a_receipt_is_held_to_its_quota(tmp_path: Path) -> None:
    """The refusal says what is left in the words that others read; nothing of the step is kept."""
    async with open_metered(tmp_path) as node:
        policy = {"policyName": "tiny", "bytesPerHour": 1000, "requestsPerDay": 2, "maxConcurrentStreams": 1}
        assert (await node.ask("POST", "/v1/streaming/quotas/policies", policy, who=ANNA)).status == 403
        made = await node.ask("POST", "/v1/streaming/quotas/policies", policy)
        assert (made.json["status"], made.json["policy"]["policyName"]) == ("created", "tiny")
        assert (await node.ask("POST", "/v1/streaming/quotas/policies", policy)).json["status"] == "updated"
        who = holder("key:anna", "tiny")
        body = {"agentId": "ag", "receiptId": "t", "action": "create"}
        over = await node.ask("POST", AGENT, body | {"totalContentBytes": 1001}, who=who)
        assert (over.status, over.json["error"], over.json["remainingBytes"]) == (429, "Quota exceeded", 1000)
        assert over.json["quotaStatus"]["windowType"] == "hour"
        session = (await node.ask("POST", AGENT, body, who=who)).json["agentSessionId"]
        second = await node.ask("POST", AGENT, body, who=who)
        assert (second.status, second.json["error"]) == (429, "Concurrent stream limit exceeded")
        assert (second.json["activeStreams"], second.json["maxAllowed"]) == (1, 1)
        named = {"agentId": "ag", "receiptId": "t", "agentSessionId": session}
        assert (
            await node.ask("POST", AGENT, named | {"action": "update", "bytesProcessed": 900}, who=who)
        ).status == 200
        over = await node.ask("POST", AGENT, named | {"action": "update", "bytesProcessed": 1001}, who=who)
        assert (over.status, over.json["remainingBytes"], over.json["quotaStatus"]["bytesUsed"]) == (429, 100, 900)
        shown = (await node.ask("GET", f"{SESSIONS}/{session}", who=who)).json
        assert shown["bytesProcessed"] == 900
        await node.ask("POST", AGENT, named | {"action": "complete"}, who=who)
        await node.ask("POST", AGENT, body, who=who)
        third = await node.ask("POST", AGENT, body, who=who)
        assert (third.status, third.json["remainingRequests"]) == (429, 0)


async def test_a_receipts_quota_has_every_member(tmp_path: Path) -> None:
    """Windows, burst, sessions that are open, and where it leads if it goes on."""
    async with open_metered(tmp_path) as node:
        session = await create(node)
        await step(node, session, bytesProcessed=600)
        body = (await node.ask("GET", "/v1/streaming/quotas/r-1", who=ANNA)).json
        assert body["quotaPolicy"] == {"policyName": "standard", "tier": "standard"}
        assert body["concurrent"] == {"activeStreams": 1, "maxAllowed": 1, "peakBandwidthMbps": 10.0}
        assert set(body["windows"]["month"]) == {
            "windowStart", "windowEnd", "bytesUsed", "bytesAllowed", "utilizationPercentage", "requestsUsed",
            "requestsAllowed",
        }  # fmt: skip
        assert body["burst"]["available"] is False
        assert body["projections"]["hourBytes"] == 600 * 3600 // 200  # 200 s of the hour are over
        assert (await node.ask("GET", "/v1/streaming/quotas/none", who=ANNA)).status == 404


@pytest.mark.parametrize(
    "wrong", [{"action": "pause"}, {"action": "update"}, {"bytesProcessed": -1}, {"colour": 1}, {"agentId": ""}]
)
async def test_a_wrong_step_is_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    """Unknown actions and members, missing ids, negative figures."""
    async with open_metered(tmp_path) as node:
        body = {"agentId": "ag", "receiptId": "r", "action": "create"} | wrong
        assert (await node.ask("POST", AGENT, body, who=ANNA)).status in (400, 422)


async def test_sessions_that_are_open_are_bounded(tmp_path: Path) -> None:
    """Also over many receipts, of which each has its own bound."""
    async with open_metered(tmp_path, quotas=QuotaSettings(sessions_max=2)) as node:
        for receipt in ("r-1", "r-2"):
            await create(node, receipt)
        third = await node.ask("POST", AGENT, {"agentId": "ag", "receiptId": "r-3", "action": "create"}, who=ANNA)
        assert (third.status, third.json["subject"]) == (429, "sessions_max")
        assert node.hits("sessions_max") == 1


async def test_an_agent_changes_only_its_own_sessions(tmp_path: Path) -> None:
    """Another agent, another receipt, another client: the session isn't there for them."""
    async with open_metered(tmp_path) as node:
        session = await create(node)
        step_of = {"agentId": "ag", "receiptId": "r-1", "agentSessionId": session, "action": "complete"}
        assert (await node.ask("POST", AGENT, step_of | {"agentId": "other"}, who=ANNA)).status == 404
        assert (await node.ask("POST", AGENT, step_of | {"receiptId": "r-2"}, who=ANNA)).status == 404
        assert (await node.ask("POST", AGENT, step_of, who=holder("key:bert"))).status == 404
        assert (await node.ask("POST", AGENT, step_of, who=ANNA)).status == 200


async def test_two_at_once_dont_find_the_same_room(tmp_path: Path) -> None:
    """Where one more request is left, one of two sessions begins; the other is refused."""
    async with open_metered(tmp_path, quotas=QuotaSettings(receipt_policy="one")) as node:
        await node.put_policy(name="one", requests_per_hour=1, max_concurrent_streams=0)
        statuses: list[int] = []

        async def open_one() -> None:
            reply = await node.ask("POST", SESSIONS, {"receiptId": "r-1"}, who=ANNA)
            statuses.append(reply.status)

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(open_one)
        assert sorted(statuses) == [200, 429, 429, 429]
        shown = (await node.ask("GET", "/v1/streaming/quotas/r-1", who=ANNA)).json
        assert shown["windows"]["hour"]["requestsUsed"] == 1
