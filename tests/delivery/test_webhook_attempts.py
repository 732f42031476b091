"""What an attempt makes of every kind of answer and failure: an outcome, a plain reason, when to come back."""

from email.utils import formatdate
from pathlib import Path
from typing import Any

import chaos_sink as chaos
import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook
from trio.testing import MockClock
from webhook_rig import SUBSCRIPTION, WebhookRig, delivery_of, open_rig, packet_messages

from overlayd.model.outlet import AttemptResult
from overlayd.model.subscription import WebhookRule
from overlayd.model.units import Duration
from overlayd.outbound import OutboundSettings
from overlayd.outbound.retry_after import parse_retry_after


async def attempt(rig: WebhookRig, url: str, **options: Any) -> AttemptResult:
    """One attempt with one small packet."""
    return await rig.attempt(delivery_of(WebhookRule(url=url, **options), packet_messages({"a": 1})))


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
async def test_any_2xx_delivers(status: int, tmp_path: Path) -> None:
    """With the status and the start of the answer kept."""
    async with open_rig(tmp_path) as rig, chaos.open_sink() as sink:
        await rig.create_secret()
        sink.play(chaos.answer(status, b"" if status == 204 else b"thanks"))
        result = await attempt(rig, sink.url)
        assert (result.outcome, result.status, result.reason) == ("delivered", status, "")
        assert result.response_excerpt == (b"" if status == 204 else b"thanks")
        assert result.duration_us > 0


@pytest.mark.parametrize("status", [301, 302, 307, 308, 400, 401, 403, 404, 409, 418, 422, 500, 502, 504, 599])
async def test_everything_else_is_tried_again(status: int, tmp_path: Path) -> None:
    """Redirects aren't followed; a Retry-After counts with 429 and 503 only."""
    async with open_rig(tmp_path) as rig, chaos.open_sink() as sink:
        await rig.create_secret()
        sink.play(chaos.answer(status, b"no", location=sink.origin + "/elsewhere", retry_after="60"))
        result = await attempt(rig, sink.url)
        assert (result.outcome, result.status, result.retry_after_s) == ("retry", status, None)
        assert str(status) in result.reason
        assert ("redirects" in result.reason) == (status < 400)
        assert result.response_excerpt == b"no"
        assert [turn.path for turn in sink.turns] == ["/hook"]


async def test_410_ends_the_subscription(tmp_path: Path) -> None:
    """The receiver wants nothing more."""
    async with open_rig(tmp_path) as rig, chaos.open_sink() as sink:
        await rig.create_secret()
        sink.play(chaos.answer(410))
        result = await attempt(rig, sink.url)
        assert (result.outcome, result.status) == ("disable", 410)
        assert "410" in result.reason


@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_is_obeyed(status: int, tmp_path: Path) -> None:
    """In seconds, as a date, bounded; what can't be read is passed over."""
    async with open_rig(tmp_path) as rig, chaos.open_sink() as sink:
        await rig.create_secret()
        now_s = rig.clock.us / 1e6
        for text, seconds in (
            ("120", 120.0), ("0", 0.0), (formatdate(int(now_s) + 90, usegmt=True), int(now_s) + 90 - now_s),
            (formatdate(now_s - 90, usegmt=True), 0.0), ("soon", None), ("-5", None), ("1.5", None), ("9" * 30, None),
            ("999999999", 86_400.0),
        ):  # fmt: skip
            sink.play(chaos.answer(status, retry_after=text))
            result = await attempt(rig, sink.url)
            assert result.outcome == "retry"
            assert result.retry_after_s == (None if seconds is None else pytest.approx(seconds, abs=1e-5))
        assert rig.hits("webhook_retry_after") == 1


@given(st.text(max_size=40))
def test_any_retry_after_is_seconds_or_nothing(text: str) -> None:
    """Whatever a receiver writes there."""
    seconds = parse_retry_after(text, 1_700_000_000_000_000)
    assert seconds is None or seconds >= 0


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (chaos.hang, "answer.timeout: gave up after 3.0 s"),
        (chaos.trickle(b"HTTP/1.1 200 OK\r\n\r\n"), "answer.timeout: gave up after 3.0 s"),
        (chaos.reset, "answer.reset: the connection was reset without an answer"),
        (chaos.close_silently, "answer.closed: the connection was closed without an answer"),
        (chaos.raw(b"\x16\x03\x01 what"), "answer.malformed: what came isn't HTTP/1.1"),
        (chaos.endless_head, "answer.head_too_large: the answer's head is over"),
        (chaos.endless_header, "answer.head_too_large: the answer's head is over"),
    ],
)
async def test_failures_have_plain_reasons(
    step: chaos.Step, reason: str, tmp_path: Path, patient_clock: MockClock
) -> None:
    """Each is tried again, with a word for programs and words for people."""
    async with open_rig(tmp_path) as rig, chaos.open_sink() as sink:
        await rig.create_secret()
        sink.play(step)
        result = await attempt(rig, sink.url, timeout=Duration(3))
        assert (result.outcome, result.status) == ("retry", None)
        assert result.reason.startswith(reason)
        assert result.duration_us >= 0


