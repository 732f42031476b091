"""Judges the table `webhook` of a subscription: URL, secret, template, headers."""

import re
from collections.abc import Iterator

from msgspec import UNSET

from overlayd.delivery.webhooks.secret_text import parse_secret
from overlayd.delivery.webhooks.template import parse_template
from overlayd.model.errors import OutboundFailure, Violation
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.model.subscription import HIDDEN, WebhookRule
from overlayd.outbound.networks import NetworkPolicy, refuse_address, refuse_port
from overlayd.outbound.url import parse_url

RESERVED_HEADERS = frozenset({
    "accept-encoding", "content-encoding", "content-length", "content-type", "expect", "host", "traceparent",
    "user-agent", "webhook-id", "webhook-signature", "webhook-timestamp",
})  # fmt: skip
"""Set by the node."""
HOP_HEADERS = frozenset({
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
    "transfer-encoding", "upgrade",
})  # fmt: skip
"""Between two neighbors only (RFC 9110, 7.6.1)."""
OWN_PREFIX = "x-overlayd-"
SINGLE_ROOTS = ("packet", "data", "stream_id", "subscription_id", "webhook_id", "delivery_timestamp")
BATCH_ROOTS = ("packets", "stream_id", "subscription_id", "webhook_id", "delivery_timestamp")
"""What a template's paths begin with, for one packet a delivery and for several."""

_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}", re.ASCII)
_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e\t]*[\x21-\x7e])?|", re.ASCII)


class WebhookJudge:
    """Says what is wrong with a webhook's definition."""

    def __init__(self, limits: Limits, policy: NetworkPolicy, metrics: Metrics) -> None:
        self._limits = limits
        self._policy = policy
        self._metrics = metrics

    def check(self, rule: WebhookRule) -> list[Violation]:
        """Everything that is wrong with it, nothing when it can be used; pointers begin with /webhook.

        Names are not looked up: what they lead to is judged at each attempt.
        """
        return [*self._url(rule), *_secret(rule), *self._template(rule), *self._headers(rule.headers)]

    def _url(self, rule: WebhookRule) -> Iterator[Violation]:
        try:
            target = parse_url(rule.url)
        except OutboundFailure as err:
            yield _wrong("url", err.detail)
            return
        if refusal := refuse_port(target.port, self._policy):
            yield _wrong("url", refusal)
        if target.address is not None and (refusal := refuse_address(target.address, self._policy)):
            yield _wrong("url", f"{target.address} isn't called: {refusal}; [webhooks] allow_private names exceptions")

    def _template(self, rule: WebhookRule) -> Iterator[Violation]:
        if (rule.format == "template") != (rule.template is not UNSET):
            yield _wrong("template", "format template and a template go together")
        if rule.template is UNSET:
            return
        roots = SINGLE_ROOTS if rule.batch_size == 1 else BATCH_ROOTS
        try:
            parse_template(rule.template, placeholders_max=self._limits.template_placeholders, roots=roots)
        except ValueError as err:
            if "placeholders, not" in str(err):
                self._metrics.count_limit_hit("template_placeholders")
            yield _wrong("template", str(err))

    def _headers(self, headers: dict[str, str]) -> Iterator[Violation]:
        if len(headers) > self._limits.webhook_headers:
            self._metrics.count_limit_hit("webhook_headers")
            yield _wrong("headers", f"at most {self._limits.webhook_headers} headers")
        if sum(len(name) + len(value) for name, value in headers.items()) > self._limits.webhook_header_bytes:
            self._metrics.count_limit_hit("webhook_header_bytes")
            yield _wrong("headers", f"names and values have at most {self._limits.webhook_header_bytes} together")
        seen: set[str] = set()
        for name, value in headers.items():
            yield from _header(name, value, seen)


def _header(name: str, value: str, seen: set[str]) -> Iterator[Violation]:
    """The value isn't repeated: it may be a secret."""
    lower = name.lower()
    place = f"headers/{name.replace('~', '~0').replace('/', '~1')}"
    if not _TOKEN.fullmatch(name):
        yield _wrong("headers", "a header's name has letters, digits and -, at most 128")
    elif lower in RESERVED_HEADERS or lower.startswith(OWN_PREFIX):
        yield _wrong(place, "this header is set by the node itself")
    elif lower in HOP_HEADERS:
        yield _wrong(place, "this header goes from one neighbor to the next, not to the receiver")
    elif lower in seen:
        yield _wrong(place, "given twice; upper and lower case are the same")
    if not _VALUE.fullmatch(value):
        yield _wrong(place, "a header's value is printable ASCII without spaces at its ends")
    elif value == HIDDEN:
        yield _wrong(place, "that isn't the value; to leave a header as it is, leave it out of the change")
    seen.add(lower)


def _secret(rule: WebhookRule) -> Iterator[Violation]:
    if rule.secret is UNSET:
        return
    try:
        parse_secret(rule.secret)
    except ValueError as err:
        yield _wrong("secret", str(err))


def _wrong(place: str, detail: str) -> Violation:
    return Violation(f"/webhook/{place}", "subscription.member", detail)
