"""What a webhook's definition may say: URL, secret, headers, template."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlayd.delivery.webhooks.definition import BATCH_ROOTS, SINGLE_ROOTS, WebhookJudge
from overlayd.delivery.webhooks.template import TemplateTooLong, fill_template, judged_template, parse_template
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.model.subscription import WebhookRule
from overlayd.outbound.networks import NetworkPolicy, parse_networks

URL = "https://hooks.example/in"


def flaws(policy: NetworkPolicy | None = None, **rule: Any) -> dict[str, str]:
    """Pointer to words of what is wrong."""
    judge = WebhookJudge(Limits(), policy or NetworkPolicy(), Metrics())
    return {flaw.pointer: flaw.detail for flaw in judge.check(WebhookRule(**({"url": URL} | rule)))}


def test_a_plain_webhook_is_fine() -> None:
    """URL alone, and with everything."""
    assert not flaws()
    assert not flaws(
        secret="whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        headers={"Authorization": "Bearer a b", "X-Empty": ""}, format="template", template='{"a": "{{ data }}"}',
    )  # fmt: skip


@pytest.mark.parametrize(
    "url",
    [
        "ftp://hooks.example/", "http://127.0.0.1/", "http://[::1]/", "http://169.254.169.254/latest", "http://0x7f.1/",
        "http://10.0.0.1:8080/", "http://hooks.example:25/", "http://me:pw@hooks.example/", "https://hooks.example/#x",
        "https://hooks.example/a b", "hooks.example", "",
    ],
)  # fmt: skip
def test_urls_that_are_never_called_are_refused_at_once(url: str) -> None:
    """Not first at the attempt; names are judged when they are looked up."""
    assert list(flaws(url=url)) == ["/webhook/url"]
    assert "pw" not in flaws(url=url)["/webhook/url"].split()


def test_allowed_networks_may_be_named() -> None:
    """With the configuration's leave."""
    assert not flaws(NetworkPolicy(parse_networks(["127.0.0.0/8"])), url="http://127.0.0.1:8080/hook")
    assert not flaws(url="http://localhost/")  # a name: judged at the attempt


@pytest.mark.parametrize(
    "name",
    [
        "Host", "content-length", "Content-Type", "Transfer-Encoding", "Connection", "Keep-Alive", "TE", "Trailer", "Upgrade",
        "Proxy-Authorization", "proxy-connection", "Expect", "Webhook-Id", "webhook-signature", "WEBHOOK-TIMESTAMP",
        "X-Overlayd-Signature", "x-overlayd-anything", "traceparent", "User-Agent", "Accept-Encoding", "a b", "a:b", "", "é",
        "a\r\nb", "x" * 129,
    ],
)  # fmt: skip
def test_headers_that_are_the_nodes_own_are_refused(name: str) -> None:
    """Hop-by-hop headers, those that carry the contract, and names that are none."""
    found = flaws(headers={name: "hunter2"})
    assert len(found) == 1
    assert "hunter2" not in str(found)


@pytest.mark.parametrize("value", ["a\r\nb", "a\nb", "\x00", "é", " a", "a ", "\x7f", "a\rb"])
def test_header_values_stay_in_their_line(value: str) -> None:
    """Printable ASCII; what is refused isn't repeated, because it may be a secret."""
    found = flaws(headers={"X-A": value})
    assert list(found) == ["/webhook/headers/X-A"]


