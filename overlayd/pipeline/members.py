"""The members of a packet that aren't its data: what each may be. Shared by every way in."""

import base64
import binascii
import re
from datetime import date
from difflib import get_close_matches
from typing import Any

import msgspec

from overlayd.model.errors import InvalidPacket, Violation
from overlayd.model.limits import Limits

SALT_BYTES = 16
TOPIC_CHARS = 128

_TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt]([01]\d|2[0-3]):([0-5]\d):([0-5]\d|60)(?:\.\d+)?(?:[Zz]|[+-](?:[01]\d|2[0-3]):[0-5]\d)",
    re.ASCII,
)
_TOPIC = re.compile(r"[^.*>\s\x00-\x1f\x7f]+(?:\.[^.*>\s\x00-\x1f\x7f]+)*")
_BASE64 = re.compile(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?", re.ASCII)
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)
_JSON_WORDS: dict[type, str] = {
    dict: "an object", list: "an array", str: "a string", int: "a number", float: "a number", bool: "a boolean",
    type(None): "null",
}  # fmt: skip


class Findings:
    """Violations of one packet, gathered so that one answer names them all."""

    __slots__ = ("index", "violations")

    def __init__(self, index: int | None) -> None:
        self.index = index
        self.violations: list[Violation] = []

    def add(self, pointer: str, code: str, detail: str) -> None:
        self.violations.append(Violation(pointer, code, detail, index=self.index))

    def raise_any(self) -> None:
        """Raises InvalidPacket when anything was found."""
        if self.violations:
            first = self.violations[0]
            more = f" (and {len(self.violations) - 1} more)" if len(self.violations) > 1 else ""
            raise InvalidPacket(
                f"{first.pointer or 'the packet'}: {first.detail}{more}", subject=first.pointer,
                violations=self.violations,
            )  # fmt: skip


def word_of(value: Any) -> str:
    """What a decoded JSON value is, in words: "an object", "null"."""
    return _JSON_WORDS[type(value)]


def check_text(value: Any, name: str, chars_max: int, findings: Findings) -> str:
    """A string of 1 to `chars_max` characters; "" after a finding."""
    if type(value) is not str:
        hint = "; leave it out instead" if value is None else ""
        findings.add(f"/{name}", "member.type", f"must be a string, is {word_of(value)}{hint}")
    elif not value:
        findings.add(f"/{name}", "member.empty", "must not be empty; leave it out instead")
    elif len(value) > chars_max:
        findings.add(f"/{name}", "member.length", f"has {len(value)} characters; {chars_max} are taken")
    else:
        return value
    return ""


def check_time(value: Any, name: str, findings: Findings) -> str:
    """An RFC 3339 time with a zone; "" after a finding."""
    text = check_text(value, name, 64, findings)
    if text and not is_time(text):
        findings.add(
            f"/{name}", "member.format", 'must be an RFC 3339 time with a zone, such as "2024-01-15T10:30:00Z"'
        )
        return ""
    return text


def is_time(text: str) -> bool:
    """Whether it is an RFC 3339 time; second 60 counts at the end of an hour only."""
    match = _TIME.fullmatch(text)
    if match is None:
        return False
    try:
        date(int(match[1]), int(match[2]), int(match[3]))
    except ValueError:
        return False
    return match[6] != "60" or match[5] in ("59", "29", "44", "14")  # zones are off by quarters of an hour


def check_topics(value: Any, limits: Limits, findings: Findings) -> None:
    """An array of topics, each dotted tokens without wildcards."""
    if type(value) is not list:
        findings.add("/topics", "member.type", f"must be an array of strings, is {word_of(value)}")
        return
    if len(value) > limits.topics_max:
        findings.add("/topics", "member.length", f"names {len(value)} topics; {limits.topics_max} are taken")
        return
    for at, topic in enumerate(value):
        if type(topic) is not str:
            findings.add(f"/topics/{at}", "member.type", f"must be a string, is {word_of(topic)}")
        elif not is_topic(topic):
            findings.add(
                f"/topics/{at}", "member.format",
                f"must be tokens joined by dots, without spaces, * or >, of at most {TOPIC_CHARS} characters",
            )  # fmt: skip


def is_topic(text: str) -> bool:
    """Whether it can be a topic: tokens joined by dots, no wildcards, no white space."""
    return len(text) <= TOPIC_CHARS and _TOPIC.fullmatch(text) is not None


def check_metadata(value: Any, text: bytes, limits: Limits, findings: Findings) -> None:
    """An object of bounded size."""
    if type(value) is not dict:
        findings.add("/metadata", "member.type", f"must be an object, is {word_of(value)}")
    elif len(text) > limits.metadata_bytes:
        findings.add("/metadata", "member.length", f"has {len(text)} bytes; {int(limits.metadata_bytes)} are taken")


def check_octets(value: Any, name: str, findings: Findings) -> None:
    """Canonical base64 text."""
    if type(value) is not str:
        findings.add(f"/{name}", "member.type", f"must be a base64 string, is {word_of(value)}")
    elif not is_base64(value):
        findings.add(f"/{name}", "member.format", "must be canonical base64: standard alphabet, padded, no white space")


def check_salt(value: Any, findings: Findings) -> bytes:
    """16 bytes from canonical base64; b"" after a finding."""
    before = len(findings.violations)
    check_octets(value, "salt", findings)
    if len(findings.violations) > before:
        return b""
    salt = base64.b64decode(value)
    if len(salt) != SALT_BYTES:
        findings.add("/salt", "member.length", f"holds {len(salt)} bytes; exactly {SALT_BYTES} are taken")
        return b""
    return salt


def is_base64(text: str) -> bool:
    """Whether it is the one base64 text of its octets: padded, and no bits hidden behind the last ones."""
    if _BASE64.fullmatch(text) is None:
        return False
    if not text.endswith("="):
        return True
    last = text[-4:]
    try:
        return base64.b64encode(base64.b64decode(last)).decode() == last
    except binascii.Error:  # pragma: no cover - the pattern leaves nothing to refuse
        return False


def is_traceparent(text: str) -> bool:
    """Whether it is a W3C trace context of version 00 or later, with ids that aren't zero."""
    return (
        _TRACEPARENT.fullmatch(text) is not None
        and not text.startswith("ff")
        and text[3:35] != "0" * 32
        and text[36:52] != "0" * 16
    )


def check_names(members: dict[str, Any], known: frozenset[str], findings: Findings) -> None:
    """Names every member that doesn't exist, with the nearest one that does."""
    for name in members:
        if name in known:
            continue
        near = get_close_matches(name[:64], known, n=1)
        did_you = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(sorted(known))}"
        escaped = name.replace("~", "~0").replace("/", "~1")
        findings.add(f"/{escaped[:200]}", "member.unknown", f"no such member{did_you}")
        if len(findings.violations) >= 20:
            break


def encode_text(text: str) -> bytes:
    """The JSON string of a text."""
    return msgspec.json.encode(text)