@pytest.mark.parametrize(
    "step",
    [
        chaos.endless_body(200), chaos.gzip_bomb(200, 50_000_000), chaos.trickle_body(b"x" * 100),
        chaos.raw(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc"),
    ],
    ids=["endless", "bomb", "trickling", "cut"],
)  # fmt: skip
async def test_a_2xx_counts_whatever_its_body(step: chaos.Step, tmp_path: Path, patient_clock: MockClock) -> None:
    """The receiver has the packet; of its words so much is kept as came in time, within the cap."""
    async with open_rig(tmp_path) as rig, chaos.open_sink() as sink:
        await rig.create_secret()
        sink.play(step)
        started = trio.current_time()
        result = await attempt(rig, sink.url)
        assert (result.outcome, result.status) == ("delivered", 200)
        assert len(result.response_excerpt) <= 4096
        assert trio.current_time() - started < 3
        is_slow = trio.current_time() - started >= 2
        assert rig.hits("outbound_body_timeout") == is_slow


async def test_the_kept_answer_has_a_cap(tmp_path: Path) -> None:
    """`webhook_response_bytes` of it are kept."""
    async with open_rig(tmp_path, webhook_response_bytes=100) as rig, chaos.open_sink() as sink:
        await rig.create_secret()
        sink.play(chaos.answer(500, b"y" * 5000))
        assert (await attempt(rig, sink.url)).response_excerpt == b"y" * 100
        assert rig.hits("webhook_response_bytes") == 1


async def test_an_answer_before_the_body_was_sent_counts(tmp_path: Path) -> None:
    """A receiver that refuses a long body early is heard."""
    async with open_rig(tmp_path) as rig, chaos.open_sink() as sink:
        await rig.create_secret()
        sink.play(chaos.early(413, b"too long for me"))
        messages = packet_messages({"text": "z" * 7_000_000})
        result = await rig.attempt(delivery_of(WebhookRule(url=sink.url), messages))
        assert (result.outcome, result.status, result.response_excerpt) == ("retry", 413, b"too long for me")


async def test_bodies_over_the_limit_are_never_sent(tmp_path: Path) -> None:
    """Also when only the template makes them long; the reason says so, and that no attempt can change it."""
    async with open_rig(tmp_path, webhook_body_bytes=2000) as rig, chaos.open_sink() as sink:
        await rig.create_secret()
        result = await rig.attempt(delivery_of(WebhookRule(url=sink.url), packet_messages("a" * 3000)))
        assert result.outcome == "undeliverable"
        assert result.reason.startswith("body.too_long: ")
        template = '{"a": "' + "{{ data }}" * 50 + '"}'
        rule = WebhookRule(url=sink.url, format="template", template=template)
        result = await rig.attempt(delivery_of(rule, packet_messages("a" * 100)))
        assert result.reason.startswith("body.too_long: ")
        assert not sink.turns
        assert rig.hits("webhook_body_bytes") == 2


async def test_large_bodies_in_flight_are_bounded(tmp_path: Path, patient_clock: MockClock) -> None:
    """Those over 64 KiB share `webhook_bodies_bytes`; small ones pass by."""
    async with open_rig(tmp_path, webhook_bodies_bytes=250_000) as rig, chaos.open_sink() as sink:
        for number in range(4):
            await rig.create_secret(subscription_id=f"s{number}")
        sink.play(chaos.after(1, chaos.answer(200)))

        async def send(number: int, size: int) -> None:
            delivery = delivery_of(WebhookRule(url=sink.url), packet_messages("b" * size), subscription_id=f"s{number}")
            assert (await rig.attempt(delivery)).outcome == "delivered"

        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(send, number, 100_000)
            nursery.start_soon(send, 3, 10)
        times = sorted(round(turn.at_s - sink.turns[0].at_s) for turn in sink.turns)
        assert times == [0, 0, 0, 1]
        assert rig.hits("webhook_bodies_bytes") == 1


async def test_inner_addresses_are_refused_at_each_attempt(tmp_path: Path) -> None:
    """Without leave in the configuration nothing is sent to this machine, whatever the definition says."""
    async with open_rig(tmp_path, outbound=OutboundSettings()) as rig, chaos.open_sink() as sink:
        await rig.create_secret()
        for url in (sink.url, f"http://localhost:{sink.port}/"):
            result = await attempt(rig, url)
            assert result.outcome == "retry"
            assert result.reason.startswith("address.refused: ")
        assert sink.connections == 0


async def test_a_dead_kept_connection_is_not_a_failed_attempt(tmp_path: Path) -> None:
    """The request goes once more over a new connection, under the same id."""
    async with open_rig(tmp_path) as rig, chaos.open_sink() as sink:
        secret = await rig.create_secret()
        sink.play(chaos.answer(200), chaos.reset, chaos.answer(200))
        assert (await attempt(rig, sink.url)).outcome == "delivered"
        assert (await attempt(rig, sink.url)).outcome == "delivered"
        assert len({turn.headers["webhook-id"] for turn in sink.turns}) == 1
        for turn in sink.turns[::2]:
            Webhook(secret).verify(await turn.body(), turn.headers)


async def test_without_a_secret_nothing_is_sent(tmp_path: Path) -> None:
    """A subscription whose secret is gone fails its attempts with that reason, and works again after a rotation."""
    async with open_rig(tmp_path) as rig, chaos.open_sink() as sink:
        result = await attempt(rig, sink.url)
        assert (result.outcome, result.reason) == ("retry", "secret.sealed: the subscription has no secret")
        await rig.rotate_secret()
        assert (await attempt(rig, sink.url)).outcome == "delivered"
        await rig.write(rig.webhooks.secrets.forget(SUBSCRIPTION))
        assert (await attempt(rig, sink.url)).outcome == "retry"
        assert len(sink.turns) == 1


async def test_a_cancelled_attempt_leaves_nothing_behind(tmp_path: Path, patient_clock: MockClock) -> None:
    """Its place and its room are free again."""
    async with open_rig(tmp_path, outbound_requests=1, webhook_bodies_bytes=100_000) as rig, chaos.open_sink() as sink:
        await rig.create_secret()
        sink.play(chaos.hang)
        large = delivery_of(WebhookRule(url=sink.url), packet_messages("c" * 90_000))
        with trio.move_on_after(1):
            await rig.attempt(large)
        sink.play(chaos.answer(200))
        assert (await rig.attempt(large)).outcome == "delivered"


@pytest.mark.parametrize("format", ["packet", "cloudevents", "template"])
async def test_as_many_packets_as_fit_into_a_body(format: str, tmp_path: Path) -> None:
    """What is said to fit is sent, one more wouldn't be; a first packet that is too long stands alone."""
    values = ["x" * size for size in (900, 900, 900, 900, 5000, 1)]
    template = '{"all": "{{ packets }}", "again": "{{ packets.1.data_payload }} {{ packets.1.data_payload }}"}'
    named = {"format": format} | ({"template": template} if format == "template" else {})
    async with open_rig(tmp_path, webhook_body_bytes=5000) as rig, chaos.open_sink() as sink:
        await rig.create_secret()
        rule = WebhookRule(url=sink.url, batch_size=10, **named)
        delivery = delivery_of(rule, packet_messages(*values))
        count = await rig.webhooks.outlet.fit(delivery)
        assert 1 < count < 5
        whole = msgspec.structs.replace(delivery, messages=delivery.messages[:count])
        assert (await rig.webhooks.outlet.attempt(whole)).outcome == "delivered"
        if format == "template":  # exact; for the others every packet is counted with an envelope of its own
            more = msgspec.structs.replace(delivery, messages=delivery.messages[: count + 1])
            assert (await rig.webhooks.outlet.attempt(more)).outcome == "undeliverable"
        late = msgspec.structs.replace(delivery, messages=delivery.messages[4:])
        assert await rig.webhooks.outlet.fit(late) == 1
        few = msgspec.structs.replace(delivery, messages=delivery.messages[:2])
        assert await rig.webhooks.outlet.fit(few) == 2