def test_headers_are_bounded() -> None:
    """In number and size, and each is given once."""
    metrics = Metrics()
    judge = WebhookJudge(Limits(webhook_headers=2), NetworkPolicy(), metrics)
    assert judge.check(WebhookRule(url=URL, headers={"a": "", "b": "", "c": ""}))
    assert judge.check(WebhookRule(url=URL, headers={"a": "x" * 9000}))
    for limit in ("webhook_headers", "webhook_header_bytes"):
        assert metrics.registry.get_sample_value("overlayd_limit_hits_total", {"limit": limit}) == 1
    assert flaws(headers={"X-A": "1", "x-a": "2"})


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{", "JSON document"), ('{"a": {{ data }}}', "JSON document"), ('"{{ data }}"', "object or array"),
        ('{"a": "{{ data"}', "isn't closed"), ('{"{{ data }}": 1}', "not in names"), ('{"a": "{{ nothing.b }}"}', "leads nowhere"),
        ('{"a": "{{ }}"}', "not a path"), ('{"a": "{{ data. }}"}', "not a path"), ('{"a": "{{ data | upper }}"}', "not a path"),
        ('{"a": "{{ data.' + "b." * 20 + 'c }}"}', "16 steps"), ('{"a": "' + "{{ data }}" * 257 + '"}', "at most 256"),
        ("[" * 70 + "]" * 70, "64 levels"), ('{"a": "{{ packets.0 }}"}', "leads nowhere"), ('{"a": "{{ {{ data }} }}"}', "not a path"),
        ("[" * 60_000, "JSON document"),
    ],
)  # fmt: skip
def test_templates_are_judged_when_defined(template: str, words: str) -> None:
    """JSON, closed placeholders, known beginnings, bounds."""
    found = flaws(format="template", template=template)
    assert list(found) == ["/webhook/template"]
    assert words in found["/webhook/template"]


def test_template_and_format_go_together() -> None:
    """One without the other is a mistake."""
    assert flaws(format="template")
    assert flaws(template="{}")
    assert flaws(format="cloudevents", template="{}")
    assert not flaws(format="template", template='{"a": "{{ packets.0 }}"}', batch_size=2)
    assert flaws(format="template", template='{"a": "{{ data }}"}', batch_size=2)


def test_the_limit_on_placeholders_counts_its_hits() -> None:
    """A template over it is refused."""
    metrics = Metrics()
    judge = WebhookJudge(Limits(template_placeholders=1), NetworkPolicy(), metrics)
    assert judge.check(WebhookRule(url=URL, format="template", template='["{{ data }}{{ data }}"]'))
    assert metrics.registry.get_sample_value("overlayd_limit_hits_total", {"limit": "template_placeholders"}) == 1


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES)
def test_a_placeholder_alone_is_the_value(value: Any) -> None:
    """Whatever its type, nothing of it can break out of its place."""
    template = judged_template('{"a": ["{{ data }}", 1], "b": "x {{ data }} y"}')
    filled = json.loads(fill_template(template, {"data": value}, bytes_max=100_000))
    assert filled["a"] == [value, 1]
    written = "" if value is None else value if isinstance(value, str) else msgspec.json.encode(value).decode()
    assert filled["b"] == f"x {written} y"


@given(st.text(max_size=60) | st.from_regex(r'\{"a": "[{}a-z. ]{0,20}"\}', fullmatch=True))
def test_judging_a_template_ends_in_a_template_or_a_refusal(text: str) -> None:
    """And what was accepted can be filled, with nothing to fill it."""
    try:
        template = parse_template(text, placeholders_max=10, roots=SINGLE_ROOTS + BATCH_ROOTS)
    except ValueError:
        return
    json.loads(fill_template(template, {}, bytes_max=10_000))


@given(st.integers(0, 200), st.integers(0, 100))
def test_filled_templates_are_bounded(size: int, bound: int) -> None:
    """A template that multiplies its packet stops at the bound."""
    template = judged_template('{"a": "{{ data }}", "b": "{{ data }}{{ data }}", "c": []}')
    whole = fill_template(template, {"data": "x" * size}, bytes_max=10_000)
    if len(whole) <= bound:
        assert fill_template(template, {"data": "x" * size}, bytes_max=bound) == whole
    else:
        with pytest.raises(TemplateTooLong):
            fill_template(template, {"data": "x" * size}, bytes_max=bound)
